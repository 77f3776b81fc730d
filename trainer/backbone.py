"""The one interface to a vision-language backbone, and how one is read from a folder.

Shape suffixes: B batch, L tokens of a left-padded sequence, N image tokens, D hidden size, V vocabulary.

"Hidden state after layer k" is what decoder layer k + 1 would receive: exactly k layers were applied, the final norm
was not; k = 0 is the embeddings. In transformers' `hidden_states` the last entry went through the final norm, and for
Qwen3-VL the first ones lack the picture features that are added behind those layers.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin
from transformers.cache_utils import DynamicCache

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.types import FloatArray, ImageArray
from roboalign.trainer.inputs import DecoderState, PromptInputs
from roboalign.trainer.nano import NanoConfig, NanoForConditionalGeneration, NanoProcessor

__all__ = [
    "ACTION_MARKERS",
    "Backbone",
    "DecoderState",
    "HuggingFaceBackbone",
    "NanoBackbone",
    "PromptInputs",
    "add_action_tokens",
    "hidden_after_layer",
    "load_backbone",
    "load_model",
    "load_processor",
    "make_backbone",
    "quiet_transformers",
]

ACTION_MARKERS = ("<think>", "</think>", "<answer>", "</answer>", "<ACTION_START>", "<ACTION_END>")
"""Markers that a backbone's vocabulary must have, besides `<ACTION_0>` .. `<ACTION_{n-1}>`."""

# TRL builds its reference model from a folder through the auto classes, and asks an unknown class for `auto_map`.
NanoConfig.auto_map = {}
AutoConfig.register(NanoConfig.model_type, NanoConfig, exist_ok=True)
AutoModelForCausalLM.register(NanoConfig, NanoForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(NanoConfig, NanoForConditionalGeneration, exist_ok=True)


class Backbone(Protocol):
    """A vision-language model as the stages see it: vision encoder, token embedding, decoder, layer tap."""

    model: PreTrainedModel
    processor: ProcessorMixin

    @property
    def num_layers(self) -> int:
        """Decoder layers."""

    @property
    def hidden_size(self) -> int:
        """D."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the processor."""

    @property
    def vision(self) -> torch.nn.Module:
        """The vision encoder."""

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens that a reply must never hold: padding and the placeholders of pictures."""

    def encode_prompts(
        self, instructions: Sequence[str], states: FloatArray, images: Sequence[ImageArray], *, pace: str, task: str
    ) -> PromptInputs:
        """Returns one prompt per instruction, state float32[B, S] and picture, on the model's device."""

    def encode_images(self, inputs: PromptInputs) -> torch.Tensor:
        """Returns what the decoder sees at the image placeholders, float[B, N, D]."""

    def embed_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns float[B, L, D] token embeddings."""

    def logits(self, inputs: PromptInputs, *, keep: int, module: torch.nn.Module | None = None) -> torch.Tensor:
        """Returns logits float[B, keep, V] at the last `keep` positions; `module` may be another copy of the model."""

    def reply_logits(
        self,
        prompts: PromptInputs,
        index: torch.Tensor,
        reply_ids: torch.Tensor,
        reply_mask: torch.Tensor,
        *,
        module: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        """Returns logits float[B, C, V] for each token of replies to the prompts `index`; each prompt is read once."""

    def prefill(
        self, inputs: PromptInputs, *, module: torch.nn.Module | None = None
    ) -> tuple[torch.Tensor, DecoderState]:
        """Reads the prompts; returns logits float[B, V] for the first new token and the state."""

    def step(self, token_ids: torch.Tensor, state: DecoderState) -> tuple[torch.Tensor, DecoderState]:
        """Reads one token per row, int64[B]; returns logits float[B, V] for the next one and the state."""

    def hidden_after(self, inputs: PromptInputs, layer: int) -> torch.Tensor:
        """Returns float[B, L, D] after `layer` decoder layers, before the final norm."""


class HuggingFaceBackbone(ABC):
    """What nano and Qwen share: a transformers model with `model.language_model` (decoder) and an output head."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.model = model
        self.processor = processor

    @property
    def decoder(self) -> Any:
        """The text decoder (`layers`, `norm`, `embed_tokens`)."""
        return cast(Any, self.model).model.language_model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the processor."""
        return cast(Any, self.processor).tokenizer

    @property
    @abstractmethod
    def vision(self) -> torch.nn.Module:
        """The vision encoder."""

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens that a reply must never hold: padding and the placeholders of pictures."""
        ids = {self.tokenizer.pad_token_id, self.tokenizer.bos_token_id, cast(Any, self.processor).image_token_id}
        return tuple(sorted(i for i in ids if i is not None and i != self.tokenizer.eos_token_id))

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.decoder.layers)

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.decoder.embed_tokens.weight.shape[1])

    @abstractmethod
    def encode_prompts(
        self, instructions: Sequence[str], states: FloatArray, images: Sequence[ImageArray], *, pace: str, task: str
    ) -> PromptInputs:
        """Returns one prompt per instruction, state float32[B, S] and picture, on the model's device."""

    @abstractmethod
    def encode_images(self, inputs: PromptInputs) -> torch.Tensor:
        """Returns what the decoder sees at the image placeholders, float[B, N, D]."""

    @abstractmethod
    def positions(self, inputs: PromptInputs) -> torch.Tensor:
        """Returns the position ids of a sequence, int64[B, L] or int64[3, B, L]."""

    def embed_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns float[B, L, D] token embeddings."""
        return cast(torch.Tensor, self.model.get_input_embeddings()(input_ids))

    def logits(self, inputs: PromptInputs, *, keep: int, module: torch.nn.Module | None = None) -> torch.Tensor:
        """Returns logits float[B, keep, V] at the last `keep` positions; `module` may be another copy of the model."""
        output = (module or self.model)(**self._arguments(inputs), use_cache=False, logits_to_keep=keep)
        return cast(torch.Tensor, output.logits)

    def reply_logits(
        self,
        prompts: PromptInputs,
        index: torch.Tensor,
        reply_ids: torch.Tensor,
        reply_mask: torch.Tensor,
        *,
        module: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        """Returns logits float[B, C, V] for each token of replies to the prompts `index`; each prompt is read once.

        Args:
            prompts: U prompts.
            index: int64[B], the prompt of each reply.
            reply_ids: int64[B, C], right-padded.
            reply_mask: int64[B, C], 0 for padding.
            module: another copy of the model, or a wrapper around it.
        """
        first_UV, state = self.prefill(prompts, module=module)
        first_B1V = first_UV[index][:, None]
        if reply_ids.shape[1] == 1:
            return first_B1V
        state = state.select(index)
        places = torch.arange(reply_ids.shape[1] - 1, device=reply_ids.device)
        output = (module or self.model)(
            input_ids=reply_ids[:, :-1],
            attention_mask=torch.cat((state.attention_mask, reply_mask[:, :-1].to(state.attention_mask.dtype)), dim=1),
            position_ids=self._next_positions(state.next_position[:, None] + places),
            past_key_values=state.cache,
            use_cache=True,
        )
        return torch.cat((first_B1V, output.logits), dim=1)

    def prefill(
        self, inputs: PromptInputs, *, module: torch.nn.Module | None = None
    ) -> tuple[torch.Tensor, DecoderState]:
        """Reads the prompts; returns logits float[B, V] for the first new token and the state."""
        arguments = self._arguments(inputs)
        output = (module or self.model)(**arguments, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)
        positions = arguments["position_ids"]
        last = positions[:, -1] if positions.dim() == 2 else positions.amax(dim=(0, 2))
        state = DecoderState(cache=output.past_key_values, attention_mask=inputs.attention_mask, next_position=last + 1)
        return output.logits[:, -1], state

    def step(self, token_ids: torch.Tensor, state: DecoderState) -> tuple[torch.Tensor, DecoderState]:
        """Reads one token per row, int64[B]; returns logits float[B, V] for the next one and the state."""
        mask = torch.cat((state.attention_mask, torch.ones_like(state.attention_mask[:, :1])), dim=1)
        output = self.model(
            input_ids=token_ids[:, None],
            attention_mask=mask,
            position_ids=self._next_positions(state.next_position[:, None]),
            past_key_values=state.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1], replace(state, attention_mask=mask, next_position=state.next_position + 1)

    def hidden_after(self, inputs: PromptInputs, layer: int) -> torch.Tensor:
        """Returns float[B, L, D] after `layer` decoder layers, before the final norm."""
        return hidden_after_layer(self.model, layer, **self._arguments(inputs))

    def hidden_behind(
        self, state: DecoderState, ids_BC: torch.Tensor, mask_BC: torch.Tensor, layer: int
    ) -> torch.Tensor:
        """Returns float[B, C, D] after `layer` layers, of text (right-padded) behind what was read; its cache grows."""
        places = torch.arange(ids_BC.shape[1], device=ids_BC.device)
        return hidden_after_layer(
            self.model,
            layer,
            input_ids=ids_BC,
            attention_mask=torch.cat((state.attention_mask, mask_BC.to(state.attention_mask.dtype)), dim=1),
            position_ids=self._next_positions(state.next_position[:, None] + places),
            past_key_values=state.cache,
        )

    @contextmanager
    def tapped(self, layer: int) -> Iterator[list[torch.Tensor]]:
        """Yields a list that collects the hidden states after `layer` of whatever the model reads meanwhile."""
        taken: list[torch.Tensor] = []

        def take(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            taken.append(args[0] if args else kwargs["hidden_states"])

        handle = [*self.decoder.layers, self.decoder.norm][layer].register_forward_pre_hook(take, with_kwargs=True)
        try:
            yield taken
        finally:
            handle.remove()

    def _next_positions(self, position_BL: torch.Tensor) -> torch.Tensor:
        """Returns the model's position ids for text behind a prompt."""
        return position_BL

    def _arguments(self, inputs: PromptInputs) -> dict[str, torch.Tensor]:
        return {
            "input_ids": inputs.input_ids,
            "attention_mask": inputs.attention_mask,
            "position_ids": self.positions(inputs),
            **inputs.extra,
        }


class NanoBackbone(HuggingFaceBackbone):
    """The nano model behind the common interface."""

    @property
    def vision(self) -> torch.nn.Module:
        """The vision encoder."""
        return cast(torch.nn.Module, cast(Any, self.model).model.vision)

    def encode_prompts(
        self, instructions: Sequence[str], states: FloatArray, images: Sequence[ImageArray], *, pace: str, task: str
    ) -> PromptInputs:
        """Returns one prompt per instruction, state float32[B, S] and picture, on the model's device."""
        fmt = cast(NanoProcessor, self.processor).prompt_format
        texts = [
            fmt.prompt_text(text, state, pace=pace, task=task) for text, state in zip(instructions, states, strict=True)
        ]
        batch = self.processor(images=list(images), text=texts)
        inputs = PromptInputs(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            extra={"pixel_values": batch["pixel_values"]},
        )
        return inputs.to(self.model.device)

    def encode_images(self, inputs: PromptInputs) -> torch.Tensor:
        """Returns what the decoder sees at the image placeholders, float[B, N, D]."""
        embeds, _ = cast(Any, self.model).model.merge(
            inputs.input_ids, inputs.extra["pixel_values"], inputs.attention_mask
        )
        is_image = inputs.input_ids == self.model.config.image_token_id
        return cast(torch.Tensor, embeds[is_image].view(inputs.num_prompts, -1, embeds.shape[-1]))

    def positions(self, inputs: PromptInputs) -> torch.Tensor:
        """Returns the position ids of a sequence, int64[B, L]."""
        return (inputs.attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def hidden_after_layer(model: PreTrainedModel, layer: int, **arguments: Any) -> torch.Tensor:
    """Returns float[B, L, D] after exactly `layer` decoder layers, before the final norm.

    Later layers are not run. `arguments` are the model's own (input_ids, attention_mask, pixel_values, ...).
    """
    decoder = cast(Any, model).model.language_model
    layers = decoder.layers
    if not 0 <= layer <= len(layers):
        raise ConfigError(
            f"hidden layer is {layer}, expected 0 to {len(layers)} (the decoder has {len(layers)} layers)"
        )
    caught: list[torch.Tensor] = []

    def catch(_module: torch.nn.Module, args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> None:
        caught.append(args[0] if args else _kwargs["hidden_states"])

    # The final norm's input is the output of the last layer that runs: cut the stack at `layer`, then look there.
    handle = decoder.norm.register_forward_pre_hook(catch, with_kwargs=True)
    decoder.layers = layers[:layer]
    try:
        cast(Any, model).model(**arguments, use_cache=False)
    finally:
        decoder.layers = layers
        handle.remove()
    return caught[0]


def add_action_tokens(model: PreTrainedModel, tokenizer: Any, num_action_tokens: int, *, multiple_of: int = 1) -> int:
    """Gives model and tokenizer the markers and action tokens that they lack; returns the number of added tokens.

    The tokens are *not* flagged special: TRL decodes completions with `skip_special_tokens=True`, and whoever reads the
    text must see them. Their embedding rows are the mean of the old rows; the vocabulary is padded to `multiple_of`.
    """
    names = [*ACTION_MARKERS, *(f"<ACTION_{i}>" for i in range(num_action_tokens))]
    missing = [name for name in names if name not in tokenizer.get_vocab()]
    num_known = len(tokenizer)
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in missing])
    first = tokenizer.convert_tokens_to_ids("<ACTION_0>")
    ids = tokenizer.convert_tokens_to_ids([f"<ACTION_{i}>" for i in range(num_action_tokens)])
    if ids != list(range(first, first + num_action_tokens)):
        raise ConfigError("the tokenizer's <ACTION_i> tokens are not contiguous; start from a tokenizer without them")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(
            len(tokenizer), pad_to_multiple_of=multiple_of if multiple_of > 1 else None, mean_resizing=False
        )
    new = slice(num_known, None)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = cast(torch.nn.Linear, module).weight
            weight[new] = weight[:num_known].mean(dim=0)
    return len(missing)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' progress bars for loading and saving off the terminal; real warnings still show."""
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


def load_model(path: Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Returns the model of a Hugging Face folder in evaluation mode; nothing is looked up outside the folder."""
    _read_model_type(path)
    with quiet_transformers():
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, local_files_only=True)
    return cast(PreTrainedModel, model.eval())


def load_processor(path: Path) -> ProcessorMixin:
    """Returns the processor of a Hugging Face folder."""
    if _read_model_type(path) == NanoConfig.model_type:
        return NanoProcessor.from_pretrained(path)
    from roboalign.trainer.qwen import QwenProcessor

    return QwenProcessor.from_pretrained(path)


def make_backbone(model: PreTrainedModel, processor: ProcessorMixin) -> HuggingFaceBackbone:
    """Returns the member of the backbone interface that fits the model."""
    if model.config.model_type == NanoConfig.model_type:
        return NanoBackbone(model, processor)
    from roboalign.trainer.qwen import QWEN_MODEL_TYPES, QwenBackbone

    if model.config.model_type in QWEN_MODEL_TYPES:
        return QwenBackbone(model, processor)
    known = ", ".join((NanoConfig.model_type, *QWEN_MODEL_TYPES))
    raise BundleError(f"no backbone for model type {model.config.model_type!r}, expected one of {known}")


def load_backbone(path: Path, *, dtype: torch.dtype = torch.float32) -> HuggingFaceBackbone:
    """Returns the backbone stored in a Hugging Face folder."""
    return make_backbone(load_model(path, dtype=dtype), load_processor(path))


def _read_model_type(path: Path) -> str:
    file = Path(path) / "config.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError) as err:
        raise BundleError(f"{path} has no readable config.json ({err}); give a checkpoint folder") from err
