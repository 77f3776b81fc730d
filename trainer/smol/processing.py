"""Processor of the smol model: SmolLM2's chat, nano's pictures."""

from __future__ import annotations

from roboalign.sdk.types import FloatArray
from roboalign.trainer.nano.processing import NanoProcessor

__all__ = ["CHAT_MARKERS", "SmolProcessor"]

CHAT_MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""SmolLM2's padding, start of a turn and end of a turn."""


class SmolProcessor(NanoProcessor):
    """Chat text and pictures to model inputs."""

    def prompt_text(
        self, instruction: str, state: FloatArray | None, *, pace: str, task: str, has_image: bool = True
    ) -> str:
        """Returns the chat up to where the model answers, with its image placeholders."""
        text = self.prompt_format.prompt_text(instruction, state, pace=pace, task=task)
        return text if has_image else text.replace(self.prompt_format.image_text, "")
