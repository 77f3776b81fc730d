"""What every virtual servo has, whatever its protocol: a control table, an encoder, a profile, heat, a supply.

The control tables of the virtual devices are written down here and in `sts.py` and `xseries.py` from the makers'
documents, apart from the tables that the drivers use (`roboalign.drivers.bus`): two tables that agree check each other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from roboalign.drivers.virtual.physics import JointState, MotorCommand

__all__ = ["COUNTS_PER_TURN", "RAD_PER_COUNT", "Encoder", "Profile", "ServoModel", "Supply", "VirtualServo"]

COUNTS_PER_TURN = 4096
"""Encoder counts of one turn, of every servo here."""
RAD_PER_COUNT = 2 * math.pi / COUNTS_PER_TURN
"""Radians of one count."""

_AMBIENT_C = 25.0
_HEAT_C_PER_S = 0.5  # at stall; 45 degrees more after some three minutes
_COOLING_S = 300.0
_IDLE_CURRENT_A = 0.03


@dataclass(frozen=True, kw_only=True, slots=True)
class ServoModel:
    """One kind of servo."""

    name: str
    """Name in lower case, e.g. `sts3215`."""
    number: int
    """What it answers in its register model number."""
    protocol: str
    """`feetech` or `dynamixel`."""
    nominal_v: float
    """Voltage at which speed and current are given."""
    min_v: float
    """Factory value of the lowest allowed voltage."""
    max_v: float
    """Factory value of the highest allowed voltage."""
    max_speed_rad_s: float
    """Speed without load at the nominal voltage."""
    stall_current_a: float
    """Current at stall at the nominal voltage."""
    brownout_v: float = 3.5
    """Below this its controller stops, and starts anew when the voltage is back."""


@dataclass(kw_only=True, slots=True)
class Supply:
    """The power rail that the servos of an arm share; it sags by what they draw."""

    source_v: float = 12.0
    """Voltage of the power adapter without load."""
    resistance_ohm: float = 0.05
    """Of adapter and cables together."""
    current_a: float = 0.0
    """What all servos drew in the last step."""

    @property
    def volts(self) -> float:
        """Voltage at the servos."""
        return max(0.0, self.source_v - self.resistance_ohm * self.current_a)


@dataclass(kw_only=True, slots=True)
class Encoder:
    """How a servo sits on its joint."""

    zero_count: int = COUNTS_PER_TURN // 2
    """Count at the joint's zero; the horn can be mounted anywhere."""
    sign: int = 1
    """-1 when the servo counts backwards."""

    def count(self, position_rad: float) -> int:
        """Returns the count of an angle, not wrapped."""
        return round(self.zero_count + self.sign * position_rad / RAD_PER_COUNT)

    def angle(self, count: float) -> float:
        """Returns the angle of a count that is not wrapped."""
        return (count - self.zero_count) * self.sign * RAD_PER_COUNT


@dataclass(slots=True)
class Profile:
    """A setpoint that runs to a goal with limited speed and acceleration, in counts."""

    position: float = 0.0
    """Where the setpoint is."""
    speed: float = 0.0
    """How fast it runs."""

    def rest(self, position: float) -> None:
        """Puts it here, at rest."""
        self.position, self.speed = float(position), 0.0

    def advance(self, goal: float, max_speed: float, acceleration: float, period_s: float) -> None:
        """Runs for a period; an acceleration of 0 means as much as it takes."""
        left = goal - self.position
        reach = abs(left)
        top = max_speed
        if acceleration > 0:
            before = self.speed if left >= 0 else -self.speed
            top = min(top, math.sqrt(2 * acceleration * reach), max(0.0, before) + acceleration * period_s)
        step = min(reach, top * period_s)
        self.speed = math.copysign(step / period_s, left)
        self.position = goal if step == reach else self.position + math.copysign(step, left)


class VirtualServo(ABC):
    """One servo: its memory, and what its firmware does. Knows no packets; see `dialects` for those."""

    def __init__(self, model: ServoModel, id: int, encoder: Encoder | None = None) -> None:  # noqa: A002
        """Makes a servo as it leaves the factory, with the given id, powered on."""
        self.model = model
        self.encoder = encoder or Encoder()
        self.is_dead = False
        """True when it does not answer and does not turn: a broken cable or controller."""
        self.is_powered = True
        self.registered: tuple[int, bytes] | None = None
        """Address and bytes of a write that waits for the instruction Action."""
        self.is_restart_asked = False
        """True when an instruction asked for a reboot, which follows the answer."""
        self.silent_until_s = 0.0
        """Arm time until which it starts up and hears nothing."""
        self.temperature_c = _AMBIENT_C
        self.state = JointState(0.0, 0.0, 0.0)
        self.error_rad = 0.0
        """By how much the position reads wrong; its controller knows the true one."""
        self.seen_count = 0
        """The count that was read last."""
        self.lost_count: int | None = None
        """The count that is read again, because the newest reading was lost."""
        self._counted: JointState | None = None
        self._count = 0
        self.volts = model.nominal_v
        self.kept = self.factory_memory()
        self.memory = bytearray(self.kept)
        self.kept[self.id_address] = self.memory[self.id_address] = id
        self.profile = Profile()
        self.reload()

    id_address: int
    """Where the id is in the control table."""

    @property
    def id(self) -> int:
        """The id that it listens to."""
        return self.memory[self.id_address]

    @property
    @abstractmethod
    def baud_hz(self) -> int:
        """The rate at which it listens and answers."""

    @property
    @abstractmethod
    def return_delay_s(self) -> float:
        """Time between the end of a request and the answer."""

    @property
    @abstractmethod
    def is_torque_on(self) -> bool:
        """True while the motor has power."""

    @property
    @abstractmethod
    def error_bits(self) -> int:
        """What every answer says about the servo's state."""

    @abstractmethod
    def factory_memory(self) -> bytearray:
        """Returns the control table as it leaves the factory."""

    @abstractmethod
    def write(self, address: int, data: bytes) -> int:
        """Writes bytes as an instruction does; returns the protocol's rejection, 0 for none."""

    @abstractmethod
    def reload(self) -> None:
        """Takes the control table into the controller's variables after it changed."""

    @abstractmethod
    def sense(self) -> None:
        """Puts `state`, `volts` and `temperature_c` into the control table."""

    @abstractmethod
    def command(self, period_s: float) -> MotorCommand:
        """Lets the controller run for a period and returns what it asks of the motor."""

    @abstractmethod
    def protect(self, period_s: float) -> None:
        """Lets the firmware's protections look at the readings of a period."""

    @abstractmethod
    def restart(self) -> None:
        """What the firmware does when power comes: everything outside the EEPROM is forgotten."""

    def read(self, address: int, size: int) -> bytes:
        """Returns bytes of the control table; behind its end there are zeros (unverified on hardware)."""
        found = bytes(self.memory[address : address + size])
        return found + bytes(size - len(found))

    @property
    def current_a(self) -> float:
        """What the servo draws."""
        if not self.is_powered:
            return 0.0
        return _IDLE_CURRENT_A + abs(self.state.torque_share) * self.model.stall_current_a

    @property
    def count(self) -> int:
        """Encoder count, not wrapped."""
        if self._counted is not self.state:
            self._count, self._counted = self.encoder.count(self.state.position_rad), self.state
        return self._count

    @property
    def read_count(self) -> int:
        """Encoder count as it is read, not wrapped."""
        if self.lost_count is not None:
            return self.lost_count
        return self.count if self.error_rad == 0.0 else self.encoder.count(self.state.position_rad + self.error_rad)

    @property
    def max_speed_rad_s(self) -> float:
        """What the motor reaches at the present voltage."""
        return self.model.max_speed_rad_s * min(1.2, max(0.05, self.volts / self.model.nominal_v))

    @property
    def max_speed_counts_s(self) -> float:
        """The same in counts."""
        return self.max_speed_rad_s / RAD_PER_COUNT

    def hears(self, time_s: float) -> bool:
        """True when it has power, is not broken and has started up."""
        return self.is_powered and not self.is_dead and time_s >= self.silent_until_s

    def update(self, state: JointState, volts: float, period_s: float) -> None:
        """Takes what is true now into the readings, then lets the protections look."""
        self.state, self.volts = state, volts
        heat = _HEAT_C_PER_S * state.torque_share**2 - (self.temperature_c - _AMBIENT_C) / _COOLING_S
        self.temperature_c += heat * period_s
        if self.is_powered and not self.is_dead:
            self.sense()
            self.protect(period_s)

    def act(self) -> int:
        """Does the write that waits, if any; returns the protocol's rejection, 0 for none."""
        pending, self.registered = self.registered, None
        return 0 if pending is None else self.write(*pending)

    def power(self, is_on: bool, time_s: float, start_s: float) -> None:
        """Takes the power away, or gives it back: it then starts up for `start_s`."""
        if is_on and not self.is_powered:
            self.memory[:] = self.kept
            self.silent_until_s = time_s + start_s
            self.is_powered = True
            self.registered = None
            self.restart()
            self.sense()
        elif not is_on:
            self.is_powered = False
