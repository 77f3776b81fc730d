"""What the safety of an arm needs of its servos, whatever their protocol: readings in units, and `ServoPort`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from typing import Protocol

__all__ = ["Alert", "MotorLimits", "MotorReading", "ServoPort"]


class Alert(Flag):
    """What a servo complains about."""

    NONE = 0
    VOLTAGE = auto()
    """Supply outside its limits."""
    SENSOR = auto()
    """Encoder."""
    TEMPERATURE = auto()
    """Too hot."""
    CURRENT = auto()
    """Too much current."""
    OVERLOAD = auto()
    """Pushed too hard for too long; most servos let go by themselves."""
    OTHER = auto()
    """Anything else; the reason has the byte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MotorLimits:
    """What one motor can bear, as its own registers say."""

    min_volts: float
    """It cuts out below this."""
    max_volts: float
    """It cuts out above this."""
    max_temperature_c: float = 70.0
    """It cuts out above this."""


@dataclass(frozen=True, slots=True)
class MotorReading:
    """One servo at one moment."""

    position: int
    """Present position in raw counts."""
    velocity_rad_s: float
    """Speed as the servo says."""
    load: float
    """Share of the full drive that the motor is given, -1 to 1."""
    volts: float
    """Supply at the servo."""
    temperature_c: float
    """Temperature inside."""
    current_a: float | None
    """Current of the motor; None when the servo does not measure it."""
    alerts: Alert
    """What it complains about."""
    time_s: float
    """When the reading had arrived."""


class ServoPort(Protocol):
    """The servos of one arm behind one bus, by index of the motor; a servo that helps a motor belongs to it.

    Whatever concerns one servo is answered, not raised; PortLost alone goes up.
    """

    @property
    def num_motors(self) -> int:
        """Arm joints and the gripper."""
        ...

    def open(self) -> Sequence[MotorLimits]:
        """Opens the port and checks that the right servos answer, with torque off or on as they are.

        Raises:
            RobotError: It cannot be opened, a servo is missing, of another model, or differs from the calibration.
        """
        ...

    def read(self, motors: Sequence[int], *, is_eager: bool = False) -> tuple[dict[int, MotorReading], dict[int, str]]:
        """Reads these motors at once; returns what was read, and why the others were not.

        `is_eager` asks one by one, also servos that the bus gives a rest because they were silent a moment ago.
        """
        ...

    def write_goals(self, counts: Mapping[int, int]) -> None:
        """Sends goal positions; nobody answers."""
        ...

    def write_shares(self, shares: Mapping[int, float]) -> None:
        """Sends torque limits, 0 to 1; nobody answers."""
        ...

    def set_torque(self, motor: int, is_on: bool) -> str:
        """Switches torque and reads it back; returns why it is not as asked, empty when it is."""
        ...

    def has_torque(self, motor: int) -> bool | None:
        """Returns whether torque is on; None when it does not answer."""
        ...

    def goal(self, motor: int) -> int | None:
        """Returns the goal position in the servo's register; None when it does not answer."""
        ...

    def watch(self, is_on: bool) -> None:
        """Arms or clears the servos' own watchdogs, where they have one."""
        ...

    def reopen(self) -> None:
        """Opens a lost port again, whoever answers there. Raises RobotError while it cannot."""
        ...

    def check(self) -> str:
        """Checks the servos as `open` does; returns what is wrong, empty when nothing is. Raises PortLost."""
        ...

    def close(self) -> None:
        """Closes the port. Idempotent."""
        ...

    def counts(self) -> dict[str, int]:
        """Returns what the bus counts."""
        ...
