"""Runs the steps of a plan as processes, several at a time, and goes on where an earlier run was stopped.

Every command writes into the folder of its key and prints into a log there. It also holds a lock in that folder: when
whoever started it was killed, the command works on, and the next run waits for it instead of starting a second one.
What the dead runner did not book is found by its result; an unfinished stage resumes itself.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from roboalign.reproduce.cache import Record, content_hash, source_hash, write_record
from roboalign.reproduce.facts import step_facts
from roboalign.reproduce.states import Settled, StepState, Workplace
from roboalign.steps import last_error, outcome_of, stop, terminated_as_interrupt

__all__ = ["Running", "run_steps"]

_POLL_S = 0.05
_SINGLE_THREADED = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
"""Environment of every command: several run beside one another, and busy waiting makes each many times slower."""


@dataclass(kw_only=True, slots=True)
class Running:
    """A command at work."""

    state: StepState
    process: subprocess.Popen[str]
    log: Path
    start_s: float = field(default_factory=time.monotonic)


def run_steps(
    work: Workplace,
    *,
    workers: int,
    program: tuple[str, ...],
    on_change: Callable[[StepState], None],
    on_wait: Callable[[list[Running]], None],
) -> None:
    """Runs every step that can be run.

    Args:
        work: The folder and its steps; their states are brought up to date here.
        workers: Commands that run at a time.
        program: What stands for `roboalign`.
        on_change: Is told of every step that starts or ends.
        on_wait: Is called several times a second with what is running.
    """
    work.look()
    running: list[Running] = []
    with terminated_as_interrupt():
        try:
            while True:
                for state in work.ready():
                    if len(running) >= workers:
                        break
                    if (started := _start(work, state, program)) is not None:
                        running.append(started)
                    if state.status != "waiting":
                        on_change(state)
                if not running and not work.ready():
                    return
                on_wait(running)
                time.sleep(_POLL_S)
                for ended, code, cpu_s in _ended(running):
                    running.remove(ended)
                    _book(work, ended, code, cpu_s)
                    on_change(ended.state)
        except BaseException:
            stop(*(left.process for left in running))
            raise


def _start(work: Workplace, state: StepState, program: tuple[str, ...]) -> Running | None:
    """Starts a command; None while the same one of a killed run is still at work, and when that left a result."""
    settled = state.settled
    assert settled is not None, "the step is ready"
    settled.folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(settled.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            state.reason = "the command of a run that was killed is still at work; waiting for it"
            return None
        if settled.step.output.exists():
            # Results get their name when they are complete, so this one was only not booked.
            _file(work, state, "done", cpu_s=step_facts(settled.step.output).cpu_s or 0.0, wall_s=0.0)
            return None
        state.status, state.reason = "running", ""
        return _launch(state, settled, program, lock)
    finally:
        os.close(lock)


def _launch(state: StepState, settled: Settled, program: tuple[str, ...], lock: int) -> Running:
    log = settled.folder / "log.txt"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {settled.step.line}\n")
        file.flush()
        # A session of its own: Ctrl-C reaches this process alone, which passes it on once. No pipe: a command must be
        # able to print when we are gone. The lock goes with the command and is free when that ends.
        process = subprocess.Popen(
            [*program, *settled.step.argv],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            pass_fds=(lock,),
            env={**os.environ, **_SINGLE_THREADED},
        )
    return Running(state=state, process=process, log=log)


def _ended(running: list[Running]) -> list[tuple[Running, int, float]]:
    """Returns the commands that ended, with exit code and CPU seconds (of their own ended children too)."""
    found = []
    for entry in running:
        pid, status, usage = os.wait4(entry.process.pid, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            entry.process.returncode = code
            found.append((entry, code, usage.ru_utime + usage.ru_stime))
    return found


def _book(work: Workplace, ended: Running, code: int, cpu_s: float) -> None:
    """Files a finished or refused step; a failed one is not filed, so that the next run tries it again."""
    state, settled = ended.state, ended.state.settled
    assert settled is not None, "the step ran"
    outcome = outcome_of(settled.step, code)
    reason = "" if outcome == "done" else (last_error(ended.log) or f"exit code {code}, no message")
    if outcome == "failed":
        work.finish(state, "failed", reason=f"{reason} (exit code {code}, see {ended.log})")
        return
    _file(work, state, outcome, reason=reason, cpu_s=cpu_s, wall_s=time.monotonic() - ended.start_s)


def _file(work: Workplace, state: StepState, outcome: str, *, cpu_s: float, wall_s: float, reason: str = "") -> None:
    settled = state.settled
    assert settled is not None, "the step has a folder"
    source = source_hash(settled.rooms)
    record = Record(
        id=state.planned.id,
        key=settled.key,
        line=settled.step.line,
        outcome=outcome,
        reason=reason,
        content=content_hash(settled.step.output) if outcome == "done" else "",
        source=source if work.source is None else work.source,
        source_sha256=source,
        cpu_s=round(cpu_s, 1),
        wall_s=round(wall_s, 1),
    )
    write_record(settled.folder, record)
    work.finish(state, outcome, reason=reason, record=record)
