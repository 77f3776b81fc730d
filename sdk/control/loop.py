"""The control loop: asks a policy for chunks and applies them at a fixed rate, one absolute deadline after another.

Tick n is due at start + n / rate, whatever the ticks before it took, so lateness does not add up. A tick that is over a
whole period late has missed the deadlines in between; they are counted and skipped, never caught up in a burst. While
the policy computes, nothing new is sent and the robot stays at its last target. One thread, for simulated time and for
robots in memory: a slow policy shows as missed deadlines. `tick.RealTimeLoop` runs beside a policy in another process.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import numpy as np

from roboalign.sdk.control.clock import Clock, MonotonicClock
from roboalign.sdk.errors import ConfigError, DataError, RobotTimeout
from roboalign.sdk.robot import Robot
from roboalign.sdk.types import ActionChunk, Applied, FloatArray, Observation

__all__ = ["Actor", "ControlLoop", "LoopReport", "Tick"]

_EARLY_S = 1e-6  # a deadline met within a microsecond is met; sums of float periods are not exact
_MAX_REASONS = 32  # distinct reasons that a report counts apart


class Actor(Protocol):
    """The part of `sdk.Policy` that the loop uses."""

    def reset(self) -> None:
        """Forgets the episode before."""
        ...

    def act(self, observation: Observation) -> ActionChunk:
        """Returns the next actions, or a hold with its reason."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """What happened in one control period."""

    index: int
    """Number of the tick, from 0; misses are not ticks."""
    time_s: float
    """Clock time at which the command was sent."""
    lateness_s: float
    """Time between the deadline and the command."""
    applied: Applied
    """What was sent and why it differs."""
    observation: Observation | None
    """What the current chunk was computed from; None when the robot could not be observed."""
    chunk: ActionChunk | None
    """The chunk that the action is from; None when the policy gave none."""
    step: int
    """Index of the action in its chunk; -1 for a hold."""
    age_s: float
    """Age of the observation behind the action when it was sent; NaN for a hold."""
    hold_reason: str | None
    """Why the loop held; None when an action was applied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopReport:
    """Counts and times of one run of the loop."""

    ticks: int
    """Commands sent, holds included."""
    misses: int
    """Deadlines at which nothing was sent because the tick before ran too long."""
    holds: int
    """Ticks in which the loop held: the policy held, failed or was too slow, or the robot could not be observed."""
    hold_reasons: Mapping[str, int] = field(default_factory=dict)
    """How often the loop held for each reason."""
    changed: int = 0
    """Ticks in which the robot sent something else than it was asked, holds not included."""
    change_reasons: Mapping[str, int] = field(default_factory=dict)
    """How often each reason of the limiter or the kinematics occurred."""
    chunks: int = 0
    """Answers that the policy gave, holds included."""
    max_age_s: float = 0.0
    """Largest age of the observation behind an action that was sent."""
    p50_lateness_s: float = 0.0
    """Median time between deadline and command."""
    p99_lateness_s: float = 0.0
    """99th percentile of it."""
    duration_s: float = 0.0
    """Clock time of the whole run."""
    stopped_by: str = "max_ticks"
    """`max_ticks`, `until`, or `holds: <reason>` after too many holds in a row."""


class ControlLoop:
    """Runs a policy on a connected robot."""

    def __init__(
        self,
        robot: Robot,
        policy: Actor,
        clock: Clock | None = None,
        rate_hz: float | None = None,
        replan_every: int | None = None,
        *,
        on_tick: Callable[[Tick], None] | None = None,
        watchdog_s: float = 2.0,
        max_holds: int = 50,
    ) -> None:
        """Stores the parts; nothing runs yet.

        Args:
            robot: Connected by the caller, who also disconnects it.
            policy: Asked for a chunk whenever the one before is used up.
            clock: The machine's monotonic clock by default.
            rate_hz: By default the robot's.
            replan_every: Actions used of each chunk; all of them by default.
            on_tick: Called after each command, in the loop's time.
            watchdog_s: An action whose observation is older is dropped, and the loop holds instead.
            max_holds: The run ends after this many holds in a row.
        """
        self.rate_hz = robot.spec.control_rate_hz if rate_hz is None else rate_hz
        for name, value in (("rate_hz", self.rate_hz), ("watchdog_s", watchdog_s)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"ControlLoop {name} is {value}, expected a positive number")
        for name, count in (("replan_every", replan_every), ("max_holds", max_holds)):
            if count is not None and count < 1:
                raise ConfigError(f"ControlLoop {name} is {count}, expected at least 1")
        self.robot, self.policy = robot, policy
        self.clock: Clock = MonotonicClock() if clock is None else clock
        self.replan_every, self.on_tick = replan_every, on_tick
        self.watchdog_s, self.max_holds = watchdog_s, max_holds
        self._queue: deque[tuple[int, FloatArray]] = deque()
        self._observation: Observation | None = None
        self._observed_s = 0.0
        self._chunk: ActionChunk | None = None

    def run(self, instruction: str, *, max_ticks: int, until: Callable[[], bool] | None = None) -> LoopReport:
        """Follows `instruction` for at most `max_ticks` control periods; the robot holds when it returns.

        `until` is asked after each tick and ends the run by returning true. If anything raises, the robot is told to
        hold, or to stop if it cannot, and the error goes on to the caller.

        Raises:
            ConfigError: The policy's chunks are for another rate.
            RobotError: The robot did not take a command.
        """
        if max_ticks < 1:
            raise ConfigError(f"max_ticks is {max_ticks}, expected at least 1")
        self._queue.clear()
        self._chunk, self._observation = None, None
        tally = _Tally()
        period_s = 1.0 / self.rate_hz
        stopped_by = "max_ticks"
        try:
            self.policy.reset()
            start_s = self.clock.now()
            due = 0  # index of the deadline
            for index in range(max_ticks):
                self.clock.sleep_until(start_s + due * period_s)
                tick = self._tick(index, start_s + due * period_s, instruction)
                tally.add(tick)
                if self.on_tick is not None:
                    self.on_tick(tick)
                if until is not None and until():
                    stopped_by = "until"
                    break
                if tally.holds_in_a_row >= self.max_holds:
                    stopped_by = f"holds: {tick.hold_reason}"
                    break
                late = self.clock.now() - (start_s + (due + 1) * period_s)
                missed = math.ceil((late - _EARLY_S) / period_s) if late > _EARLY_S else 0
                tally.misses += missed if index + 1 < max_ticks else 0
                due += 1 + missed
            self.robot.hold()
        except BaseException:
            self._stop()
            raise
        return tally.report(stopped_by, self.clock.now() - start_s)

    def _tick(self, index: int, deadline_s: float, instruction: str) -> Tick:
        """Sends one command: the next action, or a hold."""
        hold_reason = None if self._queue else self._replan(instruction)
        age_s = self.clock.now() - self._observed_s
        if hold_reason is None and age_s > self.watchdog_s:
            hold_reason = f"action too old: over {self.watchdog_s:g} s since its observation"
            self._queue.clear()
        step, action = (-1, None) if hold_reason is not None else self._queue.popleft()
        time_s = self.clock.now()
        applied = self.robot.hold() if action is None else self.robot.act(action)
        return Tick(
            index=index,
            time_s=time_s,
            lateness_s=max(0.0, time_s - deadline_s),
            applied=applied,
            observation=self._observation,
            chunk=self._chunk,
            step=step,
            age_s=math.nan if action is None else age_s,
            hold_reason=hold_reason,
        )

    def _replan(self, instruction: str) -> str | None:
        """Fills the queue from a new observation; returns why it could not."""
        self._chunk, self._observation = None, None
        self._observed_s = self.clock.now()
        try:
            self._observation = self.robot.observe(instruction)
        except (DataError, RobotTimeout) as err:
            return f"observation failed: {err}"
        try:
            chunk: object = self.policy.act(self._observation)
        except Exception as err:  # noqa: BLE001 - the loop must bring the robot to a stop, whatever the policy does
            return f"policy raised {type(err).__name__}: {err}"
        if not isinstance(chunk, ActionChunk):
            return f"policy returned {type(chunk).__name__}, expected ActionChunk"
        self._chunk = chunk
        if chunk.source == "hold":
            return f"policy holds: {chunk.reason}"
        if not math.isclose(chunk.rate_hz, self.rate_hz, rel_tol=1e-3):
            raise ConfigError(
                f"the policy's chunk is for {chunk.rate_hz:g} Hz but the loop runs at {self.rate_hz:g} Hz;"
                " run the loop at the policy's rate, or load a policy for this rate"
            )
        self._queue.extend(enumerate(chunk.actions[: self.replan_every]))
        return None

    def _stop(self) -> None:
        """Holds, or stops the robot if it cannot hold. Never raises, so that the first error reaches the caller."""
        try:
            self.robot.hold()
        except Exception:  # noqa: BLE001 - a robot that cannot hold is stopped, whatever the cause
            with contextlib.suppress(Exception):
                self.robot.estop()


class _Tally:
    """Counts while the loop runs."""

    def __init__(self) -> None:
        self.misses = 0
        self.holds_in_a_row = 0
        self._lateness_s: list[float] = []
        self._hold_reasons: Counter[str] = Counter()
        self._change_reasons: Counter[str] = Counter()
        self._changed = 0
        self._chunks: int = 0
        self._last_chunk: ActionChunk | None = None
        self._max_age_s = 0.0

    def add(self, tick: Tick) -> None:
        self._lateness_s.append(tick.lateness_s)
        if tick.chunk is not None and tick.chunk is not self._last_chunk:
            self._chunks += 1
            self._last_chunk = tick.chunk
        if tick.hold_reason is not None:
            self.holds_in_a_row += 1
            _count(self._hold_reasons, tick.hold_reason)
            return
        self.holds_in_a_row = 0
        self._max_age_s = max(self._max_age_s, tick.age_s)
        self._changed += tick.applied.is_changed
        for reason in tick.applied.reasons:
            _count(self._change_reasons, reason)

    def report(self, stopped_by: str, duration_s: float) -> LoopReport:
        p50_s, p99_s = np.percentile(self._lateness_s, (50, 99))
        return LoopReport(
            ticks=len(self._lateness_s),
            misses=self.misses,
            holds=sum(self._hold_reasons.values()),
            hold_reasons=MappingProxyType(dict(self._hold_reasons)),
            changed=self._changed,
            change_reasons=MappingProxyType(dict(self._change_reasons)),
            chunks=self._chunks,
            max_age_s=self._max_age_s,
            p50_lateness_s=float(p50_s),
            p99_lateness_s=float(p99_s),
            duration_s=duration_s,
            stopped_by=stopped_by,
        )


def _count(counter: Counter[str], reason: str) -> None:
    counter[reason if reason in counter or len(counter) < _MAX_REASONS else "other"] += 1
