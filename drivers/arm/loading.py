"""From the path of a robot file to a robot."""

from __future__ import annotations

from pathlib import Path

from roboalign.drivers.arm.files import RobotFile, read_robot_file
from roboalign.drivers.arm.serial_arm import SerialArm
from roboalign.drivers.cameras import CameraSet

__all__ = ["load_robot"]


def load_robot(robot: str | Path | RobotFile) -> SerialArm:
    """Returns the arm of a `robot.toml` with its cameras; opens nothing and moves nothing.

    Raises:
        ConfigError: A file is missing or wrong; the message names the field.
    """
    file = robot if isinstance(robot, RobotFile) else read_robot_file(robot)
    return SerialArm(file, cameras=CameraSet(file.cameras) if file.cameras else None)
