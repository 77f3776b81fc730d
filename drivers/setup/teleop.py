"""Teleoperation and recording: a pilot steers a robot at its control rate, and episodes become a LeRobotDataset v3.0.

What is recorded is what was really sent, so that a policy never learns a command that the limiter had changed. An
episode whose loop ran slower than the rate that the dataset states is not kept: training would take its motion for a
faster one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from roboalign.drivers.setup.pilots import Pilot, Wish
from roboalign.sdk.control.clock import Clock, MonotonicClock
from roboalign.sdk.data import DatasetWriter, Episode, encode_png
from roboalign.sdk.errors import ConfigError, RobotError
from roboalign.sdk.robot import Robot
from roboalign.sdk.types import STATES, Applied, FloatArray, Observation, RobotSpec

__all__ = [
    "EpisodeKeeper",
    "Frame",
    "KeptWriter",
    "RecordConfig",
    "RecordReport",
    "TeleopReport",
    "open_writer",
    "record",
    "steer",
]

_MIN_RATE_SHARE = 0.95
_MAX_SLOW = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class TeleopReport:
    """One stretch of steering."""

    ticks: int
    """Actions sent."""
    misses: int
    """Periods that were over before their action could be sent."""
    changed: int
    """Actions that the limiter or the arm changed."""
    duration_s: float
    """Clock time."""
    wish: Wish
    """What ended it; GO_ON when it was cut at its greatest length."""

    @property
    def rate_hz(self) -> float:
        """Actions a second."""
        return self.ticks / self.duration_s if self.duration_s > 0 else 0.0


Frame = tuple[Observation, Applied]
"""A reading, and what was sent after it."""


def steer(
    robot: Robot,
    pilot: Pilot,
    *,
    instruction: str = "",
    with_images: bool = False,
    max_ticks: int | None = None,
    waits: bool = False,
    clock: Clock | None = None,
    on_frame: Callable[[Observation, Applied], None] | None = None,
) -> TeleopReport:
    """Lets the pilot steer a connected robot until it wishes for something, or for `max_ticks` periods.

    With `waits` nothing counts before the pilot's first motion: the time in which a person sets the scene.

    The robot holds when this returns; if anything raises, it is told to hold, or to stop if it cannot.
    """
    time = MonotonicClock() if clock is None else clock
    period_s = 1.0 / robot.spec.control_rate_hz
    ticks = misses = changed = due = 0
    wish, has_begun = Wish.GO_ON, not waits
    try:
        pilot.start(robot.observe(instruction, with_images=False))
        before: FloatArray | None = None
        start_s = time.now()
        while max_ticks is None or ticks < max_ticks:
            time.sleep_until(start_s + due * period_s)
            seen = robot.observe(instruction, with_images=with_images)
            action = pilot.action(seen)
            applied = robot.act(action)
            pilot.took(applied)
            has_begun = has_begun or _moves(action, before)
            before, wish = action, pilot.wish()
            if has_begun:
                ticks += 1
                changed += applied.is_changed
                if on_frame is not None:
                    on_frame(seen, applied)
            else:
                start_s, due, misses = time.now(), 0, 0
            if wish is not Wish.GO_ON:
                break
            late_s = time.now() - (start_s + (due + 1) * period_s)
            missed = int(late_s / period_s) if late_s > 0 else 0
            misses += missed
            due += 1 + missed
        robot.hold()
        duration_s = max(time.now() - start_s, period_s * ticks)
    except BaseException:
        _stop(robot)
        raise
    return TeleopReport(ticks=ticks, misses=misses, changed=changed, duration_s=duration_s, wish=wish)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordConfig:
    """What to record."""

    out: Path
    """Folder of the dataset."""
    task: str
    """The sentence of every episode."""
    episodes: int = 10
    """Episodes to have at the end, those of an interrupted recording included."""
    max_ticks: int = 600
    """Longest episode, in control periods."""
    state: str = "measured"
    """`measured` (where the tool is) or `commanded` (where it was last sent), for arms that are late."""

    def __post_init__(self) -> None:
        if not self.task.strip():
            raise ConfigError("RecordConfig.task is empty; a policy that follows words needs the sentence")
        for name in ("episodes", "max_ticks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"RecordConfig.{name} is {getattr(self, name)}, expected at least 1")
        if self.state not in STATES:
            raise ConfigError(f"RecordConfig.state is {self.state!r}, expected one of {', '.join(STATES)}")


@dataclass(kw_only=True, slots=True)
class RecordReport:
    """What became of a recording."""

    path: Path | None = None
    """The dataset; None while it is not complete, its episodes are safe then."""
    kept: int = 0
    """Episodes in it."""
    discarded: int = 0
    """Episodes that the pilot did not want."""
    slow: int = 0
    """Episodes that ran below the stated rate."""
    rates_hz: list[float] = field(default_factory=list)
    """Measured rate of each episode that was kept now."""
    is_complete: bool = False
    """True when the dataset was closed; else the same call goes on."""


def record(
    robot: Robot,
    pilot: Pilot,
    config: RecordConfig,
    *,
    before_episode: Callable[[int], str | None] = lambda _: None,
    clock: Clock | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> RecordReport:
    """Records episodes until there are enough; the robot is connected by the caller.

    Complete episodes outlive an interruption: the same call goes on with them. A pilot that quits leaves them for later
    too, unless there are enough.

    Args:
        robot: Connected.
        pilot: Steers, keeps and discards.
        config: What to record.
        before_episode: Called with the number of the episode, to reset the scene; may return its sentence. An episode
            begins with the pilot's first motion, so that a person has time to set the scene.
        clock: For the control periods.
        say: Gets a line for each episode.

    Raises:
        ConfigError: The dataset exists already.
        RobotError: The loop is too slow for the stated rate, three times in a row.
    """
    spec = robot.spec
    with open_writer(config.out, spec, state=config.state) as kept:
        recording = EpisodeKeeper(kept.writer, spec, say, state=config.state)
        report = recording.report
        while report.kept < config.episodes:
            robot.connect()  # an arm that heard nothing while the person set the scene has parked itself
            sentence = before_episode(report.kept) or config.task
            frames: list[Frame] = []
            found = steer(
                robot,
                pilot,
                instruction=sentence,
                with_images=True,
                max_ticks=config.max_ticks,
                waits=True,
                clock=clock,
                on_frame=lambda seen, applied, frames=frames: frames.append((seen, applied)),  # type: ignore[misc]
            )
            if found.wish is Wish.QUIT:
                break
            recording.take(frames, sentence, found)
        if report.kept >= config.episodes:
            kept.close()
            report.path, report.is_complete = config.out, True
    return report


def open_writer(out: Path, spec: RobotSpec, *, state: str = "measured", has_intervention: bool = False) -> KeptWriter:
    """Returns the writer of a robot's recording, which goes on with complete episodes of before.

    Raises:
        ConfigError: The robot has no camera.
    """
    if not spec.camera_names:
        raise ConfigError(f"robot {spec.name!r} has no camera; add [cameras.front] to its robot file")
    writer = DatasetWriter(
        out,
        image_size_px=spec.image_size_px,
        num_joints=spec.num_joints,
        rate_hz=spec.control_rate_hz,
        robot_type=spec.name,
        cameras=spec.camera_names,
        resume=True,
        state_names=STATES[state],
        has_intervention=has_intervention,
    )
    return KeptWriter(writer)


class EpisodeKeeper:
    """Decides about each episode, and counts."""

    def __init__(
        self, writer: DatasetWriter, spec: RobotSpec, say: Callable[[str], None], *, state: str = "measured"
    ) -> None:
        """Takes a writer that is entered."""
        self._writer, self._spec, self._say, self._state_names = writer, spec, say, STATES[state]
        self._num_slow = self._num_refused = 0
        self.report = RecordReport(kept=writer.num_episodes)
        """Counts so far."""
        if self.report.kept:
            say(f"going on after {self.report.kept} episodes of before")

    def take(
        self, frames: list[Frame], sentence: str, found: TeleopReport, *, interventions: tuple[bool, ...] = ()
    ) -> bool:
        """Keeps an episode and returns true, or says why not."""
        report, wanted_hz = self.report, self._spec.control_rate_hz
        if not frames:
            self._say(f"episode {report.kept}: nothing was moved, so there is nothing to keep")
            return False
        if found.wish is Wish.DISCARD:
            report.discarded += 1
            self._say(f"episode {report.kept}: discarded")
            return False
        rate_hz = _measured_rate(frames)
        if rate_hz < _MIN_RATE_SHARE * wanted_hz:
            self.report.slow += 1
            self._refuse_slow(f"{rate_hz:.1f} Hz, but the dataset states {wanted_hz:g} Hz")
            return False
        self._num_slow = self._num_refused = 0
        episode = _episode(frames, sentence, wanted_hz, self._spec.camera_names, self._state_names)
        self._writer.add(replace(episode, interventions=interventions))
        report.rates_hz.append(rate_hz)
        self._say(f"episode {report.kept}: kept, {len(frames)} frames at {rate_hz:.1f} Hz, {found.changed} limited")
        report.kept += 1
        return True

    def refuse(self, why: str) -> None:
        """Says why an episode is not kept; raises RobotError when that happens again and again."""
        self._say(f"episode {self.report.kept}: not kept, {why}")
        self._num_refused += 1
        if self._num_refused >= _MAX_SLOW:
            raise RobotError(f"{self._num_refused} episodes in a row were not kept, the last because {why}")

    def _refuse_slow(self, why: str) -> None:
        self._num_slow += 1
        self._say(f"episode {self.report.kept}: not kept, it ran at {why}")
        if self._num_slow >= _MAX_SLOW:
            raise RobotError(
                f"{self._num_slow} episodes in a row ran at {why}; lower control_rate_hz, or free the machine"
            )


class KeptWriter:
    """A writer that is left without closing the dataset, so that its episodes stay for the next run."""

    def __init__(self, writer: DatasetWriter) -> None:
        """Takes a writer that is not entered."""
        self.writer = writer
        """The dataset."""
        self._is_closed = False

    def __enter__(self) -> KeptWriter:
        self.writer.__enter__()
        return self

    def close(self) -> None:
        """Completes the dataset."""
        self.writer.close()
        self._is_closed = True

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: object) -> None:
        if self._is_closed or kind is not None:
            self.writer.__exit__(kind, value, None)
        else:
            self.writer.__exit__(InterruptedError, InterruptedError("not complete yet"), None)


def _episode(
    frames: list[Frame], sentence: str, rate_hz: float, cameras: tuple[str, ...], state_names: tuple[str, ...]
) -> Episode:
    seen = [observation for observation, _ in frames]
    pictures = {camera: tuple(encode_png(each.images[camera]) for each in seen) for camera in cameras}
    return Episode(
        task=sentence,
        states=np.stack([each.state_of(state_names) for each in seen]),
        state_names=state_names,
        joint_pos_rad=np.stack([each.joint_pos_rad for each in seen]),
        actions=np.stack([applied.sent for _, applied in frames]),
        images=pictures[cameras[0]],
        other_images={camera: pictures[camera] for camera in cameras[1:]},
        truth_json=(None,) * len(frames),
        rate_hz=rate_hz,
    )


def _measured_rate(frames: list[Frame]) -> float:
    """Frames a second by the times of the readings themselves: the machine's clock, or a simulation's."""
    if len(frames) < 2:
        return float("inf")
    duration_s = frames[-1][0].time_s - frames[0][0].time_s
    return (len(frames) - 1) / duration_s if duration_s > 0 else float("inf")


def _moves(action: FloatArray, before: FloatArray | None) -> bool:
    """Whether the pilot moves the tool with this action, or the gripper otherwise than with the one before."""
    return bool(np.any(action[:4])) or (before is not None and (action[4] > 0.5) != (before[4] > 0.5))


def _stop(robot: Robot) -> None:
    """Holds, or stops the robot if it cannot hold; never raises, so that the first error reaches the caller."""
    try:
        robot.hold()
    except Exception:  # noqa: BLE001 - a robot that cannot hold is stopped, whatever the cause
        try:
            robot.estop()
        except Exception:  # noqa: BLE001 - as above; the caller is already told what went wrong
            return
