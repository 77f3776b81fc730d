"""Tokenizer, image processor and processor of the nano model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin

from roboalign.sdk.errors import BundleError, ConfigError, DataError
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import FloatArray

__all__ = ["MARKERS", "NanoImageProcessor", "NanoProcessor", "train_tokenizer"]

MARKERS = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<image>",
    "<quick>",
    "<slow>",
    "<ask>",
    "<act>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
)
"""Tokens with the ids 0.. in this order. The tokenizer flags them special: decode with `skip_special_tokens=False`."""


def train_tokenizer(texts: Iterable[str], *, max_number: int, vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on `texts` in which every number 0..max_number is one token.

    Numbers are put first in the merges' corpus so often that each becomes one token; this is checked.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(m, special=False, normalized=False) for m in MARKERS],
        show_progress=False,
    )
    numbers = " ".join(str(n) for n in range(max_number + 1))
    corpus = list(texts)
    tokenizer.train_from_iterator([*corpus, *([numbers] * max(200, len(corpus) // 20))], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )
    split = [n for n in range(max_number + 1) if len(fast.encode(f" {n}", add_special_tokens=False)) != 1]
    if split:
        raise ValueError(f"numbers {split[:5]} take more than one token; raise vocab_size (now {vocab_size})")
    return fast


class NanoImageProcessor(ImageProcessingMixin):
    """uint8 RGB pictures to `pixel_values` float32[B, 3, size, size], by the `PromptFormat`."""

    model_input_names: ClassVar = ["pixel_values"]

    def __init__(self, prompt_format: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prompt_format = prompt_format or PromptFormat().to_json()

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        fmt = PromptFormat.from_json(self.prompt_format)
        flat = [i for item in images for i in (item if isinstance(item, list | tuple) else (item,))]
        arrays = [fmt.pixel_values(np.asarray(i, dtype=np.uint8)) for i in flat]
        return BatchFeature({"pixel_values": torch.from_numpy(np.stack(arrays))})


class NanoProcessor(ProcessorMixin):
    """Prompt text and pictures to model inputs; the text already holds the image placeholders."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **kwargs: Any
    ) -> None:
        self.image_token = "<image>"
        self.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def prompt_format(self) -> PromptFormat:
        """The prompt format that the model was trained with."""
        return PromptFormat.from_json(self.image_processor.prompt_format)

    @prompt_format.setter
    def prompt_format(self, wanted: PromptFormat) -> None:
        old = self.prompt_format
        for name in ("image_size_px", "num_image_tokens", "max_number"):
            if getattr(old, name) != getattr(wanted, name):
                raise ConfigError(
                    f"PromptFormat.{name} is {getattr(wanted, name)}, but the model was made with {getattr(old, name)}"
                )
        self.image_processor.prompt_format = wanted.to_json()

    def prompt_text(
        self, instruction: str, state: FloatArray | None, *, pace: str, task: str, has_image: bool = True
    ) -> str:
        """Returns the prompt with its image placeholders; nano reads no prompt without a picture."""
        if not has_image:
            raise DataError(
                f"no picture for {instruction!r}: nano reads prompts with a picture only; "
                "leave text-only samples out, or train another model"
            )
        return self.prompt_format.prompt_text(instruction, state, pace=pace, task=task)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        texts = [text] if isinstance(text, str) else list(text)
        kwargs.pop("return_tensors", None)
        kept = {k: v for k, v in kwargs.items() if k in ("padding", "padding_side", "max_length", "truncation")}
        kept.setdefault("padding", True)
        data = dict(
            self.tokenizer(texts, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False, **kept)
        )
        if images is not None:
            data.update(self.image_processor(images if isinstance(images, list | tuple) else [images]))
        return BatchFeature(data)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> list[str]:
        """Writes tokenizer and image processor files; returns their paths."""
        self.tokenizer.save_pretrained(save_directory)
        paths = self.image_processor.save_pretrained(save_directory)
        return [str(p) for p in paths or ()]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> NanoProcessor:
        """Reads what `save_pretrained` wrote, from a folder."""
        folder = Path(pretrained_model_name_or_path)
        path = folder / "preprocessor_config.json"
        if not path.is_file():
            raise BundleError(f"{folder} has no preprocessor_config.json, expected a nano checkpoint; give its folder")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.padding_side = "left"
        return cls(NanoImageProcessor(json.loads(path.read_text())["prompt_format"]), tokenizer)
