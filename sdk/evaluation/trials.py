"""Outcomes on a robot, entered by a person: a journal that is never asked twice, and the reports that come of it.

`trials.jsonl` has a header that names policies and settings, and a line for each outcome. With two policies every trial
is a pair on one scene, in an order that is drawn for each trial; who acted stands in the file and is told at the end.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.evaluation.comparison import Comparison, compare
from roboalign.sdk.evaluation.episodes import EpisodeResult
from roboalign.sdk.evaluation.provenance import machine_facts
from roboalign.sdk.evaluation.results import EvalReport, JsonValue, summarize_episodes, write_report_json

__all__ = ["Outcome", "TrialLog", "TrialScene", "write_trial_reports"]

_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialScene:
    """What a person sets up for a trial."""

    task: str
    """Name of the task in reports."""
    seed: int
    """Seed of the scene where it was drawn, else the number of the trial."""
    sentence: str
    """What the policy is told."""
    places: tuple[str, ...] = ()
    """What stands where, in words; empty where the person decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one trial of one policy."""

    trial: int
    """Number of the trial."""
    who: int
    """0 for the first policy, 1 for the second."""
    success: bool
    """As the person judged."""
    progress: float
    """Share of the task that was done, 0 to 1, as the person judged."""
    note: str
    """In the person's words."""
    steps: int
    """Control periods."""
    chunks: int
    """Answers of the policy that were used."""
    stopped_by: str
    """What ended the run."""
    written: str
    """When it was entered."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.progress <= 1.0:
            raise ConfigError(f"progress is {self.progress}, expected 0 to 1")


class TrialLog:
    """The outcomes of an evaluation on a robot, on disk after each one."""

    def __init__(
        self, folder: Path, *, policies: Sequence[Mapping[str, JsonValue]], settings: Mapping[str, JsonValue]
    ) -> None:
        """Opens the journal of a folder, or starts one.

        Raises:
            ConfigError: The folder holds an evaluation of other policies or settings.
            DataError: The file is something else, or an outcome stands in it twice.
        """
        self.path = folder / "trials.jsonl"
        self.policies, self.settings = tuple(policies), dict(settings)
        self.outcomes: dict[tuple[int, int], Outcome] = {}
        """By number of the trial and policy."""
        self.discarded = 0
        """Trials that were done again."""
        header = json.loads(json.dumps({"trials": _VERSION, "policies": self.policies, "settings": self.settings}))
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._lines()
        if lines:
            found = self._row(lines[0])
            self.order_seed = self._check(header, found)
            for line in lines[1:]:
                self._take(self._row(line))
        else:
            self.order_seed = secrets.randbits(32)
            lines = [json.dumps({**header, "order_seed": self.order_seed})]
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        partial.replace(self.path)

    def order(self, trial: int) -> tuple[int, ...]:
        """Returns who acts first and second in a trial; one policy alone is always first."""
        drawn = np.random.default_rng([self.order_seed, trial]).permutation(len(self.policies))
        return tuple(int(who) for who in drawn)

    def add(self, outcome: Outcome) -> None:
        """Writes an outcome down.

        Raises:
            ConfigError: It was entered before.
        """
        self._keep(outcome)
        self._write(asdict(outcome))

    def discard(self, trial: int, who: int, note: str) -> None:
        """Writes down that a trial did not count."""
        self.discarded += 1
        self._write({"discarded": [trial, who], "note": note})

    def complete(self, num: int) -> list[int]:
        """Returns the trials below `num` that every policy has an outcome of."""
        return [k for k in range(num) if all((k, who) in self.outcomes for who in range(len(self.policies)))]

    def _keep(self, outcome: Outcome) -> None:
        key = outcome.trial, outcome.who
        if not (0 <= outcome.who < len(self.policies) and outcome.trial >= 0):
            raise DataError(f"{self.path}: there is no trial {outcome.trial} of policy {outcome.who}")
        if key in self.outcomes:
            raise ConfigError(
                f"{self.path}: trial {outcome.trial} of policy {outcome.who} was entered twice; delete one of its lines"
            )
        self.outcomes[key] = outcome

    def _take(self, row: dict[str, JsonValue]) -> None:
        if "discarded" in row:
            self.discarded += 1
            return
        try:
            self._keep(Outcome(**row))  # type: ignore[arg-type]  # values come from JSON, names are checked
        except TypeError as err:
            raise DataError(f"{self.path} holds a line that is no outcome ({err}); delete that line") from err

    def _lines(self) -> list[str]:
        """Returns the lines; a last one that was cut while it was written is left out, a whole one is not."""
        try:
            *lines, last = self.path.read_text(encoding="utf-8").split("\n")
            return [*lines, last] if last.endswith("}") else lines
        except FileNotFoundError:
            return []
        except UnicodeDecodeError as err:
            raise DataError(f"{self.path} is not text; give another --out") from err

    def _row(self, line: str) -> dict[str, JsonValue]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as err:
            raise DataError(f"{self.path} holds a damaged line: {line[:80]!r}; delete that line") from err
        if not isinstance(row, dict):
            raise DataError(f"{self.path} holds a line that is no object: {line[:80]!r}; delete that line")
        return row

    def _check(self, wanted: Mapping[str, JsonValue], found: Mapping[str, JsonValue]) -> int:
        """Refuses a journal of something else; returns the seed of its orders."""
        order_seed = found.get("order_seed")
        if found.get("trials") != _VERSION or not isinstance(order_seed, int):
            raise DataError(f"{self.path} is no journal of trials of version {_VERSION}; give another --out")
        for part in ("policies", "settings"):
            if wanted[part] != found.get(part):
                raise ConfigError(
                    f"{self.path} is of the {part} {found.get(part)}, asked for {wanted[part]}; give another --out, or "
                    "the same ones"
                )
        return order_seed

    def _write(self, row: Mapping[str, JsonValue]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def write_trial_reports(
    folder: Path, log: TrialLog, scenes: Mapping[int, TrialScene], *, rate_hz: float
) -> tuple[tuple[EvalReport, ...], Comparison | None]:
    """Writes report and page of each policy over the complete trials; two policies also get their comparison.

    One policy's report stands in the folder itself, those of two in `first` and `second` inside it.
    """
    from roboalign.sdk.evaluation.compare_page import write_compare_page
    from roboalign.sdk.evaluation.eval_page import write_eval_page

    num = len(log.policies)
    folders = [folder] if num == 1 else [folder / "first", folder / "second"]
    config = {**log.settings, "episodes": len(scenes), "is_blinded": num > 1, "discarded": log.discarded}
    config["tasks"] = list(dict.fromkeys(scene.task for scene in scenes.values()))
    reports = []
    for who, (out, policy) in enumerate(zip(folders, log.policies, strict=True)):
        episodes = [_episode(log.outcomes[k, who], scene, policy, rate_hz) for k, scene in scenes.items()]
        report = summarize_episodes(
            episodes, policy=policy, config=config, provenance=machine_facts(), wall_s=0.0, world="robot"
        )
        out.mkdir(parents=True, exist_ok=True)
        write_report_json(report, out / "report.json")
        write_eval_page(out)
        reports.append(report)
    if num == 1:
        return tuple(reports), None
    names = [str(policy["name"]) for policy in log.policies]
    comparison = compare(reports[0], reports[1], first_name=names[0], second_name=names[1])
    write_compare_page(folder / "compare.html", list(zip(names, reports, strict=True)), [comparison])
    return tuple(reports), comparison


def _episode(outcome: Outcome, scene: TrialScene, policy: Mapping[str, JsonValue], rate_hz: float) -> EpisodeResult:
    """Returns an outcome as an episode; what nobody measured on a robot is left empty."""
    source = str(policy.get("actions", policy.get("kind", "policy"))) if outcome.chunks else "hold"
    calls = max(1, outcome.chunks)
    return EpisodeResult(
        seed=scene.seed,
        task=scene.task,
        instruction=scene.sentence,
        success=outcome.success,
        steps=max(1, outcome.steps),
        progress=1.0 if outcome.success else outcome.progress,
        goals_done=int(outcome.success),
        num_goals=1,
        rate_hz=rate_hz,
        num_calls=calls,
        num_holds=0 if outcome.chunks else calls,
        sources={source: calls},
        hold_reasons={} if outcome.chunks else {outcome.stopped_by: calls},
        instructions=((0, scene.sentence),),
    )
