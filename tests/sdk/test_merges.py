"""Byte-pair merges: the fast version over one flat array does what the plain one does row by row."""

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from roboalign.sdk.merges import apply_merges, learn_merges

SYMBOLS = 3
rows_of_symbols = arrays(
    np.int64, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, SYMBOLS - 1)
)


def merge_row(row: list[int], pair: tuple[int, int], merged: int) -> list[int]:
    result: list[int] = []
    while row:
        hit = tuple(row[:2]) == pair
        result.append(merged if hit else row[0])
        row = row[2 if hit else 1 :]
    return result


def merge_plainly(rows: list[list[int]], num_merges: int) -> tuple[list[tuple[int, int]], list[tuple[int, ...]]]:
    merges: list[tuple[int, int]] = []
    while len(merges) < num_merges:
        counts = Counter(pair for row in rows for pair in pairwise(row))
        if not counts or max(counts.values()) < 2:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        rows = [merge_row(row, pair, SYMBOLS + len(merges)) for row in rows]
        merges.append(pair)
    return merges, [tuple(row) for row in rows]


@given(rows_of_symbols, st.integers(0, 6))
def test_learning_and_applying_equal_the_plain_algorithm(rows, num_merges):
    merges, merged = merge_plainly(rows.tolist(), num_merges)
    assert list(learn_merges(rows, SYMBOLS, num_merges)) == merges
    assert apply_merges(rows, SYMBOLS, merges) == merged


@given(rows_of_symbols, rows_of_symbols)
def test_a_row_does_not_depend_on_its_neighbours(rows, others):
    merges = learn_merges(others, SYMBOLS, 6)
    together = apply_merges(rows, SYMBOLS, merges)
    assert together == [apply_merges(row[None], SYMBOLS, merges)[0] for row in rows]
