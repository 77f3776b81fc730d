"""Decodes on the CPU without a copy: keys and values are written where they stay, and no array is made for a token.

A sequence owns its arrays: cache, hidden states, scores, and what onnxruntime was told of them (for each number of
tokens that was ever read at once). They are lent again when nobody holds the sequence any more. What the last prompt
left is kept: a prompt that begins with the same tokens, and shows the same picture where these reach into it, is read
from where it differs, and a picture is looked at only then.

`Decoding.logits` are arrays of the sequence: look at them before the sequence is read on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.backends import Decoding
from roboalign.sdk.backends.onnx_graph import OnnxGraph
from roboalign.sdk.backends.sight import SIGHT_ROLES, ClosedSight, Sight, make_sight
from roboalign.sdk.bundle import (
    READ_CODES_ROLE,
    READ_ROLE,
    WRITE_ACTIONS_ROLE,
    WRITE_ROLE,
    Bundle,
    PolicySpec,
    read_bundle,
)
from roboalign.sdk.errors import BackendError
from roboalign.sdk.types import FloatArray

__all__ = ["CODE_WINDOWS", "WINDOWS", "InPlaceBackend", "prefers_codes"]

WINDOWS = (16, 48)
"""Tokens of a drafted thought that are read at once, one size after the other while they are right. In float32 a pass
costs as much as 12 to 15 tokens in it do, so that a smaller one saves nothing when it is wrong."""

CODE_WINDOWS = (8, 24)
"""The same where codes are multiplied: there a pass costs as much as 3 to 5 tokens do."""

_BITS = {"int8": 8, "int4": 4}
_CACHE_BYTES = 16 * 2**20
"""Weights that take more in float32 may be multiplied as codes."""

_PART_ERROR = 0.05
"""What rounding activations to 8 bits costs, at least, as a share of the largest value of a graph's output."""


def prefers_codes(bundle: Bundle) -> bool:
    """Returns whether the weights of a bundle are multiplied as codes: many enough, and the bundle accepts the error.

    A bundle states how far its graphs may be from PyTorch's exact products; the usual limit is far below what rounding
    activations costs.
    """
    manifest = bundle.manifest
    bits = _BITS.get(manifest.precision)
    if bits is None or (manifest.thresholds is not None and manifest.thresholds.part_error < _PART_ERROR):
        return False
    return manifest.files["model.safetensors"].num_bytes * 32 / bits > _CACHE_BYTES


class InPlaceBackend:
    """The `Backend` of a bundle that has graphs for reading in place, on onnxruntime's CPU provider."""

    def __init__(self, bundle: Bundle, *, threads: int = 1, on_codes: bool | None = None) -> None:
        """Opens the graphs that decode.

        Args:
            bundle: with the roles `read` and `write`, and those to see with.
            threads: CPU threads.
            on_codes: multiply codes as they are, and round activations to 8 bits for that; None decides by
                `prefers_codes`.
        """
        self._bundle = bundle
        self.on_codes = prefers_codes(bundle) if on_codes is None else on_codes
        self.windows = CODE_WINDOWS if self.on_codes else WINDOWS
        specs = bundle.manifest.graphs
        used = (*SIGHT_ROLES, READ_ROLE, WRITE_ROLE, WRITE_ACTIONS_ROLE, "flow")
        roles = {role: role for role in used if role in specs}
        if self.on_codes and READ_CODES_ROLE in specs:
            roles[READ_ROLE] = READ_CODES_ROLE
        # Bundles before there was `read_codes` have onnxruntime make its products on codes out of `read`.
        self._graphs = {
            role: OnnxGraph(bundle, specs[name], threads, on_codes=self.on_codes and name == READ_ROLE)
            for role, name in roles.items()
        }
        self._sight: Sight = make_sight(self._graphs, self.spec)
        self._arrays: list[_Arrays] = []
        self._kept: _Prompt | None = None

    @classmethod
    def open(cls, path: Path, *, threads: int = 1) -> InPlaceBackend:
        """Verifies and loads the bundle in a folder."""
        return cls(read_bundle(path), threads=threads)

    @property
    def spec(self) -> PolicySpec:
        """How to act with the model."""
        return self._bundle.manifest.policy

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self._bundle.path

    @property
    def num_action_scores(self) -> int:
        """Scores that `step_action` gives, one for each action token; 0 where the bundle has no such graph."""
        graph = self._graphs.get(WRITE_ACTIONS_ROLE)
        return 0 if graph is None else graph.spec.outputs[0].shape[-1]

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        """Reads a prompt and a picture, as far as the prompt before was not the same."""
        ids = np.asarray(prompt_ids, np.int64)
        kept = self._kept
        shared = 0 if kept is None else kept.shared_with(ids, pixel_values)
        arrays = self._borrow(shared)
        count = len(ids) - shared
        arrays.is_given[:, :count] = False
        if kept is not None and kept.last_image < shared:
            first, last = kept.first_image, kept.last_image
        else:
            first, rows = self._sight.see(ids, pixel_values)
            last = first + len(rows) - 1
            begin = max(first, shared)
            arrays.given[0, begin - shared : last + 1 - shared] = rows[begin - first :]
            arrays.is_given[0, begin - shared : last + 1 - shared] = True
        sequence = _Sequence(arrays)
        decoding = Decoding(logits=arrays.logits[0, 0], length=shared, cache=sequence)
        self._read(decoding, ids[shared:])
        arrays.last[0, 0] = arrays.last[0, count - 1]
        arrays.is_given[:, :count] = False
        arrays.run((WRITE_ROLE, 1), self._bind_write)
        self._kept = _Prompt(ids=ids, pixels=pixel_values.copy(), first_image=first, last_image=last, arrays=arrays)
        arrays.is_lent = True
        weakref.finalize(sequence, _give_back, arrays).atexit = False
        return decoding

    def forget(self) -> None:
        """Reads the next prompt whole, whatever the last one was."""
        self._kept = None
        self._sight.forget()

    def step(self, decoding: Decoding, token_id: int) -> None:
        """Reads one more token."""
        arrays = self._step(decoding, token_id)
        arrays.run((WRITE_ROLE, 1), self._bind_write)
        decoding.logits = arrays.logits[0, 0]

    def step_action(self, decoding: Decoding, token_id: int) -> None:
        """Reads one more token; `logits` are those of the action tokens alone, in their order."""
        arrays = self._step(decoding, token_id)
        arrays.run((WRITE_ACTIONS_ROLE, 1), self._bind_write_actions)
        decoding.logits = arrays.action_logits[0, 0]

    def extend(self, decoding: Decoding, token_ids: Sequence[int]) -> FloatArray:
        """Reads several tokens in one pass; returns what would follow each."""
        count = len(token_ids)
        if not 0 < count <= WINDOWS[-1]:
            raise BackendError(f"{count} tokens cannot be read at once, expected 1 to {WINDOWS[-1]}")
        self._read(decoding, np.asarray(token_ids, np.int64))
        arrays = _arrays_of(decoding)
        arrays.run((WRITE_ROLE, count), self._bind_write)
        decoding.logits = arrays.logits[0, count - 1]
        return arrays.logits[0, :count]

    def rewind(self, decoding: Decoding, length: int, logits: FloatArray) -> None:
        """Forgets what was read beyond `length`; it is overwritten, and looked at by nothing until then."""
        decoding.logits = logits
        decoding.length = length

    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        """Returns actions from the sequence read so far."""
        feed: dict[str, NDArray[np.generic]] = {
            "hidden": _arrays_of(decoding).hidden[None],
            "length": np.array([decoding.length], np.int64),
            "state": state[None],
            "noise": noise[None],
        }
        actions: FloatArray = self._graph("flow").run(feed)[0][0]
        return actions

    def inspect(self, decoding: Decoding) -> Mapping[str, FloatArray]:
        """Returns hidden states, keys and values of what was read so far."""
        arrays, length = _arrays_of(decoding), decoding.length
        return {"hidden": arrays.hidden[:length].copy(), "kv": arrays.kv[:, :, :length].copy()}

    def close(self) -> None:
        """Frees the sessions and all arrays."""
        self._graphs, self._arrays, self._kept = {}, [], None
        self._sight = ClosedSight(self._bundle.path)

    def _step(self, decoding: Decoding, token_id: int) -> _Arrays:
        arrays, place = _arrays_of(decoding), decoding.length
        self._check_room(place, 1)
        arrays.tokens[0, 0] = token_id
        arrays.place(place, 1)
        arrays.run((READ_ROLE, 1), self._bind_read)
        arrays.hidden[place] = arrays.tapped[0, 0]
        decoding.length = place + 1
        return arrays

    def _read(self, decoding: Decoding, ids: NDArray[np.int64]) -> None:
        arrays, start, count = _arrays_of(decoding), decoding.length, len(ids)
        self._check_room(start, count)
        arrays.tokens[0, :count] = ids
        arrays.place(start, count)
        arrays.run((READ_ROLE, count), self._bind_read)
        arrays.hidden[start : start + count] = arrays.tapped[0, :count]
        decoding.length = start + count

    def _check_room(self, length: int, count: int) -> None:
        if length + count > self.spec.max_tokens:
            raise BackendError(
                f"{count} tokens do not fit behind {length}: the cache of {self._bundle.path} holds "
                f"{self.spec.max_tokens}"
            )

    def _borrow(self, shared: int) -> _Arrays:
        """Returns arrays that nobody holds, which begin with the rows that are shared with the last prompt."""
        kept = None if self._kept is None else self._kept.arrays
        if kept is not None and not kept.is_lent:
            return kept
        free = next((arrays for arrays in self._arrays if not arrays.is_lent), None)
        if free is None:
            free = _Arrays(self.spec, self._graph(READ_ROLE), self._graph(WRITE_ROLE), self.num_action_scores)
            self._arrays.append(free)
        if kept is not None and shared:
            free.kv[:, :, :shared] = kept.kv[:, :, :shared]
            free.hidden[:shared] = kept.hidden[:shared]
        return free

    def _bind_read(self, arrays: _Arrays, count: int) -> Callable[[], None]:
        return self._graph(READ_ROLE).bind(*arrays.read_tensors(count))

    def _bind_write(self, arrays: _Arrays, count: int) -> Callable[[], None]:
        return self._graph(WRITE_ROLE).bind({"last": arrays.last[:, :count]}, {"logits": arrays.logits[:, :count]})

    def _bind_write_actions(self, arrays: _Arrays, count: int) -> Callable[[], None]:
        return self._graph(WRITE_ACTIONS_ROLE).bind(
            {"last": arrays.last[:, :count]}, {"logits": arrays.action_logits[:, :count]}
        )

    def _graph(self, role: str) -> OnnxGraph:
        graph = self._graphs.get(role)
        if graph is None:
            state = "was closed" if not self._graphs else f"has no {role!r} graph"
            raise BackendError(f"the onnx backend of {self._bundle.path} {state}; load the policy again")
        return graph


class _Arrays:
    """Everything that one sequence is read into, made once."""

    def __init__(self, spec: PolicySpec, read: OnnxGraph, write: OnnxGraph, num_action_scores: int) -> None:
        most, width = spec.max_prompt_tokens, spec.hidden_size
        rows = [tensor.shape for tensor in read.spec.inputs if tensor.name.startswith(("key_", "value_"))]
        vocab = write.spec.outputs[0].shape[-1]
        self.kv: FloatArray = np.zeros((len(rows), *rows[0][1:]), np.float32)
        self.hidden: FloatArray = np.zeros((spec.max_tokens, width), np.float32)
        self.tokens = np.zeros((1, most), np.int64)
        self.given: FloatArray = np.zeros((1, most, width), np.float32)
        self.is_given = np.zeros((1, most, 1), np.bool_)
        self.last: FloatArray = np.zeros((1, most, width), np.float32)
        self.tapped: FloatArray = np.zeros((1, most, width), np.float32)
        self.logits: FloatArray = np.zeros((1, WINDOWS[-1], vocab), np.float32)
        self.action_logits: FloatArray = np.zeros((1, 1, num_action_scores), np.float32)
        self.is_lent = False
        self._last_place = np.zeros(1, np.int32)
        self._length = np.zeros(1, np.int32)
        self._runs: dict[tuple[str, int], Callable[[], None]] = {}

    def place(self, start: int, count: int) -> None:
        """Says where the next tokens lie."""
        self._last_place[0] = start + count - 1
        self._length[0] = start + count

    def run(self, key: tuple[str, int], bind: Callable[[_Arrays, int], Callable[[], None]]) -> None:
        """Runs a role's graph on so many tokens."""
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = bind(self, key[1])
        run()

    def read_tensors(self, count: int) -> tuple[dict[str, NDArray[np.generic]], dict[str, NDArray[np.generic]]]:
        """Returns inputs and outputs of `read` for so many tokens; keys and values are both."""
        cache: dict[str, NDArray[np.generic]] = {}
        for index in range(len(self.kv) // 2):
            cache[f"key_{index}"] = self.kv[2 * index][None]
            cache[f"value_{index}"] = self.kv[2 * index + 1][None]
        inputs: dict[str, NDArray[np.generic]] = {
            "tokens": self.tokens[:, :count],
            "given": self.given[:, :count],
            "is_given": self.is_given[:, :count],
            "last_place": self._last_place,
            "length": self._length,
        }
        outputs: dict[str, NDArray[np.generic]] = {"last": self.last[:, :count], "hidden": self.tapped[:, :count]}
        return inputs | cache, outputs | {f"{name}_out": rows for name, rows in cache.items()}


class _Sequence:
    """Who holds it has the arrays to itself."""

    def __init__(self, arrays: _Arrays) -> None:
        self.arrays = arrays


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Prompt:
    """The prompt that was read last."""

    ids: NDArray[np.int64]
    """Its tokens."""
    pixels: FloatArray
    """Its picture."""
    first_image: int
    """Place of the first token that the picture takes."""
    last_image: int
    """Place of the last one."""
    arrays: _Arrays
    """What it left; its rows stay as they are, whatever is read behind them."""

    def shared_with(self, ids: NDArray[np.int64], pixels: FloatArray) -> int:
        """Returns how many tokens at the start of another prompt are the same and see the same; never all of them."""
        most = min(len(ids) - 1, len(self.ids))
        differ = np.flatnonzero(self.ids[:most] != ids[:most])
        shared = int(differ[0]) if len(differ) else most
        is_same_picture = shared > self.first_image and np.array_equal(self.pixels, pixels)
        return shared if is_same_picture else min(shared, self.first_image)


def _arrays_of(decoding: Decoding) -> _Arrays:
    return cast(_Sequence, decoding.cache).arrays


def _give_back(arrays: _Arrays) -> None:
    arrays.is_lent = False
