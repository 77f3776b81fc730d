"""Intervals of success rates and of differences between paired policies. Numpy and the standard library only.

The Wilson score interval holds the true rate in 95 of 100 repetitions on average over rates, but for rates near 0 and 1
far less often: with 10 or 20 episodes and a true rate of 3 % in only 89, with 5 episodes in 83. Where few episodes
succeed all its misses lie on one side, above the lower end that one, two or three successes give. Brown, Cai & DasGupta
(2001, section 4.1.1) lower those ends by a Poisson approximation; that leaves rates at which 91 of 100 hold. Here they
are lowered by exact enumeration of the binomial, and no further than needed: at most 8 of 100 repetitions miss, at any
rate and any number of episodes, and every other end is Wilson's own. `tests/sdk/evaluation/test_coverage.py` enumerates
the coverage of everything in this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError

__all__ = ["Interval", "bootstrap_mean", "success_interval", "tango", "wilson"]

MISSES_AT_MOST = 1.6
"""Largest share of repetitions that may miss the true rate, as a multiple of what was asked for: 8 % for 95 %."""
_CORRECTED_SUCCESSES = 64
"""Ends of more successes than this are Wilson's own: with more than 60 episodes only those of 1, 2 and 3 change."""
_BISECTIONS = 60
_FEWEST_IN_GROUP = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A closed interval, with the share of repetitions in which it would hold the true value."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    confidence: float = 0.95
    """Coverage that was asked for."""

    @property
    def width(self) -> float:
        """Upper minus lower end."""
        return self.high - self.low


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Returns the Wilson score interval of a success rate; (0, 1) when nothing was run.

    >>> interval = wilson(39, 50)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.648, 0.872)
    """
    _check(successes, n, confidence)
    if n == 0:
        return Interval(low=0.0, high=1.0, confidence=confidence)
    low = _wilson_lows(n, confidence)
    # At 0 and n the ends are exactly 0 and 1; rounding must not move them.
    return Interval(low=float(low[successes]), high=1.0 - float(low[n - successes]), confidence=confidence)


def success_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Returns the Wilson score interval, widened where few episodes succeed or fail; (0, 1) when nothing was run.

    Whatever the true rate, the share of repetitions in which the interval misses it is at most `MISSES_AT_MOST` times
    the one asked for; see the module's description.

    >>> success_interval(39, 50) == wilson(39, 50)
    True
    >>> round(wilson(1, 10).low, 3), round(success_interval(1, 10).low, 3)
    (0.018, 0.008)
    """
    _check(successes, n, confidence)
    if n == 0:
        return Interval(low=0.0, high=1.0, confidence=confidence)
    low = _corrected_lows(n, confidence)
    return Interval(low=float(low[successes]), high=1.0 - float(low[n - successes]), confidence=confidence)


def tango(num_only_first: int, num_only_second: int, n: int, confidence: float = 0.95) -> Interval:
    """Returns Tango's score interval (1998) of the difference between two success rates on the same `n` scenes.

    Counted are the scenes on which only the first, and only the second succeeds. A percentile bootstrap holds the
    difference far too seldom when they are few (20 scenes: in 90 of 100 repetitions on average, 33 at worst); this one
    in 96, 94 at worst.

    >>> interval = tango(8, 1, 50)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.028, 0.27)
    """
    if min(num_only_first, num_only_second) < 0 or num_only_first + num_only_second > n or n < 1:
        raise ConfigError(f"{num_only_first} and {num_only_second} disagreements on {n} scenes are not possible")
    z, difference = _z(confidence), (num_only_first - num_only_second) / n

    def solve(low: float, high: float, target: float) -> float:
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if _tango_score(num_only_first, num_only_second, n, middle) > target:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    low = -1.0 if difference <= -1.0 else solve(-1.0, difference, z)
    high = 1.0 if difference >= 1.0 else solve(difference, 1.0, -z)
    return Interval(low=low, high=high, confidence=confidence)


def bootstrap_mean(
    values: Sequence[float],
    groups: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Returns the percentile bootstrap interval of a mean; the same `seed` gives the same interval.

    Args:
        values: One number for each episode; of paired policies, their difference.
        groups: The task of each episode: episodes are then redrawn within their task, because the tasks are fixed and
            not drawn. Where a task has fewer than `_FEWEST_IN_GROUP` episodes all are redrawn together: resamples of
            one or two would be alike, and the interval too short.
        confidence: Coverage asked for. With fewer than about 30 values it is not reached.
        num_resamples: Resamples.
        seed: Of the resampling.
    """
    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise ConfigError("there is nothing to draw from: the mean of no episodes has no interval")
    names = np.asarray(groups if groups is not None else [""] * array.size)
    if names.shape != array.shape:
        raise ConfigError(f"found {array.size} values and {names.size} groups, expected one group for each value")
    if min(np.unique(names, return_counts=True)[1]) < _FEWEST_IN_GROUP:
        names = np.full(array.shape, "")
    rng = np.random.default_rng(seed)
    totals = np.zeros(num_resamples)
    for name in dict.fromkeys(names.tolist()):
        # A resample holds multinomially many of each distinct value: the same distribution as drawing indices.
        found, counts = np.unique(array[names == name], return_counts=True)
        drawn = rng.multinomial(int(counts.sum()), counts / counts.sum(), size=num_resamples)
        totals += drawn @ found
    low, high = np.quantile(totals / array.size, [0.5 - confidence / 2.0, 0.5 + confidence / 2.0])
    return Interval(low=float(low), high=float(high), confidence=confidence)


def _check(successes: int, n: int, confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence is {confidence}, expected a number between 0 and 1")
    if n < 0 or not 0 <= successes <= n:
        raise ConfigError(f"{successes} successes of {n} episodes is not possible")


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2.0)


def _wilson_lows(n: int, confidence: float) -> NDArray[np.float64]:
    """Returns float64[n + 1], the lower end for each number of successes; the upper ends are its mirror image."""
    z, successes = _z(confidence), np.arange(n + 1, dtype=np.float64)
    rate = successes / n
    half = z * np.sqrt(rate * (1.0 - rate) / n + z * z / (4.0 * n * n))
    low = np.maximum(0.0, (rate + z * z / (2.0 * n) - half) / (1.0 + z * z / n))
    low[0] = 0.0
    return low


@lru_cache(maxsize=256)
def _corrected_lows(n: int, confidence: float) -> NDArray[np.float64]:
    """Returns `_wilson_lows`, each lowered until the coverage just below it is large enough."""
    low = _wilson_lows(n, confidence)
    floor = 1.0 - MISSES_AT_MOST * (1.0 - confidence)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    for successes in range(1, min(n, _CORRECTED_SUCCESSES) + 1):
        low[successes] = _lowered(low, successes, floor, log_factorial)
    low.setflags(write=False)
    return low


def _lowered(low: NDArray[np.float64], successes: int, floor: float, log_factorial: NDArray[np.float64]) -> float:
    """Returns the largest rate at which the coverage is at least `floor` without this number of successes."""
    n, high = len(low) - 1, 1.0 - low[::-1]
    bottom, top = float(low[successes - 1]), float(low[successes])

    def coverage(rate: float) -> float:
        first = int(np.searchsorted(high, rate))
        count = np.arange(first, successes)
        logs = log_factorial[n] - log_factorial[count] - log_factorial[n - count]
        return float(np.exp(logs + count * math.log(rate) + (n - count) * math.log1p(-rate)).sum())

    # Between two upper ends the coverage falls with the rate; at an upper end it jumps.
    cuts = [bottom, *(float(end) for end in high if bottom < end < top), top]
    for start, end in zip(cuts[-2::-1], cuts[:0:-1], strict=True):
        if coverage(end * (1.0 - 1e-12)) >= floor:
            return end
        inside, outside = start, end
        for _ in range(_BISECTIONS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if coverage(middle) >= floor else (inside, middle)
        if inside > start:
            return inside
    return bottom


def _tango_score(num_only_first: int, num_only_second: int, n: int, difference: float) -> float:
    """Returns the score statistic of a hypothetical difference; it falls with the difference."""
    b = -num_only_first - num_only_second + (2 * n - num_only_first + num_only_second) * difference
    c = -num_only_second * difference * (1.0 - difference)
    only_second = (math.sqrt(max(0.0, b * b - 8.0 * n * c)) - b) / (4.0 * n)
    variance = n * (2.0 * only_second + difference * (1.0 - difference))
    distance = num_only_first - num_only_second - n * difference
    if variance <= 1e-15:
        return 0.0 if abs(distance) < 1e-9 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)
