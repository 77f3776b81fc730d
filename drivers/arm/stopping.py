"""Taking hold of an arm, stopping it, and letting it go: each is confirmed by reading back, motor by motor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from roboalign.drivers.arm.joints import JointUnits
from roboalign.drivers.arm.motion import Motion
from roboalign.drivers.arm.reader import Reader
from roboalign.drivers.arm.readings import ServoPort
from roboalign.drivers.arm.torque import TorqueShares
from roboalign.sdk.errors import RobotError

__all__ = ["confirm_stop", "let_go", "take_hold"]

_TRIES = 3
_FIND_CYCLES = 10
_MAX_OUTSIDE_RAD = math.radians(5.0)
_GOAL_COUNTS = 2

Label = Callable[[int], str]


def take_hold(
    servos: ServoPort,
    reader: Reader,
    motion: Motion,
    torque: TorqueShares,
    units: Sequence[JointUnits],
    label: Label,
) -> str:
    """Switches torque on where the arm is, low where it was off; returns why not, empty when it holds.

    Raises:
        PortLost: The port is gone.
    """
    for _ in range(_FIND_CYCLES):
        reader.cycle()
        if reader.is_complete and all(reader.is_fresh):
            break
    else:
        silent = [f"{label(i)} {reader.why[i]}" for i in range(len(units)) if not reader.is_fresh[i]]
        return f"cannot find where the arm is: {'; '.join(silent)}; check cable and power"
    positions = reader.positions_rad
    for index, position in enumerate(positions):
        outside = max(motion.lower[index] - position, position - motion.upper[index])
        if outside > _MAX_OUTSIDE_RAD:
            return (
                f"{label(index)} is {math.degrees(outside):.0f} degrees outside its limits; turn it inside by hand, "
                "or calibrate again: roboalign calibrate"
            )
    motion.reset(positions)
    servos.watch(False)  # one that expired refuses goals and limits until it is cleared
    torque.soften([servos.has_torque(index) is True for index in range(len(units))])
    servos.write_shares(dict(enumerate(torque.now)))
    servos.write_goals({index: unit.count(positions[index]) for index, unit in enumerate(units)})
    stubborn = [f"{label(i)}: {why}" for i in range(len(units)) if (why := servos.set_torque(i, True))]
    servos.watch(True)
    return f"torque cannot be switched on: {'; '.join(stubborn)}" if stubborn else ""


def confirm_stop(servos: ServoPort, wanted: Mapping[int, int], unknown: Sequence[int], label: Label) -> str:
    """Sends goals, in counts, until every servo says that it has its own; returns which ones do not, empty when all do.

    Nothing is sent to the `unknown` motors, of which nobody knows where they are; they count as not confirmed.
    """
    left = dict(wanted)
    for _ in range(_TRIES):
        servos.write_goals(left)
        found = {index: servos.goal(index) for index in left}
        left = {i: wanted[i] for i, goal in found.items() if goal is None or abs(goal - wanted[i]) > _GOAL_COUNTS}
        if not left:
            break
    names = ", ".join(label(index) for index in sorted({*left, *unknown}))
    return f"the stop was sent, but {names} did not confirm it: cut the power" if names else ""


def let_go(servos: ServoPort, units: Sequence[JointUnits], label: Label) -> dict[int, str]:
    """Switches torque off, of every motor whatever the others answer; returns who did not obey, and why.

    Then gives limits and watchdogs back as other programs expect them.
    """
    stubborn: dict[int, str] = {}
    obedient: dict[int, float] = {}
    for index in range(len(units)):
        try:
            for _ in range(_TRIES):
                why = servos.set_torque(index, False)
                if not why:
                    break
        except RobotError as err:  # a lost port too: the others get their turn
            why = str(err)
        if why:
            stubborn[index] = f"{label(index)} did not let go: {why}"
        else:
            obedient[index] = 1.0
    with suppress(RobotError):
        servos.watch(False)
        servos.write_shares(obedient)
    return stubborn
