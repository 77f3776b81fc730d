"""A simulated arm as a `Robot`: the same protocol, kinematics and limiter as hardware, in front of `SimWorld`."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from roboalign.sdk.control.cartesian import CartesianController
from roboalign.sdk.control.kinematics import Kinematics, state_from_pose, tool_pose
from roboalign.sdk.errors import ConfigError, RobotError, RobotTimeout
from roboalign.sdk.randomization.domain import DomainSample
from roboalign.sdk.randomization.sensing import FrameBuffer, JointSensor
from roboalign.sdk.robot import JointDrive, JointReading
from roboalign.sdk.sim.camera import front_camera
from roboalign.sdk.sim.robots import RobotModel, find_robot
from roboalign.sdk.sim.scene import SceneSpec
from roboalign.sdk.sim.world import PHYSICS_RATE_HZ, SimWorld
from roboalign.sdk.types import Applied, FloatArray, Observation, RobotSpec

__all__ = ["JOINT_RATE_HZ", "SimRobot"]

JOINT_RATE_HZ = 120
"""Joint targets per second in `SimRobot.act_joints`."""

_PARK_TIMEOUT_S = 20.0
_PARK_TOLERANCE_RAD = 0.01


class SimRobot:
    """An arm in a `SimWorld`. `act` and `hold` return one control period of simulated time later.

    Everything that moves goes through `CartesianController`, whose limiter cannot be left out. The world may be shared
    with whoever lays out scenes (`SimEnv`); a robot that is connected without a scene stands at an empty table.
    """

    def __init__(
        self,
        world: SimWorld | None = None,
        *,
        robot: str | RobotModel = "panda",
        image_size_px: int = 96,
        renderer: str = "auto",
        camera_name: str = "front",
        scene: SceneSpec | None = None,
    ) -> None:
        """Stores the arm, by name or as a model; a given world brings its own, and its camera and renderer.

        Its one camera is called `camera_name`. `scene` is what `connect` lays out where no scene stands yet.
        """
        self.model = find_robot(robot) if world is None else world.model
        self._spec = dataclasses.replace(self.model.spec(image_size_px), camera_names=(camera_name,))
        self._scene = scene
        camera = front_camera(image_size_px, self.model.table)
        self.world = SimWorld(robot=self.model, camera=camera, renderer=renderer) if world is None else world
        self._controller: CartesianController | None = None
        self._frames = FrameBuffer(self.world.domain)
        self._sensor = JointSensor(self.world.domain)
        self._is_stopped = False
        self._readings: list[JointReading] = []
        self._joint_steps = 0

    @property
    def spec(self) -> RobotSpec:
        """Names, limits and rates."""
        return self._spec

    @property
    def controller(self) -> CartesianController:
        """The way from actions to joint targets; raises RobotError before `connect`."""
        if self._controller is None:
            raise RobotError("the simulated robot is not connected; call connect() first")
        return self._controller

    def connect(self, *, rearm: bool = False) -> None:
        """Opens the simulation and holds where the arm is; where no scene stands, its own, or an empty table."""
        if self._is_stopped and not rearm:
            raise RobotError("the robot was stopped; look at it, then call connect(rearm=True)")
        if self._controller is not None and not self._is_stopped:
            return
        self.world.connect()
        if not self.world.is_built:
            if self._scene is not None:
                self.load_scene(self._scene)
                return
            self.world.build(None)
        self._is_stopped = False
        self._anchor()
        self._start_senses()

    def load_scene(self, scene: SceneSpec, domain: DomainSample | None = None) -> None:
        """Builds a scene with the tool at its start; the robot is connected afterwards and an estop is over.

        Args:
            scene: What stands on the table, and where the tool starts.
            domain: What the randomisation drew for this episode; None means off.

        Raises:
            ConfigError: The scene was laid out for another arm, or its start is out of reach.
        """
        if scene.robot != self.model.name:
            raise ConfigError(f"the scene is laid out for robot {scene.robot!r}, this one is {self.model.name!r}")
        kinematics = self.model.kinematics()
        pose = tool_pose(scene.tool_start_m, scene.tool_yaw_rad)
        home = self._spec.home_joint_pos_rad
        start = kinematics.inverse(pose, home, rest_joint_pos_rad=home, position_tolerance_m=1e-6)
        if start.position_error_m > 1e-3:
            raise ConfigError(f"SceneSpec.tool_start_m is {scene.tool_start_m}: {start.reason}")
        self.world.connect()
        self.world.build(scene, start.joint_pos_rad, domain)
        self._is_stopped = False
        self._anchor()
        self._start_senses()

    def load_empty(self, domain: DomainSample) -> None:
        """Builds an empty table with the arm at home, its dynamics and senses drawn; connected afterwards."""
        self.world.connect()
        self.world.build(None, domain=domain)
        self._is_stopped = False
        self._anchor()
        self._start_senses()

    def _anchor(self) -> None:
        if self._controller is None:
            self._controller = CartesianController(self._spec, self.model.kinematics())
        self._controller.reset(self.world.joint_pos_rad(), self.world.gripper_width_m())

    def _start_senses(self) -> None:
        self._frames = FrameBuffer(self.world.domain)
        self._sensor = JointSensor(self.world.domain)
        self._sense()

    def _sense(self) -> None:
        """Takes what is true now into the sensors, once a control step; exact ones are read when they are asked."""
        self._frames.advance(self.world.render)
        if not self._sensor.is_exact:
            self._sensor.advance(self.world.joint_pos_rad(), self.world.gripper_width_m())

    def observe(self, instruction: str = "", with_images: bool = True) -> Observation:
        """Reads joints and tool, and renders its camera when images are wanted."""
        if self._controller is None:
            raise RobotError("the simulated robot is not connected; call connect() first")
        if self._sensor.is_exact:
            joints, width_m = self.world.joint_pos_rad(), self.world.gripper_width_m()
        else:
            joints, width_m = self._sensor.read()
        return Observation(
            images={self._spec.camera_names[0]: self._frames.read(self.world.render)} if with_images else {},
            state=state_from_pose(self.model.kinematics().forward(joints), width_m),
            joint_pos_rad=joints.astype(np.float32),
            instruction=instruction,
            time_s=self.world.time_s,
            commanded=self._controller.commanded,
        )

    def tool_state(self) -> FloatArray:
        """Returns float32[5], the true tool state in the order of `STATE_NAMES`; `observe` has it as it is sensed."""
        joints = self.world.joint_pos_rad()
        return state_from_pose(self.model.kinematics().forward(joints), self.world.gripper_width_m())

    def tool_ahead(self) -> FloatArray:
        """Returns float32[4], from the true tool to where it comes to rest after all that was sent, in x, y, z, yaw."""
        forward, joints = self.model.kinematics().forward, self.world.joint_pos_rad()
        ahead = self.world.on_the_way_rad()
        if not ahead.any():
            return np.zeros(4, np.float32)
        change = state_from_pose(forward(joints + ahead), 0.0) - state_from_pose(forward(joints), 0.0)
        change[3] = math.remainder(change[3], 2 * math.pi)
        return change[:4]

    def act(self, action: FloatArray) -> Applied:
        """Limits one action, simulates one control period, and says what was sent."""
        controller = self._armed()
        applied = controller.act(action, self.world.joint_pos_rad(), 1.0 / self._spec.control_rate_hz)
        self._send(applied)
        return applied

    def hold(self) -> Applied:
        """Simulates one control period at the last joint targets."""
        applied = self._armed().hold()
        self._send(applied)
        return applied

    def _send(self, applied: Applied) -> None:
        width = self.controller.gripper_width_m
        self.world.step_control(np.asarray(applied.joint_target_rad, np.float64), width)
        self._sense()

    @property
    def joint_rate_hz(self) -> float:
        """Joint targets per second that `act_joints` takes."""
        return float(JOINT_RATE_HZ)

    @property
    def joint_drive(self) -> JointDrive:
        """How targets become motion before any servo: they run linearly, and joints are read exactly."""
        model = self.model
        return JointDrive(
            path="linear", setpoint_speed_rad_s=(), resolution_rad=0.0, body=model.name, has_gripper_motor=False
        )

    @property
    def kinematics(self) -> Kinematics:
        """Where the tool is for which joints."""
        return self.model.kinematics()

    def act_joints(self, joint_target_rad: FloatArray, gripper_width_m: float) -> None:
        """Limits joint targets and simulates one joint period; `take_readings` has what was sensed after it."""
        controller = self._armed()
        sent_s, measured_rad = self.world.time_s, self.world.joint_pos_rad()
        target, width_m = controller.act_joints(joint_target_rad, gripper_width_m, measured_rad, 1.0 / JOINT_RATE_HZ)
        self.world.step_control(target.astype(np.float64), width_m, PHYSICS_RATE_HZ // JOINT_RATE_HZ)
        self._joint_steps += 1
        if self._joint_steps % (JOINT_RATE_HZ // round(self._spec.control_rate_hz)) == 0:
            self._frames.advance(self.world.render)
        joints, measured_m = self.world.joint_pos_rad(), self.world.gripper_width_m()
        if not self._sensor.is_exact:
            self._sensor.advance(joints, measured_m)
            joints, measured_m = self._sensor.read()
        self._readings.append(
            JointReading(
                sent_s=sent_s,
                target_rad=tuple(target.astype(np.float64).tolist()),
                target_width_m=width_m,
                time_s=self.world.time_s,
                joint_pos_rad=tuple(joints.tolist()),
                gripper_width_m=measured_m,
            )
        )

    def take_readings(self) -> tuple[JointReading, ...]:
        """Returns what was sent and sensed since the last call, oldest first."""
        taken, self._readings = tuple(self._readings), []
        return taken

    def park(self) -> None:
        """Moves the joints to the park position within the speed limits."""
        controller = self._armed()
        goal = np.asarray(self._spec.park_joint_pos_rad, np.float64)
        period_s = 1.0 / self._spec.control_rate_hz
        target = controller.joint_target_rad
        for _ in range(int(_PARK_TIMEOUT_S / period_s)):
            measured = self.world.joint_pos_rad()
            if np.abs(measured - goal).max() < _PARK_TOLERANCE_RAD:
                controller.reset(measured, controller.gripper_width_m)
                return
            target, _ = controller.limiter.limit_joints(goal, target, measured, period_s)
            self.world.step_control(target.astype(np.float64), controller.gripper_width_m)
            self._sense()
        raise RobotTimeout(f"the arm did not reach its park position within {_PARK_TIMEOUT_S} s; something blocks it")

    def estop(self) -> None:
        """Stops at the measured joints and latches."""
        self._is_stopped = True
        if self._controller is not None:
            joints = self.world.joint_pos_rad()
            self._controller.reset(joints, self.world.gripper_width_m())
            self.world.freeze(joints)

    def disconnect(self) -> None:
        """Closes the simulation; an estop stays latched."""
        self._controller = None
        self.world.close()

    def _armed(self) -> CartesianController:
        if self._is_stopped:
            raise RobotError("the robot was stopped; look at it, then call connect(rearm=True)")
        return self.controller
