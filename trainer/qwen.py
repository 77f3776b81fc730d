"""Qwen2.5-VL and Qwen3-VL (the paper's backbones) behind the common interface.

The processor is our own: transformers' Qwen processors need torchvision for a video half that is not used here. It
keeps the tokenizer and the PIL image processor of the checkpoint. Prompts follow Qwen's chat (form `qwen` in
`roboalign.sdk.prompt`); the two flags of a prompt are sentences, because a pretrained model knows no `<slow>`.

Proved on tiny random configurations only (forward, generate, hidden state); real weights were never loaded here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin, Qwen2VLImageProcessorPil

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.patches import PatchFormat
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import FloatArray
from roboalign.trainer.backbone import HuggingFaceBackbone, PromptInputs

__all__ = ["QwenBackbone", "QwenProcessor"]

_IMAGE_TOKEN = "<|image_pad|>"
_VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", _IMAGE_TOKEN, "<|video_pad|>")
_FORMAT_FILE = "prompt_format.json"


_SETTINGS = {"do_resize": True, "resample": 3, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True}
"""How `PatchFormat` makes patches; 3 is the bicubic filter. Every published Qwen-VL has these."""


def _patch_format(image_processor: Any, size_px: int, image_token_id: int) -> PatchFormat:
    """Returns how the policy's picture is cut; a processor of other steps is a ConfigError."""
    found = {name: getattr(image_processor, name) for name in _SETTINGS}
    if found != _SETTINGS or not np.isclose(image_processor.rescale_factor, 1 / 255, rtol=1e-9):
        raise ConfigError(
            f"the picture processor has {found} and scales by {image_processor.rescale_factor}, expected {_SETTINGS} "
            "and 1/255, which is what a robot's runtime does; restore its preprocessor_config.json"
        )
    blank = np.zeros((size_px, size_px, 3), np.uint8)
    _, rows, columns = image_processor(images=[blank], return_tensors="np")["image_grid_thw"][0].tolist()
    return PatchFormat(
        rows=rows,
        columns=columns,
        patch_px=int(image_processor.patch_size),
        merge=int(image_processor.merge_size),
        frames=int(image_processor.temporal_patch_size),
        mean=tuple(map(float, image_processor.image_mean)),
        std=tuple(map(float, image_processor.image_std)),
        image_token_id=image_token_id,
    )


class QwenProcessor(ProcessorMixin):
    """Instructions and pictures to Qwen's inputs."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        prompt_format: PromptFormat | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.image_token_id = tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.prompt_format = prompt_format or PromptFormat(form="qwen")

    @property
    def prompt_format(self) -> PromptFormat:
        """How observations become prompts, with the patches that this model's pictures have."""
        return self._prompt_format

    @prompt_format.setter
    def prompt_format(self, wanted: PromptFormat) -> None:
        patches = _patch_format(self.image_processor, wanted.image_size_px, self.image_token_id)
        rows, columns = patches.grid
        self._prompt_format = replace(wanted, num_image_tokens=rows * columns, patches=patches)

    def __call__(self, images: Any = None, text: Any = None, **_unused: Any) -> BatchFeature:
        """Returns left-padded ids and the type of each token, and patches of the pictures where there are any."""
        pixels = dict(self.image_processor(images=list(images), return_tensors="pt")) if len(images) else {}
        grids = pixels["image_grid_thw"].prod(dim=1).tolist() if pixels else []
        counts = iter([patches // self.image_processor.merge_size**2 for patches in grids])
        texts = [t.replace(_IMAGE_TOKEN, _IMAGE_TOKEN * next(counts)) if _IMAGE_TOKEN in t else t for t in text]
        batch = self.tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        types = (batch["input_ids"] == self.image_token_id).long()
        ids, mask = batch["input_ids"], batch["attention_mask"]
        return BatchFeature({"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types, **pixels})

    def prompt_text(
        self, instruction: str, state: FloatArray | None, *, pace: str, task: str, has_image: bool = True
    ) -> str:
        """Returns the chat up to where the model answers, with one placeholder for a picture of any size."""
        fmt = self.prompt_format
        text = fmt.prompt_text(instruction, state, pace=pace, task=task)
        return text.replace(fmt.image_text, replace(fmt, num_image_tokens=1).image_text if has_image else "")

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

    @classmethod
    def read_processor(cls, folder: Path) -> QwenProcessor:
        """Returns the processor saved in a folder."""
        return QwenProcessor.from_pretrained(folder)

    @property
    def vision(self) -> torch.nn.Module:
        """The vision encoder."""
        return cast(torch.nn.Module, cast(Any, self.model).model.visual)

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens that a reply must never hold: padding and the placeholders of pictures."""
        known = self.tokenizer.get_vocab()
        return tuple(sorted({*super().banned_ids, *(known[name] for name in _VISION_TOKENS if name in known)}))

    def picture_inputs(self, pixel_values: FloatArray, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns what the model takes besides ids and mask: Qwen's own patches of the picture."""
        processor = cast(QwenProcessor, self.processor)
        picture = self.prompt_format.image_of(pixel_values)
        pixels = dict(processor.image_processor(images=[picture], return_tensors="pt"))
        return {**pixels, "mm_token_type_ids": (input_ids == processor.image_token_id).long()}

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
            image_grid_thw=inputs.extra.get("image_grid_thw"),
            attention_mask=inputs.attention_mask,
        )
        return cast(torch.Tensor, positions)

    def _next_positions(self, position_BL: torch.Tensor) -> torch.Tensor:
        return position_BL[None].expand(3, -1, -1)
