"""Settings of the `align` stage, and what they are called in TRL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig

from roboalign.sdk.errors import BackendError, ConfigError
from roboalign.trainer.lora import LoraSettings
from roboalign.trainer.rewards import RewardWeights, find_reward

__all__ = ["AlignConfig", "grpo_config"]


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
    """Name of a reward (`roboalign.trainer.rewards.REWARDS`, docs/rewards.md)."""
    constraint: str = "auto"
    """Length constraint while sampling: `on`, `off`, or `auto` (what the reward asks for)."""
    credit: str = "reply"
    """Who is paid: `reply`, every token by the whole reply (the paper's GRPO), or `token`, action tokens by what each
    earned and the rest by the reply (`trainer/credit.py`)."""
    weights: RewardWeights = field(default_factory=RewardWeights)
    """Parts of the `soft` reward."""
    prompts_per_rollout: int = 24
    """Prompts sampled at a time (paper: 512)."""
    rollout: str = "own"
    """Who samples: `own` (one shared prefill a prompt), `trl` (transformers' generate) or `vllm` (on a GPU; untested).
    The last two sample without the length constraint."""
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
    """Refuse a reward that pays nothing behind a wrong first token (`prefix`, `gate`) below this share of greedy
    replies with the right one."""
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
    stop_variety: float = 0.5
    """Stop when the greedy chunks keep less than this share of their variety or motion: a collapse."""
    keep_variety: float = 0.8
    """A measurement below this share of variety or motion is never the best, whatever its error."""
    keep: str = "best"
    """Weights that become the checkpoint: `best` (smallest held-out error that is no collapse), or `last`."""
    lora: LoraSettings | None = None
    """Low-rank additions to the decoder to train instead of all parameters (the paper has none)."""
    freeze_vision: bool = False
    """Train the decoder only (the paper's RL trains all parameters)."""
    save_every: int = 20
    """Updates between two states on disk, from which an interrupted run resumes."""
    dtype: str = "fp16"
    """Type of the saved weights."""
    threads: int = 1
    """CPU threads."""
    workers: int = 1
    """Processes with a simulator, for the reward `success`; changes time, not the result."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        find_reward(self.reward)
        choices = {
            "credit": ("reply", "token"),
            "constraint": ("auto", "on", "off"),
            "rollout": ("own", "trl", "vllm"),
            "keep": ("best", "last"),
            "loss_type": ("dapo", "grpo", "bnpo", "dr_grpo"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"AlignConfig.{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}"
                )
        if self.credit == "token" and find_reward(self.reward).shares is None:
            raise ConfigError(
                f"AlignConfig.credit is 'token', but the reward {self.reward!r} does not say what a token earned; "
                "choose the reward energy, or credit reply"
            )
        for name in ("steps", "prompts_per_rollout", "updates_per_rollout", "micro_batch", "watch_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"AlignConfig.{name} is {getattr(self, name)}, expected at least 1")
        if self.samples_per_prompt < 2:
            raise ConfigError(f"AlignConfig.samples_per_prompt is {self.samples_per_prompt}; a group needs at least 2")
        if self.rollout != "own" and self.constraint == "on":
            raise ConfigError(
                f"AlignConfig.constraint is 'on', which rollout {self.rollout!r} cannot do; choose rollout own"
            )
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

    @property
    def is_constrained(self) -> bool:
        """Replies are sampled under the length constraint."""
        if self.rollout != "own":
            return False
        return find_reward(self.reward).is_constrained if self.constraint == "auto" else self.constraint == "on"


def grpo_config(config: AlignConfig, work: Path, *, banned_ids: Sequence[int] = ()) -> GRPOConfig:
    """Returns TRL's settings; `banned_ids` are never sampled, by whoever samples.

    Raises:
        BackendError: vLLM shall sample and is not installed.
    """
    if config.rollout == "vllm" and find_spec("vllm") is None:
        raise BackendError("rollout vllm needs the package 'vllm', which is not installed: pip install 'trl[vllm]'")
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
        use_vllm=config.rollout == "vllm",
        vllm_mode="colocate",
        generation_kwargs=_without(banned_ids, config.rollout),
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


def _without(banned_ids: Sequence[int], rollout: str) -> dict[str, Any] | None:
    """Returns how transformers or vLLM are told that some tokens must not be sampled."""
    if rollout == "own" or not banned_ids:
        return None
    if rollout == "vllm":
        return {"logit_bias": dict.fromkeys(banned_ids, -100.0)}
    return {"suppress_tokens": list(banned_ids)}
