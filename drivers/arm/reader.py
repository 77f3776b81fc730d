"""One cycle's readings: everything at once, what is not believed once more, and who has been silent for how long."""

from __future__ import annotations

import math
from collections.abc import Sequence

from roboalign.drivers.arm.joints import JointUnits
from roboalign.drivers.arm.plausible import MAX_REJECTS, Gate
from roboalign.drivers.arm.readings import MotorReading, ServoPort
from roboalign.sdk.control.clock import Clock

__all__ = ["Reader"]

DEAD_S = 0.5
"""A motor without a believable reading for this long counts as dead."""
_IMPLAUSIBLE = "implausible"
_REREADS = 2
_PATIENT_CYCLES, _PROBE_CYCLES = 10, 25  # a motor silent for longer is asked eagerly only now and then
_BUDGET_S = 0.012  # who is silent must not hold up who is not: beyond it nothing is read again in this cycle
SILENT_CYCLES = 2
"""Cycles without an answer, after which the arm holds and a motor is sent no more goals."""


class Reader:
    """Reads all motors of an arm through the gate."""

    def __init__(
        self, servos: ServoPort, units: Sequence[JointUnits], max_speed_rad_s: Sequence[float], clock: Clock
    ) -> None:
        """`max_speed_rad_s` is what the motors can do."""
        self._servos, self._units, self._clock = servos, units, clock
        count = len(units)
        self.gate = Gate(max_speed_rad_s)
        self.readings: list[MotorReading | None] = [None] * count
        """The last believed reading of each motor."""
        self.is_fresh = [False] * count
        """True for motors whose reading is of this cycle."""
        self.misses = [0] * count
        """Cycles in a row without a believed reading."""
        self.was_silent = [False] * count
        """True for motors that answer in this cycle and did not in the one before."""
        self.why = [""] * count
        """Why there was none."""
        self._cycle = 0
        self.rejected = 0
        """Readings that were not believed, in all."""

    @property
    def positions_rad(self) -> tuple[float, ...]:
        """Last believed position of each motor, NaN where there is none."""
        return tuple(math.nan if (last := self.gate.last(index)) is None else last[0] for index in range(self._count))

    @property
    def is_complete(self) -> bool:
        """True when every motor has been read at least once."""
        return all(self.gate.last(index) is not None for index in range(self._count))

    @property
    def is_settled(self) -> bool:
        """True when every motor has been read or does not answer; one that is not believed yet may still be."""
        return all(
            self.gate.last(index) is not None
            or (self.misses[index] >= SILENT_CYCLES and not self.why[index].startswith(_IMPLAUSIBLE))
            for index in range(self._count)
        )

    @property
    def _count(self) -> int:
        return len(self._units)

    def ages_s(self, now_s: float) -> tuple[float, ...]:
        """Returns how old each position is."""
        lasts = (self.gate.last(index) for index in range(self._count))
        return tuple(math.inf if last is None else max(0.0, now_s - last[1]) for last in lasts)

    def forget(self) -> None:
        """Starts anew, as after a lost port."""
        self.gate.forget()
        self.misses = [0] * self._count
        self.readings = [None] * self._count

    def cycle(self) -> None:
        """Reads every motor once, and again those that did not answer or are not believed. Raises PortLost."""
        self.is_fresh = [False] * self._count
        self._cycle += 1
        start_s = self._clock.now()
        left = self._read(range(self._count), is_eager=False)
        if self._cycle % _PROBE_CYCLES:
            left = [index for index in left if self.misses[index] <= _PATIENT_CYCLES]
        for index in left * _REREADS:
            if not self.is_fresh[index] and self._clock.now() - start_s <= _BUDGET_S:
                self._read((index,), is_eager=True)
        for index in range(self._count):
            self.was_silent[index] = self.is_fresh[index] and self.misses[index] > 0
            self.misses[index] = 0 if self.is_fresh[index] else self.misses[index] + 1

    def silent(self, now_s: float) -> list[tuple[int, str, bool]]:
        """Returns the motors that have not been readable for too long: index, why, and whether they count as dead."""
        found = []
        for index, age_s in enumerate(self.ages_s(now_s)):
            is_rejected = self.why[index].startswith(_IMPLAUSIBLE)
            if self.misses[index] >= (MAX_REJECTS if is_rejected else SILENT_CYCLES):
                found.append((index, self.why[index], age_s > DEAD_S))
        return found

    def _read(self, motors: Sequence[int], *, is_eager: bool) -> list[int]:
        """Returns those of `motors` that are still without a believed reading."""
        readings, faults = self._servos.read(motors, is_eager=is_eager)
        left = []
        for index in motors:
            reading = readings.get(index)
            if reading is None:
                self.why[index] = faults.get(index, "does not answer")
                left.append(index)
                continue
            units = self._units[index]
            position = units.rad(units.unwrapped(reading.position))
            if self.gate.judge(index, position, reading.time_s):
                self.readings[index], self.is_fresh[index] = reading, True
            else:
                self.rejected += 1
                self.why[index] = f"{_IMPLAUSIBLE} position {reading.position} counts"
                left.append(index)
        return left
