"""The way to the park position and the gentle end: brake, move, settle, let go. Time rules it, not what servos answer.

A servo that is dead, blocked or hot does not keep the others from arriving and being let go.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roboalign.drivers.arm.motion import Motion
from roboalign.drivers.arm.torque import TorqueShares

__all__ = ["ParkPhase", "Parking"]

ARRIVED_RAD = 0.04
"""A joint this close to its park position has arrived."""
_SHORTEST_S, _LONGEST_S = 0.5, 2.1  # with 0.5 s of silence before it and the settling, within 3 s
_SETTLE_S = 0.25


class ParkPhase(Enum):
    """How far it is."""

    IDLE = "idle"
    """Not parking."""
    BRAKE = "brake"
    """Coming to rest from what it did."""
    MOVE = "move"
    """On the way."""
    SETTLE = "settle"
    """The goals are there, the joints follow."""
    LET_GO = "let go"
    """Torque falls."""
    DONE = "done"
    """It is over; `late` says who did not arrive."""


class Parking:
    """One parking at a time."""

    def __init__(self, motion: Motion, torque: TorqueShares, park_rad: ArrayLike) -> None:
        """Moves the goals of `motion` and the limits of `torque`; `park_rad` has the arm joints only."""
        self._motion, self._torque = motion, torque
        self._park = np.asarray(park_rad, dtype=np.float64)
        self._end = self._park
        self._left_s = 0.0
        self.phase = ParkPhase.IDLE
        self.reason = ""
        self.lets_go = False
        """True when torque falls at the end."""
        self.is_in_place = False
        """True when the way is left out."""
        self.late: tuple[int, ...] = ()
        """Joints that were not there at the end."""

    @property
    def is_on(self) -> bool:
        """True from `start` until `finish`."""
        return self.phase is not ParkPhase.IDLE

    def start(self, reason: str, *, lets_go: bool, in_place: bool = False, end_rad: ArrayLike | None = None) -> None:
        """Begins, or adds letting go at the park position to what has begun.

        `in_place` leaves out the way: only lets go. `end_rad` is another place to go to, and to stay at with torque.
        """
        self.lets_go = self.lets_go or lets_go
        if self.is_on and not (lets_go and self._end is not self._park):
            return
        self._end = self._park if end_rad is None else np.asarray(end_rad, dtype=np.float64)
        self.reason, self.late, self.is_in_place = reason, (), in_place
        self.phase = ParkPhase.BRAKE
        if in_place:
            self._torque.release()
            self.phase = ParkPhase.LET_GO

    def finish(self) -> None:
        """Is idle again."""
        self.phase, self.lets_go = ParkPhase.IDLE, False

    def step(self, period_s: float, scale: float, positions_rad: ArrayLike) -> ParkPhase:
        """Lets a cycle pass and returns where it is; the caller switches torque off at DONE."""
        if self.phase is ParkPhase.BRAKE:
            self._motion.brake(period_s)
            if self._motion.is_at_rest:
                end: NDArray[np.float64] = np.append(self._end, self._motion.goal[len(self._end) :])
                self._motion.start_path(end, _SHORTEST_S, _LONGEST_S)
                self.phase = ParkPhase.MOVE
        elif self.phase is ParkPhase.MOVE:
            if self._motion.advance_path(period_s, scale):
                self._left_s = _SETTLE_S
                self.phase = ParkPhase.SETTLE
        elif self.phase is ParkPhase.SETTLE:
            self._settle(period_s, positions_rad)
        elif self.phase is ParkPhase.LET_GO and self._torque.is_settled:
            self.phase = ParkPhase.DONE
        return self.phase

    def _settle(self, period_s: float, positions_rad: ArrayLike) -> None:
        self._left_s -= period_s
        off = np.abs(np.asarray(positions_rad, dtype=np.float64)[: len(self._end)] - self._end)
        is_there = off <= ARRIVED_RAD  # an unknown position, NaN, is not
        if not is_there.all() and self._left_s > 0:
            return
        self.late = tuple(np.flatnonzero(~is_there).tolist())
        if self.lets_go:
            self._torque.release()
            self.phase = ParkPhase.LET_GO
        else:
            self.phase = ParkPhase.DONE
