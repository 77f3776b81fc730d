"""Two or more policies on the same scenes: are they paired, and how large is the difference.

Only evaluations of the same scenes are compared: same suite, tasks, seeds, split, arm and randomisation, and every
episode must have begun in the same physical state. Everything is stated as the first policy minus the other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.intervals import Interval, bootstrap_mean
from roboalign.sdk.evaluation.results import EvalReport
from roboalign.sdk.evaluation.statistics import PairedDifference, holm, paired_difference

__all__ = ["Comparison", "MeanDifference", "TaskDifference", "check_paired", "compare"]

_MUST_AGREE = ("suite", "tasks", "split", "robot", "randomization", "randomization_fingerprint", "image_size_px")


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanDifference:
    """Difference of two means over the same scenes."""

    difference: float
    """Mean of the first minus mean of the second."""
    interval: Interval
    """Paired percentile bootstrap interval, scenes redrawn within their task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskDifference:
    """Two policies in one task."""

    task: str
    """Name of the task."""
    num_first: int
    """Scenes on which the first succeeds."""
    num_second: int
    """Scenes on which the second succeeds."""
    paired: PairedDifference
    """Their difference."""
    adjusted_p: float
    """McNemar probability after Holm's correction for as many tasks as there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two policies on the same scenes; every difference is the first minus the second."""

    first: str
    """Name of the first policy."""
    second: str
    """Name of the second policy."""
    total: PairedDifference
    """Success over all tasks."""
    tasks: tuple[TaskDifference, ...]
    """Each task alone."""
    progress: MeanDifference
    """Stage progress."""
    length: MeanDifference | None
    """Goals reached; None where every episode has one goal."""

    @property
    def verdict(self) -> str:
        """What can be said, in words; a difference is claimed only where interval and McNemar's test agree on it."""
        pair, low, high = self.total, self.total.interval.low, self.total.interval.high
        width = f"{100 * low:+.1f} to {100 * high:+.1f} points, p = {pair.p_value:.2g}"
        is_clear = pair.p_value <= 1.0 - pair.interval.confidence
        if is_clear and low > 0.0:
            return f"{self.first} is better than {self.second} ({width})"
        if is_clear and high < 0.0:
            return f"{self.first} is worse than {self.second} ({width})"
        return f"{pair.num_pairs} scenes do not separate {self.first} from {self.second} ({width})"


def check_paired(first: EvalReport, second: EvalReport) -> None:
    """Raises ConfigError, which says what differs, unless both were run on the same scenes."""
    for key in ("world", *_MUST_AGREE):
        one, other = (report.world if key == "world" else report.config.get(key) for report in (first, second))
        if one != other:
            raise ConfigError(
                f"the evaluations are not paired: {key} is {one!r} in the first and {other!r} in the second; run both"
                " with the same settings"
            )
    one_keys, other_keys = _keys(first), _keys(second)
    only_one, only_other = set(one_keys) - set(other_keys), set(other_keys) - set(one_keys)
    if only_one or only_other:
        task, seed = min(only_one or only_other)
        raise ConfigError(
            f"the evaluations are not paired: {len(only_one)} scenes are only in the first and {len(only_other)} only"
            f" in the second, e.g. {task} with seed {seed}; run both with the same number of episodes"
        )
    starts: dict[tuple[str, int], str] = dict(zip(other_keys, second.start_hashes, strict=True))
    for scene, start in zip(one_keys, first.start_hashes, strict=True):
        if start and starts[scene] and start != starts[scene]:
            versions = [report.config.get("roboalign_version") for report in (first, second)]
            raise ConfigError(
                f"the evaluations are not paired: {scene[0]} with seed {scene[1]} began in another physical state (made"
                f" with roboalign {versions[0]} and {versions[1]}); run both with the same version"
            )


def compare(
    first: EvalReport, second: EvalReport, *, first_name: str = "the first", second_name: str = "the second"
) -> Comparison:
    """Compares two evaluations scene by scene.

    Raises:
        ConfigError: They are not paired; the message says what differs.
    """
    check_paired(first, second)
    order = {key: index for index, key in enumerate(_keys(second))}
    match = [order[key] for key in _keys(first)]
    names = first.task_names
    wins, others = list(first.successes), [second.successes[index] for index in match]
    tasks = []
    for name in dict.fromkeys(names):
        rows = [index for index, task in enumerate(names) if task == name]
        tasks.append((name, [wins[i] for i in rows], [others[i] for i in rows]))
    pairs = [paired_difference(mine, theirs) for _, mine, theirs in tasks]
    adjusted = holm([pair.p_value for pair in pairs])
    return Comparison(
        first=first_name,
        second=second_name,
        total=paired_difference(wins, others, names),
        tasks=tuple(
            TaskDifference(task=name, num_first=sum(mine), num_second=sum(theirs), paired=pair, adjusted_p=p)
            for (name, mine, theirs), pair, p in zip(tasks, pairs, adjusted, strict=True)
        ),
        progress=_mean_difference(first.progresses, [second.progresses[i] for i in match], names),
        length=_mean_difference(first.goals_done, [second.goals_done[i] for i in match], names)
        if first.goals is not None
        else None,
    )


def _keys(report: EvalReport) -> list[tuple[str, int]]:
    return list(zip(report.task_names, report.seeds, strict=True))


def _mean_difference(first: Sequence[float], second: Sequence[float], groups: Sequence[str]) -> MeanDifference:
    """Compares means; differences that are all alike have an interval without width, which proves nothing."""
    differences = [float(one) - float(other) for one, other in zip(first, second, strict=True)]
    return MeanDifference(difference=sum(differences) / len(differences), interval=bootstrap_mean(differences, groups))
