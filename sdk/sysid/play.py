"""Plays a wiggle on a robot and records it; parks afterwards, whatever happened."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.control.clock import Clock
from roboalign.sdk.errors import RobotError
from roboalign.sdk.robot import JointReading, JointRobot
from roboalign.sdk.sysid.camera import CameraTrace, watch_camera
from roboalign.sdk.sysid.recording import Recording
from roboalign.sdk.sysid.wiggle import Wiggle

__all__ = ["PlayResult", "play_wiggle"]

_APPROACH_SHARE = 0.3  # of the speed limits, on the way to the first pose
_TOLD_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class PlayResult:
    """What was recorded, and the error that ended it early."""

    recording: Recording
    """All that was read."""
    error: RobotError | KeyboardInterrupt | None
    """None when the wiggle was played to its end."""


def play_wiggle(
    robot: JointRobot,
    wiggle: Wiggle,
    *,
    clock: Clock | None = None,
    progress: Callable[[str], None] | None = None,
) -> PlayResult:
    """Goes slowly to the wiggle's pose, plays it, and returns what was recorded; leaves parking to the caller.

    An arm that stops answering, or Ctrl-C, ends it; what was recorded until then is in the result.

    Args:
        robot: Connected.
        wiggle: Checked by `check_wiggle`.
        clock: Paces the targets; None where the robot lets time pass by itself.
        progress: Told how far it is.

    Raises:
        RobotError: It ended before anything was recorded.
        DataError: The same, with too little to keep.
    """
    player = _Player(robot, clock, wiggle.rate_hz)
    readings: list[JointReading] = []
    error: RobotError | KeyboardInterrupt | None = None
    trace: CameraTrace | None = None
    try:
        player.approach(np.array(wiggle.centre_rad), float(wiggle.widths_m[0]))
        robot.take_readings()
        for index, (target, width_m) in enumerate(zip(wiggle.targets_rad, wiggle.widths_m, strict=True)):
            player.send(target, float(width_m))
            readings += robot.take_readings()
            if progress is not None and index % int(_TOLD_EVERY_S * wiggle.rate_hz) == 0:
                progress(f"{index / wiggle.rate_hz:.0f} of {len(wiggle.targets_rad) / wiggle.rate_hz:.0f} s")
        if robot.spec.camera_names:
            if progress is not None:
                progress("looking through the cameras")
            trace = watch_camera(robot, np.array(wiggle.centre_rad), player.send)
    except (RobotError, KeyboardInterrupt) as err:
        error = err
        if len(readings) < 2:
            raise
    end = "complete" if error is None else f"{type(error).__name__}: {error}"
    recording = Recording.of(robot.spec, wiggle.rate_hz, robot.joint_drive, readings, end=end)
    return PlayResult(recording=dataclasses.replace(recording, camera=trace), error=error)


class _Player:
    """Sends targets at their rate."""

    def __init__(self, robot: JointRobot, clock: Clock | None, rate_hz: float) -> None:
        self._robot, self._clock, self._period_s = robot, clock, 1.0 / rate_hz
        self._next_s = 0.0 if clock is None else clock.now()

    def send(self, target: np.ndarray, width_m: float) -> None:
        if self._clock is not None:
            self._clock.sleep_until(self._next_s)
            self._next_s = max(self._next_s + self._period_s, self._clock.now())
        self._robot.act_joints(np.asarray(target, np.float32), width_m)

    def approach(self, goal: np.ndarray, width_m: float) -> None:
        """Goes to a pose on a smooth way, all joints together, and waits there."""
        observation = self._robot.observe(with_images=False)
        start, begin_m = observation.joint_pos_rad.astype(np.float64), float(observation.state[4])
        speeds = _APPROACH_SHARE * np.array(self._robot.spec.joint_max_speed_rad_s)
        seconds = max(1.0, float((1.5 * np.abs(goal - start) / speeds).max()))
        for share in np.linspace(0.0, 1.0, self._whole(seconds)):
            smooth = share * share * (3 - 2 * share)
            self.send(start + (goal - start) * smooth, begin_m + (width_m - begin_m) * smooth)
        for _ in range(self._whole(0.7)):
            self.send(goal, width_m)

    def _whole(self, seconds: float) -> int:
        """Returns the targets of so much time, in whole control steps: pictures come by those."""
        count = max(1, round(self._robot.joint_rate_hz / self._robot.spec.control_rate_hz))
        return count * math.ceil(seconds / self._period_s / count)
