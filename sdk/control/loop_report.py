"""What a run of the loop was like: rates, times of every stage, misses, and why the arm did not move."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Histogram", "RunReport", "Spread", "count"]

_LOW_S, _PER_DECADE, _DECADES = 1e-7, 96, 9
_MAX_REASONS = 32  # distinct texts that a report counts apart


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Percentiles, to about 2.5 %; the maximum is exact. Seconds, or the unit of the quantity."""

    p50: float = 0.0
    """Median."""
    p99: float = 0.0
    """99th percentile."""
    p999: float = 0.0
    """99.9th percentile."""
    max: float = 0.0
    """Largest."""
    count: int = 0
    """Values."""

    def __str__(self) -> str:
        if self.count == 0:
            return "-"
        return f"p50 {_show(self.p50)}, p99 {_show(self.p99)}, p99.9 {_show(self.p999)}, max {_show(self.max)}"


def _show(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


class Histogram:
    """Counts values on a logarithmic scale from 0.1 us to 100 s, in memory that does not grow."""

    def __init__(self) -> None:
        self._counts = np.zeros(_PER_DECADE * _DECADES + 1, np.int64)
        self._max = 0.0

    def add(self, seconds: float) -> None:
        """Counts one value."""
        if seconds > self._max:
            self._max = seconds
        position = int(_PER_DECADE * math.log10(seconds / _LOW_S)) + 1 if seconds > _LOW_S else 0
        self._counts[min(position, len(self._counts) - 1)] += 1

    def spread(self) -> Spread:
        """Returns what was counted."""
        total = int(self._counts.sum())
        if total == 0:
            return Spread()
        ends = np.cumsum(self._counts)

        def at(share: float) -> float:
            bin_ = int(np.searchsorted(ends, math.ceil(share * total)))
            return 0.0 if bin_ == 0 else min(self._max, float(_LOW_S * 10 ** ((bin_ - 0.5) / _PER_DECADE)))

        return Spread(p50=at(0.5), p99=at(0.99), p999=at(0.999), max=self._max, count=total)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """One run of the loop beside a policy in a process of its own."""

    ticks: int
    """Commands sent, holds included."""
    misses: int
    """Deadlines at which nothing was sent because the control process came too late."""
    moved: int
    """Ticks in which an action was sent."""
    reasons: Mapping[str, int]
    """Ticks in which the arm did not move, by `Reason`."""
    notes: Mapping[str, int]
    """The same, in words, where there are any."""
    changes: Mapping[str, int]
    """What the limiter changed in actions that were sent, by its reason."""
    interrupted: int = 0
    """Holds that were sent between two deadlines, because something broke there."""
    chunks: int = 0
    """Answers of the policy that were taken over."""
    chunks_refused: Mapping[str, int] = field(default_factory=dict)
    """Answers that were not, by the reason."""
    lateness_s: Spread = field(default_factory=Spread)
    """Time between a deadline and the moment at which its command was handed to the robot."""
    stages_s: Mapping[str, Spread] = field(default_factory=dict)
    """Parts of a control period, see `records.STAGES`."""
    answer_s: Spread = field(default_factory=Spread)
    """Time from an observation to the chunk that answers it."""
    age_s: Spread = field(default_factory=Spread)
    """Age of what an action was computed from, when it was sent."""
    thought_age_s: Spread = field(default_factory=Spread)
    """Age of what was thought about, where the policy says."""
    joints: Spread = field(default_factory=Spread)
    """Change of the tool's step where one chunk follows another, as a share of the largest step."""
    within: Spread = field(default_factory=Spread)
    """The same change inside a chunk."""
    skipped: int = 0
    """Actions of new chunks that were left out because older ones had been sent in their place."""
    clock_jumps: int = 0
    """Times that the clock went back or leapt ahead by more than a second."""
    duration_s: float = 0.0
    """Clock time of the whole run."""
    rate_hz: float = 0.0
    """Commands a second."""
    granted: str = ""
    """What the operating system granted, and what it refused."""
    trace_lost: int = 0
    """Periods that are missing in what was written."""
    trace_problem: str = ""
    """Why trace or recording is not complete; empty when they are."""
    stopped_by: str = "max_ticks"
    """`max_ticks`, `until`, or the reason after the arm held for too long."""

    def lines(self) -> list[str]:
        """Returns the report for people."""
        share = 100.0 * self.moved / self.ticks if self.ticks else 0.0
        lines = [
            f"{self.ticks} control periods in {self.duration_s:.1f} s ({self.rate_hz:.2f} a second), stopped by "
            f"{self.stopped_by}; {self.misses} deadlines missed",
            f"moved in {self.moved} ({share:.0f} %), {self.chunks} chunks, {self.skipped} actions skipped",
            f"granted: {self.granted or 'nothing was asked for'}",
            f"late by {self.lateness_s}",
            f"answers took {self.answer_s}",
            f"actions were {self.age_s} old",
        ]
        lines += [f"did not move, {reason}: {count}" for reason, count in _most(self.reasons)]
        lines += [f"  {count} of {self.ticks}: {note}" for note, count in _most(self.notes)]
        lines += [f"changed, {reason}: {count}" for reason, count in _most(self.changes)]
        lines += [f"chunk refused, {reason}: {count}" for reason, count in _most(self.chunks_refused)]
        if self.trace_problem:
            lines.append(f"what was written lacks {self.trace_lost} periods: {self.trace_problem}")
        return lines


def count(counter: Counter[str], text: str) -> None:
    """Counts a text; what is too much goes under `other`, so that memory does not grow."""
    counter[text if text in counter or len(counter) < _MAX_REASONS else "other"] += 1


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])[:8]
