"""Where each step of a run stands, and what can be done next; nothing here starts a process."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from roboalign.reproduce.cache import Record, content_hash, read_record, rooms_of, source_hash, step_key
from roboalign.reproduce.facts import matched_updates, step_facts
from roboalign.reproduce.graph import Graph, PlannedStep
from roboalign.sdk.errors import ConfigError
from roboalign.steps import Step

__all__ = ["OPEN", "Settled", "StepState", "Workplace"]

OPEN = ("waiting", "running")
"""States from which a step can still get a result."""
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(kw_only=True, slots=True)
class StepState:
    """One step of a run."""

    planned: PlannedStep
    status: str = "waiting"
    """`waiting`, `running`, `done`, `refused`, `failed`, `blocked` (by another step) or `absent` (no such command)."""
    reason: str = ""
    """Why it has no result."""
    is_cached: bool = False
    """Whether an earlier run did it."""
    settled: Settled | None = None
    """Its key and folder, from when its inputs are done."""
    record: Record | None = None
    """How it was made, when it is done or refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """A step whose inputs are there."""

    step: Step
    """The command with real paths."""
    key: str
    """What its result is filed under."""
    folder: Path
    """Folder of result, record, log and lock."""
    rooms: tuple[str, ...]
    """Rooms whose source its key holds."""


@dataclass(kw_only=True, slots=True)
class Workplace:
    """The folder of a run: finds what is there, and files what is new under its key."""

    graph: Graph
    out: Path
    shipped_base: Path
    """What `{shipped-base}` stands for."""
    source: str | None = None
    """What stands for the source in every key; None takes a hash of the rooms that a command uses."""
    states: dict[str, StepState] = field(default_factory=dict)
    _shipped_hash: str = ""

    def __post_init__(self) -> None:
        self.states = {id_: StepState(planned=planned) for id_, planned in self.graph.steps.items()}

    def look(self) -> None:
        """Settles every step that can be settled from what is on disk, and finds those that were done before."""
        for state in self.states.values():
            if state.status == "waiting":
                self._look_at(state)

    def ready(self) -> list[StepState]:
        """Returns the steps that can be started now, in the order of the plan."""
        return [state for state in self.states.values() if state.status == "waiting" and state.settled is not None]

    def finish(self, state: StepState, outcome: str, *, reason: str = "", record: Record | None = None) -> None:
        """Books what became of a step; what needs it is blocked when it has no result."""
        state.status, state.reason, state.record = outcome, reason, record
        self.look()

    def drop(self, is_known: Callable[[PlannedStep], str]) -> None:
        """Marks the steps whose command does not exist; `is_known` returns the reason, or nothing."""
        for state in self.states.values():
            if reason := is_known(state.planned):
                state.status, state.reason = "absent", reason

    def _look_at(self, state: StepState) -> None:
        needs = [self.states[id_] for id_ in state.planned.needs]
        stuck = [need for need in needs if need.status not in (*OPEN, "done")]
        if stuck:
            state.status = "blocked"
            cause = stuck[0]
            state.reason = (
                cause.reason if cause.status == "blocked" else f"{cause.planned.name} {cause.status}: {cause.reason}"
            )
            return
        if any(need.status != "done" for need in needs):
            return
        if state.settled is None:
            state.settled = self._settle(state.planned)
        record = read_record(state.settled.folder)
        if record is None:
            return
        if record.outcome == "done" and content_hash(state.settled.step.output) != record.content:
            raise ConfigError(
                f"{state.settled.step.output} was changed after it was made; delete {state.settled.folder} to make it"
                " anew"
            )
        state.is_cached = True
        state.status, state.reason, state.record = record.outcome, record.reason, record

    def _settle(self, planned: PlannedStep) -> Settled:
        """Returns the command with paths, and the key with hashes, of a step whose inputs are done."""
        paths: dict[str, Path] = {}
        hashes: dict[str, str] = {}
        for id_ in planned.needs:
            need = self.states[id_]
            assert need.settled is not None, f"{id_} is done"
            assert need.record is not None, f"{id_} is done"
            paths[id_], hashes[id_] = need.settled.step.output, need.record.content
        words = planned.words
        if planned.match:
            updates = matched_updates(*(step_facts(paths[id_]) for id_ in planned.match))
            words = tuple(word.replace("{matched}", str(updates)) for word in words)
        if any("{shipped-base}" in word for word in words):
            paths["shipped-base"], hashes["shipped-base"] = self.shipped_base, self._hash_of_shipped()
        used = {name for word in words for name in _BRACES.findall(word)}
        rooms = rooms_of(planned.verb, [paths[name] for name in used])
        source = self.source if self.source is not None else source_hash(rooms)
        key = step_key(words, hashes, source=source)
        folder = self.out / "steps" / planned.id / key
        return Settled(step=_command(planned, words, paths, folder / "result"), key=key, folder=folder, rooms=rooms)

    def _hash_of_shipped(self) -> str:
        if not self._shipped_hash:
            self._shipped_hash = content_hash(self.shipped_base)
        return self._shipped_hash


def _command(planned: PlannedStep, words: tuple[str, ...], paths: Mapping[str, Path], output: Path) -> Step:
    argv = [_BRACES.sub(lambda found: str(paths[found[1]]), word) for word in words]
    # The folder of an evaluation is there from its first episode on.
    done = output / "report.json" if planned.verb == "eval" else output
    return Step(name=planned.id, argv=(*argv, "--out", str(output)), output=done, may_refuse=planned.may_refuse)
