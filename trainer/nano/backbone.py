"""The nano model behind the common interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from roboalign.trainer.backbone import HuggingFaceBackbone
from roboalign.trainer.inputs import PromptInputs
from roboalign.trainer.nano.configuration import NanoConfig
from roboalign.trainer.nano.modeling import NanoForConditionalGeneration
from roboalign.trainer.nano.processing import NanoProcessor

__all__ = ["NanoBackbone"]

# TRL builds its reference model from a folder through the auto classes, and asks an unknown class for `auto_map`.
NanoConfig.auto_map = {}
AutoConfig.register(NanoConfig.model_type, NanoConfig, exist_ok=True)
AutoModelForCausalLM.register(NanoConfig, NanoForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(NanoConfig, NanoForConditionalGeneration, exist_ok=True)


class NanoBackbone(HuggingFaceBackbone):
    """The nano model."""

    @classmethod
    def read_processor(cls, folder: Path) -> NanoProcessor:
        """Returns the processor saved in a folder."""
        return NanoProcessor.from_pretrained(folder)

    @property
    def vision(self) -> torch.nn.Module:
        """The vision encoder."""
        return cast(torch.nn.Module, cast(Any, self.model).model.vision)

    def encode_images(self, inputs: PromptInputs) -> torch.Tensor:
        """Returns what the decoder sees at the image placeholders, float[B, N, D]."""
        embeds, _ = cast(Any, self.model).model.merge(
            inputs.input_ids, inputs.extra["pixel_values"], inputs.attention_mask
        )
        is_image = inputs.input_ids == self.model.config.image_token_id
        return cast(torch.Tensor, embeds[is_image].view(inputs.num_prompts, -1, embeds.shape[-1]))
