"""The alignment settings that the paper gives, to be put into the recipe of a model of its size.

`Recipe(align=PAPER_ALIGN, ...)`; nothing here was run at that scale. What the paper does not say is marked with where
it is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["PAPER_ALIGN", "PAPER_SFT_SAMPLES"]

PAPER_SFT_SAMPLES = 2_280_000
"""Samples of the paper's supervised stage; reinforcement uses .56 % of that number."""

_PROMPTS = 12_800
_ROLLOUT, _UPDATE = 512, 128

PAPER_ALIGN: Mapping[str, Any] = MappingProxyType(
    {
        "reward": "prefix",
        "num_prompts": _PROMPTS,
        "steps": _PROMPTS // _UPDATE,  # one pass over the prompts
        "prompts_per_rollout": _ROLLOUT,
        "updates_per_rollout": _ROLLOUT // _UPDATE,
        "samples_per_prompt": 5,
        "micro_batch": 8,  # memory only
        "learning_rate": 1e-6,
        "warmup_steps": 0,
        "beta": 0.01,  # EasyR1's default, and so are both clips and the weight decay
        "clip_low": 0.2,
        "clip_high": 0.3,
        "weight_decay": 0.01,
        "max_tokens": 512,  # chosen: a thought of a few sentences and a chunk of FAST tokens
        "keep": "last",  # the paper tells of no selection
        "watch_every": 4,
        "save_every": 20,
    }
)
"""Settings of `AlignConfig` besides the paths."""
