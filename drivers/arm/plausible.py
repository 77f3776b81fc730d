"""The gate on readings: a joint cannot be where it could not have travelled to.

An 8-bit checksum lets one in a hundred 2-bit errors through, so a packet that parses is not yet a position. A reading
further from the last accepted one than the motor's top speed allows is not believed; it is read again at once, and
believed only when two more readings say the same. What is inside the gate may still be wrong, by at most one cycle of
travel plus the margin.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MAX_REJECTS", "Gate"]

MAX_REJECTS = 3
"""Cycles in a row without a believable reading of a joint; more, and the arm holds."""

_MARGIN_RAD = 0.012  # 8 counts: noise of the encoder, and of the time at which it was read
_AGREE_RAD = 0.009  # two readings within a few milliseconds
_NEEDED = 3  # readings that must agree when they are outside the gate: one to suspect, two to confirm
_REREAD_S = 0.01  # a confirmation comes within this time
_MAX_GAP_S = 0.5  # travel counts for no longer than this; a gate as wide as the joint's range is none


class Gate:
    """Judges the positions of one arm's motors, in radians. Keeps the last believed one of each."""

    def __init__(self, max_speed_rad_s: Sequence[float]) -> None:
        """`max_speed_rad_s` is what each motor can do without load, not what it is allowed to do."""
        self._speed = tuple(max_speed_rad_s)
        count = len(self._speed)
        self._last: list[float | None] = [None] * count
        self._last_s = [0.0] * count
        self._suspects: list[list[tuple[float, float]]] = [[] for _ in range(count)]
        self.rejects = [0] * count
        """Readings not believed since the last believed one, by motor."""

    def is_inside(self, index: int, position_rad: float, time_s: float) -> bool:
        """True when the motor could have come here since its last believed reading; the first is never."""
        last = self._last[index]
        if last is None:
            return False
        gap_s = min(max(time_s - self._last_s[index], 0.0), _MAX_GAP_S)
        return abs(position_rad - last) <= self._speed[index] * gap_s + _MARGIN_RAD

    def judge(self, index: int, position_rad: float, time_s: float) -> bool:
        """Takes a reading; true when it is believed. When false, read again at once and ask again."""
        if self.is_inside(index, position_rad, time_s) or self._is_confirmed(index, position_rad, time_s):
            self.accept(index, position_rad, time_s)
            return True
        self.rejects[index] += 1
        return False

    def accept(self, index: int, position_rad: float, time_s: float) -> None:
        """Believes a position whatever the gate says: where the arm was found, before it moves."""
        self._last[index], self._last_s[index] = position_rad, time_s
        self._suspects[index].clear()
        self.rejects[index] = 0

    def last(self, index: int) -> tuple[float, float] | None:
        """Returns the last believed position and its time."""
        value = self._last[index]
        return None if value is None else (value, self._last_s[index])

    def forget(self) -> None:
        """Believes nothing any more: the port was lost, the arm may have been moved."""
        for index in range(len(self._speed)):
            self._last[index] = None
            self._suspects[index].clear()
            self.rejects[index] = 0

    def _is_confirmed(self, index: int, position_rad: float, time_s: float) -> bool:
        suspects = [item for item in self._suspects[index] if time_s - item[1] <= _NEEDED * _REREAD_S]
        reach = _AGREE_RAD + self._speed[index] * _REREAD_S / 2
        if suspects and any(abs(position_rad - item[0]) > reach for item in suspects):
            suspects = []
        suspects.append((position_rad, time_s))
        self._suspects[index] = suspects
        return len(suspects) >= _NEEDED
