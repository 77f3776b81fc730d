"""The last check before a motor: clamps what may be clamped, holds otherwise, and says why.

The limiter trusts nothing above it: not the policy, not the kinematics, not the clock, not even the previous command it
is told about. Its results are inside the limits of the `RobotSpec` for every input, NaN and infinity included; only an
input of the wrong shape, or one that leaves nothing safe to command, is refused with `LimitViolation`.

It knows joint positions, speeds, how fast speeds may rise, and the workspace of the tool. It does not know torques,
collisions, or what stands on the table; a robot's own controller must.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roboalign.sdk.errors import LimitViolation
from roboalign.sdk.types import STATE_NAMES, FloatArray, RobotSpec

__all__ = ["MAX_LEAD_S", "MAX_PERIODS", "Limiter"]

MAX_LEAD_S = 0.5
"""A joint target may lead the measured position by what the joint travels in this time; more would be wind-up."""
MAX_PERIODS = 2.0
"""Most time since the last command that the speed limit counts, in control periods: a stall earns no long jump."""

_SILENT = 1e-6  # changes below a micrometre or microradian are rounding, not news
_WHEN_BELOW = "below the workspace"
_WHEN_ABOVE = "above the workspace"


class Limiter:
    """Clamps actions and joint targets to the limits of one robot. Keeps no state."""

    def __init__(self, spec: RobotSpec) -> None:
        """Stores the limits of `spec`."""
        self.spec = spec
        self._step = np.array((spec.max_step_m,) * 3 + (spec.max_step_rad,), dtype=np.float64)
        self._workspace_low = np.array((*spec.workspace_lower_m, -math.inf), dtype=np.float64)
        self._workspace_high = np.array((*spec.workspace_upper_m, math.inf), dtype=np.float64)
        lower = np.array(spec.joint_lower_rad, dtype=np.float64)
        upper = np.array(spec.joint_upper_rad, dtype=np.float64)
        self._lower, self._upper = _round_inwards(lower, upper)
        self._speed = np.array(spec.joint_max_speed_rad_s, dtype=np.float64)
        self._acceleration = np.array(spec.joint_max_accel_rad_s2 or (math.inf,) * spec.num_joints, dtype=np.float64)

    def hold_action(self, tool_target_now: ArrayLike) -> FloatArray:
        """Returns the action that changes nothing: no displacement, and the gripper command of `tool_target_now`.

        Raises:
            LimitViolation: `tool_target_now` is not a finite vector in the order of `STATE_NAMES`.
        """
        action = np.zeros(len(self.spec.action_names), np.float32)
        action[4] = np.clip(self._target(tool_target_now)[4] / self.spec.gripper_max_width_m, 0.0, 1.0)
        return action

    def limit_action(self, action: ArrayLike, tool_target_now: ArrayLike) -> tuple[FloatArray, tuple[str, ...]]:
        """Clamps one action to the step sizes, the gripper range and the workspace.

        A tool that already is outside the workspace may stay or come back, but is not driven: all that is ever sent is
        a shortened version of what was asked. An action with any value that is not finite becomes `hold_action`.

        Args:
            action: float[A] in the order of `RobotSpec.action_names`.
            tool_target_now: float[5] in the order of `STATE_NAMES`: the target of the tool that the action displaces,
                and the gripper width commanded now.

        Returns:
            float32[A] to send, and one reason for each change (`dz_m: below the workspace`).

        Raises:
            LimitViolation: A vector has the wrong length, or `tool_target_now` is not finite.
        """
        target = self._target(tool_target_now)[:4]
        asked = _vector(action, len(self.spec.action_names), "action")
        is_bad = ~np.isfinite(asked)
        if is_bad.any():
            names = [name for name, bad in zip(self.spec.action_names, is_bad, strict=True) if bad]
            return self.hold_action(tool_target_now), (f"hold: {', '.join(names)} not finite",)
        reasons: list[str] = []
        step = np.clip(asked[:4], -self._step, self._step)
        for index in np.flatnonzero(np.abs(step - asked[:4]) > _SILENT):
            reasons.append(f"{self.spec.action_names[index]}: step above {self._step[index]:g}")
        low = np.minimum(self._workspace_low, target)
        high = np.maximum(self._workspace_high, target)
        inside = np.clip(np.clip(target + step, low, high) - target, np.minimum(step, 0), np.maximum(step, 0))
        for index in np.flatnonzero(np.abs(inside - step) > _SILENT):
            side = _WHEN_BELOW if inside[index] > step[index] else _WHEN_ABOVE
            reasons.append(f"{self.spec.action_names[index]}: {side}")
        sent = np.empty(len(asked), np.float32)
        sent[:4] = inside
        landed = target + sent[:4]
        is_over = (landed < low) | (landed > high) | (np.abs(sent[:4]) > self._step)
        sent[:4] = np.where(is_over, np.nextafter(sent[:4], np.float32(0)), sent[:4])
        sent[4] = np.clip(asked[4], 0.0, 1.0)
        if abs(float(sent[4]) - asked[4]) > _SILENT:
            reasons.append(f"{self.spec.action_names[4]}: outside 0 to 1")
        return sent, tuple(reasons)

    def limit_joints(
        self, target_rad: ArrayLike, last_target_rad: ArrayLike, measured_rad: ArrayLike, dt_s: float
    ) -> tuple[FloatArray, tuple[str, ...]]:
        """Clamps joint targets to positions, speeds and the lead over the measured joints.

        The result is always inside the position limits, and never further from the last target (itself brought inside
        them first) than the joint may travel in `dt_s`. Anything that is not finite means: stay at the last target.

        Args:
            target_rad: float[J] wanted, in the order of `RobotSpec.joint_names`.
            last_target_rad: float[J] as returned the time before; the measured joints the first time.
            measured_rad: float[J] read from the robot now.
            dt_s: Time since the last target was sent.

        Returns:
            float32[J] to send, and one reason for each change (`panda_joint4: speed limit`).

        Raises:
            LimitViolation: A vector has the wrong length, or neither last target nor measured joints are finite.
        """
        wanted = _vector(target_rad, self.spec.num_joints, "joint target")
        measured = _vector(measured_rad, self.spec.num_joints, "measured joints")
        last, reasons = self._anchor(_vector(last_target_rad, self.spec.num_joints, "last joint target"), measured)
        problem = self._why_hold(wanted, measured, dt_s)
        if problem is not None:
            return last, (*reasons, problem)
        joints = np.clip(wanted, self._lower, self._upper)
        reasons += self._name_changes(joints, wanted, "position limit")
        reach = self._speed * min(dt_s, MAX_PERIODS / self.spec.control_rate_hz)
        slow = np.clip(joints, last - reach, last + reach)
        reasons += self._name_changes(slow, joints, "speed limit")
        lead = self._speed * MAX_LEAD_S
        led = np.clip(slow, np.minimum(measured - lead, last), np.maximum(measured + lead, last))
        reasons += self._name_changes(led, slow, "too far ahead of the arm")
        sent = np.clip(led.astype(np.float32), self._lower, self._upper)
        is_over = np.abs(sent.astype(np.float64) - last) > reach
        sent = np.where(is_over, np.nextafter(sent, last), sent).astype(np.float32)
        return sent, tuple(reasons)

    def limit_rise(
        self, target_rad: FloatArray, last_target_rad: FloatArray, last_step_rad: ArrayLike, dt_s: float
    ) -> tuple[FloatArray, tuple[str, ...]]:
        """Shortens a step that would let a joint speed up by more than its acceleration; never what slows it down.

        Args:
            target_rad: float32[J] as `limit_joints` returned it: what comes back lies between it and the last target.
            last_target_rad: float32[J] as it was sent the time before.
            last_step_rad: float[J], how far the last target was from the one before it.
            dt_s: Time since the last target was sent.

        Returns:
            float32[J] to send, and one reason for each change (`panda_joint4: acceleration limit`).
        """
        step = target_rad.astype(np.float64) - last_target_rad
        has = np.maximum(np.asarray(last_step_rad, dtype=np.float64) * np.sign(step), 0.0)
        room = has + self._acceleration * dt_s**2
        sent = (last_target_rad + np.clip(step, -room, room)).astype(np.float32)
        return sent, tuple(self._name_changes(sent, target_rad, "acceleration limit"))

    def _anchor(self, last: NDArray[np.float64], measured: NDArray[np.float64]) -> tuple[FloatArray, list[str]]:
        """Returns float32[J] inside the limits to measure the motion from, and what had to be done to get it."""
        reasons: list[str] = []
        if not np.isfinite(last).all():
            if not np.isfinite(measured).all():
                raise LimitViolation("neither the last joint target nor the measured joints are finite; stop the robot")
            last = measured
            reasons.append("hold: last joint target not finite, took the measured joints")
        inside = np.clip(last, self._lower, self._upper).astype(np.float32)
        return inside, reasons + self._name_changes(inside, last, "last target was outside its limits")

    def _why_hold(self, wanted: NDArray[np.float64], measured: NDArray[np.float64], dt_s: float) -> str | None:
        for name, values in (("joint target", wanted), ("measured joints", measured)):
            if not np.isfinite(values).all():
                return f"hold: {name} not finite"
        if not (math.isfinite(dt_s) and dt_s > 0):
            return f"hold: time since the last command is {dt_s} s"
        return None

    def _name_changes(self, now: NDArray[np.floating], before: NDArray[np.floating], why: str) -> list[str]:
        changed = np.flatnonzero(np.abs(now.astype(np.float64) - before) > _SILENT)
        return [f"{self.spec.joint_names[index]}: {why}" for index in changed]

    def _target(self, tool_target_now: ArrayLike) -> NDArray[np.float64]:
        target = _vector(tool_target_now, len(STATE_NAMES), "tool target")
        if not np.isfinite(target).all():
            raise LimitViolation(f"the tool target {target} is not finite; stop the robot and reset its target")
        return target


def _vector(values: ArrayLike, length: int, name: str) -> NDArray[np.float64]:
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise LimitViolation(f"{name} is {values!r}, expected {length} numbers") from err
    if vector.shape != (length,):
        raise LimitViolation(f"{name} has shape {vector.shape}, expected ({length},)")
    return vector


def _round_inwards(lower: NDArray[np.float64], upper: NDArray[np.float64]) -> tuple[FloatArray, FloatArray]:
    """Returns the limits as float32 that are never outside the float64 ones."""
    low, high = lower.astype(np.float32), upper.astype(np.float32)
    low = np.where(low < lower, np.nextafter(low, np.float32(np.inf)), low).astype(np.float32)
    high = np.where(high > upper, np.nextafter(high, np.float32(-np.inf)), high).astype(np.float32)
    return low, high
