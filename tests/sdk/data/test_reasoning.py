"""Every style of reasoning is read back and compared with the scene it was made from."""

import re
from dataclasses import replace

import numpy as np
import pytest

from roboalign.sdk.data.language import named_objects, next_words, step_words, thought
from roboalign.sdk.data.reasoning import LETTERS, REASONING_STYLES, choice_question, reason, steps_of
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.reply import parse_reply, write_reply
from roboalign.sdk.sim.truth import STAGES, FixtureTruth

FMT = PromptFormat()
SEEDS = range(12)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def place(words: str) -> np.ndarray:
    return np.array([int(word) for word in words.split()])


def shift(words: str) -> np.ndarray:
    near, along, right, across = words.split()
    return np.array([int(near) * (1 if along == "near" else -1), int(right) * (1 if across == "right" else -1)])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_default_style_is_the_thought_with_the_same_draws(toy, seed) -> None:
    first, second = rng(seed), rng(seed)
    found = reason(toy.truth(), FMT, first)
    assert (found.text, found.thought) == (toy.truth().instruction, thought(toy.truth(), FMT, second))
    assert (found.answer, found.objects) == (next_words(toy.truth()), named_objects(toy.truth()))
    assert first.bit_generator.state == second.bit_generator.state


def test_places_and_gaps_of_a_spatial_thought_add_up(toy) -> None:
    found = reason(toy.truth(), FMT, rng(), "spatial").thought
    hand, block = re.match(r"the gripper is at (\d+ \d+) and the red block at (\d+ \d+) \.", found).groups()
    from_hand = re.search(r"the red block is (\d+ \w+ \d+ \w+) of the gripper", found)[1]
    from_block = re.search(r"the blue bowl is (\d+ \w+ \d+ \w+) of the red block", found)[1]
    bowl = toy.truth().find("blue bowl")
    assert np.abs(place(hand) + shift(from_hand) - place(block)).max() <= 1
    assert np.abs(place(block) + shift(from_block) - FMT.position_numbers(bowl.position_m[:2])).max() <= 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_procedural_thought_counts_its_step_and_names_it(toy, stage) -> None:
    truth = toy.truth(stage=stage)
    found = reason(truth, FMT, rng(), "procedural").thought
    number, total = re.search(r"step (\d+) of (\d+)", found).groups()
    assert steps_of(truth)[int(number) - 1] == stage
    assert int(total) == len(steps_of(truth))
    assert f". now {next_words(truth)} . then" in found


def test_a_procedural_thought_names_what_was_done_and_what_follows(toy) -> None:
    truth = toy.truth(stage="lift")
    found = reason(truth, FMT, rng(), "procedural").thought
    done, after = re.search(r"done (.*) \. now .* then (.*) \.$", found).groups()
    assert done.split(" , ") == [step_words(truth, stage) for stage in ("descend", "grasp")]
    assert after.split(" , ") == [step_words(truth, stage) for stage in ("carry", "lower")]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stage", ["reach", "carry", "done"])
def test_the_letter_of_a_choice_stands_before_the_right_option(toy, stage, seed) -> None:
    truth = toy.truth(stage=stage)
    asked = choice_question(truth, FMT, rng(seed))
    letter, _, words = asked.answer.partition(" ")
    assert words == next_words(truth)
    assert f"{letter} {words}" in asked.question
    assert asked.question.count(words) == 1


def test_the_right_option_stands_at_every_letter(toy) -> None:
    assert {choice_question(toy.truth(), FMT, rng(seed)).answer[0] for seed in range(60)} == set(LETTERS)


def test_a_choice_thinks_before_it_names_the_letter(toy) -> None:
    found = reason(toy.truth(), FMT, rng(), "choice")
    assert found.thought.endswith(f"that is {found.answer[0]} .")
    assert next_words(toy.truth()) in found.thought


@pytest.mark.parametrize("style", REASONING_STYLES)
@pytest.mark.parametrize("family", ["push", "open", "light"])
def test_every_style_knows_every_family_and_can_be_read_back(toy, style, family) -> None:
    knob = FixtureTruth(
        name="drawer", position_m=np.zeros(3, np.float32), opening=0.0, speed_m_s=0.0, num_presses=0, is_touched=False
    )
    fixtures = tuple(replace(knob, name=name) for name in ("drawer", "button", "light"))
    target = {"push": "red block", "open": "drawer", "light": "light"}[family]
    goal = {"push": "left", "open": "open", "light": "on"}[family]
    truth = replace(toy.truth(), family=family, target=target, goal=goal, fixtures=fixtures)
    found = reason(truth, FMT, rng(), style)
    assert parse_reply(write_reply(found.thought, found.answer)).thought == found.thought


def test_an_unknown_style_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown style of reasoning 'spacial'; did you mean spatial\?"):
        reason(None, FMT, rng(), "spacial")
