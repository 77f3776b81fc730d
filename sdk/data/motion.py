"""Thoughts for data that has none: where the hand is, and what the demonstrator did next, in words.

A person who steers an arm writes no thoughts. What the hand did in the next chunk can be said from the recording
itself, as embodied chain-of-thought data say "move left and down" (arXiv 2407.08693). It names no object: nobody told
it where they are. So such a thought tells the direction of the motion, not its reason.
"""

from __future__ import annotations

import numpy as np

from roboalign.sdk.data.reasoning import Reasoning
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import ACTION_NAMES, FloatArray

__all__ = ["motion_reasoning"]

_STILL_UNITS = 2
"""A shorter way than this, in length units, is none."""
_WAYS = (("near", "far"), ("right", "left"), ("up", "down"))
_GRIPPER = ACTION_NAMES.index("gripper_open")


def motion_reasoning(instruction: str, state: FloatArray, actions: FloatArray, fmt: PromptFormat) -> Reasoning:
    """Returns a thought about a frame, from its state and the actions after it.

    Args:
        instruction: What the robot was told.
        state: float32[5] in the order of `STATE_NAMES`.
        actions: float32[T, 5] in the order of `ACTION_NAMES`.
        fmt: Units of the numbers.
    """
    place = " ".join(str(number) for number in fmt.position_numbers(state[:3]))
    hand = "open" if actions[0, _GRIPPER] > 0.5 else "closed"
    todo = _next_words(actions, fmt)
    return Reasoning(
        text=instruction, thought=f"the gripper is at {place} and {hand} . so {todo} .", answer=todo, objects=()
    )


def _next_words(actions: FloatArray, fmt: PromptFormat) -> str:
    """Returns what the actions do together: the larger ways first, then the gripper."""
    units = np.rint(np.asarray(actions[:, :3], np.float64).sum(axis=0) / fmt.length_unit_m).astype(int)
    order = sorted(range(3), key=lambda axis: -abs(int(units[axis])))
    ways = [_WAYS[axis][int(units[axis] < 0)] for axis in order if abs(int(units[axis])) >= _STILL_UNITS]
    said = [f"move {' and '.join(ways)}"] if ways else []
    before, after = bool(actions[0, _GRIPPER] > 0.5), bool(actions[-1, _GRIPPER] > 0.5)
    if before != after:
        said.append("open the gripper" if after else "close the gripper")
    return " , ".join(said) or "stay"
