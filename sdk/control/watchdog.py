"""What stands between the loop and the robot: a latch, a second look at every command, and an eye on the policy.

The limiter inside `Robot.act` shortens what is asked; nothing is sent without it. The guard here does not trust that:
it compares each command that a robot reports with the limits and with the command before, and stops the robot for good
when one is outside. It holds the only reference to the robot that the loop has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.limiter import MAX_PERIODS
from roboalign.sdk.control.records import Reason
from roboalign.sdk.errors import LimitViolation
from roboalign.sdk.robot import Robot
from roboalign.sdk.types import Applied, FloatArray, Observation, RobotSpec

__all__ = ["Guard", "PolicyWatch", "WatchSettings"]

_ROUNDING = 1e-5  # rad: targets are float32


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchSettings:
    """How long what may be silent before the arm holds."""

    beat_timeout_s: float = 0.08
    """The policy's process, which beats every 20 ms."""
    answer_timeout_s: float = 5.0
    """One answer of the policy."""
    max_age_s: float = 2.0
    """What an action was computed from."""
    max_picture_age_s: float = 0.5
    """The newest picture, where the robot tells its age (`picture_age_s`)."""


class Guard:
    """The only way to the robot."""

    def __init__(self, robot: Robot) -> None:
        """Takes the robot, which is connected."""
        spec = robot.spec
        self._robot = robot
        self._lower = [float(value) - _ROUNDING for value in spec.joint_lower_rad]
        self._upper = [float(value) + _ROUNDING for value in spec.joint_upper_rad]
        periods_s = MAX_PERIODS / spec.control_rate_hz
        self._reach = [float(speed) * periods_s + _ROUNDING for speed in spec.joint_max_speed_rad_s]
        self._last = [math.nan] * spec.num_joints
        self._picture_age_s: Callable[[], float] | None = getattr(robot, "picture_age_s", None)
        self.latched = ""
        """Why nothing is sent any more; empty while the robot may move."""

    @property
    def spec(self) -> RobotSpec:
        """Names, limits and rates."""
        return self._robot.spec

    def act(self, action: FloatArray) -> Applied:
        """Sends an action through the robot's limiter. Raises RobotError when latched, or when it must be now."""
        if self.latched:
            raise LimitViolation(self.latched)
        return self._checked(self._robot.act(action))

    def hold(self) -> Applied:
        """Lets the robot stay where it is."""
        return self._checked(self._robot.hold())

    def observe(self, instruction: str, *, with_images: bool) -> Observation:
        """Reads the robot."""
        return self._robot.observe(instruction, with_images=with_images)

    def picture_age_s(self) -> float:
        """Returns the age of the newest picture; 0 where the robot does not tell."""
        return 0.0 if self._picture_age_s is None else self._picture_age_s()

    def stop(self) -> None:
        """Holds, or stops the robot if it cannot hold. Never raises: this is the last thing there is to do."""
        try:
            self._robot.hold()
        except Exception:  # noqa: BLE001 - a robot that cannot hold is stopped, whatever the cause
            self._estop()

    def _estop(self) -> None:
        try:
            self._robot.estop()
        except Exception as err:  # noqa: BLE001 - what is known is said; the caller raises what led here
            self.latched = f"{self.latched or 'the robot does not hold'}; the stop was not confirmed ({err})"

    def _checked(self, applied: Applied) -> Applied:
        """Compares a command with the limits and the command before; outside, the robot is stopped for good."""
        targets: list[float] = applied.joint_target_rad.tolist()
        outside = leapt = False
        limits = zip(targets, self._last, self._lower, self._upper, self._reach, strict=True)
        for target, last, low, high, reach in limits:
            outside = outside or not (math.isfinite(target) and low <= target <= high)
            leapt = leapt or abs(target - last) > reach
        if outside or leapt:
            what = "outside its joint limits" if outside else "further from the last one than it may move in a period"
            self.latched = f"{self._robot.spec.name} sent {targets}, which is {what}; the robot was stopped"
            self._estop()
            raise LimitViolation(self.latched)
        self._last = targets
        return applied


class PolicyWatch:
    """Says why the policy cannot be trusted now, from what its process leaves on the board."""

    def __init__(self, channels: Channels, is_alive: Callable[[], bool], settings: WatchSettings) -> None:
        """Stores what to look at."""
        self._beat_s = channels.board["policy_beat_s"]
        self._busy_since_s = channels.board["busy_since_s"]
        self._stop = channels.board["stop"]
        self._is_alive, self._settings = is_alive, settings
        self.note = ""
        """What was found, in words."""
        self.is_passing = False
        """Whether what was found may pass, so that the chunk is kept: a process that got no processor for a moment."""

    def look(self, now_s: float) -> Reason | None:
        """Returns why the arm must hold whatever chunk there is; None when nothing is wrong."""
        self.is_passing = False
        if self._stop[0]:
            self.note = "stop was pressed"
            return Reason.STOPPED
        if not self._is_alive():
            self.note = "the policy's process ended"
            return Reason.WATCHDOG
        if abs(now_s - self._beat_s[0]) > self._settings.beat_timeout_s:
            self.note, self.is_passing = "the policy's process is silent", True
            return Reason.WATCHDOG
        busy_s = float(self._busy_since_s[0])
        if busy_s and now_s - busy_s > self._settings.answer_timeout_s:
            self.note = f"the policy has not answered for {self._settings.answer_timeout_s:g} s"
            return Reason.WATCHDOG
        return None
