"""The arrays of a sequence that is read in place, and the prompt that was read into them last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.backends import Decoding
from roboalign.sdk.errors import BackendError
from roboalign.sdk.types import FloatArray

__all__ = ["Lent", "ReadPrompt", "SequenceArrays", "SequenceSizes", "arrays_of"]

_Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceSizes:
    """What the arrays of a sequence follow from."""

    cache: tuple[int, ...]
    """[keys and values of all layers in turn, heads, places, head size]."""
    prompt_tokens: int
    """Tokens that are read at once, at most."""
    scored_tokens: int
    """Tokens that are scored at once, at most."""
    hidden: int
    """Width of hidden states."""
    vocab: int
    """Scores of a token."""
    action_scores: int
    """Scores of a token inside an action span."""


class SequenceArrays:
    """Everything that one sequence is read into, made once."""

    def __init__(self, sizes: SequenceSizes) -> None:
        most, width = sizes.prompt_tokens, sizes.hidden
        self.kv: FloatArray = np.zeros(sizes.cache, np.float32)
        self.hidden: FloatArray = np.zeros((sizes.cache[2], width), np.float32)
        self.tokens = np.zeros((1, most), np.int64)
        self.given: FloatArray = np.zeros((1, most, width), np.float32)
        self.is_given = np.zeros((1, most, 1), np.bool_)
        self.last: FloatArray = np.zeros((1, most, width), np.float32)
        self.tapped: FloatArray = np.zeros((1, most, width), np.float32)
        self.logits: FloatArray = np.zeros((1, sizes.scored_tokens, sizes.vocab), np.float32)
        self.action_logits: FloatArray = np.zeros((1, 1, sizes.action_scores), np.float32)
        self.first_scored = np.arange(most + 1)
        self.is_lent = False
        self._last_place = np.zeros(1, np.int32)
        self._length = np.zeros(1, np.int32)
        self._runs: dict[tuple[str, int, int], Callable[[], None]] = {}

    def place(self, start: int, count: int) -> None:
        """Says where the next tokens lie."""
        self._last_place[0] = start + count - 1
        self._length[0] = start + count

    def run(
        self,
        role: str,
        count: int,
        num_scored: int,
        bind: Callable[[SequenceArrays, str, int, int], Callable[[], None]],
    ) -> None:
        """Runs a role's graph on so many tokens, the last of which are scored."""
        key = role, count, num_scored
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = bind(self, *key)
        run()

    def reading(self, count: int) -> _Tensors:
        """Returns what is read, and its places."""
        return {
            "tokens": self.tokens[:, :count],
            "given": self.given[:, :count],
            "is_given": self.is_given[:, :count],
            "last_place": self._last_place,
            "length": self._length,
        }

    def cache(self) -> _Tensors:
        """Returns keys and values by the names of inputs and of outputs, which are the same arrays."""
        rows: _Tensors = {}
        for index in range(len(self.kv) // 2):
            rows[f"key_{index}"] = rows[f"key_{index}_out"] = self.kv[2 * index][None]
            rows[f"value_{index}"] = rows[f"value_{index}_out"] = self.kv[2 * index + 1][None]
        return rows


class Lent:
    """Who holds it has the arrays to itself."""

    def __init__(self, arrays: SequenceArrays, num_whole: int, num_read: int) -> None:
        self.arrays = arrays
        self.num_whole = num_whole
        """Tokens that every layer has read."""
        self.num_read = num_read
        """Tokens whose keys and values are there, as far as the action head needs them."""

    def check_whole(self, start: int) -> None:
        """Raises BackendError where nothing can be written behind a place."""
        if self.num_whole < start:
            raise BackendError(
                f"the tokens from place {self.num_whole} on were read for the action head alone, so nothing can be "
                "written behind them; read the prompt with prefill"
            )

    def check_read(self, start: int) -> None:
        """Raises BackendError where nothing can be read behind a place."""
        if self.num_read < start:
            raise BackendError(
                f"the tokens from place {self.num_read} on were recalled for the action head, so nothing can be read "
                "behind them; take them back with rewind"
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReadPrompt:
    """The prompt that was read last."""

    ids: NDArray[np.int64]
    """Its tokens."""
    pixels: FloatArray
    """Its picture."""
    first_image: int
    """Place of the first token that the picture takes."""
    last_image: int
    """Place of the last one."""
    num_whole: int
    """Tokens at its start that every layer has read."""
    arrays: SequenceArrays
    """What it left; its rows stay as they are, whatever is read behind them."""

    def shared_with(self, ids: NDArray[np.int64], pixels: FloatArray) -> int:
        """Returns how many tokens at the start of another prompt are the same and see the same; never all of them."""
        most = min(len(ids) - 1, len(self.ids))
        differ = np.flatnonzero(self.ids[:most] != ids[:most])
        shared = int(differ[0]) if len(differ) else most
        is_same_picture = shared > self.first_image and np.array_equal(self.pixels, pixels)
        return shared if is_same_picture else min(shared, self.first_image)


def arrays_of(decoding: Decoding) -> SequenceArrays:
    """Returns the arrays of a sequence of this backend."""
    return cast(Lent, decoding.cache).arrays
