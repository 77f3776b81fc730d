"""The Franka Panda that ships with pybullet_data: names, limits, and a URDF that is cheap to draw.

The stock visual meshes have about 100,000 faces and make the software renderer 5 to 7 times slower. The collision
meshes (3,400 faces) look fine at 96 px and are drawn instead.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from roboalign.sdk.errors import missing_extra
from roboalign.sdk.sim.layout import PANDA_TABLE
from roboalign.sdk.sim.model import GripperModel, RobotModel
from roboalign.sdk.types import RobotSpec

__all__ = [
    "ARM_JOINTS",
    "FINGER_JOINTS",
    "HOME_JOINT_POS_RAD",
    "PANDA",
    "TOOL_LINK",
    "panda_spec",
    "panda_urdf",
]

ARM_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
"""Arm joints from base to hand."""
FINGER_JOINTS = ("panda_finger_joint1", "panda_finger_joint2")
"""The two fingers."""
TOOL_LINK = "panda_grasptarget"
"""Link between the fingertips."""
HOME_JOINT_POS_RAD = (0.0, -0.02, 0.0, -2.38, 0.0, 2.36, 0.785398)
"""Arm joints with the tool pointing down at about (0.475, 0, 0.20)."""


def panda_spec(image_size_px: int = 96) -> RobotSpec:
    """Returns names, limits and rates of the simulated Panda. Joint limits and speeds are those of its URDF."""
    return RobotSpec(
        name="panda",
        joint_names=ARM_JOINTS,
        joint_lower_rad=(-2.9671, -1.8326, -2.9671, -3.1416, -2.9671, -0.0873, -2.9671),
        joint_upper_rad=(2.9671, 1.8326, 2.9671, 0.0, 2.9671, 3.8223, 2.9671),
        joint_max_speed_rad_s=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
        home_joint_pos_rad=HOME_JOINT_POS_RAD,
        park_joint_pos_rad=HOME_JOINT_POS_RAD,
        gripper_max_width_m=0.08,
        workspace_lower_m=(0.30, -0.26, 0.005),
        workspace_upper_m=(0.70, 0.26, 0.35),
        max_step_m=0.04,
        max_step_rad=0.2,
        control_rate_hz=10.0,
        camera_names=("front",),
        image_size_px=image_size_px,
    )


@functools.cache
def panda_urdf() -> str:
    """Returns the URDF text with absolute mesh paths and the collision meshes also used for drawing."""
    try:
        import pybullet_data
    except ImportError as err:
        raise missing_extra("pybullet", "sim", "the simulated Panda") from err
    folder = Path(pybullet_data.getDataPath()) / "franka_panda"
    text = (folder / "panda.urdf").read_text(encoding="utf-8").replace("meshes/visual/", "meshes/collision/")
    return text.replace("package://meshes", (folder / "meshes").as_posix())


def _finger_targets(width_m: float) -> tuple[float, ...]:
    return (width_m / 2,) * len(FINGER_JOINTS)


def _finger_width_m(positions: Sequence[float]) -> float:
    return float(sum(positions))


PANDA = RobotModel(
    name="panda",
    spec=panda_spec,
    urdf=panda_urdf,
    arm_joints=ARM_JOINTS,
    tool_link=TOOL_LINK,
    home_joint_pos_rad=HOME_JOINT_POS_RAD,
    arm_force=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
    arm_position_gain=0.25,
    gripper=GripperModel(
        joints=FINGER_JOINTS,
        joint_targets=_finger_targets,
        width_m=_finger_width_m,
        max_width_m=0.08,
        force=40.0,
        max_speed=0.12,
        jaw_links=("panda_leftfinger", "panda_rightfinger"),
        is_geared=True,
    ),
    hand_links=("panda_hand",),
    colour=(0.90, 0.90, 0.92, 1.0),
    hand_colour=(0.25, 0.25, 0.28, 1.0),
    table=PANDA_TABLE,
)
"""The simulated Panda."""
