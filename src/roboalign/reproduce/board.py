"""What a reader sees while a plan runs: a table on a terminal, a line for each start and end in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from roboalign.reproduce.runner import Running
from roboalign.reproduce.states import OPEN, StepState, Workplace

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

__all__ = ["Board", "Minutes"]

WIDTH = 80
"""Columns."""
_SHOWN = 6
"""Steps that ended last, in the table."""


class Minutes:
    """How long steps take: measured on earlier ones of the same name, else the plan's guess."""

    def __init__(self, measured: Mapping[str, list[float]] | None = None) -> None:
        self._measured = {name: list(values) for name, values in (measured or {}).items()}

    def add(self, state: StepState) -> None:
        """Takes a finished step into account."""
        if state.record is not None and state.record.outcome == "done" and state.record.wall_s > 0.0:
            self._measured.setdefault(state.planned.name, []).append(state.record.wall_s / 60.0)

    def is_measured(self, state: StepState) -> bool:
        """Whether a step of this name was measured."""
        return state.planned.name in self._measured

    def of(self, state: StepState) -> float:
        """Returns the minutes that a step takes."""
        values = self._measured.get(state.planned.name)
        return sum(values) / len(values) if values else state.planned.minutes


class Board:
    """Shows where a run stands; use it as a context."""

    def __init__(self, work: Workplace, *, workers: int, minutes: Minutes) -> None:
        self._work, self._workers, self._minutes = work, workers, minutes
        self._ended: list[StepState] = []
        self._live: Live | None = None
        self._last_s = 0.0

    def __enter__(self) -> Board:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def changed(self, state: StepState) -> None:
        """Notes that a step started or ended."""
        if state.status == "running":
            self._say(f"{state.planned.id}: started, about {_duration(self._minutes.of(state))}")
            return
        self._minutes.add(state)
        self._ended.append(state)
        self._say(f"{self._count()} {state.planned.id}: {_outcome(state)}")

    def waiting(self, running: list[Running]) -> None:
        """Draws the table anew, at most once a second."""
        if self._live is not None and time.monotonic() - self._last_s >= 1.0:
            self._last_s = time.monotonic()
            self._live.update(self._table(running), refresh=True)

    def _say(self, line: str) -> None:
        if self._live is None:
            print(line, file=sys.stderr, flush=True)

    def _count(self) -> str:
        done = sum(state.status not in OPEN for state in self._work.states.values())
        return f"[{done}/{len(self._work.states)}]"

    def _table(self, running: list[Running]) -> Table:
        from rich.table import Table

        table = Table(title=self._summary(running), title_justify="left", width=WIDTH, box=None, title_style="bold")
        table.add_column("step", width=30, no_wrap=True, overflow="ellipsis")
        table.add_column("state", width=8)
        table.add_column("", overflow="ellipsis", no_wrap=True)
        for state in self._ended[-_SHOWN:]:
            table.add_row(state.planned.id, state.status, _outcome(state).removeprefix(f"{state.status} "))
        for entry in running:
            spent = (time.monotonic() - entry.start_s) / 60.0
            table.add_row(
                entry.state.planned.id,
                "running",
                f"{_duration(spent)} of about {_duration(self._minutes.of(entry.state))}",
            )
        return table

    def _summary(self, running: list[Running]) -> str:
        states = self._work.states.values()
        counts = Counter(state.status for state in states)
        left = sum(self._minutes.of(state) for state in states if state.status == "waiting")
        left += sum(
            max(0.0, self._minutes.of(entry.state) - (time.monotonic() - entry.start_s) / 60.0) for entry in running
        )
        parts = [f"{counts[name]} {name}" for name in ("done", "running", "waiting") if counts[name]]
        parts += [f"{counts[name]} {name}" for name in ("refused", "failed", "blocked", "absent") if counts[name]]
        return f"{', '.join(parts)}; about {_duration(left / self._workers)} left"


def _outcome(state: StepState) -> str:
    if state.status == "done" and state.record is not None:
        return "done before" if state.is_cached else f"done in {_duration(state.record.wall_s / 60.0)}"
    return f"{state.status}: {state.reason}"


def _duration(minutes: float) -> str:
    if minutes < 1.0:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90.0 else f"{minutes / 60:.1f} h"
