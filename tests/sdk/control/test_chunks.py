"""Chunks that overlap: which action comes next, what a delay may be, and how seams are measured."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.sdk.control.chunks import (
    CHUNK_STRATEGIES,
    ChunkQueue,
    DelayEstimate,
    Seam,
    Seams,
    blend_weights,
    pool_seams,
)
from roboalign.sdk.errors import ConfigError


def chunk(*values: float) -> np.ndarray:
    actions = np.zeros((len(values), 5), np.float32)
    actions[:, 0] = values
    return actions


def take(queue: ChunkQueue, count: int) -> list[float | None]:
    actions = [queue.next() for _ in range(count)]
    return [None if action is None else round(float(action[0]), 4) for action in actions]


@pytest.mark.parametrize("strategy", CHUNK_STRATEGIES)
def test_one_chunk_alone_is_given_out_as_it_is(strategy):
    queue = ChunkQueue(strategy)
    queue.add(chunk(1, 2, 3), made_at=0)
    assert queue.num_left == 3
    assert take(queue, 4) == [1, 2, 3, None]
    assert (queue.count, queue.num_left) == (3, 0)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("hold", [3, 4, 13, 14, None]),
        ("switch", [11, 12, 13, 14, None]),
        ("ensemble", [6.98, 7.98, 13, 14, None]),  # the older one weighs exp(0.01) times as much
        ("blend", [8.0584, 11.3860, 13, 14, None]),  # weights 0.3677 and 0.0768 of the old one
    ],
)
def test_a_late_chunk_goes_on_where_it_would_be_by_now(strategy, expected):
    """It was made after one action and comes after two: its first action is over, and two overlap the old chunk."""
    queue = ChunkQueue(strategy)
    queue.add(chunk(1, 2, 3, 4), made_at=0)
    take(queue, 2)
    queue.add(chunk(10, 11, 12, 13, 14), made_at=1)
    assert take(queue, 5) == [None if value is None else pytest.approx(value, abs=1e-3) for value in expected]


def test_ticks_without_an_action_do_not_age_a_chunk():
    queue = ChunkQueue("switch")
    made_at = queue.count
    assert take(queue, 3) == [None, None, None]
    queue.add(chunk(1, 2), made_at=made_at)
    assert take(queue, 2) == [1, 2]


def test_a_chunk_that_is_wholly_over_is_dropped():
    queue = ChunkQueue("switch")
    queue.add(chunk(1, 2, 3, 4), made_at=0)
    take(queue, 3)
    queue.add(chunk(10, 11), made_at=0)
    assert take(queue, 2) == [4, None]


def test_what_is_cleared_does_not_come_back():
    queue = ChunkQueue("ensemble")
    queue.add(chunk(1, 2, 3), made_at=0)
    queue.clear()
    assert take(queue, 1) == [None]


def test_the_seam_is_the_first_action_of_another_chunk():
    queue = ChunkQueue("switch")
    queue.add(chunk(1, 2, 3), made_at=0)
    seams = []
    for tick in range(5):
        if tick == 2:
            queue.add(chunk(10, 11, 12), made_at=1)
        queue.next()
        seams.append(queue.is_seam)
    assert seams == [False, False, True, False, False]


def test_behind_a_hold_there_is_no_seam():
    queue = ChunkQueue("hold")
    queue.add(chunk(1), made_at=0)
    take(queue, 2)
    queue.add(chunk(5), made_at=1)
    queue.next()
    assert not queue.is_seam


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 30))
def test_the_soft_mask_keeps_what_is_committed_and_falls(num_actions, overlap, delay):
    overlap, delay = min(overlap, num_actions), min(delay, overlap)
    weights = blend_weights(num_actions, overlap, delay)
    assert (weights[:delay] == 1.0).all()
    assert (weights[overlap:] == 0.0).all()
    assert (np.diff(weights) <= 1e-6).all()
    assert ((weights >= 0.0) & (weights <= 1.0)).all()


def test_an_unknown_strategy_is_named():
    with pytest.raises(ConfigError, match="unknown chunk strategy 'blnd'; did you mean blend"):
        ChunkQueue("blnd")


def test_the_delay_is_a_percentile_of_what_is_recent():
    delay = DelayEstimate(window=50)
    assert (delay.p99_s, delay.steps(10.0)) == (0.0, 0)
    delay.add(3.0)
    for _ in range(49):
        delay.add(0.2)
    assert 0.2 < delay.p99_s < 3.0
    assert delay.steps(10.0) > 2
    delay.add(0.2)
    assert (round(delay.p99_s, 6), delay.steps(10.0)) == (0.2, 2)


@pytest.mark.parametrize(("latency_s", "is_refused"), [(0.69, False), (0.70, False), (0.71, True), (0.9, True)])
def test_a_delay_that_leaves_nothing_of_a_chunk_is_refused(latency_s, is_refused):
    delay = DelayEstimate()
    delay.add(latency_s)
    refusal = delay.refusal(8, 10.0)
    assert (refusal is not None) == is_refused
    if refusal is not None:
        assert f"an answer takes {latency_s:.2f} s" in refusal
        assert "its 8 actions at 10 Hz cover 0.80 s" in refusal


def test_seams_are_measured_against_the_steps_inside_chunks():
    seams = Seams()
    for value, is_seam in ((0.0, False), (0.1, False), (0.2, False), (0.5, True), (0.6, False)):
        seams.add(chunk(value)[0], np.full(7, 2 * value), is_seam=is_seam)
    result = seams.result()
    assert (result["velocity"].num_within, result["velocity"].num_across) == (3, 1)
    assert result["velocity"].ratio == pytest.approx(3.0)
    assert result["joint"].across == pytest.approx(0.6)
    assert math.isnan(result["gripper"].ratio)


def test_behind_a_hold_nothing_is_compared():
    seams = Seams()
    seams.add(chunk(1.0)[0], is_seam=False)
    seams.add(None, is_seam=False)
    seams.add(chunk(9.0)[0], is_seam=True)
    assert seams.result() == {}


def test_runs_are_pooled_by_their_counts():
    one = {"velocity": Seam(num_within=1, within=1.0, num_across=2, across=4.0)}
    two = {"velocity": Seam(num_within=3, within=2.0, num_across=0, across=0.0)}
    pooled = pool_seams([one, two, {}])["velocity"]
    assert (pooled.num_within, pooled.within, pooled.num_across, pooled.across) == (4, 1.75, 2, 4.0)
