"""Does a bundle do what PyTorch does with the same weight bytes? Both sides act on the same observations.

The reference reads the bundle's own safetensors, upcast to float32, and recomputes the hidden states of every
sequence in one pass, as in training; the bundle decodes incrementally through its graphs. Compared are the thoughts
and action tokens (equal, token for token) and the actions of the flow head (as a share of each field's range). A
comparison in which nothing varies proves nothing, so too few different tokens, answers or actions are a failure too.
A few of the answers stay in the bundle, part by part (`export/vectors.py`), for whoever verifies it elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign.export.vectors import (
    NUM_VECTORS,
    VECTORS_NAME,
    VectorErrors,
    answer_vectors,
    draw_noise,
    find_faults,
    measure_errors,
)
from roboalign.sdk.bundle import ParityRecord, Thresholds, read_bundle
from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import ActionChunk, FloatArray, Observation

__all__ = ["MIN_DISTINCT_TOKENS", "check_parity", "record_vectors", "simulated_observations"]

MIN_DISTINCT_TOKENS = 8
"""Fewer different tokens than this among all that were compared is a vacuous comparison."""

_MIN_SEQUENCE_SHARE = 1 / 8
"""At least this share of the observations must lead to different answers."""

_MIN_SPREAD_RATIO = 100.0
"""The actions must vary over the observations by this many tolerances."""

_FIRST_SEED = 500_000
"""Scenes of the comparison: far behind those of any evaluation in the same stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answers:
    chunks: list[ActionChunk]
    token_rows: list[tuple[int, ...]]

    @property
    def actions(self) -> FloatArray:
        return np.stack([chunk.actions for chunk in self.chunks])


def simulated_observations(count: int, robot: str = "") -> list[Observation]:
    """Returns observations of `count` moments in held-out simulated scenes, with pictures.

    They are of the arm that is named, placing things; without one that is simulated, of the Panda in all families.
    """
    from roboalign.sdk.sim.env import SimEnv
    from roboalign.sdk.sim.expert import expert_action
    from roboalign.sdk.sim.robots import ROBOTS
    from roboalign.sdk.sim.seeds import eval_seed

    moments, steps_between = 4, 6
    found: list[Observation] = []
    is_other = robot in ROBOTS and robot != "panda"
    env = SimEnv(task="place", robot=robot) if is_other else SimEnv(task="mix")
    try:
        for scene in range(-(-count // moments)):
            env.reset(seed=eval_seed(_FIRST_SEED + scene))
            for _ in range(moments):
                found.append(env.observe(with_image=True))
                for _ in range(steps_between):
                    env.advance(expert_action(env.truth()))  # goes on where the scene is solved already
    finally:
        env.close()
    return found[:count]


def check_parity(
    bundle: Path, observations: Sequence[Observation], *, tolerance: float, inputs: str, threads: int = 1
) -> ParityRecord:
    """Returns how far a bundle is from PyTorch.

    Args:
        bundle: complete folder, its manifest included.
        observations: what both sides answer.
        tolerance: largest accepted difference of an action, as a share of its field's range.
        inputs: where the observations come from, for the record.
        threads: CPU threads of either side.

    Raises:
        CheckFailed: the two differ, or the comparison proves nothing.
    """
    ours = _answers(bundle, "onnx", observations, threads)
    theirs = _answers(bundle, "torch", observations, threads)
    for index, (mine, reference) in enumerate(zip(ours.token_rows, theirs.token_rows, strict=True)):
        if mine != reference:
            place = next((i for i, (a, b) in enumerate(zip(mine, reference)) if a != b), min(len(mine), len(reference)))  # noqa: B905 - may differ in length
            raise CheckFailed(
                f"parity failed: answer {index} differs from PyTorch's at token {place} of {len(reference)}"
            )
    span = _action_span(bundle)
    difference = float((np.abs(ours.actions - theirs.actions) / span).max())
    if not difference <= tolerance:
        raise CheckFailed(
            f"parity failed: actions differ from PyTorch's by {difference:.2g} of their range, "
            f"at most {tolerance:.2g} is accepted"
        )
    record = ParityRecord(
        num_observations=len(observations),
        max_action_error=difference,
        tolerance=tolerance,
        action_spread=float((np.ptp(theirs.actions, axis=0) / span).max()),
        num_tokens=sum(map(len, theirs.token_rows)),
        num_distinct_tokens=len({token for row in theirs.token_rows for token in row}),
        num_distinct_sequences=len(set(theirs.token_rows)),
        inputs=inputs,
    )
    _check_it_proves_something(record)
    return record


def record_vectors(
    bundle: Path, observations: Sequence[Observation], thresholds: Thresholds, *, threads: int = 1
) -> VectorErrors:
    """Writes PyTorch's answers into a bundle and returns how far its graphs are from them.

    Raises:
        CheckFailed: they are further than is accepted, or something was not measured.
    """
    spec = read_bundle(bundle).manifest.policy
    few = observations[:NUM_VECTORS]
    stored = answer_vectors(bundle, "torch", few, draw_noise(len(few), spec), threads=threads)
    stored.save(bundle / VECTORS_NAME)
    errors = measure_errors(bundle, spec, "onnx", threads=threads)
    if faults := find_faults(errors, thresholds):
        raise CheckFailed(f"parity failed: {'; '.join(faults)}")
    return errors


def _answers(bundle: Path, backend: str, observations: Sequence[Observation], threads: int) -> _Answers:
    with Policy.load(bundle, backend=backend, threads=threads) as policy:
        chunks = [policy.act(observation) for observation in observations]
    with Policy.load(bundle, backend=backend, actions="fast", think=False, threads=threads) as policy:
        quick = [policy.act(observation) for observation in observations]
    held = [chunk.reason for chunk in (*chunks, *quick) if chunk.source == "hold"]
    if held:
        raise CheckFailed(
            f"parity cannot be checked: {len(held)} answers of the {backend} backend are holds, first: {held[0]}"
        )
    return _Answers(chunks=chunks, token_rows=[a.tokens + b.tokens for a, b in zip(chunks, quick, strict=True)])


def _action_span(bundle: Path) -> FloatArray:
    spec = read_bundle(bundle).manifest.policy
    return np.asarray(spec.action_high, np.float32) - np.asarray(spec.action_low, np.float32)


def _check_it_proves_something(record: ParityRecord) -> None:
    sequences = max(2, int(record.num_observations * _MIN_SEQUENCE_SHARE))
    for what, found, expected in (
        ("different tokens", record.num_distinct_tokens, MIN_DISTINCT_TOKENS),
        ("different answers", record.num_distinct_sequences, sequences),
        ("tolerances of spread in the actions", record.action_spread / record.tolerance, _MIN_SPREAD_RATIO),
    ):
        if found < expected:
            raise CheckFailed(
                f"parity proves nothing: {found:.3g} {what} over {record.num_observations} observations, "
                f"expected at least {expected:.3g}; the model answers everything alike, train it further"
            )
