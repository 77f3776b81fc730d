"""A trace played again in simulation: the same requests through the same limiter and kinematics, and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.sdk.control.cartesian import CartesianController
from roboalign.sdk.control.trace import Trace, read_trace
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.types import Applied, FloatArray

__all__ = ["Replayed", "replay"]

_MAX_NAMED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """How a trace went when it was played again."""

    ticks: int
    """Control periods that were played."""
    equal: int
    """Those in which the same was sent, action and joint targets, bit by bit."""
    max_action_error: float
    """Largest difference of an action field."""
    max_target_error_rad: float
    """Largest difference of a joint target."""
    differences: tuple[str, ...]
    """The first periods that differ, in words."""
    has_scene: bool
    """Whether the scene was simulated too; a trace of hardware has none, and its joints are taken from the trace."""
    success: bool | None = None
    """Whether the task was solved at the end, with a scene."""

    @property
    def is_equal(self) -> bool:
        """Whether everything was the same."""
        return self.equal == self.ticks


def replay(path: str | Path) -> Replayed:
    """Plays a trace again.

    Raises:
        DataError: It is no trace, or periods are missing in it.
        ConfigError: The robot is none that can be simulated.
    """
    trace = read_trace(path)
    if not trace.ticks or trace.lost:
        raise DataError(
            f"{path} has {len(trace.ticks)} periods and lacks {trace.lost}; only a whole run can be replayed"
        )
    return _in_scene(trace) if trace.scene is not None else _alone(trace)


def _in_scene(trace: Trace) -> Replayed:
    """Plays in the scene of the run: what the arm does to it decides what is measured, as it did then."""
    from roboalign.sdk.sim.env import SimEnv

    assert trace.scene is not None
    env = SimEnv(str(trace.scene["task"]), robot=str(trace.scene["robot"]))
    try:
        env.reset(seed=int(trace.scene["seed"]))
        found = _play(trace, lambda action, _: env.robot.act(action), env.robot.hold)
        return Replayed(**found, has_scene=True, success=env.is_success())
    finally:
        env.close()


def _alone(trace: Trace) -> Replayed:
    """Plays through limiter and kinematics alone, with the joints that were measured then."""
    from roboalign.sdk.sim.robots import find_robot

    try:
        kinematics = find_robot(trace.spec.name).kinematics()
    except ConfigError as err:
        raise ConfigError(f"{err}; only arms whose body comes with the package can be replayed") from err
    controller = CartesianController(trace.spec, kinematics)
    first = trace.ticks[0]
    controller.reset(first["targets"], float(first["sent"][4]) * trace.spec.gripper_max_width_m)
    period_s = 1.0 / trace.spec.control_rate_hz
    return Replayed(**_play(trace, lambda action, seen: controller.act(action, seen, period_s), controller.hold),
                    has_scene=False)  # fmt: skip


def _play(
    trace: Trace, act: Callable[[FloatArray, FloatArray], Applied], hold: Callable[[], Applied]
) -> dict[str, Any]:
    equal, action_error, target_error, differences = 0, 0.0, 0.0, list[str]()
    for tick in trace.ticks:
        for _ in range(tick["interrupts"]):
            hold()
        requested = np.array([np.nan if x is None else x for x in tick["requested"]], np.float32)
        applied = act(requested, np.array(tick["measured"], np.float32)) if tick["step"] >= 0 else hold()
        sent, targets = np.array(tick["sent"], np.float32), np.array(tick["targets"], np.float32)
        is_same = bool((applied.sent == sent).all() and (applied.joint_target_rad == targets).all())
        equal += is_same
        action_error = max(action_error, float(np.abs(applied.sent - sent).max()))
        target_error = max(target_error, float(np.abs(applied.joint_target_rad - targets).max()))
        if not is_same and len(differences) < _MAX_NAMED:
            differences.append(f"period {tick['tick']}: sent {applied.sent.tolist()}, then {sent.tolist()}")
    return {
        "ticks": len(trace.ticks),
        "equal": equal,
        "max_action_error": action_error,
        "max_target_error_rad": target_error,
        "differences": tuple(differences),
    }
