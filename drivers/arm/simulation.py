"""A robot file whose arm is simulated: the same program moves a `SimRobot` with a scene in front of it.

arm = "sim:so101"                     # or sim:panda

[simulation]
task = "place"                        # scene on the table (roboalign tasks); without it the table is empty
seed = 3                              # which scene
camera = "front"                      # what its picture is called
size_px = 96                          # height and width of the picture

A simulated arm moves without a question: nothing can be hurt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roboalign.drivers.arm.files import SIMULATED_PREFIX, RobotFile, read_robot_file
from roboalign.drivers.arm.tables import Table
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.settings_file import read_settings
from roboalign.sdk.sim.robot import SimRobot
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.scene import SceneSpec

__all__ = ["SimulatedFile", "read_any_robot_file"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedFile:
    """One simulated arm at its table."""

    arm: str
    """Name of a simulated arm (`roboalign.sdk.sim.find_robot`)."""
    task: str | None = None
    """Task whose scene stands on the table; None leaves it empty."""
    seed: int = 0
    """Chooses the scene."""
    camera: str = "front"
    """What the arm's one camera is called; a policy asks for it by this name."""
    size_px: int = 96
    """Height and width of its picture."""

    def __post_init__(self) -> None:
        find_robot(self.arm)
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, expected 0 or more")
        if not 8 <= self.size_px <= 1024:
            raise ConfigError(f"size_px is {self.size_px}, expected 8 to 1024")
        self.scene()

    def scene(self, number: int = 0) -> SceneSpec | None:
        """Returns the scene that is `number` after the first; None for an empty table.

        Raises:
            ConfigError: There is no such task, or it is not laid out for this arm.
        """
        from roboalign.sdk.sim.tasks import scene_for

        return None if self.task is None else scene_for(self.seed + number, self.task, "train", self.arm)

    def robot(self) -> SimRobot:
        """Returns the arm, not connected; the scene is laid out when it is."""
        return SimRobot(robot=self.arm, image_size_px=self.size_px, camera_name=self.camera, scene=self.scene())


def read_any_robot_file(path: str | Path) -> RobotFile | SimulatedFile:
    """Returns the robot of a file, on a serial port or simulated.

    Raises:
        ConfigError: The file cannot be read, or a field is missing, unknown, or cannot be; the message names it.
    """
    file = Path(path)
    content = read_settings(file, "robot file")
    arm = content.get("arm")
    if not (isinstance(arm, str) and arm.startswith(SIMULATED_PREFIX)):
        return read_robot_file(file)
    return _simulated(content, arm.removeprefix(SIMULATED_PREFIX), str(file))


def _simulated(content: Mapping[str, object], arm: str, where: str) -> SimulatedFile:
    top = Table(content, where)
    top.text("arm")
    table = top.table("simulation") or Table({}, where, "simulation.")
    values = {
        "arm": arm,
        "task": table.optional(table.text, "task"),
        "seed": table.whole("seed", 0),
        "camera": table.optional(table.text, "camera") or "front",
        "size_px": table.whole("size_px", 96),
    }
    file = table.build(SimulatedFile, **values)
    return top.build(lambda: file)
