"""Where paired outcomes come from: reports of `roboalign eval`, folders of them, or a table in CSV.

Outcomes that were entered twice are refused: a folder named twice, a copy of it, an evaluation that was only repeated,
or a scene with two outcomes of one policy in one world. Several evaluations of one policy are put together.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.evaluation.reality_gap import Outcomes, PolicyOutcomes
from roboalign.sdk.evaluation.results import WORLDS, EvalReport, read_report

__all__ = ["COLUMNS", "evaluations_in", "outcomes_of", "read_policies", "read_table"]

COLUMNS = ("policy", "world", "scene", "success")
"""Columns of a table; others are left aside, but for `task`, which is part of a scene's name."""
_LAYOUT = ("suite", "split", "robot")
_SETTINGS = (*_LAYOUT, "randomization_fingerprint")
_WORDS = {"1": True, "true": True, "success": True, "0": False, "false": False, "fail": False}
_WORLD_WORDS = {"sim": "simulation", "real": "robot", **{world: world for world in WORLDS}}


def evaluations_in(folder: Path) -> dict[str, list[Path]]:
    """Returns the evaluations inside a folder by the names of their folders.

    Raises:
        DataError: There is none.
    """
    found = sorted(path.parent for path in folder.glob("*/report.json"))
    if not found:
        hint = "; it is an evaluation itself: name it, NAME=FOLDER" if (folder / "report.json").is_file() else ""
        raise DataError(f"no folder inside {folder} holds a report.json of `roboalign eval`{hint}")
    return {path.name: [path] for path in found}


def read_policies(
    *, sim: Mapping[str, Sequence[Path]], real: Mapping[str, Sequence[Path]]
) -> tuple[PolicyOutcomes, ...]:
    """Reads the evaluations of each policy in both worlds.

    Raises:
        ConfigError: A policy lacks a world, is another one there, or outcomes were entered twice.
        DataError: There is no evaluation, or it is damaged.
    """
    _check_both(set(sim), set(real))
    seen: dict[str, Path] = {}
    policies = []
    for name in sim:
        found = [[(path, _read(path, seen)) for path in paths] for paths in (sim[name], real[name])]
        _check_same_policy(name, found[0] + found[1])
        worlds = [outcomes_of([report for _, report in each], [str(path) for path, _ in each]) for each in found]
        policies.append(PolicyOutcomes(name=name, sim=worlds[0], real=worlds[1]))
    return tuple(policies)


def outcomes_of(reports: Sequence[EvalReport], sources: Sequence[str]) -> Outcomes:
    """Returns what one policy did in one world, in one or more evaluations.

    Raises:
        ConfigError: They are of both worlds, or a scene was played in two of them.
    """
    worlds = {report.world for report in reports}
    if len(worlds) != 1:
        raise ConfigError(
            f"{', '.join(sources)}: found {len(worlds)} worlds, expected evaluations of one; keep them apart"
        )
    rows = [row for report in reports for row in zip(_scenes(report), _layouts(report), report.successes, strict=True)]
    return Outcomes(
        world=worlds.pop(),
        scenes=tuple(scene for scene, _, _ in rows),
        layouts=tuple(layout for _, layout, _ in rows),
        successes=tuple(won for _, _, won in rows),
        settings=tuple(sorted({f"{_words(r, _SETTINGS)}, task {task}" for r in reports for task in r.task_names})),
        sources=tuple(sources),
    )


def read_table(path: Path) -> tuple[PolicyOutcomes, ...]:
    """Reads a table with a line for each episode: policy, world (sim or real), scene, success.

    Raises:
        DataError: A column is missing, or a line cannot be read.
        ConfigError: A policy lacks a world, or an outcome was entered twice.
    """
    rows: dict[tuple[str, str], dict[str, bool]] = {}
    for number, row in _lines(path):
        where = f"{path}, line {number}"
        world = _WORLD_WORDS.get(row["world"].lower())
        success = _WORDS.get(row["success"].lower())
        if world is None:
            raise DataError(f"{where}: world is {row['world']!r}, expected sim or real")
        if success is None:
            raise DataError(f"{where}: success is {row['success']!r}, expected one of {', '.join(_WORDS)}")
        task = row.get("task", "")
        scene = f"{task} scene {row['scene']}" if task else f"scene {row['scene']}"
        outcomes = rows.setdefault((row["policy"], world), {})
        if scene in outcomes:
            raise ConfigError(f"{where}: {row['policy']} has an outcome for {scene} ({row['world']}) already")
        outcomes[scene] = success
    names = list(dict.fromkeys(name for name, _ in rows))
    _check_both(*({name for name, world in rows if world == wanted} for wanted in WORLDS))
    sim, real = ({name: _of_rows(rows[name, world], world, path) for name in names} for world in WORLDS)
    return tuple(PolicyOutcomes(name=name, sim=sim[name], real=real[name]) for name in names)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin it with a mark
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}; its first line names {', '.join(COLUMNS)}")
            for row in reader:
                values = {name: str(value or "").strip() for name, value in row.items() if name is not None}
                empty = [name for name in COLUMNS if not values[name]]
                if empty:
                    raise DataError(f"{path}, line {reader.line_num} has no {', '.join(empty)}")
                yield reader.line_num, values
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{path} cannot be read as a table: {err}") from err


def _of_rows(outcomes: Mapping[str, bool], world: str, path: Path) -> Outcomes:
    return Outcomes(
        world=world, scenes=tuple(outcomes), successes=tuple(outcomes.values()), sources=(f"{path} ({world})",)
    )


def _check_both(sim: set[str], real: set[str]) -> None:
    for alone, other in ((sim - real, "reality"), (real - sim, "simulation")):
        if alone:
            raise ConfigError(
                f"{', '.join(sorted(alone))} has no outcomes of {other}; every policy needs both, under the same name"
            )


def _read(path: Path, seen: dict[str, Path]) -> EvalReport:
    report = read_report(path)
    print_ = _fingerprint(report)
    if print_ in seen:
        raise ConfigError(f"{path} and {seen[print_]} hold the same outcomes, entered twice; leave one of them out")
    seen[print_] = path
    return report


def _fingerprint(report: EvalReport) -> str:
    """Returns what tells apart evaluations: in simulation a repetition is no new evidence, on a robot it is."""
    when = report.provenance if report.world == "robot" else None
    settings = [report.config.get(name) for name in (*_SETTINGS, "image_size_px", "replan_every")]
    outcomes = [report.task_names, report.seeds, report.successes, report.progresses, report.state_hashes]
    text = json.dumps([report.world, dict(report.policy), settings, outcomes, when], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_same_policy(name: str, reports: Sequence[tuple[Path, EvalReport]]) -> None:
    known = [(path, report.policy["fingerprint"]) for path, report in reports if report.policy.get("fingerprint")]
    for path, found in known[1:]:
        if found != known[0][1]:
            raise ConfigError(
                f"{name}: {known[0][0]} and {path} are of different policies (their files differ); evaluate the same "
                "one in both worlds"
            )


def _scenes(report: EvalReport) -> list[str]:
    """Returns a name for each scene: what was drawn with another randomisation is another scene."""
    return [f"{layout} ({_words(report, _SETTINGS)})" for layout in _layouts(report)]


def _layouts(report: EvalReport) -> list[str]:
    """Returns a name for what lay on each table."""
    where = _words(report, _LAYOUT)
    return [f"{task} with seed {seed}, {where}" for task, seed in zip(report.task_names, report.seeds, strict=True)]


def _words(report: EvalReport, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {report.config[name]}" for name in names if report.config.get(name) is not None)
