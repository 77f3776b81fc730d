"""What is sent to the servos of an arm: who has torque, torque limits and goals, cycle by cycle. Decides nothing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from roboalign.drivers.arm.joints import Joints
from roboalign.drivers.arm.motion import Motion
from roboalign.drivers.arm.reader import SILENT_CYCLES, Reader
from roboalign.drivers.arm.readings import ServoPort
from roboalign.drivers.arm.stopping import confirm_stop, let_go, take_hold
from roboalign.drivers.arm.torque import TorqueShares

__all__ = ["Holder"]

_FIND_CYCLES = 15  # a silent motor takes the time in which the others are read again, at first


class Holder:
    """Takes hold of the arm, sends the goals of `motion` and the limits of `torque`, and lets it go."""

    def __init__(self, servos: ServoPort, joints: Joints, reader: Reader, motion: Motion, torque: TorqueShares) -> None:
        """Stores what it works on."""
        self._servos, self._joints, self._reader = servos, joints, reader
        self._motion, self._torque = motion, torque
        self.has_torque = False
        """True while goals are sent."""
        self.is_strange = False
        """True after a lost port: the arm may be elsewhere than its goals are."""
        self.dead: set[int] = set()
        """Motors that nobody can read."""
        self.off: set[int] = set()
        """Motors that restarted: their torque is off although it was switched on."""
        self.kept: tuple[int, ...] = ()
        """Motors that may have torque although nobody holds them: they did not let go, or the port is lost."""

    @property
    def limp(self) -> set[int]:
        """Motors that get no goal before a re-arm: it switches a Feetech servo on, and it would jump."""
        return self.dead | self.off

    def take(self) -> str:
        """Switches torque on where the arm is; returns why not, empty when it holds. Raises PortLost."""
        self.dead.clear()
        self.off.clear()
        joints = self._joints
        error = take_hold(self._servos, self._reader, self._motion, self._torque, joints.units, joints.label)
        if not error:
            self.has_torque, self.is_strange, self.kept = True, False, ()
        return error

    def take_back(self) -> None:
        """Sends goals again after a lost port, to where the arm is: nothing moves. Raises PortLost.

        Only to motors that answer and have torque; the others must not keep these from being let go.
        """
        reader, left = self._reader, _FIND_CYCLES
        while left and not reader.is_settled:
            reader.cycle()
            left -= 1
        self._servos.watch(True)  # a watchdog that expired meanwhile refuses goals until it is cleared
        for index, position in enumerate(reader.positions_rad):
            is_on = None if math.isnan(position) else self._servos.has_torque(index)
            if not is_on:
                (self.dead if is_on is None else self.off).add(index)
        self._motion.reset(self._places())
        self._torque.soften([True] * len(self._joints.units))
        self.has_torque = True

    def stop(self) -> str:
        """Stays where the last reading was; returns which servos do not confirm it, empty when all do."""
        self._motion.reset(self._places())
        wanted, unknown = {}, []
        for index, unit in enumerate(self._joints.units):
            if math.isnan(self._reader.positions_rad[index]):
                unknown.append(index)
            elif index not in self.off:
                wanted[index] = unit.count(float(self._motion.goal[index]))
        return confirm_stop(self._servos, wanted, unknown, self._joints.label)

    def _places(self) -> NDArray[np.float64]:
        """Where the motors are, and the goals of those of which nobody knows it."""
        positions = np.array(self._reader.positions_rad)
        places: NDArray[np.float64] = np.where(np.isfinite(positions), positions, self._motion.goal)
        return places

    def send(self, period_s: float) -> None:
        """Sends torque limits that changed, then the goals; nothing while torque is off.

        Nothing to a motor that is silent or limp.
        """
        if not self.has_torque:
            return
        self._torque.advance(period_s)
        shares = self._torque.changes()
        if shares:
            self._servos.write_shares(shares)
        goals, misses = self._motion.goal.tolist(), self._reader.misses
        self._servos.write_goals(
            {
                index: unit.count(goals[index])
                for index, unit in enumerate(self._joints.units)
                if misses[index] < SILENT_CYCLES and index not in self.limp
            }
        )

    def let_go(self) -> str:
        """Switches torque off; returns who did not obey, empty when all did."""
        stubborn = let_go(self._servos, self._joints.units, self._joints.label)
        self.has_torque, self.is_strange, self.kept = False, False, tuple(stubborn)
        self._torque.off()
        return "; ".join(stubborn.values())

    def lose(self) -> None:
        """Notes that the port is gone: whoever has torque keeps it."""
        if self.has_torque:
            self.kept = tuple(index for index in range(len(self._joints.units)) if index not in self.off)
        self.has_torque, self.is_strange = False, True
