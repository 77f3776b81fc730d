"""What a cycle's readings mean: who is ill, who presses, who lost its torque, who is silent. The core decides."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roboalign.drivers.arm.holding import Holder
from roboalign.drivers.arm.joints import Joints
from roboalign.drivers.arm.monitor import Action, Alarm, Monitor
from roboalign.drivers.arm.motion import Motion
from roboalign.drivers.arm.reader import Reader
from roboalign.drivers.arm.readings import ServoPort
from roboalign.drivers.arm.reliefs import Reliefs
from roboalign.sdk.control.clock import Clock

__all__ = ["Judge", "Verdicts"]

_VERIFY_CYCLES = 10  # one motor's torque is looked at every so many cycles
_LOW_SHARE = 0.8  # of the others' voltage; below it a servo may have restarted


class Verdicts(Protocol):
    """What a judgement brings about, at once: the next motor is judged by what the arm does then."""

    @property
    def target_rad(self) -> NDArray[np.float64] | None:
        """Where the motors are asked to go; None when nowhere."""
        ...

    @property
    def keeps_torque(self) -> bool:
        """True while every motor is to have torque, and one without it is a fault."""
        ...

    def fault(self, reason: str) -> None:
        """Stops where it is, when it is busy."""
        ...

    def cool(self, reason: str) -> None:
        """Parks and lets go, when it follows commands or holds."""
        ...

    def hold(self, reason: str) -> None:
        """Holds, when it follows commands."""
        ...


class Judge:
    """Looks at what the reader has read."""

    def __init__(
        self,
        servos: ServoPort,
        joints: Joints,
        reader: Reader,
        motion: Motion,
        holder: Holder,
        reliefs: Reliefs,
        clock: Clock,
    ) -> None:
        """Stores what it looks at; `monitor` is set when the servos have told their limits."""
        self._servos, self._label, self._count = servos, joints.label, len(joints.units)
        self._reader, self._motion, self._holder, self._reliefs = reader, motion, holder, reliefs
        self._clock = clock
        self.monitor = Monitor([])
        self._alarms: dict[int, list[Alarm]] = {}

    @property
    def texts(self) -> tuple[str, ...]:
        """What is wrong now, one sentence each, naming the joint."""
        texts = [f"{self._label(index)}: {alarm.text}" for index, found in self._alarms.items() for alarm in found]
        return (*texts, *self.unreadable().values())

    @property
    def speed_scale(self) -> float:
        """Half while a supply sags or a motor is warm."""
        slow = any(alarm.action is Action.SLOW for alarms in self._alarms.values() for alarm in alarms)
        return 0.5 if slow else 1.0

    def unreadable(self) -> dict[int, str]:
        """Returns the motors that cannot be read, and why."""
        return {
            index: f"{self._label(index)} cannot be read: {why}; check its cable and power"
            for index, why, _ in self._reader.silent(self._clock.now())
        }

    def cycle(self, number: int, verdicts: Verdicts) -> None:
        """Looks at the readings of the cycle with this number, and stops what must be stopped. Raises PortLost."""
        reader, silent, positions = self._reader, self.unreadable(), self._reader.positions_rad
        volts = sorted(item.volts for item in reader.readings if item is not None)
        usual_volts = volts[len(volts) // 2] if volts else 0.0
        for index, reading in enumerate(reader.readings):
            if reading is None or not reader.is_fresh[index]:
                continue
            goal = float(self._motion.goal[index]) if self._holder.has_torque else None
            self._alarms[index] = self.monitor.look(index, reading, positions[index], goal)
            for alarm in self._alarms[index]:
                self._answer(alarm, positions[index], verdicts)
            target = verdicts.target_rad
            if target is not None and self._reliefs.end_if_away(index, float(target[index])):
                self.monitor.clear(index)
            self._check_torque(index, number, reading.volts < _LOW_SHARE * usual_volts, verdicts)
        if silent:
            verdicts.hold(next(iter(silent.values())))
        for index, why, is_dead in reader.silent(self._clock.now()):
            if is_dead:
                self._holder.dead.add(index)
                verdicts.fault(f"{self._label(index)} is dead ({why}): check its cable and power, then re-arm")

    def _answer(self, alarm: Alarm, position_rad: float, verdicts: Verdicts) -> None:
        text = f"{self._label(alarm.motor)}: {alarm.text}"
        if alarm.action is Action.FAULT:
            verdicts.fault(text)
        elif alarm.action is Action.PARK:
            verdicts.cool(text)
        elif alarm.action is Action.RELIEVE and alarm.motor not in self._reliefs:
            self._reliefs.add(alarm.motor, position_rad)

    def _check_torque(self, index: int, number: int, is_low: bool, verdicts: Verdicts) -> None:
        """Looks whether a motor lost its torque: in turn, and at once when it was silent or its voltage is low."""
        if not self._holder.has_torque or not verdicts.keeps_torque:
            return
        is_turn = number % (_VERIFY_CYCLES * self._count) == index * _VERIFY_CYCLES
        if (is_turn or is_low or self._reader.was_silent[index]) and self._servos.has_torque(index) is False:
            self._holder.off.add(index)
            text = "lost its torque: it restarted; check power supply and cable, then re-arm"
            verdicts.fault(f"{self._label(index)} {text}")
