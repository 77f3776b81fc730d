"""Fits the reduced model to a recording: robust Levenberg-Marquardt with the model itself as its Jacobian.

Every joint has a fit of its own, all done at once. The cost is not smooth (a dead band holds or does not), so
derivatives are central differences over steps as large as what is asked to be told apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.sysid.model import PARAMETERS, JointModel
from roboalign.sdk.sysid.physics import Defect

__all__ = ["BOUNDS", "LOSSES", "NAMES", "JointFit", "Target", "fit_joints"]

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

_STEPS = np.array([1.0, 0.04, 0.006, 0.0006, 0.0006, 0.05, 0.05])  # of the differences, in the order of NAMES
_BIAS_STEP_RAD = 1e-3
_DAMPINGS = (0.0, 1e-2, 1.0)
_MAX_ROUNDS, _FEW_ROUNDS = 8, 3
_WIDE, _NARROW = (20, 120, 6.0), (60, 1.0)  # generations, throws in each, and how wide the first is
_STARTS = ((0.55, 0.008, 0.003), (0.9, 0.003, 0.001), (0.8, 0.001, 0.004))  # gain, play, dead band
_HEAD_S = 14.0  # of the recording that is enough to look for a beginning
_SPREAD = np.array([0.7, 0.08, 0.004, 0.0012, 0.0012, 0.05, 0.03])  # of a first throw, in the order of NAMES
_DONE = 2e-4  # relative gain of a round below which a joint is done
_HUBER = 3.0
_START_DELAYS_MS = tuple(range(0, 401, 20))
_START_SCALES = (0.4, 0.6, 0.95)
_SHOWN_SCALE = 0.97
_START_BANDS_RAD = (0.0, 0.001, 0.002, 0.0035, 0.006)
_START_PLAYS_RAD = (0.0, 0.003, 0.008)
_MAX_LAG = 40


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
        return found if self.defect is None else found + self.defect.offset_rad[:, None]


@dataclass(frozen=True, kw_only=True)
class JointFit:
    """What was found; `P` parameters in the order of `PARAMETERS`, then the bias."""

    values: Float64Array
    """float64[P, J]."""
    bias_rad: Float64Array
    """float64[J], mean of measured minus simulated."""
    covariance: Float64Array
    """float64[J, P + 1, P + 1], inflated by the autocorrelation of the residuals."""
    residual_rad: Float64Array
    """float64[K, J], measured minus simulated, the bias taken off."""
    predicted_rad: Float64Array
    """float64[K, J], simulated with the bias."""
    std_rad: Float64Array
    """float64[J], of the residuals that count."""
    weight: Float64Array
    """float64[K, J], 1 for readings that count, 0 for those that were left out."""
    inflation: Float64Array
    """float64[J], by which correlated residuals widen the variance."""


def fit_joints(
    target: Target,
    *,
    start: Float64Array | None = None,
    generations: int = 8,
    is_wide: bool = False,
    progress: Callable[[str], None] | None = None,
) -> JointFit:
    """Returns the parameters under which the model moves as was measured.

    Args:
        target: What to explain.
        start: float64[P, J] to begin from; None looks for it.
        generations: How often it looks around for something better near by.
        is_wide: Looks further away too, before everything else; always so without a start.
        progress: Told what is done.
    """
    say = progress or (lambda text: None)
    if start is None:
        say("looking for a beginning")
    values = _search(target.head()) if start is None else start.copy()
    if start is None or is_wide:
        values = _start(target.head(), values, say)
    values = _descend(target, values, say, _MAX_ROUNDS if start is None else _FEW_ROUNDS)
    if generations:
        values = _descend(target, _scatter(target, values, (generations, *_NARROW), say), say, _FEW_ROUNDS)
    return _conclude(target, values)


def _start(target: Target, values: Float64Array, say: Callable[[str], None]) -> Float64Array:
    """Returns the best, joint by joint, of what wide throws around several beginnings come to."""
    found = []
    for gain, play, band in _STARTS:
        variant = values.copy()
        variant[PARAMETERS.index("gain")] = gain
        variant[PARAMETERS.index("play_rad")] = play
        variant[PARAMETERS.index("dead_band_rad")] = band
        found.append(_scatter(target, variant, _WIDE, say))
    stacked = np.stack(found)
    left = target.measured_rad[:, None] - target.predict(stacked)
    left -= (target.weight[:, None] * left).sum(0) / target.weight.sum(0)
    scale = 1.4826 * np.median(np.abs(left), 0).min(0) + 1e-6
    costs = _cost(left, scale, target.weight[:, None])
    return np.asarray(np.take_along_axis(stacked, costs.argmin(0)[None, None], 0)[0])


def _scatter(
    target: Target, values: Float64Array, how: tuple[int, int, float], say: Callable[[str], None]
) -> Float64Array:
    """Returns something better near by, found by throwing: a dead band makes hills that no derivative sees.

    The cross-entropy method: each generation is drawn from a normal distribution around the best of the last one.
    """
    generations, thrown, width = how
    rng = np.random.default_rng(0)
    elite_count = thrown // 6
    joints, moved = values.shape[1], len(NAMES)
    best, scale = values.copy(), _robust(target.measured_rad - target.predict(values[None])[:, 0], target.weight)[1]
    least = np.full(joints, np.inf)
    mean, root = values[:moved].copy(), np.repeat(np.diag(width * _SPREAD)[None], joints, 0)
    for _ in range(generations):
        drawn = np.einsum("jpq,vqj->vpj", root, rng.standard_normal((thrown, moved, joints)))
        variants = np.repeat(best[None], thrown, 0)
        variants[1:, :moved] = (mean + drawn)[1:]
        variants = np.clip(variants, target.low, target.high)
        left = target.measured_rad[:, None] - target.predict(variants)
        left -= (target.weight[:, None] * left).sum(0) / target.weight.sum(0)
        costs = _cost(left, scale, target.weight[:, None])
        order = costs.argsort(0)
        for joint in range(joints):
            elite = variants[order[:elite_count, joint], :moved, joint]
            mean[:, joint] = elite.mean(0)
            spread = np.atleast_2d(np.cov(elite.T)) + np.diag((1e-3 * _SPREAD) ** 2)
            root[joint] = np.linalg.cholesky(spread)
            if costs[order[0, joint], joint] < least[joint]:
                least[joint] = costs[order[0, joint], joint]
                best[:, joint] = variants[order[0, joint], :, joint]
    say("looked around")
    return best


def _descend(target: Target, values: Float64Array, say: Callable[[str], None], rounds: int) -> Float64Array:
    """Returns the parameters after some rounds of Levenberg-Marquardt; no joint gets worse."""
    values = values.copy()
    is_done = np.zeros(values.shape[1], bool)
    for number in range(rounds):
        residual, jacobian = _linearise(target, values)
        bias, scale, robust = _robust(residual, target.weight)
        now = _cost(residual - bias, scale, target.weight)
        tried = [_step(target, values, residual - bias, jacobian, robust, factor) for factor in _DAMPINGS]
        found = target.predict(np.stack(tried))
        best = now.copy()
        for variant, candidate in enumerate(tried):
            left = target.measured_rad - found[:, variant]
            cost = _cost(left - _robust(left, target.weight)[0], scale, target.weight)
            is_better = cost < best
            values[:, is_better], best = candidate[:, is_better], np.minimum(best, cost)
        size = np.sqrt((target.weight * (residual - bias) ** 2).sum() / target.weight.sum())
        say(f"round {number + 1}: residuals of {np.degrees(size):.3f} deg")
        is_done |= now - best < _DONE * np.maximum(now, 1e-12)
        if is_done.all():
            break
    return values


def _search(target: Target) -> Float64Array:
    """Returns the best of a grid, first of delay and top speed, then of play and dead band."""
    base = np.array([0.0, 0.85, 1.0, 0.002, 0.001, 0.0, 0.0])
    values = np.repeat(base[:, None], target.measured_rad.shape[1], 1)
    values = _best(target, values, {0: _START_DELAYS_MS, 2: _START_SCALES})
    values = _best(target, values, {0: (-10.0, 0.0, 10.0), 2: (-0.1, 0.0, 0.1)}, is_relative=True)
    return _best(target, values, {3: _START_PLAYS_RAD, 4: _START_BANDS_RAD})


def _best(
    target: Target, values: Float64Array, grid: dict[int, tuple[float, ...]], *, is_relative: bool = False
) -> Float64Array:
    (first, ones), (second, others) = grid.items()
    variants = []
    for one in ones:
        for other in others:
            variant = values.copy()
            variant[first] = one + (values[first] if is_relative else 0.0)
            variant[second] = other + (values[second] if is_relative else 0.0)
            variants.append(np.clip(variant, target.low, target.high))
    stacked = np.stack(variants)
    left = target.measured_rad[:, None] - target.predict(stacked)
    left -= np.median(left, 0)
    costs = (target.weight[:, None] * np.minimum(np.abs(left), 0.05)).sum(0)
    return np.asarray(np.take_along_axis(stacked, costs.argmin(0)[None, None], 0)[0])


def _linearise(target: Target, values: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Returns float64[K, J] residuals and float64[K, P, J] derivatives of the model."""
    count = len(NAMES)
    variants = np.repeat(values[None], 2 * count + 1, 0)
    for index in range(count):
        variants[2 * index + 1, index] = np.minimum(values[index] + _STEPS[index], target.high[index])
        variants[2 * index + 2, index] = np.maximum(values[index] - _STEPS[index], target.low[index])
    # No target is faster than the limit: near 1 a top speed changes nothing, and its derivative would be zero.
    scale = PARAMETERS.index("speed_scale")
    slower = variants[2 * scale + 2, scale]
    variants[2 * scale + 2, scale] = np.where(values[scale] > _SHOWN_SCALE, np.minimum(slower, _SHOWN_SCALE), slower)
    found = target.predict(variants)
    jacobian = np.zeros((len(found), count, values.shape[1]))
    for index in range(count):
        width = variants[2 * index + 1, index] - variants[2 * index + 2, index]
        change = found[:, 2 * index + 1] - found[:, 2 * index + 2]
        jacobian[:, index] = np.where(width > 0, change / np.where(width > 0, width, 1.0), 0.0)
    return target.measured_rad - found[:, 0], jacobian


def _robust(residual: Float64Array, mask: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Returns the bias and the spread of each joint, and Huber's weights."""
    counted = np.where(mask > 0, residual, np.nan)
    bias = np.nanmedian(counted, 0)
    scale = 1.4826 * np.nanmedian(np.abs(counted - bias), 0) + 1e-6
    size = np.abs(residual - bias) / scale
    weight = mask * np.where(size <= _HUBER, 1.0, _HUBER / np.maximum(size, 1e-12))
    bias = (weight * residual).sum(0) / weight.sum(0)
    return bias, scale, weight


def _cost(residual: Float64Array, scale: Float64Array, mask: Float64Array) -> Float64Array:
    size = np.abs(residual) / scale
    return np.asarray((mask * np.where(size <= _HUBER, 0.5 * size**2, _HUBER * size - 0.5 * _HUBER**2)).sum(0))


def _step(
    target: Target,
    values: Float64Array,
    residual: Float64Array,
    jacobian: Float64Array,
    weight: Float64Array,
    damping: float,
) -> Float64Array:
    """Returns the parameters after one step of every joint; what would leave its bounds stays at them."""
    found, low, high = values.copy(), target.low[:, 0], target.high
    for joint in range(values.shape[1]):
        here, top = values[:, joint], high[:, joint]
        free = (np.abs(jacobian[:, :, joint]).max(0) > 0) & (top > low)
        for _ in NAMES:
            change = _solve(residual[:, joint], jacobian[:, :, joint], weight[:, joint], damping, free)
            after = here + change
            is_out = free & (((after < low) & (here <= low)) | ((after > top) & (here >= top)))
            if not is_out.any():
                break
            free &= ~is_out
        found[:, joint] = np.clip(after, low, top)
    return found


def _solve(
    residual: Float64Array, jacobian: Float64Array, weight: Float64Array, damping: float, free: NDArray[np.bool_]
) -> Float64Array:
    """Solves for the free parameters and the bias, in units of their steps."""
    columns = np.column_stack([jacobian[:, free] * _STEPS[free], np.full(len(residual), _BIAS_STEP_RAD)])
    normal = columns.T @ (weight[:, None] * columns)
    normal[np.diag_indices_from(normal)] *= 1.0 + damping + 1e-9
    change = np.zeros(len(NAMES))
    change[free] = np.linalg.solve(normal, columns.T @ (weight * residual))[:-1] * _STEPS[free]
    return change


def _conclude(target: Target, values: Float64Array) -> JointFit:
    residual, jacobian = _linearise(target, values)
    bias, _, weight = _robust(residual, target.weight)
    left = residual - bias
    variance = (weight * left**2).sum(0) / weight.sum(0)
    inflation = np.ones(values.shape[1])
    scales = np.append(_STEPS, _BIAS_STEP_RAD)
    covariance = np.empty((values.shape[1], len(scales), len(scales)))
    for joint in range(values.shape[1]):
        inflation[joint] = _inflation(left[target.weight[:, joint] > 0, joint])
        columns = np.column_stack([jacobian[:, :, joint], np.ones(len(left))]) * scales
        normal = columns.T @ (weight[:, joint, None] * columns)
        # What has no effect at all gets the variance of what could be anything.
        normal[np.diag_indices_from(normal)] += 1e-4 * variance[joint]
        spread = np.linalg.inv(normal) * variance[joint] * inflation[joint]
        covariance[joint] = spread * np.outer(scales, scales)
    return JointFit(
        values=values,
        bias_rad=bias,
        covariance=covariance,
        residual_rad=left,
        predicted_rad=target.measured_rad - left,
        std_rad=np.sqrt(variance),
        weight=target.weight,
        inflation=inflation,
    )


def _inflation(residual: Float64Array) -> float:
    """Returns by how much the variance of a mean of these residuals exceeds that of independent ones."""
    centred = residual - residual.mean()
    power = float((centred**2).mean())
    if power <= 0:
        return 1.0
    total = 1.0
    for lag in range(1, min(_MAX_LAG, len(centred) // 4)):
        correlation = float((centred[lag:] * centred[:-lag]).mean()) / power
        if correlation < 0.02:
            break
        total += 2 * correlation
    return total
