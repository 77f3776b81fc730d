"""Rewards on token ids: pure functions, the same for TRL, for evaluation and for tests.

`prefix` is the paper's (section 3.2): r = (r_f + r_a) / 2, where r_f is 1 exactly when the reply has the required
form and r_a is the length of the common prefix of generated and demonstrated action tokens over the length of the
latter. The paper leaves r_a open when not even the first token agrees; here it is 0. Nothing behind the first
mismatch is rewarded, tokens behind the target are not punished, and a sequence that does not decode can score 1.

`soft` looks at the action instead: its distance part counts only for sequences that decode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.reply import ReplyTokens, find_action_ids, parse_reply_ids
from roboalign.sdk.types import FloatArray

__all__ = [
    "REWARDS",
    "ReplyScore",
    "RewardWeights",
    "action_error",
    "common_prefix_share",
    "score_reply",
    "total_reward",
]

REWARDS = ("prefix", "soft")


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardWeights:
    """Weights of the parts of `soft`; they sum to 1, so that the reward is in [0, 1]."""

    form: float = 0.5
    """Weight of the exact form (the paper's r_f and its weight)."""
    distance: float = 0.25
    """Weight of exp(-sharpness * error) of the decoded action."""
    prefix: float = 0.25
    """Weight of the common prefix (the paper's r_a)."""
    sharpness: float = 4.0
    """Per normalised unit (half the 1st-to-99th-percentile range of a field)."""

    def __post_init__(self) -> None:
        parts = (self.form, self.distance, self.prefix)
        if min(parts) < 0 or not math.isclose(sum(parts), 1.0, abs_tol=1e-9):
            raise ConfigError(f"RewardWeights.form, .distance and .prefix are {parts}, expected shares that sum to 1")
        if self.sharpness <= 0:
            raise ConfigError(f"RewardWeights.sharpness is {self.sharpness}, expected a positive number")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyScore:
    """What one generated reply is worth, part by part."""

    is_well_formed: bool
    """The paper's r_f."""
    is_decodable: bool
    """The action tokens spell exactly one chunk."""
    is_first_right: bool
    """The first action token is the demonstrated one."""
    prefix: float
    """The paper's r_a, in [0, 1]."""
    error: float
    """Mean absolute error of the decoded action in normalised units; infinite when it does not decode."""


def common_prefix_share(generated: Sequence[int], target: Sequence[int]) -> float:
    """Returns the length of the common prefix over the length of `target`; raises DataError for an empty target.

    >>> common_prefix_share([4, 8, 15], [4, 8, 16, 23])
    0.5
    """
    if len(target) == 0:
        raise DataError("the target holds no action tokens, expected at least one; check the dataset's actions")
    length = 0
    for mine, wanted in zip(generated, target, strict=False):
        if mine != wanted:
            break
        length += 1
    return length / len(target)


def action_error(actions: FloatArray, target: FloatArray, codec: FastCodec) -> float:
    """Returns the mean absolute error in normalised units: 1 is half the 1st-to-99th-percentile range of a field.

    Args:
        actions: float[T, A] in the codec's units.
        target: float[T, A] in the codec's units.
        codec: holds the ranges.
    """
    half_range = (np.asarray(codec.config.high, np.float64) - np.asarray(codec.config.low, np.float64)) / 2
    gap = np.abs(np.asarray(actions, np.float64) - np.asarray(target, np.float64))
    return float((gap / half_range).mean())


def score_reply(
    reply_ids: Sequence[int],
    target_ids: Sequence[int],
    target_actions: FloatArray,
    *,
    codec: FastCodec,
    tokens: ReplyTokens,
    needs_thought: bool = True,
) -> ReplyScore:
    """Scores one reply; the action of a malformed reply is scored too (the paper's r_f and r_a are independent).

    Args:
        reply_ids: what the model generated, with the end-of-sequence token when it came to an end.
        target_ids: demonstrated action tokens, as ids of the codec.
        target_actions: float[T, A], the demonstrated chunk in the codec's units.
        codec: decodes action tokens.
        tokens: ids of the markers in the model's vocabulary.
        needs_thought: the form also asks for a thought before the answer.
    """
    reply = parse_reply_ids(reply_ids, tokens)
    action_ids = find_action_ids(reply_ids, tokens) or ()
    actions = codec.decode(action_ids).actions
    prefix = common_prefix_share(action_ids, target_ids)
    return ReplyScore(
        is_well_formed=reply.action_ids is not None and (reply.thought_ids is not None) == needs_thought,
        is_decodable=actions is not None,
        is_first_right=prefix > 0,
        prefix=prefix,
        error=math.inf if actions is None else action_error(actions, target_actions, codec),
    )


def total_reward(score: ReplyScore, reward: str, weights: RewardWeights | None = None) -> float:
    """Returns the scalar reward in [0, 1]: `prefix` as published, or `soft` with `weights`."""
    if reward == "prefix":
        return (float(score.is_well_formed) + score.prefix) / 2
    if reward != "soft":
        raise ConfigError(f"reward is {reward!r}, expected one of {', '.join(REWARDS)}")
    weights = weights or RewardWeights()
    near = math.exp(-weights.sharpness * score.error) if score.is_decodable else 0.0
    return weights.form * score.is_well_formed + weights.distance * near + weights.prefix * score.prefix
