"""From a fit to estimates: 95 % intervals inside what is possible, and whether the data tell anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from roboalign import __version__
from roboalign.sdk.evaluation.intervals import wilson
from roboalign.sdk.sysid.camera import camera_estimates
from roboalign.sdk.sysid.fit import NAMES
from roboalign.sdk.sysid.recording import Recording
from roboalign.sdk.sysid.result import Estimate, SysidResult
from roboalign.sdk.sysid.solve import JointFit, Solution

__all__ = ["conclude"]

Float64Array = NDArray[np.float64]

_Z = 1.96
_TAIL = 0.025
_MOST_BIAS_RAD = 0.1
_KNOWN_SHARE = 0.5  # of what is usual for a parameter: a wider interval says too little
_USUAL = {
    "delay_ms": 80.0,
    "gain": 0.7,
    "speed_scale": 0.6,
    "play_rad": 0.01,
    "dead_band_rad": 0.004,
    "damping_nm_s_rad": 0.5,
    "friction_nm": 0.5,
    "bias_rad": 0.02,
}
"""How far arms differ: the widths of the preset `strong`."""


def conclude(recording: Recording, solution: Solution) -> SysidResult:
    """Returns what a solution says about a robot; how far its last look at the whole arm moved it counts too."""
    fit, target, crowd, before = solution.fit, solution.target, solution.crowd, solution.before
    joints: dict[str, tuple[Estimate, ...]] = {}
    for index, name in enumerate(NAMES):
        low, high = np.broadcast_to(target.low[index], target.high[index].shape), target.high[index]
        moved = crowd.values[:, index].mean(0) - before.values[:, index].mean(0)
        # Goals come in steps of the encoder: dead bands between two of them act alike.
        alike = recording.resolution_rad / math.sqrt(12.0) if name == "dead_band_rad" else 0.0
        joints[name] = _estimates(crowd.values[:, index], np.hypot(moved, alike), low, high, _USUAL[name])
    limit = np.full(len(recording.joint_names), _MOST_BIAS_RAD)
    own = np.sqrt(fit.inflation / fit.weight.sum(0)) * fit.std_rad  # a mean's, whatever the parameters
    drawn = crowd.bias_rad + own * np.random.default_rng(0).standard_normal(crowd.bias_rad.shape)
    moved = crowd.bias_rad.mean(0) - before.bias_rad.mean(0)
    joints["bias_rad"] = _estimates(drawn, moved, -limit, limit, _USUAL["bias_rad"])
    noise = _noise(recording, fit)
    joints["noise_std_rad"] = tuple(noise)
    motion = np.diff(fit.predicted_rad, axis=0) * recording.rate_hz
    residual = np.sqrt((fit.weight * fit.residual_rad**2).sum(0) / fit.weight.sum(0))
    return SysidResult(
        robot=recording.robot,
        joint_names=recording.joint_names,
        joints=joints,
        whole={
            "noise_std_rad": _pooled(noise),
            "state_share": _share(solution.num_lost, solution.num_told),
            **({} if recording.camera is None else camera_estimates(recording.camera)),
        },
        residual_deg=tuple(np.degrees(residual).tolist()),
        residual_ms=tuple((1000 * residual / np.sqrt((motion**2).mean(0))).tolist()),
        provenance={
            "roboalign": __version__,
            "readings": len(recording.read_s),
            "lost_readings": solution.num_lost,
            "seconds": round(float(recording.sent_s[-1] - recording.sent_s[0]), 3),
            "recording_end": recording.end,
            "inflation": fit.inflation.tolist(),
        },
    )


def _estimates(
    drawn: Float64Array, moved: Float64Array, low: Float64Array, high: Float64Array, usual: float
) -> tuple[Estimate, ...]:
    """Returns the mean of float64[V, J] draws and the wider of what quantiles and the normal law say about them."""
    mean, std = drawn.mean(0), drawn.std(0) + 1e-12
    ends = np.quantile(drawn, (_TAIL, 1.0 - _TAIL), axis=0)
    wider = np.sqrt(1.0 + (moved / std) ** 2)
    found = []
    for joint in range(drawn.shape[1]):
        below, above = (max(_Z * std[joint], abs(float(end[joint] - mean[joint]))) * wider[joint] for end in ends)
        lower, upper = max(low[joint], mean[joint] - below), min(high[joint], mean[joint] + above)
        is_known = bool(low[joint] < high[joint] and upper - lower < _KNOWN_SHARE * usual)
        found.append(Estimate(value=float(mean[joint]), low=float(lower), high=float(upper), is_identified=is_known))
    return tuple(found)


def _noise(recording: Recording, fit: JointFit) -> list[Estimate]:
    """Noise of the readings: what is left, without the steps of the encoder."""
    found = []
    steps = recording.resolution_rad**2 / 12
    for joint in range(len(recording.joint_names)):
        counted = fit.residual_rad[fit.weight[:, joint] > 0, joint]
        # Neighbours differ by noise alone; a model that is a little wrong is so for many readings.
        change = np.diff(counted)
        change = change[change != 0.0]  # a reading that came again
        variance = float((change**2).mean()) / 2
        own = max(0.0, variance - steps)
        error = variance * math.sqrt(3.0 / len(change)) * _Z  # of a mean of squared differences of neighbours
        found.append(
            Estimate(
                value=math.sqrt(own),
                low=math.sqrt(max(0.0, own - error - 0.5 * steps)),
                high=math.sqrt(own + error + 0.5 * steps),
                is_identified=True,
            )
        )
    return found


def _pooled(noise: Sequence[Estimate]) -> Estimate:
    """One noise for all joints, as the randomisation has it; its interval holds the joints' own values."""
    values = [item.value for item in noise]
    return Estimate(
        value=float(np.mean(values)),
        low=min(item.low for item in noise),
        high=max(item.high for item in noise),
        is_identified=True,
    )


def _share(num_lost: int, num_moved: int) -> Estimate:
    interval = wilson(num_lost, max(num_moved, 1))
    share = num_lost / max(num_moved, 1)
    return Estimate(
        value=min(share, 0.9), low=min(interval.low, 0.9), high=min(interval.high, 0.9), is_identified=num_moved >= 100
    )
