"""The reward library: what one generated reply is worth, by name.

`scores` takes a reply of token ids apart, `library` holds the rewards and their registry, `thoughts` and `picture`
judge words and paths, `neighbours` finds further demonstrations of the same moment. Everything is a pure function;
what needs a simulator is computed outside (`roboalign.trainer.success`) and handed in.
"""

from roboalign.trainer.rewards.library import (
    REWARDS,
    RewardRule,
    find_reward,
    register_reward,
    reward_names,
    total_reward,
)
from roboalign.trainer.rewards.neighbours import find_neighbours
from roboalign.trainer.rewards.scores import (
    Demonstration,
    EnergyScale,
    ReplyScore,
    RewardCase,
    RewardWeights,
    action_error,
    common_prefix_share,
    score_reply,
)

__all__ = [
    "REWARDS",
    "Demonstration",
    "EnergyScale",
    "ReplyScore",
    "RewardCase",
    "RewardRule",
    "RewardWeights",
    "action_error",
    "common_prefix_share",
    "find_neighbours",
    "find_reward",
    "register_reward",
    "reward_names",
    "score_reply",
    "total_reward",
]
