"""Control table of Dynamixel X servos (XL330, XC330, XL430, XC430, XM430, XM540, XH540), by name.

Of the e-manual, https://emanual.robotis.com/docs/en/dxl/x/. A model lacks what its hardware lacks: XL430 and XC430
measure the load (`present_load` at the place of `present_current`) and have no current goal or limit. Not tried on
hardware: that an expired bus watchdog reads -1 and makes the goals read-only until 0 is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from roboalign.drivers.bus.types import Block, Register, ServoModel

__all__ = ["DYNAMIXEL_BAUDS", "DYNAMIXEL_MODELS", "DYNAMIXEL_REGISTERS", "DYNAMIXEL_TELEMETRY"]

DYNAMIXEL_BAUDS: Mapping[int, int] = MappingProxyType(
    {0: 9_600, 1: 57_600, 2: 115_200, 3: 1_000_000, 4: 2_000_000, 5: 3_000_000, 6: 4_000_000}
)
"""Bits per second by the value of `baud_rate`."""


def _eeprom(name: str, address: int, size: int = 1, is_signed: bool = False) -> Register:
    return Register(name=name, address=address, size=size, is_twos_complement=is_signed, is_eeprom=True)


def _ram(name: str, address: int, size: int = 1, is_signed: bool = False) -> Register:
    return Register(name=name, address=address, size=size, is_twos_complement=is_signed)


def _state(name: str, address: int, size: int = 1, is_signed: bool = False) -> Register:
    return Register(name=name, address=address, size=size, is_twos_complement=is_signed, is_read_only=True)


_STATE = (
    _state("present_pwm", 124, 2, True),
    _state("present_current", 126, 2, True),  # XL430, XC430: load, 0.1 %
    _state("present_velocity", 128, 4, True),  # 0.229 rpm
    _state("present_position", 132, 4, True),
    _state("velocity_trajectory", 136, 4, True),
    _state("position_trajectory", 140, 4, True),
    _state("present_input_voltage", 144, 2),  # 0.1 V
    _state("present_temperature", 146),  # C
)

_TABLE = (
    _state("model_number", 0, 2),
    _state("model_information", 2, 4),
    _state("firmware_version", 6),
    _eeprom("id", 7),
    _eeprom("baud_rate", 8),
    _eeprom("return_delay_time", 9),  # 2 us
    _eeprom("drive_mode", 10),
    _eeprom("operating_mode", 11),  # 0 current, 1 velocity, 3 position, 4 extended, 5 current and position, 16 PWM
    _eeprom("secondary_id", 12),
    _eeprom("protocol_type", 13),
    _eeprom("homing_offset", 20, 4, True),  # present = actual + offset
    _eeprom("moving_threshold", 24, 4),
    _eeprom("temperature_limit", 31),  # C
    _eeprom("max_voltage_limit", 32, 2),  # 0.1 V
    _eeprom("min_voltage_limit", 34, 2),  # 0.1 V
    _eeprom("pwm_limit", 36, 2),  # 885 is 100 %
    _eeprom("current_limit", 38, 2),  # about 1 mA (XL330) or 2.69 mA (XM)
    _eeprom("velocity_limit", 44, 4),
    _eeprom("max_position_limit", 48, 4),
    _eeprom("min_position_limit", 52, 4),
    _eeprom("startup_configuration", 60),
    _eeprom("shutdown", 63),
    _ram("torque_enable", 64),
    _ram("led", 65),
    _ram("status_return_level", 68),
    _state("registered_instruction", 69),
    _state("hardware_error_status", 70),
    _ram("velocity_i_gain", 76, 2),
    _ram("velocity_p_gain", 78, 2),
    _ram("position_d_gain", 80, 2),
    _ram("position_i_gain", 82, 2),
    _ram("position_p_gain", 84, 2),
    _ram("feedforward_2nd_gain", 88, 2),
    _ram("feedforward_1st_gain", 90, 2),
    _ram("bus_watchdog", 98, 1, True),  # 20 ms; 0 off, -1 expired
    _ram("goal_pwm", 100, 2, True),
    _ram("goal_current", 102, 2, True),
    _ram("goal_velocity", 104, 4, True),
    _ram("profile_acceleration", 108, 4),
    _ram("profile_velocity", 112, 4),
    _ram("goal_position", 116, 4, True),
    _state("realtime_tick", 120, 2),  # ms
    _state("moving", 122),
    _state("moving_status", 123),
    *_STATE,
)

DYNAMIXEL_REGISTERS: Mapping[str, Register] = MappingProxyType({register.name: register for register in _TABLE})
"""Every register by its name."""

DYNAMIXEL_TELEMETRY = Block(registers=_STATE)
"""Everything a servo says about itself: 23 bytes."""

_MODELS = (
    ServoModel(number=1190, name="xl330-m077", min_volts=3.7, max_volts=6.0),
    ServoModel(number=1200, name="xl330-m288", min_volts=3.7, max_volts=6.0),
    ServoModel(number=1210, name="xc330-t181", min_volts=6.5, max_volts=14.8),
    ServoModel(number=1220, name="xc330-t288", min_volts=6.5, max_volts=14.8),
    ServoModel(number=1060, name="xl430-w250", min_volts=6.5, max_volts=12.0),
    ServoModel(number=1070, name="xc430-w150", min_volts=6.5, max_volts=14.8),
    ServoModel(number=1020, name="xm430-w350", min_volts=10.0, max_volts=14.8),
    ServoModel(number=1120, name="xm540-w270", min_volts=10.0, max_volts=14.8),
    ServoModel(number=1110, name="xh540-w270", min_volts=10.0, max_volts=14.8),
)

DYNAMIXEL_MODELS: Mapping[int, ServoModel] = MappingProxyType({model.number: model for model in _MODELS})
"""Servos by what they answer as `model_number`; voltages of the data sheets."""
