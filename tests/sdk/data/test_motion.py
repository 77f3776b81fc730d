"""Thoughts that say what the hand did, for data without any."""

import numpy as np
import pytest

from roboalign.sdk.data.motion import motion_reasoning
from roboalign.sdk.prompt import PromptFormat

FORMAT = PromptFormat(length_unit_m=0.0025, origin_m=(0.05, -0.16, 0.0))
STATE = np.array((0.20, 0.0, 0.05, 0.0, 0.05), np.float32)


def told(*rows):
    return motion_reasoning("push it", STATE, np.array(rows, np.float32), FORMAT)


def test_it_says_place_hand_and_way_in_the_units_of_the_prompt():
    said = told(*[(-0.01, 0.005, 0, 0, 1)] * 8)
    assert said.thought == "the gripper is at 60 64 20 and open . so move far and right ."
    assert (said.text, said.answer, said.objects) == ("push it", "move far and right", ())


@pytest.mark.parametrize(
    ("step", "way"),
    [
        ((0.01, 0, 0), "near"),
        ((-0.01, 0, 0), "far"),
        ((0, 0.01, 0), "right"),
        ((0, -0.01, 0), "left"),
        ((0, 0, 0.01), "up"),
        ((0, 0, -0.01), "down"),
    ],
)
def test_directions_are_those_of_the_other_thoughts(step, way):
    assert told(*[(*step, 0, 0)] * 8).answer == f"move {way}"


def test_the_larger_way_comes_first_and_a_tremor_is_none():
    assert told(*[(0.0004, 0.002, -0.01, 0, 1)] * 8).answer == "move down and right"


def test_a_gripper_that_changes_is_said():
    assert told((0, 0, 0, 0, 1), (0, 0, 0, 0, 0)).answer == "close the gripper"
    assert told((0, 0, 0, 0, 0), (0, 0, 0.01, 0, 1)).answer == "move up , open the gripper"
    assert told((0, 0, 0, 0, 0), (0, 0, 0, 0, 0)).answer == "stay"
