"""The last check before a motor: clamps what may be clamped, holds otherwise, and says why.

The limiter trusts nothing above it: not the policy, not the kinematics, not the clock, not even the previous command it
is told about. Its results are inside the limits of the `RobotSpec` for every input, NaN and infinity included; only an
input of the wrong shape, or one that leaves nothing safe to command, is refused with `LimitViolation`.

It knows joint positions, speeds, how fast speeds may rise, and the workspace of the tool. It does not know torques,
collisions, or what stands on the table; a robot's own controller must.

It reckons one field and one joint after the other in Python's floats, which are float64: with five to seven of them
that is as fast as arrays, and it allocates none but the one that is returned, and not that where it is given one. What
is sent is float32, so every result is rounded to one (`_float32`) before it is compared with a limit for the last time.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from ctypes import c_float

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
_FLOAT, _INT, _SMALLEST = struct.Struct("<f"), struct.Struct("<i"), 2.0**-149


class Limiter:
    """Clamps actions and joint targets to the limits of one robot. Keeps no state."""

    def __init__(self, spec: RobotSpec) -> None:
        """Stores the limits of `spec`."""
        self.spec = spec
        self._step = [float(spec.max_step_m)] * 3 + [float(spec.max_step_rad)]
        self._workspace_low = [*map(float, spec.workspace_lower_m), -math.inf]
        self._workspace_high = [*map(float, spec.workspace_upper_m), math.inf]
        lower = np.array(spec.joint_lower_rad, dtype=np.float64)
        upper = np.array(spec.joint_upper_rad, dtype=np.float64)
        self._lower, self._upper = _round_inwards(lower, upper)
        self._speed = [float(speed) for speed in spec.joint_max_speed_rad_s]
        self._acceleration = [float(a) for a in spec.joint_max_accel_rad_s2] or [math.inf] * spec.num_joints

    def hold_action(self, tool_target_now: ArrayLike, out: FloatArray | None = None) -> FloatArray:
        """Returns the action that changes nothing: no displacement, and the gripper command of `tool_target_now`.

        Args:
            tool_target_now: see `limit_action`.
            out: float32[A] that takes the result, instead of a new array.

        Raises:
            LimitViolation: `tool_target_now` is not a finite vector in the order of `STATE_NAMES`.
        """
        width_m = self._target(tool_target_now)[4]
        action = np.empty(len(self.spec.action_names), np.float32) if out is None else out
        action.fill(0.0)
        action[4] = _clip(width_m / self.spec.gripper_max_width_m, 0.0, 1.0)
        return action

    def limit_action(
        self, action: ArrayLike, tool_target_now: ArrayLike, out: FloatArray | None = None
    ) -> tuple[FloatArray, tuple[str, ...]]:
        """Clamps one action to the step sizes, the gripper range and the workspace.

        A tool that already is outside the workspace may stay or come back, but is not driven: all that is ever sent is
        a shortened version of what was asked. An action with any value that is not finite becomes `hold_action`.

        Args:
            action: float[A] in the order of `RobotSpec.action_names`.
            tool_target_now: float[5] in the order of `STATE_NAMES`: the target of the tool that the action displaces,
                and the gripper width commanded now.
            out: float32[A] that takes the result, instead of a new array.

        Returns:
            float32[A] to send, and one reason for each change (`dz_m: below the workspace`).

        Raises:
            LimitViolation: A vector has the wrong length, or `tool_target_now` is not finite.
        """
        target = self._target(tool_target_now)
        names = self.spec.action_names
        asked = _vector(action, len(names), "action")
        bad = [name for name, value in zip(names, asked, strict=True) if not math.isfinite(value)]
        if bad:
            return self.hold_action(tool_target_now, out), (f"hold: {', '.join(bad)} not finite",)
        sent = np.empty(len(asked), np.float32) if out is None else out
        shortened: list[str] = []
        stopped: list[str] = []
        for index, most in enumerate(self._step):
            step = _clip(asked[index], -most, most)
            if abs(step - asked[index]) > _SILENT:
                shortened.append(f"{names[index]}: step above {most:g}")
            inside = self._inside_workspace(index, step, target[index])
            if abs(inside - step) > _SILENT:
                stopped.append(f"{names[index]}: {_WHEN_BELOW if inside > step else _WHEN_ABOVE}")
            sent[index] = inside
        grip = _float32(_clip(asked[4], 0.0, 1.0))
        sent[4] = grip
        gripped = [f"{names[4]}: outside 0 to 1"] if abs(grip - asked[4]) > _SILENT else []
        return sent, (*shortened, *stopped, *gripped)

    def _inside_workspace(self, index: int, step: float, target: float) -> float:
        """Returns a step as float32 that ends inside the workspace, or comes back to it: shortened, never turned."""
        low, high = min(self._workspace_low[index], target), max(self._workspace_high[index], target)
        inside = _clip(_clip(target + step, low, high) - target, min(step, 0.0), max(step, 0.0))
        sent = _float32(inside)
        if not (low <= target + sent <= high and abs(sent) <= self._step[index]):
            sent = _next_float32(sent, 0.0)
        return sent

    def limit_joints(
        self,
        target_rad: ArrayLike,
        last_target_rad: ArrayLike,
        measured_rad: ArrayLike,
        dt_s: float,
        out: FloatArray | None = None,
    ) -> tuple[FloatArray, tuple[str, ...]]:
        """Clamps joint targets to positions, speeds and the lead over the measured joints.

        The result is always inside the position limits, and never further from the last target (itself brought inside
        them first) than the joint may travel in `dt_s`. Anything that is not finite means: stay at the last target.

        Args:
            target_rad: float[J] wanted, in the order of `RobotSpec.joint_names`.
            last_target_rad: float[J] as returned the time before; the measured joints the first time.
            measured_rad: float[J] read from the robot now.
            dt_s: Time since the last target was sent.
            out: float32[J] that takes the result, instead of a new array; may be one of the others.

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
            return _filled(out, last), (*reasons, problem)
        period_s = min(dt_s, MAX_PERIODS / self.spec.control_rate_hz)
        joints = [_clip(value, *limits) for value, *limits in zip(wanted, self._lower, self._upper, strict=True)]
        slow, led, sent = list[float](), list[float](), list[float]()
        for index, joint in enumerate(joints):
            anchor, reach = last[index], self._speed[index] * period_s
            slow.append(_clip(joint, anchor - reach, anchor + reach))
            lead = self._speed[index] * MAX_LEAD_S
            low, high = min(measured[index] - lead, anchor), max(measured[index] + lead, anchor)
            led.append(_clip(slow[index], low, high))
            rounded = _clip(_float32(led[index]), self._lower[index], self._upper[index])
            sent.append(rounded if abs(rounded - anchor) <= reach else _next_float32(rounded, anchor))
        reasons += self._name_changes(joints, wanted, "position limit")
        reasons += self._name_changes(slow, joints, "speed limit")
        reasons += self._name_changes(led, slow, "too far ahead of the arm")
        return _filled(out, sent), tuple(reasons)

    def limit_rise(
        self,
        target_rad: FloatArray,
        last_target_rad: FloatArray,
        last_step_rad: ArrayLike,
        dt_s: float,
        out: FloatArray | None = None,
    ) -> tuple[FloatArray, tuple[str, ...]]:
        """Shortens a step that would let a joint speed up by more than its acceleration; never what slows it down.

        Args:
            target_rad: float32[J] as `limit_joints` returned it: what comes back lies between it and the last target.
            last_target_rad: float32[J] as it was sent the time before.
            last_step_rad: float[J], how far the last target was from the one before it.
            dt_s: Time since the last target was sent.
            out: float32[J] that takes the result, instead of a new array; may be one of the others.

        Returns:
            float32[J] to send, and one reason for each change (`panda_joint4: acceleration limit`).
        """
        count = self.spec.num_joints
        targets, lasts = (
            _vector(target_rad, count, "joint target"),
            _vector(last_target_rad, count, "last joint target"),
        )
        steps = _vector(last_step_rad, count, "last joint step")
        sent: list[float] = []
        for target, last, before, most in zip(targets, lasts, steps, self._acceleration, strict=True):
            step = target - last
            has = max(before * ((step > 0.0) - (step < 0.0)), 0.0)
            room = has + most * dt_s**2
            sent.append(_float32(last + _clip(step, -room, room)))
        return _filled(out, sent), tuple(self._name_changes(sent, targets, "acceleration limit"))

    def _anchor(self, last: list[float], measured: list[float]) -> tuple[list[float], list[str]]:
        """Returns float32 values inside the limits to measure the motion from, and what had to be done to get them."""
        reasons: list[str] = []
        if not all(map(math.isfinite, last)):
            if not all(map(math.isfinite, measured)):
                raise LimitViolation("neither the last joint target nor the measured joints are finite; stop the robot")
            last = measured
            reasons.append("hold: last joint target not finite, took the measured joints")
        inside = [_float32(_clip(v, *limits)) for v, *limits in zip(last, self._lower, self._upper, strict=True)]
        return inside, reasons + self._name_changes(inside, last, "last target was outside its limits")

    def _why_hold(self, wanted: list[float], measured: list[float], dt_s: float) -> str | None:
        for name, values in (("joint target", wanted), ("measured joints", measured)):
            if not all(map(math.isfinite, values)):
                return f"hold: {name} not finite"
        if not (math.isfinite(dt_s) and dt_s > 0):
            return f"hold: time since the last command is {dt_s} s"
        return None

    def _name_changes(self, now: Sequence[float], before: Sequence[float], why: str) -> list[str]:
        changes = zip(self.spec.joint_names, now, before, strict=True)
        return [f"{name}: {why}" for name, is_now, was in changes if abs(is_now - was) > _SILENT]

    def _target(self, tool_target_now: ArrayLike) -> list[float]:
        target = _vector(tool_target_now, len(STATE_NAMES), "tool target")
        if not all(map(math.isfinite, target)):
            raise LimitViolation(f"the tool target {target} is not finite; stop the robot and reset its target")
        return target


def _vector(values: ArrayLike | list[float], length: int, name: str) -> list[float]:
    if isinstance(values, list) and len(values) == length and all(type(value) is float for value in values):
        return values
    if not isinstance(values, np.ndarray) or values.dtype.char not in "fd":
        try:
            values = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as err:
            raise LimitViolation(f"{name} is {values!r}, expected {length} numbers") from err
    if values.shape != (length,):
        raise LimitViolation(f"{name} has shape {values.shape}, expected ({length},)")
    numbers: list[float] = values.tolist()
    return numbers


def _filled(out: FloatArray | None, values: Sequence[float]) -> FloatArray:
    """Returns the values as float32, in `out` where there is one."""
    array = np.empty(len(values), np.float32) if out is None else out
    for index, value in enumerate(values):
        array[index] = value
    return array


def _clip(value: float, low: float, high: float) -> float:
    """Returns a value between `low` and `high`; NaN where one of the three is."""
    inside = low if value < low else high if value > high else value
    return inside if low <= inside <= high else math.nan


def _float32(value: float) -> float:
    """Returns the float32 that is nearest."""
    return c_float(value).value


def _next_float32(value: float, goal: float) -> float:
    """Returns the float32 that comes after `value`, itself one, on the way to `goal`; `value` where it is the goal."""
    if value == goal or value != value or goal != goal:
        return value
    if value == 0.0:
        return math.copysign(_SMALLEST, goal)
    (bits,) = _INT.unpack(_FLOAT.pack(value))  # the magnitude in the low bits, so one more is one further from zero
    found: float
    (found,) = _FLOAT.unpack(_INT.pack(bits + (1 if (goal > value) == (value > 0.0) else -1)))
    return found


def _round_inwards(lower: NDArray[np.float64], upper: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Returns the limits as float32 values that are never outside the float64 ones."""
    low, high = lower.astype(np.float32), upper.astype(np.float32)
    low = np.where(low < lower, np.nextafter(low, np.float32(np.inf)), low).astype(np.float32)
    high = np.where(high > upper, np.nextafter(high, np.float32(-np.inf)), high).astype(np.float32)
    return low.tolist(), high.tolist()
