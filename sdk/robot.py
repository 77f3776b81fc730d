"""What every robot does, simulated or real: the `Robot` protocol.

A robot is written once by its driver and checked by `roboalign.drivers.check_robot`. Everything that moves goes through
`roboalign.sdk.control.Limiter`; a driver has no other way to send.

    constructed -- connect() --> connected -- estop() --> stopped
                                   ^   |                     |
                                   |   +-- disconnect() --+  |
                                   +------ connect(rearm=True)

Not thread-safe unless a driver says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from roboalign.sdk.control.kinematics import Kinematics
from roboalign.sdk.types import Applied, FloatArray, Observation, RobotSpec

__all__ = ["JointDrive", "JointReading", "JointRobot", "Robot"]


@runtime_checkable
class Robot(Protocol):
    """One arm with a gripper and cameras. The constructor stores arguments: no port, no file, no thread, no motion."""

    @property
    def spec(self) -> RobotSpec:
        """Names, limits and rates. Can be read before `connect`."""
        ...

    def connect(self, *, rearm: bool = False) -> None:
        """Opens the robot and makes it hold where it is. Does nothing when already connected and not stopped.

        After `estop`, only `rearm=True` connects again: the caller states that a person looked. The tool target starts
        from the measured pose.

        Raises:
            RobotError: The robot cannot be opened, or was stopped and `rearm` is false.
        """
        ...

    def observe(self, instruction: str = "", with_images: bool = True) -> Observation:
        """Reads joints, tool and cameras now; `instruction` is copied into the observation. Does not move.

        `with_images=False` leaves `images` empty, where rendering or reading a camera would cost time. Allowed after
        `estop`.

        Raises:
            RobotError: Not connected, or a sensor did not answer.
        """
        ...

    def act(self, action: FloatArray) -> Applied:
        """Limits one action, sends it, and says what was really sent and why it differs.

        `action` is float32[A] in the order of `spec.action_names`. A value that is not finite, or a target out of
        reach, becomes a hold with a reason, never an exception. On hardware it returns at once; in simulation it
        returns one control period later.

        Raises:
            RobotError: Not connected, stopped, or the robot did not take the command.
            LimitViolation: The action has the wrong shape.
        """
        ...

    def hold(self) -> Applied:
        """Stays at the last joint target, gripper included, for one control period; what was still to come is dropped.

        Raises:
            RobotError: Not connected or stopped.
        """
        ...

    def park(self) -> None:
        """Moves, within the speed limits, to `spec.park_joint_pos_rad`. Blocks until there.

        Raises:
            RobotError: Not connected, stopped, or did not arrive in time (`RobotTimeout`).
        """
        ...

    def estop(self) -> None:
        """Stops all motion at once and latches: `act`, `hold` and `park` raise until `connect(rearm=True)`.

        Never raises for a robot that is not connected, so it can be called from any handler.
        """
        ...

    def disconnect(self) -> None:
        """Stops motion, then closes. Idempotent, safe half-opened; an estop stays latched."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class JointDrive:
    """What is known about the way from joint targets to motors and back, before anything is identified."""

    path: Literal["linear", "setpoint"]
    """`linear`: a target is reached evenly by the time of the next; `setpoint`: it is a servo's goal at once, and its
    setpoint runs there at `setpoint_speed_rad_s`."""
    setpoint_speed_rad_s: tuple[float, ...]
    """Speed of each joint's setpoint; empty for `linear`."""
    resolution_rad: float
    """Step of the encoders; 0 for none."""
    body: str | None
    """The simulated arm with the same links; None when there is none."""
    has_gripper_motor: bool
    """True when the gripper is a servo like the joints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JointReading:
    """One joint target that was sent, and the reading that belongs to it."""

    sent_s: float
    """When the target was sent."""
    target_rad: tuple[float, ...]
    """Arm joints, after every limit."""
    target_width_m: float
    """Distance between the fingers that was asked for."""
    time_s: float
    """When the joints were read, on the same clock."""
    joint_pos_rad: tuple[float, ...]
    """Arm joints as read."""
    gripper_width_m: float
    """Distance between the fingers as read."""


@runtime_checkable
class JointRobot(Robot, Protocol):
    """A robot that also takes joint targets, many a second, and keeps what it read: what `roboalign sysid` wants."""

    @property
    def joint_rate_hz(self) -> float:
        """How many joint targets a second `act_joints` takes."""
        ...

    @property
    def joint_drive(self) -> JointDrive:
        """What is known about the way of a target."""
        ...

    @property
    def kinematics(self) -> Kinematics:
        """Where the tool is for which joints."""
        ...

    def act_joints(self, joint_target_rad: FloatArray, gripper_width_m: float) -> None:
        """Limits joint targets, sends them, and lets one joint period pass where time is simulated.

        Positions, speeds and their changes are limited as for `act`; the workspace box is not asked, so who plans the
        targets keeps the tool off the table. A width that is not finite keeps the last one.

        Raises:
            RobotError: Not connected, stopped, or the robot did not take the command.
        """
        ...

    def take_readings(self) -> tuple[JointReading, ...]:
        """Returns what was sent and read since the last call, oldest first."""
        ...
