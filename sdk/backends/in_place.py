"""Decodes on the CPU without a copy: keys and values are written where they stay, and no array is made for a token.

Where weights are too many for a cache, tokens that are written are read by a compiled step instead of a graph
(`sdk/backends/compiled_step.py`); prompts, and drafts in float32, are left to the graphs.

A sequence owns its arrays: cache, hidden states, scores, and what onnxruntime was told of them (for each number of
tokens that was ever read at once). They are lent again when nobody holds the sequence any more. What the last prompt
left is kept: a prompt that begins with the same tokens, and shows the same picture where these reach into it, is read
from where it differs, and a picture is looked at only then.

`Decoding.logits` are arrays of the sequence: look at them before the sequence is read on.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.backends import Decoding
from roboalign.sdk.backends.compiled_step import CompiledStep, open_compiled_step
from roboalign.sdk.backends.onnx_graph import OnnxGraph
from roboalign.sdk.backends.sequence import Lent, ReadPrompt, SequenceArrays, SequenceSizes, arrays_of
from roboalign.sdk.backends.sight import SIGHT_ROLES, ClosedSight, Sight, make_sight
from roboalign.sdk.bundle import (
    LOWER_CODES_ROLE,
    LOWER_ROLE,
    READ_CODES_ROLE,
    READ_ROLE,
    UPPER_CODES_ROLE,
    UPPER_ROLE,
    WRITE_ACTIONS_ROLE,
    WRITE_ROLE,
    Bundle,
    PolicySpec,
    read_bundle,
)
from roboalign.sdk.errors import BackendError, RoboalignError
from roboalign.sdk.types import FloatArray

__all__ = ["CODE_WINDOWS", "WINDOWS", "InPlaceBackend", "prefers_codes"]

WINDOWS = (16, 48)
"""Tokens of a drafted thought that are read at once, one size after the other while they are right. In float32 a pass
costs as much as 12 to 15 tokens in it do, so that a smaller one saves nothing when it is wrong."""

CODE_WINDOWS = (8, 24)
"""The same where codes are multiplied: there eight tokens cost as much as 3 (52M) to 6 (8M) single ones do."""

_CODES_ROLES = {LOWER_ROLE: LOWER_CODES_ROLE, UPPER_ROLE: UPPER_CODES_ROLE}
_NO_SCORES: FloatArray = np.zeros(0, np.float32)

_BITS = {"int8": 8, "int4": 4}
_CACHE_BYTES = 16 * 2**20
"""Weights that take more in float32 may be multiplied as codes, and are read by a compiled step."""

_STEP_ERROR = {True: 0.02, False: 1e-3}
"""By whether codes are multiplied: how far a compiled step may be from the graphs, as a share of the largest value."""

_TRIED_TOKENS = (1, 2)
"""Read once by the graphs and once by a compiled step, which have to agree."""

_log = logging.getLogger(__name__)

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
    return _float32_bytes(bundle) > _CACHE_BYTES


def _float32_bytes(bundle: Bundle) -> float:
    """Returns what the weights of a bundle take in float32, about."""
    bits = {**_BITS, "fp16": 16}.get(bundle.manifest.precision, 32)
    return bundle.manifest.files["model.safetensors"].num_bytes * 32 / bits


class InPlaceBackend:
    """The `Backend` of a bundle that has graphs for reading in place, on onnxruntime's CPU provider."""

    def __init__(
        self, bundle: Bundle, *, threads: int = 1, on_codes: bool | None = None, compiles: bool | None = None
    ) -> None:
        """Opens the graphs that decode.

        Args:
            bundle: with graphs that read in place, and those to see with.
            threads: CPU threads.
            on_codes: multiply codes as they are, and round activations to 8 bits for that; None decides by
                `prefers_codes`.
            compiles: read single tokens by a compiled step where the bundle allows it; None does so where the weights
                are too many for a cache, and one thread is used.
        """
        self._bundle = bundle
        self.on_codes = prefers_codes(bundle) if on_codes is None else on_codes
        self.windows = CODE_WINDOWS if self.on_codes else WINDOWS
        specs = bundle.manifest.graphs
        self._is_split = LOWER_ROLE in specs
        reading = _CODES_ROLES if self._is_split else {READ_ROLE: READ_CODES_ROLE}
        used = (*SIGHT_ROLES, *reading, WRITE_ROLE, WRITE_ACTIONS_ROLE, "flow")
        roles = {role: role for role in used if role in specs}
        if self.on_codes:
            roles |= {role: codes for role, codes in reading.items() if codes in specs}
        # Of bundles without a graph on codes, onnxruntime makes its products on codes out of the other one.
        self._graphs = {
            role: OnnxGraph(bundle, specs[name], threads, on_codes=self.on_codes and name in reading)
            for role, name in roles.items()
        }
        self._sight: Sight = make_sight(self._graphs, self.spec)
        self._arrays: list[SequenceArrays] = []
        self._kept: ReadPrompt | None = None
        if compiles is None:
            compiles = threads == 1 and _float32_bytes(bundle) > _CACHE_BYTES
        self._compiled = self._open_compiled() if compiles else None

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
        return self._prompt(prompt_ids, pixel_values, skims=False)

    def skim_prompt(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        """Reads a prompt and a picture as far as `flow` needs it; there are no scores."""
        return self._prompt(prompt_ids, pixel_values, skims=True)

    @property
    def is_compiled(self) -> bool:
        """Whether single tokens are read by a compiled step instead of the graphs."""
        return self._compiled is not None

    def forget(self) -> None:
        """Reads the next prompt whole, whatever the last one was."""
        self._kept = None
        self._sight.forget()

    def step(self, decoding: Decoding, token_id: int) -> None:
        """Reads one more token."""
        self._write(decoding, (token_id,), is_scored=True)
        decoding.logits = arrays_of(decoding).logits[0, 0]

    def step_action(self, decoding: Decoding, token_id: int) -> None:
        """Reads one more token; `logits` are those of the action tokens alone, in their order."""
        self._write(decoding, (token_id,), is_scored=False)
        arrays = arrays_of(decoding)
        arrays.run(WRITE_ACTIONS_ROLE, 1, 1, self._bind)
        decoding.logits = arrays.action_logits[0, 0]

    def extend(self, decoding: Decoding, token_ids: Sequence[int]) -> FloatArray:
        """Reads several tokens in one pass; returns what would follow each."""
        count = len(token_ids)
        if not 0 < count <= WINDOWS[-1]:
            raise BackendError(f"{count} tokens cannot be read at once, expected 1 to {WINDOWS[-1]}")
        self._write(decoding, token_ids, is_scored=True)
        rows = arrays_of(decoding).logits[0, :count]
        decoding.logits = rows[-1]
        return rows

    def skim(self, decoding: Decoding, token_ids: Sequence[int]) -> None:
        """Reads any number of tokens as far as `flow` needs them; there are no scores."""
        ids, most = np.asarray(token_ids, np.int64), self.spec.max_prompt_tokens
        for start in range(0, len(ids), most):
            part = ids[start : start + most]
            self._read(decoding, part, len(part), num_scored=0, skims=True)
        decoding.logits = _NO_SCORES

    def states(self, decoding: Decoding, start: int) -> FloatArray:
        """Returns a copy of the hidden states from a place on."""
        return arrays_of(decoding).hidden[start : decoding.length].copy()

    def recall(self, decoding: Decoding, states: FloatArray) -> None:
        """Puts hidden states behind what was read; there are no keys of them, and no scores."""
        sequence, start, count = cast(Lent, decoding.cache), decoding.length, len(states)
        self._check_room(start, count)
        sequence.arrays.hidden[start : start + count] = states
        # What was taken back may have left keys there.
        sequence.num_read, sequence.num_whole = min(sequence.num_read, start), min(sequence.num_whole, start)
        decoding.length, decoding.logits = start + count, _NO_SCORES

    def rewind(self, decoding: Decoding, length: int, logits: FloatArray) -> None:
        """Forgets what was read beyond `length`; it is overwritten, and looked at by nothing until then."""
        decoding.logits = logits
        decoding.length = length

    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        """Returns actions from the sequence read so far."""
        feed: dict[str, NDArray[np.generic]] = {
            "hidden": arrays_of(decoding).hidden[None],
            "length": np.array([decoding.length], np.int64),
            "state": state[None],
            "noise": noise[None],
        }
        actions: FloatArray = self._graph("flow").run(feed)[0][0]
        return actions

    def inspect(self, decoding: Decoding) -> Mapping[str, FloatArray]:
        """Returns hidden states, keys and values of what was read so far."""
        arrays, length = arrays_of(decoding), decoding.length
        return {"hidden": arrays.hidden[:length].copy(), "kv": arrays.kv[:, :, :length].copy()}

    def close(self) -> None:
        """Frees the sessions and all arrays."""
        self._graphs, self._arrays, self._kept, self._compiled = {}, [], None, None
        self._sight = ClosedSight(self._bundle.path)

    def _prompt(self, prompt_ids: Sequence[int], pixel_values: FloatArray, *, skims: bool) -> Decoding:
        ids = np.asarray(prompt_ids, np.int64)
        kept = self._kept
        shared = 0 if kept is None else kept.shared_with(ids, pixel_values)
        num_whole = 0 if kept is None else min(shared, kept.num_whole)
        if not skims:
            shared = num_whole
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
        sequence = Lent(arrays, num_whole, shared)
        decoding = Decoding(logits=_NO_SCORES, length=shared, cache=sequence)
        self._read(decoding, ids[shared:], count, num_scored=0 if skims else 1, skims=skims)
        if not skims:
            decoding.logits = arrays.logits[0, 0]
        arrays.is_given[:, :count] = False
        self._kept = ReadPrompt(
            ids=ids,
            pixels=pixel_values.copy(),
            first_image=first,
            last_image=last,
            num_whole=sequence.num_whole,
            arrays=arrays,
        )
        arrays.is_lent = True
        weakref.finalize(sequence, _give_back, arrays).atexit = False
        return decoding

    def _read(
        self,
        decoding: Decoding,
        ids: NDArray[np.int64] | int,
        count: int,
        *,
        num_scored: int,
        skims: bool = False,
    ) -> None:
        """Reads tokens; the scores of what follows the last of them come first in `logits`."""
        sequence, start = cast(Lent, decoding.cache), decoding.length
        arrays = sequence.arrays
        self._check_room(start, count)
        sequence.check_read(start)
        arrays.tokens[0, :count] = ids
        arrays.place(start, count)
        if not self._is_split:
            self._read_whole(arrays, count, num_scored)
        else:
            arrays.run(LOWER_ROLE, count, 0, self._bind)
            if not skims:
                sequence.check_whole(start)
                arrays.run(UPPER_ROLE, count, num_scored, self._bind)
        arrays.hidden[start : start + count] = arrays.tapped[0, :count]
        is_whole = not skims or not self._is_split
        sequence.num_whole = start + count if is_whole else min(sequence.num_whole, start)
        sequence.num_read = decoding.length = start + count

    def _write(self, decoding: Decoding, token_ids: Sequence[int], *, is_scored: bool) -> None:
        """Reads words that follow what was read; passes over several float32 ones are the graphs' strength."""
        count = len(token_ids)
        if self._compiled is None or (count > 1 and not self.on_codes):
            ids = token_ids[0] if count == 1 else np.asarray(token_ids, np.int64)
            self._read(decoding, ids, count, num_scored=count if is_scored else 0)
            return
        sequence, start = cast(Lent, decoding.cache), decoding.length
        self._check_room(start, count)
        sequence.check_read(start)
        sequence.check_whole(start)
        self._compiled.read(sequence.arrays, token_ids, start, is_scored=is_scored)
        sequence.num_whole = sequence.num_read = decoding.length = start + count

    def _open_compiled(self) -> CompiledStep | None:
        """Returns a compiled step that was found to do with two tokens what the graphs do; None where there is none."""
        try:
            step = open_compiled_step(self._bundle, on_codes=self.on_codes, max_tokens=WINDOWS[-1])
            if step is None:
                return None
            expected = self._try_step(None)
            found = self._try_step(step)
            error = float(np.max([_relative_error(*pair) for pair in zip(found, expected, strict=True)]))
        except RoboalignError:
            raise
        except Exception as err:  # noqa: BLE001 - numba, llvmlite and numba's cache have errors of every kind
            _log.warning("tokens of %s are read by onnxruntime, because numba cannot be used: %s", self.folder, err)
            return None
        finally:
            self._compiled = None
        if error <= _STEP_ERROR[self.on_codes]:
            return step
        _log.warning(
            "tokens of %s are read by onnxruntime: the compiled step is off by %.2g of the largest value, at most %g "
            "was expected; please report it",
            self.folder,
            error,
            _STEP_ERROR[self.on_codes],
        )
        return None

    def _try_step(self, step: CompiledStep | None) -> list[FloatArray]:
        """Returns scores, hidden states, keys and values of a few tokens behind a sequence of random ones."""
        self._compiled = step
        arrays, start, end = SequenceArrays(self._sizes()), self.spec.max_tokens // 2, self.spec.max_tokens // 2 + 2
        # Keys as a norm leaves them, so that attention has something to choose from, near and far.
        arrays.kv[:, :, :start] = np.random.default_rng(0).standard_normal(arrays.kv[:, :, :start].shape)
        decoding = Decoding(logits=_NO_SCORES, length=start, cache=Lent(arrays, start, start))
        for token in _TRIED_TOKENS:
            self.step(decoding, token)
        rows = arrays.kv[:, :, start:end]
        return [decoding.logits.copy(), arrays.hidden[start:end], rows[0::2], rows[1::2]]

    def _read_whole(self, arrays: SequenceArrays, count: int, num_scored: int) -> None:
        """Reads with the graphs of a bundle before there was `lower`."""
        arrays.run(READ_ROLE, count, 0, self._bind)
        if num_scored:
            if num_scored < count:
                arrays.last[0, :num_scored] = arrays.last[0, count - num_scored : count]
            arrays.run(WRITE_ROLE, num_scored, num_scored, self._bind)

    def _check_room(self, length: int, count: int) -> None:
        if length + count > self.spec.max_tokens:
            raise BackendError(
                f"{count} tokens do not fit behind {length}: the cache of {self._bundle.path} holds "
                f"{self.spec.max_tokens}"
            )

    def _borrow(self, shared: int) -> SequenceArrays:
        """Returns arrays that nobody holds, which begin with the rows that are shared with the last prompt."""
        kept = None if self._kept is None else self._kept.arrays
        if kept is not None and not kept.is_lent:
            return kept
        free = next((arrays for arrays in self._arrays if not arrays.is_lent), None)
        if free is None:
            free = SequenceArrays(self._sizes())
            self._arrays.append(free)
        if kept is not None and shared:
            free.kv[:, :, :shared] = kept.kv[:, :, :shared]
            free.hidden[:shared] = kept.hidden[:shared]
        return free

    def _sizes(self) -> SequenceSizes:
        reading = (LOWER_ROLE, UPPER_ROLE) if self._is_split else (READ_ROLE,)
        tensors = [tensor for role in reading for tensor in self._graph(role).spec.inputs]
        rows = [tensor.shape for tensor in tensors if tensor.name.startswith(("key_", "value_"))]
        scores = self._graph(UPPER_ROLE if self._is_split else WRITE_ROLE).spec.outputs
        return SequenceSizes(
            cache=(len(rows), *rows[0][1:]),
            prompt_tokens=self.spec.max_prompt_tokens,
            scored_tokens=WINDOWS[-1],
            hidden=self.spec.hidden_size,
            vocab=next(tensor.shape[-1] for tensor in scores if tensor.name == "logits"),
            action_scores=self.num_action_scores,
        )

    def _bind(self, arrays: SequenceArrays, role: str, count: int, num_scored: int) -> Callable[[], None]:
        graph = self._graph(role)
        tensors: dict[str, NDArray[np.generic]] = {
            **arrays.reading(count),
            "hidden": arrays.tapped[:, :count],
            "last": arrays.last[:, :count],
            "logits": arrays.logits[:, :num_scored],
            "first_scored": arrays.first_scored[count - num_scored :][:1],
            **arrays.cache(),
        }
        if role == WRITE_ACTIONS_ROLE:
            tensors["logits"] = arrays.action_logits
        inputs, outputs = ({t.name: tensors[t.name] for t in side} for side in (graph.spec.inputs, graph.spec.outputs))
        return graph.bind(inputs, outputs)

    def _graph(self, role: str) -> OnnxGraph:
        graph = self._graphs.get(role)
        if graph is None:
            state = "was closed" if not self._graphs else f"has no {role!r} graph"
            raise BackendError(f"the onnx backend of {self._bundle.path} {state}; load the policy again")
        return graph


def _relative_error(found: FloatArray, expected: FloatArray) -> float:
    """Returns the largest difference as a share of the largest value; not a number where either is none."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _give_back(arrays: SequenceArrays) -> None:
    arrays.is_lent = False
