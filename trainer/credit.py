"""Which token earned what: advantages for each token of a reply instead of one for all of them.

GRPO gives every token of a reply the advantage of the whole reply. A chunk of forty action tokens then learns from one
number, and each token's signal drowns in the noise of the other thirty-nine. Where a reward is a sum over coefficients
(`RewardRule.shares`), it is known what each action token was worth, and a token is compared with the tokens at the same
place of the other replies to the prompt. Thoughts, markers and replies that do not decode keep the reply's advantage:
a thought is still paid by the accuracy of the whole action that it leads to (paper, section 3.2).

This is not in the paper. It leaves out what a token does for the tokens behind it, which is little where a coefficient
is right or wrong by itself, and much where merges make one token shift all that follow.

Shape suffixes: B replies (groups side by side), T tokens of the longest reply.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from roboalign.sdk.reply import ReplyTokens

__all__ = ["token_advantages"]


def token_advantages(
    advantages_B: torch.Tensor,
    replies: Sequence[Sequence[int]],
    shares: Sequence[NDArray[np.float64] | None],
    tokens: ReplyTokens,
    *,
    group: int,
    length: int,
) -> torch.Tensor:
    """Returns float32[B, T]: the advantage of every token.

    Args:
        advantages_B: float32[B], of whole replies, as GRPO computes them.
        replies: token ids, groups side by side.
        shares: what each action token of a reply was worth; None for a reply that does not decode.
        tokens: ids of the markers.
        group: replies to a prompt.
        length: T, places of the result.

    The action tokens of a group have a root mean square of 1, whatever the reward's scale, like whole replies.
    """
    result_BT = advantages_B.float()[:, None].repeat(1, length)
    for start in range(0, len(replies), group):
        members = [i for i in range(start, start + group) if shares[i] is not None]
        if len(members) < 2:
            continue
        longest = max(len(_known(shares[i])) for i in members)
        earned = np.full((len(members), longest), np.nan)
        for place, i in enumerate(members):
            earned[place, : len(_known(shares[i]))] = shares[i]
        # A place that a single reply has is compared with nothing.
        gain = np.nan_to_num(earned - np.nanmean(earned, axis=0, keepdims=True))
        scale = np.sqrt(np.mean(gain[~np.isnan(earned)] ** 2))
        for place, i in enumerate(members):
            first = list(replies[i]).index(tokens.action_start) + 1
            count = len(_known(shares[i]))
            values = gain[place, :count] / scale if scale > 1e-9 else np.zeros(count)
            result_BT[i, first : first + count] = torch.from_numpy(values).to(result_BT)
    return result_BT


def _known(shares: NDArray[np.float64] | None) -> NDArray[np.float64]:
    assert shares is not None
    return shares
