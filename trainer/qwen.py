"""Qwen2.5-VL and Qwen3-VL (the paper's backbones) behind the common interface.

The processor is our own: transformers' Qwen processors need torchvision for a video half that is not used here. It
keeps the tokenizer and the PIL image processor of the checkpoint. Prompts follow Qwen's chat form; the two flags of a
prompt are sentences, because a pretrained model reads words and knows no `<slow>`.

Proved on tiny random configurations only (forward, generate, hidden state); real weights were never loaded here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin, Qwen2VLImageProcessorPil

from roboalign.sdk.errors import BundleError
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import FloatArray, ImageArray
from roboalign.trainer.backbone import HuggingFaceBackbone, PromptInputs

__all__ = ["QWEN_MODEL_TYPES", "QwenBackbone", "QwenProcessor"]

QWEN_MODEL_TYPES = ("qwen2_5_vl", "qwen3_vl")

_IMAGE_TOKEN = "<|image_pad|>"
_VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", _IMAGE_TOKEN, "<|video_pad|>")
_PACE = {"quick": "Answer at once.", "slow": "Think first."}
_TASK = {"ask": "Answer in words.", "act": "Answer with an action."}
_FORMAT_FILE = "prompt_format.json"


class QwenProcessor(ProcessorMixin):
    """Instructions and pictures to Qwen's inputs."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        prompt_format: PromptFormat | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.prompt_format = prompt_format or PromptFormat()
        self.image_token_id = tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images: Any = None, text: Any = None, **_unused: Any) -> BatchFeature:
        """Returns left-padded ids, patches of the pictures and the type of each token; one picture for each text."""
        pixels = self.image_processor(images=list(images), return_tensors="pt")
        grid = pixels["image_grid_thw"]
        counts = (grid.prod(dim=1) // self.image_processor.merge_size**2).tolist()
        texts = [t.replace(_IMAGE_TOKEN, _IMAGE_TOKEN * count) for t, count in zip(text, counts, strict=True)]
        batch = self.tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        types = (batch["input_ids"] == self.image_token_id).long()
        return BatchFeature(
            {
                "input_ids": batch["input_ids"],
                "attention_mask": batch["attention_mask"],
                "pixel_values": pixels["pixel_values"],
                "image_grid_thw": grid,
                "mm_token_type_ids": types,
            }
        )

    def prompt_text(self, instruction: str, state: FloatArray, *, pace: str, task: str) -> str:
        """Returns the chat up to where the model answers, with one placeholder for the picture."""
        numbers = " ".join(str(number) for number in self.prompt_format.state_numbers(state))
        return (
            f"<|im_start|>user\n<|vision_start|>{_IMAGE_TOKEN}<|vision_end|>{instruction.strip()}\nstate {numbers}\n"
            f"{_PACE[pace]} {_TASK[task]}<|im_end|>\n<|im_start|>assistant\n"
        )

    def save_pretrained(self, save_directory: Any, **_unused: Any) -> list[str]:
        """Writes tokenizer, image processor and prompt format; returns their paths."""
        folder = Path(save_directory)
        paths = [*self.tokenizer.save_pretrained(folder), *(self.image_processor.save_pretrained(folder) or ())]
        file = folder / _FORMAT_FILE
        file.write_text(json.dumps(self.prompt_format.to_json(), indent=2) + "\n", encoding="utf-8")
        return [str(path) for path in (*paths, file)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **_unused: Any) -> QwenProcessor:
        """Reads a folder that `save_pretrained` or Qwen's own processor wrote."""
        folder = Path(pretrained_model_name_or_path)
        if not (folder / "preprocessor_config.json").is_file():
            raise BundleError(f"{folder} has no preprocessor_config.json, expected a Qwen-VL folder; give its path")
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
        file = folder / _FORMAT_FILE
        fmt = PromptFormat.from_json(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
        return cls(image_processor, tokenizer, fmt)


class QwenBackbone(HuggingFaceBackbone):
    """Qwen2.5-VL or Qwen3-VL."""

    @property
    def vision(self) -> torch.nn.Module:
        """The vision encoder."""
        return cast(torch.nn.Module, cast(Any, self.model).model.visual)

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens that a reply must never hold: padding and the placeholders of pictures."""
        known = self.tokenizer.get_vocab()
        return tuple(sorted({*super().banned_ids, *(known[name] for name in _VISION_TOKENS if name in known)}))

    def encode_prompts(
        self, instructions: Sequence[str], states: FloatArray, images: Sequence[ImageArray], *, pace: str, task: str
    ) -> PromptInputs:
        """Returns one prompt per instruction, state float32[B, S] and picture, on the model's device."""
        processor = cast(QwenProcessor, self.processor)
        texts = [
            processor.prompt_text(instruction, state, pace=pace, task=task)
            for instruction, state in zip(instructions, states, strict=True)
        ]
        batch = processor(images=images, text=texts)
        extra = {name: batch[name] for name in ("pixel_values", "image_grid_thw", "mm_token_type_ids")}
        inputs = PromptInputs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], extra=extra)
        return inputs.to(self.model.device)

    def encode_images(self, inputs: PromptInputs) -> torch.Tensor:
        """Returns what the decoder sees at the image placeholders, float[B, N, D]."""
        pixels, grid = inputs.extra["pixel_values"], inputs.extra["image_grid_thw"]
        features = cast(Any, self.model).get_image_features(pixels, grid)
        return torch.stack(tuple(features.pooler_output))

    def positions(self, inputs: PromptInputs) -> torch.Tensor:
        """Returns the position ids of a sequence, int64[3, B, L]: time, row and column (M-RoPE)."""
        positions, _ = cast(Any, self.model).model.get_rope_index(
            inputs.input_ids,
            mm_token_type_ids=inputs.extra["mm_token_type_ids"],
            image_grid_thw=inputs.extra["image_grid_thw"],
            attention_mask=inputs.attention_mask,
        )
        return cast(torch.Tensor, positions)

    def _next_positions(self, position_BL: torch.Tensor) -> torch.Tensor:
        return position_BL[None].expand(3, -1, -1)
