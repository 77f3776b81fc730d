"""Inference backends: the model-level steps that `sdk.Policy` is written against, and how a backend is found by name.

A backend registers under the entry point group `roboalign.backends`. Those of this project are also found without
installation metadata, as in a source tree. Anybody may add one: it needs the methods of `Backend`, nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.errors import BackendError, ConfigError
from roboalign.sdk.types import FloatArray

__all__ = [
    "ActionScoreBackend",
    "Backend",
    "BackendFactory",
    "Decoding",
    "InspectableBackend",
    "RecallingBackend",
    "RememberingBackend",
    "SkimmingBackend",
    "WindowBackend",
    "backend_names",
    "choose_backend",
    "find_backend",
]

_log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "roboalign.backends"

_OWN = {
    "cpu": "roboalign.sdk.backends.onnx:OnnxBackend",
    "edge-llm": "roboalign.sdk.backends.edge_llm:EdgeLlmBackend",
    "onnx": "roboalign.sdk.backends.onnx:OnnxBackend",
    "onnx-cuda": "roboalign.sdk.backends.onnx:OnnxCudaBackend",
    "onnx-tensorrt": "roboalign.sdk.backends.onnx:OnnxTensorrtBackend",
    "tensorrt": "roboalign.sdk.backends.tensorrt:TensorRtBackend",
    "torch": "roboalign.trainer.backend:TorchBackend",
}


@dataclass(slots=True, kw_only=True)
class Decoding:
    """A sequence being written: what was read so far and what would come next. Mutated by `Backend.step`."""

    logits: FloatArray
    """float32[V], scores of the next token; the array may be written anew when the sequence is read on."""
    length: int
    """Tokens read so far."""
    cache: object
    """Keys, values and hidden states, in whatever form the backend keeps them."""


class Backend(Protocol):
    """Runs one model. Not thread safe; one sequence is decoded at a time."""

    @property
    def spec(self) -> PolicySpec:
        """How to act with the model."""

    @property
    def folder(self) -> Path:
        """Where `tokenizer.json` and `fast.json` lie."""

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        """Reads a prompt of at most `spec.max_prompt_tokens` ids and a picture float32[3, size, size]."""

    def step(self, decoding: Decoding, token_id: int) -> None:
        """Reads one more token."""

    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        """Returns actions float32[T, A] in their units, from the sequence, float32[S] and noise float32[T, A]."""

    def close(self) -> None:
        """Frees what the backend holds; may be called twice."""


@runtime_checkable
class InspectableBackend(Protocol):
    """A backend that shows what a sequence left behind, as parity is measured on. Ours do."""

    def inspect(self, decoding: Decoding) -> Mapping[str, FloatArray]:
        """Returns copies: `hidden` float32[length, D] of the tapped layer, and `kv` float32[C, H, length, K]."""


@runtime_checkable
class WindowBackend(Protocol):
    """A backend that reads several tokens in one pass, which lets a thought be checked instead of written."""

    @property
    def windows(self) -> tuple[int, ...]:
        """Sizes of the passes that it has, rising; empty when it can only step."""

    def extend(self, decoding: Decoding, token_ids: Sequence[int]) -> FloatArray:
        """Reads at most as many tokens as the largest window; returns float32[n, V], what would follow each."""

    def rewind(self, decoding: Decoding, length: int, logits: FloatArray) -> None:
        """Forgets what was read beyond `length`; `logits` float32[V] are what followed there."""


@runtime_checkable
class ActionScoreBackend(Protocol):
    """A backend that scores action tokens alone, where no other may follow."""

    @property
    def num_action_scores(self) -> int:
        """How many action tokens there are; 0 when the bundle has no graph for it."""

    def step_action(self, decoding: Decoding, token_id: int) -> None:
        """Reads one more token; `logits` are then float32[num_action_scores], those of the action tokens in order."""


@runtime_checkable
class SkimmingBackend(Protocol):
    """A backend that reads what only the action head will see as far as that needs it, and scores nothing."""

    def skim_prompt(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        """Reads a prompt and a picture for `flow`; nothing can be written behind it."""

    def skim(self, decoding: Decoding, token_ids: Sequence[int]) -> None:
        """Reads any number of tokens for `flow`; nothing can be written behind them until they are taken back."""


@runtime_checkable
class RecallingBackend(Protocol):
    """A backend that gives the action head words that were read elsewhere, without reading them again."""

    def states(self, decoding: Decoding, start: int) -> FloatArray:
        """Returns a copy of the hidden states float32[length - start, D] of the tapped layer."""

    def recall(self, decoding: Decoding, states: FloatArray) -> None:
        """Puts hidden states behind what was read, for `flow`; nothing can be read there until they are taken back."""


@runtime_checkable
class RememberingBackend(Protocol):
    """A backend that keeps what it read for a next prompt that begins alike, which moves the last digits of answers."""

    def forget(self) -> None:
        """Reads the next prompt whole, whatever the last one was."""


class BackendFactory(Protocol):
    """What an entry point names: usually the backend class."""

    def open(self, path: Path, *, threads: int) -> Backend:
        """Opens a bundle (or whatever else this backend reads) at a path."""


def backend_names() -> tuple[str, ...]:
    """Returns the names that `find_backend` knows."""
    return tuple(sorted({*_OWN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))}))


def choose_backend(folder: Path, *, root: Path = Path("/")) -> str:
    """Returns what `auto` means for a bundle: `tensorrt` where engines for this very board lie in it, else `onnx`.

    Says so on a Jetson, and where there are engines that cannot run here. What is chosen is used: engines that match
    this board and cannot be loaded are an error.
    """
    from roboalign.sdk.board import detect_board
    from roboalign.sdk.engines import ENGINES_FOLDER, find_engines

    board = detect_board(root)
    if board is None and not (folder / ENGINES_FOLDER).is_dir():
        return "onnx"
    try:
        find_engines(folder, board)
    except (BackendError, OSError) as err:
        _log.warning("acting with onnxruntime on the CPU: %s", err)
        return "onnx"
    return "tensorrt"


def find_backend(name: str) -> BackendFactory:
    """Returns a backend's factory; an unknown name is a ConfigError, one that cannot be imported a BackendError."""
    target = _OWN.get(name)
    # Own names come first: scanning the metadata of every installed package costs 30 ms at each start of a robot.
    if target is not None:
        point = EntryPoint(name=name, value=target, group=ENTRY_POINT_GROUP)
    else:
        found = [p for p in entry_points(group=ENTRY_POINT_GROUP) if p.name == name]
        if not found:
            raise ConfigError(f"there is no backend {name!r}; choose one of auto, {', '.join(backend_names())}")
        point = found[0]
    try:
        return cast(BackendFactory, getattr(import_module(point.module), point.attr))
    except (ImportError, AttributeError) as err:
        hint = "; the torch backend needs: pip install 'roboalign[train]'" if name == "torch" else ""
        raise BackendError(f"backend {name!r} ({point.value}) cannot be imported: {err}{hint}") from err
