"""The torch backend of `sdk.Policy`: acts from a checkpoint folder, or from a bundle's own weights.

It is written for comparison, not for speed: the hidden states of the action head come from one full pass over the whole
sequence, exactly as in training, and not from the incremental decoding that the exported graphs do. What agrees with it
agrees with training. Weights are computed in float32 whatever they are stored in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from roboalign.sdk.backends import Decoding
from roboalign.sdk.bundle import MANIFEST_NAME, PolicySpec, read_bundle
from roboalign.sdk.errors import BackendError, BundleError
from roboalign.sdk.fast import FAST_FILE, FastCodec
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, FloatArray
from roboalign.trainer.backbone import DecoderState, HuggingFaceBackbone, PromptInputs, load_backbone
from roboalign.trainer.checkpoint import CheckpointMeta, load_checkpoint
from roboalign.trainer.flow import FlowHead

__all__ = ["CAMERA", "MAX_TEXT_TOKENS", "MAX_THOUGHT_TOKENS", "TorchBackend", "checkpoint_spec", "codec_spec"]

MAX_TEXT_TOKENS = {"nano": 56, "chat": 104, "qwen": 256}
"""By prompt form: room for an instruction of about 40 words, the state and the flags; a chat spells digits."""

MAX_THOUGHT_TOKENS = 48
"""Thought budget of a checkpoint that does not state the one it was trained with."""

_NUM_MARKERS = 5
"""`<think>`, `</think>`, `<answer>`, `<ACTION_START>`, `<ACTION_END>`: what surrounds thought and actions."""

CAMERA = "front"
"""Camera of a checkpoint that does not say which pictures it saw."""


def checkpoint_spec(
    backbone: HuggingFaceBackbone,
    codec: FastCodec,
    head: FlowHead | None,
    *,
    max_thought_tokens: int = MAX_THOUGHT_TOKENS,
    camera: str = CAMERA,
    state_names: tuple[str, ...] = STATE_NAMES,
) -> PolicySpec:
    """Returns how to act with a model; a head that was trained for other actions than the codec's is a BundleError."""
    spec = codec_spec(
        backbone.prompt_format, codec, hidden_size=backbone.hidden_size, max_thought_tokens=max_thought_tokens
    )
    if head is not None:
        config = codec.config
        found, expected = (head.config.horizon, head.config.num_actions), (config.horizon, config.num_dims)
        if found != expected or head.config.hidden_size != backbone.hidden_size:
            raise BundleError(
                f"the action head makes {found[0]} x {found[1]} actions from {head.config.hidden_size} features, "
                f"the codec has {expected[0]} x {expected[1]} and the model {backbone.hidden_size}; "
                "train the head on this model"
            )
        low, high = head.config.action_low, head.config.action_high
        spec = replace(spec, action_low=low, action_high=high, has_head=True)
    return replace(spec, camera_names=(camera,), state_names=state_names)


def codec_spec(prompt: PromptFormat, codec: FastCodec, *, hidden_size: int, max_thought_tokens: int) -> PolicySpec:
    """Returns how to act with a model by action tokens alone."""
    config = codec.config
    room = MAX_TEXT_TOKENS[prompt.form] + prompt.num_image_tokens
    return PolicySpec(
        horizon=config.horizon,
        rate_hz=config.rate_hz,
        camera_names=(CAMERA,),
        image_size_px=prompt.image_size_px,
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        action_low=tuple(config.low.tolist()),
        action_high=tuple(config.high.tolist()),
        prompt=prompt,
        max_prompt_tokens=room,
        max_thought_tokens=max_thought_tokens,
        max_tokens=room + max_thought_tokens + _NUM_MARKERS + codec.num_coefficients,
        hidden_size=hidden_size,
        has_head=False,
    )


@dataclass(slots=True, kw_only=True)
class _Cache:
    """What a sequence needs to grow, and to be read again from its start."""

    state: DecoderState
    ids: list[int]
    pixel_values: FloatArray


class TorchBackend:
    """The `Backend` of a checkpoint or bundle on PyTorch."""

    def __init__(self, folder: Path, backbone: HuggingFaceBackbone, head: FlowHead | None, spec: PolicySpec) -> None:
        self._folder = folder
        self._backbone: HuggingFaceBackbone | None = backbone
        self.head = head
        self._spec = spec

    @classmethod
    def open(cls, path: Path, *, threads: int = 1) -> TorchBackend:
        """Loads a checkpoint of stage sft, align or head, or a bundle. `threads` is set for the whole process."""
        folder = Path(path)
        torch.set_num_threads(threads)
        spec = read_bundle(folder).manifest.policy if (folder / MANIFEST_NAME).is_file() else None
        meta = _checked_meta(folder) if spec is None else None
        backbone = load_backbone(folder)
        head = FlowHead.load(folder) if (folder / "head.safetensors").is_file() else None
        backbone.model.eval()
        if meta is not None:
            budget = int(meta.notes.get("thought_budget", MAX_THOUGHT_TOKENS))
            spec = checkpoint_spec(
                backbone,
                FastCodec.load(folder),
                head,
                max_thought_tokens=budget,
                camera=meta.camera or CAMERA,
                state_names=meta.states or STATE_NAMES,
            )
        assert spec is not None
        return cls(folder, backbone, head, spec)

    @property
    def spec(self) -> PolicySpec:
        """How to act with the model."""
        return self._spec

    @property
    def folder(self) -> Path:
        """The checkpoint or bundle."""
        return self._folder

    @torch.inference_mode()
    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        """Reads a prompt and a picture."""
        logits, state = self.backbone.prefill(self._inputs(prompt_ids, pixel_values))
        cache = _Cache(state=state, ids=list(prompt_ids), pixel_values=pixel_values)
        return Decoding(logits=logits[0].numpy(), length=len(prompt_ids), cache=cache)

    @torch.inference_mode()
    def step(self, decoding: Decoding, token_id: int) -> None:
        """Reads one more token."""
        cache = cast(_Cache, decoding.cache)
        logits, cache.state = self.backbone.step(torch.tensor([token_id]), cache.state)
        cache.ids.append(token_id)
        decoding.logits = logits[0].numpy()
        decoding.length += 1

    @torch.inference_mode()
    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        """Returns actions from the sequence read so far, which is read once more in one pass."""
        if self.head is None:
            raise BackendError(f"{self._folder} has no action head; run 'roboalign train head' on it")
        cache = cast(_Cache, decoding.cache)
        inputs = self._inputs(cache.ids, cache.pixel_values)
        hidden_BLD = self.backbone.hidden_after(inputs, self.head.config.layer)
        mask_BL = inputs.attention_mask.bool()
        actions = self.head.sample(hidden_BLD, mask_BL, torch.from_numpy(state)[None], torch.from_numpy(noise)[None])
        return cast(FloatArray, actions[0].numpy())

    @torch.inference_mode()
    def inspect(self, decoding: Decoding) -> dict[str, FloatArray]:
        """Returns hidden states, from one pass over everything read so far, and the decoder's keys and values."""
        assert self.head is not None
        cache = cast(_Cache, decoding.cache)
        hidden = self.backbone.hidden_after(self._inputs(cache.ids, cache.pixel_values), self.head.config.layer)[0]
        kv = torch.stack([part[0] for layer in cache.state.cache.layers for part in (layer.keys, layer.values)])
        return {"hidden": hidden.numpy().copy(), "kv": kv.numpy().copy()}

    def _inputs(self, ids: Sequence[int], pixel_values: FloatArray) -> PromptInputs:
        input_ids = torch.tensor([list(ids)])
        extra = self.backbone.picture_inputs(pixel_values, input_ids)
        return PromptInputs(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), extra=extra)

    def close(self) -> None:
        """Drops the model."""
        self._backbone = None

    @property
    def backbone(self) -> HuggingFaceBackbone:
        """The model; BackendError once closed."""
        if self._backbone is None:
            raise BackendError(f"the torch backend of {self._folder} was closed; load the policy again")
        return self._backbone


def _checked_meta(folder: Path) -> CheckpointMeta:
    """Verifies a checkpoint that is to act; returns what it says about itself."""
    meta = load_checkpoint(folder).meta
    if FAST_FILE not in meta.files:
        raise BundleError(
            f"{folder} is a {meta.stage} checkpoint without an action codec ({FAST_FILE}), so it cannot act; "
            "train it on with 'roboalign train sft'"
        )
    return meta
