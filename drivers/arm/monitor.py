"""Watches voltage, temperature, load and stalls of every motor, and says what to do about them.

Thresholds: voltage within 0.3 V of the servo's own minimum, or a sag of 15 % within 0.2 s, halves the speed, below 60 %
of what it was is a fault; 55 C warns
and halves the speed, 65 C parks; a load above 80 % for 1 s lowers that motor's torque. A stall is a drive above its
threshold, an error of position, and no motion, together for 0.15 s: the motor pushes against something. Alert bits of
the servo count at once. None of this was tuned on hardware.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from roboalign.drivers.arm.readings import Alert, MotorLimits, MotorReading

__all__ = ["Action", "Alarm", "Monitor"]

STALL_S = 0.15
_STALL_LOAD = 0.4
_STALL_ERROR_RAD = 0.035
_STALL_SPEED_RAD_S = 0.06
_HEAVY_LOAD, _HEAVY_S = 0.8, 1.0
_COLLAPSE_SHARE = 0.6  # of the highest voltage seen: a servo cannot do its work with less
_LOW_MARGIN_V, _SAG_SHARE, _SAG_S = 0.3, 0.15, 0.2
_WARM_C, _HOT_C = 55.0, 65.0
_MIN_TRUE_V = 1.0  # a servo that answers has more than this; a lower reading is no voltage


class Action(Enum):
    """What an alarm asks for, mildest first."""

    WARN = "warn"
    """Tell; nothing else."""
    SLOW = "slow"
    """Half the speed while it lasts."""
    RELIEVE = "relieve"
    """Less torque on this motor, and no further push; the others go on."""
    PARK = "park"
    """Park, then let go."""
    FAULT = "fault"
    """Stop where it is until a person re-arms."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that is wrong with one motor."""

    motor: int
    """Index of the motor."""
    action: Action
    """What it asks for."""
    text: str
    """What is wrong, and what to look at."""


class Monitor:
    """Looks at each cycle's readings. Keeps a fifth of a second of voltages and how long each condition has lasted."""

    def __init__(self, limits: Sequence[MotorLimits]) -> None:
        """`limits` has one entry per motor."""
        self._limits = tuple(limits)
        self._usual = [0.0] * len(limits)
        self._volts: list[deque[tuple[float, float]]] = [deque() for _ in limits]
        self._heavy_since: list[float | None] = [None] * len(limits)
        self._stall_since: list[float | None] = [None] * len(limits)
        self._stall_at = [0.0] * len(limits)

    def look(self, index: int, reading: MotorReading, position_rad: float, goal_rad: float | None) -> list[Alarm]:
        """Takes one believed reading of a motor; `goal_rad` is None while its torque is off."""
        alarms = self._alerts(index, reading) + self._supply(index, reading) + self._heat(index, reading)
        if goal_rad is not None:
            alarms += self._effort(index, reading, position_rad, goal_rad)
        else:
            self.clear(index)
        return alarms

    def clear(self, index: int) -> None:
        """Starts the times of load and stall of a motor anew."""
        self._heavy_since[index] = self._stall_since[index] = None

    def _alerts(self, index: int, reading: MotorReading) -> list[Alarm]:
        if not reading.alerts:
            return []
        texts = (
            (Alert.OVERLOAD, "overload: it let go by itself; free the joint, then re-arm"),
            (Alert.TEMPERATURE, "too hot by its own limit: it let go by itself; let it cool, then re-arm"),
            (Alert.CURRENT, "too much current: look for a blocked joint or a damaged cable, then re-arm"),
            (Alert.VOLTAGE, f"supply outside its limits, {reading.volts:.1f} V: check the power supply and its plug"),
            (Alert.SENSOR, "its encoder fails: re-plug it; if it stays, replace the servo"),
            (Alert.OTHER, "reports an error of its own; read it with: roboalign doctor"),
        )
        return [Alarm(index, Action.FAULT, text) for alert, text in texts if alert in reading.alerts]

    def _supply(self, index: int, reading: MotorReading) -> list[Alarm]:
        if reading.volts < _MIN_TRUE_V:
            return []
        recent = self._volts[index]
        recent.append((reading.time_s, reading.volts))
        while recent[0][0] < reading.time_s - _SAG_S:
            recent.popleft()
        limits = self._limits[index]
        if reading.volts < limits.min_volts:
            text = f"supply {reading.volts:.1f} V, it cuts out below {limits.min_volts:.1f} V: use a stronger supply"
            return [Alarm(index, Action.FAULT, text)]
        if reading.volts > limits.max_volts:
            text = f"supply {reading.volts:.1f} V, it bears {limits.max_volts:.1f} V: unplug, wrong power supply"
            return [Alarm(index, Action.FAULT, text)]
        self._usual[index] = max(self._usual[index], reading.volts)
        if reading.volts < _COLLAPSE_SHARE * self._usual[index]:
            text = f"supply fell from {self._usual[index]:.1f} to {reading.volts:.1f} V: check power supply and plug"
            return [Alarm(index, Action.FAULT, text)]
        is_sagging = reading.volts < self._usual[index] * (1 - _SAG_SHARE)
        if is_sagging:
            is_sagging = reading.volts < max(volts for _, volts in recent) * (1 - _SAG_SHARE)
        if is_sagging or reading.volts < limits.min_volts + _LOW_MARGIN_V:
            text = f"supply sags to {reading.volts:.1f} V: speed is halved; use a stronger supply or a shorter cable"
            return [Alarm(index, Action.SLOW, text)]
        return []

    def _heat(self, index: int, reading: MotorReading) -> list[Alarm]:
        if reading.temperature_c >= min(_HOT_C, self._limits[index].max_temperature_c):
            return [Alarm(index, Action.PARK, f"{reading.temperature_c:.0f} C: the arm parks; let it cool")]
        if reading.temperature_c >= _WARM_C:
            return [Alarm(index, Action.SLOW, f"{reading.temperature_c:.0f} C: speed is halved; let it rest")]
        return []

    def _effort(self, index: int, reading: MotorReading, position_rad: float, goal_rad: float) -> list[Alarm]:
        load, error = abs(reading.load), goal_rad - position_rad
        now = reading.time_s
        since = self._stall_since[index]
        is_pressing = load >= _STALL_LOAD and abs(error) >= _STALL_ERROR_RAD
        has_moved = since is not None and abs(position_rad - self._stall_at[index]) > max(
            0.01, _STALL_SPEED_RAD_S * (now - since)
        )
        if not is_pressing or has_moved:
            self._stall_since[index] = None
        if is_pressing and self._stall_since[index] is None:
            self._stall_since[index], self._stall_at[index] = now, position_rad
        since = self._stall_since[index]
        if since is not None and now - since >= STALL_S:
            text = f"pushes against something (load {load:.0%}, {abs(error):.2f} rad off): its torque is reduced"
            return [Alarm(index, Action.RELIEVE, text)]
        if load < _HEAVY_LOAD:
            self._heavy_since[index] = None
            return []
        heavy = self._heavy_since[index]
        self._heavy_since[index] = now if heavy is None else heavy
        if heavy is not None and now - heavy >= _HEAVY_S:
            return [Alarm(index, Action.RELIEVE, f"load {load:.0%} for {_HEAVY_S:g} s: its torque is reduced")]
        return []
