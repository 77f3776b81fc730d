"""What goes into a backbone: prompts as tensors, and what decoding one more token needs.

Shape suffixes: B batch, L tokens of a left-padded sequence, C tokens of a completion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from transformers.cache_utils import Cache, DynamicLayer

from roboalign.sdk.errors import ConfigError

__all__ = ["DecoderState", "PromptInputs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptInputs:
    """Prompts of a batch as tensors, left-padded."""

    input_ids: torch.Tensor
    """int64[B, L]."""
    attention_mask: torch.Tensor
    """int64[B, L], 0 for padding."""
    extra: Mapping[str, torch.Tensor]
    """What the vision encoder needs, by the model's argument names; the same number of rows for every prompt."""

    @property
    def num_prompts(self) -> int:
        """B."""
        return int(self.input_ids.shape[0])

    def select(self, index: torch.Tensor) -> PromptInputs:
        """Returns the prompts `index` (int64[any]), in that order and with repetitions."""
        return PromptInputs(
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
            extra={name: _select_rows(tensor, self.num_prompts, index) for name, tensor in self.extra.items()},
        )

    def to(self, device: torch.device) -> PromptInputs:
        """Returns the same prompts on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.extra.items()}
        return PromptInputs(
            input_ids=self.input_ids.to(device), attention_mask=self.attention_mask.to(device), extra=moved
        )

    def extend(self, completion_ids: torch.Tensor, completion_mask: torch.Tensor) -> PromptInputs:
        """Returns the prompts with `completion_ids` int64[B, C] (right-padded, `completion_mask`) behind them."""
        extra = dict(self.extra)
        if "mm_token_type_ids" in extra:
            types = extra["mm_token_type_ids"]
            extra["mm_token_type_ids"] = torch.cat((types, types.new_zeros(completion_ids.shape)), dim=1)
        return PromptInputs(
            input_ids=torch.cat((self.input_ids, completion_ids), dim=1),
            attention_mask=torch.cat((self.attention_mask, completion_mask.to(self.attention_mask.dtype)), dim=1),
            extra=extra,
        )

    def pad_right(self) -> PromptInputs:
        """Returns the same sequences without the padding in front of them: every row starts with its first token.

        Prompts are padded on the left so that all replies start together; for training on replies that are known, what
        is left of that padding in the middle of the batch would only cost time.
        """
        lengths_B = self.attention_mask.sum(dim=1)
        place_L = torch.arange(int(lengths_B.max()), device=self.input_ids.device)
        mask_BL = (place_L < lengths_B[:, None]).to(self.attention_mask.dtype)
        # The real tokens of each row first, in their order: a stable sort of "is padding".
        order_BL = (self.attention_mask == 0).long().sort(dim=1, stable=True).indices[:, : len(place_L)]
        extra = dict(self.extra)
        if "mm_token_type_ids" in extra:
            extra["mm_token_type_ids"] = extra["mm_token_type_ids"].gather(1, order_BL) * mask_BL
        return PromptInputs(input_ids=self.input_ids.gather(1, order_BL), attention_mask=mask_BL, extra=extra)


def _select_rows(tensor: torch.Tensor, num_prompts: int, index: torch.Tensor) -> torch.Tensor:
    rows = tensor.shape[0] // num_prompts
    if rows * num_prompts != tensor.shape[0]:
        raise ConfigError(
            f"{tensor.shape[0]} vision rows do not divide among {num_prompts} prompts; all pictures need one size"
        )
    return tensor.view(num_prompts, rows, *tensor.shape[1:])[index].flatten(0, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderState:
    """What decoding one more token needs."""

    cache: Cache
    """Keys and values of everything seen; grown in place by `Backbone.step`."""
    attention_mask: torch.Tensor
    """int64[B, L] over everything seen."""
    next_position: torch.Tensor
    """int64[B], position of the next token."""

    def repeat(self, times: int) -> DecoderState:
        """Returns the state with every row `times` times: one prefill, many samples. Changes the cache in place."""
        self.cache.batch_repeat_interleave(times)
        return replace(
            self,
            attention_mask=self.attention_mask.repeat_interleave(times, dim=0),
            next_position=self.next_position.repeat_interleave(times, dim=0),
        )

    def select(self, rows: torch.Tensor) -> DecoderState:
        """Returns the state of some rows only (int64[R]). Changes the cache in place."""
        self.cache.batch_select_indices(rows)
        return replace(self, attention_mask=self.attention_mask[rows], next_position=self.next_position[rows])

    def cut(self, length: int) -> DecoderState:
        """Returns the state after the first `length` tokens; the rest is text. Changes the cache in place."""
        for layer in self.cache.layers:  # they differ where the layers behind the one of interest were not run
            surplus = int(layer.get_seq_length()) - length
            assert surplus >= 0, "the cache was cut shorter before"
            if surplus > 0:
                cast(DynamicLayer, layer).crop(-surplus)
        removed = self.attention_mask.shape[1] - length
        return replace(self, attention_mask=self.attention_mask[:, :length], next_position=self.next_position - removed)
