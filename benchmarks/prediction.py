"""Compares predicted rates with the published ones of TensorRT Edge-LLM, without the row that is predicted.

    python benchmarks/prediction.py [--json]

Each base-decode row is predicted with an efficiency fitted (geometric mean) to the *other* rows of its device, and a
cost of each layer fitted to the other rows of all devices; a device with a single row is not scored. The bar: within
20 % on at least 90 % of the scored rows. It is about the rows that were collected before the predictor was written;
the other rows are scored in the same way, and reported whatever they say. Prefill, vision and drafts are reported apart
and have no bar. The fits printed last are those in export/targets.toml and prediction.py.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from roboalign.export.planner import plan_board
from roboalign.export.prediction import LAYER_BYTES, decode_cost_bytes, decode_rate_hz, prefill_ms, vision_ms
from roboalign.export.shapes import model_size
from roboalign.export.targets import Target, find_jetpack, find_target
from roboalign.sdk.settings_file import read_settings

DATA = Path(__file__).with_name("published.toml")
NVIDIA = ("runtime", "llm_bench", "InternVLA-N1")
CACHE_TOKENS = 2200
"""`--maxKVCacheCapacity` of the published engines."""
LAYER_BYTES_TRIED = tuple(0.25e6 * step for step in range(81))
BAR_ERROR, BAR_SHARE = 0.20, 0.90


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One published row; see published.toml."""

    release: str
    kind: str
    device: str
    model: str
    mode: str
    precision: str
    context: int
    decode_tok_s: float
    prefill_tokens: int | None = None
    prefill_ms: float | None = None
    image_tokens: int | None = None
    vision_ms: float | None = None
    gpu_mb: int | None = None
    anchor: bool = False

    @property
    def target(self) -> Target:
        """The board that it is about."""
        return find_target(self.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A row and what was predicted for it from the other rows of its device."""

    row: Row
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.predicted / self.row.decode_tok_s - 1


def read_rows(path: Path = DATA) -> list[Row]:
    """Returns every published row."""
    return [Row(**values) for values in read_settings(path, "published rates")["rows"]]  # type: ignore[attr-defined]


def efficiency(row: Row, layer_bytes: float = LAYER_BYTES) -> float:
    """Returns the share of the board's peak bandwidth that a row's rate amounts to, layers counted as bytes."""
    cost = decode_cost_bytes(model_size(row.model), row.precision, row.context, layer_bytes)
    return row.decode_tok_s * cost / (row.target.bandwidth_gb_s * 1e9)


def geometric_mean(values: Iterable[float]) -> float:
    """Returns the geometric mean: rates err by factors."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def fit_layer_bytes(rows: Sequence[Row]) -> float:
    """Returns the cost of a layer with which the rates of each device agree best on one efficiency."""
    return min(LAYER_BYTES_TRIED, key=lambda tried: _disagreement(rows, tried))


def _disagreement(rows: Sequence[Row], layer_bytes: float) -> float:
    """Sum of squared differences of log efficiencies from the mean of their device."""
    logs: dict[str, list[float]] = {}
    for row in rows:
        logs.setdefault(row.device, []).append(math.log(efficiency(row, layer_bytes)))
    return sum((one - statistics.fmean(values)) ** 2 for values in logs.values() for one in values)


def score(rows: Sequence[Row]) -> list[Scored]:
    """Returns each row predicted from the others alone: the cost of a layer from all, the efficiency from its device's.

    Rows alone on their device are left out.
    """
    scored = []
    for row in rows:
        others = [other for other in rows if other is not row]
        peers = [other for other in others if other.device == row.device]
        if not peers:
            continue
        layer_bytes = fit_layer_bytes(others)
        attained = geometric_mean(efficiency(other, layer_bytes) for other in peers)
        scored.append(Scored(row=row, predicted=row.decode_tok_s * attained / efficiency(row, layer_bytes)))
    return scored


def share_within(scored: Sequence[Scored], bound: float = BAR_ERROR) -> float:
    """Returns the share of scored rows whose error is at most the bound; no rows are no success."""
    return sum(abs(one.error) <= bound for one in scored) / len(scored) if scored else 0.0


def base_rows(rows: Sequence[Row], *, only_anchors: bool = False, others_too: bool = False) -> list[Row]:
    """Returns rows that decode without a draft on TensorRT Edge-LLM: NVIDIA's, or also what others report."""
    kinds = (*NVIDIA, "hokwangchoi") if others_too else NVIDIA
    return [row for row in rows if row.mode == "base" and row.kind in kinds and (row.anchor or not only_anchors)]


def attained_tflops(rows: Sequence[Row], device: str) -> dict[str, float]:
    """Returns what prefills attained by weight type, and vision encoders under `fp16`, of prompts of 128 or more."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.device != device or row.mode != "base":
            continue
        size = model_size(row.model)
        if row.prefill_ms is not None and row.prefill_tokens is not None and row.prefill_tokens >= 128:
            found.setdefault(row.precision, []).append(2 * size.decoder * row.prefill_tokens / row.prefill_ms / 1e9)
        if row.vision_ms is not None and row.image_tokens is not None:
            found.setdefault("vision", []).append(2 * size.vision * 4 * row.image_tokens / row.vision_ms / 1e9)
    means = {name: geometric_mean(values) for name, values in found.items()}
    # An encoder in 16 bit says what 16-bit arithmetic attains, where no prefill in 16 bit was published.
    vision = means.pop("vision", None)
    return means if vision is None else {"fp16": vision, **means}


def fits(rows: Sequence[Row]) -> dict[str, dict[str, object]]:
    """Returns efficiency and attained arithmetic of each device, from all of NVIDIA's base rows."""
    base = base_rows(rows)
    return {
        device: {
            "decode_efficiency": round(geometric_mean(efficiency(row) for row in base if row.device == device), 2),
            "attained_tflops": {key: round(value, 1) for key, value in attained_tflops(base, device).items()},
        }
        for device in dict.fromkeys(row.device for row in base)
    }


def memory_gb(row: Row) -> float:
    """Returns the estimated memory of a published row: no action head, a cache as long as that of the benchmark."""
    size = replace(model_size(row.model), head=None, context_tokens=CACHE_TOKENS)
    jetpack = find_jetpack(row.target, "7.2")
    return plan_board(size, row.target, row.precision, jetpack=jetpack).run_gb


def _print_memory(rows: Sequence[Row]) -> None:
    print("\nmemory in GB, published and estimated; those of AGX reserve more for pictures (no bar)")
    for row in base_rows(rows):
        if row.gpu_mb is not None:
            print(f"{row.device:14} {row.model:14} {row.precision:6} {row.gpu_mb / 1e3:5.1f} {memory_gb(row):5.1f}")


def _print_scores(title: str, scored: Sequence[Scored]) -> None:
    within = share_within(scored)
    worst = max(scored, key=lambda one: abs(one.error))
    verdict = "met" if within >= BAR_SHARE else f"missed by {100 * (BAR_SHARE - within):.1f} points"
    print(
        f"{title}: {sum(abs(one.error) <= BAR_ERROR for one in scored)} of {len(scored)} within "
        f"{BAR_ERROR:.0%} ({within:.1%}; {BAR_SHARE:.0%} is {verdict}); worst {worst.error:+.0%}, "
        f"{worst.row.model} on {worst.row.device}"
    )


def _print_decode(scored: Sequence[Scored]) -> None:
    print(f"{'device':14} {'model':14} {'type':6} {'release':7} {'context':>7} {'published':>9} {'predicted':>9} error")
    for one in scored:
        row = one.row
        print(
            f"{row.device:14} {row.model:14} {row.precision:6} {row.release:7} {row.context:7} "
            f"{row.decode_tok_s:9.1f} {one.predicted:9.1f} {one.error:+6.0%}{' *' if row.anchor else ''}"
        )


def _print_apart(rows: Sequence[Row]) -> None:
    print("\nprefill and vision, ms, with the fits of targets.toml (all rows in the fit, no bar)")
    for row in base_rows(rows):
        if row.prefill_ms is None or row.prefill_tokens is None:
            continue
        size = model_size(row.model)
        guess = prefill_ms(size, row.target, row.precision, row.prefill_tokens)
        seen = (
            ""
            if row.image_tokens is None
            else f"{row.vision_ms:8.1f} {vision_ms(size, row.target, 4 * row.image_tokens):8.1f}"
        )
        print(
            f"{row.device:14} {row.model:14} {row.precision:6} {row.prefill_tokens:5} tokens "
            f"{row.prefill_ms:8.1f} {guess:8.1f} {seen}"
        )
    print("\nEAGLE3 drafts: published rate over the predicted rate without a draft")
    for row in rows:
        if row.mode == "EAGLE3":
            guess = decode_rate_hz(model_size(row.model), row.target, row.precision, row.context)
            print(f"{row.device:14} {row.model:14} {row.precision:6} {row.decode_tok_s / guess:5.2f}x")


def main() -> None:
    """Prints scores, tables and fits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    options = parser.parse_args()
    rows = read_rows()
    sets = {
        "bar, rows collected before": score(base_rows(rows, only_anchors=True)),
        "bar rows and one by another author": score(base_rows(rows, only_anchors=True, others_too=True)),
        "all of NVIDIA's rows": score(base_rows(rows)),
        "and those of others": score(base_rows(rows, others_too=True)),
    }
    if options.json:
        json.dump(
            {
                name: {"within": share_within(one), "rows": [asdict(s.row) | {"error": s.error} for s in one]}
                for name, one in sets.items()
            },
            sys.stdout,
        )
        return
    _print_decode(sets["all of NVIDIA's rows"])
    print("* collected before the predictor was written\n")
    for name, scored in sets.items():
        _print_scores(name, scored)
    _print_apart(rows)
    _print_memory(rows)
    print("\nfits")
    for device, values in fits(rows).items():
        print(f"{device:14} {values}")
    print(f"a layer as {fit_layer_bytes(base_rows(rows)):.3g} bytes")


if __name__ == "__main__":
    main()
