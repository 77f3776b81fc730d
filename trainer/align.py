"""Stage `align`: GRPO on think-then-act replies (paper, section 3.2), with guards the paper does not mention.

Before the first update the policy is measured; when there is nothing to explore the stage refuses with the numbers.
While it runs, held-out greedy and sampled error, decodability and short closed-loop rollouts are watched: the best
weights are kept (step 0 included, so the result is never worse than the start by that measure), and a run that is
destroying the policy is stopped. Both happened with the published reward on a weak start.

Not done here: LoRA, vLLM and several GPUs (TRL's own options; nothing in this file prevents them, nothing tests them).
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from trl import GRPOConfig

from roboalign.sdk.constraint import ActionConstraint
from roboalign.sdk.errors import CheckFailed, ConfigError
from roboalign.sdk.fast import FastCodec
from roboalign.trainer.backbone import HuggingFaceBackbone, make_backbone, quiet_transformers
from roboalign.trainer.checkpoint import Checkpoint, CheckpointMeta, load_checkpoint, partial_dir, save_checkpoint
from roboalign.trainer.frames import load_frames
from roboalign.trainer.grpo import AlignTrainer
from roboalign.trainer.probe import reply_tokens
from roboalign.trainer.progress import progress_bar
from roboalign.trainer.refusals import check_codec_range
from roboalign.trainer.replies import keep_replies
from roboalign.trainer.resume import restore_weights
from roboalign.trainer.rewards import REWARDS, RewardWeights
from roboalign.trainer.rollout import TokenMask
from roboalign.trainer.run import stage_run
from roboalign.trainer.watch import ActionPrompts, AlignWatch, ClosedLoop, Measurement, what_is_missing

__all__ = ["AlignConfig", "ClosedLoop", "align", "make_mask"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignConfig:
    """Settings of the `align` stage; the defaults fit `nano`."""

    data: Path
    """Dataset folder (`roboalign collect`)."""
    sft: Path
    """Checkpoint of stage `sft` to start from."""
    out: Path
    """Checkpoint folder to write."""
    recipe: str
    """Name of the recipe that made this configuration."""
    steps: int
    """Updates of the weights."""
    reward: str = "soft"
    """`prefix` (the paper's, sampled freely) or `soft` (decoded distance, sampled under the length constraint)."""
    weights: RewardWeights = field(default_factory=RewardWeights)
    """Parts of the `soft` reward."""
    prompts_per_rollout: int = 24
    """Prompts sampled at a time (paper: 512)."""
    samples_per_prompt: int = 8
    """Replies a prompt (paper: 5)."""
    updates_per_rollout: int = 1
    """Updates from one set of replies (paper: 4)."""
    micro_batch: int = 48
    """Replies in one backward pass; changes memory, not the result."""
    learning_rate: float = 3e-5
    """Constant rate (paper: 1e-6 for 7B; 1e-4 cost the greedy policy of `nano`)."""
    warmup_steps: int = 3
    """Steps with a smaller rate at the start."""
    weight_decay: float = 0.01
    """AdamW weight decay (EasyR1's default; the paper gives none)."""
    max_grad_norm: float = 1.0
    """Gradient norm limit."""
    beta: float = 0.04
    """Weight of the KL term (k3) to the start; 0 leaves it out (the paper gives none; EasyR1's default is .01)."""
    clip_low: float = 0.2
    """Lower clip of the probability ratio (EasyR1's default)."""
    clip_high: float = 0.3
    """Upper clip of the probability ratio (EasyR1's default)."""
    loss_type: str = "dapo"
    """TRL's name of the loss; `dapo` is a mean over the tokens of the batch."""
    temperature: float = 1.0
    """Sampling temperature."""
    max_tokens: int = 96
    """Longest reply."""
    num_prompts: int | None = None
    """Training frames to draw prompts from; None uses all (paper: 12.8K)."""
    held_share: float = 0.05
    """Share of the episodes that is held out; the same as in `sft`, so that nothing held out was ever seen."""
    max_frames: int | None = None
    """Frames to read at most; None reads all."""
    watch_every: int = 10
    """Updates between two measurements."""
    watch_prompts: int = 48
    """Held-out prompts of a measurement."""
    watch_samples: int = 4
    """Samples a prompt of a measurement."""
    min_first_token: float = 0.10
    """Refuse `prefix` below this share of greedy replies with the right first token; `soft` rewards near misses."""
    min_informative: float = 0.50
    """Refuse below this share of prompts whose samples differ in reward."""
    min_well_formed: float = 0.05
    """Refuse below this share of well-formed samples."""
    force: bool = False
    """Train although there is nothing to explore."""
    stop_error_ratio: float = 1.5
    """Stop when the held-out greedy error exceeds this multiple of its start (plus `stop_error_slack`)."""
    stop_error_slack: float = 0.02
    """Normalised units; keeps the noise of a very good start from stopping a run."""
    stop_decodable_drop: float = 0.15
    """Stop when the share of decodable replies falls by this much."""
    keep: str = "best"
    """Weights that become the checkpoint: `best` by held-out error, or `last`."""
    freeze_vision: bool = False
    """Train the decoder only (the paper's RL trains all parameters)."""
    save_every: int = 20
    """Updates between two states on disk, from which an interrupted run resumes."""
    dtype: str = "fp16"
    """Type of the saved weights."""
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        choices = {"reward": REWARDS, "keep": ("best", "last"), "loss_type": ("dapo", "grpo", "bnpo", "dr_grpo")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"AlignConfig.{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}"
                )
        for name in ("steps", "prompts_per_rollout", "updates_per_rollout", "micro_batch", "watch_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"AlignConfig.{name} is {getattr(self, name)}, expected at least 1")
        if self.samples_per_prompt < 2:
            raise ConfigError(f"AlignConfig.samples_per_prompt is {self.samples_per_prompt}; a group needs at least 2")
        batch = self.prompts_per_rollout * self.samples_per_prompt
        if batch % (self.micro_batch * self.updates_per_rollout):
            raise ConfigError(
                f"AlignConfig: {batch} replies a rollout are not a multiple of micro_batch x updates_per_rollout = "
                f"{self.micro_batch} x {self.updates_per_rollout}"
            )
        for name in ("steps", "save_every"):
            if getattr(self, name) % self.updates_per_rollout:
                raise ConfigError(
                    f"AlignConfig.{name} must be a multiple of updates_per_rollout ({self.updates_per_rollout})"
                )


@stage_run("align")
def align(config: AlignConfig, *, closed_loop: ClosedLoop | None = None) -> Path:
    """Runs the stage and returns the checkpoint folder; resumes when it was interrupted.

    Args:
        config: settings.
        closed_loop: short rollouts to run at every measurement; None measures tokens only.

    Raises:
        CheckFailed: there is nothing to explore, and `config.force` is not set.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(config.threads)
    parent = load_checkpoint(config.sft, expect_stage="sft")
    codec = parent.load_codec()
    backbone = make_backbone(parent.load_model(), parent.load_processor())
    fmt = backbone.processor.prompt_format
    table = load_frames(
        config.data, horizon=codec.config.horizon, image_size_px=fmt.image_size_px, max_frames=config.max_frames
    )
    check_codec_range(codec, table.chunks, where=config.data)
    train, held = table.split(config.held_share)
    prompts, held_prompts = ActionPrompts(train, backbone, codec), ActionPrompts(held, backbone, codec)
    mask = make_mask(backbone, codec, is_constrained=config.reward == "soft")
    watch = AlignWatch(config, backbone, held_prompts, mask, closed_loop)
    work = partial_dir(config.out)
    work.mkdir(parents=True, exist_ok=True)
    (work / "align.json").write_text(json.dumps(_config_json(config), indent=2) + "\n", encoding="utf-8")
    state = work / "state"
    is_resumed = state.is_dir()
    watch.begin(work, state if is_resumed else None)
    if not is_resumed:
        _check_start(watch.start, config, work)
    if config.freeze_vision:
        _freeze_vision(backbone)
    rows = _training_order(len(train), config)
    with quiet_transformers(), warnings.catch_warnings():
        # TRL 1.16 still uses names that transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        trainer = AlignTrainer(
            backbone=backbone,
            prompts=prompts,
            rows=rows,
            mask=mask,
            reward=config.reward,
            weights=config.weights,
            args=_grpo_config(config, work),
            callbacks=[watch],
        )
        watch.trainer = trainer
        with progress_bar(f"align {config.reward}", config.steps, done=watch.step) as watch.show:
            trainer.train(resume_from_checkpoint=str(state) if is_resumed else None)
    if config.keep == "best":
        restore_weights(backbone.model, load_file(watch.best_file), where=work)
    keep_replies(work, backbone, codec, held, seed=config.seed)
    _save(config, parent, backbone, codec, watch, table.data_hash, work)
    return config.out


def make_mask(backbone: HuggingFaceBackbone, codec: FastCodec, *, is_constrained: bool) -> TokenMask:
    """Returns the mask of what may be sampled; with the length constraint every finished action span decodes."""
    vocab_size = int(backbone.model.get_input_embeddings().weight.shape[0])
    tokens = reply_tokens(backbone, codec.vocab_size)
    constraint = None
    if is_constrained:
        constraint = ActionConstraint(
            codec.token_lengths,
            num_coefficients=codec.num_coefficients,
            action_start_id=tokens.action_start,
            action_end_id=tokens.action_end,
            first_action_id=tokens.first_action,
            lm_vocab_size=vocab_size,
        )
    return TokenMask(vocab_size=vocab_size, banned_ids=backbone.banned_ids, constraint=constraint)


def _check_start(start: Measurement, config: AlignConfig, work: Path) -> None:
    missing = what_is_missing(
        start,
        min_first_token=config.min_first_token if config.reward == "prefix" else 0.0,
        min_informative=config.min_informative,
        min_well_formed=config.min_well_formed,
    )
    if not missing:
        return
    message = f"nothing to explore for align from {config.sft}: {'; '.join(missing)}"
    if config.force:
        print(f"{message}; going on because of force", file=sys.stderr)
        return
    raise CheckFailed(f"{message}. Train sft longer, or override with force")


def _training_order(num_frames: int, config: AlignConfig) -> list[int]:
    """Returns the frame of each prompt of the whole run: passes over the frames, each in a new order."""
    rng = np.random.default_rng((config.seed, 19))
    chosen = rng.permutation(num_frames)[: config.num_prompts]
    needed = config.steps // config.updates_per_rollout * config.prompts_per_rollout
    passes = [rng.permutation(chosen) for _ in range(-(-needed // len(chosen)))]
    return [int(row) for row in np.concatenate(passes)[:needed]]


def _freeze_vision(backbone: HuggingFaceBackbone) -> None:
    for parameter in backbone.vision.parameters():
        parameter.requires_grad_(False)


def _grpo_config(config: AlignConfig, work: Path) -> GRPOConfig:
    batch = config.prompts_per_rollout * config.samples_per_prompt
    accumulation = batch // (config.micro_batch * config.updates_per_rollout)
    has_cuda = torch.cuda.is_available()
    return GRPOConfig(
        output_dir=str(work / "trl"),
        max_steps=config.steps,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation * config.updates_per_rollout,
        num_generations=config.samples_per_prompt,
        max_completion_length=config.max_tokens,
        temperature=config.temperature,
        beta=config.beta,
        epsilon=config.clip_low,
        epsilon_high=config.clip_high,
        loss_type=config.loss_type,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        shuffle_dataset=False,
        use_cpu=not has_cuda,
        bf16=False,  # TRL's defaults are for GPUs: bfloat16 and activation checkpointing
        activation_checkpointing=False,
        dataloader_pin_memory=has_cuda,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
    )


def _save(
    config: AlignConfig,
    parent: Checkpoint,
    backbone: HuggingFaceBackbone,
    codec: FastCodec,
    watch: AlignWatch,
    data_hash: str,
    work: Path,
) -> None:
    kept = watch.best_step if config.keep == "best" else watch.step
    held = {entry["step"]: entry["held"] for entry in watch.history}
    meta = CheckpointMeta(
        stage="align",
        recipe=config.recipe,
        parent=parent.path.name,
        parent_sha256=parent.sha256,
        seeds={"align": config.seed},
        metrics={
            "start": held[0],
            "kept": held.get(kept),
            "kept_step": kept,
            "last_step": watch.step,
            "stopped": watch.stopped,
        },
        data_hash=data_hash,
        wall_s=watch.timer.wall_s,
        cpu_s=watch.timer.cpu_s,
        notes={**_config_json(config), "pairing": parent.meta.notes.get("pairing")},
    )
    files = {name: work / name for name in ("metrics.jsonl", "align.json")}
    save_checkpoint(
        config.out,
        model=backbone.model,
        processor=backbone.processor,
        meta=meta,
        codec=codec,
        dtype=config.dtype,
        extra_files=files,
    )


def _config_json(config: AlignConfig) -> dict[str, Any]:
    # Folders by name only: where they lay says nothing to whoever reads the checkpoint elsewhere.
    return {name: value.name if isinstance(value, Path) else value for name, value in asdict(config).items()}
