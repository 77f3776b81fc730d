"""The serial arms we know: joints from base to hand, ids, motors, and which kinematics fits.

Ids and motors of so100, so101, lekiwi, koch, omx, widowx and viperx are those of LeRobot, so that an arm which was set
up with either tool works with the other (`src/lerobot/robots` and `src/lerobot/teleoperators/widowx` of
https://github.com/huggingface/lerobot); OpenManipulator-X is of https://emanual.robotis.com. Speeds are the no-load
figures of the makers' data sheets at the nominal voltage. Nothing here was tried on hardware.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from roboalign.sdk.errors import ConfigError, unknown_name

__all__ = ["ARMS", "COUNTS_PER_TURN", "MOTORS", "POSITION_MODES", "ArmModel", "JointModel", "MotorModel", "find_arm"]

COUNTS_PER_TURN = 4096
"""Encoder counts of one turn, of every motor here."""
POSITION_MODES: Mapping[str, tuple[int, ...]] = MappingProxyType({"feetech": (0,), "dynamixel": (3, 4, 5)})
"""Values of `operating_mode` that have a goal position, by protocol."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MotorModel:
    """One kind of servo."""

    name: str
    """Name in lower case, e.g. `sts3215`."""
    number: int
    """What the servo answers in its register `model_number`."""
    protocol: str
    """`feetech` or `dynamixel`."""
    max_speed_rad_s: float
    """Speed without load at the nominal voltage."""
    has_current_limit: bool = True
    """False when the only limit of the torque is that of the PWM (XL430, XC430 in position mode)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JointModel:
    """One joint: a servo, and for a strong joint the servos that help it."""

    name: str
    """As in LeRobot's calibration files."""
    id: int
    """Id on the bus."""
    motor: str
    """Key of `MOTORS`."""
    shadow_ids: tuple[int, ...] = ()
    """Servos on the same axis that face the first one: their drive mode is the other one, and they follow it by
    `secondary_id`, but are read and torqued on their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmModel:
    """One kind of arm on one bus."""

    name: str
    """Name in a robot file."""
    protocol: str
    """`feetech` or `dynamixel`."""
    baud: int
    """Rate to which the motors are set up."""
    joints: tuple[JointModel, ...]
    """Arm joints from base to hand."""
    gripper: JointModel
    """The motor of the gripper."""
    kinematics: str | None = None
    """Name of the simulated arm with the same links (`roboalign.sdk.sim.find_robot`); None needs a URDF in the file."""
    full_turn: tuple[str, ...] = ()
    """Joints without end stops, whose range LeRobot writes as 0 to 4095."""
    lerobot_type: str | None = None
    """LeRobot's name of it, which is also the folder of its calibration files."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Ids of what else hangs on the bus, by the name in LeRobot's file; the arm neither reads nor writes it."""

    @property
    def motors(self) -> tuple[JointModel, ...]:
        """Arm joints, then the gripper: the order of everything that is per motor."""
        return (*self.joints, self.gripper)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the arm joints."""
        return tuple(joint.name for joint in self.joints)

    @property
    def ids(self) -> tuple[int, ...]:
        """Every id on the bus, shadows included."""
        return tuple(number for joint in self.motors for number in (joint.id, *joint.shadow_ids))

    def position_mode(self, joint: JointModel) -> int:
        """Returns the `operating_mode` that LeRobot uses too: positions, and offsets of any size.

        A Dynamixel in position mode (3) cuts its homing offset to a quarter turn without a word, so arm joints get
        extended positions (4), and a gripper that can limit its current positions with that limit (5).
        """
        if self.protocol == "feetech":
            return 0
        return 5 if joint is self.gripper and MOTORS[joint.motor].has_current_limit else 4

    def motor(self, name: str) -> JointModel:
        """Returns the joint or gripper of this name.

        Raises:
            ConfigError: The arm has none of this name.
        """
        for joint in self.motors:
            if joint.name == name:
                return joint
        raise ConfigError(unknown_name(f"joint of {self.name}", name, [joint.name for joint in self.motors]))


def _rpm(turns: float) -> float:
    return turns * 2 * math.pi / 60


def _motor(name: str, number: int, rpm: float, has_current_limit: bool = True) -> MotorModel:
    protocol = "feetech" if name.startswith(("st", "sm")) else "dynamixel"
    return MotorModel(
        name=name,
        number=number,
        protocol=protocol,
        max_speed_rad_s=_rpm(rpm),
        has_current_limit=has_current_limit,
    )


MOTORS: Mapping[str, MotorModel] = MappingProxyType(
    {
        motor.name: motor
        for motor in (
            _motor("sts3215", 777, 45),
            _motor("sts3250", 2825, 75),
            _motor("sm8512bl", 11272, 50),
            _motor("xl330-m077", 1190, 383),
            _motor("xl330-m288", 1200, 103),
            _motor("xc330-t181", 1210, 129),
            _motor("xc330-t288", 1220, 65),
            _motor("xl430-w250", 1060, 61, has_current_limit=False),
            _motor("xc430-w150", 1070, 106, has_current_limit=False),
            _motor("xm430-w350", 1020, 46),
            _motor("xm540-w270", 1120, 30),
        )
    }
)
"""Servos by name."""


def _so(
    name: str, kinematics: str | None, lerobot_type: str, *, prefix: str = "", others: Mapping[str, int] | None = None
) -> ArmModel:
    names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    joints = tuple(
        JointModel(name=prefix + joint, id=index, motor="sts3215") for index, joint in enumerate(names, start=1)
    )
    return ArmModel(
        name=name,
        protocol="feetech",
        baud=1_000_000,
        joints=joints[:-1],
        gripper=joints[-1],
        kinematics=kinematics,
        full_turn=(f"{prefix}wrist_roll",),
        lerobot_type=lerobot_type,
        others=MappingProxyType(dict(others or {})),
    )


def _dynamixel(name: str, first_id: int, motors: Mapping[str, str], *, lerobot_type: str | None = None) -> ArmModel:
    joints = [
        JointModel(name=joint, id=number, motor=motor)
        for number, (joint, motor) in enumerate(motors.items(), start=first_id)
    ]
    return ArmModel(
        name=name,
        protocol="dynamixel",
        baud=1_000_000,
        joints=tuple(joints[:-1]),
        gripper=joints[-1],
        full_turn=tuple(name for name in motors if name in ("shoulder_pan", "wrist_roll")),
        lerobot_type=lerobot_type,
    )


def _interbotix(name: str, big: str, wrist: str, gripper: str) -> ArmModel:
    """The six-joint arms of Interbotix: two motors each lift the shoulder and the elbow."""
    joints = (
        JointModel(name="waist", id=1, motor=big),
        JointModel(name="shoulder", id=2, motor=big, shadow_ids=(3,)),
        JointModel(name="elbow", id=4, motor=big, shadow_ids=(5,)),
        JointModel(name="forearm_roll", id=6, motor=big),
        JointModel(name="wrist_angle", id=7, motor=big),
        JointModel(name="wrist_rotate", id=8, motor=wrist),
    )
    return ArmModel(
        name=name,
        protocol="dynamixel",
        baud=1_000_000,
        joints=joints,
        gripper=JointModel(name="gripper", id=9, motor=gripper),
        full_turn=("waist", "forearm_roll", "wrist_rotate"),
        lerobot_type=name,
    )


_KOCH = {
    "shoulder_pan": "xl430-w250",
    "shoulder_lift": "xl430-w250",
    "elbow_flex": "xl330-m288",
    "wrist_flex": "xl330-m288",
    "wrist_roll": "xl330-m288",
    "gripper": "xl330-m288",
}
_OPENMANIPULATOR = dict.fromkeys(("joint1", "joint2", "joint3", "joint4", "gripper"), "xm430-w350")

_LEKIWI_WHEELS = {"base_left_wheel": 7, "base_back_wheel": 8, "base_right_wheel": 9}

ARMS: Mapping[str, ArmModel] = MappingProxyType(
    {
        arm.name: arm
        for arm in (
            _so("so100", None, "so100_follower"),
            _so("so101", "so101", "so101_follower"),
            _so("lekiwi", "so101", "lekiwi", prefix="arm_", others=_LEKIWI_WHEELS),
            _dynamixel("koch", 1, _KOCH, lerobot_type="koch_follower"),
            _dynamixel("koch_leader", 1, dict.fromkeys(_KOCH, "xl330-m077"), lerobot_type="koch_leader"),
            _dynamixel("omx", 11, {**_KOCH, "elbow_flex": "xl430-w250"}, lerobot_type="omx_follower"),
            _dynamixel("openmanipulator_x", 11, _OPENMANIPULATOR),
            _interbotix("widowx", "xm430-w350", "xl430-w250", "xc430-w150"),
            _interbotix("viperx", "xm540-w270", "xm430-w350", "xm430-w350"),
        )
    }
)
"""Arms by name. `lekiwi` is the SO-101 on its wheels, which stay as they are; `koch` is version 1.1; the leaders of
SO-100 and SO-101 have the ids of the followers."""


def find_arm(name: str) -> ArmModel:
    """Returns the arm of this name.

    Raises:
        ConfigError: There is none.
    """
    if name not in ARMS:
        raise ConfigError(unknown_name("arm", name, ARMS))
    return ARMS[name]
