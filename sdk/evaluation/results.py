"""The result of an evaluation as plain values: one JSON line for each episode, one JSON report for the whole.

The report is computed from the episode lines alone, so an interrupted and resumed evaluation gives the same report.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.evaluation.episodes import EpisodeResult
from roboalign.sdk.evaluation.statistics import (
    Interval,
    PairedDifference,
    Summary,
    paired_difference,
    summarize,
    wilson,
)

__all__ = [
    "EvalReport",
    "FamilyResult",
    "JsonValue",
    "compare",
    "episode_from_json",
    "episode_to_json",
    "read_report",
    "summarize_episodes",
    "write_report_json",
]

JsonValue = object
"""Whatever `json` can write: text, numbers, booleans, None, and lists and objects of them."""

FORMAT_VERSION = 1
"""Version of `report.json`; a reader refuses a newer one by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyResult:
    """Success of one task family."""

    family: str
    """Task family, or `all`."""
    num_episodes: int
    """Episodes that were run."""
    num_successes: int
    """Episodes that ended in success."""
    rate: float
    """Share of successes."""
    interval: Interval
    """Wilson interval of the rate."""
    mean_steps: float
    """Mean length of an episode in control periods."""
    mean_progress: float
    """Mean of the largest share of stages reached."""
    num_holds: int
    """Answers that were a hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """Everything an evaluation measured."""

    policy: Mapping[str, JsonValue]
    """Who was evaluated: kind, path, settings, fingerprint."""
    config: Mapping[str, JsonValue]
    """Settings of the evaluation."""
    total: FamilyResult
    """All families together."""
    families: tuple[FamilyResult, ...]
    """Each family alone, in the order of the settings."""
    seeds: tuple[int, ...]
    """Scene seed of each episode."""
    successes: tuple[bool, ...]
    """Success of each episode, in the order of `seeds`."""
    state_hashes: tuple[str, ...]
    """Final physical state of each episode, in the order of `seeds`."""
    acted: Mapping[str, int]
    """Number of answers by who gave them: `flow`, `fast`, `expert`, `random`, `hold`."""
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
    """Folders of film strips, relative to the report."""
    wall_s: float
    """Wall time that was spent, summed over resumed runs."""

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
    wall_s: float = 0.0,
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
    names = list(dict.fromkeys(episode.family for episode in episodes))
    return EvalReport(
        policy=policy,
        config=config,
        total=_family("all", episodes),
        families=tuple(_family(name, [e for e in episodes if e.family == name]) for name in names),
        seeds=tuple(episode.seed for episode in episodes),
        successes=tuple(episode.success for episode in episodes),
        state_hashes=tuple(episode.state_hash for episode in episodes),
        acted=dict(acted),
        hold_reasons=dict(reasons),
        num_calls=num_calls,
        thought_share=len(thoughts) / num_calls if num_calls else 0.0,
        num_distinct_thoughts=len(set(thoughts)),
        latency_s={part: summarize(values) for part, values in latency_s.items()},
        films=tuple(films),
        wall_s=wall_s,
    )


def compare(first: EvalReport, second: EvalReport) -> PairedDifference:
    """Compares two evaluations on the seeds they share, each seed with itself."""
    seconds = dict(zip(second.seeds, second.successes, strict=True))
    for key in ("families", "split"):
        if first.config[key] != second.config[key]:
            raise ConfigError(f"evaluations with {key} {first.config[key]} and {second.config[key]} are not paired")
    pairs = [(ok, seconds[seed]) for seed, ok in zip(first.seeds, first.successes, strict=True) if seed in seconds]
    if not pairs:
        raise ConfigError(
            "the two evaluations have no seed in common; run both with the same --episodes and first episode"
        )
    return paired_difference([a for a, _ in pairs], [b for _, b in pairs])


def episode_to_json(episode: EpisodeResult) -> str:
    """Returns the episode as one line of JSON, without its pictures."""
    row: dict[str, JsonValue] = {f.name: getattr(episode, f.name) for f in fields(episode) if f.name != "frames"}
    row["latency_s"] = {part: [round(value, 6) for value in values] for part, values in episode.latency_s.items()}
    return json.dumps(row)


def episode_from_json(line: str) -> EpisodeResult:
    """Reads one line that `episode_to_json` wrote."""
    try:
        row = json.loads(line)
        row["thoughts"] = tuple((int(step), str(text)) for step, text in row["thoughts"])
        row["latency_s"] = {part: tuple(values) for part, values in row["latency_s"].items()}
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
        if version > FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {version}, this roboalign reads up to {FORMAT_VERSION}; update it"
            )
        row.pop("who_acted")
        for key in ("seeds", "successes", "state_hashes", "films"):
            row[key] = tuple(row[key])
        row["total"] = _family_from_json(row["total"])
        row["families"] = tuple(_family_from_json(entry) for entry in row["families"])
        row["latency_s"] = {part: Summary(**entry) for part, entry in row["latency_s"].items()}
        return EvalReport(**row)
    except FileNotFoundError as err:
        raise DataError(f"there is no evaluation at {path}; write one with `roboalign eval`") from err
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as err:
        raise DataError(f"{path} is not a report of `roboalign eval` ({err})") from err


def _family(name: str, episodes: Sequence[EpisodeResult]) -> FamilyResult:
    """Sums up the episodes of one family."""
    num, wins = len(episodes), sum(episode.success for episode in episodes)
    return FamilyResult(
        family=name,
        num_episodes=num,
        num_successes=wins,
        rate=wins / num,
        interval=wilson(wins, num),
        mean_steps=sum(episode.steps for episode in episodes) / num,
        mean_progress=sum(episode.progress for episode in episodes) / num,
        num_holds=sum(episode.num_holds for episode in episodes),
    )


def _family_from_json(row: dict[str, JsonValue]) -> FamilyResult:
    """Rebuilds one family entry of a report."""
    interval = row.pop("interval")
    if not isinstance(interval, dict):
        raise TypeError("a family has no interval")
    return FamilyResult(**row, interval=Interval(**interval))  # type: ignore[arg-type]  # values come from JSON, names are checked


def _without_nan(value: JsonValue) -> JsonValue:
    """Replaces NaN, which JSON does not have, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return value
