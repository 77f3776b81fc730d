"""The result of an evaluation as plain values: one JSON line for each episode, one JSON report for the whole.

The report is computed from the episode lines alone, so an interrupted and resumed evaluation gives the same report.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from roboalign.sdk.control.chunks import Seam, pool_seams
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.evaluation.episodes import EpisodeResult
from roboalign.sdk.evaluation.intervals import Interval, bootstrap_mean, success_interval
from roboalign.sdk.evaluation.statistics import Summary, summarize

__all__ = [
    "WORLDS",
    "EvalReport",
    "GoalsResult",
    "JsonValue",
    "TaskResult",
    "episode_from_json",
    "episode_to_json",
    "read_report",
    "summarize_episodes",
    "write_report_json",
]

JsonValue = object
"""Whatever `json` can write: text, numbers, booleans, None, and lists and objects of them."""

WORLDS = ("simulation", "robot")
"""Where outcomes come from."""

FORMAT_VERSION = 2
"""Version of `report.json`; a reader refuses any other by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """Success in one task."""

    task: str
    """Name of the task, or `all`."""
    num_episodes: int
    """Episodes that were run."""
    num_successes: int
    """Episodes that ended in success."""
    rate: float
    """Share of successes."""
    interval: Interval
    """Interval of the rate, `intervals.success_interval`."""
    mean_steps: float
    """Mean length of an episode in control periods."""
    mean_progress: float
    """Mean of the largest share of stages reached."""
    num_holds: int
    """Answers that were a hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoalsResult:
    """How many goals were reached where an episode has several: the figures that CALVIN reports of chains of five."""

    rates: tuple[float, ...]
    """Share of the episodes that reached at least 1, 2, ... goals, of those that have so many."""
    intervals: tuple[Interval, ...]
    """Interval of each rate."""
    nums: tuple[int, ...]
    """Episodes behind each rate."""
    mean_length: float
    """Mean number of goals reached."""
    mean_length_interval: Interval
    """Percentile bootstrap interval of the mean, episodes redrawn within their task; see `_length_interval`."""
    num_goals: int
    """Largest number of goals of an episode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """Everything an evaluation measured."""

    policy: Mapping[str, JsonValue]
    """Who was evaluated: kind, path, settings, fingerprint."""
    config: Mapping[str, JsonValue]
    """Settings of the evaluation."""
    total: TaskResult
    """All tasks together: the suite."""
    tasks: tuple[TaskResult, ...]
    """Each task alone, in the order of the settings."""
    goals: GoalsResult | None
    """Goals reached; None where every episode has one goal."""
    task_names: tuple[str, ...]
    """Task of each episode."""
    seeds: tuple[int, ...]
    """Scene seed of each episode."""
    successes: tuple[bool, ...]
    """Success of each episode, in the order of `seeds`."""
    progresses: tuple[float, ...]
    """Largest share of the stages that each episode reached, in the order of `seeds`."""
    goals_done: tuple[int, ...]
    """Goals that each episode reached, in the order of `seeds`."""
    start_hashes: tuple[str, ...]
    """Physical state in which each episode began, in the order of `seeds`."""
    state_hashes: tuple[str, ...]
    """Final physical state of each episode, in the order of `seeds`."""
    acted: Mapping[str, int]
    """Number of answers by who gave them: `flow`, `fast`, `expert`, `random`, `callable`, `hold`."""
    hold_reasons: Mapping[str, int]
    """Number of holds by reason."""
    num_calls: int
    """Times the policy was asked."""
    thought_share: float
    """Share of the answers that came with a thought that is not empty."""
    num_distinct_thoughts: int
    """Different thoughts that were written."""
    latency_s: Mapping[str, Summary]
    """Seconds of one call by part; `act` is the whole call, measured from outside while other work went on."""
    films: tuple[str, ...]
    """Folders of film strips, relative to the report: the first successes and the first failures."""
    videos: tuple[str, ...]
    """Video files, relative to the report: the first episodes."""
    provenance: Mapping[str, str]
    """Versions, machine and date."""
    wall_s: float
    """Wall time that was spent, summed over resumed runs."""
    thought_statuses: Mapping[str, int] = field(default_factory=dict)
    """Number of answers by what became of the newest thought, `roboalign.sdk.types.THOUGHT_STATUSES`."""
    stood_share: float = 0.0
    """Share of the control periods in which no action was there because the policy was still computing."""
    seams: Mapping[str, Seam] = field(default_factory=dict)
    """Changes of what was commanded, inside chunks and at their seams; empty where the policy was waited for."""
    world: str = "simulation"
    """One of `WORLDS`; what was written before it was noted is of simulation."""

    @property
    def who_acted(self) -> str:
        """The sources of actions by share, e.g. `flow`, or `flow 98%, hold 2%`."""
        calls = sum(self.acted.values())
        if len(self.acted) == 1:
            return next(iter(self.acted))
        ordered = sorted(self.acted.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {100 * count / calls:.3g}%" for name, count in ordered)


def summarize_episodes(
    episodes: Sequence[EpisodeResult],
    *,
    policy: Mapping[str, JsonValue],
    config: Mapping[str, JsonValue],
    films: Sequence[str] = (),
    videos: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
    wall_s: float = 0.0,
    world: str = "simulation",
) -> EvalReport:
    """Returns the report of a list of episodes."""
    if not episodes:
        raise ConfigError("there is no episode to report on")
    acted: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    latency_s: dict[str, list[float]] = {}
    for episode in episodes:
        acted.update(episode.sources)
        reasons.update(episode.hold_reasons)
        for part, values in episode.latency_s.items():
            latency_s.setdefault(part, []).extend(values)
    thoughts = [text for episode in episodes for _, text in episode.thoughts if text.strip()]
    num_calls = sum(episode.num_calls for episode in episodes)
    names = list(dict.fromkeys(episode.task for episode in episodes))
    return EvalReport(
        policy=policy,
        config=config,
        total=_summarize_task("all", episodes),
        tasks=tuple(_summarize_task(name, [e for e in episodes if e.task == name]) for name in names),
        goals=_summarize_goals(episodes) if max(episode.num_goals for episode in episodes) > 1 else None,
        task_names=tuple(episode.task for episode in episodes),
        seeds=tuple(episode.seed for episode in episodes),
        successes=tuple(episode.success for episode in episodes),
        progresses=tuple(episode.progress for episode in episodes),
        goals_done=tuple(episode.goals_done for episode in episodes),
        start_hashes=tuple(episode.start_hash for episode in episodes),
        state_hashes=tuple(episode.state_hash for episode in episodes),
        acted=dict(acted),
        hold_reasons=dict(reasons),
        num_calls=num_calls,
        thought_share=len(thoughts) / num_calls if num_calls else 0.0,
        num_distinct_thoughts=len(set(thoughts)),
        latency_s={part: summarize(values) for part, values in latency_s.items()},
        films=tuple(films),
        videos=tuple(videos),
        provenance=provenance or {},
        wall_s=wall_s,
        thought_statuses=dict(sum((Counter(episode.thought_statuses) for episode in episodes), Counter())),
        stood_share=sum(episode.stood for episode in episodes) / sum(episode.steps for episode in episodes),
        seams=pool_seams([episode.seams for episode in episodes]),
        world=world,
    )


def episode_to_json(episode: EpisodeResult) -> str:
    """Returns the episode as one line of JSON, without its pictures."""
    row: dict[str, JsonValue] = {f.name: getattr(episode, f.name) for f in fields(episode) if f.name != "frames"}
    row["latency_s"] = {part: [round(value, 6) for value in values] for part, values in episode.latency_s.items()}
    row["seams"] = {name: asdict(seam) for name, seam in episode.seams.items()}
    return json.dumps(row)


def episode_from_json(line: str) -> EpisodeResult:
    """Reads one line that `episode_to_json` wrote."""
    try:
        row = json.loads(line)
        row["thoughts"] = tuple((int(step), str(text)) for step, text in row["thoughts"])
        row["instructions"] = tuple((int(step), str(text)) for step, text in row["instructions"])
        row["latency_s"] = {part: tuple(values) for part, values in row["latency_s"].items()}
        row["seams"] = {name: Seam(**values) for name, values in row.get("seams", {}).items()}
        return EpisodeResult(**row)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as err:
        raise DataError(f"not an episode line of `roboalign eval`: {line[:80]!r}") from err


def write_report_json(report: EvalReport, path: Path) -> Path:
    """Writes the report; an older one is replaced only by a complete one."""
    row = {"format_version": FORMAT_VERSION, **asdict(report), "who_acted": report.who_acted}
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_without_nan(row), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def read_report(path: Path) -> EvalReport:
    """Reads `report.json`, or the one in a folder that `roboalign eval` wrote."""
    path = path / "report.json" if path.is_dir() else path
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        version = row.pop("format_version")
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {version}, this roboalign reads {FORMAT_VERSION}; run the evaluation again,"
                " or install the version of roboalign that wrote it"
            )
        del row["who_acted"]
        if row.get("world", WORLDS[0]) not in WORLDS:
            raise DataError(f"{path} is of the world {row['world']!r}, expected {' or '.join(WORLDS)}")
        return _report_from_json(row)
    except FileNotFoundError as err:
        raise DataError(f"there is no evaluation at {path}; write one with `roboalign eval`") from err
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        if isinstance(err, DataError):
            raise
        raise DataError(f"{path} is not a report of `roboalign eval` ({err})") from err


def _summarize_task(name: str, episodes: Sequence[EpisodeResult]) -> TaskResult:
    """Sums up the episodes of one task."""
    num, wins = len(episodes), sum(episode.success for episode in episodes)
    return TaskResult(
        task=name,
        num_episodes=num,
        num_successes=wins,
        rate=wins / num,
        interval=success_interval(wins, num),
        mean_steps=sum(episode.steps for episode in episodes) / num,
        mean_progress=sum(episode.progress for episode in episodes) / num,
        num_holds=sum(episode.num_holds for episode in episodes),
    )


def _summarize_goals(episodes: Sequence[EpisodeResult]) -> GoalsResult:
    """Sums up how many goals the episodes reached."""
    most = max(episode.num_goals for episode in episodes)
    having = [[e.goals_done >= k for e in episodes if e.num_goals >= k] for k in range(1, most + 1)]
    lengths = [float(episode.goals_done) for episode in episodes]
    intervals = tuple(success_interval(sum(reached), len(reached)) for reached in having)
    return GoalsResult(
        rates=tuple(sum(reached) / len(reached) for reached in having),
        intervals=intervals,
        nums=tuple(len(reached) for reached in having),
        mean_length=sum(lengths) / len(lengths),
        mean_length_interval=_length_interval(lengths, [episode.task for episode in episodes], intervals),
        num_goals=most,
    )


def _length_interval(lengths: Sequence[float], tasks: Sequence[str], intervals: Sequence[Interval]) -> Interval:
    """Returns the interval of the mean number of goals.

    Resampling episodes that are alike within every task would give an interval without width. The mean is the sum of
    the rates of at least 1, 2, ... goals, so the sum of their intervals, which is on the safe side, takes its place.
    """
    interval = bootstrap_mean(lengths, tasks)
    if interval.width > 0.0:
        return interval
    return Interval(low=sum(entry.low for entry in intervals), high=sum(entry.high for entry in intervals))


def _report_from_json(row: dict[str, JsonValue]) -> EvalReport:
    """Rebuilds a report; raises TypeError or KeyError for what is not one."""
    lists = ("task_names", "seeds", "successes", "progresses", "goals_done", "start_hashes", "state_hashes")
    for name in (*lists, "films", "videos"):
        row[name] = tuple(_list(row[name]))
    row["total"] = _task_from_json(row["total"])
    row["tasks"] = tuple(_task_from_json(entry) for entry in _list(row["tasks"]))
    if row["goals"] is not None:
        goals = _object(row["goals"])
        for name in ("rates", "nums"):
            goals[name] = tuple(_list(goals[name]))
        goals["intervals"] = tuple(_interval(entry) for entry in _list(goals["intervals"]))
        goals["mean_length_interval"] = _interval(goals["mean_length_interval"])
        row["goals"] = GoalsResult(**goals)  # type: ignore[arg-type]  # values come from JSON, names are checked
    latency_s = _object(row["latency_s"])
    row["latency_s"] = {
        part: Summary(**_object(entry))  # type: ignore[arg-type]  # values come from JSON, names are checked
        for part, entry in latency_s.items()
    }
    row["seams"] = {name: Seam(**_object(entry)) for name, entry in _object(row.get("seams", {})).items()}  # type: ignore[arg-type]  # values come from JSON, names are checked
    return EvalReport(**row)  # type: ignore[arg-type]  # values come from JSON, names are checked


def _task_from_json(value: JsonValue) -> TaskResult:
    row = _object(value)
    interval = _interval(row.pop("interval"))
    return TaskResult(**row, interval=interval)  # type: ignore[arg-type]  # values come from JSON, names are checked


def _interval(value: JsonValue) -> Interval:
    return Interval(**_object(value))  # type: ignore[arg-type]  # values come from JSON, names are checked


def _object(value: JsonValue) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise TypeError(f"found {type(value).__name__}, expected an object")
    return value


def _list(value: JsonValue) -> list[JsonValue]:
    if not isinstance(value, list):
        raise TypeError(f"found {type(value).__name__}, expected a list")
    return value


def _without_nan(value: JsonValue) -> JsonValue:
    """Replaces NaN, which JSON does not have, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return value
