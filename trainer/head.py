"""Stage `head`: a flow-matching action head on the frozen backbone (paper, stage 3).

The backbone thinks about every training frame once (greedily, by the rule of the runtime) and its hidden states after
layer k of prompt, picture and thought are cached in memory as float16; the head is then trained on the cache alone.
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
from roboalign.trainer.flow import FlowHead, FlowHeadConfig, flow_loss
from roboalign.trainer.frames import FrameTable, load_frames
from roboalign.trainer.progress import MetricsLog, Timer, check_same_settings, learning_rate, progress_bar
from roboalign.trainer.refusals import check_codec_range
from roboalign.trainer.resume import load_training_state, save_training_state
from roboalign.trainer.run import stage_run
from roboalign.trainer.thinking import greedy_thoughts

__all__ = ["Features", "HeadConfig", "cache_features", "held_out_error", "train_head"]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """Cached conditioning of N frames."""

    hidden: torch.Tensor
    """float16[N, L, D], right-aligned padding rows are zero."""
    mask: torch.Tensor
    """bool[N, L]."""

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (hidden float32[B, L, D], mask bool[B, L]) of some frames."""
        index = torch.from_numpy(rows)
        return self.hidden[index].float(), self.mask[index]


@stage_run("head")
def train_head(config: HeadConfig) -> Path:
    """Runs the stage and returns the checkpoint folder; resumes when it was interrupted."""
    parent = load_checkpoint(config.backbone, expect_stage=("sft", "align"))
    torch.set_num_threads(config.threads)
    backbone, codec = load_backbone(config.backbone), parent.load_codec()
    if not 1 <= config.layer <= backbone.num_layers:
        raise ConfigError(f"HeadConfig.layer is {config.layer}, expected 1 to {backbone.num_layers}")
    size = backbone.prompt_format.image_size_px
    table = load_frames(config.data, horizon=codec.config.horizon, image_size_px=size, max_frames=config.max_frames)
    check_codec_range(codec, table.chunks, where=config.data)
    train, held = table.split(config.held_share)
    work = partial_dir(config.out)
    work.mkdir(parents=True, exist_ok=True)
    timer = Timer()
    features, held_features = (
        cache_features(backbone, part, layer=config.layer, budget=config.thought_budget) for part in (train, held)
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


def cache_features(
    backbone: HuggingFaceBackbone, table: FrameTable, *, layer: int, budget: int, batch_size: int = 128
) -> Features:
    """Returns the hidden states after `layer` of prompt, picture and greedy thought, for every frame."""
    hidden, masks = [], []
    with progress_bar("thoughts", len(table)) as update, torch.no_grad():
        for start in range(0, len(table), batch_size):
            rows = np.arange(start, min(start + batch_size, len(table)))
            inputs = backbone.encode_prompts(
                [table.truths[int(r)].instruction for r in rows],
                table.states[rows],
                list(table.images[rows]),
                pace="slow",
                task="act",
            )
            ids, mask = greedy_thoughts(backbone, inputs, budget=budget)
            whole = inputs.extend(ids, mask)
            hidden.append(backbone.hidden_after(whole, layer).half())
            masks.append(whole.attention_mask.bool())
            update(len(rows))
    length = max(h.shape[1] for h in hidden)
    width = hidden[0].shape[2]
    all_hidden = torch.zeros((len(table), length, width), dtype=torch.float16)
    all_mask = torch.zeros((len(table), length), dtype=torch.bool)
    start = 0
    for part, mask in zip(hidden, masks, strict=True):
        rows_here, length_here = mask.shape
        all_hidden[start : start + rows_here, :length_here] = part * mask.unsqueeze(2)
        all_mask[start : start + rows_here, :length_here] = mask
        start += rows_here
    return Features(hidden=all_hidden, mask=all_mask)


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
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.peak_rate, weight_decay=config.weight_decay)
    state = load_training_state(work / "state", model=head, optimizer=optimizer)
    first = state.step if state else 0
    settings = {**json.loads(json.dumps(asdict(config), default=str)), "data_hash": train.data_hash}
    for name in ("threads", "save_every"):  # neither changes the result
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
            hidden, mask = features.batch(rows)
            loss = flow_loss(head, hidden, mask, states[rows], chunks[rows], rng, draws=config.draws)
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


@torch.no_grad()
def held_out_error(
    head: FlowHead, features: Features, held: FrameTable, *, seed: int, count: int = 512
) -> dict[str, float]:
    """Returns the mean absolute error of sampled chunks on held-out frames, in normalised units and per field."""
    was_training = head.training
    head.eval()
    rows = np.random.default_rng((seed, 5)).permutation(len(held))[:count]
    hidden, mask = features.batch(rows)
    noise = torch.from_numpy(
        np.random.default_rng((seed, 6)).standard_normal(held.chunks[rows].shape).astype(np.float32)
    )
    wanted = torch.from_numpy(held.chunks[rows])
    found = head.sample(hidden, mask, torch.from_numpy(held.states[rows]), noise)
    head.train(was_training)
    error = (found - wanted).abs().mean(dim=(0, 1))
    normalised = float((head.normalize(found) - head.normalize(wanted)).abs().mean())
    names = ("dx_m", "dy_m", "dz_m", "dyaw_rad", "gripper_open")
    return {"held_error": normalised, **{f"held_{n}": float(e) for n, e in zip(names, error, strict=True)}}
