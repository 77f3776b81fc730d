"""The graphs of a Qwen2.5-VL model: its vision encoder for pictures of one size, and its decoder on three axes.

As in `export/graphs.py`, shapes are fixed, keys and values are explicit, and a graph returns the new rows only. Windows
of the vision encoder and the places of its patches follow from the size of the picture and are constants. The decoder
takes positions as an input, since they are the host's to count: a picture advances time, row and column differently,
so that text behind it goes on at the largest position so far plus one, which is *not* the number of tokens read.
Qwen3-VL's graphs are in `export/qwen3_graphs.py`.

Shape suffixes: N patches, I image tokens, P longest prompt, L longest sequence, D hidden size, W width of the vision
encoder, H heads, K head size, V vocabulary, C 2 x layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from roboalign.export.graphs import DecoderGraph, rotate

__all__ = ["QwenDecoder", "QwenPrefillGraph", "QwenReadGraph", "QwenStepGraph", "QwenVisionGraph", "attend"]


class QwenVisionGraph(nn.Module):
    """patches float[N, 3 x 2 x 14 x 14] of one picture, as Qwen's processor cuts them -> image tokens [I, D]."""

    window_index: torch.Tensor
    back_index: torch.Tensor
    places: torch.Tensor

    def __init__(self, model: PreTrainedModel, grid: tuple[int, int]) -> None:
        """Fixes the picture: rows and columns of patches, each a multiple of the encoder's `spatial_merge_size`."""
        super().__init__()
        self.model = model
        config = cast(Any, model.config).vision_config
        merge = config.spatial_merge_size
        grid_thw = torch.tensor([[1, *grid]])
        index, ends = get_vision_window_index(grid_thw, merge, config.window_size, config.patch_size)
        places = get_vision_position_ids(grid_thw, merge)
        self.unit = merge**2
        self.lengths: Sequence[int] = (ends[1:] - ends[:-1]).tolist()
        self.full_layers = frozenset(config.fullatt_block_indexes)
        self.register_buffer("window_index", index, persistent=False)
        self.register_buffer("back_index", torch.argsort(index), persistent=False)
        self.register_buffer("places", self._by_window(places, index), persistent=False)

    def _by_window(self, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Moves rows so that windows are contiguous; what is merged stays together."""
        grouped = rows.reshape(rows.shape[0] // self.unit, self.unit, rows.shape[1])
        return grouped.index_select(0, index).reshape(rows.shape)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        visual = cast(Any, self.model).model.visual
        # A kernel as large as the patch is a product.
        x_NW = nn.functional.linear(patches, visual.patch_embed.proj.weight.flatten(1))
        x_NW = self._by_window(x_NW, self.window_index)
        freqs = self.places.unsqueeze(2).to(torch.float32) * visual.rotary_pos_emb.inv_freq
        half = freqs.flatten(1)
        angles_NK = torch.cat((half, half), dim=1)
        cos_NK, sin_NK = angles_NK.cos(), angles_NK.sin()
        for index, block in enumerate(visual.blocks):
            lengths = [x_NW.shape[0]] if index in self.full_layers else self.lengths
            x_NW = x_NW + attend(block.attn, block.norm1(x_NW), cos_NK, sin_NK, lengths)
            x_NW = x_NW + block.mlp(block.norm2(x_NW))
        return cast(torch.Tensor, visual.merger(x_NW).index_select(0, self.back_index))


def attend(
    attention: Any, x_NW: torch.Tensor, cos_NK: torch.Tensor, sin_NK: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """Returns what a vision encoder's attention makes of patches that see those of their window alone."""
    length, width = x_NW.shape
    num_heads = attention.num_heads
    head_dim = width // num_heads
    parts = attention.qkv(x_NW).reshape(length, 3, num_heads, head_dim).permute(1, 2, 0, 3)
    query, key = rotate(parts[0], cos_NK, sin_NK), rotate(parts[1], cos_NK, sin_NK)
    query, value = query * head_dim**-0.5, parts[2]
    if len(set(lengths)) == 1:
        # Windows of one size are a batch.
        split = (num_heads, len(lengths), lengths[0], head_dim)
        query, key, value = (part.reshape(split) for part in (query, key, value))
        mixed = ((query @ key.transpose(2, 3)).softmax(dim=3) @ value).reshape(num_heads, length, head_dim)
    else:
        pieces = zip(*(torch.split(part, list(lengths), dim=1) for part in (query, key, value)), strict=True)
        mixed = torch.cat([(q @ k.transpose(1, 2)).softmax(dim=2) @ v for q, k, v in pieces], dim=1)
    return cast(torch.Tensor, attention.proj(mixed.transpose(0, 1).reshape(length, width)))


class QwenDecoder(DecoderGraph):
    """Qwen2.5-VL's decoder: pairs of a head turn by time, row or column."""

    def angles(self, position: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
        """Returns the angle [L, K / 2] of each place and pair, for positions int64[3, L] or, of text, int64[L]."""
        if position.dim() == 1:
            return super().angles(position, inv_freq)
        freqs = position.to(inv_freq.dtype).unsqueeze(2) * inv_freq
        sections = cast(Any, self.model).model.language_model.rotary_emb.mrope_section
        pieces = torch.split(freqs, list(sections), dim=2)
        return torch.cat([piece[axis % 3] for axis, piece in enumerate(pieces)], dim=1)

    def merged(self, input_ids: torch.Tensor, image_ID: torch.Tensor) -> torch.Tensor:
        """Returns embeddings [P, D] of ids int64[1, P], the image tokens in turn at their placeholders."""
        config = cast(Any, self.model.config)
        embeds_PD = cast(Any, self.model).model.language_model.embed_tokens(input_ids[0])
        is_image_P = input_ids[0] == config.image_token_id
        index_P = (is_image_P.long().cumsum(dim=0) - 1).clamp(0, image_ID.shape[0] - 1)
        return torch.where(is_image_P.unsqueeze(1), image_ID.index_select(0, index_P), embeds_PD)

    def causal(self, input_ids: torch.Tensor) -> torch.Tensor:
        place = torch.arange(input_ids.shape[1])
        return place.unsqueeze(0) <= place.unsqueeze(1)


class QwenPrefillGraph(QwenDecoder):
    """ids [1, P], length [1], position int64[3, P], image [I, D] -> logits [1, V], hidden [1, P, D], kv [C, H, P, K].

    Prompts are padded on the right. Positions are those of the model's `get_rope_index`; padding has any.
    """

    def forward(
        self, input_ids: torch.Tensor, length: torch.Tensor, position: torch.Tensor, image: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x_PD = self.merged(input_ids, image)
        last, tapped, rows = self.decode(x_PD, position, self.causal(input_ids), None)
        logits = cast(Any, self.model).lm_head(last.index_select(0, length - 1))
        return logits, tapped.unsqueeze(0), rows


class QwenStepGraph(QwenDecoder):
    """token [1], length [1], position int64[1], kv [C, H, L, K] -> logits [1, V], hidden [1, D], new rows [C, H, 1, K].

    `length` counts tokens, which is where the rows go; `position` is the largest one read so far plus one.
    """

    def forward(
        self, token: torch.Tensor, length: torch.Tensor, position: torch.Tensor, kv: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x_1D = cast(Any, self.model).model.language_model.embed_tokens(token)
        is_past = torch.arange(kv.shape[2]) < length
        may_see = torch.cat((is_past, torch.ones(1, dtype=torch.bool)))
        last, tapped, rows = self.decode(x_1D, position, may_see, kv)
        return cast(Any, self.model).lm_head(last), tapped, rows


class QwenReadGraph(QwenDecoder):
    """ids [1, P], position int64[3, P], image [I, D] -> hidden [1, P, D] after the tapped layer, before any norm.

    For a head that acts without a thought: the layers behind the tapped one, the final norm and the output rows are
    not there.
    """

    def forward(self, input_ids: torch.Tensor, position: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        x_PD = self.merged(input_ids, image)
        return self.run_layers(x_PD, position, self.causal(input_ids), None, self.tap_layer)[0][-1].unsqueeze(0)
