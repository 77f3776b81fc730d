import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.reply import ReplyTokens, write_reply_ids
from roboalign.trainer.rewards import (
    Demonstration,
    ReplyScore,
    RewardCase,
    RewardWeights,
    action_error,
    common_prefix_share,
    score_reply,
    total_reward,
)

TABLE = tiny.frames(16)
CODEC = tiny.codec_of(TABLE)
TOKENS = ReplyTokens(
    think_open=1,
    think_close=2,
    answer_open=3,
    answer_close=4,
    action_start=5,
    action_end=6,
    first_action=10,
    num_action=CODEC.vocab_size,
    eos=0,
)
WORD = 7
CHUNK = TABLE.chunks[0].copy()
CHUNK[:, :2] += 0.008 * np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
TARGET = tuple(CODEC.encode(CHUNK))
CASE = RewardCase(codec=CODEC, target=Demonstration.of(CHUNK, CODEC))


def score(*, actions: tuple[int, ...] = TARGET, thought: tuple[int, ...] | None = (WORD,), cut: int = 0) -> ReplyScore:
    ids = write_reply_ids(thought, TOKENS, action_ids=actions)
    return score_reply(ids[: len(ids) - cut], TARGET, CHUNK, codec=CODEC, tokens=TOKENS)


def test_the_target_is_worth_looking_at() -> None:
    assert len(TARGET) >= 4
    assert len(set(TARGET)) > 1


@pytest.mark.parametrize(
    ("generated", "target", "share"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 1.0),
        ([1, 2, 9, 4], [1, 2, 3, 4], 0.5),
        ([9, 2, 3, 4], [1, 2, 3, 4], 0.0),
        ([], [1, 2, 3, 4], 0.0),
        ([1, 2], [1, 2, 3, 4], 0.5),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4], 1.0),
        ([1], [1], 1.0),
        ([2, 1], [1, 2], 0.0),
    ],
)
def test_common_prefix_share_golden_table(generated: list[int], target: list[int], share: float) -> None:
    """The paper's r_a; the empty match is 0, and tokens behind the target cost nothing."""
    assert common_prefix_share(generated, target) == share


def test_an_empty_target_is_refused() -> None:
    with pytest.raises(DataError, match="no action tokens"):
        common_prefix_share([1], [])


WRONG_FIRST = ((TARGET[0] + 1) % CODEC.vocab_size, *TARGET[1:])
HALF = TARGET[: len(TARGET) // 2]
HALF_SHARE = len(HALF) / len(TARGET)
LONG = (*TARGET, 0)


@pytest.mark.parametrize(
    ("reply", "reward"),
    [
        ({}, 1.0),
        ({"actions": WRONG_FIRST}, 0.5),
        ({"actions": HALF}, 0.5 + HALF_SHARE / 2),
        ({"actions": LONG}, 1.0),
        ({"thought": None}, 0.5),
        ({"cut": 1}, 0.5),
        ({"actions": WRONG_FIRST, "thought": None}, 0.0),
    ],
    ids=["exact", "wrong first token", "short", "too long", "no thought", "no end", "nothing right"],
)
def test_prefix_reward_golden_table(reply: dict, reward: float) -> None:
    """r = (r_f + r_a) / 2 as published: an overlong reply that does not decode still earns 1."""
    assert total_reward(score(**reply), "prefix", CASE) == pytest.approx(reward)


def test_soft_reward_golden_table() -> None:
    exact = score()
    assert exact.error < 0.2
    assert total_reward(exact, "soft", CASE) == pytest.approx(0.75 + 0.25 * math.exp(-4 * exact.error))
    assert total_reward(score(actions=HALF), "soft", CASE) == pytest.approx(0.5 + 0.25 * HALF_SHARE)
    assert total_reward(score(actions=LONG), "soft", CASE) == pytest.approx(0.75)
    assert total_reward(score(thought=None), "soft", CASE) == pytest.approx(total_reward(exact, "soft", CASE) - 0.5)
    everything = RewardWeights(form=0.0, distance=1.0, prefix=0.0, sharpness=1.0)
    assert total_reward(exact, "soft", replace(CASE, weights=everything)) == pytest.approx(math.exp(-exact.error))


def test_soft_prefers_the_nearer_of_two_wrong_actions() -> None:
    near, far = CHUNK.copy(), CHUNK.copy()
    near[:, 0] += 0.004
    far[:, 0] -= 0.03
    scores = [score(actions=tuple(CODEC.encode(chunk))) for chunk in (near, far)]
    assert scores[0].error < scores[1].error
    assert total_reward(scores[0], "soft", CASE) > total_reward(scores[1], "soft", CASE)


def test_action_error_is_in_half_ranges() -> None:
    shifted = CHUNK + (CODEC.config.high - CODEC.config.low) / 2
    assert action_error(shifted, CHUNK, CODEC) == pytest.approx(1.0, rel=1e-4)
    assert action_error(CHUNK, CHUNK, CODEC) == 0.0


def test_a_malformed_reply_has_its_action_scored() -> None:
    found = score(cut=2)
    assert not found.is_well_formed
    assert found.is_decodable
    assert found.prefix == 1.0


def test_a_reply_without_thought_has_the_right_form_when_none_is_wanted() -> None:
    ids = write_reply_ids(None, TOKENS, action_ids=TARGET)
    found = score_reply(ids, TARGET, CHUNK, codec=CODEC, tokens=TOKENS, needs_thought=False)
    assert found.is_well_formed


def test_an_answer_in_words_is_not_well_formed() -> None:
    ids = write_reply_ids((WORD,), TOKENS, answer_ids=(WORD,))
    found = score_reply(ids, TARGET, CHUNK, codec=CODEC, tokens=TOKENS)
    assert (found.is_well_formed, found.is_decodable, found.prefix) == (False, False, 0.0)


@given(st.lists(st.integers(0, 10 + CODEC.vocab_size - 1), max_size=30), st.sampled_from(["prefix", "soft"]))
def test_any_ids_earn_a_reward_between_0_and_1(ids: list[int], reward: str) -> None:
    found = score_reply(ids, TARGET, CHUNK, codec=CODEC, tokens=TOKENS)
    assert 0.0 <= total_reward(found, reward, CASE) <= 1.0


def test_wrong_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        RewardWeights(form=0.9)
    with pytest.raises(ConfigError, match="sharpness"):
        RewardWeights(sharpness=0.0)
    with pytest.raises(ConfigError, match="prefix, gate, soft"):
        total_reward(score(), "pixels", CASE)
