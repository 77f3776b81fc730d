"""What the servos of a virtual arm move: the `JointPlant` protocol, and a plant of independent joints without gravity.

`KinematicPlant` is light and exact to repeat: joints that follow their servo within speed and torque limits, an angle
that blocks a joint, and an outside torque on it. What it leaves out: gravity, coupling between joints, backlash. The
plant with all of that is `roboalign.drivers.virtual.bullet.BulletPlant`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from roboalign.sdk.errors import ConfigError, RobotError, unknown_name
from roboalign.sdk.types import ImageArray

__all__ = ["FULL_TORQUE_RAD", "OFF", "JointPlant", "JointState", "KinematicPlant", "MotorCommand"]

FULL_TORQUE_RAD = 0.15
"""Position error at which a servo that is held back pushes with all it has."""

_FOLLOW_S = 0.02  # time constant of a joint behind its servo's setpoint
_FRICTION_SHARE = 0.04  # torque of a joint that moves freely
_ACCELERATION_RAD_S2 = 90.0  # of a joint under full torque


@dataclass(frozen=True, slots=True)
class JointState:
    """A joint as it is."""

    position_rad: float
    """Angle, not wrapped."""
    velocity_rad_s: float
    """Speed."""
    torque_share: float
    """Torque of the motor as a share of its stall torque, -1 to 1."""


@dataclass(frozen=True, slots=True)
class MotorCommand:
    """What a servo's controller asks of its motor until the end of a step."""

    mode: Literal["off", "position", "velocity", "torque"]
    """`off` is freewheeling, held by nothing but the gear's friction."""
    value: float = 0.0
    """Angle in rad, speed in rad/s, or share of the stall torque, by mode."""
    velocity_rad_s: float = 0.0
    """Speed of the setpoint in mode `position`."""
    limit_share: float = 1.0
    """Largest torque, as a share of the stall torque."""
    max_speed_rad_s: float = 5.0
    """Largest speed that the motor reaches at the present voltage."""


OFF = MotorCommand("off")
"""A motor without power."""


class JointPlant(Protocol):
    """Joints driven by one motor each. Deterministic: equal commands give equal states, bit by bit."""

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Joints in the order of all sequences here."""
        ...

    def states(self) -> Sequence[JointState]:
        """Returns every joint as it is now."""
        ...

    def step(self, commands: Sequence[MotorCommand], period_s: float) -> None:
        """Lets `period_s` pass under these commands."""
        ...

    def place(self, joint: str, position_rad: float) -> None:
        """Turns a joint by hand, at once."""
        ...

    def block(self, joint: str, lower_rad: float | None, upper_rad: float | None) -> None:
        """Puts a joint between obstacles, or takes them away with None."""
        ...

    def push(self, joint: str, torque_share: float) -> None:
        """Lets something outside turn a joint with this share of its stall torque, until another value comes."""
        ...

    def frame(self, name: str, size_px: int) -> ImageArray:
        """Returns uint8[size, size, 3] as the camera of this name sees the scene. Raises RobotError if it cannot."""
        ...

    def errors_rad(self) -> Sequence[float] | None:
        """Returns by how much each joint reads wrong in the reading that begins now; None: the last one comes again."""
        ...

    def tool_position_m(self) -> tuple[float, float, float] | None:
        """Returns where the hand is in the base frame; None when the plant has no geometry."""
        ...

    def close(self) -> None:
        """Frees what the plant holds. Idempotent."""
        ...


class KinematicPlant:
    """Independent joints without gravity; see the module.

    >>> plant = KinematicPlant(("pan",))
    >>> for _ in range(100):
    ...     plant.step([MotorCommand("position", 0.5)], 0.02)
    >>> round(plant.states()[0].position_rad, 3)
    0.5
    """

    def __init__(
        self,
        joint_names: Sequence[str],
        limits_rad: Sequence[tuple[float, float]] | None = None,
        position_rad: Sequence[float] | None = None,
    ) -> None:
        """Stores the joints, their mechanical stops (None: none) and where they start (None: at zero)."""
        self._names = tuple(joint_names)
        count = len(self._names)
        self._stops = list(limits_rad) if limits_rad is not None else [(-math.inf, math.inf)] * count
        self._bounds = list(self._stops)
        self._position = list(position_rad) if position_rad is not None else [0.0] * count
        self._velocity = [0.0] * count
        self._torque = [0.0] * count
        self._outside = [0.0] * count

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Joints in the order of all sequences here."""
        return self._names

    def states(self) -> list[JointState]:
        """Returns every joint as it is now."""
        return [JointState(*values) for values in zip(self._position, self._velocity, self._torque, strict=True)]

    def step(self, commands: Sequence[MotorCommand], period_s: float) -> None:
        """Lets `period_s` pass under these commands, in one step."""
        for index, command in enumerate(commands):
            speed = self._speed(index, command, period_s)
            self._move(index, command, speed, period_s)

    def _speed(self, index: int, command: MotorCommand, period_s: float) -> float:
        """The speed that a joint would have if nothing were in its way."""
        outside, before = self._outside[index], self._velocity[index]
        if command.mode == "off":
            return _pushed(outside, 0.0)
        if abs(outside) > command.limit_share:
            return _pushed(outside, command.limit_share)
        if command.mode == "position":
            error = command.value - self._position[index]
            wanted = error * (1.0 - math.exp(-period_s / _FOLLOW_S)) / period_s
        elif command.mode == "velocity":
            wanted = command.value
        else:
            wanted = command.value * command.max_speed_rad_s
        wanted = min(command.max_speed_rad_s, max(-command.max_speed_rad_s, wanted))
        change = _ACCELERATION_RAD_S2 * command.limit_share * period_s
        return min(before + change, max(before - change, wanted))

    def _move(self, index: int, command: MotorCommand, speed: float, period_s: float) -> None:
        before = self._position[index]
        low, high = self._bounds[index]
        free = before + speed * period_s
        after = min(high, max(low, free))
        is_blocked = after != free
        self._torque[index] = self._load(index, command, speed, is_blocked)
        self._velocity[index] = (after - before) / period_s
        self._position[index] = after

    def _load(self, index: int, command: MotorCommand, speed: float, is_blocked: bool) -> float:
        if command.mode == "off":
            return 0.0
        share = -self._outside[index]
        if is_blocked:
            error = command.value - self._position[index] if command.mode == "position" else speed
            share += error / FULL_TORQUE_RAD
        else:
            acceleration = (speed - self._velocity[index]) / _ACCELERATION_RAD_S2
            share += math.copysign(_FRICTION_SHARE, speed) * (abs(speed) > 1e-3) + acceleration
        return min(command.limit_share, max(-command.limit_share, share))

    def place(self, joint: str, position_rad: float) -> None:
        """Turns a joint by hand, at once; it stays between its stops."""
        index = self._index(joint)
        low, high = self._bounds[index]
        self._position[index] = min(high, max(low, position_rad))
        self._velocity[index] = 0.0

    def block(self, joint: str, lower_rad: float | None, upper_rad: float | None) -> None:
        """Puts a joint between obstacles, or takes them away with None; the mechanical stops stay."""
        index = self._index(joint)
        low, high = self._stops[index]
        self._bounds[index] = (
            low if lower_rad is None else max(low, lower_rad),
            high if upper_rad is None else min(high, upper_rad),
        )

    def push(self, joint: str, torque_share: float) -> None:
        """Lets something outside turn a joint with this share of its stall torque, until another value comes."""
        self._outside[self._index(joint)] = torque_share

    def frame(self, name: str, size_px: int) -> ImageArray:
        """Raises RobotError: this plant has nothing to see."""
        raise RobotError(f"there is no picture {name!r} of {size_px} px: joints without physics have no scene")

    def errors_rad(self) -> tuple[float, ...]:
        """Returns zeros: readings are true."""
        return (0.0,) * len(self._names)

    def tool_position_m(self) -> None:
        """Returns None: this plant has no geometry."""
        return

    def close(self) -> None:
        """Does nothing."""

    def _index(self, joint: str) -> int:
        if joint not in self._names:
            raise ConfigError(unknown_name("joint", joint, self._names))
        return self._names.index(joint)


def _pushed(outside: float, resistance: float) -> float:
    """Speed of a joint that yields to an outside torque."""
    left = abs(outside) - resistance - _FRICTION_SHARE
    return math.copysign(max(0.0, left) * 10.0, outside)
