"""A robot in memory: real kinematics, limiter and controller, and joints that follow their targets at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from roboalign.sdk.control import CartesianController, Kinematics, state_from_pose
from roboalign.sdk.errors import RobotError
from roboalign.sdk.types import Applied, FloatArray, Observation, RobotSpec

HOME = (0.0, 0.1, 0.0, -2.3, 0.0, 2.4, 0.785)


def panda_spec() -> RobotSpec:
    return RobotSpec(
        name="memory-panda",
        joint_names=tuple(f"panda_joint{index}" for index in range(1, 8)),
        joint_lower_rad=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
        joint_upper_rad=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
        joint_max_speed_rad_s=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
        home_joint_pos_rad=HOME,
        park_joint_pos_rad=(0.0, -0.5, 0.0, -2.6, 0.0, 2.1, 0.785),
        gripper_max_width_m=0.08,
        workspace_lower_m=(0.30, -0.26, 0.005),
        workspace_upper_m=(0.70, 0.26, 0.35),
        max_step_m=0.04,
        max_step_rad=0.2,
        control_rate_hz=10.0,
        camera_names=("front",),
        image_size_px=16,
    )


class MemoryArm:
    """Implements `Robot`; time passes only when it acts."""

    def __init__(self) -> None:
        self.spec = panda_spec()
        self.time_s = 0.0
        self.joints = np.array(HOME, np.float32)
        self.width_m = 0.08
        self._controller: CartesianController | None = None
        self._is_stopped = False

    def connect(self, *, rearm: bool = False) -> None:
        if self._is_stopped and not rearm:
            raise RobotError("the robot was stopped; look at it, then connect(rearm=True)")
        if self._controller is None or self._is_stopped:
            pybullet_data = pytest.importorskip("pybullet_data", reason="its panda.urdf")
            urdf = Path(pybullet_data.getDataPath(), "franka_panda", "panda.urdf")
            self._controller = CartesianController(self.spec, Kinematics.from_urdf(urdf))
            self._controller.reset(self.joints, self.width_m)
            self._is_stopped = False

    def observe(self, instruction: str = "", with_images: bool = True) -> Observation:
        if self._controller is None:
            raise RobotError("not connected")
        image = np.zeros((16, 16, 3), np.uint8)
        return Observation(
            images={"front": image} if with_images else {},
            state=state_from_pose(self._controller.kinematics.forward(self.joints), self.width_m),
            joint_pos_rad=self.joints.copy(),
            instruction=instruction,
            time_s=self.time_s,
        )

    def act(self, action: FloatArray) -> Applied:
        return self._send(self._ready().act(action, self.joints, 0.1))

    def hold(self) -> Applied:
        return self._send(self._ready().hold())

    def park(self) -> None:
        controller = self._ready()
        self.joints = np.array(self.spec.park_joint_pos_rad, np.float32)
        controller.reset(self.joints, self.width_m)

    def estop(self) -> None:
        self._is_stopped = True

    def disconnect(self) -> None:
        self._controller = None

    def _ready(self) -> CartesianController:
        if self._controller is None or self._is_stopped:
            raise RobotError("not connected, or stopped")
        return self._controller

    def _send(self, applied: Applied) -> Applied:
        self.time_s += 0.1
        self.joints = applied.joint_target_rad.copy()
        self.width_m = self._ready().gripper_width_m
        return applied


@pytest.fixture
def make_arm() -> Callable[[], MemoryArm]:
    return MemoryArm


@pytest.fixture
def arm() -> MemoryArm:
    return MemoryArm()
