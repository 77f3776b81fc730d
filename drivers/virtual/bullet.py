"""The simulated SO-101 of `roboalign.sdk.sim` as a plant of servos: gravity, contacts, and pictures of the scene.

Joints without torque fall, held by the gear's friction alone; a joint that presses on something shows it in its torque.
With a drawn sample (`HiddenDynamics`) servos follow late, slowly, with play and a dead band, and readings and pictures
are as it says. Left out: that a weak battery makes a motor weak. The jaw's motor is weaker than the arm's, because
boxes pressed with 30 N slip away in PyBullet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from roboalign.drivers.virtual.hidden import HiddenDynamics
from roboalign.drivers.virtual.physics import FULL_TORQUE_RAD, JointState, MotorCommand
from roboalign.drivers.virtual.robots import JOINTS, PARK_RAD
from roboalign.sdk.errors import ConfigError, RobotError, unknown_name
from roboalign.sdk.randomization.domain import DomainSample
from roboalign.sdk.sim.bodies import RobotBody
from roboalign.sdk.sim.camera import Camera, front_camera, show_camera
from roboalign.sdk.sim.scene import SceneSpec
from roboalign.sdk.sim.so101 import so101_gripper_width_m
from roboalign.sdk.sim.world import PHYSICS_RATE_HZ, BodyState, SimWorld
from roboalign.sdk.types import FloatArray, ImageArray

__all__ = ["BulletPlant"]

_GRIPPER_STALL_NM = 1.2
_FRICTION_NM = (0.1, 0.1, 0.1, 0.06, 0.06, 0.04)
_CAMERAS = {"front": front_camera, "show": show_camera}


class BulletPlant:
    """An SO-101 in PyBullet, driven joint by joint. `open` builds the scene, `close` frees it.

    Any virtual robot of six joints can be put on it; the body stays that of an SO-101.
    """

    def __init__(
        self, scene: SceneSpec | None = None, *, renderer: str = "auto", domain: DomainSample | None = None
    ) -> None:
        """Stores what stands on the table (None: nothing), who draws pictures, and the hidden dynamics (None: none)."""
        self._domain = None if domain is None or domain.is_off else domain
        self._hidden: HiddenDynamics | None = None
        self._frame_px = 96
        self._scene = scene
        self._world = SimWorld(robot="so101", renderer=renderer)
        self._robot: RobotBody | None = None
        self._indices: list[int] = []
        self._stops: list[tuple[float, float]] = []
        self._bounds: list[tuple[float, float]] = []
        self._outside = [0.0] * len(JOINTS)
        self._step_s = 0.0
        self._cameras: dict[tuple[str, int], Camera] = {}
        self._stall_nm = (*self._world.model.arm_force, _GRIPPER_STALL_NM)

    def open(self) -> BulletPlant:
        """Builds the scene with the arm in the park position and no torque."""
        self._world.connect()
        self._world.build(self._scene, np.array(PARK_RAD[:-1]), self._domain)
        self._world.set_joints(np.array(PARK_RAD[:-1]), so101_gripper_width_m(PARK_RAD[-1]))
        robot = self._robot = self._world.robot_body()
        self._indices = [robot.joints[name] for name in JOINTS]
        infos = [robot.bullet.getJointInfo(robot.body, index, physicsClientId=robot.client) for index in self._indices]
        self._stops = [(float(info[8]), float(info[9])) for info in infos]
        self._bounds = list(self._stops)
        self._step_s = 0.0
        if self._domain is not None:
            self._hidden = HiddenDynamics(self._domain, self._world.model)
            self._hidden.rest([state.position_rad for state in self.states()])
            self._hidden.frames.advance(self._picture)
        return self

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Joints in the order of all sequences here."""
        return JOINTS

    def states(self) -> list[JointState]:
        """Returns every joint as it is now."""
        robot = self._body()
        found = robot.bullet.getJointStates(robot.body, self._indices, physicsClientId=robot.client)
        return [
            JointState(state[0], state[1], max(-1.0, min(1.0, state[3] / stall)))
            for state, stall in zip(found, self._stall_nm, strict=True)
        ]

    def step(self, commands: Sequence[MotorCommand], period_s: float) -> None:
        """Lets `period_s` pass in steps of at most 1/240 s; setpoints run evenly."""
        robot = self._body()
        p, cid = robot.bullet, robot.client
        if self._hidden is not None:
            self._step_hidden(self._hidden, commands, period_s)
            return
        count = max(1, math.ceil(period_s * PHYSICS_RATE_HZ - 1e-6))
        step_s = period_s / count
        if step_s != self._step_s:
            p.setPhysicsEngineParameter(fixedTimeStep=step_s, physicsClientId=cid)
            self._step_s = step_s
        for index, command in enumerate(commands):
            if command.mode != "position":
                self._drive(index, command, 0.0)
        for substep in range(1, count + 1):
            for index, command in enumerate(commands):
                if command.mode == "position":
                    self._drive(index, command, (count - substep) * step_s)
                if self._outside[index] or command.mode == "torque":
                    self._turn(index, command)
            p.stepSimulation(physicsClientId=cid)

    def _step_hidden(self, hidden: HiddenDynamics, commands: Sequence[MotorCommand], period_s: float) -> None:
        """Takes the physics steps that end in a period, each with what the hidden dynamics make of the commands."""
        robot = self._body()
        p, cid, step_s = robot.bullet, robot.client, 1.0 / PHYSICS_RATE_HZ
        self._step_s = step_s
        free = [index for index, command in enumerate(commands) if command.mode != "position"]
        for left_s in hidden.whole_steps(period_s):
            targets = [command.value - command.velocity_rad_s * left_s for command in commands]
            places = [state.position_rad for state in self.states()] if free else targets
            followed, speeds = hidden.follow(targets, free, places)
            for index, command in enumerate(commands):
                if command.mode == "position":
                    command = replace(command, value=followed[index], velocity_rad_s=speeds[index])
                self._drive(index, command, 0.0, hidden.gain_scale[index])
                if self._outside[index] or command.mode == "torque":
                    self._turn(index, command)
            p.stepSimulation(physicsClientId=cid)
            if hidden.is_control_step:
                hidden.frames.advance(self._picture)

    def errors_rad(self) -> Sequence[float] | None:
        """Returns by how much each joint reads wrong in the reading that begins now; None: the last one comes again."""
        if self._hidden is None:
            return (0.0,) * len(JOINTS)
        return self._hidden.errors_rad([state.position_rad for state in self.states()])

    def _drive(self, index: int, command: MotorCommand, left_s: float, gain_scale: float = 1.0) -> None:
        """Gives a motor its target for `left_s` before the end of the period."""
        robot = self._body()
        p, stall = robot.bullet, self._stall_nm[index]
        where = {"bodyUniqueId": robot.body, "jointIndex": self._indices[index], "physicsClientId": robot.client}
        low, high = self._bounds[index]
        if command.mode == "position" and not low <= command.value <= high:
            self._press(index, command)
        elif command.mode == "position":
            p.setJointMotorControl2(
                controlMode=p.POSITION_CONTROL,
                targetPosition=command.value - command.velocity_rad_s * left_s,
                targetVelocity=command.velocity_rad_s,
                positionGain=self._world.model.arm_position_gain * gain_scale,
                velocityGain=1.0,
                force=command.limit_share * stall,
                maxVelocity=command.max_speed_rad_s,
                **where,
            )
        elif command.mode == "velocity":
            p.setJointMotorControl2(
                controlMode=p.VELOCITY_CONTROL, targetVelocity=command.value, force=command.limit_share * stall, **where
            )
        else:
            p.setJointMotorControl2(
                controlMode=p.VELOCITY_CONTROL, targetVelocity=0.0, force=_FRICTION_NM[index], **where
            )

    def _press(self, index: int, command: MotorCommand) -> None:
        """Drives towards a goal behind a stop: PyBullet would cut the goal, and no torque would be seen."""
        robot = self._body()
        p, cid, joint = robot.bullet, robot.client, self._indices[index]
        error = command.value - p.getJointState(robot.body, joint, physicsClientId=cid)[0]
        speed = error * self._world.model.arm_position_gain / self._step_s
        top = command.max_speed_rad_s
        share = min(command.limit_share, abs(error) / FULL_TORQUE_RAD)
        p.setJointMotorControl2(
            robot.body,
            joint,
            p.VELOCITY_CONTROL,
            targetVelocity=min(top, max(-top, speed)),
            force=share * self._stall_nm[index],
            physicsClientId=cid,
        )

    def _turn(self, index: int, command: MotorCommand) -> None:
        """Adds an outside torque, and the motor's own in torque control, for one step."""
        robot = self._body()
        share = self._outside[index] + (command.value if command.mode == "torque" else 0.0)
        robot.bullet.setJointMotorControl2(
            robot.body,
            self._indices[index],
            robot.bullet.TORQUE_CONTROL,
            force=share * self._stall_nm[index],
            physicsClientId=robot.client,
        )

    def place(self, joint: str, position_rad: float) -> None:
        """Turns a joint by hand, at once; it stays between its stops."""
        robot, index = self._body(), self._index(joint)
        low, high = self._stops[index]
        value = min(high, max(low, position_rad))
        robot.bullet.resetJointState(robot.body, self._indices[index], value, physicsClientId=robot.client)

    def block(self, joint: str, lower_rad: float | None, upper_rad: float | None) -> None:
        """Puts a joint between obstacles, or takes them away with None; the mechanical stops stay."""
        robot, index = self._body(), self._index(joint)
        low, high = self._stops[index]
        low = low if lower_rad is None else max(low, lower_rad)
        high = high if upper_rad is None else min(high, upper_rad)
        self._bounds[index] = (low, high)
        robot.bullet.changeDynamics(
            robot.body, self._indices[index], jointLowerLimit=low, jointUpperLimit=high, physicsClientId=robot.client
        )

    def push(self, joint: str, torque_share: float) -> None:
        """Lets something outside turn a joint with this share of its stall torque, until another value comes."""
        self._outside[self._index(joint)] = torque_share

    def frame(self, name: str, size_px: int) -> ImageArray:
        """Returns uint8[size, size, 3] as the camera `front` (the policy's) or `show` (wider) sees the scene."""
        self._body()
        if name not in _CAMERAS:
            raise RobotError(unknown_name("camera", name, _CAMERAS))
        key = (name, size_px)
        if key not in self._cameras:
            self._cameras[key] = _CAMERAS[name](size_px, self._world.model.table)
        if self._hidden is None or name != "front":
            return self._world.render(self._cameras[key])
        self._frame_px = size_px
        return self._hidden.frames.read(self._picture)

    def _picture(self) -> ImageArray:
        """The policy's camera, in the size that was asked for last."""
        key = ("front", self._frame_px)
        if key not in self._cameras:
            self._cameras[key] = front_camera(self._frame_px, self._world.model.table)
        return self._world.render(self._cameras[key])

    def tool_position_m(self) -> tuple[float, float, float]:
        """Returns where the tool is in the base frame."""
        x, y, z = self._world.tool_pose()[0].tolist()
        return (x, y, z)

    def body_states(self) -> dict[str, BodyState]:
        """Returns pose, speed and contacts of every object on the table by name."""
        return self._world.body_states()

    def move_body(self, name: str, position_m: FloatArray, yaw_rad: float) -> None:
        """Puts an object upright at a place at once, as a person at the table does."""
        self._body()
        self._world.place_object(name, position_m, yaw_rad)

    def state_hash(self) -> str:
        """Returns the SHA-256 of the whole physical state."""
        return self._world.state_hash()

    def close(self) -> None:
        """Frees the simulation. Idempotent."""
        self._world.close()
        self._robot = None

    def _body(self) -> RobotBody:
        if self._robot is None:
            raise RobotError("the simulated arm is not open; call open() first")
        return self._robot

    def _index(self, joint: str) -> int:
        if joint not in JOINTS:
            raise ConfigError(unknown_name("joint", joint, JOINTS))
        return JOINTS.index(joint)
