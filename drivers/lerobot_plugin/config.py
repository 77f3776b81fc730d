"""A LeRobot robot type `roboalign`: the robot of a `robot.toml`, or a simulated arm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lerobot.robots import Robot, RobotConfig  # type: ignore[import-not-found]  # needs Python 3.12, not a dependency

from roboalign.drivers.lerobot_arm import LeRobotArm
from roboalign.sdk import robot as sdk_robot
from roboalign.sdk.control.kinematics import Kinematics

__all__ = ["Roboalign", "RoboalignConfig"]


@RobotConfig.register_subclass("roboalign")
@dataclass
class RoboalignConfig(RobotConfig):  # type: ignore[misc]  # as above
    """Settings of the type `roboalign`."""

    file: str | None = None
    """A `robot.toml`; None is the simulated `arm`."""
    arm: str = "so101"
    """Simulated arm when there is no file."""
    actions: str = "tool"
    """`tool` (displacements, as our policies) or `joints` (degrees, as LeRobot's arms)."""


class Roboalign(Robot):  # type: ignore[misc]  # as above
    """Delegates to `LeRobotArm`; LeRobot finds the class by the name of its settings."""

    config_class = RoboalignConfig
    name = "roboalign"

    def __init__(self, config: RoboalignConfig) -> None:
        super().__init__(config)
        self.config = config

    @cached_property
    def _arm(self) -> LeRobotArm:
        robot, kinematics = _open(self.config)
        return LeRobotArm(robot, actions=self.config.actions, kinematics=kinematics)

    @property
    def cameras(self) -> dict[str, Any]:
        """Camera names; LeRobot counts them."""
        return self._arm.cameras

    @property
    def observation_features(self) -> dict[str, Any]:
        """See `LeRobotArm`."""
        return self._arm.observation_features

    @property
    def action_features(self) -> dict[str, Any]:
        """See `LeRobotArm`."""
        return self._arm.action_features

    @property
    def is_connected(self) -> bool:
        """See `LeRobotArm`."""
        return self._arm.is_connected

    @property
    def is_calibrated(self) -> bool:
        """See `LeRobotArm`."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """See `LeRobotArm`."""
        self._arm.connect(calibrate)

    def calibrate(self) -> None:
        """See `LeRobotArm`."""

    def configure(self) -> None:
        """See `LeRobotArm`."""

    def get_observation(self) -> dict[str, Any]:
        """See `LeRobotArm`."""
        return self._arm.get_observation()

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """See `LeRobotArm`."""
        return self._arm.send_action(action)

    def disconnect(self) -> None:
        """See `LeRobotArm`."""
        self._arm.disconnect()


def _open(config: RoboalignConfig) -> tuple[sdk_robot.Robot, Kinematics]:
    """Returns the robot with its own kinematics; those of the simulated `arm` moved any other arm wrongly."""
    from roboalign.sdk.sim.robot import SimRobot

    if config.file is None:
        simulated = SimRobot(robot=config.arm)
        return simulated, simulated.model.kinematics()
    from roboalign import drivers

    arm = drivers.load_robot(config.file)
    return arm, arm.model.kinematics() if isinstance(arm, SimRobot) else arm.parts.kinematics
