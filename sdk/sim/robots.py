"""The simulated arms by name."""

from __future__ import annotations

from types import MappingProxyType

from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.sim.model import GripperModel, RobotModel
from roboalign.sdk.sim.panda import PANDA
from roboalign.sdk.sim.so101 import SO101

__all__ = ["ROBOTS", "GripperModel", "RobotModel", "find_robot"]

ROBOTS = MappingProxyType({model.name: model for model in (PANDA, SO101)})
"""Every simulated arm by name."""


def find_robot(robot: str | RobotModel) -> RobotModel:
    """Returns the arm of this name; a model is returned as it is.

    Raises:
        ConfigError: There is no arm of this name.
    """
    if isinstance(robot, RobotModel):
        return robot
    if robot in ROBOTS:
        return ROBOTS[robot]
    raise ConfigError(unknown_name("robot", str(robot), ROBOTS))
