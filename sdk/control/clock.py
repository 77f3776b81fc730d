"""Clocks that the control loop can be given: the machine's, a simulation's, or one that a test moves by hand.

All are monotonic; their zero means nothing. Only differences and deadlines do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from roboalign.sdk.errors import ConfigError, RobotTimeout

__all__ = ["Clock", "FakeClock", "MonotonicClock", "SimClock"]


@runtime_checkable
class Clock(Protocol):
    """Tells the time and waits for a deadline."""

    def now(self) -> float:
        """Returns seconds since an arbitrary moment; never goes back."""
        ...

    def sleep_until(self, time_s: float) -> None:
        """Blocks until `now()` is at least `time_s`; returns at once when it already is."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Returns `time.monotonic()`."""
        return time.monotonic()

    def sleep_until(self, time_s: float) -> None:
        """Sleeps; wakes late by what the operating system's scheduler takes, and early if the clock is set back."""
        before_s = math.inf
        while 0 < (left_s := time_s - time.monotonic()) < before_s:
            time.sleep(left_s)
            before_s = left_s

    def spin_until(self, time_s: float) -> None:
        """Waits for a moment that is near without giving the processor away, so that nothing wakes up late."""
        before_s = math.inf
        while 0 < (left_s := time_s - time.monotonic()) <= before_s:
            before_s = left_s


class FakeClock:
    """A clock that moves only when told: by `advance`, or by sleeping.

    >>> clock = FakeClock()
    >>> clock.sleep_until(2.0)
    >>> clock.advance(0.5)
    >>> clock.now()
    2.5
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        """Returns the time it was moved to."""
        return self._now_s

    def sleep_until(self, time_s: float) -> None:
        """Jumps to `time_s` if that is ahead."""
        self._now_s = max(self._now_s, time_s)

    def advance(self, seconds: float) -> None:
        """Moves forward."""
        if seconds < 0:
            raise ConfigError(f"a clock cannot go back by {-seconds} s")
        self._now_s += seconds


class SimClock:
    """A simulation's time, which passes only while the simulation is stepped.

    Computing costs no simulated time, so a slow policy looks instant; measure its latency with `MonotonicClock`, or let
    the policy's wrapper step the simulation for as long as it took.
    """

    def __init__(self, time_s: Callable[[], float], step: Callable[[], object]) -> None:
        """`time_s` returns the simulated time; `step` lets some pass, e.g. `robot.hold`."""
        self._time_s, self._step = time_s, step

    def now(self) -> float:
        """Returns the simulated time."""
        return self._time_s()

    def sleep_until(self, time_s: float) -> None:
        """Steps the simulation until the deadline; half a millisecond early counts, for sums of float steps."""
        while (before_s := self._time_s()) < time_s - 5e-4:
            self._step()
            if not self._time_s() > before_s:
                raise RobotTimeout(f"the simulation was stepped but its time stays at {before_s} s")
