"""`results.jsonl`: everything that the statistics need, small enough to be committed.

The first line is the plan: arms, seeds, comparisons. Then comes one line for each evaluation, with the outcome of every
scene packed into bits, so that each paired test can be repeated; and one line for each arm and seed that has no result,
with the reason. The report and the table are computed from these lines alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.reproduce.facts import StepFacts
from roboalign.reproduce.plan import Plan
from roboalign.sdk.errors import DataError
from roboalign.sdk.evaluation.results import EvalReport

__all__ = [
    "Gap",
    "Header",
    "Ledger",
    "MadeBy",
    "Result",
    "header_of",
    "pack",
    "read_ledger",
    "result_of",
    "unpack",
    "write_ledger",
]

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What was planned."""

    title: str
    """Heading of the report."""
    plan_sha256: str
    """Hash of the plan file."""
    labels: Mapping[str, str]
    """Arms in order, and what tables call them."""
    seeds: tuple[int, ...]
    """Training seeds."""
    scenes: int
    """Evaluation scenes of each seed."""
    primary: tuple[str, ...]
    """The two arms of the one hypothesis."""
    secondary: tuple[tuple[str, ...], ...]
    """Further pairs of arms."""
    notes: tuple[str, ...]
    """What a reader must know about the plan."""
    format_version: int = FORMAT_VERSION
    """Version of the lines; a reader refuses any other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeBy:
    """One of the steps that made a result."""

    id: str
    """Id of the step."""
    line: str
    """The command."""
    content: str
    """Hash of what it wrote."""
    source: str
    """Name or hash of the source in its key."""
    cpu_s: float
    """CPU seconds of its processes, of the runs that ended in order."""
    wall_s: float
    """Wall seconds, likewise."""
    facts: StepFacts
    """What it says about itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One arm, one seed, all of its scenes."""

    arm: str
    """Name of the arm."""
    seed: int
    """Training seed."""
    n: int
    """Episodes."""
    successes: int
    """Episodes that ended in success."""
    outcomes: str
    """Success of each episode in order, packed into bits, as hexadecimal text."""
    by_task: Mapping[str, tuple[int, int]]
    """Successes and episodes of each task."""
    scenes: Mapping[str, object]
    """Which scenes: tasks, split, arm, first seed, and a hash of every task, seed and initial physical state."""
    who_acted: str
    """Sources of the actions by share."""
    thought_share: float
    """Share of the answers that came with a thought."""
    mean_progress: float
    """Mean of the largest share of the task's stages that was reached."""
    holds: int
    """Answers that were a hold."""
    made_by: tuple[MadeBy, ...]
    """Every step that it rests on, in order."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package versions and kind of machine of the evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """An arm without a result for a seed."""

    arm: str
    """Name of the arm."""
    seed: int
    """Training seed."""
    reason: str
    """Why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """All lines."""

    header: Header
    """The plan."""
    results: tuple[Result, ...] = ()
    """In the order of the arms, then of the seeds."""
    gaps: tuple[Gap, ...] = ()
    """Likewise."""

    def of(self, arm: str) -> dict[int, Result]:
        """Returns the results of an arm by seed."""
        return {result.seed: result for result in self.results if result.arm == arm}


def header_of(plan: Plan, plan_sha256: str) -> Header:
    """Returns the first line of the ledger of a plan."""
    return Header(
        title=plan.title,
        plan_sha256=plan_sha256,
        labels={name: arm.label for name, arm in plan.arm.items()},
        seeds=plan.seeds,
        scenes=plan.scenes,
        primary=plan.primary,
        secondary=plan.secondary,
        notes=plan.notes,
    )


def result_of(report: EvalReport, *, arm: str, seed: int, made_by: Sequence[MadeBy]) -> Result:
    """Returns the line of one evaluation."""
    scenes = zip(report.task_names, report.seeds, report.start_hashes, strict=True)
    digest = hashlib.sha256("".join(f"{task} {number} {start}\n" for task, number, start in scenes).encode())
    kept = ("suite", "tasks", "split", "robot", "randomization", "image_size_px", "replan_every")
    return Result(
        arm=arm,
        seed=seed,
        n=report.total.num_episodes,
        successes=report.total.num_successes,
        outcomes=pack(report.successes),
        by_task={task.task: (task.num_successes, task.num_episodes) for task in report.tasks},
        scenes={
            **{name: report.config.get(name) for name in kept},
            "first_seed": min(report.seeds),
            "sha256": digest.hexdigest(),
        },
        who_acted=report.who_acted,
        thought_share=round(report.thought_share, 4),
        mean_progress=round(report.total.mean_progress, 4),
        holds=report.total.num_holds,
        made_by=tuple(made_by),
        versions={name: text for name, text in report.provenance.items() if name != "written"},
    )


def pack(outcomes: Sequence[bool]) -> str:
    """Returns yes and no of each scene as hexadecimal text.

    >>> pack([True, False, False, True, True])
    '98'
    """
    return np.packbits(np.asarray(outcomes, bool)).tobytes().hex()


def unpack(text: str, n: int) -> list[bool]:
    """Returns what `pack` packed.

    >>> unpack("98", 5)
    [True, False, False, True, True]
    """
    try:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    except ValueError as err:
        raise DataError(f"{text[:20]!r} is not a list of outcomes in hexadecimal digits") from err
    if not n <= len(bits) < n + 8:
        raise DataError(f"found outcomes of {len(bits)} scenes at most, expected {n}")
    return [bool(bit) for bit in bits[:n]]


def write_ledger(path: Path, ledger: Ledger) -> Path:
    """Writes all lines; an older file is replaced only by a complete one."""
    rows = [{"kind": "plan", **asdict(ledger.header)}]
    rows += [{"kind": "evaluation", **asdict(result)} for result in ledger.results]
    rows += [{"kind": "gap", **asdict(gap)} for gap in ledger.gaps]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)
    return path


def read_ledger(path: Path) -> Ledger:
    """Reads a ledger; DataError names the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"the ledger {path} cannot be read ({err}); `roboalign reproduce` writes one") from err
    header: Header | None = None
    results, gaps = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            kind = row.pop("kind")
            if kind == "plan":
                header = _header(row)
            elif kind == "evaluation":
                results.append(_result(row))
            else:
                gaps.append(Gap(**row))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, DataError) as err:
            raise DataError(f"line {number} of {path} is not one of `roboalign reproduce` ({err})") from err
    if header is None:
        raise DataError(f"{path} lacks the line of the plan; `roboalign reproduce` writes a whole ledger")
    return Ledger(header=header, results=tuple(results), gaps=tuple(gaps))


def _header(row: dict[str, object]) -> Header:
    if row.get("format_version") != FORMAT_VERSION:
        raise DataError(f"found format version {row.get('format_version')}, expected {FORMAT_VERSION}")
    lists = {name: tuple(_list(row[name])) for name in ("seeds", "primary", "notes")}
    pairs = tuple(tuple(_list(pair)) for pair in _list(row["secondary"]))
    return Header(**{**row, **lists, "secondary": pairs})  # type: ignore[arg-type]  # names are checked by Header


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"found {value!r}, expected a list")
    return value


def _result(row: dict[str, object]) -> Result:
    steps = []
    for step in _list(row["made_by"]):
        facts = step["facts"]
        if facts["curves"] is not None:
            facts["curves"] = {name: tuple((x, y) for x, y in points) for name, points in facts["curves"].items()}
        steps.append(MadeBy(**{**step, "facts": StepFacts(**facts)}))
    by_task = {task: tuple(counts) for task, counts in row["by_task"].items()}  # type: ignore[attr-defined]  # from JSON
    result = Result(**{**row, "made_by": tuple(steps), "by_task": by_task})  # type: ignore[arg-type]  # names are checked
    if sum(unpack(result.outcomes, result.n)) != result.successes:
        raise DataError(
            f"the packed outcomes of {result.arm}, seed {result.seed}, are not {result.successes} successes"
        )
    return result
