"""One joint's sweep by hand: unwrapped over the encoder's seam, judged, and turned into LeRobot's calibration.

An encoder counts 0 to 4095 and starts again. Where the seam lies depends on how the horn was mounted, so a joint's
travel may cross it; ranges that are taken as smallest and largest count are then wrong without a word
(lerobot #3586, #3587). Here samples are followed over the seam, and the homing offset puts the middle of the travel at
the middle of the counts, so that no seam is left inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from roboalign.drivers.arm.calibration import MotorCalibration, MotorNotes
from roboalign.drivers.arm.models import COUNTS_PER_TURN
from roboalign.sdk.errors import ConfigError

__all__ = ["JointFacts", "JointSweep", "SweepResult", "calibrate_joint", "find_problem", "homing_offset"]

MIDDLE = COUNTS_PER_TURN // 2 - 1
"""Count at which the middle of the travel is put, as LeRobot does."""
MIN_TRAVEL = 200
"""Counts (18 degrees) below which a joint was not moved."""
MAX_STEP = COUNTS_PER_TURN // 4
"""Counts between two samples above which nobody can say which way round the joint went."""
_MAX_FEETECH_OFFSET = 2047
_MAX_TRAVEL_ERROR_RAD = 0.5
_MAX_ZERO_ERROR_RAD = 0.35
_COUNTS_PER_RAD = COUNTS_PER_TURN / (2 * math.pi)


class JointSweep:
    """Follows one encoder, sample by sample. Counts are those of the encoder itself, without homing offset."""

    def __init__(self, count: int) -> None:
        """Starts at a first sample."""
        self.start = count % COUNTS_PER_TURN
        self.position = self.low = self.high = self.start
        self.largest_step = 0

    def add(self, count: int) -> None:
        """Takes the next sample; the shorter way round is the way it went."""
        half = COUNTS_PER_TURN // 2
        step = (count - self.position + half) % COUNTS_PER_TURN - half
        self.position += step
        self.low, self.high = min(self.low, self.position), max(self.high, self.position)
        self.largest_step = max(self.largest_step, abs(step))

    @property
    def travel(self) -> int:
        """Counts between both ends."""
        return self.high - self.low

    @property
    def is_lost(self) -> bool:
        """True when it moved so far between two samples that the way round is unknown."""
        return self.largest_step > MAX_STEP

    def near(self, count: int) -> int:
        """Returns an encoder count on the scale of this sweep: the turn that is nearest to its middle."""
        middle = (self.low + self.high) // 2
        half = COUNTS_PER_TURN // 2
        return middle + (count - middle + half) % COUNTS_PER_TURN - half


@dataclass(frozen=True, kw_only=True, slots=True)
class JointFacts:
    """What is known about a joint before it is swept."""

    name: str
    """Name of the joint."""
    id: int
    """Id of its motor."""
    protocol: str
    """`feetech` or `dynamixel`."""
    limits_rad: tuple[float, float] | None = None
    """Limits in the URDF; None where there is no URDF, or for a gripper: the zero cannot be checked then."""
    is_full_turn: bool = False
    """True for a joint that may have no end stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResult:
    """One joint, calibrated."""

    calibration: MotorCalibration
    """LeRobot's entry."""
    notes: MotorNotes
    """What LeRobot's file does not say."""


def homing_offset(protocol: str, middle: int) -> int:
    """Returns the register value that makes a servo report `MIDDLE` where its encoder counts `middle` (0 to 4095).

    A Feetech servo reports encoder - offset and stores 11 bits and a sign, so the offset of 2048 that count 4095 would
    need is cut to 2047 (lerobot #1296); a Dynamixel adds its offset.

    >>> homing_offset("feetech", 4095), homing_offset("feetech", 0), homing_offset("dynamixel", 4095)
    (2047, -2047, -2048)
    """
    offset = middle - MIDDLE
    return -offset if protocol == "dynamixel" else max(-_MAX_FEETECH_OFFSET, min(_MAX_FEETECH_OFFSET, offset))


def find_problem(facts: JointFacts, sweep: JointSweep, zero_count: int | None = None) -> str | None:
    """Returns why a sweep cannot be used, with figures and what to do; None when it can.

    Args:
        facts: The joint.
        sweep: Its samples.
        zero_count: Encoder count at which it stood when the arm was held in its zero pose.
    """
    name, travel_deg = facts.name, sweep.travel / _COUNTS_PER_RAD * 180 / math.pi
    if sweep.is_lost:
        return f"{name}: moved by {sweep.largest_step} counts between two readings; move it slowly, once more"
    if facts.is_full_turn and sweep.travel < MIN_TRAVEL:
        return None
    if sweep.travel < MIN_TRAVEL:
        return f"{name}: moved by {sweep.travel} counts only ({travel_deg:.0f} degrees); move it from end to end"
    if sweep.travel >= COUNTS_PER_TURN:
        return (
            f"{name}: turned by {sweep.travel} counts, a full turn is {COUNTS_PER_TURN}; its horn slips or it has no "
            "end stop; mend it, and begin again"
        )
    if facts.limits_rad is None or facts.is_full_turn:
        return None
    return _zero_problem(facts, sweep, zero_count)


def _zero_problem(facts: JointFacts, sweep: JointSweep, zero_count: int | None) -> str | None:
    assert facts.limits_rad is not None
    lower, upper = facts.limits_rad
    travel_rad, wanted_rad = sweep.travel / _COUNTS_PER_RAD, upper - lower
    if abs(travel_rad - wanted_rad) > _MAX_TRAVEL_ERROR_RAD:
        what = "an end was not reached" if travel_rad < wanted_rad else "it turns further than the model's joint"
        return (
            f"{facts.name}: swept {math.degrees(travel_rad):.0f} degrees, the URDF has {math.degrees(wanted_rad):.0f}: "
            f"{what}; move it to both end stops, or check that this is the right arm"
        )
    if zero_count is None:
        return None
    off_rad = (sweep.near(zero_count) - _zero_of(sweep, facts.limits_rad)) / _COUNTS_PER_RAD
    if abs(off_rad) > _MAX_ZERO_ERROR_RAD:
        return (
            f"{facts.name}: the zero pose was {math.degrees(off_rad):+.0f} degrees from where the URDF has it between "
            "the end stops; the horn is mounted by teeth off, the pose was another one, or an end was not reached"
        )
    return None


def calibrate_joint(facts: JointFacts, sweep: JointSweep, zero_count: int | None = None) -> SweepResult:
    """Returns the calibration of a sweep without a problem.

    A joint that can turn all round and was not moved gets LeRobot's range 0 to 4095 around its zero pose.

    Raises:
        ConfigError: The sweep has a problem; see `find_problem`.
    """
    problem = find_problem(facts, sweep, zero_count)
    if problem is not None:
        raise ConfigError(problem)
    is_all_round = facts.is_full_turn and not _reaches_limits(facts, sweep)
    zero = sweep.near(zero_count if zero_count is not None else sweep.start)
    middle = zero if is_all_round else (sweep.low + sweep.high) // 2
    offset = homing_offset(facts.protocol, middle % COUNTS_PER_TURN)
    shift = MIDDLE - middle if facts.protocol == "dynamixel" else _feetech_shift(middle, offset)
    low, high = (0, COUNTS_PER_TURN - 1) if is_all_round else (sweep.low + shift, sweep.high + shift)
    if not 0 <= low < high < COUNTS_PER_TURN:
        raise ConfigError(f"{facts.name}: {low} to {high} counts would hold the encoder's seam; sweep the joint again")
    if is_all_round or facts.limits_rad is None:
        zero_noted = float(zero + shift) if zero_count is not None and facts.limits_rad is not None else None
    else:
        zero_noted = _zero_of(sweep, facts.limits_rad) + shift
    return SweepResult(
        calibration=MotorCalibration(id=facts.id, drive_mode=0, homing_offset=offset, range_min=low, range_max=high),
        notes=MotorNotes(zero_count=zero_noted, seam_checked=True),
    )


def _reaches_limits(facts: JointFacts, sweep: JointSweep) -> bool:
    if facts.limits_rad is None:
        return sweep.travel >= COUNTS_PER_TURN // 2
    wanted_rad = facts.limits_rad[1] - facts.limits_rad[0]
    return abs(sweep.travel / _COUNTS_PER_RAD - wanted_rad) <= _MAX_TRAVEL_ERROR_RAD


def _feetech_shift(middle: int, offset: int) -> int:
    """What turns an unwrapped count into the one that the servo will report, which is between 0 and 4095."""
    turns = (middle - offset - MIDDLE + COUNTS_PER_TURN // 2) // COUNTS_PER_TURN
    return -offset - turns * COUNTS_PER_TURN


def _zero_of(sweep: JointSweep, limits_rad: tuple[float, float]) -> float:
    """The unwrapped count that the URDF's zero has when the sweep's middle is the middle of its limits."""
    return (sweep.low + sweep.high) / 2 - (limits_rad[0] + limits_rad[1]) / 2 * _COUNTS_PER_RAD
