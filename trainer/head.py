"""Stage `head`: a flow-matching action head on the frozen backbone (paper, stage 3).

The backbone thinks about every training frame once (greedily, by the rule of the runtime) and its hidden states after
layer k of prompt, picture and thought are cached (`trainer/features.py`); the head is then trained on the cache alone.
The thought that it sees is fresh, stale or absent, by stated shares, so that one head serves a robot that waits for
its thoughts, one that thinks beside the control loop, and one that does not think.
Backbones are compared through heads trained by the same recipe and seed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.types import FloatArray
from roboalign.trainer.backbone import HuggingFaceBackbone, load_backbone
from roboalign.trainer.checkpoint import CheckpointMeta, load_checkpoint, partial_dir, save_checkpoint
from roboalign.trainer.features import KINDS, Features, FeatureSettings, cache_features
from roboalign.trainer.flow import FlowHead, FlowHeadConfig, flow_loss
from roboalign.trainer.frames import FrameTable, load_frames
from roboalign.trainer.progress import MetricsLog, Timer, check_same_settings, learning_rate, progress_bar
from roboalign.trainer.refusals import check_codec_range
from roboalign.trainer.resume import load_training_state, save_training_state
from roboalign.trainer.run import stage_run
from roboalign.trainer.supervised import training_device

__all__ = ["HeadConfig", "held_out_error", "kinds_drawn", "train_head"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """Settings of the `head` stage."""

    data: Path
    """Dataset folder (`roboalign collect`)."""
    backbone: Path
    """Checkpoint of stage `sft` or `align`."""
    out: Path
    """Checkpoint folder to write."""
    recipe: str
    """Name of the recipe that made this configuration."""
    steps: int
    """Updates."""
    layer: int = 3
    """Decoder layer after which the hidden states are taken (paper: 18 of 28)."""
    thought_budget: int = 48
    """Tokens a thought may take."""
    shares: tuple[float, float, float] = (0.6, 0.25, 0.15)
    """Shares of the chunks that see a fresh, a stale and no thought (paper: fresh only); they add up to 1."""
    max_age: int = 8
    """Oldest stale thought, in frames with a picture (1.6 s where every second frame at 10 Hz has one)."""
    max_gib: float = 8.0
    """Most that the cached features of the training frames may take, in memory and on disk alike."""
    features: Path | None = None
    """Folder that keeps the features for other heads on the same backbone and data; None drops them when this stage
    ends."""
    batch_size: int = 128
    """Chunks an update."""
    draws: int = 2
    """Noise samples for each chunk of an update; they share one pass of the conditioning."""
    peak_rate: float = 1e-3
    """Learning rate after warm-up (GR00T N1.5: 1e-4 at 1536 wide; ours is 128 wide)."""
    warmup_share: float = 0.05
    """Share of the steps that warm up (GR00T N1.5)."""
    weight_decay: float = 1e-5
    """AdamW weight decay (GR00T N1.5)."""
    width: int = 128
    """Width of the head."""
    num_layers: int = 3
    """Transformer blocks of the head."""
    held_share: float = 0.05
    """Share of the episodes that is held out."""
    max_frames: int | None = None
    """Frames to read at most; None reads all."""
    save_every: int = 500
    """Steps between two training states on disk."""
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    """Seed of everything that is drawn."""
    dtype: str = "fp16"
    """Type of the saved weights."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", tuple(self.shares))
        if len(self.shares) != len(KINDS) or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ConfigError(
                f"HeadConfig.shares is {self.shares}, expected {len(KINDS)} shares ({', '.join(KINDS)}) with the sum 1"
            )
        if self.max_age < 1:
            raise ConfigError(f"HeadConfig.max_age is {self.max_age}, expected 1 or more")

    @property
    def trained_kinds(self) -> tuple[str, ...]:
        """The kinds of thought that occur during training."""
        return tuple(kind for kind, share in zip(KINDS, self.shares, strict=True) if share > 0)


@stage_run("head")
def train_head(config: HeadConfig) -> Path:
    """Runs the stage and returns the checkpoint folder; resumes when it was interrupted."""
    parent = load_checkpoint(config.backbone, expect_stage=("sft", "align"))
    torch.set_num_threads(config.threads)
    backbone, codec = load_backbone(config.backbone), parent.load_codec()
    backbone.model.to(training_device())
    if not 1 <= config.layer <= backbone.num_layers:
        raise ConfigError(f"HeadConfig.layer is {config.layer}, expected 1 to {backbone.num_layers}")
    size = backbone.prompt_format.image_size_px
    table = load_frames(
        config.data,
        horizon=codec.config.horizon,
        image_size_px=size,
        max_frames=config.max_frames,
        rate_hz=codec.config.rate_hz,
        robot=parent.meta.notes.get("robot"),
        state_names=parent.meta.states,
    )
    check_codec_range(codec, table.chunks, where=config.data)
    train, held = table.split(config.held_share)
    work = partial_dir(config.out)
    work.mkdir(parents=True, exist_ok=True)
    timer = Timer()
    features, held_features = (
        cache_features(
            config.features or work / "features",
            backbone,
            part,
            FeatureSettings(layer=config.layer, budget=config.thought_budget, max_age=config.max_age),
            kinds=kinds,
            content={"backbone": parent.sha256, "data": table.data_hash, "part": name, "held": config.held_share},
            max_gib=config.max_gib,
        )
        for name, part, kinds in (("train", train, config.trained_kinds), ("held", held, KINDS))
    )
    torch.manual_seed(config.seed)
    head = FlowHead(_sizes(config, backbone, codec.config.low, codec.config.high, train))
    _fit(head, features, train, held_features, held, config, work, timer)
    metrics = held_out_error(head, held_features, held, seed=config.seed)
    meta = CheckpointMeta(
        stage="head",
        recipe=config.recipe,
        parent=parent.path.name,
        parent_sha256=parent.sha256,
        seeds={"head": config.seed},
        metrics={**metrics, "backbone": parent.meta.metrics},
        data_hash=table.data_hash,
        wall_s=timer.wall_s,
        cpu_s=timer.cpu_s,
        notes={
            "frames": len(train),
            "thought_budget": config.thought_budget,
            "feature_bytes": features.num_bytes,
            "backbone_stage": parent.meta.stage,
            "backbone_notes": parent.meta.notes,
            "config": json.loads(json.dumps(asdict(config), default=str)),
        },
    )
    save_checkpoint(
        config.out,
        model=backbone.model,
        processor=backbone.processor,
        meta=meta,
        codec=codec,
        head=head,
        dtype=config.dtype,
        extra_files={"metrics.jsonl": work / "metrics.jsonl"},
    )
    return config.out


def _sizes(
    config: HeadConfig, backbone: HuggingFaceBackbone, low: FloatArray, high: FloatArray, train: FrameTable
) -> FlowHeadConfig:
    return FlowHeadConfig(
        hidden_size=backbone.hidden_size,
        layer=config.layer,
        horizon=train.chunks.shape[1],
        action_low=tuple(float(v) for v in low),
        action_high=tuple(float(v) for v in high),
        state_mean=tuple(float(v) for v in train.states.mean(axis=0)),
        state_std=tuple(float(v) for v in train.states.std(axis=0).clip(1e-3)),
        width=config.width,
        num_layers=config.num_layers,
    )


def _fit(
    head: FlowHead,
    features: Features,
    train: FrameTable,
    held_features: Features,
    held: FrameTable,
    config: HeadConfig,
    work: Path,
    timer: Timer,
) -> None:
    """Trains the head in place; resumes from `work/state` when a state is there."""
    device = training_device()
    head.to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.peak_rate, weight_decay=config.weight_decay, fused=True)
    state = load_training_state(work / "state", model=head, optimizer=optimizer)
    first = state.step if state else 0
    settings = {**json.loads(json.dumps(asdict(config), default=str)), "data_hash": train.data_hash}
    for name in ("threads", "save_every", "features", "max_gib"):  # none of them changes the result
        del settings[name]
    if state:
        check_same_settings(state.extra["settings"], settings, folder=work)
        timer.add(**state.extra["time"])
    log = MetricsLog(work / "metrics.jsonl", first_step=first)
    chunks, states = torch.from_numpy(train.chunks), torch.from_numpy(train.states)
    head.train()
    with progress_bar("head", config.steps, done=first) as update:
        for step in range(first, config.steps):
            rate = learning_rate(step, peak=config.peak_rate, steps=config.steps, warmup_share=config.warmup_share)
            for group in optimizer.param_groups:
                group["lr"] = rate
            rng = np.random.default_rng((config.seed, step))
            rows = rng.integers(len(train), size=config.batch_size)
            batch = (*features.batch(rows, kinds_drawn(config, step)), states[rows], chunks[rows])
            hidden, mask, state_BS, chunk_BTA = (part.to(device) for part in batch)
            loss = flow_loss(head, hidden, mask, state_BS, chunk_BTA, rng, draws=config.draws)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            log.write(step=step, loss=float(loss.detach()), rate=rate, cpu_s=timer.cpu_s)
            update(1, f"loss {float(loss.detach()):.3f}")
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                log.write(step=step, **held_out_error(head, held_features, held, seed=config.seed))
                extra = {"time": {"wall_s": timer.wall_s, "cpu_s": timer.cpu_s}, "settings": settings}
                save_training_state(work / "state", model=head, optimizer=optimizer, step=step + 1, extra=extra)
    head.eval()


def kinds_drawn(config: HeadConfig, step: int) -> np.ndarray:
    """Returns the kind of thought (index in `KINDS`) of every chunk of an update."""
    rng = np.random.default_rng((config.seed, step, 9))  # its own: rows and noise do not depend on the shares
    return rng.choice(len(KINDS), size=config.batch_size, p=config.shares)


@torch.no_grad()
def held_out_error(
    head: FlowHead, features: Features, held: FrameTable, *, seed: int, count: int = 512
) -> dict[str, float]:
    """Returns the mean absolute error of sampled chunks on held-out frames with a fresh thought, per field as well.

    `held_error` and the errors with a stale and without a thought are in normalised units; all three look at the same
    frames with the same noise.
    """
    was_training = head.training
    head.eval()
    rows = np.random.default_rng((seed, 5)).permutation(len(held))[:count]
    noise = np.random.default_rng((seed, 6)).standard_normal(held.chunks[rows].shape).astype(np.float32)
    device = head.position.device
    wanted, states, start = (torch.from_numpy(a).to(device) for a in (held.chunks[rows], held.states[rows], noise))
    result: dict[str, float] = {}
    for index, kind in enumerate(KINDS):
        hidden, mask = features.batch(rows, np.full(len(rows), index))
        found = head.sample(hidden.to(device), mask.to(device), states, start)
        error = float((head.normalize(found) - head.normalize(wanted)).abs().mean())
        result["held_error" if kind == "fresh" else f"held_error_{kind}"] = error
        if kind == "fresh":
            names = ("dx_m", "dy_m", "dz_m", "dyaw_rad", "gripper_open")
            fields = (found - wanted).abs().mean(dim=(0, 1))
            result |= {f"held_{n}": float(e) for n, e in zip(names, fields, strict=True)}
    head.train(was_training)
    return result
