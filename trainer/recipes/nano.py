"""Recipes of the nano model.

`nano` is for the Panda, `nano-so101` for the simulated SO-101, `nano-own` for recordings of one's own arm (and
`nano-own-debug` to try that in seconds), `nano-study` is `nano` with less training in every stage, for
studies over seeds (docs/evidence.md), `nano-demo` fits into a quarter of an hour, `nano-debug` into seconds. The
models' cards say which recipe made what is shipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.prompt import PromptFormat
from roboalign.trainer.align import AlignConfig
from roboalign.trainer.base import BaseConfig
from roboalign.trainer.head import HeadConfig
from roboalign.trainer.sft import SftConfig
from roboalign.trainer.supervised import FitConfig

__all__ = ["DEBUG_ALIGN", "DEBUG_HEAD", "NANO_RECIPES", "ONE_COEFFICIENT", "Recipe"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything about the four stages that is not a path."""

    name: str
    """Name on the command line."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of `NanoConfig` or `SmolConfig`."""
    family: str = "nano"
    """Whose base stage makes the first model, see `BaseConfig.family`; `qwen` has none."""
    base_fit: FitConfig | None
    """Supervised loop of the base stage; None for models that come trained."""
    sft_fit: FitConfig
    """Supervised loop of the sft stage."""
    pairing: str = "zero-shot"
    """`zero-shot` (the paper) or `paired`."""
    sft: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `SftConfig` besides the paths, the loop and the pairing."""
    align: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `AlignConfig` besides the paths."""
    head: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `HeadConfig` besides the paths."""
    action_vocab: int = 512
    """Tokens of the action codec (paper: 2K)."""
    dtype: str = "fp16"
    """Type of the saved weights of base and sft."""
    max_frames: int | None = None
    """Frames that each stage reads at most."""

    def base_config(self, *, data: Path, out: Path, threads: int = 1, seed: int = 0) -> BaseConfig:
        """Returns the complete settings of the base stage."""
        if self.base_fit is None:
            raise ConfigError(
                f"recipe {self.name!r} has no base stage: its model comes trained; give it to 'roboalign train sft'"
            )
        return BaseConfig(
            data=data,
            out=out,
            recipe=self.name,
            fit=replace(self.base_fit, threads=threads, seed=seed),
            family=self.family,
            model=dict(self.model),
            max_frames=self.max_frames,
            dtype=self.dtype,
        )

    def sft_config(
        self,
        *,
        data: Path,
        base: Path,
        out: Path,
        pairing: str | None = None,
        threads: int = 1,
        seed: int = 0,
        **changes: Any,
    ) -> SftConfig:
        """Returns the complete settings of the sft stage; `changes` override the recipe's supervised loop."""
        fit = replace(self.sft_fit, threads=threads, seed=seed, **changes)
        return SftConfig(
            data=data,
            base=base,
            out=out,
            recipe=self.name,
            fit=fit,
            pairing=pairing or self.pairing,
            **{"action_vocab": self.action_vocab, "dtype": self.dtype, "max_frames": self.max_frames, **self.sft},
        )

    def align_config(
        self, *, data: Path, sft: Path, out: Path, threads: int = 1, seed: int = 0, **changes: Any
    ) -> AlignConfig:
        """Returns the complete settings of the align stage; `changes` override the recipe's."""
        settings = {**self.align, **changes}
        return AlignConfig(sft=sft, data=data, out=out, recipe=self.name, threads=threads, seed=seed, **settings)

    def head_config(self, *, data: Path, backbone: Path, out: Path, threads: int = 1, seed: int = 0) -> HeadConfig:
        """Returns the complete settings of the head stage."""
        settings = {"max_frames": self.max_frames, **self.head}
        return HeadConfig(
            data=data, backbone=backbone, out=out, recipe=self.name, threads=threads, seed=seed, **settings
        )


ONE_COEFFICIENT = {"max_merges": 0}
"""Every action token is one coefficient at a known place: with merges, one wrong token shifts all that follow. What was
measured, and what else differed then: sdk/models/README.md."""

DEBUG_ALIGN: Mapping[str, Any] = {
    "steps": 2,
    "prompts_per_rollout": 2,
    "samples_per_prompt": 2,
    "micro_batch": 4,
    "watch_every": 1,
    "watch_prompts": 4,
    "watch_samples": 2,
    "save_every": 1,
    "max_tokens": 24,
    "max_frames": 40,
    "force": True,
}
"""Settings of `align` for the recipes that take seconds."""

DEBUG_HEAD: Mapping[str, Any] = {
    "steps": 2,
    "layer": 1,
    "batch_size": 4,
    "draws": 1,
    "width": 32,
    "num_layers": 1,
    "save_every": 1,
}
"""Settings of `head` for the recipes that take seconds."""

_SO101_UNITS = PromptFormat(length_unit_m=0.0025, width_unit_m=0.0006, origin_m=(0.05, -0.16, 0.0))
"""Half the Panda's unit of length, from a corner that the SO-101's table lies behind."""

_OWN_ARM: Mapping[str, Any] = {
    **ONE_COEFFICIENT,
    "prompt": _SO101_UNITS,
    "tolerance": (0.0035, 0.0035, 0.0035, 0.05, 0.2),
    "style": "motion",
    "weights": {"reason": 0.2, "action": 0.3, "paired": 0.5},
}
"""Settings of `sft` for recordings without thoughts and without simulator truth: no questions, and thoughts that say
what the hand did."""

NANO_RECIPES = (
    Recipe(
        name="nano",
        base_fit=FitConfig(steps=2600, peak_rate=2e-3, place_weight=1.0, shift_px=8, save_every=100),
        sft_fit=FitConfig(steps=1200, peak_rate=1.5e-3, place_weight=0.5, shift_px=8, save_every=100),
        pairing="paired",  # zero-shot at this size never thinks before it acts: sdk/models/README.md
        sft=ONE_COEFFICIENT,
        align={"reward": "energy", "steps": 80, "watch_every": 20, "watch_prompts": 256, "max_tokens": 112},
        head={"steps": 3000, "batch_size": 96},
    ),
    Recipe(
        name="nano-study",
        base_fit=FitConfig(steps=2600, peak_rate=2e-3, place_weight=1.0, shift_px=8, save_every=100),
        sft_fit=FitConfig(steps=700, peak_rate=1.5e-3, place_weight=0.5, shift_px=8, save_every=100),
        pairing="paired",
        sft=ONE_COEFFICIENT,
        align={
            "reward": "energy",
            "learning_rate": 1e-4,
            "credit": "token",
            "steps": 100,
            "watch_every": 25,
            "watch_prompts": 256,
            "max_tokens": 112,
        },
        # Fewer frames and no stale thoughts: half the cost of a head, alike for every arm.
        head={"steps": 1800, "batch_size": 96, "max_frames": 16000, "shares": (0.85, 0.0, 0.15)},
    ),
    Recipe(
        name="nano-so101",
        base_fit=FitConfig(steps=2600, peak_rate=2e-3, place_weight=1.0, shift_px=8, save_every=100),
        sft_fit=FitConfig(steps=450, peak_rate=1.5e-3, place_weight=0.5, shift_px=8, save_every=100),
        pairing="paired",
        sft={
            **ONE_COEFFICIENT,
            "prompt": _SO101_UNITS,
            "tolerance": (0.0035, 0.0035, 0.0035, 0.05, 0.2),
            # More questions than for the Panda: the shipped base has never seen this arm's pictures.
            "weights": {"vqa": 0.25, "reason": 0.1, "action": 0.15, "paired": 0.5},
        },
        align={"reward": "energy", "steps": 40, "watch_every": 20, "watch_prompts": 256, "max_tokens": 112},
        head={"steps": 3000, "batch_size": 96},
    ),
    Recipe(
        name="nano-own",
        base_fit=None,
        sft_fit=FitConfig(steps=1200, peak_rate=1.5e-3, shift_px=8, save_every=100),
        pairing="paired",
        sft=_OWN_ARM,
        align={"reward": "energy", "steps": 40, "watch_every": 20, "watch_prompts": 256, "max_tokens": 112},
        head={"steps": 3000, "batch_size": 96},
    ),
    Recipe(
        name="nano-own-debug",
        base_fit=None,
        sft_fit=FitConfig(steps=4, batch_size=8, peak_rate=1.5e-3, save_every=4),
        pairing="paired",
        sft={**_OWN_ARM, "probe_frames": 4},
        align={**DEBUG_ALIGN, "max_frames": None},
        head={**DEBUG_HEAD, "steps": 20},
        max_frames=200,
    ),
    Recipe(
        name="nano-demo",
        base_fit=FitConfig(steps=1000, peak_rate=1.5e-3, place_weight=1.0, shift_px=8),
        sft_fit=FitConfig(steps=200, peak_rate=1e-3, place_weight=0.5, shift_px=8),
        pairing="paired",
        # With merges: replies are shorter, and a quarter of an hour is short.
        align={"reward": "energy", "steps": 12, "watch_every": 12},
        head={"steps": 1400, "batch_size": 96},
    ),
    Recipe(
        name="nano-debug",
        # Wide initial weights: after two updates the replies still have to vary, or parity would prove nothing.
        model={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "vision_channels": [8, 16, 32],
            "initializer_range": 0.3,
        },
        base_fit=FitConfig(steps=2, batch_size=4, save_every=1, place_weight=1.0),
        sft_fit=FitConfig(steps=2, batch_size=4, save_every=1, place_weight=1.0),
        align=DEBUG_ALIGN,
        head=DEBUG_HEAD,
        max_frames=40,
    ),
)
"""By name in `roboalign.trainer.recipes.RECIPES`."""
