"""Reward of think-then-act replies for verl and EasyR1, written by `roboalign train align --emit verl`.

Needs the standard library only. verl calls `compute_score(data_source, solution_str, ground_truth, extra_info)`, EasyR1
`compute_score(reward_input)` with one dictionary or a list of them. Replies come as text. Where special tokens were
stripped from it, the end of a reply cannot be seen, and a reply is taken as ended.
"""

import json
import math
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

__all__ = [
    "SETTINGS",
    "accuracy",
    "compute_score",
    "distance",
    "energy",
    "first_action_span",
    "is_action",
    "is_well_formed",
    "score_text",
    "split_reply",
]

SETTINGS: dict[str, Any] = {}

_TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<ACTION_START>", "<ACTION_END>")
_ACTION = re.compile(r"<ACTION_(\d+)>")


def compute_score(
    data_source: Any = None, solution_str: str = "", ground_truth: str = "", extra_info: Any = None, **_unused: Any
) -> Any:
    """Returns the reward of one reply (a dictionary with its parts), or a list for a list of EasyR1's dictionaries."""
    if isinstance(data_source, list):
        return [compute_score(one) for one in data_source]
    if isinstance(data_source, dict):
        found = score_text(data_source["response"], data_source["ground_truth"])
        return {"overall": found.pop("score"), **found}
    return score_text(solution_str, ground_truth)


def score_text(reply: str, ground_truth: str) -> dict[str, float]:
    """Returns `score` in [0, 1], and its parts `format` and `accuracy`."""
    tokens = split_reply(reply)
    form = float(is_well_formed(tokens))
    action_ids = first_action_span(tokens)
    worth = max(accuracy(action_ids, target) for target in json.loads(ground_truth)["targets"])
    if SETTINGS["reward"].endswith("soft"):
        weight = SETTINGS["weights"]["form"]
    else:
        weight = 0.5
    return {"score": weight * form + (1 - weight) * worth, "format": form, "accuracy": worth}


def split_reply(reply: str) -> list[str]:
    """Returns markers, action tokens and the words between them, in order."""
    end = SETTINGS["end"]
    known = "|".join(map(re.escape, (*_TAGS, end)))
    tokens = [piece for piece in re.split(rf"({known}|<ACTION_\d+>)", reply) if piece]
    return tokens if end in tokens else [*tokens, end]


def is_well_formed(tokens: Sequence[str]) -> bool:
    """True when the reply is one thought in words, then one span of action tokens, each marker once and in order."""
    form = [token for token in tokens if token in _TAGS or token == SETTINGS["end"]]
    if form != ["<think>", "</think>", "<answer>", "<ACTION_START>", "<ACTION_END>", "</answer>", SETTINGS["end"]]:
        return False
    thought = tokens[1 : tokens.index("</think>")]
    start, stop = tokens.index("<ACTION_START>"), tokens.index("<ACTION_END>")
    span = tokens[start + 1 : stop]
    is_whole = len(tokens) == len(thought) + len(span) + len(form) and tokens[0] == "<think>"
    says_words = bool(thought) and not any(is_action(token) for token in thought)
    return is_whole and says_words and bool(span) and all(is_action(token) for token in span)


def is_action(token: str) -> bool:
    """True for `<ACTION_0>` and those that follow it in the vocabulary."""
    found = _ACTION.fullmatch(token)
    return found is not None and int(found[1]) < len(SETTINGS["spelled"])


def first_action_span(tokens: Sequence[str]) -> list[int]:
    """Returns the ids right behind the first `<ACTION_START>`."""
    if "<ACTION_START>" not in tokens:
        return []
    span = takewhile(is_action, tokens[tokens.index("<ACTION_START>") + 1 :])
    return [int(token[len("<ACTION_") : -1]) for token in span]


def accuracy(ids: Sequence[int], target: dict[str, Any]) -> float:
    """Returns what the action is worth beside the form, in [0, 1]."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(ids, target["ids"], strict=False))
    prefix = sum(1 for _ in same) / len(target["ids"])
    reward = SETTINGS["reward"].removeprefix("multi:")
    if reward == "prefix":
        return prefix
    coefficients = [value for token in ids for value in SETTINGS["spelled"][token]]
    decodes = len(coefficients) == SETTINGS["horizon"] * SETTINGS["dims"]
    if reward == "gate":
        return prefix if decodes else 0.0
    if reward == "energy":
        return energy(coefficients, target) if decodes else 0.0
    weights = SETTINGS["weights"]
    near = math.exp(-weights["sharpness"] * distance(coefficients, target)) if decodes else 0.0
    rest = weights["distance"] + weights["prefix"]
    return (weights["distance"] * near + weights["prefix"] * prefix) / rest if rest else 0.0


def energy(coefficients: Sequence[int], target: dict[str, Any]) -> float:
    """Returns the share of the energy whose coefficients are right, or nearly so."""
    spread = SETTINGS["spread"]
    total = sum(s * s for s in spread)
    worth = 0.0
    for mine, wanted, s in zip(coefficients, target["coefficients"], spread, strict=True):
        worth += s * s / total * min(1.0, max(0.0, 1 - abs(mine - wanted) / max(1.0, s)))
    return worth


def distance(coefficients: Sequence[int], target: dict[str, Any]) -> float:
    """Returns the mean absolute error of the decoded chunk, 1 being half the range of a field."""
    horizon, dims, scale = SETTINGS["horizon"], SETTINGS["dims"], SETTINGS["scale"]
    total = 0.0
    for time in range(horizon):
        for field in range(dims):
            value = 0.0
            for frequency in range(horizon):
                wave = math.sqrt((1 if frequency == 0 else 2) / horizon)
                wave *= math.cos(math.pi * (2 * time + 1) * frequency / (2 * horizon))
                value += wave * coefficients[frequency * dims + field] / scale
            middle, half = SETTINGS["middle"][field], SETTINGS["half"][field]
            total += abs(value - (target["actions"][time][field] - middle) / half)
    return total / (horizon * dims)
