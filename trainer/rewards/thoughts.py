"""How much of a thought is true: fields in words and numbers against the simulator's truth.

The judge reads the truth itself and not the sentences that training made from it, so that it cannot share their
mistakes. It looks for four fields, wherever they stand: the place of the thing that matters now (`NAME at X Y`), its
offset from the gripper (the first `N near|far M right|left`), the hand (`open`, `closed`, `holding the ...`) and the
next step in words. A field that is not said earns nothing; further text costs nothing.
"""

from __future__ import annotations

import re

import numpy as np

from roboalign.sdk.data.language import next_words
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.sim.truth import FixtureTruth, ObjectTruth, SceneTruth

__all__ = ["TOLERANCE_UNITS", "thought_share"]

TOLERANCE_UNITS = 10
"""Error (in length units of the prompt, 5 mm each) at which a number is worth nothing; it falls linearly."""

_OPEN_WIDTH_M = 0.06
_OFFSET = re.compile(r"\b(\d+) (near|far) (\d+) (right|left)\b")
_HAND = re.compile(r"\b(?:gripper|hand)(?: is)? (open|closed|holding the \w+ \w+)\b")


def thought_share(text: str, truth: SceneTruth, fmt: PromptFormat) -> float:
    """Returns the mean worth of the four fields of a thought, 0 to 1."""
    text = " ".join(text.split())
    focus = _focus(truth)
    position_m = np.asarray(focus.position_m[:2], np.float32)
    name = focus.label if isinstance(focus, ObjectTruth) else focus.name
    place = re.search(rf"\b{re.escape(name)} (?:is )?at (\d+) (\d+)\b", text)
    offset, hand = _OFFSET.search(text), _HAND.search(text)
    parts = (
        0.0 if place is None else _numbers_share([int(place[1]), int(place[2])], fmt.position_numbers(position_m)),
        0.0 if offset is None else _offset_share(offset, (position_m - truth.state[:2]) / fmt.length_unit_m),
        float(hand is not None and hand[1] == _hand(truth)),
        float(next_words(truth) in text),
    )
    return float(np.mean(parts))


def _offset_share(found: re.Match[str], offset_units: np.ndarray) -> float:
    near = int(found[1]) * (1 if found[2] == "near" else -1)
    right = int(found[3]) * (1 if found[4] == "right" else -1)
    return _numbers_share([near, right], [int(v) for v in np.rint(offset_units)])


def _numbers_share(said: list[int], true: list[int]) -> float:
    gaps = np.abs(np.asarray(said) - np.asarray(true))
    return float(np.clip(1 - gaps / TOLERANCE_UNITS, 0.0, 1.0).mean())


def _focus(truth: SceneTruth) -> ObjectTruth | FixtureTruth:
    """Returns what the next movement is about: the goal once the target is on its way, else the target."""
    if not truth.is_about_object:
        return truth.fixture("button" if truth.family == "light" else truth.target)
    goal = truth.goal_object
    return goal if goal is not None and truth.stage in ("carry", "lower", "release") else truth.target_object


def _hand(truth: SceneTruth) -> str:
    held = next((item for item in truth.objects if item.is_held), None)
    if held is not None:
        return f"holding the {held.label}"
    return "open" if truth.state[4] > _OPEN_WIDTH_M else "closed"
