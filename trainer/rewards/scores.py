"""One reply of token ids taken apart, and what it is judged against.

The paper's parts (section 3.2): r_f is 1 exactly when the reply has the required form; r_a is the length of the common
prefix of generated and demonstrated action tokens over the length of the latter. The paper leaves r_a open when not
even the first token agrees; here it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.reply import ReplyTokens, find_action_ids, parse_reply_ids
from roboalign.sdk.types import FloatArray

if TYPE_CHECKING:
    from roboalign.sdk.sim.truth import SceneTruth

__all__ = [
    "Demonstration",
    "EnergyScale",
    "ReplyScore",
    "RewardCase",
    "RewardWeights",
    "action_error",
    "common_prefix_share",
    "score_against",
    "score_reply",
]


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
    action_ids: tuple[int, ...] = ()
    """Action tokens of the reply, as ids of the codec."""
    actions: FloatArray | None = field(default=None, compare=False, repr=False)
    """float32[T, A], what they decode to."""
    thought_ids: tuple[int, ...] = ()
    """Tokens of the first thought, also when the reply is malformed."""
    outcome: float | None = None
    """What a simulated rollout of the action was worth, in [0, 1]; None when none was run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """What a demonstrator did from one frame on."""

    ids: tuple[int, ...]
    """Action tokens, as ids of the codec."""
    actions: FloatArray
    """float32[T, A] in the codec's units."""

    @classmethod
    def of(cls, actions: FloatArray, codec: FastCodec) -> Demonstration:
        """Returns the demonstration of a chunk."""
        return cls(ids=tuple(codec.encode(actions)), actions=actions)


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyScale:
    """How much each DCT coefficient varies among the training chunks."""

    spread: NDArray[np.float64]
    """float64[T * A], standard deviation in quanta, lowest frequency of all fields first."""

    @classmethod
    def fit(cls, codec: FastCodec, chunks: FloatArray) -> EnergyScale:
        """Returns the scale of float[N, T, A] chunks; DataError when they are all the same."""
        spread = codec.coefficients(chunks)[0].std(axis=0)
        if not spread.any():
            raise DataError("all training chunks are the same, so no coefficient has energy; collect more data")
        return cls(spread=spread)

    @property
    def weights(self) -> NDArray[np.float64]:
        """float64[T * A], share of the energy (variance); they sum to 1."""
        energy = self.spread**2
        return np.asarray(energy / energy.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardCase:
    """What a reply to one prompt is judged against; a reward says which of the optional parts it needs."""

    codec: FastCodec
    """Decodes action tokens."""
    target: Demonstration
    """What was demonstrated at this frame."""
    weights: RewardWeights = field(default_factory=RewardWeights)
    """Parts of `soft`."""
    others: tuple[Demonstration, ...] = ()
    """What was demonstrated at frames like this one."""
    energy: EnergyScale | None = None
    """Of the training chunks."""
    truth: SceneTruth | None = None
    """What the simulator knows about the frame."""
    state: FloatArray | None = None
    """float32[5], tool state in the order of `STATE_NAMES`."""
    fmt: PromptFormat | None = None
    """Units of the numbers in a thought."""
    words: Callable[[Sequence[int]], str] | None = None
    """Decodes the tokens of a thought."""


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
    parts = ReplyScore(
        is_well_formed=reply.action_ids is not None and (reply.thought_ids is not None) == needs_thought,
        is_decodable=actions is not None,
        is_first_right=False,
        prefix=0.0,
        error=math.inf,
        action_ids=action_ids,
        actions=actions,
        thought_ids=_find_thought_ids(reply_ids, tokens),
    )
    return score_against(parts, Demonstration(ids=tuple(target_ids), actions=target_actions), codec)


def score_against(score: ReplyScore, target: Demonstration, codec: FastCodec) -> ReplyScore:
    """Returns the same reply judged against another demonstration."""
    prefix = common_prefix_share(score.action_ids, target.ids)
    error = math.inf if score.actions is None else action_error(score.actions, target.actions, codec)
    return replace(score, is_first_right=prefix > 0, prefix=prefix, error=error)


def _find_thought_ids(ids: Sequence[int], tokens: ReplyTokens) -> tuple[int, ...]:
    """Returns the tokens between the first `<think>` and the next marker."""
    ids = tuple(ids)
    if tokens.think_open not in ids:
        return ()
    form = frozenset(tokens.form)
    return tuple(takewhile(lambda token: token not in form, ids[ids.index(tokens.think_open) + 1 :]))
