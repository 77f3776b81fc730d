"""What a bench found, as rows: a ratio with its spread, the figure it has to reach, and whether it does."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from roboalign import __version__
from roboalign.bench.timing import Spread
from roboalign.sdk.errors import ConfigError

__all__ = ["BenchConfig", "BenchResult", "Row", "make_result", "table_lines", "write_result"]

_PACKAGES = ("onnxruntime", "torch", "transformers", "numpy")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """How to measure."""

    sizes: tuple[str, ...] = ("8M", "52M")
    """Models, by name of `SIZES`."""
    precisions: tuple[str, ...] = ("fp32", "int4")
    """How weights are stored, by name of `PRECISIONS`."""
    rounds: int = 9
    """How often every contender runs."""
    tokens: int = 64
    """Tokens that are written in each."""
    threads: int = 1
    """CPU threads of every contender."""
    work: Path | None = None
    """Folder that keeps the models; None makes them in one that is removed."""
    rival_python: Path | None = None
    """Python of the environment that has other engines."""

    def __post_init__(self) -> None:
        if self.rounds < 3 or self.tokens < 8 or self.threads < 1:
            raise ConfigError(
                f"bench needs 3 or more rounds, 8 or more tokens and 1 or more threads, found {self.rounds}, "
                f"{self.tokens} and {self.threads}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison."""

    bench: str
    """Which bench."""
    name: str
    """What was compared with what."""
    ratio: Spread | None
    """How many times as fast, by processor time; of a share, the share; None where the other could not be run."""
    bar: float | None = None
    """What the ratio has to reach; None where nothing was asked for."""
    wall: Spread | None = None
    """The same ratio by time that passed."""
    ours_ms: float | None = None
    """Median processor time of ours."""
    theirs_ms: float | None = None
    """Median processor time of what it is compared with."""
    is_share: bool = False
    """Whether the ratio is a share of 1."""
    note: str = ""
    """What was compared besides time, e.g. how many tokens are equal."""

    @property
    def verdict(self) -> str:
        """Returns `yes` or `no` by the median, or nothing where there is no bar."""
        if self.bar is None or self.ratio is None:
            return ""
        return "yes" if self.ratio.median >= self.bar else "no"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchResult:
    """Everything that one command measured."""

    rows: tuple[Row, ...]
    """In the order of measuring."""
    machine: str
    """Processor."""
    cores: int
    """Logical processors."""
    threads: int
    """CPU threads of every contender."""
    date: str
    """Day of the run."""
    load: float
    """Mean number of runnable tasks over the last minute, when the run ended."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages that were measured."""


def make_result(rows: Sequence[Row], threads: int) -> BenchResult:
    """Returns rows with what they were measured on."""
    versions = {"roboalign": __version__}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return BenchResult(
        rows=tuple(rows),
        machine=_processor(),
        cores=os.cpu_count() or 1,
        threads=threads,
        date=datetime.now(tz=timezone.utc).date().isoformat(),
        load=os.getloadavg()[0],
        versions=versions,
    )


def table_lines(result: BenchResult) -> list[str]:
    """Returns the table, at most 80 columns wide."""
    lines = [f"{'':38}{'ratio':>7} {'5-95 %':>13} {'wall':>7} {'bar':>7} met"]
    for row in result.rows:
        found, spread = "-", "-"
        if row.ratio is not None:
            found = _number(row.ratio.median, row)
            spread = f"{_number(row.ratio.low, row)}-{_number(row.ratio.high, row)}"
        wall = "" if row.wall is None else _number(row.wall.median, row)
        bar = "" if row.bar is None else _number(row.bar, row)
        label = f"{row.bench} {row.name}"
        lines.append(f"{label:<38.38}{found:>7} {spread:>13} {wall:>7} {bar:>7} {row.verdict}")
        times = [f"{what} {ms:.3g} ms" for what, ms in (("ours", row.ours_ms), ("theirs", row.theirs_ms)) if ms]
        if detail := ", ".join([*times, *([row.note] if row.note else [])]):
            lines += [f"    {part}" for part in _wrapped(detail, 76)]
    lines.append(f"{result.machine:.50}, {result.threads} thread, {result.date}, load {result.load:.1f}")
    return [line.rstrip() for line in lines]


def write_result(result: BenchResult, path: Path) -> Path:
    """Writes the rows and what they were measured on as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(asdict(result), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def _number(value: float, row: Row) -> str:
    if row.is_share:
        return f"{100 * value:.0f}%"
    return f"{value:.0f}x" if value >= 100 else f"{value:.3g}x"


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return found[0] if found else platform.machine()
