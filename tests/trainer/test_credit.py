"""What each token of a reply is paid."""

import numpy as np
import pytest
import torch

from roboalign.sdk.reply import ReplyTokens
from roboalign.trainer.credit import token_advantages

TOKENS = ReplyTokens(
    think_open=0,
    think_close=1,
    answer_open=2,
    answer_close=3,
    action_start=4,
    action_end=5,
    first_action=10,
    num_action=4,
    eos=6,
)
WHOLE = torch.tensor([1.0, -1.0])
REPLIES = ([0, 7, 1, 2, 4, 10, 11, 5, 3, 6], [0, 7, 8, 1, 2, 4, 12, 11, 5, 3, 6])


def pay(shares, whole=WHOLE, replies=REPLIES, length=12) -> torch.Tensor:
    return token_advantages(whole, replies, shares, TOKENS, group=2, length=length)


def test_action_tokens_are_compared_place_by_place_and_the_rest_keeps_the_reply() -> None:
    paid = pay([np.array([0.3, 0.1]), np.array([0.1, 0.1])])
    unit = 2**0.5  # gains of +-.1 at one place and 0 at the other have a root mean square of .1 / sqrt 2
    assert paid[0].tolist() == pytest.approx([1, 1, 1, 1, 1, unit, 0, 1, 1, 1, 1, 1])
    assert paid[1].tolist() == pytest.approx([-1, -1, -1, -1, -1, -1, -unit, 0, -1, -1, -1, -1])


def test_the_scale_of_the_reward_does_not_matter() -> None:
    shares = [np.array([0.3, 0.2]), np.array([0.1, 0.4])]
    assert torch.allclose(pay(shares), pay([100 * share for share in shares]))


def test_a_place_that_one_reply_has_is_compared_with_nothing() -> None:
    replies = (REPLIES[0], [0, 7, 1, 2, 4, 12, 5, 3, 6])
    paid = pay([np.array([0.3, 0.9]), np.array([0.1])], replies=replies)
    assert paid[0, 6] == 0
    assert paid[0, 5] == -paid[1, 5] > 0


def test_replies_that_do_not_decode_keep_their_own_advantage() -> None:
    paid = pay([np.array([0.3, 0.1]), None])
    assert torch.equal(paid, WHOLE[:, None].repeat(1, 12))


def test_equal_actions_learn_nothing_from_their_tokens() -> None:
    paid = pay([np.array([0.2, 0.1]), np.array([0.2, 0.1])])
    assert paid[0, 5] == paid[0, 6] == 0
    assert paid[0, 0] == 1
