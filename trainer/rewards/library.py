"""The rewards by name. Each is r = (r_f + r_x) / 2 in [0, 1], with the paper's r_f, and differs in r_x only.

`soft` weighs three parts instead; `multi` is the best of another reward over several demonstrations. How they behave
on a policy that stands still is said with each, because one of ours was once trained to do just that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.types import FloatArray
from roboalign.trainer.rewards.picture import path_share
from roboalign.trainer.rewards.scores import ReplyScore, RewardCase, score_against
from roboalign.trainer.rewards.thoughts import thought_share

__all__ = [
    "REWARDS",
    "RewardRule",
    "energy",
    "energy_shares",
    "find_reward",
    "gate",
    "language",
    "multi",
    "prefix",
    "register_reward",
    "reward_names",
    "soft",
    "success",
    "total_reward",
    "visual",
]

RewardFunction = Callable[[ReplyScore, RewardCase], float]
ShareFunction = Callable[[ReplyScore, RewardCase], NDArray[np.float64]]

NEEDS = ("energy", "neighbours", "truth", "rollout")
"""What a reward may ask for besides the demonstration of the frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardRule:
    """One reward and what it asks of a run."""

    name: str
    """Name on the command line."""
    function: RewardFunction
    """Pure: equal scores and cases give equal rewards."""
    is_constrained: bool
    """Replies are sampled under the length constraint, so that every finished action span decodes."""
    pays_nothing_behind_first: bool = False
    """A wrong first action token earns nothing; without right ones there is nothing to explore."""
    needs: tuple[str, ...] = ()
    """Parts of `RewardCase` that it reads, among `NEEDS`."""
    shares: ShareFunction | None = None
    """float64[N], what each action token of a reply that decodes adds to r_x; None where r_x is no such sum. Asked for
    by `AlignConfig.credit`."""

    def __post_init__(self) -> None:
        for name in self.needs:
            if name not in NEEDS:
                raise ConfigError(f"RewardRule {self.name!r}: " + unknown_name("need", name, NEEDS))

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (getattr(self.function, "__doc__", None) or "").strip().split("\n")[0]


def prefix(score: ReplyScore, case: RewardCase) -> float:
    """The paper's: r_a is the common prefix with the demonstrated tokens over their number.

    Nothing behind the first mismatch is paid, tokens behind the target cost nothing, and a sequence that does not
    decode can earn 1.
    """
    return (score.is_well_formed + score.prefix) / 2


def gate(score: ReplyScore, case: RewardCase) -> float:
    """The paper's, but the prefix counts only when the tokens spell exactly one chunk."""
    return (score.is_well_formed + (score.prefix if score.is_decodable else 0.0)) / 2


def soft(score: ReplyScore, case: RewardCase) -> float:
    """Form, distance of the decoded action and common prefix, weighted.

    The expected distance is smallest at the median action: with weak tokens it pays for standing still.
    """
    weights = case.weights
    near = math.exp(-weights.sharpness * score.error) if score.is_decodable else 0.0
    return weights.form * score.is_well_formed + weights.distance * near + weights.prefix * score.prefix


def energy(score: ReplyScore, case: RewardCase) -> float:
    """DCT coefficients of the decoded action, weighted by their variance among the training chunks.

    A coefficient is worth 1 when it is right and falls linearly to 0 at one standard deviation (at least one quantum).
    The mean action earns what the demonstrations have in common.
    """
    return (score.is_well_formed + _energy_share(score, case)) / 2


def energy_shares(score: ReplyScore, case: RewardCase) -> NDArray[np.float64]:
    """Returns float64[N]: what each action token's coefficients earn; their sum is the action's part of `energy`."""
    assert score.actions is not None
    parts = _energy_parts(score.actions, case)
    lengths = case.codec.token_lengths[list(score.action_ids)]
    return np.add.reduceat(parts, np.cumsum(lengths) - lengths)


def language(score: ReplyScore, case: RewardCase) -> float:
    """The paper's comparison: facts of the thought against the simulator's truth; the action is not looked at."""
    assert case.words is not None
    assert case.truth is not None
    assert case.fmt is not None
    said = case.words(score.thought_ids) if score.thought_ids else ""
    return (score.is_well_formed + thought_share(said, case.truth, case.fmt)) / 2


def visual(score: ReplyScore, case: RewardCase) -> float:
    """The paper's comparison: the tool's path in the picture plane against the demonstrated one.

    The path is that of the decoded action, seen by the camera `front`. Standing still earns 0.
    """
    if score.actions is None:
        return score.is_well_formed / 2
    assert case.truth is not None
    assert case.state is not None
    return (score.is_well_formed + path_share(score.actions, case.target.actions, case.state, case.truth.robot)) / 2


def success(score: ReplyScore, case: RewardCase) -> float:
    """Steps that the sampled action saves an expert who finishes the task in the simulator.

    Standing still earns 0.
    """
    assert score.outcome is not None
    return (score.is_well_formed + score.outcome) / 2


def multi(score: ReplyScore, case: RewardCase, *, inner: RewardFunction) -> float:
    """The best of another reward over several demonstrated continuations of the same moment."""
    return max(
        inner(score_against(score, target, case.codec), replace(case, target=target))
        for target in (case.target, *case.others)
    )


REWARDS: dict[str, RewardRule] = {
    rule.name: rule
    for rule in (
        RewardRule(name="prefix", function=prefix, is_constrained=False, pays_nothing_behind_first=True),
        RewardRule(name="gate", function=gate, is_constrained=False, pays_nothing_behind_first=True),
        RewardRule(name="soft", function=soft, is_constrained=True),
        RewardRule(name="energy", function=energy, is_constrained=True, needs=("energy",), shares=energy_shares),
        RewardRule(name="language", function=language, is_constrained=True, needs=("truth",)),
        RewardRule(name="visual", function=visual, is_constrained=True, needs=("truth",)),
        RewardRule(name="success", function=success, is_constrained=True, needs=("truth", "rollout")),
    )
}
"""Rewards by name; `multi:NAME` is `multi` over one of them, and `multi` alone is `multi:gate`."""


def reward_names() -> tuple[str, ...]:
    """Returns every name that can be given, the forms of `multi` last."""
    return (*REWARDS, "multi", *(f"multi:{name}" for name, rule in REWARDS.items() if _takes_target(rule)))


def register_reward(rule: RewardRule) -> None:
    """Makes a reward known to this process; ConfigError when its name is taken."""
    if rule.name in REWARDS or rule.name.startswith("multi"):
        raise ConfigError(f"there is a reward named {rule.name!r} already; choose another name")
    REWARDS[rule.name] = rule


def find_reward(name: str) -> RewardRule:
    """Returns the reward of a name; ConfigError lists the names when there is none."""
    if name in REWARDS:
        return REWARDS[name]
    if name not in reward_names():
        raise ConfigError(f"reward is {name!r}, expected one of {', '.join(reward_names())}")
    inner = REWARDS[name.partition(":")[2] or "gate"]
    function = partial(multi, inner=inner.function)
    function.__doc__ = multi.__doc__
    return replace(inner, name=name, function=function, needs=(*inner.needs, "neighbours"), shares=None)


def total_reward(score: ReplyScore, reward: str, case: RewardCase) -> float:
    """Returns the scalar reward in [0, 1] of the reward with this name."""
    return find_reward(reward).function(score, case)


def _takes_target(rule: RewardRule) -> bool:
    """True when the reward looks at the demonstrated action, so that another one makes a difference."""
    return "rollout" not in rule.needs and rule.name != "language"


def _energy_share(score: ReplyScore, case: RewardCase) -> float:
    return 0.0 if score.actions is None else float(_energy_parts(score.actions, case).sum())


def _energy_parts(actions: FloatArray, case: RewardCase) -> NDArray[np.float64]:
    """Returns float64[T * A]: what each coefficient earns."""
    assert case.energy is not None
    (mine, wanted), _ = case.codec.coefficients(np.stack([actions, case.target.actions]))
    match = 1 - np.abs(mine - wanted) / np.maximum(1.0, case.energy.spread)
    return np.asarray(case.energy.weights * np.clip(match, 0.0, 1.0))
