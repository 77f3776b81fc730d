"""Statistics of success rates: intervals, paired comparisons, percentiles. Numpy and the standard library only.

Success is a yes or no per seed, and two policies are compared on the same seeds, so the exact McNemar test and a paired
bootstrap are used. No correction for looking at a running evaluation is made: fix the number of episodes beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from roboalign.sdk.errors import ConfigError

__all__ = ["Interval", "PairedDifference", "Summary", "mcnemar_exact", "paired_difference", "summarize", "wilson"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A closed interval, with the share of repetitions in which it would hold the true value."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    confidence: float = 0.95
    """Coverage that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """How much more often the first policy succeeds than the second, on the same seeds."""

    difference: float
    """Success rate of the first minus success rate of the second."""
    interval: Interval
    """Percentile bootstrap interval of the difference, seeds drawn with replacement."""
    num_pairs: int
    """Seeds that both policies were run on."""
    num_only_first: int
    """Seeds on which only the first succeeds."""
    num_only_second: int
    """Seeds on which only the second succeeds."""
    p_value: float
    """Two-sided exact McNemar probability of a split at least this uneven if both were equally good."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Mean and percentiles of a list of numbers; every figure is NaN when the list is empty."""

    num: int
    """How many numbers there were."""
    mean: float
    """Arithmetic mean."""
    p50: float
    """Median."""
    p95: float
    """95th percentile, linear interpolation."""
    p99: float
    """99th percentile, linear interpolation."""
    max: float
    """Largest."""


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Returns the Wilson score interval of a success rate; (0, 1) when nothing was run.

    >>> interval = wilson(39, 50)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.648, 0.872)
    """
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence is {confidence}, expected a number between 0 and 1")
    if n < 0 or not 0 <= successes <= n:
        raise ConfigError(f"{successes} successes of {n} episodes is not possible")
    if n == 0:
        return Interval(low=0.0, high=1.0, confidence=confidence)
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1.0 - rate) / n + z * z / (4.0 * n * n))
    scale = 1.0 + z * z / n
    # At 0 and n the ends are exactly 0 and 1; rounding must not move them.
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + half) / scale)
    return Interval(low=low, high=high, confidence=confidence)


def mcnemar_exact(num_only_first: int, num_only_second: int) -> float:
    """Returns the two-sided exact McNemar probability for the two counts of seeds on which the policies disagree.

    >>> mcnemar_exact(0, 5)
    0.0625
    """
    if num_only_first < 0 or num_only_second < 0:
        raise ConfigError(f"counts must not be negative, found {num_only_first} and {num_only_second}")
    num = num_only_first + num_only_second
    tail = sum(math.comb(num, k) for k in range(min(num_only_first, num_only_second) + 1))
    return min(1.0, (2 * tail) / (1 << num))


def paired_difference(
    first: Sequence[bool],
    second: Sequence[bool],
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Compares two policies run on the same seeds in the same order; the same `seed` gives the same interval."""
    if len(first) != len(second) or not first:
        raise ConfigError(
            f"a paired comparison needs two lists of one length, found {len(first)} and {len(second)} episodes"
        )
    difference_n = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    num = len(difference_n)
    only_first, only_second = int((difference_n > 0).sum()), int((difference_n < 0).sum())
    # A resample of n seeds holds multinomially many wins, losses and ties: the same distribution as drawing indices.
    shares = np.array([only_first, only_second, num - only_first - only_second], dtype=np.float64) / num
    counts = np.random.default_rng(seed).multinomial(num, shares, size=num_resamples)
    means = (counts[:, 0] - counts[:, 1]) / num
    low, high = np.quantile(means, [0.5 - confidence / 2.0, 0.5 + confidence / 2.0])
    return PairedDifference(
        difference=float(difference_n.mean()),
        interval=Interval(low=float(low), high=float(high), confidence=confidence),
        num_pairs=num,
        num_only_first=only_first,
        num_only_second=only_second,
        p_value=mcnemar_exact(only_first, only_second),
    )


def summarize(values: Sequence[float]) -> Summary:
    """Returns mean, median, tail percentiles and maximum of finite numbers.

    >>> summarize([1.0, 2.0, 3.0]).p50
    2.0
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return Summary(num=0, mean=math.nan, p50=math.nan, p95=math.nan, p99=math.nan, max=math.nan)
    p50, p95, p99 = np.percentile(array, [50, 95, 99])
    return Summary(
        num=int(array.size),
        mean=float(array.mean()),
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        max=float(array.max()),
    )
