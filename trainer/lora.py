"""LoRA: low-rank additions to the decoder's layers, and the new rows of the vocabulary; the rest stays as it was.

peft puts the additions into the model in place, so that the stages go on using it as it is. After training they are
merged into the weights, and the adapter is kept beside them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, get_peft_model

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.backbone import HuggingFaceBackbone

__all__ = ["ADAPTER_FILES", "LoraSettings", "add_lora", "merge_lora"]

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What `merge_lora` writes, by peft's own names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """Sizes of the low-rank additions (the paper trains all parameters and has none)."""

    rank: int = 16
    """Rank of each addition."""
    alpha: float = 32.0
    """The addition is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of the addition's inputs that is dropped while training."""
    layers: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers of the decoder that get one."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1 or not self.layers:
            raise ConfigError(
                f"LoraSettings are rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}, layers {self.layers}; "
                "expected a rank of 1 or more, a positive alpha, a dropout of 0 to 1 and at least one layer"
            )


def add_lora(backbone: HuggingFaceBackbone, settings: LoraSettings, *, new_ids: Sequence[int] = ()) -> Any:
    """Puts the additions into the backbone's model, freezes the rest, and returns peft's view of it for `merge_lora`.

    Args:
        backbone: its model is changed in place.
        settings: sizes.
        new_ids: tokens whose rows are trained as well: the ones that the vocabulary has just gained, if any.
    """
    names = "|".join(settings.layers)
    rows = {"embed_tokens": list(new_ids)} if new_ids else None
    if rows and not backbone.has_tied_rows:
        rows["lm_head"] = list(new_ids)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        # The decoder only: the vision encoder of Qwen2.5-VL has layers of the same names.
        target_modules=rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({names})",
        trainable_token_indices=rows,
    )
    with warnings.catch_warnings():
        # peft 0.21 still asks for a name that transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        return get_peft_model(cast(Any, backbone.model), config)


def merge_lora(adapted: Any, folder: Path) -> tuple[Path, ...]:
    """Writes the adapter into `folder`, merges it into the weights in place, and returns the files written."""
    adapted.save_pretrained(folder, save_embedding_layers=False)
    adapted.merge_and_unload()
    return tuple(folder / name for name in ADAPTER_FILES)
