"""Length-constrained decoding: every sequence it lets through decodes, and its two versions agree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from roboalign.sdk.constraint import OUTSIDE, ActionConstraint
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.fast import FastCodec

START, END, FIRST, PADDING = 2, 3, 7, 5


def build_codec() -> FastCodec:
    """Smooth random walks: a vocabulary with tokens of many lengths."""
    rng = np.random.default_rng(0)
    chunks = np.cumsum(rng.normal(size=(400, 8, 5)), axis=1) / 8
    return FastCodec.fit(chunks, rate_hz=10, vocab_size=256)


def build(token_lengths, num_coefficients: int) -> ActionConstraint:
    return ActionConstraint(
        token_lengths,
        num_coefficients=num_coefficients,
        action_start_id=START,
        action_end_id=END,
        first_action_id=FIRST,
        lm_vocab_size=FIRST + len(token_lengths) + PADDING,
    )


CODEC = build_codec()
CONSTRAINT = build(CODEC.token_lengths, CODEC.num_coefficients)
SMALL = build([1, 1, 2, 3], 4)
small_ids = st.integers(0, FIRST + 4 + PADDING - 1) | st.sampled_from([START, END, FIRST, FIRST + 2, FIRST + 3])


def sample_spans(count: int, seed: int) -> NDArray[np.int64]:
    """Returns int64[count, steps] spans at temperature 1 under random logits: action tokens, then END repeated."""
    rng = np.random.default_rng(seed)
    weights_RV = np.exp(2 * rng.normal(size=CONSTRAINT.table.shape)) * CONSTRAINT.table
    cumulative_RV = np.cumsum(weights_RV, axis=1) / weights_RV.sum(axis=1, keepdims=True)
    # Row r is shifted by r, so that one sorted array answers for every state at once.
    ladder = (cumulative_RV + np.arange(len(cumulative_RV))[:, None]).reshape(-1)
    state = np.full(count, CONSTRAINT.start())
    steps = []
    while (state != OUTSIDE).any():
        place = np.searchsorted(ladder, state + rng.random(count), side="right")
        token = np.where(state == OUTSIDE, END, place - np.maximum(state, 0) * weights_RV.shape[1])
        state = CONSTRAINT.mask_rows(np.stack([np.full(count, START), *steps, token], axis=1))[:, -1]
        steps.append(token)
    return np.stack(steps, axis=1)


def count_malformed(spans: NDArray[np.int64]) -> int:
    malformed = 0
    for span in spans.tolist():
        body, rest = span[: span.index(END)], span[span.index(END) :]
        decoded = CODEC.decode([token - FIRST for token in body])
        malformed += decoded.status != "ok" or set(rest) != {END}
    return malformed


def test_none_of_a_hundred_thousand_constrained_samples_is_malformed():
    assert sum(count_malformed(sample_spans(10_000, seed)) for seed in range(10)) == 0


def test_samples_vary_and_use_long_tokens_too():
    spans = sample_spans(500, seed=1)
    assert len({tuple(span) for span in spans.tolist()}) == 500
    assert CONSTRAINT.lengths[spans].max() == CODEC.token_lengths.max()


def test_without_the_constraint_most_samples_are_malformed():
    """The measure itself: the same tokens, chosen without looking at what is left, rarely fit."""
    rng = np.random.default_rng(0)
    spans = [rng.integers(0, CODEC.vocab_size, rng.integers(5, 30)).tolist() for _ in range(500)]
    assert np.mean([CODEC.decode(span).status == "ok" for span in spans]) < 0.2


def step_through(constraint: ActionConstraint, ids: list[int]) -> list[int]:
    states, state = [], OUTSIDE
    for token in ids:
        state = constraint.advance(state, token)
        states.append(state)
    return states


@given(st.lists(st.lists(small_ids, min_size=12, max_size=12), min_size=1, max_size=4))
def test_stepping_and_the_vectorised_version_agree(rows):
    np.testing.assert_array_equal(SMALL.mask_rows(rows), [step_through(SMALL, row) for row in rows])


@given(st.lists(small_ids, min_size=1, max_size=20))
def test_the_mask_of_a_sequence_is_that_of_its_last_state(ids):
    state, mask = step_through(SMALL, ids)[-1], SMALL.allowed(ids)
    assert (mask is None) == (state == OUTSIDE)
    if mask is not None:
        np.testing.assert_array_equal(mask, SMALL.mask(state))


@given(st.lists(small_ids, max_size=20))
def test_a_token_stays_in_the_span_exactly_when_it_is_allowed(ids):
    state = SMALL.start()
    for token in (token for token in ids if token not in (START, END)):
        allowed, after = bool(SMALL.mask(state)[token]), SMALL.advance(state, token)
        assert allowed == (after != OUTSIDE)
        state = after if allowed else state


def test_the_encoding_of_a_chunk_is_allowed_at_every_step():
    chunks = np.cumsum(np.random.default_rng(1).normal(size=(50, 8, 5)), axis=1) / 8
    for ids in CODEC.encode_many(chunks):
        row = [START, *(token + FIRST for token in ids), END]
        states = CONSTRAINT.mask_rows([row])[0]
        assert CONSTRAINT.table[states[:-1], row[1:]].all()
        assert states[-2:].tolist() == [0, OUTSIDE]


@pytest.mark.parametrize("remaining", range(5))
def test_every_state_has_a_way_on(remaining):
    assert SMALL.mask(remaining).any()


@pytest.mark.parametrize(
    ("remaining", "allowed"),
    [(0, [END]), (1, [FIRST, FIRST + 1]), (2, [FIRST, FIRST + 1, FIRST + 2]), (4, [*range(FIRST, FIRST + 4)])],
)
def test_only_tokens_that_fit_are_allowed(remaining, allowed):
    assert np.flatnonzero(SMALL.mask(remaining)).tolist() == allowed


def test_outside_a_span_everything_is_allowed():
    assert SMALL.mask(OUTSIDE).all()
    assert SMALL.allowed([]) is None
    assert SMALL.allowed([START, FIRST + 3, FIRST, END]) is None


def test_the_masks_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        SMALL.mask(0)[END] = False


@pytest.mark.parametrize(
    "changes",
    [
        {"token_lengths": []},
        {"token_lengths": [2, 3]},
        {"token_lengths": [0, 1]},
        {"num_coefficients": 0},
        {"action_start_id": 8},
        {"action_end_id": 99},
        {"action_end_id": 2},
        {"first_action_id": 19},
        {"first_action_id": -1},
    ],
)
def test_ids_and_lengths_that_cannot_be_right_are_refused(changes):
    values = {
        "token_lengths": [1, 2],
        "num_coefficients": 4,
        "action_start_id": 2,
        "action_end_id": 3,
        "first_action_id": 7,
        "lm_vocab_size": 20,
    }
    with pytest.raises(ConfigError):
        ActionConstraint(**{**values, **changes})


@pytest.mark.parametrize("ids", [[[START, -100]], [[START, 10**6]], [START]])
def test_ids_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(DataError, match="ids must be"):
        SMALL.mask_rows(ids)
