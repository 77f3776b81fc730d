"""The graphs of a Qwen3-VL model, where they differ from Qwen2.5-VL's (`export/qwen_graphs.py`).

Its vision encoder has no windows and adds learned places, drawn from a square table by interpolation; what some of its
layers see also enters the decoder behind the first ones. The decoder turns pairs of a head by time, row and column in
turn, not in three sections.

Shape suffixes as there; S: layers behind which a picture enters.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from roboalign.export.qwen_graphs import QwenDecoder, QwenStepGraph, attend

__all__ = ["Qwen3PrefillGraph", "Qwen3StepGraph", "Qwen3VisionGraph"]


class Qwen3VisionGraph(nn.Module):
    """patches float[N, 3 x 2 x 16 x 16] of one picture -> image [1 + S, I, D]: its tokens, then what enters later."""

    corners: torch.Tensor
    shares: torch.Tensor
    places: torch.Tensor

    def __init__(self, model: PreTrainedModel, grid: tuple[int, int]) -> None:
        """Fixes the picture: rows and columns of patches, each a multiple of the encoder's `spatial_merge_size`."""
        super().__init__()
        self.model = model
        visual = cast(Any, model).model.visual
        grid_thw, merge = torch.tensor([[1, *grid]]), visual.spatial_merge_size
        corners, shares = get_vision_interpolation_indices_and_weights(
            grid_thw,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        self.register_buffer("corners", corners, persistent=False)
        self.register_buffer("shares", shares, persistent=False)
        self.register_buffer("places", get_vision_position_ids(grid_thw, merge), persistent=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        visual = cast(Any, self.model).model.visual
        kernel = visual.patch_embed.proj
        x_NW = nn.functional.linear(patches, kernel.weight.flatten(1), kernel.bias)
        x_NW = x_NW + (visual.pos_embed(self.corners) * self.shares.unsqueeze(2)).sum(dim=1)
        half = (self.places.unsqueeze(2).to(torch.float32) * visual.rotary_pos_emb.inv_freq).flatten(1)
        angles_NK = torch.cat((half, half), dim=1)
        cos_NK, sin_NK = angles_NK.cos(), angles_NK.sin()
        later = []
        for index, block in enumerate(visual.blocks):
            x_NW = x_NW + attend(block.attn, block.norm1(x_NW), cos_NK, sin_NK, [x_NW.shape[0]])
            x_NW = x_NW + block.mlp(block.norm2(x_NW))
            if index in visual.deepstack_visual_indexes:
                merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(index)]
                later.append(merger(x_NW))
        return torch.stack([visual.merger(x_NW), *later])


class _Qwen3Decoder(QwenDecoder):
    """Qwen3-VL's decoder: time, row and column take turns over the pairs of a head."""

    def angles(self, position: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
        """Returns the angle [L, K / 2] of each place and pair, for positions int64[3, L] or, of text, int64[L]."""
        if position.dim() == 1:
            return super().angles(position, inv_freq)
        freqs = position.to(inv_freq.dtype).unsqueeze(2) * inv_freq
        sections = cast(Any, self.model).model.language_model.rotary_emb.mrope_section
        pair, found = torch.arange(inv_freq.shape[0]), freqs[0]
        for axis in (1, 2):
            found = torch.where((pair % 3 == axis) & (pair < 3 * sections[axis]), freqs[axis], found)
        return found


class Qwen3PrefillGraph(_Qwen3Decoder):
    """ids [1, P], length [1], position int64[3, P], image [1 + S, I, D] -> logits, hidden and kv as Qwen2.5-VL's."""

    def forward(
        self, input_ids: torch.Tensor, length: torch.Tensor, position: torch.Tensor, image: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x_PD = self.merged(input_ids, image[0])
        is_image_P = input_ids[0] == cast(Any, self.model.config).image_token_id
        index_P = (is_image_P.long().cumsum(dim=0) - 1).clamp(0, image.shape[1] - 1)
        seen_P1 = is_image_P.unsqueeze(1).to(image.dtype)
        added = [image[layer].index_select(0, index_P) * seen_P1 for layer in range(1, image.shape[0])]
        last, tapped, rows = self.decode(x_PD, position, self.causal(input_ids), None, added)
        logits = cast(Any, self.model).lm_head(last.index_select(0, length - 1))
        return logits, tapped.unsqueeze(0), rows


class Qwen3StepGraph(_Qwen3Decoder, QwenStepGraph):
    """One token as in Qwen2.5-VL: of text, whose three positions are one."""
