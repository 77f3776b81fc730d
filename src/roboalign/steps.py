"""Running public commands as processes: what `roboalign demo` and `roboalign reproduce` share."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

__all__ = ["PROGRAM", "Step", "last_error", "outcome_of", "stop", "terminated_as_interrupt"]

PROGRAM = (sys.executable, "-m", "roboalign")
"""What stands for `roboalign`: this Python, so that a command runs the version that started it."""
_REFUSED_CODE = 1
"""Exit code of a command whose check said no."""
_STOP_AFTER_S = 30.0
"""Time a command gets to stop by itself after Ctrl-C."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command."""

    name: str
    """Short name, also of its log file."""
    argv: tuple[str, ...]
    """What is typed after `roboalign`."""
    output: Path
    """What exists when it is done."""
    may_refuse: bool = False
    """Whether exit code 1 is an answer and not a failure."""

    @property
    def line(self) -> str:
        """The command as it is typed."""
        return shlex.join(("roboalign", *self.argv))


def outcome_of(step: Step, code: int) -> str:
    """Returns `done`, `refused` or `failed`."""
    if code == 0 and step.output.exists():
        return "done"
    return "refused" if code == _REFUSED_CODE and step.may_refuse else "failed"


def last_error(log: Path) -> str:
    """Returns the last `error:` line of a log, or its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return (errors or lines or [""])[-1]


def stop(*processes: subprocess.Popen[str]) -> None:
    """Asks commands, which lead sessions of their own, to save and end; ends what does not, its workers included."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.communicate(timeout=_STOP_AFTER_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM (a supervisor, `timeout`) stop the running command as Ctrl-C does.

    SIGINT is handled too: a shell makes a background job ignore it, and the commands would inherit that and never save.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
