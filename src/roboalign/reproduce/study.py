"""One reproduction from its plan to its ledger, table and page."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from roboalign.reproduce.board import Board, Minutes
from roboalign.reproduce.cache import read_record
from roboalign.reproduce.facts import step_facts
from roboalign.reproduce.graph import Graph, PlannedStep, expand
from roboalign.reproduce.ledger import Gap, Ledger, MadeBy, Result, header_of, read_ledger, result_of, write_ledger
from roboalign.reproduce.page import write_page_of
from roboalign.reproduce.plan import Plan, find_plan, read_plan
from roboalign.reproduce.runner import run_steps
from roboalign.reproduce.states import StepState, Workplace
from roboalign.reproduce.table import markdown
from roboalign.sdk.data.storage import one_writer
from roboalign.sdk.errors import CheckFailed, ConfigError
from roboalign.sdk.evaluation.results import read_report
from roboalign.steps import PROGRAM

__all__ = ["Forecast", "StudyConfig", "forecast", "report_ledger", "run_study"]

LEDGER = "results.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """What to run, and where."""

    plan: str = "nano"
    """Name of a plan of the package, or a .toml or .json file."""
    out: Path = Path("runs/reproduce")
    """Folder of every result; what it holds already is not run again."""
    arms: tuple[str, ...] = ()
    """Arms to run; none means all of the plan."""
    seeds: tuple[int, ...] = ()
    """Training seeds to run; none means all of the plan."""
    workers: int = 1
    """Commands that run at a time, each single-threaded."""
    source: str | None = None
    """Name that stands for the source in every key; None takes a hash of what the source says."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"StudyConfig.workers is {self.workers}, expected at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """One step of a dry run."""

    id: str
    """Id of the step."""
    status: str
    """`done`, `refused`, `absent`, `blocked`, or `to run`."""
    minutes: float
    """Estimated minutes; 0 when there is nothing to run."""
    is_measured: bool
    """Whether the minutes come from earlier steps of that name, and not from the plan."""
    line: str
    """The command, with ids of steps in braces where their results are not there yet."""
    reason: str
    """Why it cannot be run."""


def run_study(config: StudyConfig, *, program: tuple[str, ...] = PROGRAM) -> Path:
    """Runs what is not done yet, and returns the page; ledger and table lie beside it.

    Raises:
        ConfigError: Plan, arms or seeds are wrong, or another process runs in the folder.
        CheckFailed: A step failed; the page is written and says which.
    """
    plan, graph, plan_sha256 = _open(config)
    with one_writer(config.out):
        work = _workplace(config, graph)
        work.drop(_known_commands(program))
        publish = partial(_publish, config, plan, work, plan_sha256)

        with Board(work, workers=config.workers, minutes=_measured(config.out)) as board:

            def on_change(state: StepState) -> None:
                board.changed(state)
                if state.planned.id in evaluated and state.status == "done":
                    publish()

            evaluated = {evaluation.step for evaluation in graph.evaluations}
            run_steps(work, workers=config.workers, program=program, on_change=on_change, on_wait=board.waiting)
        page = report_ledger(publish())
    failed = [state for state in work.states.values() if state.status == "failed"]
    if failed:
        raise CheckFailed(
            f"{len(failed)} of {len(work.states)} steps failed, first {failed[0].planned.id}: {failed[0].reason};"
            f" {page} says what is missing; mend the cause, then start again to go on"
        )
    return page


def forecast(config: StudyConfig, *, program: tuple[str, ...] = PROGRAM) -> tuple[Forecast, ...]:
    """Returns what a run would do, and how long it would take; starts no step and writes nothing."""
    _, graph, _ = _open(config)
    work = _workplace(config, graph)
    work.drop(_known_commands(program))
    work.look()
    minutes = _measured(config.out)
    rows = []
    for state in work.states.values():
        is_open = state.status == "waiting"
        rows.append(
            Forecast(
                id=state.planned.id,
                status="to run" if is_open else state.status,
                minutes=minutes.of(state) if is_open else 0.0,
                is_measured=minutes.is_measured(state),
                line=state.settled.step.line if state.settled else " ".join(("roboalign", *state.planned.words)),
                reason=state.reason,
            )
        )
    return tuple(rows)


def report_ledger(path: Path) -> Path:
    """Writes table (`.md`) and page (`.html`) of a ledger beside it; returns the page."""
    ledger = read_ledger(path)
    path.with_suffix(".md").write_text(markdown(ledger), encoding="utf-8")
    return write_page_of(ledger, path.with_suffix(".html"))


def _open(config: StudyConfig) -> tuple[Plan, Graph, str]:
    path = find_plan(config.plan)
    plan = read_plan(path)
    return plan, expand(plan, arms=config.arms, seeds=config.seeds), hashlib.sha256(path.read_bytes()).hexdigest()


def _workplace(config: StudyConfig, graph: Graph) -> Workplace:
    from roboalign.sdk.bundle import shipped_base_path

    return Workplace(graph=graph, out=config.out, shipped_base=shipped_base_path(), source=config.source)


def _known_commands(program: tuple[str, ...]) -> Callable[[PlannedStep], str]:
    """Returns a function that says why a command cannot be given to this version; asks once for each kind."""
    asked: dict[tuple[str, ...], str] = {}

    def missing(planned: PlannedStep) -> str:
        # Names of options are checked before --help is answered; their values are not.
        kind = tuple(w for i, w in enumerate(planned.words) if w.startswith("--") or (i < 2 and "{" not in w))
        if kind not in asked:
            words = [word.replace("{", "").replace("}", "") for word in planned.words]
            done = subprocess.run([*program, *words, "--help"], capture_output=True, text=True)
            errors = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
            asked[kind] = "" if done.returncode == 0 else (errors or [f"exit code {done.returncode}"])[-1]
        return asked[kind]

    return missing


def _measured(out: Path) -> Minutes:
    """Returns the minutes of the steps that a folder holds, whatever they were made from."""
    found: dict[str, list[float]] = {}
    for path in sorted(out.glob("steps/*/*/step.json")):
        record = read_record(path.parent)
        if record is not None and record.outcome == "done" and record.wall_s > 0.0:
            found.setdefault(_name(record.id), []).append(record.wall_s / 60.0)
    return Minutes(found)


def _name(id_: str) -> str:
    name, _, seed = id_.rpartition(".s")
    return name if name and seed.isdigit() else id_


def _publish(config: StudyConfig, plan: Plan, work: Workplace, plan_sha256: str) -> Path:
    """Writes the ledger of everything that is done so far."""
    graph = expand(plan)
    results: list[Result] = []
    gaps: list[Gap] = []
    for evaluation in graph.evaluations:
        state = work.states.get(evaluation.step)
        if state is None:
            gaps.append(Gap(arm=evaluation.arm, seed=evaluation.seed, reason="left out of this run"))
        elif state.status == "done":
            report = read_report(_folder(state))
            made_by = _made_by(work, evaluation.step)
            results.append(result_of(report, arm=evaluation.arm, seed=evaluation.seed, made_by=made_by))
        else:
            gaps.append(Gap(arm=evaluation.arm, seed=evaluation.seed, reason=state.reason or "not run yet"))
    ledger = Ledger(header=header_of(plan, plan_sha256), results=tuple(results), gaps=tuple(gaps))
    return write_ledger(config.out / LEDGER, ledger)


def _made_by(work: Workplace, step: str) -> Sequence[MadeBy]:
    rows = []
    for planned in work.graph.chain(step):
        state = work.states[planned.id]
        record = state.record
        assert record is not None, "what a result rests on is done"
        rows.append(
            MadeBy(
                id=record.id,
                line=" ".join(("roboalign", *planned.words)),
                content=record.content,
                source=record.source,
                cpu_s=record.cpu_s,
                wall_s=record.wall_s,
                facts=step_facts(_folder(state)),
            )
        )
    return rows


def _folder(state: StepState) -> Path:
    assert state.settled is not None, "the step is done"
    return state.settled.folder / "result"
