"""From a robot file to what runs: its spec, kinematics, units, and the settings of the bus owner."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from roboalign.drivers.arm.calibration import find_stale_notes, read_calibration, read_notes, sidecar_path
from roboalign.drivers.arm.files import Geometry, JointLimit, RobotFile
from roboalign.drivers.arm.joints import GripperMap, Joints
from roboalign.drivers.arm.models import MOTORS
from roboalign.drivers.arm.motion import MAX_ACCELERATION_RAD_S2
from roboalign.drivers.arm.settings import CoreSettings
from roboalign.sdk.control.kinematics import Kinematics
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.model import GripperModel
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.types import RobotSpec

__all__ = ["ArmParts", "assemble", "gripper_map"]

GRIPPER_CAP = 0.5
"""Share of its torque that a gripper gets; LeRobot's value after grippers burnt out (their pull request 1809)."""
_SPEED_SHARE = 0.6  # of a motor's no-load speed, where only a URDF says how fast a joint may be
_MAX_SHIFT_RAD = math.radians(6.0)  # a park position this far outside the sweep is moved inside, more is refused
_GRIPPER_SPEED_RAD_S = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmParts:
    """Everything about one arm that does not change."""

    file: RobotFile
    """As written."""
    spec: RobotSpec
    """With the limits of URDF, sweep and file, whichever is narrowest."""
    kinematics: Kinematics
    """With the joints of the spec."""
    joints: Joints
    """Units of all motors."""
    settings: CoreSettings
    """For the bus owner."""
    homing_offsets: tuple[int, ...]
    """What the servos must have in their register, per motor."""
    drive_modes: tuple[int, ...]
    """What Dynamixel servos must have in bit 0 of theirs, per motor."""


def assemble(file: RobotFile) -> ArmParts:
    """Reads the calibration and puts the parts together; touches no port.

    Raises:
        ConfigError: A file is missing or wrong, or the parts contradict each other.
    """
    base, kinematics, gripper = _links(file)
    calibration = read_calibration(file.calibration)
    sidecar = sidecar_path(file.calibration)
    notes = read_notes(sidecar) if sidecar.exists() else None
    if notes is not None and notes.arm != file.arm:
        raise ConfigError(f"{sidecar} is of a {notes.arm or 'nameless arm'}, the robot file says {file.arm}")
    stale = None if notes is None else find_stale_notes(notes, calibration)
    if stale is not None:
        name = file.calibration.name
        remedy = f"sweep again (roboalign calibrate), or remove it and take {name} over: roboalign calibrate --from"
        raise ConfigError(f"{sidecar} is not of {name}: {stale}; {remedy}")
    limits = list(zip(base.joint_lower_rad, base.joint_upper_rad, strict=True))
    joints = Joints(file.model, calibration, notes, limits, gripper)
    spec = _narrowed(base, file, joints)
    return ArmParts(
        file=file,
        spec=spec,
        kinematics=kinematics,
        joints=joints,
        settings=_settings(file, spec, joints),
        homing_offsets=tuple(calibration[motor.name].homing_offset for motor in file.model.motors),
        drive_modes=tuple(calibration[motor.name].drive_mode for motor in file.model.motors),
    )


def _links(file: RobotFile) -> tuple[RobotSpec, Kinematics, GripperMap | float]:
    """Returns spec, kinematics and gripper of the simulated arm with the same links, or of the file's URDF."""
    if file.geometry is not None:
        return *_from_urdf(file, file.geometry), file.geometry.gripper_max_width_m
    if file.model.kinematics is None:
        raise ConfigError(f"there is no simulated {file.arm}; add [geometry] with its URDF to the robot file")
    model = find_robot(file.model.kinematics)
    spec = dataclasses.replace(
        model.spec(file.image_size_px),
        name=file.label,
        camera_names=tuple(file.cameras),
        control_rate_hz=file.control_rate_hz,
    )
    return spec, model.kinematics(), gripper_map(model.gripper)


def gripper_map(gripper: GripperModel) -> GripperMap:
    """Returns the map of a simulated gripper that one motor turns."""
    assert len(gripper.joints) == 1
    return GripperMap(
        rad=lambda width_m: gripper.joint_targets(width_m)[0],
        width_m=lambda rad: gripper.width_m((rad,)),
        closed_rad=gripper.joint_targets(0.0)[0],
        max_width_m=gripper.max_width_m,
    )


def _from_urdf(file: RobotFile, geometry: Geometry) -> tuple[RobotSpec, Kinematics]:
    names = file.model.joint_names
    kinematics = Kinematics.from_urdf(geometry.urdf, tip_link=geometry.tool_link, joint_names=names)
    if len(geometry.home_rad) != len(names):
        raise ConfigError(f"geometry.home_rad has {len(geometry.home_rad)} joints, {file.arm} has {len(names)}")
    motors = [MOTORS[joint.motor].max_speed_rad_s for joint in file.model.joints]
    speeds = [
        min(_SPEED_SHARE * motor, urdf if urdf > 0 else math.inf)
        for motor, urdf in zip(motors, kinematics.joint_max_speed_rad_s.tolist(), strict=True)
    ]
    spec = RobotSpec(
        name=file.label,
        joint_names=names,
        joint_lower_rad=tuple(max(-math.pi, low) for low in kinematics.joint_lower_rad.tolist()),
        joint_upper_rad=tuple(min(math.pi, high) for high in kinematics.joint_upper_rad.tolist()),
        joint_max_speed_rad_s=tuple(speeds),
        home_joint_pos_rad=geometry.home_rad,
        park_joint_pos_rad=geometry.park_rad,
        gripper_max_width_m=geometry.gripper_max_width_m,
        workspace_lower_m=(*geometry.workspace_lower_m,),  # type: ignore[arg-type]  # three, checked by Geometry
        workspace_upper_m=(*geometry.workspace_upper_m,),  # type: ignore[arg-type]  # three, checked by Geometry
        max_step_m=geometry.max_step_m,
        max_step_rad=geometry.max_step_rad,
        control_rate_hz=file.control_rate_hz,
        camera_names=tuple(file.cameras),
        image_size_px=file.image_size_px,
    )
    return spec, kinematics


def _narrowed(base: RobotSpec, file: RobotFile, joints: Joints) -> RobotSpec:
    """Returns the spec inside the sweep and the limits of the file; limits of the file that widen are refused."""
    lower, upper, speed = [], [], []
    names = file.model.joint_names  # LeRobot's, by which the file limits them
    for index, name in enumerate(names):
        limit = file.limits.get(name, JointLimit())
        low, high = base.joint_lower_rad[index], base.joint_upper_rad[index]
        top = base.joint_max_speed_rad_s[index]
        for key, value, is_wider in (
            ("lower_rad", limit.lower_rad, limit.lower_rad is not None and limit.lower_rad < low - 1e-9),
            ("upper_rad", limit.upper_rad, limit.upper_rad is not None and limit.upper_rad > high + 1e-9),
            ("max_speed_rad_s", limit.max_speed_rad_s, (limit.max_speed_rad_s or 0.0) > top + 1e-9),
        ):
            if is_wider:
                found = f"limits.{name}.{key} is {value}, the {file.arm}'s own are {low:.3f} to {high:.3f} rad"
                raise ConfigError(f"{found} and {top:.2f} rad/s; a robot file may only narrow them")
        swept = joints.units[index].limits_rad
        lower.append(max(low, swept[0], low if limit.lower_rad is None else limit.lower_rad))
        upper.append(min(high, swept[1], high if limit.upper_rad is None else limit.upper_rad))
        speed.append(min(top, limit.max_speed_rad_s or top))
        if not lower[-1] < upper[-1]:
            raise ConfigError(f"limits.{name} leave nothing of its sweep {swept[0]:.3f} to {swept[1]:.3f} rad")
    return dataclasses.replace(
        base,
        joint_lower_rad=tuple(lower),
        joint_upper_rad=tuple(upper),
        joint_max_speed_rad_s=tuple(speed),
        joint_max_accel_rad_s2=(MAX_ACCELERATION_RAD_S2,) * len(names),
        home_joint_pos_rad=_inside("home", base.home_joint_pos_rad, names, lower, upper),
        park_joint_pos_rad=_inside("park", base.park_joint_pos_rad, names, lower, upper),
        gripper_max_width_m=joints.gripper_max_width_m,
    )


def _inside(
    what: str, pose: tuple[float, ...], names: tuple[str, ...], lower: list[float], upper: list[float]
) -> tuple[float, ...]:
    """Returns a pose inside the limits when it nearly is."""
    moved = tuple(min(max(value, low), high) for value, low, high in zip(pose, lower, upper, strict=True))
    for name, old, new, low, high in zip(names, pose, moved, lower, upper, strict=True):
        if abs(old - new) > _MAX_SHIFT_RAD:
            found = f"the {what} position needs {name} at {old:.2f} rad, its limits are {low:.2f} to {high:.2f}"
            raise ConfigError(f"{found}; widen [limits.{name}], or calibrate again: roboalign calibrate")
    return moved


def _settings(file: RobotFile, spec: RobotSpec, joints: Joints) -> CoreSettings:
    gripper_low, gripper_high = joints.units[-1].limits_rad
    model = file.model
    gripper_speed = min(_GRIPPER_SPEED_RAD_S, _SPEED_SHARE * MOTORS[model.gripper.motor].max_speed_rad_s)
    return CoreSettings(
        lower_rad=(*spec.joint_lower_rad, gripper_low),
        upper_rad=(*spec.joint_upper_rad, gripper_high),
        max_speed_rad_s=(*spec.joint_max_speed_rad_s, gripper_speed),
        motor_speed_rad_s=tuple(1.2 * MOTORS[motor.motor].max_speed_rad_s for motor in model.motors),
        park_rad=spec.park_joint_pos_rad,
        home_rad=spec.home_joint_pos_rad,
        torque_caps=(*(1.0 for _ in model.joints), GRIPPER_CAP),
        control_period_s=1.0 / spec.control_rate_hz,
        park_after_s=file.park_after_s,
    )
