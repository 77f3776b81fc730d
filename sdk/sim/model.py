"""What the simulation has to know about an arm: files, joints, motors, gripper, and the table it stands behind."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from roboalign.sdk.control.kinematics import Kinematics
from roboalign.sdk.randomization.bodies import tinted_urdf
from roboalign.sdk.sim.layout import TableLayout
from roboalign.sdk.types import RobotSpec

__all__ = ["GripperModel", "RobotModel", "robot_kinematics"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GripperModel:
    """The joints of a gripper, and how they make a distance between the fingers."""

    joints: tuple[str, ...]
    """Names of the driven joints."""
    joint_targets: Callable[[float], tuple[float, ...]]
    """From a distance between the fingers in metres to one target per joint."""
    width_m: Callable[[Sequence[float]], float]
    """From the measured joints to the distance between the fingers."""
    max_width_m: float
    """Distance between the fingers when fully open."""
    force: float
    """Largest force (torque) of each joint's motor, in N (N m)."""
    max_speed: float
    """Largest speed of each joint, in m/s (rad/s)."""
    jaw_links: tuple[str, ...]
    """The links that press on an object from two sides; an object is held when all of them do."""
    is_geared: bool
    """True when two joints are driven by one belt, so that neither moves without the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RobotModel:
    """One simulated arm."""

    name: str
    """Name by which users choose it."""
    spec: Callable[[int], RobotSpec]
    """From the image size in pixels to names, limits and rates."""
    urdf: Callable[[], str]
    """Returns the URDF text, with absolute paths of meshes if it has any."""
    arm_joints: tuple[str, ...]
    """Arm joints from base to hand."""
    tool_link: str
    """Link whose frame is the tool."""
    home_joint_pos_rad: tuple[float, ...]
    """Arm joints at the start, the tool pointing down above the table."""
    arm_force: tuple[float, ...]
    """Largest torque of each arm motor, in N m."""
    arm_position_gain: float
    """Share of a joint's position error that its motor removes in one physics step."""
    gripper: GripperModel
    """The gripper."""
    hand_links: tuple[str, ...]
    """Links drawn in the colour of the hand besides the jaws."""
    colour: tuple[float, float, float, float] | None
    """RGBA in 0..1 of the arm; None leaves what the URDF says."""
    hand_colour: tuple[float, float, float, float] | None
    """RGBA in 0..1 of the hand; None leaves what the URDF says."""
    table: TableLayout
    """Sizes of the table and of the objects for this arm."""

    @contextlib.contextmanager
    def urdf_file(self, tint: Sequence[float] = (1.0, 1.0, 1.0)) -> Iterator[str]:
        """Gives the URDF, its colours tinted, as a file that exists inside the `with` only; no process leaves one."""
        with tempfile.TemporaryDirectory(prefix=f"roboalign-{self.name}-") as folder:
            path = Path(folder) / f"{self.name}.urdf"
            is_plain = all(gain == 1.0 for gain in tint)
            path.write_text(self.urdf() if is_plain else tinted_urdf(self.urdf(), tint), encoding="utf-8")
            yield str(path)

    def kinematics(self) -> Kinematics:
        """Returns the kinematics, read once per process from the URDF that the physics loads."""
        return robot_kinematics(self.urdf(), self.tool_link, self.arm_joints)


@functools.cache
def robot_kinematics(urdf: str, tool_link: str, arm_joints: tuple[str, ...]) -> Kinematics:
    """Returns the kinematics of an arm from its URDF text; equal arguments give the same object."""
    return Kinematics.from_urdf(urdf, tip_link=tool_link, joint_names=arm_joints)
