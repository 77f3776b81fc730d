"""Motors that pushed against something: how far they may still push, and when they get their torque back."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from roboalign.drivers.arm.motion import Motion
from roboalign.drivers.arm.torque import TorqueShares

__all__ = ["Reliefs"]

_SHARE = 0.5  # of a motor's cap; an arm still holds its own weight with it
_PUSH_RAD = 0.03  # how far a goal may be beyond where the motor was stopped


class Reliefs:
    """By motor: where it was stopped and towards which side it pushed."""

    def __init__(self, motion: Motion, torque: TorqueShares) -> None:
        """Changes the goals of `motion` and the limits of `torque`."""
        self._motion, self._torque = motion, torque
        self._stopped: dict[int, tuple[float, float]] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._stopped

    def add(self, index: int, position_rad: float) -> None:
        """Takes torque from a motor at once, and its goal back to just beyond where it was stopped."""
        goal = float(self._motion.goal[index])
        self._stopped[index] = (position_rad, math.copysign(1.0, goal - position_rad))
        self._torque.relieve(index, _SHARE)
        self._motion.replace(index, self._limit(index, goal))

    def end_if_away(self, index: int, target_rad: float) -> bool:
        """Gives the torque back, gently, when the motor is asked to move away; true when it was."""
        if index not in self._stopped:
            return False
        position, side = self._stopped[index]
        if side * (target_rad - position) >= 0:
            return False
        del self._stopped[index]
        self._torque.recover(index)
        return True

    def limit(self, target_rad: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the targets, none of them pushing further."""
        limited = target_rad.copy()
        for index in self._stopped:
            limited[index] = self._limit(index, float(limited[index]))
        return limited

    def clear(self) -> None:
        """Forgets all: a new soft start."""
        self._stopped.clear()

    def _limit(self, index: int, goal: float) -> float:
        position, side = self._stopped[index]
        edge = position + side * _PUSH_RAD
        return min(goal, edge) if side > 0 else max(goal, edge)
