"""The smol vision-language model: nano's stem and a connector in front of a pretrained Llama decoder.

Shape suffixes: B batch, L tokens, N image tokens, D hidden size of the decoder, K keypoints.

No pretrained vision encoder is used: the stem is trained by our `base` stage, on our pictures only.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from roboalign.trainer.nano.configuration import NanoConfig
from roboalign.trainer.nano.modeling import NanoForConditionalGeneration, NanoModel, NanoVision
from roboalign.trainer.smol.configuration import SmolConfig

__all__ = ["SmolForConditionalGeneration", "SmolModel", "SmolVision"]


class SmolVision(nn.Module):
    """Picture and instruction to embeddings of the decoder's width."""

    def __init__(self, config: SmolConfig) -> None:
        super().__init__()
        self.narrow = nn.Linear(config.hidden_size, config.vision_width)
        self.stem = NanoVision(config.stem_config())
        self.connector = nn.Sequential(
            nn.Linear(config.vision_width, config.hidden_size),
            nn.SiLU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )

    def forward(
        self, pixel_values: torch.Tensor, embeds_BLD: torch.Tensor, text_mask_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns image tokens [B, N, D] and keypoint positions [B, K, 2]."""
        return self.look(pixel_values, self.stem.summary(self.narrow(embeds_BLD), text_mask_BL))

    def look(self, pixel_values: torch.Tensor, cond_BE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the same from the summary of the words, which is as wide as the stem."""
        tokens, places_BK2 = self.stem.look(pixel_values, cond_BE)
        return self.connector(tokens), places_BK2


class SmolModel(NanoModel):
    """Vision and text decoder without the output head."""

    config_class: ClassVar[type[NanoConfig]] = SmolConfig

    def make_vision(self, config: SmolConfig) -> nn.Module:
        """Returns the untrained stem and connector."""
        return SmolVision(config)

    def merge(
        self, input_ids_BL: torch.Tensor, pixel_values: torch.Tensor | None, attention_mask_BL: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns token embeddings with the image tokens at their placeholders; rows may be without a picture."""
        if pixel_values is None or len(pixel_values) == len(input_ids_BL):
            return super().merge(input_ids_BL, pixel_values, attention_mask_BL)
        has_image_B = (input_ids_BL == self.config.image_token_id).any(dim=1)
        mask_BL = torch.ones_like(input_ids_BL) if attention_mask_BL is None else attention_mask_BL
        seen, places = super().merge(input_ids_BL[has_image_B], pixel_values, mask_BL[has_image_B])
        embeds_BLD = self.language_model.embed_tokens(input_ids_BL)
        return embeds_BLD.index_copy(0, has_image_B.nonzero()[:, 0], seen), places


class SmolForConditionalGeneration(NanoForConditionalGeneration):
    """The smol vision-language model with its (tied) output head."""

    config_class: ClassVar[type[NanoConfig]] = SmolConfig

    def make_model(self, config: SmolConfig) -> NanoModel:
        """Returns the model under the output head, its stem untrained."""
        return SmolModel(config)
