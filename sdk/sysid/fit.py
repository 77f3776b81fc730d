"""Fits the reduced model to a recording: robust Levenberg-Marquardt from many beginnings at once.

Every joint has a fit of its own, all done at once. The cost is not smooth (a dead band holds or does not), so
derivatives are central differences over steps as large as what is asked to be told apart, and there are many
beginnings; `roboalign.sdk.sysid.posterior` finds out what is left open.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.sysid.model import PARAMETERS, JointModel
from roboalign.sdk.sysid.physics import Defect

__all__ = [
    "BOUNDS",
    "LOSSES",
    "NAMES",
    "STEPS",
    "Residuals",
    "Target",
    "best_of",
    "descend",
    "linearise",
    "search",
]

Float64Array = NDArray[np.float64]

BOUNDS = {
    "delay_ms": (0.0, 400.0),
    "gain": (0.1, 2.0),
    "speed_scale": (0.1, 1.0),
    "play_rad": (0.0, 0.1),
    "dead_band_rad": (0.0, 0.05),
}
"""Where parameters are looked for: what the randomisation allows."""

LOSSES = ("damping_nm_s_rad", "friction_nm")
"""What shows only when a motor has no torque left."""

NAMES = (*PARAMETERS, *LOSSES)
"""Everything that is fitted, in the order of all vectors here."""

STEPS = np.array([1.0, 0.04, 0.006, 0.0006, 0.0006, 0.05, 0.05])
"""What is asked to be told apart, in the order of `NAMES`."""

_BIAS_STEP_RAD = 1e-3
_DAMPINGS = (0.0, 1e-2, 1.0)
_HEAD_S = 15.0  # of the recording that is enough to look for a beginning
_HUBER = 3.0
_SHOWN_SCALE = 0.97
_START_DELAYS_MS = tuple(range(0, 401, 20))
_START_SCALES = (0.4, 0.6, 0.95)
_START_LATE_MS = (-5.0, 0.0, 5.0)
_START_PLAYS_RAD = (0.002, 0.007)
_START_BANDS_RAD = (0.0006, 0.0028)
_START_DAMPINGS = (0.03, 0.3)
_SEARCH_ROUNDS = 4
_FLAT = 1e12  # on the diagonal: this parameter stays where it is


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is to be explained, and by which model."""

    model: JointModel
    """Reduced model of the recording."""
    measured_rad: Float64Array
    """float64[K, J]."""
    weight: Float64Array
    """float64[K, J], 0 for readings that are not to count."""
    most_losses: Float64Array
    """float64[2, J], the largest damping and friction that there can be."""
    defect: Defect | None = None
    """What the model leaves out; None before it was measured."""

    def head(self) -> Target:
        """Returns the same for the beginning of the recording, which is faster."""
        count = int(np.searchsorted(self.model.read_s, self.model.read_s[0] + _HEAD_S))
        return dataclasses.replace(
            self,
            model=self.model.head(count),
            measured_rad=self.measured_rad[:count],
            weight=self.weight[:count],
            defect=None if self.defect is None else self.defect.head(count),
        )

    @property
    def low(self) -> Float64Array:
        """float64[P, 1], smallest values."""
        return np.array([*(BOUNDS[name][0] for name in PARAMETERS), 0.0, 0.0])[:, None]

    @property
    def high(self) -> Float64Array:
        """float64[P, J], largest values."""
        own = np.array([BOUNDS[name][1] for name in PARAMETERS])
        return np.concatenate([np.repeat(own[:, None], self.measured_rad.shape[1], 1), self.most_losses])

    def predict(self, variants: Float64Array) -> Float64Array:
        """Returns float64[K, V, J] for float64[V, P, J] in the order of `NAMES`, without the bias."""
        found = self.model.simulate(variants)
        if self.defect is not None:
            found += self.defect.offset_rad[:, None]
        return found

    def residuals(self, variants: Float64Array) -> Residuals:
        """Returns what each of float64[V, P, J] leaves unexplained."""
        return Residuals.of(self.measured_rad[:, None] - self.predict(variants), self.weight)


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """Measured minus simulated of V variants."""

    left_rad: Float64Array
    """float64[K, V, J], the bias taken off."""
    bias_rad: Float64Array
    """float64[V, J]."""
    scale_rad: Float64Array
    """float64[V, J], standard deviation by the middle half."""
    weight: Float64Array
    """float64[K, J], 0 for what does not count."""

    @classmethod
    def of(cls, residual: Float64Array, weight: Float64Array) -> Residuals:
        """Takes a robust mean off."""
        shown = weight[:: max(1, len(weight) // 1000)].min(1) > 0  # medians are slow
        some = residual[:: max(1, len(weight) // 1000)][shown]
        middle = np.median(some, 0)
        scale = 1.4826 * np.median(np.abs(some - middle), 0) + 1e-6
        residual = residual - middle
        total = weight.sum(0)
        near = np.clip(residual, -_HUBER * scale, _HUBER * scale)
        more = np.einsum("kj,kvj->vj", weight, near) / total
        residual -= more
        return cls(left_rad=residual, bias_rad=middle + more, scale_rad=scale, weight=weight)

    def costs(self, scale: Float64Array) -> Float64Array:
        """Returns float64[V, J], Huber's cost in units of `scale`, float64[J]."""
        size = np.abs(self.left_rad) / scale
        near = np.minimum(size, _HUBER)
        near *= size - 0.5 * near
        return np.asarray(np.einsum("kj,kvj->vj", self.weight, near))

    def huber(self, scale: Float64Array) -> Float64Array:
        """Returns float64[K, V, J], Huber's weights."""
        size = np.abs(self.left_rad) / scale
        return np.asarray(self.weight[:, None] * (_HUBER / np.maximum(size, _HUBER)))


def search(target: Target, say: Callable[[str], None]) -> Float64Array:
    """Returns float64[S, P, J], the best that many beginnings come to, the best first.

    Friction stays out of it at first: it can hide a wrong delay.
    """
    say("looking for a beginning")
    base = np.array([0.0, 0.85, 1.0, 0.002, 0.001, 0.0, 0.0])
    values = np.repeat(base[:, None], target.measured_rad.shape[1], 1)
    values = _grid(target, values, _START_DELAYS_MS, _START_SCALES)
    near = [tuple(values[row] + change for change in (-size, 0.0, size)) for row, size in ((0, 10.0), (2, 0.1))]
    values = _grid(target, values, *near)
    starts = []
    for late, play, band, damping in itertools.product(
        _START_LATE_MS, _START_PLAYS_RAD, _START_BANDS_RAD, _START_DAMPINGS
    ):
        start = values.copy()
        start[0] += late
        start[3:6] = np.array([play, band, damping])[:, None]
        starts.append(np.clip(start, target.low, target.high))
    smooth = dataclasses.replace(target, most_losses=target.most_losses * np.array([[1.0], [0.0]]))
    found = descend(smooth, np.clip(np.stack(starts), smooth.low, smooth.high), _SEARCH_ROUNDS, say)
    return best_of(target, found, len(found))


def _grid(
    target: Target,
    values: Float64Array,
    delays: Sequence[float | Float64Array],
    scales: Sequence[float | Float64Array],
) -> Float64Array:
    variants = []
    for delay, scale in itertools.product(delays, scales):
        variant = values.copy()
        variant[0], variant[2] = delay, scale
        variants.append(np.clip(variant, target.low, target.high))
    stacked = np.stack(variants)
    left = target.residuals(stacked).left_rad
    costs = (target.weight[:, None] * np.minimum(np.abs(left), 0.05)).sum(0)
    return np.asarray(np.take_along_axis(stacked, costs.argmin(0)[None, None], 0)[0])


def best_of(target: Target, values: Float64Array, count: int) -> Float64Array:
    """Returns the best `count` of float64[S, P, J] of each joint, the best first."""
    residuals = target.residuals(values)
    order = residuals.costs(residuals.scale_rad.min(0)).argsort(0)[:count]
    return np.take_along_axis(values, order[:, None], 0)


def descend(target: Target, values: Float64Array, rounds: int, say: Callable[[str], None]) -> Float64Array:
    """Returns float64[S, P, J] after some rounds of Levenberg-Marquardt; none gets worse."""
    values = values.copy()
    for number in range(rounds):
        residuals, jacobian = linearise(target, values)
        scale = residuals.scale_rad.min(0)
        best = residuals.costs(scale)
        tried = np.stack([_step(target, values, residuals, jacobian, factor) for factor in _DAMPINGS])
        found = target.residuals(tried.reshape(-1, *values.shape[1:])).costs(scale).reshape(len(tried), *best.shape)
        for candidate, cost in zip(tried, found, strict=True):
            is_better = cost < best
            values = np.where(is_better[:, None], candidate, values)
            best = np.minimum(best, cost)
        say(f"round {number + 1}: residuals of {np.degrees(scale.mean()):.3f} deg")
    return values


def linearise(target: Target, values: Float64Array) -> tuple[Residuals, Float64Array]:
    """Returns what float64[S, P, J] leave, and float64[S, J, K, P + 1], derivatives by parameters and bias in steps."""
    count, num_starts = len(NAMES), len(values)
    variants = np.repeat(values[None], 2 * count + 1, 0)
    for index in range(count):
        variants[2 * index + 1, :, index] = np.minimum(values[:, index] + STEPS[index], target.high[index])
        variants[2 * index + 2, :, index] = np.maximum(values[:, index] - STEPS[index], target.low[index])
    # No target is faster than the limit: near 1 a top speed changes nothing, and its derivative would be zero.
    scale = PARAMETERS.index("speed_scale")
    slower = variants[2 * scale + 2, :, scale]
    variants[2 * scale + 2, :, scale] = np.where(
        values[:, scale] > _SHOWN_SCALE, np.minimum(slower, _SHOWN_SCALE), slower
    )
    found = target.predict(variants.reshape(-1, *values.shape[1:]))
    found = found.reshape(len(found), 2 * count + 1, num_starts, -1).transpose(1, 2, 3, 0)
    jacobian = np.empty((num_starts, values.shape[2], found.shape[-1], count + 1))
    for index in range(count):
        width = (variants[2 * index + 1, :, index] - variants[2 * index + 2, :, index])[..., None]
        change = found[2 * index + 1] - found[2 * index + 2]
        jacobian[..., index] = np.where(width > 0, change / np.where(width > 0, width, 1.0), 0.0) * STEPS[index]
    jacobian[..., -1] = _BIAS_STEP_RAD
    return Residuals.of(target.measured_rad[:, None] - found[0].transpose(2, 0, 1), target.weight), jacobian


def _step(
    target: Target, values: Float64Array, residuals: Residuals, jacobian: Float64Array, damping: float
) -> Float64Array:
    """Returns the parameters after one step; what would leave its bounds stays at them."""
    normal, slope = _normal_equations(residuals, jacobian)
    here, low, high = (np.broadcast_to(item, values.shape) for item in (values, target.low, target.high))
    ahead = slope[..., :-1].transpose(0, 2, 1)
    is_stuck = ((here <= low) & (ahead < 0)) | ((here >= high) & (ahead > 0)) | (ahead == 0)
    diagonal = np.einsum("sjpp->sjp", normal)
    diagonal *= 1.0 + damping + 1e-9
    diagonal[..., :-1] += np.where(is_stuck.transpose(0, 2, 1), _FLAT, 1e-9)
    change = np.linalg.solve(normal, slope[..., None])[..., :-1, 0].transpose(0, 2, 1) * STEPS[:, None]
    return np.asarray(np.clip(values + change, target.low, target.high))


def _normal_equations(residuals: Residuals, jacobian: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Returns float64[S, J, P + 1, P + 1] and float64[S, J, P + 1] of the weighted least squares."""
    weight = residuals.huber(residuals.scale_rad.min(0)).transpose(1, 2, 0)
    weighted = (jacobian * weight[..., None]).swapaxes(2, 3)
    slope = weighted @ residuals.left_rad.transpose(1, 2, 0)[..., None]
    return weighted @ jacobian, slope[..., 0]
