"""A progress line on stderr: a bar on a terminal, now and then a plain line in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Progress"]

_LOG_EVERY_S = 20.0
"""Seconds between two lines in a log file."""


class Progress:
    """Counts finished pieces of work while its `with` block runs."""

    def __init__(self, label: str, *, total: int, done: int = 0) -> None:
        self._label, self._total, self._done = label, total, done
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._last_s = time.monotonic()
        self._note = ""

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._bar = _make_bar()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, completed=self._done, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._log()

    def advance(self, note: str = "") -> None:
        """Counts one more finished piece; `note` is shown behind the count."""
        self._done += 1
        self._note = note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, note=note)
        elif time.monotonic() - self._last_s > _LOG_EVERY_S:
            self._last_s = time.monotonic()
            self._log()

    def _log(self) -> None:
        tail = f", {self._note}" if self._note else ""
        print(f"{self._label}: {self._done} of {self._total}{tail}", file=sys.stderr, flush=True)


def _make_bar() -> RichProgress | None:
    """Returns a rich progress bar on stderr, or None where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
    except ImportError:
        return None
    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
