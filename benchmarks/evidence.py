"""Simulates the procedure of docs/evidence.md: how often its intervals hold the true difference, and what it can see.

    python benchmarks/evidence.py --repeats 2000 --out runs/evidence-coverage.json

Two ways to train are compared with as many training seeds and scenes as the protocol has. Each training run draws its
own success rate around the mean of its way to train; each scene has a difficulty that both models share, so that their
outcomes are correlated as paired ones are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from roboalign.sdk.evaluation.seeded import SeededDifference, seeded_difference

__all__ = ["Coverage", "Setting", "measure", "simulate"]

SHARED = 0.5
"""Share of a scene's difficulty, in variance, that both models have in common."""
BASELINE = 0.65
"""Success rate of the second way to train: what an SFT model with its head had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One world in which the procedure is tried."""

    effect: float
    """True difference of the mean success rates."""
    seed_std: float
    """Standard deviation of the success rate of one training run around the mean."""
    seeds: int = 3
    """Training seeds."""
    scenes: int = 500
    """Scenes of each seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """What was found of one setting."""

    setting: Setting
    """The world."""
    repeats: int
    """Simulated studies."""
    over_seeds: float
    """Share of the studies whose interval over seeds and scenes holds the true difference."""
    over_scenes: float
    """The same for Tango's interval over the pooled scenes."""
    width: float
    """Mean width of the interval over seeds and scenes."""
    said_better: float
    """Share of the studies that say `better`, for new training runs."""
    said_better_here: float
    """Share that say `better` or `better here`."""


def simulate(setting: Setting, rng: np.random.Generator) -> SeededDifference:
    """Returns what the procedure finds in one simulated study."""
    means = (BASELINE + setting.effect, BASELINE)
    lists: tuple[list[list[bool]], list[list[bool]]] = ([], [])
    for _ in range(setting.seeds):
        shared = rng.standard_normal(setting.scenes)
        for mean, rows in zip(means, lists, strict=True):
            rate = float(np.clip(mean + setting.seed_std * rng.standard_normal(), 0.001, 0.999))
            difficulty = np.sqrt(SHARED) * shared + np.sqrt(1.0 - SHARED) * rng.standard_normal(setting.scenes)
            rows.append((difficulty < NormalDist().inv_cdf(rate)).tolist())
    return seeded_difference(*lists, range(setting.seeds))


def measure(setting: Setting, *, repeats: int, seed: int = 0) -> Coverage:
    """Repeats the study and counts."""
    rng = np.random.default_rng(seed)
    studies = [simulate(setting, rng) for _ in range(repeats)]
    intervals = [study.interval for study in studies if study.interval is not None]
    verdicts = [study.verdict for study in studies]
    return Coverage(
        setting=setting,
        repeats=repeats,
        over_seeds=float(np.mean([i.low <= setting.effect <= i.high for i in intervals])),
        over_scenes=float(np.mean([s.scene_interval.low <= setting.effect <= s.scene_interval.high for s in studies])),
        width=float(np.mean([interval.width for interval in intervals])),
        said_better=verdicts.count("better") / repeats,
        said_better_here=sum(verdict.startswith("better") for verdict in verdicts) / repeats,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table, and writes it when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000, help="simulated studies a row")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of a study")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    print("                     interval over seeds    over scenes    says, of 100 studies")
    print("effect  seed sd      holds     width          holds      better   better here")
    rows = []
    for effect in (0.0, 0.065, 0.15):
        for seed_std in (0.0, 0.02, 0.05):
            row = measure(Setting(effect=effect, seed_std=seed_std, seeds=args.seeds), repeats=args.repeats)
            rows.append(row)
            found = f"{100 * row.over_seeds:6.1f} %  {100 * row.width:6.1f}       {100 * row.over_scenes:6.1f} %"
            said = f"{100 * row.said_better:6.1f}   {100 * row.said_better_here:6.1f}"
            print(f"{100 * effect:+5.1f}   {100 * seed_std:4.1f}     {found}   {said}", flush=True)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
