"""The paper's recipe, for Qwen2.5-VL-7B-Instruct and Qwen3-VL-8B-Instruct (arXiv 2603.21341, section 4 and appendix).

Published: rate 2e-5 with a cosine and 3 % warm-up, one epoch over 2.28 million samples, vision encoder frozen; 12.8K
prompts for GRPO, 512 a rollout, 5 replies each, 4 updates a rollout, rate 1e-6; layer 18, batch 32, 60 thousand steps
for the head on LIBERO. Not known: the batch of the supervised stage (ours: 128), its weight decay and betas, the KL
weight and the clip range (EasyR1's defaults), the widths of the head (GR00T N1.5's). Nothing here was run at this
size: the models are 15 to 17 GB, and full parameters in float32 with AdamW take 16 bytes a parameter.
"""

from __future__ import annotations

from roboalign.trainer.recipes.nano import Recipe
from roboalign.trainer.recipes.paper import PAPER_ALIGN
from roboalign.trainer.supervised import FitConfig

__all__ = ["QWEN_RECIPES"]

_SAMPLES = 2_280_000
"""Samples of the supervised stage: 1.88M questions and 400K actions."""

_BATCH = 128
"""Not known for the paper."""

_FIT = FitConfig(
    steps=-(-_SAMPLES // _BATCH),
    batch_size=_BATCH,
    micro_batch=4,
    peak_rate=2e-5,
    warmup_share=0.03,
    weight_decay=0.0,
    freeze_vision=True,
    checkpointing=True,
    save_every=500,
)

_ALIGN = {**PAPER_ALIGN, "dtype": "bf16"}

_HEAD = {
    "layer": 18,
    "steps": 60_000,
    "batch_size": 32,
    "peak_rate": 1e-4,
    "width": 1536,
    "num_layers": 16,
    "thought_budget": 256,
    "dtype": "bf16",
}

QWEN_RECIPES = tuple(
    Recipe(
        name=name,
        family="qwen",
        base_fit=None,
        sft_fit=_FIT,
        action_vocab=2048,
        pairing="zero-shot",
        dtype="bf16",
        align=_ALIGN,
        head=_HEAD,
    )
    for name in ("qwen2.5-vl-7b", "qwen3-vl-8b")
)
"""By name in `roboalign.trainer.recipes.RECIPES`; give the model itself as BASE, e.g. Qwen/Qwen2.5-VL-7B-Instruct."""
