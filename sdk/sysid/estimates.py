"""From a fit to estimates: 95 % intervals inside what is possible, and whether the data tell anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from roboalign import __version__
from roboalign.sdk.evaluation.intervals import wilson
from roboalign.sdk.sysid.camera import camera_estimates
from roboalign.sdk.sysid.fit import NAMES, JointFit, Target
from roboalign.sdk.sysid.recording import Recording
from roboalign.sdk.sysid.result import Estimate, SysidResult

__all__ = ["conclude"]

Float64Array = NDArray[np.float64]

_Z = 1.96
_POOR = 1.06
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


def conclude(
    recording: Recording, target: Target, fit: JointFit, before: JointFit, *, num_lost: int, num_moved: int
) -> SysidResult:
    """Returns what a fit says about a robot; how far it came from the pass `before` counts as uncertainty too."""
    spread = np.sqrt(np.diagonal(fit.covariance, axis1=1, axis2=2)).T
    changes = np.concatenate([fit.values - before.values, (fit.bias_rad - before.bias_rad)[None]])
    spread = np.sqrt(spread**2 + changes**2)
    # Goals come in steps of the encoder: a dead band between two of them acts like either.
    spread[NAMES.index("dead_band_rad")] += recording.resolution_rad / 2
    # A joint that is explained clearly worse than its neighbours is at a wrong place, however sure its fit is.
    is_poor = fit.std_rad > _POOR * fit.std_rad.min() + recording.resolution_rad / 4
    joints: dict[str, tuple[Estimate, ...]] = {}
    for index, name in enumerate(NAMES):
        low, high = np.broadcast_to(target.low[index], fit.bias_rad.shape), target.high[index]
        wide = np.where(is_poor, np.maximum(spread[index], _USUAL[name] / 2), spread[index])
        joints[name] = _estimates(fit.values[index], wide, low, high, _USUAL[name])
    limit = np.full_like(fit.bias_rad, 0.1)
    joints["bias_rad"] = _estimates(fit.bias_rad, spread[-1], -limit, limit, _USUAL["bias_rad"])
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
            "state_share": _share(num_lost, num_moved),
            **({} if recording.camera is None else camera_estimates(recording.camera)),
        },
        residual_deg=tuple(np.degrees(residual).tolist()),
        residual_ms=tuple((1000 * residual / np.sqrt((motion**2).mean(0))).tolist()),
        provenance={
            "roboalign": __version__,
            "readings": len(recording.read_s),
            "lost_readings": num_lost,
            "seconds": round(float(recording.sent_s[-1] - recording.sent_s[0]), 3),
            "recording_end": recording.end,
            "inflation": fit.inflation.tolist(),
        },
    )


def _estimates(
    values: Float64Array, spread: Float64Array, low: Float64Array, high: Float64Array, usual: float
) -> tuple[Estimate, ...]:
    found = []
    for value, std, least, most in zip(values.tolist(), spread.tolist(), low.tolist(), high.tolist(), strict=True):
        lower, upper = max(least, value - _Z * std), min(most, value + _Z * std)
        is_known = upper - lower < _KNOWN_SHARE * usual
        found.append(Estimate(value=value, low=min(lower, most), high=max(upper, least), is_identified=is_known))
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
