"""Differences between two ways to train, over several training seeds: what holds for these models, what for new ones.

Each seed gives a pair of models that were run on scenes of their own, the same ones for both. Two questions are kept
apart. *These models*: the scenes of all seeds are pooled, with Tango's interval and the exact McNemar test; nothing is
said about other seeds. *New training runs*: each seed gives one difference, which holds the noise of its scenes and of
its training, and the mean over seeds has a t interval. With few seeds their spread can come out far too small by
chance, so the standard error is never taken smaller than what the scenes alone explain, which is read off Tango's
interval (the idea is the modification of Hartung and Knapp's method by Roever, Knapp & Friede 2015). It is therefore
never the shorter one of the two intervals. `benchmarks/evidence.py` simulates the coverage of both intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.intervals import Interval, tango
from roboalign.sdk.evaluation.statistics import mcnemar_exact

__all__ = ["SeedDifference", "SeededDifference", "seeded_difference", "t_quantile", "t_tail"]

_BISECTIONS = 80
CONFIDENCE = 0.95
"""Coverage of every interval here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedDifference:
    """Two models of one training seed on the same scenes."""

    seed: int
    """Training seed."""
    num_pairs: int
    """Scenes that both were run on."""
    num_first: int
    """Scenes on which the first succeeds."""
    num_second: int
    """Scenes on which the second succeeds."""
    num_only_first: int
    """Scenes on which only the first succeeds."""
    num_only_second: int
    """Scenes on which only the second succeeds."""

    @property
    def difference(self) -> float:
        """Success rate of the first minus that of the second."""
        return (self.num_first - self.num_second) / self.num_pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class SeededDifference:
    """How much more often the first way to train succeeds than the second."""

    seeds: tuple[SeedDifference, ...]
    """Each training seed alone."""
    difference: float
    """Mean over the seeds of the difference of the success rates."""
    rate_second: float
    """Mean over the seeds of the success rate of the second."""
    interval: Interval | None
    """Interval for new training runs (scenes and seeds); None with a single seed, which says nothing about others."""
    p_value: float | None
    """Two-sided probability of the t statistic behind `interval` if both were equally good."""
    scene_interval: Interval
    """Tango's interval over the pooled scenes: these models only."""
    scene_p_value: float
    """Two-sided exact McNemar probability over the pooled scenes: these models only."""

    @property
    def num_pairs(self) -> int:
        """Paired episodes in all."""
        return sum(seed.num_pairs for seed in self.seeds)

    @property
    def relative(self) -> float:
        """The difference as a share of the second's success rate; infinite or NaN when that is 0."""
        if self.rate_second == 0.0:
            return math.copysign(math.inf, self.difference) if self.difference else math.nan
        return self.difference / self.rate_second

    @property
    def verdict(self) -> str:
        """`better`, `worse` (new training runs too), `better here`, `worse here` (these models), or `not separated`."""
        if self.interval is not None and (self.interval.low > 0.0 or self.interval.high < 0.0):
            return "better" if self.interval.low > 0.0 else "worse"
        if self.scene_p_value <= 1.0 - CONFIDENCE:
            if self.scene_interval.low > 0.0:
                return "better here"
            if self.scene_interval.high < 0.0:
                return "worse here"
        return "not separated"


def seeded_difference(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], seeds: Sequence[int]
) -> SeededDifference:
    """Compares two ways to train.

    Args:
        first: For each seed, success of the first on each of its scenes.
        second: The same for the second, scenes in the same order.
        seeds: The training seeds, in the same order.
    """
    if not seeds or not len(first) == len(second) == len(seeds):
        raise ConfigError(
            f"found {len(first)} and {len(second)} lists of episodes for {len(seeds)} seeds, expected one"
        )
    rows = tuple(_of_seed(*row) for row in zip(first, second, seeds, strict=True))
    differences = [row.difference for row in rows]
    mean = float(np.mean(differences))
    only_first, only_second = (sum(getattr(row, f"num_only_{who}") for row in rows) for who in ("first", "second"))
    scenes = tango(only_first, only_second, sum(row.num_pairs for row in rows), CONFIDENCE)
    interval, p_value = _over_seeds(differences, scenes)
    return SeededDifference(
        seeds=rows,
        difference=mean,
        rate_second=float(np.mean([row.num_second / row.num_pairs for row in rows])),
        interval=interval,
        p_value=p_value,
        scene_interval=scenes,
        scene_p_value=mcnemar_exact(only_first, only_second),
    )


def t_tail(t: float, degrees: int) -> float:
    """Returns the two-sided tail probability of Student's t with whole degrees of freedom.

    The finite series of Abramowitz & Stegun, 26.7.3 and 26.7.4.

    >>> round(t_tail(4.303, 2), 4)
    0.05
    """
    if degrees < 1:
        raise ConfigError(f"degrees of freedom is {degrees}, expected at least 1")
    angle = math.atan(abs(t) / math.sqrt(degrees))
    cosine, is_odd = math.cos(angle), degrees % 2 == 1
    term, total = (cosine if is_odd else 1.0), 0.0
    for k in range(1 if is_odd else 0, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    central = 2.0 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total
    return max(0.0, 1.0 - central)


def t_quantile(confidence: float, degrees: int) -> float:
    """Returns how many standard errors a two-sided t interval reaches to each side.

    >>> round(t_quantile(0.95, 2), 3)
    4.303
    """
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence is {confidence}, expected a number between 0 and 1")
    low, high = 0.0, 1.0
    while t_tail(high, degrees) > 1.0 - confidence:
        high *= 2.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if t_tail(middle, degrees) > 1.0 - confidence else (low, middle)
    return high


def _of_seed(first: Sequence[bool], second: Sequence[bool], seed: int) -> SeedDifference:
    if len(first) != len(second) or not first:
        raise ConfigError(
            f"seed {seed}: found {len(first)} and {len(second)} episodes, expected two lists of one length, not empty"
        )
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    return SeedDifference(
        seed=seed,
        num_pairs=len(one),
        num_first=int(one.sum()),
        num_second=int(other.sum()),
        num_only_first=int((one & ~other).sum()),
        num_only_second=int((other & ~one).sum()),
    )


def _over_seeds(differences: Sequence[float], scenes: Interval) -> tuple[Interval | None, float | None]:
    """Returns the t interval of the mean over seeds and its probability; None for a single seed."""
    num = len(differences)
    if num < 2:
        return None, None
    least = scenes.width / (2.0 * NormalDist().inv_cdf(0.5 + scenes.confidence / 2.0))
    mean, error = float(np.mean(differences)), max(float(np.std(differences, ddof=1)) / math.sqrt(num), least)
    half = t_quantile(CONFIDENCE, num - 1) * error
    interval = Interval(low=max(-1.0, mean - half), high=min(1.0, mean + half), confidence=CONFIDENCE)
    return interval, t_tail(mean / error, num - 1)
