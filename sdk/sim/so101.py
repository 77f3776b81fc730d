"""The SO-101 follower arm (TheRobotStudio, https://github.com/TheRobotStudio/SO-ARM100), drawn with boxes.

Joint names, link offsets, limits, masses and the zero pose are the figures of `Simulation/SO101/so101_new_calib.urdf`
there, at commit fda892c; the boxes are our own. In the zero pose the upper arm stands upright, forearm and gripper
point forward (+x) and the jaws open upwards, the moving one on top; a gripper at -10 degrees is closed. The older
calibration (`so101_old_calib.urdf`) has another zero: joint values of the one mean nothing in the other.

Motors are Feetech STS3215 with a 1:345 gear: stall torque 30 kg cm at 12 V, no-load speed 45 rpm by the data sheet
(https://github.com/TheRobotStudio/SO-ARM100/issues/134 measured 35 kg cm, 46 rpm and 1 degree of backlash). Joints are
limited to 60 % of that speed here. Backlash is not modelled.

Five joints reach a position, a yaw and the tool pointing down exactly: the three pitch axes are parallel and level, so
nothing tilts sideways. What limits it is the wrist, which bends by 95 degrees: pointing straight down the tool is at
most about 8 cm above the table.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.layout import SO101_TABLE
from roboalign.sdk.sim.model import GripperModel, RobotModel
from roboalign.sdk.types import RobotSpec

__all__ = [
    "SO101",
    "SO101_ARM_JOINTS",
    "so101_gripper_rad",
    "so101_gripper_width_m",
    "so101_spec",
    "so101_urdf",
    "so101_with_urdf",
]

SO101_ARM_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
"""Arm joints from base to hand; the sixth motor is `gripper`."""

_URDF = Path(__file__).parent / "assets" / "so101.urdf"
_HOME_RAD = (0.0801, -0.2772, 0.3402, 1.5078, 1.6996)
_PARK_RAD = (0.0, -1.7, 1.6, 0.9, 1.57)
_STALL_TORQUE_NM = 2.94
_MAX_SPEED_RAD_S = 0.6 * 4.71
_MAX_WIDTH_M = 0.05
_MAX_OFF_M = 0.005

# The moving jaw's face at the height of the tool, in the frame of its joint, and the joint's distance from the fixed
# jaw's face; the origins of `gripper` and `gripper_frame_joint` give the last two.
_FACE_X_M = -0.0123
_REACH_M = 0.0747274
_PIVOT_M = 0.0281
_GRIPPER_LOWER_RAD = -0.174533


def so101_gripper_width_m(gripper_rad: float) -> float:
    """Returns the distance between the jaws at the height of the tool for an angle of the joint `gripper`."""
    return _PIVOT_M + _FACE_X_M * math.cos(gripper_rad) + _REACH_M * math.sin(gripper_rad)


def so101_gripper_rad(width_m: float) -> float:
    """Returns the angle of the joint `gripper` for a distance between the jaws; below 3 mm it is the lower limit."""
    radius, phase = math.hypot(_FACE_X_M, _REACH_M), math.atan2(_FACE_X_M, _REACH_M)
    angle = math.asin(min(1.0, max(-1.0, (width_m - _PIVOT_M) / radius))) - phase
    return max(_GRIPPER_LOWER_RAD, angle)


def so101_spec(image_size_px: int = 96) -> RobotSpec:
    """Returns names, limits and rates of the simulated SO-101."""
    return RobotSpec(
        name="so101",
        joint_names=SO101_ARM_JOINTS,
        joint_lower_rad=(-1.91986, -1.74533, -1.69, -1.65806, -2.74385),
        joint_upper_rad=(1.91986, 1.74533, 1.69, 1.65806, 2.84121),
        joint_max_speed_rad_s=(_MAX_SPEED_RAD_S,) * 5,
        home_joint_pos_rad=_HOME_RAD,
        park_joint_pos_rad=_PARK_RAD,
        gripper_max_width_m=_MAX_WIDTH_M,
        workspace_lower_m=(0.13, -0.15, 0.008),
        workspace_upper_m=(0.28, 0.15, 0.085),
        max_step_m=0.03,
        max_step_rad=0.2,
        control_rate_hz=10.0,
        camera_names=("front",),
        image_size_px=image_size_px,
    )


@functools.cache
def so101_urdf() -> str:
    """Returns the text of the URDF that comes with the package."""
    return _URDF.read_text(encoding="utf-8")


def so101_with_urdf(path: str | Path) -> RobotModel:
    """Returns the SO-101 from a URDF of your own, e.g. the published one with its meshes, for `SimRobot(robot=...)`.

    It must have the published joint and link names and the zero pose of the new calibration; its meshes are looked for
    beside it. What collides are the packaged boxes: PyBullet fills the hollows of a mesh, and such jaws hold nothing.
    The frame `tool` is added when it has none.

    Raises:
        ConfigError: The file cannot be read, lacks a joint or a link, or has another zero pose.
    """
    file = Path(path)
    try:
        root = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as err:
        raise ConfigError(f"SO-101 URDF {file} cannot be read: {err}") from err
    for tag, wanted in (("joint", (*SO101_ARM_JOINTS, "gripper")), ("link", SO101.gripper.jaw_links)):
        found = {str(item.get("name")) for item in root.findall(tag)}
        missing = sorted(set(wanted) - found)
        if missing:
            names = ", ".join(sorted(found)) or "none"
            raise ConfigError(f"SO-101 URDF {file} lacks the {tag}s {', '.join(missing)}; its {tag}s are {names}")
    for mesh in root.iter("mesh"):
        name = str(mesh.get("filename")).removeprefix("package://").removeprefix("file://")
        mesh.set("filename", (file.parent.resolve() / name).as_posix())
    _take_boxes(root)
    _add_tool(root)
    text = ElementTree.tostring(root, encoding="unicode")
    model = dataclasses.replace(SO101, urdf=functools.partial(str, text))
    off_m = float(np.abs(model.kinematics().forward(_HOME_RAD) - SO101.kinematics().forward(_HOME_RAD)).max())
    if off_m > _MAX_OFF_M:
        raise ConfigError(
            f"SO-101 URDF {file} puts the tool {off_m:.3f} m from where the published arm has it at home; use "
            "so101_new_calib.urdf, the older calibration has another zero pose"
        )
    return model


def _take_boxes(root: ElementTree.Element) -> None:
    """Replaces what collides by the boxes of the packaged URDF, link by link."""
    own = {link.get("name"): link.findall("collision") for link in ElementTree.fromstring(so101_urdf()).findall("link")}
    for link in root.findall("link"):
        for shape in link.findall("collision"):
            link.remove(shape)
        link.extend(own.get(link.get("name"), ()))


def _add_tool(root: ElementTree.Element) -> None:
    """Copies the frame `tool` from the packaged URDF."""
    if any(link.get("name") == SO101.tool_link for link in root.findall("link")):
        return
    own = ElementTree.fromstring(so101_urdf())
    for tag, name in (("link", SO101.tool_link), ("joint", "tool_joint")):
        root.extend(item for item in own.findall(tag) if item.get("name") == name)


def _joint_targets(width_m: float) -> tuple[float, ...]:
    return (so101_gripper_rad(width_m),)


def _width_m(positions: Sequence[float]) -> float:
    return max(0.0, so101_gripper_width_m(positions[0]))


SO101 = RobotModel(
    name="so101",
    spec=so101_spec,
    urdf=so101_urdf,
    arm_joints=SO101_ARM_JOINTS,
    tool_link="tool",
    home_joint_pos_rad=_HOME_RAD,
    arm_force=(_STALL_TORQUE_NM,) * 5,
    arm_position_gain=0.25,
    gripper=GripperModel(
        joints=("gripper",),
        joint_targets=_joint_targets,
        width_m=_width_m,
        max_width_m=_MAX_WIDTH_M,
        force=0.6,
        max_speed=1.6,
        jaw_links=("gripper_link", "moving_jaw_so101_v1_link"),
        is_geared=False,
    ),
    hand_links=(),
    colour=None,
    hand_colour=None,
    table=SO101_TABLE,
)
"""The simulated SO-101."""
