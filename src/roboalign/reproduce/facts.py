"""What a finished step says about itself: data, updates, tokens, CPU seconds, curves; read from the files it wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roboalign.sdk.errors import BundleError, DataError
from roboalign.sdk.evaluation.plots import read_metrics

__all__ = ["StepFacts", "matched_updates", "step_facts"]

_CURVE_POINTS = 60
"""Points of a curve that are kept in the ledger; more would make it too large to be committed."""
_CURVES = (
    "reward",
    "kl",
    "entropy",
    "zero_std",
    "prefix",
    "error",
    "well_formed",
    "decodable",
    "distinct",
    "closed_loop",
)
"""Parts of the names of the curves that are kept, of a stage that is rewarded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFacts:
    """Numbers of one step; None where the step has none, or did not write it down."""

    stage: str = ""
    """Stage of a checkpoint; `data` for a dataset, empty for anything else."""
    frames: int | None = None
    """Frames that were recorded, or trained on."""
    updates: int | None = None
    """Updates of weights."""
    samples: int | None = None
    """Samples that went through the updates, repeats included; of `align`, replies."""
    tokens: int | None = None
    """Tokens that the loss was computed on, where the stage counted them."""
    cpu_s: float | None = None
    """CPU seconds as the stage counted them, interrupted parts included."""
    curves: Mapping[str, tuple[tuple[float, float], ...]] | None = None
    """Step and value of what a rewarded stage logged, thinned out."""


def step_facts(folder: Path) -> StepFacts:
    """Returns what a result says: a checkpoint, a dataset, or anything else (which says nothing)."""
    if (folder / "roboalign.json").is_file():
        return _checkpoint_facts(folder)
    if (folder / "training.json").is_file():
        row = _json(folder / "training.json")
        settings = _part(row, "config")
        updates = _int(settings.get("steps"))
        return StepFacts(
            stage="act",
            frames=_int(row.get("frames")),
            updates=updates,
            samples=_samples(updates, settings),
            cpu_s=_float(row.get("cpu_s")),
        )
    if (folder / "meta" / "info.json").is_file():
        info = _json(folder / "meta" / "info.json")
        return StepFacts(stage="data", frames=_int(info.get("total_frames")))
    return StepFacts()


def matched_updates(lengthened: StepFacts, matched: StepFacts) -> int:
    """Returns the updates with which the first step would take the CPU seconds that both took together."""
    if not lengthened.updates or not lengthened.cpu_s or matched.cpu_s is None:
        raise BundleError(
            f"compute cannot be matched: found {lengthened.updates} updates in {lengthened.cpu_s} CPU s, and another"
            f" step of {matched.cpu_s} CPU s, expected counts of both; give `match` two training steps"
        )
    return math.ceil(lengthened.updates * (1.0 + matched.cpu_s / lengthened.cpu_s))


def _checkpoint_facts(folder: Path) -> StepFacts:
    meta = _json(folder / "roboalign.json")
    notes, metrics = _part(meta, "notes"), _part(meta, "metrics")
    settings = {**notes, **_part(notes, "fit"), **_part(notes, "config")}
    stage = str(meta.get("stage", ""))
    updates = _int(metrics.get("last_step")) if stage == "align" else _int(settings.get("steps"))
    log = folder / "metrics.jsonl"
    return StepFacts(
        stage=stage,
        frames=_int(notes.get("frames")),
        updates=updates,
        samples=_samples(updates, settings),
        tokens=_int(metrics.get("tokens")),
        cpu_s=_float(meta.get("cpu_s")),
        curves=_curves(log) if stage == "align" and log.is_file() else None,
    )


def _samples(updates: int | None, settings: Mapping[str, object]) -> int | None:
    """Updates times samples of one; a rollout of `align` is split among its updates."""
    if updates is None:
        return None
    prompts, replies = _int(settings.get("prompts_per_rollout")), _int(settings.get("samples_per_prompt"))
    if prompts and replies:
        return updates * prompts * replies // (_int(settings.get("updates_per_rollout")) or 1)
    batch = _int(settings.get("batch_size"))
    return updates * batch if batch else None


def _curves(log: Path) -> dict[str, tuple[tuple[float, float], ...]]:
    kept = {}
    for name, curve in read_metrics(log).items():
        if any(part in name for part in _CURVES):
            points = list(zip(curve.steps, curve.values, strict=True))
            every = max(1, -(-len(points) // _CURVE_POINTS))
            kept[name] = tuple((x, float(f"{y:.4g}")) for x, y in [*points[:-1:every], points[-1]])
    return kept


def _json(path: Path) -> dict[str, object]:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as err:
        raise DataError(f"{path} cannot be read ({err}); delete its step to run it again") from err
    if not isinstance(row, dict):
        raise DataError(f"{path} holds no JSON object; delete its step to run it again")
    return row


def _part(row: Mapping[str, object], name: str) -> dict[str, object]:
    part = row.get(name)
    return part if isinstance(part, dict) else {}


def _float(value: object) -> float | None:
    return round(float(value), 1) if isinstance(value, (int, float)) else None


def _int(value: object) -> int | None:
    return int(value) if isinstance(value, (int, float)) else None
