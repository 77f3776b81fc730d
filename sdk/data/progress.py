"""A progress bar on stderr for recordings."""

from __future__ import annotations

from types import TracebackType

__all__ = ["RecordingProgress"]


class RecordingProgress:
    """Counts kept episodes and attempts; draws them on stderr, or nothing at all when `is_shown` is false."""

    def __init__(self, *, title: str, total: int, is_shown: bool) -> None:
        self._attempts = 0
        self._kept = 0
        self._bar = None
        if is_shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=total, note="")

    def __enter__(self) -> RecordingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def skip(self, count: int) -> None:
        """Counts episodes that an earlier run has recorded."""
        if self._bar is not None and count:
            self._bar.update(self._task, advance=count, note=f"{count} were there already")

    def step(self) -> None:
        """Counts one thing that needs no attempts."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1)

    def advance(self, attempts: int) -> None:
        """Counts one new episode and the attempts it took."""
        self._kept += 1
        self._attempts += attempts
        if self._bar is not None:
            self._bar.update(self._task, advance=1, note=f"{self._kept} kept of {self._attempts} attempts")

    def say(self, text: str) -> None:
        """Prints a line under the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, soft_wrap=True)
