"""The smol model behind the common interface."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from roboalign.trainer.nano import NanoBackbone
from roboalign.trainer.smol.configuration import SmolConfig
from roboalign.trainer.smol.modeling import SmolForConditionalGeneration
from roboalign.trainer.smol.processing import CHAT_MARKERS, SmolProcessor

__all__ = ["SmolBackbone"]

# As for nano: TRL builds its reference model from a folder through the auto classes.
SmolConfig.auto_map = {}
AutoConfig.register(SmolConfig.model_type, SmolConfig, exist_ok=True)
AutoModelForCausalLM.register(SmolConfig, SmolForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(SmolConfig, SmolForConditionalGeneration, exist_ok=True)


class SmolBackbone(NanoBackbone):
    """The smol model."""

    @classmethod
    def read_processor(cls, folder: Path) -> SmolProcessor:
        """Returns the processor saved in a folder."""
        return SmolProcessor.from_pretrained(folder)

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens that a reply must never hold: padding, placeholders of pictures, and a new turn of the chat."""
        turns = self.tokenizer.convert_tokens_to_ids(list(CHAT_MARKERS))
        return tuple(sorted({*super().banned_ids, *turns} - {self.tokenizer.eos_token_id}))
