"""Counts to radians and back, by calibration: zero, direction, encoder seam, and the gripper's distance.

A servo reports its position after homing; the two families apply the offset with opposite signs (`present_count`),
which matters only to whoever writes the offset. The direction is `drive_mode` for Feetech, where the host applies it; a
Dynamixel with `drive_mode` 1 has turned its counts round already. The zero is where the sidecar says, else the middle
of the sweep, which is LeRobot's convention for degrees; a joint whose limits are not symmetric then has no known zero,
and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboalign.drivers.arm.calibration import CalibrationNotes, MotorCalibration, MotorNotes
from roboalign.drivers.arm.models import COUNTS_PER_TURN, ArmModel
from roboalign.sdk.errors import ConfigError

__all__ = ["RAD_PER_COUNT", "GripperMap", "JointUnits", "Joints", "present_count"]

RAD_PER_COUNT = 2 * math.pi / COUNTS_PER_TURN
"""Radians of one count."""
_MAX_SKEW_RAD = 0.1  # middle of a joint's limits that still counts as zero


def present_count(protocol: str, actual: int, homing_offset: int) -> int:
    """Returns the position that a servo reports for an encoder count.

    >>> present_count("feetech", 3000, 953), present_count("dynamixel", 3000, -953)
    (2047, 2047)
    """
    return actual - homing_offset if protocol == "feetech" else actual + homing_offset


@dataclass(frozen=True, kw_only=True, slots=True)
class JointUnits:
    """One motor's counts in radians."""

    name: str
    """Joint name."""
    id: int
    """Id on the bus."""
    zero_count: float
    """Count at which the joint is zero."""
    direction: int
    """1 when counts and radians grow together, else -1."""
    range_min: int
    """Smallest count of the sweep; no goal is below."""
    range_max: int
    """Largest count of the sweep; no goal is above."""

    @property
    def limits_rad(self) -> tuple[float, float]:
        """The sweep in radians, lower first."""
        ends = (self.rad(self.range_min), self.rad(self.range_max))
        return min(ends), max(ends)

    def rad(self, count: float) -> float:
        """Returns the angle of a count."""
        return self.direction * (count - self.zero_count) * RAD_PER_COUNT

    def count(self, rad: float) -> int:
        """Returns the count of an angle, inside the sweep whatever the angle."""
        count = round(self.zero_count + self.direction * rad / RAD_PER_COUNT)
        return min(max(count, self.range_min), self.range_max)

    def unwrapped(self, count: int) -> int:
        """Returns the count within half a turn of the middle of the sweep: beyond its seam an encoder starts again."""
        middle = (self.range_min + self.range_max) // 2
        return middle + (count - middle + COUNTS_PER_TURN // 2) % COUNTS_PER_TURN - COUNTS_PER_TURN // 2


@dataclass(frozen=True, kw_only=True, slots=True)
class GripperMap:
    """Between the angle of the gripper's motor and the distance between the fingers."""

    rad: Callable[[float], float]
    """From metres to radians."""
    width_m: Callable[[float], float]
    """From radians to metres."""
    closed_rad: float
    """Angle at which it is closed."""
    max_width_m: float
    """Distance when fully open."""


class Joints:
    """All motors of one arm: the arm joints, then the gripper."""

    def __init__(
        self,
        model: ArmModel,
        calibration: Mapping[str, MotorCalibration],
        notes: CalibrationNotes | None,
        limits_rad: Sequence[tuple[float, float]],
        gripper: GripperMap | float,
    ) -> None:
        """Takes the arm joints' limits from the URDF. A gripper given by its largest width is linear in its sweep.

        Raises:
            ConfigError: The calibration lacks a motor, has another id, or leaves the zero of a joint open.
        """
        noted = {} if notes is None else notes.motors
        self.units: tuple[JointUnits, ...] = (
            *(
                _joint(model, joint.name, calibration, noted.get(joint.name), limits)
                for joint, limits in zip(model.joints, limits_rad, strict=True)
            ),
            _gripper(model, calibration, noted.get(model.gripper.name), gripper),
        )
        if not isinstance(gripper, GripperMap):
            gripper = _linear_gripper(self.units[-1], noted.get(model.gripper.name), gripper)
        self._gripper = gripper

    @property
    def num_joints(self) -> int:
        """Arm joints, the gripper not counted."""
        return len(self.units) - 1

    @property
    def gripper_max_width_m(self) -> float:
        """Distance between the fingers when fully open."""
        return self._gripper.max_width_m

    def label(self, motor: int) -> str:
        """Returns how messages name a motor: `elbow_flex (id 3)`."""
        return f"{self.units[motor].name} (id {self.units[motor].id})"

    def motors_rad(self, joint_rad: Sequence[float] | NDArray[np.floating], width_m: float) -> NDArray[np.float64]:
        """Returns float64[M]: the arm joints and the angle of the gripper's motor."""
        return np.append(np.asarray(joint_rad, dtype=np.float64), self._gripper.rad(width_m))

    def width_m(self, gripper_rad: float) -> float:
        """Returns the distance between the fingers, inside 0 and fully open."""
        return min(max(self._gripper.width_m(gripper_rad), 0.0), self._gripper.max_width_m)


def _calibration_of(model: ArmModel, name: str, calibration: Mapping[str, MotorCalibration]) -> MotorCalibration:
    if name not in calibration:
        found = ", ".join(calibration)
        raise ConfigError(f"the calibration lacks {name} of {model.name}, it has {found}: roboalign calibrate")
    motor = calibration[name]
    wanted = model.motor(name).id
    if motor.id != wanted:
        raise ConfigError(f"the calibration has {name} at id {motor.id}, {model.name} has it at {wanted}")
    return motor


def _direction(model: ArmModel, motor: MotorCalibration, notes: MotorNotes | None) -> int:
    flip = -1 if motor.drive_mode and model.protocol == "feetech" else 1
    return flip * (1 if notes is None else notes.direction)


def _joint(
    model: ArmModel,
    name: str,
    calibration: Mapping[str, MotorCalibration],
    notes: MotorNotes | None,
    limits: tuple[float, float],
) -> JointUnits:
    motor = _calibration_of(model, name, calibration)
    zero = None if notes is None else notes.zero_count
    if zero is None:
        if abs(limits[0] + limits[1]) / 2 > _MAX_SKEW_RAD:
            found = f"{name} turns from {limits[0]:.2f} to {limits[1]:.2f} rad: the middle of its sweep is not its zero"
            raise ConfigError(f"{found}; note its count as motors.{name}.zero_count in the .roboalign.json file")
        zero = (motor.range_min + motor.range_max) / 2
    return JointUnits(
        name=name,
        id=motor.id,
        zero_count=zero,
        direction=_direction(model, motor, notes),
        range_min=motor.range_min,
        range_max=motor.range_max,
    )


def _gripper(
    model: ArmModel,
    calibration: Mapping[str, MotorCalibration],
    notes: MotorNotes | None,
    gripper: GripperMap | float,
) -> JointUnits:
    """The gripper's zero follows from where it is closed."""
    name = model.gripper.name
    motor = _calibration_of(model, name, calibration)
    direction = _direction(model, motor, notes)
    closed = _closed_count(motor, notes, direction)
    closed_rad = gripper.closed_rad if isinstance(gripper, GripperMap) else 0.0
    zero = closed - direction * closed_rad / RAD_PER_COUNT
    if notes is not None and notes.zero_count is not None and isinstance(gripper, GripperMap):
        zero = notes.zero_count
    return JointUnits(
        name=name,
        id=motor.id,
        zero_count=zero,
        direction=direction,
        range_min=motor.range_min,
        range_max=motor.range_max,
    )


def _closed_count(motor: MotorCalibration, notes: MotorNotes | None, direction: int) -> int:
    """LeRobot's gripper is closed at 0 %: the lower end, or the upper one when it is turned round."""
    if notes is not None and notes.closed_count is not None:
        return notes.closed_count
    return motor.range_min if direction > 0 else motor.range_max


def _linear_gripper(units: JointUnits, notes: MotorNotes | None, max_width_m: float) -> GripperMap:
    """A gripper whose width is proportional to its angle: from closed, at 0 rad, to the other end of the sweep."""
    open_count = notes.open_count if notes is not None else None
    if open_count is None:
        open_count = units.range_max if units.direction > 0 else units.range_min
    open_rad = units.rad(open_count)
    if open_rad <= 0:
        raise ConfigError(f"{units.name} is open where it is closed, at count {open_count}: roboalign calibrate")
    return GripperMap(
        rad=lambda width_m: width_m / max_width_m * open_rad,
        width_m=lambda rad: rad / open_rad * max_width_m,
        closed_rad=0.0,
        max_width_m=max_width_m,
    )
