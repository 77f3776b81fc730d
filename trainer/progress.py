"""What every training loop shows and keeps: metrics as JSON lines, a progress bar, the learning-rate schedule."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.folders import is_main_process

__all__ = ["MetricsLog", "Timer", "check_same_settings", "following", "learning_rate", "progress_bar"]

Follower = Callable[[Mapping[str, Any]], None]
_FOLLOWERS: ContextVar[tuple[Follower, ...]] = ContextVar("followers", default=())


@contextmanager
def following(*followers: Follower) -> Iterator[None]:
    """Hands every line that a `MetricsLog` made in this context writes to the followers as well."""
    token = _FOLLOWERS.set(followers)
    try:
        yield
    finally:
        _FOLLOWERS.reset(token)


class MetricsLog:
    """Appends one JSON object a line; a resumed run first drops the lines at and after the step it resumes from.

    Of several processes of one run, only the first writes.
    """

    def __init__(self, path: Path, *, first_step: int = 0) -> None:
        self.path = Path(path)
        self._followers = _FOLLOWERS.get()
        if not is_main_process():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line).get("step", 0) < first_step:
                        kept.append(line)
                except ValueError:  # the line that a kill cut in half
                    continue
        # Not in place: a kill in the middle would lose the history that nothing else holds.
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)

    def write(self, **values: Any) -> None:
        """Appends one line."""
        if not is_main_process():
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")
        for follow in self._followers:
            follow(values)


class Timer:
    """Wall-clock and CPU seconds since it was made, on top of what an interrupted run had used."""

    def __init__(self, *, wall_s: float = 0.0, cpu_s: float = 0.0) -> None:
        self._wall, self._cpu = time.monotonic() - wall_s, time.process_time() - cpu_s

    def add(self, *, wall_s: float = 0.0, cpu_s: float = 0.0) -> None:
        """Counts what an interrupted run had used as well."""
        self._wall -= wall_s
        self._cpu -= cpu_s

    @property
    def wall_s(self) -> float:
        """Wall-clock seconds so far."""
        return time.monotonic() - self._wall

    @property
    def cpu_s(self) -> float:
        """CPU seconds so far, all threads."""
        return time.process_time() - self._cpu


def check_same_settings(found: Mapping[str, Any], expected: Mapping[str, Any], *, folder: Path) -> None:
    """Raises ConfigError when an interrupted run was started with other settings than the ones to go on with."""
    odd = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if odd:
        raise ConfigError(
            f"{folder} holds an interrupted run with other settings ({', '.join(odd)} differ); go on with the settings "
            "it was started with, delete that folder, or choose another --out"
        )


def learning_rate(step: int, *, peak: float, steps: int, warmup_share: float, final_share: float = 0.0) -> float:
    """Returns the rate at a step: linear warm-up, then cosine decay to `final_share` of the peak."""
    warmup = max(1, round(warmup_share * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress)))


@contextmanager
def progress_bar(label: str, total: int, *, done: int = 0) -> Iterator[Any]:
    """Yields `update(advance, note)`: a bar on stderr with the time left; plain nothing when stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    is_shown = console.is_terminal and is_main_process()
    with Progress(*columns, console=console, disable=not is_shown) as bar:
        task = bar.add_task(label, total=total, completed=done, note="")

        def update(advance: int, note: str = "") -> None:
            bar.update(task, advance=advance, note=note)

        yield update
