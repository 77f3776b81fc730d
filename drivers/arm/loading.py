"""From the path of a robot file to a robot."""

from __future__ import annotations

from pathlib import Path

from roboalign.drivers.arm.files import RobotFile
from roboalign.drivers.arm.serial_arm import SerialArm
from roboalign.drivers.arm.simulation import SimulatedFile, read_any_robot_file
from roboalign.drivers.cameras import CameraSet
from roboalign.sdk.sim.robot import SimRobot

__all__ = ["load_robot"]


def load_robot(robot: str | Path | RobotFile | SimulatedFile) -> SerialArm | SimRobot:
    """Returns the robot of a `robot.toml`; opens nothing and moves nothing.

    An arm on a serial port comes with its cameras, whether servos or a virtual arm answer there; `arm = "sim:..."` is a
    simulated one with its scene.

    Raises:
        ConfigError: A file is missing or wrong; the message names the field.
    """
    file = robot if isinstance(robot, (RobotFile, SimulatedFile)) else read_any_robot_file(robot)
    if isinstance(file, SimulatedFile):
        return file.robot()
    return SerialArm(file, cameras=CameraSet(file.cameras) if file.cameras else None)
