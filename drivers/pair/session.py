"""What the doctor does with an arm before it judges: it looks, moves the gripper, and goes a few centimetres each way.

Every control period is kept with what was asked and what was sensed. Along each axis the tool goes where there is more
room, and comes back; it goes up first. What is asked depends on the robot's spec alone, never on what is sensed, which
may be wrong. A limit that is in the way is noted, and nothing is concluded from that motion.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.control.kinematics import Kinematics
from roboalign.sdk.robot import Robot
from roboalign.sdk.types import FloatArray, Observation, RobotSpec

__all__ = ["AXES", "Evidence", "Moment", "move_and_look"]

AXES = ("x", "y", "z", "yaw")
"""Motions of the tool, in the order of the action's fields."""

_TRAVEL_M = (0.035, 0.05, 0.035)
_TRAVEL_RAD = 0.35
_STEP_SHARE = 0.5  # of the largest step: half the speed that a policy may ask for
_GRIPPER_PERIODS = 5
_SETTLE_PERIODS = 3
_MARGIN_M, _MIN_UP_M = 0.004, 0.015
_ORDER = (2, 1, 0, 3)  # up first, then to the side, forward, and turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """One control period."""

    part: str
    """Which motion it belongs to: `look`, `close`, `open`, `x out`, `x back` ..."""
    action: FloatArray
    """float32[A] that was asked."""
    is_free: bool
    """False when a limit changed what was asked."""
    seen: Observation
    """What was sensed after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All that was seen of a robot."""

    spec: RobotSpec
    """Names and limits."""
    kinematics: Kinematics | None
    """From joints to the tool; None when it is not known."""
    sentence: str
    """What it was asked to observe with."""
    moments: tuple[Moment, ...]
    """In the order of time; the first ones stand still."""

    def places(self, part: str) -> tuple[int, ...]:
        """Returns the numbers of the moments of one motion, in order."""
        return tuple(index for index, moment in enumerate(self.moments) if moment.part == part)


def move_and_look(
    robot: Robot,
    sentence: str,
    *,
    kinematics: Kinematics | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Evidence:
    """MOVES a connected robot: gripper closed and opened, and a few centimetres along each axis and back.

    Args:
        robot: Connected. It is left where it was, with an open gripper.
        sentence: What it is asked to observe with.
        kinematics: From joints to the tool; None when it is not known.
        sleep: Waits on hardware, whose `act` returns at once. A simulation, whose time moves with `act`, never waits.

    Raises:
        RobotError: The robot stopped answering, or took no commands.
    """
    session = _Session(robot, sentence, sleep)
    spec = robot.spec
    session.go("look", np.array((0, 0, 0, 0, session.gripper), np.float32), _SETTLE_PERIODS)
    for name, command in (("close", 0.0), ("open", 1.0)):
        session.gripper = command
        session.go(name, session.still(), _GRIPPER_PERIODS)
    for axis in _ORDER:
        out = _room(axis, spec, kinematics)
        session.travel(axis, out, f"{AXES[axis]} out")
        if axis == 1:  # to both sides, which tells left from right in the picture
            session.travel(axis, -2.0 * out, "y across")
            out = -out
        session.travel(axis, -out, f"{AXES[axis]} back")
    return Evidence(spec=spec, kinematics=kinematics, sentence=sentence, moments=tuple(session.moments))


class _Session:
    """A robot that is being moved, and what was sensed."""

    def __init__(self, robot: Robot, sentence: str, sleep: Callable[[float], None]) -> None:
        self._robot, self._sentence, self._sleep = robot, sentence, sleep
        self.moments: list[Moment] = []
        self.gripper = 1.0

    def still(self) -> FloatArray:
        """The action that moves nothing but the gripper to where it is asked to be."""
        return np.array((0, 0, 0, 0, self.gripper), np.float32)

    def go(self, part: str, action: FloatArray, count: int) -> None:
        """Takes an action for some periods, then waits until the arm has followed."""
        for _ in range(count):
            self._act(part, action)
        for _ in range(_SETTLE_PERIODS):
            self._act(part, self.still())

    def travel(self, axis: int, distance: float, part: str) -> None:
        """Goes along an axis at half of the largest speed."""
        spec = self._robot.spec
        step = _STEP_SHARE * (spec.max_step_rad if axis == 3 else spec.max_step_m)
        count, action = max(1, round(abs(distance) / step)), self.still()
        action[axis] = distance / count
        self.go(part, action, count)

    def _act(self, part: str, action: FloatArray) -> None:
        before_s = self._robot.observe(self._sentence, with_images=False).time_s
        applied = self._robot.act(action)
        seen = self._robot.observe(self._sentence)
        left_s = 1.0 / self._robot.spec.control_rate_hz - (seen.time_s - before_s)
        if left_s > 1e-6:
            self._sleep(left_s)
            seen = self._robot.observe(self._sentence)
        self.moments.append(Moment(part=part, action=action, is_free=not applied.reasons, seen=seen))


def _room(axis: int, spec: RobotSpec, kinematics: Kinematics | None) -> float:
    """Returns how far to go along an axis from the home position, with its sign: up, or where there is more room."""
    if axis == 3 or kinematics is None:
        return _TRAVEL_RAD if axis == 3 else _TRAVEL_M[axis]
    home = float(kinematics.forward(spec.home_joint_pos_rad)[axis, 3])
    up, down = spec.workspace_upper_m[axis] - home, home - spec.workspace_lower_m[axis]
    if up >= min(down, _MIN_UP_M if axis == 2 else down):
        return min(_TRAVEL_M[axis], max(up - _MARGIN_M, _MARGIN_M))
    return -min(_TRAVEL_M[axis], down - _MARGIN_M)
