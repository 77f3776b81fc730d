"""Statistics of evaluations: paired comparisons, percentiles. Numpy and the standard library only.

Success is a yes or no per scene, and two policies are compared on the same scenes, so the exact McNemar test and
Tango's score interval are used (`intervals.py`). No correction for looking at a running evaluation is made: fix the
number of episodes beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.intervals import Interval, bootstrap_mean, tango

__all__ = ["PairedDifference", "Summary", "holm", "mcnemar_exact", "paired_difference", "summarize"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """How much more often the first policy succeeds than the second, on the same scenes."""

    difference: float
    """Success rate of the first minus success rate of the second."""
    interval: Interval
    """Tango's score interval of the difference, good from about ten scenes on."""
    bootstrap: Interval
    """Percentile bootstrap interval, scenes redrawn within their task; too short with fewer than about 100 scenes."""
    num_pairs: int
    """Scenes that both policies were run on."""
    num_only_first: int
    """Scenes on which only the first succeeds."""
    num_only_second: int
    """Scenes on which only the second succeeds."""
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


def mcnemar_exact(num_only_first: int, num_only_second: int) -> float:
    """Returns the two-sided exact McNemar probability for the two counts of scenes on which the policies disagree.

    >>> mcnemar_exact(0, 5)
    0.0625
    """
    if num_only_first < 0 or num_only_second < 0:
        raise ConfigError(f"counts must not be negative, found {num_only_first} and {num_only_second}")
    num = num_only_first + num_only_second
    tail = sum(math.comb(num, k) for k in range(min(num_only_first, num_only_second) + 1))
    return min(1.0, (2 * tail) / (1 << num))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Returns the probabilities adjusted by Holm's method for having made that many comparisons.

    >>> holm([0.01, 0.2, 0.03])
    (0.03, 0.2, 0.06)
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def paired_difference(
    first: Sequence[bool],
    second: Sequence[bool],
    groups: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Compares two policies run on the same scenes in the same order; the same `seed` gives the same intervals.

    `groups` names the task of each scene, within which the bootstrap redraws.
    """
    if len(first) != len(second) or not first:
        raise ConfigError(
            f"a paired comparison needs two lists of one length, found {len(first)} and {len(second)} episodes"
        )
    difference_n = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    only_first, only_second = int((difference_n > 0).sum()), int((difference_n < 0).sum())
    return PairedDifference(
        difference=float(difference_n.mean()),
        interval=tango(only_first, only_second, len(difference_n), confidence),
        bootstrap=bootstrap_mean(
            difference_n.tolist(), groups, confidence=confidence, num_resamples=num_resamples, seed=seed
        ),
        num_pairs=len(difference_n),
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
