"""A Dynamixel X servo in memory: control table, and what its firmware does with it.

Addresses, factory values and rejections are those of https://emanual.robotis.com (X series, protocol 2.0). Left out:
gains (the motor follows its setpoint as the plant lets it), time-based profiles, external ports, remote torque on. What
was not checked on hardware is listed in docs/virtual-arm.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from roboalign.drivers.virtual.physics import OFF, MotorCommand
from roboalign.drivers.virtual.servo import COUNTS_PER_TURN, RAD_PER_COUNT, Encoder, Profile, ServoModel, VirtualServo
from roboalign.drivers.virtual.xmodels import XSERIES_BAUDS

__all__ = ["ACCESS", "LENGTH", "LIMIT", "RANGE", "XFirmware", "XServo"]

RANGE, LENGTH, LIMIT, ACCESS = 4, 5, 6, 7
"""Rejections in the low bits of the error byte."""
ALERT = 0x80
"""Bit of the error byte: read register 70."""
INPUT_VOLTAGE, OVERHEAT, OVERLOAD = 1, 4, 32


_SIZE = 252
_EEPROM_END = 64
_ID, _BAUD, _DELAY, _DRIVE, _MODE, _SHADOW = 7, 8, 9, 10, 11, 12
_HOMING, _MAX_TEMP, _MAX_VOLT, _MIN_VOLT, _PWM_LIMIT, _CURRENT_LIMIT, _SPEED_LIMIT = 20, 31, 32, 34, 36, 38, 44
_MAX, _MIN, _SHUTDOWN = 48, 52, 63
_TORQUE, _LED, _LEVEL, _REGISTERED, _HARDWARE, _WATCHDOG = 64, 65, 68, 69, 70, 98
_GOAL_PWM, _GOAL_CURRENT, _GOAL_SPEED, _ACCELERATION, _PROFILE_SPEED, _GOAL = 100, 102, 104, 108, 112, 116
_TICK, _MOVING, _READINGS, _VOLTS, _TEMP = 120, 122, 124, 144, 146
_INDIRECT, _INDIRECT_DATA, _NUM_INDIRECT = 168, 224, 28
_READ_ONLY = ((0, 7), (69, 71), (120, 168))
_GOALS = ((_GOAL_PWM, 2), (_GOAL_CURRENT, 2), (_GOAL_SPEED, 4), (_GOAL, 4))
_RPM_UNIT_COUNTS_S = 0.229 / 60 * COUNTS_PER_TURN
_RPM2_UNIT_COUNTS_S2 = 214.577 / 3600 * COUNTS_PER_TURN
_CURRENT_UNIT_A = {1190: 0.001, 1200: 0.001, 1210: 0.001, 1220: 0.001}
_WATCHDOG_S = 0.02
_EXPIRED = 0xFF
_OVERLOAD_S = 1.0
_OVERLOAD_SHARE = 0.85
_POSITION_MODES = (3, 4, 5)


@dataclass(frozen=True, kw_only=True, slots=True)
class XFirmware:
    """Behaviours that the manual does not settle."""

    is_goal_kept: bool = False
    """Switching the torque on runs to the goal written before; False: it holds where it is."""
    is_shadow_id_served: bool = True
    """A secondary id of 0 to 252 makes the servo obey that id too, without answering."""


class XServo(VirtualServo):
    """One servo; see the module."""

    id_address = _ID

    def __init__(
        self,
        id: int,  # noqa: A002 - the protocol's own word
        model: ServoModel,
        encoder: Encoder | None = None,
        firmware: XFirmware | None = None,
    ) -> None:
        """Makes a servo as it leaves the factory, with the given id, powered on."""
        self.firmware = firmware or XFirmware()
        self._turns = 0
        self._overload_s = 0.0
        self._idle_s = 0.0
        self._time_s = 0.0
        self._speed_setpoint = Profile()
        super().__init__(model, id, encoder)
        self.restart()
        self.sense()

    def factory_memory(self) -> bytearray:
        """Returns the control table as it leaves the factory."""
        memory, model = bytearray(_SIZE), self.model
        for address, size, value in (
            (0, 2, model.number),
            (6, 1, 46),
            (_BAUD, 1, 1),
            (_DELAY, 1, 250),
            (_MODE, 1, 3),
            (_SHADOW, 1, 255),
            (13, 1, 2),
            (24, 4, 10),
            (_MAX_TEMP, 1, 70 if self._is_small else 80),
            (_MAX_VOLT, 2, round(model.max_v * 10)),
            (_MIN_VOLT, 2, round(model.min_v * 10)),
            (_PWM_LIMIT, 2, 885),
            (_CURRENT_LIMIT, 2, round(model.stall_current_a / self.current_unit_a)),
            (_SPEED_LIMIT, 4, round(model.max_speed_rad_s / RAD_PER_COUNT / _RPM_UNIT_COUNTS_S)),
            (_MAX, 4, 4095),
            (_SHUTDOWN, 1, 53 if self._is_small else 52),
        ):
            memory[address : address + size] = value.to_bytes(size, "little")
        return memory

    @property
    def _is_small(self) -> bool:
        return self.model.number in _CURRENT_UNIT_A

    @property
    def current_unit_a(self) -> float:
        """Ampere of one count of the registers for current."""
        return _CURRENT_UNIT_A.get(self.model.number, 0.00269)

    @property
    def baud_hz(self) -> int:
        """The rate at which it listens and answers."""
        return XSERIES_BAUDS[min(self.memory[_BAUD], len(XSERIES_BAUDS) - 1)]

    @property
    def return_delay_s(self) -> float:
        """Time between the end of a request and the answer."""
        return self.memory[_DELAY] * 2e-6

    @property
    def status_level(self) -> int:
        """0: only pings are answered; 1: reads too; 2: everything."""
        return self.memory[_LEVEL]

    @property
    def shadow_id(self) -> int | None:
        """The second id that it obeys without answering."""
        second = self.memory[_SHADOW]
        return second if second <= 252 and self.firmware.is_shadow_id_served else None

    @property
    def is_torque_on(self) -> bool:
        """True while the motor has power."""
        return self.is_powered and self.memory[_TORQUE] == 1

    @property
    def error_bits(self) -> int:
        """What every answer says about the servo's state."""
        return ALERT if self.memory[_HARDWARE] else 0

    def number(self, address: int, size: int, *, is_signed: bool = False) -> int:
        """Returns the value of `size` bytes."""
        return int.from_bytes(self.memory[address : address + size], "little", signed=is_signed)

    def read(self, address: int, size: int) -> bytes:
        """Returns bytes of the control table; indirect ones are looked up."""
        if address + size <= _INDIRECT_DATA or address >= _SIZE:
            return super().read(address, size)
        return bytes(self.memory[self._place(at)] if at < _SIZE else 0 for at in range(address, address + size))

    def _place(self, address: int) -> int:
        """Returns where a byte really is: indirect data lie where their indirect address points."""
        index = address - _INDIRECT_DATA
        if not 0 <= index < _NUM_INDIRECT:
            return address
        target = self.number(_INDIRECT + 2 * index, 2)
        return target if target < _INDIRECT else address

    def write(self, address: int, data: bytes) -> int:
        """Writes bytes as an instruction does, all or nothing; returns the rejection, 0 for none."""
        if address + len(data) > _SIZE:
            return ACCESS
        places = [self._place(at) for at in range(address, address + len(data))]
        error = self._rejection(places, data)
        if error:
            return error
        before = (self.memory[_TORQUE], self.memory[_MODE])
        for place, value in zip(places, data, strict=True):
            self.memory[place] = value
            if place < _EEPROM_END:
                self.kept[place] = value
        self._react(set(places), *before)
        self.reload()
        self.sense()
        return 0

    def _rejection(self, places: list[int], data: bytes) -> int:
        memory = self.memory
        if any(low <= place < high for place in places for low, high in _READ_ONLY):
            return ACCESS
        if memory[_TORQUE] and any(place < _EEPROM_END for place in places):
            return ACCESS
        new = dict(zip(places, data, strict=True))
        if memory[_WATCHDOG] == _EXPIRED and any(_GOAL_PWM <= place < _TICK for place in places):
            return RANGE
        if new.get(_TORQUE) == 1 and memory[_HARDWARE] & memory[_SHUTDOWN]:
            return ACCESS
        if new.get(_TORQUE, 0) > 1 or new.get(_ID, 0) > 252 or new.get(_WATCHDOG, 0) in range(128, 255):
            return RANGE
        if _MODE in new and new[_MODE] not in (0, 1, 3, 4, 5, 16):
            return RANGE
        return self._beyond_limits(new)

    def _beyond_limits(self, new: dict[int, int]) -> int:
        """Data limit error for a whole goal outside what the limits in the EEPROM allow."""
        values = {
            address: int.from_bytes(bytes(new[address + k] for k in range(size)), "little", signed=True)
            for address, size in _GOALS
            if all(address + k in new for k in range(size))
        }
        mode = self.memory[_MODE]
        low, high = (self.number(_MIN, 4), self.number(_MAX, 4)) if mode == 3 else (-1_048_575, 1_048_575)
        if _GOAL in values and mode in _POSITION_MODES and not low <= values[_GOAL] <= high:
            return LIMIT
        for address, limit, size in ((_GOAL_PWM, _PWM_LIMIT, 2), (_GOAL_CURRENT, _CURRENT_LIMIT, 2)):
            if abs(values.get(address, 0)) > self.number(limit, size):
                return LIMIT
        return LIMIT if abs(values.get(_GOAL_SPEED, 0)) > self.number(_SPEED_LIMIT, 4) else 0

    def _react(self, places: set[int], torque_before: int, mode_before: int) -> None:
        if _WATCHDOG in places:
            self._idle_s = 0.0
        if _DRIVE in places:
            self.reload()
            self.clear_turns()
        if _MODE in places and self.memory[_MODE] != mode_before:
            self._default_goals()
        if _TORQUE in places and self.memory[_TORQUE] and not torque_before:
            self._overload_s = 0.0
            if self.memory[_MODE] == 3:
                self.clear_turns()
            self.profile.rest(self.present)
            self._speed_setpoint.rest(0.0)
            if not self.firmware.is_goal_kept:
                self.memory[_GOAL : _GOAL + 4] = self.present.to_bytes(4, "little", signed=True)

    def _default_goals(self) -> None:
        """Goals after a start or a change of the operating mode."""
        memory = self.memory
        memory[_GOAL_PWM : _GOAL_PWM + 2] = memory[_PWM_LIMIT : _PWM_LIMIT + 2]
        memory[_GOAL_CURRENT : _GOAL_CURRENT + 2] = memory[_CURRENT_LIMIT : _CURRENT_LIMIT + 2]
        memory[_GOAL_SPEED : _GOAL_SPEED + 4] = bytes(4)

    def reload(self) -> None:
        """Takes the control table into the controller's variables after it changed."""
        homing = self.number(_HOMING, 4, is_signed=True)
        self._mode = self.memory[_MODE]
        bound = 1024 if self._mode == 3 else 1_044_479
        self._homing = min(bound, max(-bound, homing))
        self._direction = -1 if self.memory[_DRIVE] & 1 else 1

    @property
    def present(self) -> int:
        """The position that it knows: encoder plus homing offset; turns count from the last start."""
        return self._reported(self.count)

    def _reported(self, count: int) -> int:
        return count * self._direction - self._turns * COUNTS_PER_TURN + self._homing

    def sense(self) -> None:
        """Puts the readings into the control table."""
        state, memory = self.state, self.memory
        way = self.encoder.sign * self._direction
        speed = state.velocity_rad_s * way / RAD_PER_COUNT
        share = state.torque_share * way
        amps = share * 1000 if self.model.number == 1060 else share * self.model.stall_current_a / self.current_unit_a
        readings = (
            (round(share * 885), 2),
            (round(amps), 2),
            (round(speed / _RPM_UNIT_COUNTS_S), 4),
            (self._reported(self.read_count), 4),
            (round(self.profile.speed / _RPM_UNIT_COUNTS_S), 4),
            (round(self.profile.position), 4),
            (round(self.volts * 10), 2),
            (round(self.temperature_c), 1),
        )
        memory[_READINGS : _TEMP + 1] = b"".join(v.to_bytes(size, "little", signed=True) for v, size in readings)
        memory[_MOVING] = abs(speed) > self.number(24, 4) * _RPM_UNIT_COUNTS_S
        memory[_TICK : _TICK + 2] = (int(self._time_s * 1000) % 32768).to_bytes(2, "little")

    def protect(self, period_s: float) -> None:
        """Latches hardware errors until a reboot; those in register 63 take the torque away."""
        memory = self.memory
        self._time_s += period_s
        tenths = self.number(_VOLTS, 2)
        if not self.number(_MIN_VOLT, 2) <= tenths <= self.number(_MAX_VOLT, 2):
            memory[_HARDWARE] |= INPUT_VOLTAGE
        if memory[_TEMP] > memory[_MAX_TEMP]:
            memory[_HARDWARE] |= OVERHEAT
        is_stalled = abs(self.state.torque_share) >= _OVERLOAD_SHARE and self.is_torque_on
        self._overload_s = self._overload_s + period_s if is_stalled else 0.0
        if self._overload_s > _OVERLOAD_S:
            memory[_HARDWARE] |= OVERLOAD
        if memory[_HARDWARE] & memory[_SHUTDOWN]:
            memory[_TORQUE] = 0
        watchdog = memory[_WATCHDOG]
        self._idle_s += period_s
        if 1 <= watchdog <= 127 and self._idle_s > watchdog * _WATCHDOG_S:
            memory[_WATCHDOG] = _EXPIRED
            self.profile.rest(self.present)
            self._speed_setpoint.rest(0.0)

    def overload(self) -> None:
        """Latches the overload error, as after pressing for too long."""
        self.memory[_HARDWARE] |= OVERLOAD
        if self.memory[_SHUTDOWN] & OVERLOAD:
            self.memory[_TORQUE] = 0

    def clear(self) -> None:
        """Does what the instruction Clear does: forgets whole turns, unless the torque is on."""
        if not self.is_torque_on:
            self.clear_turns()

    def clear_turns(self) -> None:
        """Counts turns from here."""
        self._turns = self.count * self._direction // COUNTS_PER_TURN
        self.sense()

    def touch(self) -> None:
        """Tells the bus watchdog that an instruction came."""
        self._idle_s = 0.0

    def restart(self) -> None:
        """Everything outside the EEPROM is forgotten: torque off, turns not counted, hardware errors gone."""
        self.memory[_EEPROM_END:] = bytes(_SIZE - _EEPROM_END)
        self.memory[_LEVEL] = 2
        for index in range(_NUM_INDIRECT):
            at = _INDIRECT + 2 * index
            self.memory[at : at + 2] = (_INDIRECT_DATA + index).to_bytes(2, "little")
        self._overload_s = self._idle_s = 0.0
        self.reload()
        self.clear_turns()
        self._default_goals()

    def reset(self, kind: int) -> None:
        """Takes the EEPROM back to the factory's values; kind 1 keeps the id, kind 2 id and baud rate."""
        own_id, own_baud = self.id, self.memory[_BAUD]
        self.kept[:] = self.factory_memory()
        self.kept[_ID] = 1 if kind == 0xFF else own_id
        if kind == 2:
            self.kept[_BAUD] = own_baud
        self.memory[:_EEPROM_END] = self.kept[:_EEPROM_END]
        self.restart()

    def command(self, period_s: float) -> MotorCommand:
        """Lets the controller run for a period and returns what it asks of the motor."""
        if not self.is_torque_on or self.is_dead:
            return OFF
        way = self.encoder.sign * self._direction
        top = self.max_speed_counts_s
        limit = min(abs(self.number(_GOAL_PWM, 2, is_signed=True)), self.number(_PWM_LIMIT, 2)) / 885
        if self._mode in (0, 5):
            amps = abs(self.number(_GOAL_CURRENT, 2, is_signed=True)) * self.current_unit_a
            limit = min(limit, amps / self.model.stall_current_a)
        is_expired = self.memory[_WATCHDOG] == _EXPIRED
        if self._mode == 1:
            return self._turn(0.0 if is_expired else top, limit, way, period_s)
        if self._mode in (0, 16):
            at, full = (_GOAL_CURRENT, self.model.stall_current_a / self.current_unit_a)
            if self._mode == 16:
                at, full = _GOAL_PWM, 885.0
            share = 0.0 if is_expired else self.number(at, 2, is_signed=True) / full
            return MotorCommand("torque", max(-1.0, min(1.0, share)) * way, 0.0, limit, self.max_speed_rad_s)
        if not is_expired:
            asked = self.number(_PROFILE_SPEED, 4) * _RPM_UNIT_COUNTS_S
            acceleration = self.number(_ACCELERATION, 4) * _RPM2_UNIT_COUNTS_S2
            goal = self.number(_GOAL, 4, is_signed=True)
            self.profile.advance(goal, min(top, asked) if asked else top, acceleration, period_s)
        ahead = (self.profile.position - self.present) * self._direction
        return MotorCommand(
            "position",
            self.encoder.angle(self.count + ahead),
            self.profile.speed * way * RAD_PER_COUNT,
            limit,
            self.max_speed_rad_s,
        )

    def _turn(self, top: float, limit: float, way: int, period_s: float) -> MotorCommand:
        """Velocity control: the setpoint is a speed, which changes by the profile's acceleration."""
        asked = self.number(_GOAL_SPEED, 4, is_signed=True) * _RPM_UNIT_COUNTS_S
        change = self.number(_ACCELERATION, 4) * _RPM2_UNIT_COUNTS_S2
        self._speed_setpoint.advance(max(-top, min(top, asked)), change or math.inf, 0.0, period_s)
        return MotorCommand(
            "velocity", self._speed_setpoint.position * way * RAD_PER_COUNT, 0.0, limit, self.max_speed_rad_s
        )
