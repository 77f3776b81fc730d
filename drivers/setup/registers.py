"""A calibration in the servos' registers: written, read back, and checked against the position that is reported.

Bit 0 of a Dynamixel's drive mode turns its counts round. Whoever made the arm chose it so that the joint turns as its
URDF says (Interbotix: 1 at the wrist of a WidowX), so a sweep keeps what it finds, and the file says it.
"""

from __future__ import annotations

from collections.abc import Sequence

from roboalign.drivers.arm.calibration import MotorCalibration
from roboalign.drivers.arm.models import COUNTS_PER_TURN, ArmModel, JointModel
from roboalign.drivers.setup.servos import ServoBus
from roboalign.sdk.errors import RobotError

__all__ = ["drive_mode", "find_difference", "holds", "is_turned", "set_modes", "write_motor"]

_SETTLE_COUNTS = 40  # a limp arm may sink by so much between two readings
_DYNAMIXEL_POSITION = 3  # operating mode


def drive_mode(servos: ServoBus, servo: int) -> int:
    """Returns 1 when a Dynamixel counts the other way round; a Feetech servo never does, the host does it for it."""
    return servos.read(servo, "drive_mode") & 1 if servos.protocol == "dynamixel" else 0


def is_turned(servos: ServoBus, motor: MotorCalibration) -> bool:
    """True when a Dynamixel counts the other way round than when it was calibrated."""
    return servos.protocol == "dynamixel" and drive_mode(servos, motor.id) != motor.drive_mode


def find_difference(servos: ServoBus, motor: MotorCalibration) -> str:
    """Returns what a servo holds that the file says otherwise; empty when nothing is."""
    offset = servos.read(motor.id, "homing_offset")
    if offset != motor.homing_offset:
        return f"holds offset {offset}, the file says {motor.homing_offset}"
    if is_turned(servos, motor):
        return f"has drive mode {1 - motor.drive_mode}, the file says {motor.drive_mode}"
    return ""


def holds(servos: ServoBus, motor: MotorCalibration) -> bool:
    """True when a servo has what the file says, and a mode in which its offset is not cut."""
    is_cut = servos.protocol == "dynamixel" and abs(motor.homing_offset) > COUNTS_PER_TURN // 4
    is_plain = is_cut and servos.read(motor.id, "operating_mode") == _DYNAMIXEL_POSITION
    return not is_plain and not find_difference(servos, motor)


def set_modes(servos: ServoBus, model: ArmModel) -> None:
    """Puts every servo into the mode that LeRobot uses too, where it is not."""
    for joint in model.motors:
        for number in (joint.id, *joint.shadow_ids):
            servos.write(number, "operating_mode", model.position_mode(joint))


def write_motor(servos: ServoBus, joint: JointModel, motor: MotorCalibration) -> None:
    """Writes one motor's registers and checks that its position is reported as they mean it."""
    name = joint.name
    before = servos.encoder_counts((motor.id,), {motor.id: servos.read(motor.id, "homing_offset")})
    has_turned = _set_drive_mode(servos, motor.id, motor.drive_mode)
    for register, value in _registers(motor):
        servos.write(motor.id, register, value)
    after = servos.encoder_counts((motor.id,), {motor.id: motor.homing_offset})
    if motor.id not in before or motor.id not in after:
        raise RobotError(f"{name} (id {motor.id}) stopped answering while it was written; run the same command again")
    half = COUNTS_PER_TURN // 2
    expected = -before[motor.id] if has_turned else before[motor.id]
    off = (after[motor.id] - expected + half) % COUNTS_PER_TURN - half
    if abs(off) > _SETTLE_COUNTS:
        raise RobotError(
            f"{name} (id {motor.id}) reports a position {off:+d} counts from where its new offset puts it: either it "
            "was moved, or its firmware applies the offset otherwise; keep the arm still and run the same command again"
        )
    for helper in joint.shadow_ids:
        _set_drive_mode(servos, helper, 1 - motor.drive_mode)  # it faces its motor, whose own it may have obeyed
        _align(servos, joint, helper)


def _set_drive_mode(servos: ServoBus, servo: int, bit: int) -> bool:
    """Sets bit 0 of a Dynamixel's drive mode, verified; returns whether it had to be written."""
    if servos.protocol != "dynamixel":
        return False
    return servos.write(servo, "drive_mode", servos.read(servo, "drive_mode") & ~1 | bit)


def _align(servos: ServoBus, joint: JointModel, helper: int) -> None:
    """Makes a second servo on the axis report the position of the first, whose goals and offset it gets as well."""
    half = COUNTS_PER_TURN // 2
    found = servos.read_many((joint.id, helper), "present_position")
    if len(found) == 2:
        offset = servos.read(helper, "homing_offset") + found[joint.id] - found[helper]
        servos.write(helper, "homing_offset", (offset + half) % COUNTS_PER_TURN - half)
        found = servos.read_many((joint.id, helper), "present_position")
    if len(found) < 2:
        raise RobotError(f"{joint.name} (id {helper}) stopped answering while it was written; run the same again")
    off = (found[helper] - found[joint.id] + half) % COUNTS_PER_TURN - half
    if abs(off) > _SETTLE_COUNTS:
        raise RobotError(
            f"{joint.name} (id {helper}) reports a position {off:+d} counts from its motor's (id {joint.id}), although "
            "its offset was written for it; keep the arm still and run the same command again"
        )


def _registers(motor: MotorCalibration) -> Sequence[tuple[str, int]]:
    """What LeRobot writes too."""
    return (
        ("homing_offset", motor.homing_offset),
        ("min_position_limit", motor.range_min),
        ("max_position_limit", motor.range_max),
    )
