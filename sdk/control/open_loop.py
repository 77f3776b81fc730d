"""A trace of a robot played open loop: the joint targets that it was sent, sent to a simulated arm of that kind.

Nothing corrects the simulated arm, so what differs is how the two arms follow: delay, gain, friction, play, sag under
weight. Targets begin at the times they were sent at and run to their ends within a control period, as `SimWorld` and
the bus owner let them; the table is empty, so a trace in which the arm pushed something shows that as a gap too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.control.records import Reason
from roboalign.sdk.control.trace import Trace, read_trace
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.randomization import DomainSample, find_randomization
from roboalign.sdk.types import ACTION_NAMES

__all__ = ["Curves", "JointGap", "OpenLoop", "measure", "open_loop"]

LAGS_S = (-0.3, 0.5)
"""Lags that are tried: before 0 the robot would be ahead of its simulation."""
_LAG_STEP_S = 0.001
_MIN_S = 2.0
_MIN_READINGS = 20
_MOVED_DEG = 2.0
"""A joint that moved less has no lag to speak of."""
_GRIPPER = ACTION_NAMES.index("gripper_open")

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class JointGap:
    """How far one joint of the robot was from the simulated one."""

    name: str
    """Name of the joint."""
    rms_deg: float
    """Root mean square of measured minus simulated."""
    max_deg: float
    """Largest difference."""
    moved_deg: float
    """Way between its lowest and its highest reading."""
    lag_ms: float | None
    """How much later than in simulation it moved, by the best fit; None where it hardly moved."""
    rms_after_lag_deg: float | None
    """What is left with the simulation moved by this lag, about its mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenLoop:
    """The gap between a robot and its simulation."""

    robot: str
    """The simulated arm."""
    domain: str
    """What its parameters were."""
    duration_s: float
    """Time that was played."""
    readings: int
    """Readings of the joints that were compared."""
    rms_deg: float
    """Root mean square over all joints."""
    max_deg: float
    """Largest difference of any joint."""
    lag_ms: float | None
    """Lag that fits all joints that moved best."""
    joints: tuple[JointGap, ...]
    """Each joint alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """What was sent, what the robot measured, and what the simulation did; times begin with the first target."""

    names: tuple[str, ...]
    """Joints."""
    sent_s: Array
    """float64[K], when each target was sent."""
    target_rad: Array
    """float64[K, J]."""
    measured_s: Array
    """float64[N], when the joints were read."""
    measured_rad: Array
    """float64[N, J]."""
    simulated_s: Array
    """float64[M], ends of the physics steps."""
    simulated_rad: Array
    """float64[M, J]."""

    def simulated_at(self, times_s: Array) -> Array:
        """Returns float64[N, J], the simulated joints at these times."""
        columns = [np.interp(times_s, self.simulated_s, joint) for joint in self.simulated_rad.T]
        return np.stack(columns, axis=1)


def open_loop(path: str | Path, *, randomization: str = "off") -> tuple[OpenLoop, Curves]:
    """Plays a trace of a robot in simulation and compares the joints.

    Args:
        path: Trace of `roboalign run --robot ... --trace`.
        randomization: Preset or file; the middle of each range is taken, of an identified domain what was identified.

    Raises:
        DataError: It is no trace, has no times, or periods are missing.
        ConfigError: It is of a simulated scene, or of a robot that cannot be simulated.
    """
    trace = read_trace(path)
    if trace.ticks and _is_end(trace.ticks[-1]):
        trace.ticks.pop()
    arm = _check(trace, path)
    found = find_randomization(randomization)
    curves = _play(trace, arm, found.centre())
    domain = "as simulated" if found.is_off else f"the middle of {randomization}"
    return measure(curves, robot=arm, domain=domain), curves


def measure(curves: Curves, *, robot: str, domain: str) -> OpenLoop:
    """Returns the figures of curves."""
    gaps_deg = np.degrees(curves.measured_rad - curves.simulated_at(curves.measured_s))
    moved_deg = np.degrees(np.ptp(curves.measured_rad, axis=0))
    lags_s, spreads = _spreads(curves)
    has_moved = moved_deg >= _MOVED_DEG
    joints = []
    for index, name in enumerate(curves.names):
        best = int(spreads[:, index].argmin())
        joints.append(
            JointGap(
                name=name,
                rms_deg=_rms(gaps_deg[:, index]),
                max_deg=float(np.abs(gaps_deg[:, index]).max()),
                moved_deg=float(moved_deg[index]),
                lag_ms=float(1e3 * lags_s[best]) if has_moved[index] else None,
                rms_after_lag_deg=float(np.degrees(spreads[best, index])) if has_moved[index] else None,
            )
        )
    together = (spreads[:, has_moved] ** 2).sum(axis=1)
    return OpenLoop(
        robot=robot,
        domain=domain,
        duration_s=float(curves.simulated_s[-1]),
        readings=len(curves.measured_s),
        rms_deg=_rms(gaps_deg),
        max_deg=float(np.abs(gaps_deg).max()),
        lag_ms=float(1e3 * lags_s[together.argmin()]) if has_moved.any() else None,
        joints=tuple(joints),
    )


def _rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


def _spreads(curves: Curves) -> tuple[Array, Array]:
    """Returns the lags, and float64[lags, J]: the spread of measured minus simulated about its mean, at each lag.

    The same readings are taken at every lag. An offset is no lag, so the mean is left out.
    """
    lags_s = np.arange(LAGS_S[0], LAGS_S[1] + _LAG_STEP_S / 2, _LAG_STEP_S)
    lags_s[np.abs(lags_s) < _LAG_STEP_S / 2] = 0.0
    start_s, end_s = curves.simulated_s[0] + LAGS_S[1], curves.simulated_s[-1] + LAGS_S[0]
    chosen = (curves.measured_s >= start_s) & (curves.measured_s <= end_s)
    times_s, measured = curves.measured_s[chosen], curves.measured_rad[chosen]
    rows = [(measured - curves.simulated_at(times_s - lag_s)).std(axis=0) for lag_s in lags_s]
    return lags_s, np.stack(rows)


def _is_end(tick: dict[str, Any]) -> bool:
    """Whether a period only notes that the robot was gone: nothing was sent in it."""
    return tick.get("reason") == Reason.DISCONNECTED.value and tick.get("measured_s") is None


def _check(trace: Trace, path: str | Path) -> str:
    """Refuses a trace that cannot be played open loop; returns the simulated arm of its robot's kind."""
    if trace.scene is not None:
        raise ConfigError(
            f"{path} is of the simulated scene {trace.scene['task']} of {trace.scene['robot']}, expected a trace of a "
            "robot; without --open-loop it is compared bit by bit"
        )
    if not trace.ticks or trace.lost:
        raise DataError(
            f"{path} has {len(trace.ticks)} periods and lacks {trace.lost}; only a whole run can be played open loop"
        )
    arm = _simulated_arm(trace, path)
    untimed = sum(tick.get("time_s") is None or tick.get("measured_s") is None for tick in trace.ticks)
    if untimed:
        raise DataError(
            f"{path}: {untimed} of {len(trace.ticks)} periods do not say when targets were sent (time_s) and joints "
            "measured (measured_s); record it again with this version"
        )
    times_s = np.array([tick["time_s"] for tick in trace.ticks])
    if (np.diff(times_s) <= 0.0).any():
        raise DataError(f"{path}: the times of its periods do not rise; the clock leapt, so record it again")
    if np.ptp(times_s) < _MIN_S:
        raise DataError(f"{path} is {np.ptp(times_s):.1f} s long, expected {_MIN_S:g} s or more to compare")
    readings = len({tick["measured_s"] for tick in trace.ticks})
    if readings < _MIN_READINGS:
        raise DataError(f"{path} has {readings} readings of the joints, expected {_MIN_READINGS} or more")
    return arm


def _simulated_arm(trace: Trace, path: str | Path) -> str:
    """Returns the name of the simulated arm that has the trace's joints: a robot may have a name of its own."""
    from roboalign.sdk.sim.robots import ROBOTS

    joints = tuple(trace.spec.joint_names)
    fitting = [name for name, model in ROBOTS.items() if tuple(model.spec(96).joint_names) == joints]
    if not fitting or (trace.spec.name in ROBOTS and trace.spec.name not in fitting):
        known = "; ".join(f"{name} with {', '.join(model.spec(96).joint_names)}" for name, model in ROBOTS.items())
        raise ConfigError(
            f"{path} is of {trace.spec.name} with the joints {', '.join(joints)}, which no simulated arm of that name "
            f"has; there are {known}"
        )
    return trace.spec.name if trace.spec.name in fitting else fitting[0]


def _play(trace: Trace, arm: str, domain: DomainSample) -> Curves:
    """Sends the targets at their times, and reads the simulated joints after every physics step."""
    from roboalign.sdk.sim.world import PHYSICS_RATE_HZ, SimWorld

    ticks = trace.ticks
    zero_s = ticks[0]["time_s"]
    sent_s = np.array([tick["time_s"] for tick in ticks]) - zero_s
    target_rad = np.array([tick["targets"] for tick in ticks], np.float64)
    width_m = np.array([tick["sent"][_GRIPPER] for tick in ticks]) * trace.spec.gripper_max_width_m
    fresh = [tick for k, tick in enumerate(ticks) if k == 0 or tick["measured_s"] != ticks[k - 1]["measured_s"]]
    measured_rad = np.array([tick["measured"] for tick in fresh], np.float64)
    period_s = 1.0 / trace.rate_hz
    num_steps = round((sent_s[-1] + period_s) * PHYSICS_RATE_HZ)
    times_s = np.arange(1, num_steps + 1) / PHYSICS_RATE_HZ
    path_rad = _path(times_s, sent_s, target_rad, measured_rad[0], period_s)
    newest = _newest(times_s, sent_s)
    simulated_rad = np.empty_like(path_rad)
    world = SimWorld(robot=arm)
    try:
        world.connect()
        world.build(None, measured_rad[0], domain)
        world.set_joints(measured_rad[0], float(width_m[0]))
        for step, target in enumerate(path_rad):
            world.step_control(target, float(width_m[newest[step]]), 1)
            simulated_rad[step] = world.joint_pos_rad()
    finally:
        world.close()
    return Curves(
        names=tuple(trace.spec.joint_names),
        sent_s=sent_s,
        target_rad=target_rad,
        measured_s=np.array([tick["measured_s"] for tick in fresh]) - zero_s,
        measured_rad=measured_rad,
        simulated_s=times_s,
        simulated_rad=simulated_rad,
    )


def _path(times_s: Array, sent_s: Array, target_rad: Array, start_rad: Array, period_s: float) -> Array:
    """Returns float64[M, J]: from where it is when a target comes, the path runs to it within a period, then stays."""
    path = np.empty((len(times_s), target_rad.shape[1]))
    newest_at = _newest(times_s, sent_s)
    came_from = place = start_rad
    newest = -1
    for step, time_s in enumerate(times_s):
        if newest_at[step] != newest:
            newest, came_from = int(newest_at[step]), place
        share = min(1.0, (time_s - sent_s[newest]) / period_s)
        place = came_from + (target_rad[newest] - came_from) * share
        path[step] = place
    return path


def _newest(times_s: Array, sent_s: Array) -> NDArray[np.intp]:
    """Returns int[M]: which target was sent last before the middle of each step."""
    half_s = times_s[0] / 2
    newest: NDArray[np.intp] = np.maximum(np.searchsorted(sent_s, times_s - half_s, side="right") - 1, 0)
    return newest
