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
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin
from transformers.cache_utils import DynamicCache

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.quantized import read_weights
from roboalign.sdk.types import FloatArray, ImageArray
from roboalign.trainer.inputs import DecoderState, PromptInputs

__all__ = [
    "ENTRY_POINT_GROUP",
    "Backbone",
    "BackboneProcessor",
    "DecoderState",
    "HuggingFaceBackbone",
    "PromptInputs",
    "backbone_class",
    "hidden_after_layer",
    "load_backbone",
    "load_model",
    "load_processor",
    "make_backbone",
    "quiet_transformers",
]

ENTRY_POINT_GROUP = "roboalign.backbones"
"""Other packages add a model here: the name is the `model_type` of its config.json, the value a class as below."""

_OWN = {
    "roboalign_nano": "roboalign.trainer.nano.backbone:NanoBackbone",
    "roboalign_smol": "roboalign.trainer.smol.backbone:SmolBackbone",
    "qwen2_5_vl": "roboalign.trainer.qwen:QwenBackbone",
    "qwen3_vl": "roboalign.trainer.qwen:QwenBackbone",
}


class BackboneProcessor(Protocol):
    """What a backbone needs of its processor, besides being a `ProcessorMixin` that saves itself."""

    tokenizer: Any
    prompt_format: PromptFormat
    image_token_id: int

    def prompt_text(
        self, instruction: str, state: FloatArray | None, *, pace: str, task: str, has_image: bool = True
    ) -> str:
        """Returns the prompt up to where the model answers, with the marker or markers of the picture in it."""

    def __call__(self, images: Any, text: Any) -> Mapping[str, torch.Tensor]:
        """Returns `input_ids`, `attention_mask` (padded on the left) and what the vision encoder takes."""


class HuggingFaceBackbone(ABC):
    """A vision-language model as the stages see it: vision encoder, token embedding, decoder, layer tap.

    It wraps a transformers model with `model.language_model` (the decoder) and an output head. A new model is a
    subclass with the four abstract members, and a processor like `BackboneProcessor`.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    @abstractmethod
    def read_processor(cls, folder: Path) -> ProcessorMixin:
        """Returns the processor saved in a folder; BundleError says what the folder lacks."""

    @property
    def prompt_format(self) -> PromptFormat:
        """Units of the state and size of the picture, as the model was trained."""
        return cast(BackboneProcessor, self.processor).prompt_format

    @prompt_format.setter
    def prompt_format(self, wanted: PromptFormat) -> None:
        cast(BackboneProcessor, self.processor).prompt_format = wanted

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
    def embedding_rows(self) -> int:
        """V, padding rows included: the width of the logits."""
        return int(cast(Any, self.model.get_input_embeddings()).weight.shape[0])

    @property
    def has_tied_rows(self) -> bool:
        """True when the output head and the token embedding are one tensor."""
        rows, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        return bool(cast(Any, rows).weight.data_ptr() == cast(Any, head).weight.data_ptr())

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.decoder.layers)

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.decoder.embed_tokens.weight.shape[1])

    def encode_prompts(
        self,
        instructions: Sequence[str],
        states: Sequence[FloatArray | None] | FloatArray,
        images: Sequence[ImageArray | None],
        *,
        pace: str | Sequence[str],
        task: str | Sequence[str],
    ) -> PromptInputs:
        """Returns one prompt for each instruction, state float32[S] and picture, on the model's device.

        A state or picture may be absent (None); `pace` and `task` are one value for all, or one for each.
        """
        processor, count = cast(BackboneProcessor, self.processor), len(instructions)
        paces, tasks = ([flag] * count if isinstance(flag, str) else flag for flag in (pace, task))
        texts = [
            processor.prompt_text(text, state, pace=one, task=other, has_image=image is not None)
            for text, state, image, one, other in zip(instructions, states, images, paces, tasks, strict=True)
        ]
        batch = dict(processor(images=[image for image in images if image is not None], text=texts))
        ids, mask = batch.pop("input_ids"), batch.pop("attention_mask")
        extra = {name: part.to(self.model.dtype) if part.is_floating_point() else part for name, part in batch.items()}
        return PromptInputs(input_ids=ids, attention_mask=mask, extra=extra).to(self.model.device)

    def picture_inputs(self, pixel_values: FloatArray, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns what the model takes besides ids and mask, for the policy's picture float32[3, size, size]."""
        return {"pixel_values": torch.from_numpy(pixel_values)[None]}

    @abstractmethod
    def encode_images(self, inputs: PromptInputs) -> torch.Tensor:
        """Returns what the decoder sees at the image placeholders, float[B, N, D]."""

    def positions(self, inputs: PromptInputs) -> torch.Tensor:
        """Returns the position ids of a sequence, int64[B, L] (or int64[3, B, L] where rows and columns count)."""
        return (inputs.attention_mask.cumsum(dim=1) - 1).clamp(min=0)

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

    def read(self, inputs: PromptInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads whole sequences; returns the last hidden states and the embeddings the decoder got, float[B, L, D].

        No logits are made: the caller applies the output head where it needs it (`model.get_output_embeddings()`).
        """
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def catch(_module: torch.nn.Module, _args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            seen.append((output.last_hidden_state, kwargs["inputs_embeds"]))

        handle = self.decoder.register_forward_hook(catch, with_kwargs=True)
        try:
            cast(Any, self.model).model(**self._arguments(inputs), use_cache=False)
        finally:
            handle.remove()
        return seen[0]

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


Backbone = HuggingFaceBackbone
"""What the stages ask for. Every member so far is a transformers model."""


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


def backbone_class(model_type: str) -> type[HuggingFaceBackbone]:
    """Returns the adapter of a model type: one of ours, or of another package (entry points `roboalign.backbones`)."""
    target = _OWN.get(model_type)
    if target is None:
        others = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
        if model_type not in others:
            known = ", ".join(sorted({*_OWN, *others}))
            raise BundleError(f"no backbone for model type {model_type!r}, expected one of {known}")
        target = others[model_type]
    module, _, name = target.partition(":")
    return cast(type[HuggingFaceBackbone], getattr(import_module(module), name))


_WEIGHTS_FILE = "model.safetensors"


def load_model(path: Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Returns the model of a Hugging Face folder in evaluation mode; nothing is looked up outside the folder."""
    backbone_class(_read_model_type(path))  # an adapter registers its own classes with transformers
    file = Path(path) / _WEIGHTS_FILE
    decoded = read_weights(file) if file.is_file() else None
    with quiet_transformers():
        if decoded is None:
            model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, local_files_only=True)
        else:
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            model = _filled(AutoModelForImageTextToText.from_config(config, dtype=dtype), decoded, where=file)
    return cast(PreTrainedModel, model.eval())


def _filled(model: PreTrainedModel, weights: Mapping[str, FloatArray], *, where: Path) -> PreTrainedModel:
    """Puts decoded weights into a new model; every weight must be there, tied ones under one of their names."""
    state = model.state_dict(keep_vars=True)
    shared = {id(state[name]) for name in weights if name in state}
    missing = sorted(name for name, tensor in state.items() if name not in weights and id(tensor) not in shared)
    try:
        if missing:
            raise RuntimeError(f"{missing[0]} is missing")
        unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)[1]
        if unexpected:
            raise RuntimeError(f"{unexpected[0]} is unknown")
    except RuntimeError as err:
        raise BundleError(f"the weights in {where} do not fit the model: {err}; export it again") from err
    return model


def load_processor(path: Path) -> ProcessorMixin:
    """Returns the processor of a Hugging Face folder."""
    return backbone_class(_read_model_type(path)).read_processor(Path(path))


def make_backbone(model: PreTrainedModel, processor: ProcessorMixin) -> HuggingFaceBackbone:
    """Returns the member of the backbone interface that fits the model."""
    return backbone_class(model.config.model_type)(model, processor)


def load_backbone(path: Path, *, dtype: torch.dtype = torch.float32) -> HuggingFaceBackbone:
    """Returns the backbone stored in a Hugging Face folder."""
    return make_backbone(load_model(path, dtype=dtype), load_processor(path))


def _read_model_type(path: Path) -> str:
    file = Path(path) / "config.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError) as err:
        raise BundleError(f"{path} has no readable config.json ({err}); give a checkpoint folder") from err
