"""The control process's loop: one command at each deadline, whatever the policy's process does.

Tick n is due at start + n / rate. The command goes out first; reading the robot, showing it to the policy and writing
down come after it. A new chunk takes over at the action that belongs to now: as many of its first actions are left out
as were sent since the observation that it answers. The policy is asked early enough that its answer comes before the
present chunk ends, by the 99th percentile of its last answers. Between two deadlines the loop wakes up now and then,
and holds at once when the policy's process is gone or silent, or somebody pressed stop.
The loop allocates no array. A command allocates the three of its `Applied`, and the driver of a robot what it reads.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.control.answers import Answers
from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.clock import Clock, MonotonicClock
from roboalign.sdk.control.loop_report import Histogram, RunReport, count
from roboalign.sdk.control.period import PeriodWriter
from roboalign.sdk.control.records import STAGES, Reason, fields_of
from roboalign.sdk.control.watchdog import Guard, PolicyWatch, WatchSettings
from roboalign.sdk.errors import CameraTimeout, ConfigError, DataError, RobotError, RobotTimeout
from roboalign.sdk.types import Applied, FloatArray, Observation

__all__ = ["LoopSettings", "PolicyLink", "RealTimeLoop"]

_EARLY_S = 1e-6  # a deadline met within a microsecond is met; sums of float periods are not exact
_EARLY_WAKE_S = 5e-4  # waking up under load takes 0.1 to 0.4 ms; costs a twentieth of a processor at 100 Hz
_TIME_TO_ANNOUNCE_S = 1e-4  # waking up another process takes 0.03 ms, which no command may wait
_JUMP_S = 1.0  # a clock that is further ahead than this has jumped, or the process was stopped
_HELD = "hold: "
_UNKNOWN = np.full(4, np.nan, np.float32)


class PolicyLink(Protocol):
    """What the loop needs of a policy's process."""

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        ...

    def announce(self) -> None:
        """Says that it will be asked within a moment; does not wait."""
        ...

    def ask(self) -> None:
        """Says that there is something new to look at; does not wait."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """How the loop runs."""

    rate_hz: float | None = None
    """Commands a second; the robot's own when None, and never more: its limits are for each of its periods."""
    is_ahead: bool = True
    """Ask for the next chunk while the present one is executed; else when it is used up, and hold meanwhile."""
    park_after_s: float = 5.0
    """The run ends after holding for so long, so that the caller parks; holding because of stop does not count."""
    early_s: float = 0.0
    """The loop wakes up and chooses the action so long before a deadline, then waits for it without sleeping."""
    watch_every_s: float = 0.01
    """How often the loop looks at the policy's process between deadlines."""
    show_every_s: float = 0.2
    """How often the page gets a picture when the policy asks for none."""
    is_shown: bool = False
    """Whether somebody looks."""
    is_traced: bool = False
    """Whether the joints are read in every period, for a trace."""
    watch: WatchSettings = field(default_factory=WatchSettings)
    """How long what may be silent."""

    def __post_init__(self) -> None:
        for name in ("park_after_s", "watch_every_s", "show_every_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"LoopSettings.{name} is {getattr(self, name)}, expected a positive number")

    @classmethod
    def for_policy(
        cls, needs: PolicySpec, latency_s: float, *, is_shown: bool = False, is_traced: bool = False
    ) -> LoopSettings:
        """Returns settings that let a policy work whose answers take `latency_s`: slow is not hung."""
        chunk_s = needs.horizon / needs.rate_hz
        watch = WatchSettings(answer_timeout_s=max(5.0, 4 * latency_s), max_age_s=max(2.0, 2 * latency_s + chunk_s))
        return cls(
            park_after_s=max(5.0, 5 * latency_s),
            early_s=_EARLY_WAKE_S,
            is_shown=is_shown,
            is_traced=is_traced,
            watch=watch,
        )


class RealTimeLoop:
    """Runs a robot beside a policy that answers through `channels`."""

    def __init__(
        self,
        robot: Guard,
        policy: PolicyLink,
        channels: Channels,
        settings: LoopSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Stores the parts; nothing runs yet. The robot is connected by the caller, who parks it afterwards.

        Raises:
            ConfigError: The rate is above the robot's.
        """
        self.settings = LoopSettings() if settings is None else settings
        self.rate_hz = robot.spec.control_rate_hz if self.settings.rate_hz is None else self.settings.rate_hz
        if not 0.0 < self.rate_hz <= robot.spec.control_rate_hz:
            raise ConfigError(
                f"LoopSettings.rate_hz is {self.rate_hz}, expected more than 0 and at most the robot's "
                f"{robot.spec.control_rate_hz:g}: its limits are for each of its control periods"
            )
        self._robot, self._policy, self._channels = robot, policy, channels
        self._clock: Clock = MonotonicClock() if clock is None else clock
        self._spin_until: Callable[[float], None] = getattr(self._clock, "spin_until", self._clock.sleep_until)
        self._watch = PolicyWatch(channels, lambda: policy.is_alive, self.settings.watch)
        self._answers = Answers(channels, self.rate_hz, robot.spec)
        self._question = channels.board["question"]
        self._answered, self._is_over = channels.board["answered"], channels.board["is_over"]
        self._shown = {id(record): fields_of(record) for record in channels.observations.records}
        self._pictures = tuple(enumerate(channels.pictures.values()))
        self._period = PeriodWriter(channels.ticks)
        self._control_beat_s, self._board_reason = channels.board["control_beat_s"], channels.board["reason"]
        self._tally = _Tally()
        self._applied: Applied | None = None
        self._note = ""
        self._is_moving = self._is_announced = False
        self._shown_s = -math.inf
        self._now_s = -math.inf
        self._back_s = self._begin_s = self._end_s = 0.0
        self._interrupts = 0
        self._granted, self._stopped_by = "", "not run"
        self._trouble: tuple[Reason, str] | None = None
        self._measured: FloatArray = np.zeros(robot.spec.num_joints, np.float32)
        self._measured_s = math.nan

    def run(
        self, instruction: str, *, max_ticks: int, until: Callable[[], bool] | None = None, granted: str = ""
    ) -> RunReport:
        """Runs for at most `max_ticks` control periods; the robot holds when it returns.

        `until` is asked after each tick and ends the run by returning true. If anything raises, the robot is told to
        hold, or to stop if it cannot, and the error goes on to the caller.

        Raises:
            ConfigError: The policy's chunks are for another rate.
            RobotError: The robot did not take a command.
        """
        period_s = 1.0 / self.rate_hz
        self._granted = granted
        try:
            self._look(instruction, is_question=True)
            self._begin_s = start_s = self._time() + self._back_s
            due = held = 0  # index of the deadline, and holds in a row
            for index in range(max_ticks):
                self._sleep_until(start_s + due * period_s - self.settings.early_s)
                reason = self._tick(index, due, start_s + due * period_s, instruction)
                now_s = self._time() + self._back_s
                if until is not None and until():
                    self._stopped_by = "until"
                    break
                held = 0 if reason in (Reason.MOVING, Reason.STOPPED) else held + 1
                if held * period_s > self.settings.park_after_s:
                    self._stopped_by = f"{reason.value}: {self._note}" if self._note else reason.value
                    break
                late_s = now_s - (start_s + (due + 1) * period_s)
                missed = math.ceil((late_s - _EARLY_S) / period_s) if late_s > _EARLY_S else 0
                self._tally.misses += missed if index + 1 < max_ticks else 0
                due += 1 + missed
            else:
                self._stopped_by = "max_ticks"
            self._robot.hold()
        except BaseException as err:
            self._robot.stop()
            self._stopped_by = f"{type(err).__name__}: {err}"
            if isinstance(err, RobotError):
                self._write_error(str(err))
            raise
        finally:
            self._end_s = self._time() + self._back_s
            self._is_over[0] = 1
        return self.report()

    def report(self) -> RunReport:
        """Returns what there was up to now, also after `run` has raised."""
        duration_s = self._end_s - self._begin_s
        return self._tally.report(self._stopped_by, duration_s, self._granted, self._answers)

    def _time(self) -> float:
        """Returns the clock's time, and notices when it leaps: what it went back is added to deadlines."""
        now_s = self._clock.now()
        leap_s = now_s - self._now_s
        if leap_s < -_EARLY_S:
            self._back_s -= leap_s
        if leap_s < -_EARLY_S or _JUMP_S < leap_s < math.inf:
            self._tally.clock_jumps += 1
        self._now_s = now_s
        return now_s

    def _sleep_until(self, deadline_s: float) -> None:
        """Waits for a deadline, and looks at the policy meanwhile."""
        now_s = self._time()
        while (left_s := deadline_s - self._back_s - now_s) > 0:
            self._clock.sleep_until(now_s + min(left_s, self.settings.watch_every_s))
            now_s = self._time()
            is_early = now_s < deadline_s - self._back_s
            if self._is_moving and is_early and self._watch.look(now_s) is not None:
                self._robot.hold()
                self._is_moving = False
                self._interrupts += 1
                self._tally.interrupted += 1

    def _tick(self, index: int, due: int, deadline_s: float, instruction: str) -> Reason:
        """Sends one command: the action that belongs to now, or a hold with its reason."""
        woke_s = self._time()
        reason, action = self._decide(woke_s)
        decided_s = self._clock.now()
        if deadline_s - self._back_s - decided_s > _TIME_TO_ANNOUNCE_S and self._wants(int(action is not None)):
            self._policy.announce()
            self._is_announced = True
        self._spin_until(deadline_s - self._back_s)
        handed_s = self._clock.now()
        applied = self._applied = self._robot.hold() if action is None else self._robot.act(action)
        sent_s = self._clock.now()
        if action is not None:
            held = next((text for text in applied.reasons if text.startswith(_HELD)), None)
            if held is not None:
                reason, self._note = Reason.LIMITER, held[len(_HELD) :]
            self._answers.use(sent_s, self._tally)
        self._is_moving = reason is Reason.MOVING
        lateness_s = max(0.0, handed_s + self._back_s - deadline_s)
        wants = self._wants()
        is_seen = self.settings.is_shown and sent_s - self._shown_s >= self.settings.show_every_s
        observed_s, published_s = sent_s, sent_s
        if wants or is_seen or self._trouble is not None:
            observed_s, published_s = self._look(instruction, is_question=wants)
        elif self.settings.is_traced:
            observed_s = published_s = self._measure(instruction)
        self._tally.add(reason, self._note, applied, lateness_s)
        woke_late_s = max(0.0, woke_s + self._back_s - deadline_s)
        stages_s = (woke_late_s, decided_s - woke_s, sent_s - handed_s, observed_s - sent_s, published_s - observed_s)
        self._write_down(index, due, (sent_s, lateness_s), reason, stages_s)
        self._control_beat_s[0], self._board_reason[0] = sent_s, reason.code
        self._tally.stages[-1].add(max(0.0, self._clock.now() - published_s))
        return reason

    def _decide(self, now_s: float) -> tuple[Reason, FloatArray | None]:
        """Returns the next action, or why there is none."""
        self._note = ""
        wrong = self._watch.look(now_s)
        if wrong is not None:
            self._note = self._watch.note
            if wrong is Reason.STOPPED:
                self._robot.latched = self._note
        elif self._robot.picture_age_s() > self.settings.watch.max_picture_age_s:
            wrong, self._note = Reason.STALE_CAMERA, "a camera gives no new picture"
        elif self._trouble is not None:
            wrong, self._note = self._trouble
        if wrong is not None:
            if not self._watch.is_passing:
                self._answers.drop(int(self._question[0]))
            return wrong, None
        self._answers.take(now_s, self._tally.chunks_refused)
        action = self._answers.next()
        if action is None:
            reason, self._note = self._answers.why_none()
            return reason, None
        if abs(now_s - self._answers.observed_s) > self.settings.watch.max_age_s:
            self._answers.drop(int(self._question[0]))
            self._note = f"the action's observation is over {self.settings.watch.max_age_s:g} s away"
            return Reason.WATCHDOG, None
        return Reason.MOVING, action

    def _wants(self, coming: int = 0) -> bool:
        """Whether the policy is to be asked after `coming` more actions."""
        return bool(self._answered[0] >= self._question[0]) and self._answers.is_due(self.settings.is_ahead, coming)

    def _look(self, instruction: str, *, is_question: bool) -> tuple[float, float]:
        """Reads the robot, and shows it to the policy and the page; returns when each was done."""
        channels = self._channels
        self._shown_s = self._clock.now()
        if is_question and not self._is_announced:
            self._policy.announce()
        self._is_announced = False
        try:
            seen: Observation = self._robot.observe(instruction, with_images=True)
            self._trouble = None
        except CameraTimeout as err:
            self._trouble = Reason.STALE_CAMERA, str(err)
        except (DataError, RobotTimeout) as err:
            self._trouble = Reason.DISCONNECTED, str(err)
        observed_s = self._clock.now()
        if self._trouble is not None:
            return observed_s, observed_s
        record = channels.observations.begin()
        row = self._shown[id(record)]
        row["moves"][0], row["time_s"][0] = self._answers.moves, seen.time_s
        np.copyto(row["state"], seen.state)
        np.copyto(row["joints"], seen.joint_pos_rad)
        np.copyto(row["commanded"], _UNKNOWN if seen.commanded is None else seen.commanded)
        np.copyto(self._measured, seen.joint_pos_rad)
        self._measured_s = seen.time_s
        for position, ring in self._pictures:
            row["pictures"][position] = ring.put(seen.images[ring.camera])
        sequence = channels.observations.commit()
        if is_question:
            self._question[0] = sequence
            self._policy.ask()
        return observed_s, self._clock.now()

    def _measure(self, instruction: str) -> float:
        """Reads the joints alone, and returns when that was done."""
        try:
            seen = self._robot.observe(instruction, with_images=False)
            np.copyto(self._measured, seen.joint_pos_rad)
            self._measured_s = seen.time_s
        except (DataError, RobotTimeout) as err:
            self._trouble = Reason.DISCONNECTED, str(err)
        return self._clock.now()

    def _write_down(
        self, index: int, due: int, sent: tuple[float, float], reason: Reason, stages_s: tuple[float, ...]
    ) -> None:
        """Writes a period down: when the command was sent and how late, and why it was what it was."""
        assert self._applied is not None
        sent_s, lateness_s = sent
        row = self._period.fields
        row["index"][0], row["due"][0] = index, due
        row["time_s"][0], row["lateness_s"][0] = sent_s, lateness_s
        row["reason"][0], row["interrupts"][0] = reason.code, self._interrupts
        self._interrupts = 0
        is_moving = reason is Reason.MOVING
        is_asked = is_moving or reason is Reason.LIMITER
        row["chunk"][0] = self._answers.sequence
        row["step"][0] = self._answers.step if is_asked else -1
        row["age_s"][0] = sent_s - self._answers.observed_s if is_moving else math.nan
        row["thought_age_s"][0] = sent_s - self._answers.thought_s if is_moving else math.nan
        row["measured_s"][0] = self._measured_s
        for position, seconds in enumerate(stages_s):
            self._tally.stages[position].add(seconds)
        note = self._note or "; ".join(self._applied.reasons)
        self._period.put(self._applied, self._measured, stages_s, note)

    def _write_error(self, text: str) -> None:
        """Writes down that the robot is not there any more."""
        self._board_reason[0] = Reason.DISCONNECTED.code
        self._period.put_error(self._tally.ticks, self._now_s, text)


class _Tally:
    """Counts while the loop runs, in memory that does not grow."""

    def __init__(self) -> None:
        self.ticks = self.moved = self.misses = self.interrupted = self.clock_jumps = 0
        self.reasons: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.changes: Counter[str] = Counter()
        self.chunks_refused: Counter[str] = Counter()
        self.lateness, self.age, self.thought_age = Histogram(), Histogram(), Histogram()
        self.joints, self.within = Histogram(), Histogram()
        self.stages = [Histogram() for _ in STAGES]

    def add(self, reason: Reason, note: str, applied: Applied, lateness_s: float) -> None:
        self.ticks += 1
        self.lateness.add(lateness_s)
        if reason is Reason.MOVING:
            self.moved += 1
            for text in applied.reasons:
                count(self.changes, text)
            return
        self.reasons[reason.value] += 1
        if note:
            count(self.notes, f"{reason.value}: {note}")

    def report(self, stopped_by: str, duration_s: float, granted: str, answers: Answers) -> RunReport:
        return RunReport(
            ticks=self.ticks,
            misses=self.misses,
            moved=self.moved,
            reasons=dict(self.reasons),
            notes=dict(self.notes),
            changes=dict(self.changes),
            interrupted=self.interrupted,
            chunks=answers.taken,
            chunks_refused=dict(self.chunks_refused),
            lateness_s=self.lateness.spread(),
            stages_s={name: each.spread() for name, each in zip(STAGES, self.stages, strict=True)},
            answer_s=answers.latency.spread(),
            age_s=self.age.spread(),
            thought_age_s=self.thought_age.spread(),
            joints=self.joints.spread(),
            within=self.within.spread(),
            skipped=answers.skipped,
            clock_jumps=self.clock_jumps,
            duration_s=duration_s,
            rate_hz=self.ticks / duration_s if duration_s > 0 else 0.0,
            granted=granted,
            stopped_by=stopped_by,
        )
