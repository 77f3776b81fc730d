"""What the data leave open: a crowd of parameters, moved until it stands as thick as they are likely.

A dead band and the encoder's steps cut the cost into cells, so that a curvature at one point says little. The crowd is
moved by differential evolution (ter Braak, Statistics and Computing 16, 2006, eq. 2, with its long jumps) and by
throws from a Student distribution around it, each accepted by Metropolis' rule. Bounds are walls; the prior is flat.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.sysid.fit import NAMES, STEPS, Target

__all__ = ["CROWD", "WIDE_CROWD", "Crowd", "gather", "settle", "settle_moving"]

Float64Array = NDArray[np.float64]

CROWD = 96
"""How many there are in a crowd."""

WIDE_CROWD = 144
"""How many look for the hill that the crowd will stand on."""

_AROUND = {"delay_ms": 10.0, "speed_scale": 0.06}  # of the best beginning
_WITHIN = ((0.0, 0.0), (0.4, 1.3), (0.0, 0.0), (0.0, 0.012), (0.0, 0.005), (0.0, 0.6), (0.0, 0.05))  # of the others
_JUMP = 2.38 / np.sqrt(2 * len(NAMES))
_LONG_SHARE = 0.1  # of jumps from one hill to another
_JITTER = 0.02  # of STEPS, so that no two stand alike
_FREEDOM = 6.0  # of the Student distribution
_LEAST_MOVED, _HOTTER, _MOST_TRIES = 0.15, 3.0, 4


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """V sets of parameters a joint, with what they cost."""

    values: Float64Array
    """float64[V, P, J]."""
    bias_rad: Float64Array
    """float64[V, J], of each."""
    cost: Float64Array
    """float64[V, J], minus the log likelihood, but for heat."""

    @classmethod
    def at(cls, target: Target, values: Float64Array, scale_rad: Float64Array) -> Crowd:
        """Returns float64[V, P, J] with their costs under a noise of float64[J]."""
        residuals = target.residuals(values)
        return cls(values=values, bias_rad=residuals.bias_rad, cost=residuals.costs(scale_rad))

    @classmethod
    def together(cls, many: list[Crowd]) -> Crowd:
        """Returns several as one."""
        return cls(
            values=np.concatenate([item.values for item in many]),
            bias_rad=np.concatenate([item.bias_rad for item in many]),
            cost=np.concatenate([item.cost for item in many]),
        )

    def picked(self, order: NDArray[np.int64]) -> Crowd:
        """Returns those with these numbers, int64[W, J]."""
        return Crowd(
            values=np.take_along_axis(self.values, order[:, None], 0),
            bias_rad=np.take_along_axis(self.bias_rad, order, 0),
            cost=np.take_along_axis(self.cost, order, 0),
        )

    def moved(self, other: Crowd, is_taken: NDArray[np.bool_]) -> Crowd:
        """Returns the same with some of another's in their places, bool[V, J]."""
        return Crowd(
            values=np.where(is_taken[:, None], other.values, self.values),
            bias_rad=np.where(is_taken, other.bias_rad, self.bias_rad),
            cost=np.where(is_taken, other.cost, self.cost),
        )

    def centre(self, target: Target, scale_rad: Float64Array) -> Float64Array:
        """Returns float64[P, J], the mean, or the best where the mean lies between hills."""
        mean = self.values.mean(0)
        is_between = Crowd.at(target, mean[None], scale_rad).cost[0] > self.cost.mean(0)
        return np.asarray(np.where(is_between, self.picked(self.cost.argmin(0)[None]).values[0], mean))


def gather(target: Target, values: Float64Array, rng: np.random.Generator) -> Float64Array:
    """Returns float64[V, P, J]: float64[S, P, J], the best first, and many wide around the best of them."""
    best = values[0]
    around = np.array([_AROUND.get(name, 0.0) for name in NAMES])[:, None]
    low = np.where(around > 0, best - around, np.array(_WITHIN)[:, :1])
    high = np.where(around > 0, best + around, np.array(_WITHIN)[:, 1:])
    drawn = low + (high - low) * rng.random((WIDE_CROWD - len(values), *best.shape))
    return np.concatenate([values, _inside(target, drawn)])


def settle(
    target: Target, values: Float64Array, heats: Float64Array, scale_rad: Float64Array, rng: np.random.Generator
) -> list[Crowd]:
    """Returns a crowd after every round.

    Args:
        target: What to explain.
        values: float64[V, P, J], where the crowd begins.
        heats: float64[R, J], by which log likelihoods are divided in each round.
        scale_rad: float64[J], noise of one reading.
        rng: Draws.
    """
    crowds = [Crowd.at(target, values, scale_rad)]
    for number, heat in enumerate(heats):
        crowd = crowds[-1]
        if number == 0 or (heat < heats[number - 1]).any():
            crowd = _cleared(crowd, heat, rng)
        trial, correction = (_throw if number % 2 else _evolve)(target, crowd.values, rng)
        tried = Crowd.at(target, trial, scale_rad)
        gain = (crowd.cost - tried.cost) / heat + correction
        crowds.append(crowd.moved(tried, np.log(rng.random(gain.shape)) < gain))
    return crowds[1:]


def settle_moving(
    target: Target,
    values: Float64Array,
    heats: Float64Array,
    scale_rad: Float64Array,
    rng: np.random.Generator,
    *,
    kept: int,
) -> list[Crowd]:
    """Returns what `settle` does, hotter for joints whose crowd stands still in the last `kept` rounds.

    Cells that are narrower than any jump hold a crowd in one place. That says nothing about what is possible, and the
    interval would have no width.
    """
    crowds = settle(target, values, heats, scale_rad, rng)
    for _ in range(_MOST_TRIES):
        is_stuck = _share_moved(crowds[-kept:]) < _LEAST_MOVED
        if not is_stuck.any():
            break
        heats = np.where(is_stuck, _HOTTER * heats, heats)
        crowds = settle(target, values, heats, scale_rad, rng)
    return crowds


def _share_moved(crowds: list[Crowd]) -> Float64Array:
    """Returns float64[J], the share of a crowd that moves in a round."""
    pairs = itertools.pairwise(crowds)
    return np.asarray(np.mean([(after.values != before.values).any(1).mean(0) for before, after in pairs], axis=0))


def _cleared(crowd: Crowd, heat: Float64Array, rng: np.random.Generator) -> Crowd:
    """Puts likely ones in the place of those who are far too unlikely at this heat."""
    count = len(crowd.cost)
    weight = np.exp(-(crowd.cost - crowd.cost.min(0)) / (2.0 * heat))
    edges = np.cumsum(weight, 0) / weight.sum(0)
    places = (np.arange(count)[:, None] + rng.random(crowd.cost.shape[1])) / count
    columns = [np.searchsorted(edges[:, joint], places[:, joint]) for joint in range(crowd.cost.shape[1])]
    return crowd.picked(np.minimum(np.stack(columns, 1), count - 1))


def _evolve(target: Target, values: Float64Array, rng: np.random.Generator) -> tuple[Float64Array, Float64Array]:
    """Returns jumps along the difference of two others, and that nothing has to be made up for."""
    count, _, joints = values.shape
    first = rng.integers(1, count, (count, joints))
    second = 1 + (first - 1 + rng.integers(1, count - 1, (count, joints))) % (count - 1)
    own = np.arange(count)[:, None]
    one, other = (np.take_along_axis(values, (own + item)[:, None] % count, 0) for item in (first, second))
    sizes = (count, 1, joints)
    size = np.where(rng.random(sizes) < _LONG_SHARE, 1.0, _JUMP * rng.uniform(0.4, 1.0, sizes))
    jitter = _JITTER * STEPS[:, None] * rng.standard_normal(values.shape)
    return _inside(target, values + size * (one - other) + jitter), np.zeros((count, joints))


def _throw(target: Target, values: Float64Array, rng: np.random.Generator) -> tuple[Float64Array, Float64Array]:
    """Returns throws around the whole crowd, and the logarithm of what makes up for their shape."""
    count, _, joints = values.shape
    trial, correction = values.copy(), np.empty((count, joints))
    is_free = np.broadcast_to(target.high > target.low, values.shape[1:])
    for joint in range(joints):
        free = is_free[:, joint]
        mine, size = values[:, free, joint], int(free.sum())
        root = np.linalg.cholesky(np.cov(mine.T) + np.diag((_JITTER * STEPS[free]) ** 2))
        drawn = rng.standard_normal((count, size)) / np.sqrt(rng.chisquare(_FREEDOM, (count, 1)) / _FREEDOM)
        here = (np.linalg.solve(root, (mine - mine.mean(0)).T) ** 2).sum(0)
        trial[:, free, joint] = mine.mean(0) + drawn @ root.T
        there = (drawn**2).sum(1)
        correction[:, joint] = 0.5 * (_FREEDOM + size) * (np.log1p(there / _FREEDOM) - np.log1p(here / _FREEDOM))
    is_out = ((trial < target.low) | (trial > target.high)).any(1)
    return np.clip(trial, target.low, target.high), np.where(is_out, -np.inf, correction)


def _inside(target: Target, values: Float64Array) -> Float64Array:
    """Lets what would leave the bounds bounce off them."""
    values = target.low + np.abs(values - target.low)
    return np.clip(target.high - np.abs(target.high - values), target.low, target.high)
