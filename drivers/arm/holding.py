"""What is sent to the servos of an arm: who has torque, torque limits and goals, cycle by cycle. Decides nothing."""

from __future__ import annotations

import numpy as np

from roboalign.drivers.arm.joints import Joints
from roboalign.drivers.arm.motion import Motion
from roboalign.drivers.arm.reader import SILENT_CYCLES, Reader
from roboalign.drivers.arm.readings import ServoPort
from roboalign.drivers.arm.stopping import confirm_stop, let_go, take_hold
from roboalign.drivers.arm.torque import TorqueShares

__all__ = ["Holder"]


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
        self.limp: set[int] = set()
        """Motors that are dead or restarted. They get no goal: it switches a Feetech servo on, and it would jump."""

    def take(self) -> str:
        """Switches torque on where the arm is; returns why not, empty when it holds. Raises PortLost."""
        self.limp.clear()
        joints = self._joints
        error = take_hold(self._servos, self._reader, self._motion, self._torque, joints.units, joints.label)
        if not error:
            self.has_torque, self.is_strange = True, False
        return error

    def take_back(self) -> bool:
        """Sends goals again after a lost port, to the pose in which the arm is; false while that is not known."""
        if not self._reader.is_complete:
            return False
        self._motion.reset(self._reader.positions_rad)
        self._servos.watch(True)  # a watchdog that expired meanwhile refuses goals until it is cleared
        self._torque.soften([True] * len(self._joints.units))
        self.has_torque = True
        return True

    def stop(self) -> str:
        """Stays where the last reading was; returns which servos do not confirm it, empty when all do."""
        positions = np.array(self._reader.positions_rad)
        self._motion.reset(np.where(np.isfinite(positions), positions, self._motion.goal))
        return confirm_stop(self._servos, self._motion, self._joints.units, self._joints.label)

    def send(self, period_s: float) -> None:
        """Sends torque limits that changed, then the goals; nothing while torque is off.

        Nothing to a motor that is silent or restarted: a goal switches a Feetech servo on, and it would jump.
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
        self.has_torque = self.is_strange = False
        self._torque.off()
        return stubborn

    def lose(self) -> None:
        """Notes that the port is gone."""
        self.has_torque, self.is_strange = False, True
