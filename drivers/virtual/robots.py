"""The arms that can be had virtually: every arm that the drivers know, its servos as a builder leaves them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from roboalign.drivers.arm.models import ARMS, JointModel, find_arm
from roboalign.drivers.virtual.arm import Seat, VirtualArm
from roboalign.drivers.virtual.physics import JointPlant, KinematicPlant
from roboalign.drivers.virtual.servo import COUNTS_PER_TURN, Encoder, VirtualServo
from roboalign.drivers.virtual.sts import STS3215, StsFirmware, StsServo
from roboalign.drivers.virtual.xmodels import XSERIES_MODELS
from roboalign.drivers.virtual.xseries import XFirmware, XServo
from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.sim.so101 import SO101_ARM_JOINTS, so101_spec

__all__ = ["JOINTS", "PARK_RAD", "VIRTUAL_ROBOTS", "VirtualRobot", "make_arm", "make_plant", "make_servo"]

JOINTS = (*SO101_ARM_JOINTS, "gripper")
"""Joints of the arm that has a body, from base to hand."""
PARK_RAD = (*so101_spec().park_joint_pos_rad, 0.0)
"""Where these joints are at the start."""
_GRIPPER_LIMITS_RAD = (-0.174533, 1.74533)
_STOPS_RAD = (-0.99 * math.pi, 0.99 * math.pi)
_X_DRIVE, _X_SHADOW, _X_BAUD = 10, 12, 8
_X_BAUD_INDEX = 3  # 1 Mbaud
_SUBSTITUTES = {"feetech": ("sts3215",) * 6, "dynamixel": ("xl430-w250",) * 2 + ("xl330-m288",) * 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class VirtualRobot:
    """A kind of arm."""

    name: str
    """Key of `roboalign.drivers.arm.models.ARMS`."""
    protocol: str
    """Protocol of its own servos."""
    motors: tuple[JointModel, ...]
    """Ids and servos, from base to hand."""

    @property
    def joints(self) -> tuple[str, ...]:
        """Names of the joints."""
        return tuple(motor.name for motor in self.motors)

    @property
    def has_body(self) -> bool:
        """True when the simulated SO-101 has the same joints and can stand in for it."""
        return tuple(name.removeprefix("arm_") for name in self.joints) == JOINTS


VIRTUAL_ROBOTS = {
    name: VirtualRobot(name=name, protocol=arm.protocol, motors=arm.motors) for name, arm in sorted(ARMS.items())
}
"""Arms by name."""


def make_plant(robot: str = "so101") -> KinematicPlant:
    """Returns the joints of a virtual robot without physics: parked when it has a body, else at zero.

    Raises:
        ConfigError: There is no such robot.
    """
    found = _find(robot)
    if not found.has_body:
        return KinematicPlant(found.joints, [_STOPS_RAD] * len(found.joints))
    spec = so101_spec()
    limits = [*zip(spec.joint_lower_rad, spec.joint_upper_rad, strict=True), _GRIPPER_LIMITS_RAD]
    return KinematicPlant(JOINTS, limits, PARK_RAD)


def _find(robot: str) -> VirtualRobot:
    return VIRTUAL_ROBOTS[find_arm(robot).name]


def make_servo(
    model: str,
    id: int,  # noqa: A002 - the protocols' own word
    encoder: Encoder | None = None,
    firmware: StsFirmware | XFirmware | None = None,
) -> VirtualServo:
    """Returns a servo as a builder leaves it: id set, at 1 Mbaud.

    Raises:
        ConfigError: There is no such model, or the firmware is another protocol's.
    """
    if model == STS3215.name:
        if isinstance(firmware, XFirmware):
            raise ConfigError(f"a {model} has an StsFirmware, not an XFirmware")
        return StsServo(id, STS3215, encoder, firmware)
    if model not in XSERIES_MODELS:
        raise ConfigError(unknown_name("servo", model, (STS3215.name, *XSERIES_MODELS)))
    if isinstance(firmware, StsFirmware):
        raise ConfigError(f"an {model} has an XFirmware, not an StsFirmware")
    servo = XServo(id, XSERIES_MODELS[model], encoder, firmware)
    servo.write(_X_BAUD, bytes((_X_BAUD_INDEX,)))
    return servo


def make_arm(
    robot: str = "so101",
    protocol: str | None = None,
    plant: JointPlant | None = None,
    *,
    horn_seed: int | None = None,
    start_s: float = 0.3,
) -> VirtualArm:
    """Returns a virtual arm.

    Args:
        robot: Name of an arm.
        protocol: None: the robot's own; another puts its servos on the six joints (STS3215, or XL430 and XL330).
        plant: The robot's joints; None makes some without physics.
        horn_seed: None: every encoder is at its middle when its joint is at zero, as after a calibration; else the
            horns are mounted at random, as on a bench.
        start_s: How long servos start up after their power came.

    Raises:
        ConfigError: There is no such robot or protocol.
    """
    found = _find(robot)
    names = _servo_names(found, protocol)
    dice = random.Random(horn_seed)
    seats = []
    for joint, (motor, name) in enumerate(zip(found.motors, names, strict=True)):
        zero = COUNTS_PER_TURN // 2 if horn_seed is None else dice.randrange(COUNTS_PER_TURN)
        seats.append(Seat(make_servo(name, motor.id, Encoder(zero_count=zero)), joint))
        seats += [Seat(_shadow(name, number, motor.id, zero), joint) for number in motor.shadow_ids]
    seats += [Seat(make_servo(names[0], number), None) for number in find_arm(robot).others.values()]
    return VirtualArm(plant or make_plant(robot), seats, start_s=start_s)


def _servo_names(robot: VirtualRobot, protocol: str | None) -> tuple[str, ...]:
    if protocol in (None, robot.protocol):
        return tuple(motor.motor for motor in robot.motors)
    if protocol not in _SUBSTITUTES:
        raise ConfigError(f"protocol is {protocol!r}, expected feetech or dynamixel")
    if len(robot.motors) != len(_SUBSTITUTES[protocol]):
        raise ConfigError(f"{robot.name} has {len(robot.motors)} joints; only six can get {protocol} servos instead")
    return _SUBSTITUTES[protocol]


def _shadow(model: str, id: int, leader_id: int, zero_count: int) -> VirtualServo:  # noqa: A002
    """Returns a servo that faces another one on the same axis, turns the other way, and obeys its id."""
    servo = make_servo(model, id, Encoder(zero_count=COUNTS_PER_TURN - zero_count, sign=-1))
    servo.write(_X_DRIVE, b"\x01")
    servo.write(_X_SHADOW, bytes((leader_id,)))
    return servo
