"""An arm on a serial bus as a `Robot`: kinematics and limiter here, the bus and its safety in the owner.

`act` returns at once, as on all hardware; the goals are interpolated by the owner until the next action. An arm that
hears nothing for `RobotFile.park_after_s` parks and lets go; `connect()` takes it up again. `disconnect` parks first,
and blocks until the arm was let go and the port is free. Not thread-safe, but for `estop`.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from roboalign.drivers.arm.assembly import ArmParts, assemble
from roboalign.drivers.arm.files import RobotFile
from roboalign.drivers.arm.joints import RAD_PER_COUNT
from roboalign.drivers.arm.links import OwnerLink
from roboalign.drivers.arm.messages import ArmState, Command, Order
from roboalign.drivers.arm.models import MOTORS
from roboalign.drivers.arm.owner import ProcessLink
from roboalign.drivers.arm.states import State
from roboalign.sdk.control.cartesian import CartesianController
from roboalign.sdk.control.kinematics import Kinematics, state_from_pose
from roboalign.sdk.control.pictures import PictureRing
from roboalign.sdk.errors import RobotError, RobotTimeout
from roboalign.sdk.robot import JointDrive, JointReading
from roboalign.sdk.types import Applied, FloatArray, ImageArray, Observation, RobotSpec

__all__ = ["Pictures", "SerialArm"]

_POLL_S = 0.02
_CONNECT_TIMEOUT_S, _PARK_TIMEOUT_S, _CLOSE_TIMEOUT_S = 5.0, 20.0, 30.0
_MAX_AGE_S = 0.5  # of a joint reading that an observation may be made of

_OWNERS = (State.PARKING, State.FAULT, State.CONNECTED)  # the owner alone says what happens


class Pictures(Protocol):
    """The cameras of an arm (`roboalign.drivers.cameras.CameraSet`)."""

    def open(self) -> None:
        """Opens all."""
        ...

    def lend(self, rings: Mapping[str, PictureRing]) -> None:
        """Lets the cameras write where the policy sees; those that are not named give the memory back."""
        ...

    def read_images(self) -> Mapping[str, ImageArray]:
        """Returns the newest picture of each."""
        ...

    @property
    def age_s(self) -> float:
        """Age of the oldest of the newest pictures."""
        ...

    def close(self) -> None:
        """Closes all. Idempotent."""
        ...


class SerialArm:
    """One serial arm. The constructor reads files and opens nothing."""

    def __init__(
        self,
        robot: RobotFile | ArmParts,
        *,
        cameras: Pictures | None = None,
        link: Callable[[ArmParts], OwnerLink] | None = None,
    ) -> None:
        """Puts the arm together.

        Args:
            robot: What `read_robot_file` returns, or what `assemble` made of it.
            cameras: What takes the pictures; needed when the file names cameras and pictures are asked for.
            link: Makes the way to the bus owner; the default starts it as a process of its own.

        Raises:
            ConfigError: A file is missing or wrong, or parts contradict each other.
        """
        self.parts = robot if isinstance(robot, ArmParts) else assemble(robot)
        self._controller = CartesianController(self.parts.spec, self.parts.kinematics)
        self._cameras = cameras
        self._make_link = link or ProcessLink
        self._link: OwnerLink | None = None
        self._is_stopped = False
        self._lock = threading.Lock()

    @property
    def spec(self) -> RobotSpec:
        """Names, limits and rates."""
        return self.parts.spec

    def connect(self, *, rearm: bool = False) -> None:
        """Starts the bus owner, opens port and cameras, then switches torque on gently; blocks until the arm holds."""
        if self._is_stopped and not rearm:
            raise RobotError(f"{self.spec.name} was stopped; look at it, then call connect(rearm=True)")
        is_new = self._link is None
        link = self._link or self._make_link(self.parts)
        if is_new:
            link.open()
            self._link = link
        try:
            if is_new and self._cameras is not None:
                self._cameras.open()  # may take seconds, which an arm with torque would not wait
            state = self._arm(rearm)
        except BaseException:
            if is_new:
                self._drop()
            raise
        self._is_stopped = False
        positions = np.array(state.goal_rad)
        self._controller.reset(positions[:-1], self.parts.joints.width_m(float(positions[-1])))

    def _arm(self, rearm: bool) -> ArmState:
        """Asks for torque, when it has parked, and waits until the arm follows commands."""
        state, waited_s = self.state(), 0.0
        while state.state is State.PARKING and waited_s < _CONNECT_TIMEOUT_S:
            state = self._pause(_POLL_S)
            waited_s += _POLL_S
        state, waited_s = self._ask(Command(order=Order.CONNECT, rearm=rearm)), 0.0
        if state.error:
            raise RobotError(f"{self.spec.name}: {state.error}")
        while state.state not in (State.ACTIVE, State.HOLD):
            if state.state is not State.ARMED:
                raise RobotError(f"{self.spec.name}: {state.reason}")
            if waited_s > _CONNECT_TIMEOUT_S:
                raise RobotTimeout(f"{self.spec.name} was not armed within {_CONNECT_TIMEOUT_S:g} s: {state.reason}")
            state = self._pause(_POLL_S)
            waited_s += _POLL_S
        return state

    def state(self) -> ArmState:
        """Returns everything that the bus owner knows: state and reason, readings and their age, alarms, counts."""
        return self._ask(Command(order=Order.STATE))

    def observe(self, instruction: str = "", with_images: bool = True) -> Observation:
        """Returns the newest readings; `time_s` is when the oldest of them was taken. Takes the newest pictures.

        Raises:
            RobotError: Not connected, or a joint or a camera has not answered for too long.
        """
        state = self.state()
        age_s = max(state.age_s)
        if age_s > _MAX_AGE_S:
            why = "; ".join(state.alarms) or state.reason
            raise RobotTimeout(f"{self.spec.name}: the joints were last read {age_s:.1f} s ago: {why}")
        joints = np.array(state.position_rad[:-1])
        width_m = self.parts.joints.width_m(state.position_rad[-1])
        return Observation(
            images=self._pictures() if with_images else {},
            state=state_from_pose(self._controller.kinematics.forward(joints), width_m),
            joint_pos_rad=joints.astype(np.float32),
            instruction=instruction,
            time_s=state.time_s - age_s,
            commanded=self._controller.commanded,
        )

    def _pictures(self) -> Mapping[str, ImageArray]:
        if self._cameras is None:
            if self.spec.camera_names:
                raise RobotError(f"{self.spec.name} has no cameras open; load it with load_robot(path)")
            return {}
        return self._cameras.read_images()

    def lend_pictures(self, rings: Mapping[str, PictureRing]) -> None:
        """Lets the cameras write where the policy sees (see `run_session`); none ends it."""
        if self._cameras is not None:
            self._cameras.lend(rings)

    def picture_age_s(self) -> float:
        """Returns the age of the newest pictures, the oldest of them; asks no camera and no servo."""
        return 0.0 if self._cameras is None else self._cameras.age_s

    def act(self, action: FloatArray) -> Applied:
        """Limits one action, sends its joint targets, and says what was really sent."""
        state = self._ready()
        problem = self._why_hold(state)
        if problem:
            applied = self._controller.hold(requested=action, reasons=(f"hold: {problem}",))
        else:
            measured = np.array(state.position_rad[:-1])
            applied = self._controller.act(action, measured, 1.0 / self.spec.control_rate_hz)
            applied = dataclasses.replace(applied, reasons=(*applied.reasons, *state.alarms))
        return self._send(applied)

    def hold(self) -> Applied:
        """Stays at the last joint targets; sends nothing while the owner parks, is in a fault, or has let go.

        There the owner looks after the arm: whoever cannot hold would be stopped, and an estop ends the parking.

        Raises:
            RobotError: Not connected, stopped by `estop`, or the owner does not answer.
        """
        if not self._is_stopped and (state := self.state()).state in _OWNERS:
            return self._controller.hold(reasons=(f"nothing was sent ({state.state.value}: {state.reason})",))
        self._ready()
        return self._send(self._controller.hold())

    def _ready(self) -> ArmState:
        """Returns the state of an arm that takes commands. Raises RobotError for every other."""
        if self._is_stopped:
            raise RobotError(f"{self.spec.name} was stopped; look at it, then call connect(rearm=True)")
        state = self.state()
        if state.state not in (State.ACTIVE, State.HOLD):
            is_latched = state.state in (State.FAULT, State.ESTOP)
            help_ = "look at it, then call connect(rearm=True)" if is_latched else "call connect()"
            raise RobotError(f"{self.spec.name} takes no commands ({state.state.value}: {state.reason}); {help_}")
        return state

    def _why_hold(self, state: ArmState) -> str:
        """Returns why the arm must not be moved now, empty when it may."""
        if not np.isfinite(state.position_rad).all():
            return "a joint has never been read"
        silent = [text for text in state.alarms if "cannot be read" in text]
        return silent[0] if silent else ""

    def _send(self, applied: Applied) -> Applied:
        self._command(applied.joint_target_rad, self._controller.gripper_width_m, 1.0 / self.spec.control_rate_hz)
        return applied

    def _command(self, joint_target_rad: FloatArray, width_m: float, period_s: float) -> None:
        motors = self.parts.joints.motors_rad(joint_target_rad, width_m)
        state = self._ask(Command(order=Order.GOAL, motors_rad=tuple(motors.tolist()), within_s=period_s))
        if state.error:
            raise RobotError(f"{self.spec.name}: {state.error}")
        self._opened().pace(period_s)

    @property
    def joint_rate_hz(self) -> float:
        """Joint targets a second: those of the bus owner's cycles."""
        return self.parts.settings.rate_hz

    @property
    def joint_drive(self) -> JointDrive:
        """Targets are a servo's goals at once; its setpoint runs there at the motor's top speed."""
        model = self.parts.file.model
        return JointDrive(
            path="setpoint",
            setpoint_speed_rad_s=tuple(MOTORS[joint.motor].max_speed_rad_s for joint in model.joints),
            resolution_rad=RAD_PER_COUNT,
            body=model.kinematics,
            has_gripper_motor=True,
        )

    @property
    def kinematics(self) -> Kinematics:
        """Where the tool is for which joints."""
        return self.parts.kinematics

    def act_joints(self, joint_target_rad: FloatArray, gripper_width_m: float) -> None:
        """Limits joint targets and sends them to the owner, whose own limits come after; returns at once."""
        state, controller, period_s = self._ready(), self._controller, 1.0 / self.joint_rate_hz
        if problem := self._why_hold(state):
            raise RobotError(f"{self.spec.name}: {problem}")
        measured = np.array(state.position_rad[:-1])
        target, width_m = controller.act_joints(joint_target_rad, gripper_width_m, measured, period_s)
        self._command(target, width_m, period_s)

    def take_readings(self) -> tuple[JointReading, ...]:
        """Returns what the owner sent and read in every cycle since the last call, at most the last 100."""
        joints, rows = self.parts.joints, self._ask(Command(order=Order.TRACE)).trace
        count = len(joints.units)
        return tuple(
            JointReading(
                sent_s=row[0],
                target_rad=tuple(row[2 : 1 + count]),
                target_width_m=joints.width_m(row[1 + count]),
                time_s=row[1],
                joint_pos_rad=tuple(row[2 + count : -1]),
                gripper_width_m=joints.width_m(row[-1]),
            )
            for row in rows
        )

    def park(self) -> None:
        """Moves to the park position and blocks until there; torque stays on."""
        self._go(Order.PARK)

    def go_home(self) -> None:
        """Moves to the home position, from where a policy starts, and blocks until there."""
        self._go(Order.HOME)

    def _go(self, order: Order) -> None:
        self._ready()
        state = self._ask(Command(order=order))
        waited_s = 0.0
        while not state.error and state.state is State.PARKING:
            if waited_s > _PARK_TIMEOUT_S:
                raise RobotTimeout(f"{self.spec.name} did not arrive within {_PARK_TIMEOUT_S:g} s: {state.reason}")
            state = self._pause(_POLL_S)
            waited_s += _POLL_S
        if state.error or state.state is not State.HOLD:
            raise RobotError(f"{self.spec.name} did not arrive: {state.error or state.reason}")
        if state.late:
            raise RobotTimeout(f"{self.spec.name}: {state.reason}")
        joints = np.array(state.goal_rad[:-1])
        self._controller.reset(joints, self._controller.gripper_width_m)

    def estop(self) -> None:
        """Stops all motion at once and latches; every servo is asked whether it has the stop. From any thread.

        Raises:
            RobotError: Connected, and a servo did not confirm, or the owner did not answer: cut the power.
        """
        self._is_stopped = True
        if self._link is None:
            return
        try:
            state = self._ask(Command(order=Order.ESTOP))
        except RobotError as err:
            raise RobotError(f"the stop was not confirmed ({err}): cut the power") from err
        if state.error:
            raise RobotError(f"{self.spec.name}: {state.error}")

    def disconnect(self) -> None:
        """Parks, lets go gently and closes; after an estop or a lost port only lets go. Idempotent.

        Blocks until the port is free.

        Raises:
            RobotError: It is closed, but a servo may have kept its torque; the message says which and why. Or the
                owner left no word, and nobody knows.
        """
        link, unsure = self._link, ""
        if link is None:
            return
        try:
            state = self._ask(Command(order=Order.CLOSE))
            waited_s = 0.0
            while state.state is not State.DISCONNECTED and waited_s < _CLOSE_TIMEOUT_S:
                state = self._pause(_POLL_S)
                waited_s += _POLL_S
            unsure = f"the bus owner goes on by itself ({state.state.value}: {state.reason})"
        except RobotError as err:  # the owner was killed, or has ended between two questions
            unsure = str(err)
        finally:
            self._drop()
        if link.last_word is None:
            raise RobotError(f"{self.spec.name} is closed, but it is not known whether it was let go: {unsure}")
        if link.last_word.kept:
            raise RobotError(f"{self.spec.name} is closed, but not let go: {link.last_word.reason}; cut the power")

    def _drop(self) -> None:
        link, self._link = self._link, None
        try:
            if self._cameras is not None:
                self._cameras.close()
        finally:
            if link is not None:
                link.close()

    def _opened(self) -> OwnerLink:
        if self._link is None:
            raise RobotError(f"{self.spec.name} is not connected; call connect() first")
        return self._link

    def _ask(self, command: Command) -> ArmState:
        link = self._opened()
        with self._lock:
            return link.ask(command)

    def _pause(self, period_s: float) -> ArmState:
        self._opened().wait(period_s)
        return self.state()
