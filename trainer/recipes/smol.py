"""Recipes of the smol model: SmolLM2-135M behind our stem.

`smol` trains low-rank additions, stem, connector and the new rows of the vocabulary: what a small file can carry. Its
rates and lengths are guesses from nano's and from LoRA's usual ones; the longest run had 206 of the updates of `sft`
(docs/backbones.md).
`smol-debug` has random weights, needs no package and fits into seconds.
"""

from __future__ import annotations

from roboalign.trainer.lora import LoraSettings
from roboalign.trainer.recipes.nano import DEBUG_ALIGN, DEBUG_HEAD, ONE_COEFFICIENT, Recipe
from roboalign.trainer.supervised import FitConfig

__all__ = ["SMOL_RECIPES"]

_LORA = LoraSettings(rank=16)

SMOL_RECIPES = (
    Recipe(
        name="smol",
        family="smol",
        model={"stem": "shipped"},
        base_fit=FitConfig(steps=500, batch_size=128, peak_rate=8e-4, place_weight=1.0, shift_px=8, lora=_LORA),
        sft_fit=FitConfig(steps=1400, batch_size=128, peak_rate=8e-4, place_weight=0.5, shift_px=8, lora=_LORA),
        pairing="paired",
        sft=ONE_COEFFICIENT,
        # Low-rank additions learn at about ten times the rate of whole weights.
        align={
            "reward": "energy",
            "credit": "token",
            "steps": 30,
            "watch_every": 10,
            "watch_prompts": 128,
            "lora": _LORA,
            "learning_rate": 1e-4,
            "max_tokens": 160,
        },
        # Layer 20 of 30: the paper's 18 of 28.
        head={
            "steps": 1500,
            "layer": 20,
            "batch_size": 96,
            "thought_budget": 64,
            "max_frames": 10000,
            "shares": (0.85, 0.0, 0.15),
        },
    ),
    Recipe(
        name="smol-debug",
        family="smol-random",
        model={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "head_dim": 16,
            "num_key_value_heads": 2,
            "vision_width": 32,
            "vision_channels": [8, 16, 32],
            "initializer_range": 0.3,  # as in nano-debug: after two updates the replies still have to vary
        },
        base_fit=FitConfig(steps=2, batch_size=4, save_every=1, place_weight=1.0, lora=LoraSettings(rank=2)),
        sft_fit=FitConfig(steps=2, batch_size=4, micro_batch=2, save_every=1, place_weight=1.0),
        align=DEBUG_ALIGN,
        head=DEBUG_HEAD,
        max_frames=40,
    ),
)
"""By name in `roboalign.trainer.recipes.RECIPES`."""
