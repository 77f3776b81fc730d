"""The torque limits of all motors as they rise, fall and are relieved; never a sudden drop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["TorqueShares"]

SOFT_SHARE = 0.2
"""Share of the torque at which a soft start begins."""
SOFT_S = 1.0
"""Time of a soft start, and of letting go."""
_RECOVER_PER_S = 1.0
_STEP = 0.015  # smaller changes are not worth a packet


class TorqueShares:
    """Share of the full torque that each motor may use, moved towards its aim at a rate."""

    def __init__(self, caps: Sequence[float]) -> None:
        """`caps` is the most that each motor gets, 1 for all that it has."""
        self.caps = tuple(caps)
        self.now = [0.0] * len(self.caps)
        """Share of each motor now; 0 while torque is off."""
        self._aim = [0.0] * len(self.caps)
        self._rate = [0.0] * len(self.caps)
        self._sent = [-1.0] * len(self.caps)

    def soften(self, has_torque: Sequence[bool]) -> None:
        """Starts low and rises to the caps: a soft start. Motors that hold already keep what they have: no sag."""
        for index, cap in enumerate(self.caps):
            self.now[index] = (self.now[index] or cap) if has_torque[index] else min(SOFT_SHARE, cap)
            self._towards(index, cap, SOFT_S)
        self.resend()

    def release(self) -> None:
        """Falls to nothing."""
        for index in range(len(self.caps)):
            self._towards(index, 0.0, SOFT_S)

    def relieve(self, index: int, share: float) -> None:
        """Takes torque from one motor at once; it keeps `share` of its cap."""
        self.now[index] = self._aim[index] = min(self.now[index], share * self.caps[index])

    def recover(self, index: int) -> None:
        """Gives a relieved motor its torque back, gently."""
        self._aim[index], self._rate[index] = self.caps[index], _RECOVER_PER_S

    @property
    def is_settled(self) -> bool:
        """True when nothing rises or falls."""
        return self.now == self._aim

    def advance(self, period_s: float) -> None:
        """Lets a cycle pass."""
        for index, aim in enumerate(self._aim):
            step = self._rate[index] * period_s
            now = self.now[index]
            self.now[index] = min(aim, now + step) if now < aim else max(aim, now - step)

    def changes(self) -> Mapping[int, float]:
        """Returns what must be sent since the last call."""
        due = {
            index: share
            for index, share in enumerate(self.now)
            if abs(share - self._sent[index]) >= _STEP or (share == self._aim[index] != self._sent[index])
        }
        for index, share in due.items():
            self._sent[index] = share
        return due

    def resend(self) -> None:
        """Makes the next `changes` say everything: the servos may have forgotten."""
        self._sent = [-1.0] * len(self.caps)

    def off(self) -> None:
        """Notes that torque is off."""
        self.now = [0.0] * len(self.caps)
        self._aim = [0.0] * len(self.caps)

    def _towards(self, index: int, aim: float, time_s: float) -> None:
        self._aim[index] = aim
        self._rate[index] = abs(aim - self.now[index]) / time_s
