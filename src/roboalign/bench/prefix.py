"""`bench prefix`: a prompt of which the last fifth is new, read with what the prompt before left, and read whole.

New are the picture, the words before it and the flags behind it. `first action` goes on to the flow head.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from roboalign.bench.models import bench_model, make_prompt, work_folder
from roboalign.bench.rows import BenchConfig, BenchResult, Row, make_result
from roboalign.bench.timing import interleave, ratio, spread
from roboalign.sdk.backends import Decoding
from roboalign.sdk.backends.in_place import InPlaceBackend
from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.types import FloatArray

__all__ = ["run_prefix"]

_BAR = 4.0
_TOKENS, _NEW = 200, 40
_MOST_DIFFERENCE = 1e-5


def run_prefix(config: BenchConfig, say: Callable[[str], None]) -> BenchResult:
    """Measures every size in every precision.

    Raises:
        CheckFailed: scores differ by more than rounding.
    """
    torch.set_num_threads(config.threads)
    rows: list[Row] = []
    with work_folder(config.work) as work:
        for size in config.sizes:
            for precision in config.precisions:
                say(f"prefix: {size} in {precision}")
                rows += _measure(size, precision, config, work)
    return make_result(rows, config.threads)


def _measure(size: str, precision: str, config: BenchConfig, work: Path) -> list[Row]:
    made = bench_model(size, precision, work)
    backends = [InPlaceBackend.open(made.bundle, threads=config.threads) for _ in range(2)]
    try:
        kept, whole = (_Reader(backend) for backend in backends)
        kept.read(0, has_same_start=True)
        differences = [_difference(kept, whole, index) for index in range(1, 4)]
        if not max(differences) <= _MOST_DIFFERENCE:
            raise CheckFailed(
                f"{made.name}: scores differ by {max(differences):.2g} of the largest where a prompt is read on, "
                f"expected at most {_MOST_DIFFERENCE:g}"
            )
        times = interleave(
            {
                "kept": lambda: kept.next(has_same_start=True),
                "whole": lambda: whole.next(has_same_start=False),
                "kept action": lambda: kept.act(has_same_start=True),
                "whole action": lambda: whole.act(has_same_start=False),
            },
            config.rounds,
        )
    finally:
        for backend in backends:
            backend.close()
    rows = []
    for what, end in (("prompt", ""), ("first action", " action")):
        ours, theirs = times[f"kept{end}"], times[f"whole{end}"]
        rows.append(
            Row(
                bench="prefix",
                name=f"{made.name} {what}",
                ratio=ratio(theirs.cpu_s, ours.cpu_s),
                wall=ratio(theirs.wall_s, ours.wall_s),
                bar=_BAR if size == "52M" and precision == "fp32" else None,
                ours_ms=1e3 * spread(ours.cpu_s).median,
                theirs_ms=1e3 * spread(theirs.cpu_s).median,
                note=f"{_NEW} of {_TOKENS} tokens new, scores differ by {max(differences):.1g} of the largest at most",
            )
        )
    return rows


def _difference(kept: _Reader, whole: _Reader, index: int) -> float:
    found = kept.read(index, has_same_start=True).logits.copy()
    expected = whole.read(index, has_same_start=True, is_anew=True).logits
    return float(np.abs(found - expected).max() / np.abs(expected).max())


class _Reader:
    """Reads prompts that begin alike, or that differ from their first word on."""

    def __init__(self, backend: InPlaceBackend) -> None:
        self._backend = backend
        self._index = 100
        spec = backend.spec
        rng = np.random.default_rng(0)
        self._pictures: FloatArray = rng.standard_normal((2, 3, spec.image_size_px, spec.image_size_px), np.float32)
        self._state = np.zeros(len(spec.state_names), np.float32)
        self._noise: FloatArray = rng.standard_normal((spec.horizon, len(spec.action_names)), np.float32)

    def read(self, index: int, *, has_same_start: bool, is_anew: bool = False) -> Decoding:
        if is_anew:
            self._backend.forget()
        old = make_prompt(_TOKENS, seed=0 if has_same_start else index)
        new = make_prompt(_TOKENS, seed=1000 + index)
        ids = old[: _TOKENS - _NEW] + new[_TOKENS - _NEW :]
        return self._backend.prefill(ids, self._pictures[index % 2])

    def next(self, *, has_same_start: bool) -> None:
        self._index += 1
        self.read(self._index, has_same_start=has_same_start)

    def act(self, *, has_same_start: bool) -> None:
        self._index += 1
        decoding = self.read(self._index, has_same_start=has_same_start)
        self._backend.flow(decoding, self._state, self._noise)
