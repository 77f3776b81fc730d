"""The last cycles of an arm, as its bus saw them: what was sent when, what was read when."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from roboalign.drivers.arm.joints import JointUnits
from roboalign.drivers.arm.reader import Reader

__all__ = ["CycleTrace"]

_KEPT_CYCLES = 100


class CycleTrace:
    """Keeps a row a cycle until somebody takes it; forgets the oldest when nobody does."""

    def __init__(self, units: Sequence[JointUnits], reader: Reader) -> None:
        """Stores the units of the goals and where the readings are."""
        self._units, self._reader = units, reader
        self._rows: deque[tuple[float, ...]] = deque(maxlen=_KEPT_CYCLES)

    def add(self, sent_s: float, goal_rad: Sequence[float]) -> None:
        """Takes the cycle in which these goals were sent; nothing when not every motor was read in it."""
        if not all(self._reader.is_fresh):
            return
        lasts = [self._reader.gate.last(index) for index in range(len(self._units))]
        found = [last for last in lasts if last is not None]
        read_s = sum(time_s for _, time_s in found) / len(found)
        sent = (unit.rad(unit.count(goal)) for unit, goal in zip(self._units, goal_rad, strict=True))
        self._rows.append((sent_s, read_s, *sent, *(position for position, _ in found)))

    def take(self) -> tuple[tuple[float, ...], ...]:
        """Returns the rows since the last call, oldest first: time sent, time read, goals, positions."""
        taken = tuple(self._rows)
        self._rows.clear()
        return taken
