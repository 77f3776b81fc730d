"""From a ledger to what can be said: rates of the arms, what they cost, and paired differences over training seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from roboalign.reproduce.ledger import Ledger, MadeBy, Result, unpack
from roboalign.sdk.errors import DataError
from roboalign.sdk.evaluation.intervals import Interval, success_interval
from roboalign.sdk.evaluation.seeded import SeededDifference, seeded_difference
from roboalign.sdk.evaluation.statistics import holm

__all__ = ["ArmRow", "Contrast", "Cost", "arm_rows", "contrasts", "costs", "say"]

_BACKBONE = ("base", "sft", "align", "act")
"""Stages that make the model on which a head is trained."""
_PRIMARY = {
    "better": "holds",
    "worse": "reversed",
    "better here": "holds for these models only",
    "worse here": "not shown: these models differ the other way",
    "not separated": "not shown",
}
"""The words of the protocol in docs/evidence.md."""
_VERDICTS = {
    "better": "better, also to be expected of new training runs",
    "worse": "worse, also to be expected of new training runs",
    "better here": "better for these trained models; not shown for new training runs",
    "worse here": "worse for these trained models; not shown for new training runs",
    "not separated": "not separated",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmRow:
    """One arm over all of its seeds."""

    arm: str
    """Name of the arm."""
    label: str
    """What tables call it."""
    results: tuple[Result, ...]
    """One for each seed that has a result."""
    gaps: tuple[str, ...]
    """Why the other seeds have none: each reason once, with its seeds."""

    @property
    def n(self) -> int:
        """Episodes in all."""
        return sum(result.n for result in self.results)

    @property
    def successes(self) -> int:
        """Successes in all."""
        return sum(result.successes for result in self.results)

    @property
    def rate(self) -> float:
        """Share of successes over all episodes; NaN without any."""
        return self.successes / self.n if self.n else math.nan

    @property
    def interval(self) -> Interval:
        """Interval of the rate of these models, over scenes alone."""
        return success_interval(self.successes, self.n)

    @property
    def seed_rates(self) -> tuple[float, ...]:
        """Rate of each seed."""
        return tuple(result.successes / result.n for result in self.results)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one stage of an arm took, mean over its seeds; None where a stage did not write it down."""

    step: str
    """Name of the step without its seed."""
    stage: str
    """Stage of the checkpoint."""
    frames: int | None
    """Frames trained on."""
    updates: float | None
    """Updates."""
    samples: float | None
    """Samples that went through the updates."""
    tokens: float | None
    """Tokens of the loss."""
    cpu_s: float
    """CPU seconds."""

    @property
    def is_backbone(self) -> bool:
        """Whether the stage trains the model and not its head."""
        return self.stage in _BACKBONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """Two arms on the same scenes."""

    first: str
    """Name of the arm that is expected to be better."""
    second: str
    """Name of the other arm."""
    is_primary: bool
    """Whether it is the one hypothesis."""
    found: SeededDifference | None
    """The difference; None while no seed has both."""
    adjusted_p: float | None = None
    """Probability over scenes after Holm's correction for the secondary comparisons; None for the primary one."""


def arm_rows(ledger: Ledger) -> tuple[ArmRow, ...]:
    """Returns every arm of the plan, those without a result too."""
    rows = []
    for arm, label in ledger.header.labels.items():
        reasons: dict[str, list[str]] = {}
        for gap in ledger.gaps:
            if gap.arm == arm:
                reasons.setdefault(gap.reason, []).append(str(gap.seed))
        gaps = tuple(f"{reason} (seed {', '.join(seeds)})" for reason, seeds in reasons.items())
        rows.append(ArmRow(arm=arm, label=label, results=tuple(ledger.of(arm).values()), gaps=gaps))
    return tuple(rows)


def contrasts(ledger: Ledger) -> tuple[Contrast, ...]:
    """Returns the primary comparison, then the secondary ones.

    Raises:
        DataError: Two evaluations that should be paired were not of the same scenes.
    """
    header = ledger.header
    rows = [
        Contrast(first=pair[0], second=pair[1], is_primary=number == 0, found=_difference(ledger, *pair))
        for number, pair in enumerate((header.primary, *header.secondary))
    ]
    tested = [index for index, row in enumerate(rows) if not row.is_primary and row.found is not None]
    adjusted = holm([found.scene_p_value for index in tested if (found := rows[index].found) is not None])
    for index, p_value in zip(tested, adjusted, strict=True):
        rows[index] = replace(rows[index], adjusted_p=p_value)
    return tuple(rows)


def costs(row: ArmRow) -> tuple[Cost, ...]:
    """Returns what each training stage of an arm took."""
    by_step: dict[str, list[MadeBy]] = {}
    for result in row.results:
        for step in result.made_by:
            if step.facts.stage not in ("", "data"):
                by_step.setdefault(step.id.removesuffix(f".s{result.seed}"), []).append(step)
    return tuple(
        Cost(
            step=name,
            stage=steps[0].facts.stage,
            frames=steps[0].facts.frames,
            updates=_mean([step.facts.updates for step in steps]),
            samples=_mean([step.facts.samples for step in steps]),
            tokens=_mean([step.facts.tokens for step in steps]),
            cpu_s=sum(step.cpu_s if step.facts.cpu_s is None else step.facts.cpu_s for step in steps) / len(steps),
        )
        for name, steps in by_step.items()
    )


def say(contrast: Contrast, ledger: Ledger) -> str:
    """Returns in words what a comparison shows."""
    first, second = (ledger.header.labels[arm] for arm in (contrast.first, contrast.second))
    found = contrast.found
    if found is None:
        return f"{first} against {second}: no seed has both"
    missing = len(ledger.header.seeds) - len(found.seeds)
    if contrast.is_primary and missing:
        return f"{first} better than {second}: not decided, {missing} of {len(ledger.header.seeds)} seeds are missing"
    seeds = "1 training seed" if len(found.seeds) == 1 else f"{len(found.seeds)} training seeds"
    counts = f"({seeds}, {found.num_pairs} paired episodes)"
    if contrast.is_primary:
        return f"{first} better than {second}: {_PRIMARY[found.verdict]} {counts}"
    return f"{first} against {second}: {_VERDICTS[found.verdict]} {counts}"


def _difference(ledger: Ledger, first: str, second: str) -> SeededDifference | None:
    ones, others = ledger.of(first), ledger.of(second)
    seeds = [seed for seed in ledger.header.seeds if seed in ones and seed in others]
    if not seeds:
        return None
    for seed in seeds:
        if ones[seed].scenes.get("sha256") != others[seed].scenes.get("sha256"):
            raise DataError(
                f"{first} and {second} are not paired: seed {seed} was evaluated on other scenes; run both arms with"
                " the same plan and the same version of the simulator"
            )
    lists = [[unpack(rows[seed].outcomes, rows[seed].n) for seed in seeds] for rows in (ones, others)]
    return seeded_difference(lists[0], lists[1], seeds)


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
