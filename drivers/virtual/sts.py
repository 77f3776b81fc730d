"""A Feetech STS or SMS servo in memory: control table, and what its firmware does with it.

Addresses and factory values are those of Feetech's memory table of the STS3215. What no document says, or what only
users report, is a field of `StsFirmware`, so that a driver can be tried against both; none of it was checked on
hardware. Left out: dead zones, I and D gains (the motor follows its setpoint as the plant lets it), LED alarm.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from roboalign.drivers.virtual.physics import OFF, MotorCommand
from roboalign.drivers.virtual.servo import COUNTS_PER_TURN, RAD_PER_COUNT, Encoder, ServoModel, VirtualServo

__all__ = ["STS3215", "STS_BAUDS", "StsFirmware", "StsServo"]

STS_BAUDS = (1_000_000, 500_000, 250_000, 128_000, 115_200, 76_800, 57_600, 38_400)
"""Rates by the value of register 6."""

STS3215 = ServoModel(
    name="sts3215",
    number=777,
    protocol="feetech",
    nominal_v=12.0,
    min_v=4.0,
    max_v=14.0,
    max_speed_rad_s=4.71,
    stall_current_a=2.7,
)
"""The servo of SO-100 and SO-101 in its 12 V version; 7.4 V servos answer the same model number."""

VOLTAGE, SENSOR, TEMPERATURE, CURRENT, OVERLOAD = 1, 2, 4, 8, 32
_LATCHED = TEMPERATURE | CURRENT | OVERLOAD
_MIDDLE = COUNTS_PER_TURN // 2
_CURRENT_UNIT_A = 0.0065
_SIZE = 87
_EEPROM_END = 40
_READ_ONLY = ((0, 5), (56, 71))
_ID, _BAUD, _DELAY, _LEVEL, _MIN, _MAX = 5, 6, 7, 8, 9, 11
_MAX_TEMP, _MAX_VOLT, _MIN_VOLT, _MAX_TORQUE, _PHASE, _UNLOAD = 13, 14, 15, 16, 18, 19
_PROTECT_CURRENT, _OFFSET, _MODE, _PROTECT_TORQUE, _PROTECT_TIME, _OVERLOAD, _CURRENT_TIME = 28, 31, 33, 34, 35, 36, 38
_TORQUE, _ACCELERATION, _GOAL, _GOAL_TIME, _GOAL_SPEED, _LIMIT, _LOCK = 40, 41, 42, 44, 46, 48, 55
_PRESENT, _STATUS = 56, 65
_READINGS = struct.Struct("<3H5BHH")
_FACTORY = {
    0: bytes((3, 10)),
    _BAUD: bytes((0, 250, 1)),
    _MIN: (0).to_bytes(2, "little"),
    _MAX: (4095).to_bytes(2, "little"),
    _MAX_TEMP: bytes((70,)),
    _MAX_TORQUE: (1000).to_bytes(2, "little"),
    _PHASE: bytes((12, 44, 47, 32, 32, 0)),
    24: (16).to_bytes(2, "little"),
    26: bytes((1, 1)),
    _PROTECT_CURRENT: (500).to_bytes(2, "little"),
    30: bytes((1,)),
    _PROTECT_TORQUE: bytes((20, 200, 80, 10, 200, 10)),
    _LIMIT: (1000).to_bytes(2, "little"),
    _LOCK: bytes((1,)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StsFirmware:
    """Behaviours that no document settles; the defaults are what users report."""

    is_torque_automatic: bool = True
    """Writing a goal position switches the torque on (https://github.com/huggingface/lerobot/issues/3585)."""
    is_goal_clamped: bool = True
    """Goals outside the position limits are moved to the limit in silence (same report)."""
    is_goal_kept: bool = False
    """Switching the torque on by register 40 runs to the goal written before; False: it holds where it is."""
    locked_write: Literal["volatile", "refused"] = "volatile"
    """What happens to a write below address 40 while register 55 is 1: it works until the power goes, or not at all."""


class StsServo(VirtualServo):
    """One servo; see the module."""

    id_address = _ID

    def __init__(
        self,
        id: int,  # noqa: A002 - the protocol's own word
        model: ServoModel = STS3215,
        encoder: Encoder | None = None,
        firmware: StsFirmware | None = None,
    ) -> None:
        """Makes a servo as it leaves the factory, with the given id, powered on."""
        self.firmware = firmware or StsFirmware()
        self._latched = 0
        self._overload_s = self._overcurrent_s = 0.0
        self._stall_sign = 0
        super().__init__(model, id, encoder)
        self.restart()
        self.sense()

    def factory_memory(self) -> bytearray:
        """Returns the control table as it leaves the factory."""
        memory = bytearray(_SIZE)
        for address, data in _FACTORY.items():
            memory[address : address + len(data)] = data
        memory[3:5] = self.model.number.to_bytes(2, "little")
        memory[_MAX_VOLT], memory[_MIN_VOLT] = round(self.model.max_v * 10), round(self.model.min_v * 10)
        return memory

    @property
    def baud_hz(self) -> int:
        """The rate at which it listens and answers."""
        return STS_BAUDS[min(self.memory[_BAUD], len(STS_BAUDS) - 1)]

    @property
    def return_delay_s(self) -> float:
        """Time between the end of a request and the answer."""
        return self.memory[_DELAY] * 2e-6

    @property
    def status_level(self) -> int:
        """0: only pings and reads are answered; 1: everything."""
        return self.memory[_LEVEL]

    @property
    def is_torque_on(self) -> bool:
        """True while the motor has power."""
        return self.is_powered and self.memory[_TORQUE] == 1

    @property
    def error_bits(self) -> int:
        """What every answer says about the servo's state."""
        return self.memory[_STATUS]

    def word(self, address: int) -> int:
        """Returns two bytes as an unsigned number."""
        return self.memory[address] | self.memory[address + 1] << 8

    def write(self, address: int, data: bytes) -> int:
        """Writes bytes as an instruction does. A Feetech servo rejects nothing: what cannot be written is ignored."""
        touched = range(address, min(address + len(data), _SIZE))
        is_locked = self.memory[_LOCK] == 1
        torque_before = self.memory[_TORQUE]
        for place in touched:
            if any(low <= place < high for low, high in _READ_ONLY):
                continue
            if place < _EEPROM_END:
                if is_locked and self.firmware.locked_write == "refused":
                    continue
                if not is_locked:
                    self.kept[place] = data[place - address]
            self.memory[place] = data[place - address]
        if _TORQUE in touched:
            self._switch(torque_before)
        if _GOAL in touched and self.firmware.is_torque_automatic and self._mode != 1:
            self._take_goal()
        self.reload()
        self.sense()
        return 0

    def _switch(self, before: int) -> None:
        """Acts on a write to the torque register."""
        value = self.memory[_TORQUE]
        if value == 128:
            self._set_middle()
            self.memory[_TORQUE] = before
        elif value == 0:
            self._latched = 0
            self._overload_s = self._overcurrent_s = 0.0
        elif not before:
            self.profile.rest(self.present)
            if not self.firmware.is_goal_kept:
                self.memory[_GOAL : _GOAL + 2] = _signed(self.present, 15).to_bytes(2, "little")

    def _set_middle(self) -> None:
        """Makes the present position count 2048, in the EEPROM too."""
        offset = (self.count - _MIDDLE + _MIDDLE) % COUNTS_PER_TURN - _MIDDLE
        offset = min(2047, max(-2047, offset))
        data = _signed(offset, 11).to_bytes(2, "little")
        self.memory[_OFFSET : _OFFSET + 2] = self.kept[_OFFSET : _OFFSET + 2] = data
        self.reload()

    def _take_goal(self) -> None:
        if self.memory[_TORQUE] != 1:
            self.profile.rest(self.present)
            self.memory[_TORQUE] = 1
        if self._latched & OVERLOAD and self._stall_sign * (self._goal_count() - self.present) < 0:
            self._latched &= ~OVERLOAD  # moving away from what it was pressed against ends the protection
            self._overload_s = 0.0

    def reload(self) -> None:
        """Takes the control table into the controller's variables after it changed."""
        memory = self.memory
        self._offset = _magnitude(self.word(_OFFSET), 11)
        self._is_multi_turn = bool(memory[_PHASE] & 0x10)
        self._mode = memory[_MODE]
        self._goal = self._goal_count()
        self._goal_speed = _magnitude(self.word(_GOAL_SPEED), 15)
        self._goal_share = _magnitude(self.word(_GOAL_TIME), 10) / 1000
        self._limit = min(1000, self.word(_LIMIT)) / 1000
        self._acceleration = memory[_ACCELERATION] * 100.0
        self._protect_counts = self.word(_PROTECT_CURRENT)

    @property
    def present(self) -> int:
        """The position that it knows: encoder minus offset, within one turn unless phase bit 4 is set."""
        return self._reported(self.count)

    def _reported(self, count: int) -> int:
        count -= self._offset
        return count if self._is_multi_turn else count % COUNTS_PER_TURN

    def sense(self) -> None:
        """Puts the readings into the control table."""
        state, memory, sign = self.state, self.memory, self.encoder.sign
        speed = state.velocity_rad_s * sign / RAD_PER_COUNT
        share = state.torque_share * sign
        is_moving = abs(speed) > 4 or (self.is_torque_on and self.profile.speed != 0)
        tenths = min(255, round(self.volts * 10))
        is_outside = not memory[_MIN_VOLT] <= tenths <= memory[_MAX_VOLT]
        _READINGS.pack_into(
            memory,
            _PRESENT,
            _signed(self._reported(self.read_count), 15),
            _signed(round(speed), 15),
            _signed(round(share * 1000), 10),
            tenths,
            min(255, round(self.temperature_c)),
            0,
            self._latched | (VOLTAGE if is_outside else 0),
            is_moving,
            0,
            _signed(round(share * self.model.stall_current_a / _CURRENT_UNIT_A), 15),
        )

    def protect(self, period_s: float) -> None:
        """Latches temperature, current and overload, and takes power away where register 19 says so."""
        memory, share = self.memory, abs(self.state.torque_share)
        if memory[63] > memory[_MAX_TEMP]:
            self._latched |= TEMPERATURE
        is_stalled = share * 100 >= memory[_OVERLOAD] and self.is_torque_on
        self._overload_s = self._overload_s + period_s if is_stalled else 0.0
        if is_stalled and self._overload_s > memory[_PROTECT_TIME] * 0.01:
            self.overload()
        is_over = share * self.model.stall_current_a / _CURRENT_UNIT_A > self._protect_counts
        self._overcurrent_s = self._overcurrent_s + period_s if is_over else 0.0
        if is_over and self._overcurrent_s > memory[_CURRENT_TIME] * 0.01:
            self._latched |= CURRENT
        is_low = memory[_STATUS] & VOLTAGE
        if (self._latched | is_low) & memory[_UNLOAD] & (VOLTAGE | TEMPERATURE | CURRENT):
            memory[_TORQUE] = 0
        memory[_STATUS] = self._latched | is_low

    def overload(self) -> None:
        """Latches the overload bit, as after pressing for too long."""
        self._latched |= OVERLOAD
        share = self.state.torque_share * self.encoder.sign
        self._stall_sign = 0 if abs(share) < 0.01 else (1 if share > 0 else -1)
        self.memory[_STATUS] |= OVERLOAD

    def restart(self) -> None:
        """Everything outside the EEPROM is forgotten: torque off, lock on, no errors."""
        memory = self.memory
        memory[_EEPROM_END:] = bytes(_SIZE - _EEPROM_END)
        memory[_LIMIT : _LIMIT + 2] = memory[_MAX_TORQUE : _MAX_TORQUE + 2]
        memory[_LOCK] = 1
        self._latched = 0
        self._overload_s = self._overcurrent_s = 0.0
        self.reload()

    def reset(self) -> None:
        """Takes the EEPROM back to the factory's values, but for the id."""
        own_id = self.id
        self.kept[:] = self.factory_memory()
        self.kept[_ID] = own_id
        self.memory[:_EEPROM_END] = self.kept[:_EEPROM_END]
        self.reload()

    def command(self, period_s: float) -> MotorCommand:
        """Lets the controller run for a period and returns what it asks of the motor."""
        if not self.is_torque_on or self.is_dead:
            return OFF
        limit = self._limit
        if self._latched & OVERLOAD and self.memory[_UNLOAD] & OVERLOAD:
            limit = min(limit, self.memory[_PROTECT_TORQUE] / 100)
        top = self.max_speed_counts_s
        sign = self.encoder.sign
        if self._mode == 1:
            speed = min(top, max(-top, self._goal_speed))
            return MotorCommand("velocity", speed * sign * RAD_PER_COUNT, 0.0, limit, self.max_speed_rad_s)
        if self._mode == 2:
            share = min(limit, max(-limit, self._goal_share))
            return MotorCommand("torque", share * sign, 0.0, limit, self.max_speed_rad_s)
        asked = abs(self._goal_speed)
        self.profile.advance(self._goal, min(top, asked) if asked else top, self._acceleration, period_s)
        ahead = self.profile.position - self.present
        return MotorCommand(
            "position",
            self.encoder.angle(self.count + ahead),
            self.profile.speed * sign * RAD_PER_COUNT,
            limit,
            self.max_speed_rad_s,
        )

    def _goal_count(self) -> int:
        """The goal as the firmware takes it, in the counts that it reports."""
        goal = _magnitude(self.word(_GOAL), 15)
        low, high = self.word(_MIN), self.word(_MAX)
        if self.firmware.is_goal_clamped and low < high:
            return min(high, max(low, goal))
        return goal


def _magnitude(raw: int, sign_bit: int) -> int:
    size = raw & ((1 << sign_bit) - 1)
    return -size if raw >> sign_bit & 1 else size


def _signed(value: int, sign_bit: int) -> int:
    size = min(abs(value), (1 << sign_bit) - 1)
    return size | 1 << sign_bit if value < 0 else size
