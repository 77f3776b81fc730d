"""Control table of Feetech STS and SMS servos with magnetic encoder (STS3215, STS3250, SM8512BL), by name.

Addresses and units are those of Feetech's memory table for the STS series, as LeRobot and feetech-cli use them too. Not
tried on hardware: `torque_enable` = 128 takes the present position as the middle, a write of `goal_position` turns the
torque on by itself and is clamped to the position limits in silence, and what the protection registers do.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from roboalign.drivers.bus.types import Block, Register, ServoModel

__all__ = ["FEETECH_BAUDS", "FEETECH_MODELS", "FEETECH_REGISTERS", "FEETECH_TELEMETRY"]

FEETECH_BAUDS: Mapping[int, int] = MappingProxyType(
    {0: 1_000_000, 1: 500_000, 2: 250_000, 3: 128_000, 4: 115_200, 5: 76_800, 6: 57_600, 7: 38_400}
)
"""Bits per second by the value of `baud_rate`."""


def _eeprom(name: str, address: int, size: int = 1, sign_bit: int | None = None) -> Register:
    return Register(name=name, address=address, size=size, sign_bit=sign_bit, is_eeprom=True)


def _ram(name: str, address: int, size: int = 1, sign_bit: int | None = None) -> Register:
    return Register(name=name, address=address, size=size, sign_bit=sign_bit)


def _state(name: str, address: int, size: int = 1, sign_bit: int | None = None) -> Register:
    return Register(name=name, address=address, size=size, sign_bit=sign_bit, is_read_only=True)


_TABLE = (
    _state("firmware_major", 0),
    _state("firmware_minor", 1),
    _state("model_number", 3, 2),
    _eeprom("id", 5),
    _eeprom("baud_rate", 6),
    _eeprom("return_delay", 7),  # 2 us
    _eeprom("status_return_level", 8),
    _eeprom("min_position_limit", 9, 2),
    _eeprom("max_position_limit", 11, 2),
    _eeprom("max_temperature_limit", 13),  # C
    _eeprom("max_voltage_limit", 14),  # 0.1 V
    _eeprom("min_voltage_limit", 15),  # 0.1 V
    _eeprom("max_torque_limit", 16, 2),  # 0.1 %
    _eeprom("phase", 18),  # bit 4: angle feedback over several turns
    _eeprom("unloading_condition", 19),
    _eeprom("led_alarm_condition", 20),
    _eeprom("p_coefficient", 21),
    _eeprom("d_coefficient", 22),
    _eeprom("i_coefficient", 23),
    _eeprom("minimum_startup_force", 24, 2),
    _eeprom("cw_dead_zone", 26),
    _eeprom("ccw_dead_zone", 27),
    _eeprom("protection_current", 28, 2),  # 6.5 mA
    _eeprom("angular_resolution", 30),
    _eeprom("homing_offset", 31, 2, 11),  # present = actual - offset
    _eeprom("operating_mode", 33),  # 0 position, 1 speed, 2 PWM, 3 step
    _eeprom("protective_torque", 34),  # %
    _eeprom("protection_time", 35),
    _eeprom("overload_torque", 36),  # %
    _eeprom("velocity_p", 37),
    _eeprom("over_current_protection_time", 38),
    _eeprom("velocity_i", 39),
    _ram("torque_enable", 40),
    _ram("acceleration", 41),
    _ram("goal_position", 42, 2, 15),
    _ram("goal_time", 44, 2),
    _ram("goal_velocity", 46, 2, 15),
    _ram("torque_limit", 48, 2),  # 0.1 %
    _ram("lock", 55),  # 1: EEPROM is write-protected
    _state("present_position", 56, 2, 15),
    _state("present_velocity", 58, 2, 15),
    _state("present_load", 60, 2, 10),  # 0.1 % of full PWM
    _state("present_voltage", 62),  # 0.1 V
    _state("present_temperature", 63),  # C
    _state("async_write_flag", 64),
    _state("status", 65),  # the bits of the error byte
    _state("moving", 66),
    _state("present_current", 69, 2, 15),  # 6.5 mA
)

FEETECH_REGISTERS: Mapping[str, Register] = MappingProxyType({register.name: register for register in _TABLE})
"""Every register by its name."""

FEETECH_TELEMETRY = Block(
    registers=tuple(r for r in _TABLE if r.address >= FEETECH_REGISTERS["present_position"].address)
)
"""Everything a servo says about itself: 15 bytes."""

FEETECH_MODELS: Mapping[int, ServoModel] = MappingProxyType(
    {
        # One number for the 7.4 V and the 12 V variant: only the voltage limits that it was set up with tell.
        777: ServoModel(number=777, name="sts3215", min_volts=4.0, max_volts=14.0),
        2825: ServoModel(number=2825, name="sts3250", min_volts=6.0, max_volts=14.0),
        11272: ServoModel(number=11272, name="sm8512bl", min_volts=9.0, max_volts=25.0),
    }
)
"""Servos by what they answer as `model_number`."""
