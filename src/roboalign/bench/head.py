"""`bench head`: the output layer inside an action span, where only action tokens may follow, and over every token.

The vocabulary is that of the large models (151,936 tokens, 2,048 of them actions). Under the length constraint, in
every state that it has, the best token of the few rows has to be the best of all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from roboalign.bench.models import ModelSizes, bench_spec, lively_model, work_folder, write_bench_manifest
from roboalign.bench.rows import BenchConfig, BenchResult, Row, make_result
from roboalign.bench.timing import interleave, ratio, spread
from roboalign.export.read_graphs import write_read_graphs
from roboalign.export.weights import write_weights
from roboalign.sdk.backends.onnx_graph import OnnxGraph
from roboalign.sdk.bundle import UPPER_ROLE, WRITE_ACTIONS_ROLE, read_bundle
from roboalign.sdk.constraint import ActionConstraint
from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.types import FloatArray

__all__ = ["run_head"]

_BAR = 100.0
_VOCAB, _FIRST, _COUNT = 151_936, 149_000, 2048
_START, _END = 148_998, 148_999
_SIZES = ModelSizes(hidden=512, intermediate=64, layers=1, head_dim=64)
_CALLS = 200
"""Calls of the small head that are timed together; the large one is called once for each ten of these."""


def run_head(config: BenchConfig, say: Callable[[str], None]) -> BenchResult:
    """Measures both heads on the same states.

    Raises:
        CheckFailed: the best token of the few rows is not the best of all.
    """
    torch.set_num_threads(config.threads)
    say(f"head: {_VOCAB} tokens, {_COUNT} of them actions")
    with work_folder(config.work) as work:
        return make_result([_measure(config, work / "head")], config.threads)


def _measure(config: BenchConfig, folder: Path) -> Row:
    folder.mkdir(parents=True, exist_ok=True)
    model, spec = lively_model(_SIZES, vocab=_VOCAB), bench_spec(_SIZES)
    table = write_weights(model, folder / "model.safetensors", "fp32")
    graphs = write_read_graphs(model, spec, 1, folder, table, action_rows=(_FIRST, _COUNT))
    write_bench_manifest(folder, spec, graphs, "fp32", "head")
    bundle = read_bundle(folder)
    heads = {role: OnnxGraph(bundle, graphs[role], config.threads) for role in (UPPER_ROLE, WRITE_ACTIONS_ROLE)}
    states: FloatArray = np.random.default_rng(0).standard_normal((64, _SIZES.hidden), dtype=np.float32)
    row: FloatArray = np.zeros((1, 1, _SIZES.hidden), np.float32)
    scores: dict[str, FloatArray] = {
        UPPER_ROLE: np.zeros((1, 1, _VOCAB), np.float32),
        WRITE_ACTIONS_ROLE: np.zeros((1, 1, _COUNT), np.float32),
    }
    # The head sees the one layer that there is, so that all of `upper` is a norm and the scores.
    last, first_scored = np.zeros_like(row), np.zeros(1, np.int64)
    runs = {
        UPPER_ROLE: heads[UPPER_ROLE].bind(
            {"hidden": row, "first_scored": first_scored}, {"last": last, "logits": scores[UPPER_ROLE]}
        ),
        WRITE_ACTIONS_ROLE: heads[WRITE_ACTIONS_ROLE].bind({"last": last}, {"logits": scores[WRITE_ACTIONS_ROLE]}),
    }
    num = _compare(runs, row, scores, states)
    times = interleave(
        {
            "all": _repeated(runs[UPPER_ROLE], _CALLS // 10),
            "actions": _repeated(runs[WRITE_ACTIONS_ROLE], _CALLS),
        },
        config.rounds,
    )
    whole = {kind: [10 * value for value in getattr(times["all"], kind)] for kind in ("cpu_s", "wall_s")}
    return Row(
        bench="head",
        name=f"{_COUNT} of {_VOCAB} rows",
        ratio=ratio(whole["cpu_s"], times["actions"].cpu_s),
        wall=ratio(whole["wall_s"], times["actions"].wall_s),
        bar=_BAR,
        ours_ms=1e3 * spread(times["actions"].cpu_s).median / _CALLS,
        theirs_ms=1e3 * spread(whole["cpu_s"]).median / _CALLS,
        note=f"hidden {_SIZES.hidden}; the best token is the same in {num} states of the grammar",
    )


def _repeated(run: Callable[[], None], times: int) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(times):
            run()

    return repeat


def _compare(
    runs: dict[str, Callable[[], None]], row: FloatArray, scores: dict[str, FloatArray], states: FloatArray
) -> int:
    lengths = np.random.default_rng(1).integers(1, 9, _COUNT)
    lengths[0] = 1
    constraint = ActionConstraint(
        lengths,
        num_coefficients=40,
        action_start_id=_START,
        action_end_id=_END,
        first_action_id=_FIRST,
        lm_vocab_size=_VOCAB,
    )
    rows = slice(_FIRST, _FIRST + _COUNT)
    num = 0
    for state in states:
        row[0, 0] = state
        for run in runs.values():
            run()
        for remaining in range(1, constraint.num_coefficients + 1):
            mask = constraint.mask(remaining)
            best = int(np.where(mask, scores[UPPER_ROLE][0, 0], -np.inf).argmax())
            few = _FIRST + int(np.where(mask[rows], scores[WRITE_ACTIONS_ROLE][0, 0], -np.inf).argmax())
            if best != few:
                raise CheckFailed(f"with {remaining} coefficients left, token {few} of the few rows is not {best}")
            num += 1
    return num
