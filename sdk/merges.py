"""Byte-pair merges over rows of small integers: learn them, and apply them to many rows at once.

All rows live in one flat array, each ended by `_BREAK`, so that one numpy pass handles every row and no merge crosses
from one row into the next. Applying the merges in order of rank gives what merging the lowest rank first gives row by
row, because a merge can only create pairs of a higher rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["apply_merges", "learn_merges"]

_IntArray = NDArray[np.int64]
_BREAK = -1


def learn_merges(rows: _IntArray, num_symbols: int, num_merges: int) -> tuple[tuple[int, int], ...]:
    """Returns the most frequent pairs, one after the other; of equally frequent ones the smallest.

    Args:
        rows: int64[N, L] symbols in `0 .. num_symbols - 1`.
        num_symbols: Size of the alphabet; merge r makes the symbol `num_symbols + r`.
        num_merges: Largest number of merges; fewer when no pair is left that occurs twice.
    """
    flat = _flatten(rows)
    merges: list[tuple[int, int]] = []
    while len(merges) < num_merges and len(flat) > 1:
        base = num_symbols + len(merges) + 1
        # Shifted by one, _BREAK is row and column 0 of the table of counts, which is then left out.
        counts = np.bincount((flat[:-1] + 1) * base + flat[1:] + 1, minlength=base * base).reshape(base, base)
        counts = counts[1:, 1:]
        left, right = divmod(int(counts.argmax()), base - 1)
        if counts[left, right] < 2:
            break
        flat = _merge(flat, left, right, base - 1)
        merges.append((left, right))
    return tuple(merges)


def apply_merges(rows: _IntArray, num_symbols: int, merges: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Returns the merged tokens of each of the int64[N, L] rows."""
    flat = _flatten(rows)
    for rank, (left, right) in enumerate(merges):
        flat = _merge(flat, left, right, num_symbols + rank)
    ends = np.flatnonzero(flat == _BREAK).tolist()
    tokens = flat.tolist()
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [tuple(tokens[start:end]) for start, end in zip(starts, ends, strict=True)]


def _flatten(rows: _IntArray) -> _IntArray:
    return np.concatenate([rows, np.full((len(rows), 1), _BREAK, rows.dtype)], axis=1).reshape(-1)


def _merge(flat: _IntArray, left: int, right: int, merged: int) -> _IntArray:
    """Returns `flat` with every pair (left, right) replaced, leftmost first where pairs overlap."""
    hits = np.flatnonzero((flat[:-1] == left) & (flat[1:] == right))
    if len(hits) == 0:
        return flat
    if left == right:
        # In a run of k adjacent hits only every second one is a pair of its own.
        run_starts = np.flatnonzero(np.diff(hits, prepend=-2) != 1)
        run_lengths = np.diff(run_starts, append=len(hits))
        hits = hits[(np.arange(len(hits)) - np.repeat(run_starts, run_lengths)) % 2 == 0]
    keep = np.ones(len(flat), dtype=bool)
    keep[hits + 1] = False
    flat = flat.copy()
    flat[hits] = merged
    return flat[keep]
