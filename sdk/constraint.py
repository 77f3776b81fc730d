"""Length-constrained decoding: which tokens may follow, so that every generated action span decodes.

Between `<ACTION_START>` and `<ACTION_END>` a token is allowed if it spells no more coefficients than are left, and
`<ACTION_END>` if none are. Every coefficient is a token of its own (sdk/fast.py), so a span never runs into a dead end.
The state is one integer: the coefficients left, or `OUTSIDE`. Outside a span everything is allowed. A token that the
mask forbids (only a sequence sampled without it holds one) leaves the span; `<ACTION_START>` always opens one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roboalign.sdk.errors import ConfigError, DataError

__all__ = ["OUTSIDE", "ActionConstraint"]

OUTSIDE = -1
"""State outside an action span. It indexes the last row of `ActionConstraint.table`, which allows every token."""


class ActionConstraint:
    """The masks and transitions of the action span; immutable."""

    def __init__(
        self,
        token_lengths: ArrayLike,
        *,
        num_coefficients: int,
        action_start_id: int,
        action_end_id: int,
        first_action_id: int,
        lm_vocab_size: int,
    ) -> None:
        """Builds the masks.

        Args:
            token_lengths: int[V] coefficients that each action token spells (`FastCodec.token_lengths`).
            num_coefficients: Coefficients of a chunk (`FastCodec.num_coefficients`).
            action_start_id: Language-model id of `<ACTION_START>`.
            action_end_id: Language-model id of `<ACTION_END>`.
            first_action_id: Language-model id of `<ACTION_0>`; the others follow it.
            lm_vocab_size: Width of the logits, padding rows of the embedding included.

        Raises:
            ConfigError: The ids overlap or lie outside the vocabulary, or no token spells one coefficient.
        """
        lengths = np.asarray(token_lengths, dtype=np.int64)
        last = first_action_id + len(lengths) - 1
        if lengths.ndim != 1 or len(lengths) == 0 or lengths.min() != 1 or num_coefficients < 1:
            raise ConfigError("token_lengths must be positive and hold a 1, or a span could not be filled exactly")
        for name, token in (("action_start_id", action_start_id), ("action_end_id", action_end_id)):
            if not 0 <= token < lm_vocab_size or first_action_id <= token <= last:
                raise ConfigError(f"{name} is {token}: not in the vocabulary of {lm_vocab_size}, or an action token")
        if action_start_id == action_end_id or not 0 <= first_action_id <= last < lm_vocab_size:
            raise ConfigError(f"action tokens {first_action_id}..{last} do not fit a vocabulary of {lm_vocab_size}")
        self.num_coefficients = num_coefficients
        self.action_start_id = action_start_id
        self.action_end_id = action_end_id
        self.lengths: NDArray[np.int64] = np.zeros(lm_vocab_size, dtype=np.int64)
        """int64[lm_vocab_size], read-only: coefficients of each token, 0 for those that are no action token."""
        self.lengths[first_action_id : last + 1] = lengths
        self.lengths.flags.writeable = False
        left = np.arange(num_coefficients + 1)[:, None]
        self.table: NDArray[np.bool_] = np.ones((num_coefficients + 2, lm_vocab_size), dtype=np.bool_)
        """bool[num_coefficients + 2, lm_vocab_size], read-only: row r holds when r coefficients are left."""
        self.table[:-1] = (self.lengths > 0) & (self.lengths <= left)
        self.table[:-1, action_end_id] = left[:, 0] == 0
        self.table.flags.writeable = False

    def start(self) -> int:
        """Returns the state right after `<ACTION_START>`: every coefficient is left."""
        return self.num_coefficients

    def mask(self, remaining: int) -> NDArray[np.bool_]:
        """Returns the read-only bool[lm_vocab_size] of tokens that may come next; all True for `OUTSIDE`."""
        row: NDArray[np.bool_] = self.table[remaining]
        return row

    def advance(self, remaining: int, token: int) -> int:
        """Returns the state after a token; 0 left means that only `<ACTION_END>` may follow."""
        if token == self.action_start_id:
            return self.num_coefficients
        length = int(self.lengths[token])
        return remaining - length if 0 < length <= remaining else OUTSIDE

    def allowed(self, ids_so_far: Sequence[int]) -> NDArray[np.bool_] | None:
        """Returns the mask that follows a whole sequence of ids, or None when it does not end inside an action span."""
        if len(ids_so_far) == 0:
            return None
        remaining = int(self.mask_rows(np.asarray(ids_so_far, dtype=np.int64)[None])[0, -1])
        return None if remaining == OUTSIDE else self.mask(remaining)

    def mask_rows(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Returns the state after each token: int64[B, L], row of `table` that holds for the token that comes next.

        Args:
            ids: int[B, L] language-model ids.

        Raises:
            DataError: An id is outside the vocabulary, for example a label of -100.
        """
        ids_BL = np.asarray(ids, dtype=np.int64)
        if ids_BL.ndim != 2 or ((ids_BL < 0) | (ids_BL >= len(self.lengths))).any():
            raise DataError(
                f"ids must be int[B, L] in 0..{len(self.lengths) - 1}, found {ids_BL.dtype}{list(ids_BL.shape)}"
            )
        lengths_BL = self.lengths[ids_BL]
        is_start_BL = ids_BL == self.action_start_id
        place_L = np.arange(1, ids_BL.shape[1] + 1)
        # 1-based place of the latest start and of the latest token that can stand in no span; 0 for none so far.
        start_BL = np.maximum.accumulate(np.where(is_start_BL, place_L, 0), axis=1)
        breaker_BL = np.maximum.accumulate(np.where(is_start_BL | (lengths_BL > 0), 0, place_L), axis=1)
        spelled_BL = np.cumsum(lengths_BL, axis=1)
        # A start spells nothing and the total never falls: its latest value at a start is the largest so far.
        before_BL = np.maximum.accumulate(np.where(is_start_BL, spelled_BL, 0), axis=1)
        left_BL = self.num_coefficients - (spelled_BL - before_BL)
        return np.where((start_BL > breaker_BL) & (left_BL >= 0), left_BL, OUTSIDE)
