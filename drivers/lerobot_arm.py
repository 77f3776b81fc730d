"""One of our robots as LeRobot's commands want it: a set of names, without importing lerobot (0.6.1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from roboalign.drivers.following import ToolFollower
from roboalign.sdk.control.kinematics import Kinematics, state_from_pose
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.robot import Robot
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, FloatArray, Observation

__all__ = ["LeRobotArm"]

_GRIPPER_KEY = "gripper.pos"


class LeRobotArm:
    """One of our robots with the names that LeRobot asks for.

    With `actions="tool"`, values are ours: `STATE_NAMES`, `ACTION_NAMES`, in metres and radians; a data set that
    LeRobot records then trains our policies. With `actions="joints"` they are LeRobot's: `<joint>.pos` in degrees of
    the URDF, `gripper.pos` from 0 (closed) to 100. A joint target moves the tool towards where it would put it, the
    tool pointing down; what was really sent is returned, as LeRobot wants it.
    """

    name = "roboalign"
    config_class: type | None = None

    def __init__(self, robot: Robot, *, actions: str = "tool", kinematics: Kinematics | None = None) -> None:
        """Stores the arguments. Joint actions need the arm's `kinematics`.

        Raises:
            ConfigError: `actions` is neither, or `kinematics` are missing.
        """
        if actions not in ("tool", "joints"):
            raise ConfigError(f"actions is {actions!r}, expected tool or joints")
        if actions == "joints" and kinematics is None:
            raise ConfigError("actions='joints' needs the arm's kinematics, e.g. find_robot('so101').kinematics()")
        self.robot = robot
        self.robot_type = f"{self.name}_{robot.spec.name}"
        self.id: str | None = robot.spec.name
        self.cameras = dict.fromkeys(robot.spec.camera_names)
        self._actions, self._kinematics = actions, kinematics
        self._follower = ToolFollower(robot.spec)
        self._is_connected = False

    @property
    def observation_features(self) -> dict[str, Any]:
        """Floats and picture shapes by key."""
        spec = self.robot.spec
        size = spec.image_size_px
        return {**dict.fromkeys(self._state_keys, float), **dict.fromkeys(spec.camera_names, (size, size, 3))}

    @property
    def action_features(self) -> dict[str, Any]:
        """Floats by key."""
        return dict.fromkeys(ACTION_NAMES if self._actions == "tool" else self._state_keys, float)

    @property
    def is_connected(self) -> bool:
        """True between `connect` and `disconnect`."""
        return self._is_connected

    @property
    def is_calibrated(self) -> bool:
        """Always true: a robot that is not calibrated cannot be loaded."""
        return True

    def calibrate(self) -> None:
        """Nothing to do: `roboalign calibrate` does."""

    def configure(self) -> None:
        """Nothing to do: our driver configures when it connects."""

    def connect(self, calibrate: bool = True) -> None:
        """Connects the robot; it holds where it is."""
        del calibrate
        self.robot.connect()
        self._is_connected = True
        self._follower.reset(self.robot.observe(with_images=False))

    def get_observation(self) -> dict[str, Any]:
        """Returns state and pictures by key."""
        seen = self.robot.observe()
        return {**dict(zip(self._state_keys, self._state_values(seen), strict=True)), **seen.images}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Sends one action and returns what was really sent.

        Raises:
            DataError: A key is missing.
        """
        keys = tuple(self.action_features)
        missing = [key for key in keys if key not in action]
        if missing:
            raise DataError(f"the action lacks {', '.join(missing)}; expected {', '.join(keys)}")
        values = np.array([float(action[key]) for key in keys], np.float32)
        applied = self.robot.act(values if self._actions == "tool" else self._follower.towards(self._place(values)))
        self._follower.took(applied)
        if self._actions == "tool":
            sent = [float(value) for value in applied.sent]
        else:
            sent = [*np.degrees(applied.joint_target_rad).tolist(), 100.0 * float(applied.sent[4])]
        return dict(zip(keys, sent, strict=True))

    def disconnect(self) -> None:
        """Stops the robot and closes it."""
        self._is_connected = False
        self.robot.disconnect()

    @property
    def _state_keys(self) -> tuple[str, ...]:
        if self._actions == "tool":
            return STATE_NAMES
        return (*(f"{name}.pos" for name in self.robot.spec.joint_names), _GRIPPER_KEY)

    def _state_values(self, seen: Observation) -> list[float]:
        if self._actions == "tool":
            return [float(value) for value in seen.state]
        percent = 100.0 * float(seen.state[4]) / self.robot.spec.gripper_max_width_m
        return [*np.degrees(seen.joint_pos_rad).tolist(), percent]

    def _place(self, values: FloatArray) -> FloatArray:
        if self._kinematics is None:
            raise ConfigError("joint actions need kinematics")
        if not np.isfinite(values).all():
            return np.full(len(STATE_NAMES), np.nan, np.float32)
        width_m = self.robot.spec.gripper_max_width_m * float(values[-1]) / 100.0
        return state_from_pose(self._kinematics.forward(np.radians(values[:-1].astype(np.float64))), width_m)
