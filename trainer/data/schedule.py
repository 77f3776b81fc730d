"""Which source, and which of its rows, is the i-th sample of a run: exact, and without looking at the samples before.

Sources are taken in turns by the rule of the earliest deadline: the c-th sample of a source with share p is due between
(c - 1) / p and c / p. Whatever number of samples is drawn from the start, every source was then drawn its share of it
to within one sample (R. Tijdeman, The chairman assignment problem, 1980). The turns repeat after a period, at the end
of which the shares are exact; a share that would need a longer period than `MAX_PERIOD` is rounded to that many parts.

Within a source the rows are permuted anew for every pass, and none comes twice before all came once.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.trainer.data.mixture import check_shares

__all__ = ["MAX_PERIOD", "Draw", "Schedule", "parts_of", "turns"]

MAX_PERIOD = 100_000
"""Draws after which the turns repeat at the latest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """One sample of a run."""

    source: str
    """Whose turn it is."""
    row: int
    """Which of its rows."""
    number: int
    """How many samples were drawn from the source before."""


class Schedule:
    """The samples of a run: a pure function of seed, shares, sizes and the number of the sample.

    Args:
        shares: Weight of each source.
        sizes: Rows of each source.
        seed: Seed of the permutations.

    Raises:
        ConfigError: a weight is negative, or all are zero.
        DataError: a source that is wanted is empty.
    """

    def __init__(self, shares: Mapping[str, float | Fraction], sizes: Mapping[str, int], *, seed: int) -> None:
        check_shares("the weights", shares)
        self.parts = parts_of({name: share for name, share in shares.items() if share > 0})
        for name in self.parts:
            if sizes[name] < 1:
                raise DataError(f"the source {name!r} is empty, expected at least one sample; leave it out or fill it")
        self._names = tuple(self.parts)
        self._sizes = [sizes[name] for name in self._names]
        self._seed = seed
        self._turn = turns(tuple(self.parts.values()))
        self._rank = np.zeros(len(self._turn), np.int64)
        for index in range(len(self._names)):
            places = np.flatnonzero(self._turn == index)
            self._rank[places] = np.arange(len(places))

    @property
    def period(self) -> int:
        """Draws after which every share is exact."""
        return len(self._turn)

    def at(self, number: int) -> Draw:
        """Returns the sample with this number, counted from 0."""
        if number < 0:
            raise ConfigError(f"sample {number} was asked for, expected 0 or more")
        lap, place = divmod(number, self.period)
        index = int(self._turn[place])
        count = lap * self.parts[self._names[index]] + int(self._rank[place])
        turn, position = divmod(count, self._sizes[index])
        order = _order(self._seed, self._names[index], turn, self._sizes[index])
        return Draw(source=self._names[index], row=int(order[position]), number=count)


@lru_cache(maxsize=32)
def _order(seed: int, name: str, turn: int, size: int) -> NDArray[np.int64]:
    """The rows of a source in the order of one pass; kept, because neighbours are mostly of the same pass."""
    return np.random.default_rng((seed, zlib.crc32(name.encode()), turn)).permutation(size)


def parts_of(shares: Mapping[str, float | Fraction]) -> dict[str, int]:
    """Returns whole numbers in the ratio of the shares: exactly, or to one part in `MAX_PERIOD`.

    >>> parts_of({"vqa": 0.1, "reason": 0.35, "action": 0.55})
    {'vqa': 2, 'reason': 7, 'action': 11}
    """
    exact = {name: Fraction(str(share)) for name, share in shares.items()}
    scale = lcm(*(share.denominator for share in exact.values()))
    whole = {name: int(share * scale) for name, share in exact.items()}
    common = gcd(*whole.values())
    whole = {name: count // common for name, count in whole.items()}
    total = sum(whole.values())
    if total <= MAX_PERIOD:
        return whole
    # The largest remainders are rounded up; no source is rounded away.
    ideal = {name: Fraction(count * MAX_PERIOD, total) for name, count in whole.items()}
    parts = {name: max(1, int(share)) for name, share in ideal.items()}
    by_need = sorted(ideal, key=lambda name: parts[name] - ideal[name])
    for name in by_need[: max(0, MAX_PERIOD - sum(parts.values()))]:
        parts[name] += 1
    return parts


def turns(parts: Sequence[int]) -> NDArray[np.int64]:
    """Returns int64[sum(parts)]: whose turn it is; after any n turns, source j had n parts[j] / sum(parts) to within 1.

    >>> turns((2, 1)).tolist()
    [0, 0, 1]
    """
    period = sum(parts)
    order = np.zeros(period, np.int64)
    waiting = [(0, index) for index in range(len(parts))]  # (first turn that is not too early, source)
    ready: list[tuple[int, int]] = []  # (last turn that is not too late, source)
    counts = [0] * len(parts)
    for turn in range(period):
        while waiting and waiting[0][0] <= turn:
            _, index = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(counts[index] + 1) * period // parts[index]) - 1, index))
        _, index = heapq.heappop(ready)
        order[turn] = index
        counts[index] += 1
        if counts[index] < parts[index]:
            heapq.heappush(waiting, (counts[index] * period // parts[index], index))
    return order
