"""The process that writes down and shows a run: trace, recording of rerun, words in the terminal, live page.

It only reads the rings, so nothing that happens to it, to a disk, to a terminal or to a browser reaches the arm. What
it cannot keep up with is counted as lost. It goes on until the control process has said how the run ended, or is gone.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np

from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.child import Child, Parent
from roboalign.sdk.control.live_page import LivePage, PageConfig
from roboalign.sdk.control.live_state import LiveState
from roboalign.sdk.control.loop_report import RunReport
from roboalign.sdk.control.records import CHUNK, WORDS, Reason, read_text
from roboalign.sdk.control.rerun_file import RerunFile
from roboalign.sdk.control.rings import Records
from roboalign.sdk.control.trace import TraceFile, chunk_line, header_line, tick_line
from roboalign.sdk.errors import BackendError, ConfigError
from roboalign.sdk.typed_json import from_json
from roboalign.sdk.types import RobotSpec

__all__ = ["Recorder", "RecorderConfig", "serve_recorder"]

_PERIOD_S = 0.02
_OPEN_TIMEOUT_S, _CLOSE_TIMEOUT_S = 20.0, 5.0
_NICENESS = 10
_NUMBERS = re.compile(r"[\d.]+")  # a reason with another figure is not another reason


@dataclass(frozen=True, kw_only=True, slots=True)
class RecorderConfig:
    """What is written down and shown."""

    trace: Path | None = None
    """File of the trace; None writes none."""
    rerun: Path | None = None
    """File of the recording of rerun; None writes none."""
    page: PageConfig | None = None
    """Where the live page is served; None serves none."""
    policy: str = "the policy"
    """What the policy is called."""
    scene: Mapping[str, object] | None = None
    """Of a simulated run, the scene, for the trace."""
    is_spoken: bool = True
    """Whether thoughts and reasons go to the terminal (stderr)."""


class Recorder:
    """The control process's end."""

    def __init__(self, channels: Channels, config: RecorderConfig) -> None:
        """Stores what to do."""
        self._channels, self._config = channels, config
        self._child = Child("recorder", "the recorder's process")

    @property
    def pid(self) -> int | None:
        """Process id; None when it does not run."""
        return self._child.pid

    def open(self, instruction: str, rate_hz: float) -> str:
        """Starts the process, and returns the address of the live page; empty when there is none.

        Raises:
            ConfigError: Trace or recording cannot be written, or the port is taken.
            BackendError: rerun-sdk is not installed.
        """
        config, fds = self._config, self._channels.fds
        message = {
            "fds": fds,
            "robot": asdict(self._channels.spec),
            "instruction": instruction,
            "rate_hz": rate_hz,
            "policy": config.policy,
            "scene": config.scene,
            "trace": None if config.trace is None else str(config.trace),
            "rerun": None if config.rerun is None else str(config.rerun),
            "page": None if config.page is None else asdict(config.page),
            "is_spoken": config.is_spoken,
        }
        self._child.start(message, tuple(fds.values()))
        try:
            return str(self._child.answer(_OPEN_TIMEOUT_S)["url"])
        except BaseException:
            self._child.close()
            raise

    def finish(self, report: RunReport) -> tuple[int, str]:
        """Hands the report over and ends the process; returns how many periods are missing, and why. Once."""
        if self._child.pid is None:
            return 0, ""
        self._child.tell({"report": asdict(report)})
        try:
            answer = self._child.answer(_CLOSE_TIMEOUT_S)
            return int(cast(int, answer["lost"])), str(answer["problem"])
        except BackendError as err:
            return 0, f"{err}; the trace may be incomplete"
        finally:
            self._child.close()


def serve_recorder(parent: Parent, parent_pid: int) -> None:
    """The other end; outlives the control process for as long as it takes to close the trace."""
    del parent_pid
    with suppress(OSError):
        os.nice(_NICENESS)
    config = parent.first()
    try:
        spec = cast(RobotSpec, from_json(RobotSpec, config["robot"], "robot"))
        channels = Channels(spec, cast(Mapping[str, int], config["fds"]))
        desk = _Desk(channels, config)
    except Exception as err:  # noqa: BLE001 - said where the user is
        parent.tell_error(err)
        return
    parent.tell({"url": desk.url})
    report: Mapping[str, object] | None = None
    try:
        while report is None:
            for message in parent.wait(_PERIOD_S):
                report = cast(Mapping[str, object], message["report"])
            desk.follow()
    except EOFError:
        desk.say("the control process is gone")
    desk.follow()
    lost, problem = desk.close(report)
    parent.tell({"lost": lost, "problem": problem})


class _Desk:
    """Follows the rings."""

    def __init__(self, channels: Channels, config: Mapping[str, object]) -> None:
        self._channels = channels
        self._is_spoken = bool(config["is_spoken"])
        self._tick, self._chunk = np.zeros(1, channels.ticks.record), np.zeros(1, CHUNK)
        self._words, self._heard = np.zeros(1, WORDS), 0
        self._next_tick = self._next_chunk = 1
        self._lost = 0
        self._trace: TraceFile | None = None
        self._problem = ""
        self._lines: list[str] = []
        self._lasting: tuple[str, str] | None = None
        self._thought = ""
        self.state = LiveState(channels, str(config["instruction"]), str(config["policy"]))
        self._page: LivePage | None = None
        if config["page"] is not None:
            self._page = LivePage(self.state, PageConfig(**cast(dict[str, object], config["page"])))  # type: ignore[arg-type]  # checked by itself
        self._rerun: RerunFile | None = None
        if config["rerun"] is not None:
            self._rerun = RerunFile(Path(str(config["rerun"])), channels, config)
        if config["trace"] is not None:
            self._trace = _opened(Path(str(config["trace"])), header_line(config))

    @property
    def url(self) -> str:
        return "" if self._page is None else self._page.url

    def say(self, text: str) -> None:
        if self._is_spoken:
            with suppress(OSError, ValueError):
                sys.stderr.write(text + "\n")
                sys.stderr.flush()

    def follow(self) -> None:
        """Takes everything that is new."""
        self._channels.board["recorder_beat_s"][0] = time.monotonic()
        self._follow_words()
        self._follow_chunks()
        ring = self._channels.ticks
        newest = ring.newest
        while self._next_tick <= newest:
            if ring.copy(self._tick, self._next_tick):
                self._take(self._tick)
            else:
                self._lost += 1
            self._next_tick += 1
        if self._rerun is not None:
            self._rerun.follow()
        self._flush()

    def _follow_words(self) -> None:
        """Takes the newest state of a thought alone: what came between is in it."""
        if self._channels.words.newest != self._heard:
            heard = self._channels.words.copy(self._words)
            if heard:
                self._heard = heard
                self.state.take_words(self._words)

    def _follow_chunks(self) -> None:
        ring = self._channels.chunks
        newest = ring.newest
        while self._next_chunk <= newest:
            if ring.copy(self._chunk, self._next_chunk):
                self.state.take_chunk(self._chunk)
                self._tell_thought(read_text(self._chunk, "thought"))
                if self._trace is not None:
                    self._lines.append(chunk_line(self._chunk, self._next_chunk))
            self._next_chunk += 1

    def _take(self, tick: Records) -> None:
        self.state.take_tick(tick)
        if self._rerun is not None:
            self._rerun.take_tick(tick)
        self._tell_reason(tick)
        if self._trace is not None:
            self._lines.append(tick_line(tick))

    def _tell_thought(self, thought: str) -> None:
        if thought and thought != self._thought:
            self.say(f"      {thought}")
        self._thought = thought or self._thought

    def _tell_reason(self, tick: Records) -> None:
        """Says why the arm does not move, or what the limiter changes, when that begins."""
        reason = Reason.of(int(tick["reason"][0]))
        note = read_text(tick, "note")
        now = (reason.value, _NUMBERS.sub("", note))
        if now == self._lasting:
            return
        self._lasting = now
        if self._rerun is not None:
            self._rerun.take_reason(tick, reason, note)
        index = int(tick["index"][0])
        if reason is not Reason.MOVING:
            self.say(f"{index:4d}  does not move, {reason.value}: {note}")
        elif note:
            self.say(f"{index:4d}  {note}")

    def _flush(self) -> None:
        if self._trace is None or not self._lines:
            return
        lines, self._lines = self._lines, []
        if self._trace.write(lines):
            return
        self._lost += sum('"tick"' in line for line in lines)
        board = self._channels.board
        board["trace_lost"][0] = self._lost
        if not self._problem:
            self._problem = self._trace.problem
            board["trace_failed"][0] = 1
            self.say(f"the trace is not complete: {self._problem}; the arm goes on")

    def close(self, report: Mapping[str, object] | None) -> tuple[int, str]:
        """Ends trace, recording and page; returns how many periods are missing, and why."""
        if self._trace is not None:
            last = {"report": report} if report is not None else {"ended": "the control process is gone"}
            self._lines.append(json.dumps(last))
            self._flush()
            with suppress(OSError):
                self._trace.close()
        if self._rerun is not None:
            self._rerun.close("the control process is gone" if report is None else str(report["stopped_by"]))
        if self._page is not None:
            self._page.close()
        is_late = self._lost and (self._trace or self._rerun)
        problems = (
            self._problem,
            "" if self._rerun is None else self._rerun.problem,
            "the recorder could not keep up" if is_late and not self._problem else "",
        )
        return self._lost, "; ".join(filter(None, problems))


def _opened(path: Path, header: str) -> TraceFile:
    try:
        trace = TraceFile(path)
    except OSError as err:
        raise ConfigError(f"the trace cannot be written: {err}") from err
    if not trace.write([header]):
        raise ConfigError(f"the trace cannot be written: {trace.problem}")
    return trace
