"""Do engines do what onnxruntime does with the graphs that they were built from? Both act on the bundle's observations.

Thoughts and action tokens have to be equal, as far as `export/parity.py` asks of the same arithmetic: all of them in
float32, a stated share in float16, where scores tie. Actions of the flow head are compared where the words are equal,
field by field, in the field's own unit, and against the field's range. What was not measured is a failure, and so is a
comparison in which nothing varies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from roboalign.export.parity import BARS, MIN_DISTINCT_TOKENS, compare_tokens
from roboalign.export.vectors import action_difference
from roboalign.sdk.backends import Backend
from roboalign.sdk.bundle import Bundle, PolicySpec
from roboalign.sdk.engines import EngineParity
from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import ActionChunk, FloatArray, Observation

__all__ = ["TOLERANCE", "compare_engines"]

TOLERANCE = 0.01
"""Largest accepted difference of an action, as a share of its field's range: the noise of 16-bit kernels is below."""

_MIN_SPREAD = 10 * TOLERANCE
"""Actions that vary less over the observations could not show a difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answers:
    actions: FloatArray
    token_rows: list[tuple[int, ...]]
    act_s: float


def compare_engines(
    bundle: Bundle,
    observations: Sequence[Observation],
    open_engines: Callable[[], Backend],
    open_reference: Callable[[], Backend],
) -> EngineParity:
    """Returns how far engines are from onnxruntime.

    Raises:
        CheckFailed: they differ, something was not measured, or the comparison proves nothing.
    """
    if len(observations) < 2:
        raise CheckFailed(f"engines are compared on 2 or more observations, the bundle has {len(observations)}")
    spec = bundle.manifest.policy
    ours = _answers("tensorrt", spec, open_engines, observations)
    theirs = _answers("onnx", spec, open_reference, observations)
    differing, equal = compare_tokens(ours.token_rows, theirs.token_rows)
    min_equal = BARS[bundle.manifest.arithmetic].min_equal_tokens
    if equal < min_equal:
        index, place = differing[0]
        raise CheckFailed(
            f"engines fail: answer {index} differs from onnxruntime's at token {place} of "
            f"{len(theirs.token_rows[index])}; {equal:.1%} of the tokens are equal, expected at least {min_equal:.0%}"
        )
    others = {index for index, _ in differing}
    is_same = [index not in others for index in range(len(observations))]
    if sum(is_same) < 2:
        raise CheckFailed(
            f"engines fail: {sum(is_same)} of {len(observations)} answers have the same words as onnxruntime's, "
            "expected 2 or more to compare actions on"
        )
    span = np.asarray(spec.action_high, np.float32) - np.asarray(spec.action_low, np.float32)
    errors = np.abs(ours.actions - theirs.actions)[is_same]
    quantile = BARS[bundle.manifest.arithmetic].action_quantile
    record = EngineParity(
        num_observations=len(observations),
        num_tokens=sum(map(len, theirs.token_rows)),
        equal_tokens=equal,
        num_distinct_tokens=len({token for row in theirs.token_rows for token in row}),
        num_distinct_sequences=len(set(theirs.token_rows)),
        max_action_error=action_difference(errors / span, 1.0),
        tolerance=TOLERANCE,
        action_errors={
            name: float(error) for name, error in zip(spec.action_names, errors.max(axis=(0, 1)), strict=True)
        },
        action_unit=bundle.manifest.graphs["flow"].outputs[0].unit,
        median_act_s={"tensorrt": ours.act_s, "onnx": theirs.act_s},
    )
    typical = np.quantile(errors, quantile, axis=(0, 1))
    worst = int((typical / span).argmax())
    if not typical[worst] <= TOLERANCE * span[worst]:
        raise CheckFailed(
            f"engines fail: {spec.action_names[worst]} differs from onnxruntime's by {typical[worst]:.3g}, "
            f"{typical[worst] / span[worst]:.2%} of its range, at most {TOLERANCE:.2%} is accepted"
        )
    _check_it_proves_something(record, float((np.ptp(theirs.actions, axis=0) / span).max()))
    return record


def _answers(
    name: str, spec: PolicySpec, open_backend: Callable[[], Backend], observations: Sequence[Observation]
) -> _Answers:
    with Policy(open_backend()) as policy:
        chunks = [policy.act(observation) for observation in observations]
    quick = _quick(open_backend, observations) if spec.has_actions else chunks
    held = [chunk.reason for chunk in (*chunks, *quick) if chunk.source == "hold"]
    if held:
        raise CheckFailed(f"engines cannot be compared: {len(held)} answers of {name} are holds, first: {held[0]}")
    rows = [a.tokens + b.tokens for a, b in zip(chunks, quick, strict=True)]
    if not all(rows):
        raise CheckFailed(f"engines cannot be compared: {name} wrote no token for an observation")
    return _Answers(
        actions=np.stack([chunk.actions for chunk in chunks]),
        token_rows=rows,
        act_s=float(np.median([chunk.latency_s["total"] for chunk in chunks])),
    )


def _quick(open_backend: Callable[[], Backend], observations: Sequence[Observation]) -> list[ActionChunk]:
    actions: Literal["fast"] = "fast"
    with Policy(open_backend(), actions=actions, think=False) as policy:
        return [policy.act(observation) for observation in observations]


def _check_it_proves_something(record: EngineParity, spread: float) -> None:
    for what, found, expected in (
        ("different tokens", record.num_distinct_tokens, MIN_DISTINCT_TOKENS),
        ("different answers", record.num_distinct_sequences, 2),
        ("spread of the actions", spread, _MIN_SPREAD),
    ):
        if not found >= expected:
            raise CheckFailed(
                f"the comparison of engines proves nothing: {found:.3g} {what} over {record.num_observations} "
                f"observations, expected at least {expected:.3g}"
            )
