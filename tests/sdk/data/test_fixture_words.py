"""Words about fixtures, and about objects that look alike, say what is true and nothing that cannot be told apart."""

import dataclasses

import numpy as np
import pytest

from roboalign.sdk.data.language import QUESTION_KINDS, named_objects, next_words, question, thought
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.sim.scene import Goal
from roboalign.sdk.sim.truth import STAGES, FixtureTruth, ObjectTruth, SceneTruth

FMT = PromptFormat()
PLACES = {"drawer": (0.36, -0.15), "door": (0.36, 0.02), "button": (0.38, 0.16), "light": (0.31, 0.16)}
FIXTURES = tuple(
    FixtureTruth(
        name=kind,
        position_m=np.array([*place, 0.07], np.float32),
        opening=0.5,
        speed_m_s=0.0,
        num_presses=0,
        is_touched=False,
    )
    for kind, place in PLACES.items()
)
OPEN = Goal(kind="open", target="drawer", goal="open")
GOALS = (
    OPEN,
    Goal(kind="close", target="drawer", goal="closed"),
    Goal(kind="slide", target="door", goal="left"),
    Goal(kind="press", target="button", goal="pressed"),
    Goal(kind="light", target="light", goal="on"),
)


def block(name: str, y_m: float, *, is_held: bool = False) -> ObjectTruth:
    colour, shape, *_ = name.split()
    return ObjectTruth(
        name=name,
        colour=colour,
        shape=shape,
        position_m=np.array([0.55, y_m, 0.02], np.float32),
        yaw_rad=0.0,
        width_m=0.04,
        height_m=0.04,
        speed_m_s=0.0,
        tilt_rad=0.0,
        is_held=is_held,
        is_touched=is_held,
    )


TWINS = (block("red block a", -0.1), block("red block b", 0.1, is_held=True), block("blue bowl", 0.0))


def scene(goal: Goal, objects: tuple[ObjectTruth, ...] = (), stage: str = "reach") -> SceneTruth:
    return SceneTruth(
        family=goal.kind,
        objects=objects,
        target=goal.target,
        goal=goal.goal,
        instruction="do it",
        state=np.array([0.5, 0, 0.2, 0, 0.0], np.float32),
        start_position_m=np.zeros(3, np.float32),
        stage=stage,
        fixtures=FIXTURES if goal.kind != "place" else (),
    )


def ask(truth: SceneTruth, kind: str) -> list:
    return [question(truth, FMT, np.random.default_rng(seed), kind) for seed in range(30)]


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.kind)
def test_every_stage_of_a_fixture_has_words_of_its_own(goal: Goal) -> None:
    words = [next_words(scene(goal, stage=stage)) for stage in STAGES]
    assert len(set(words)) == len(STAGES)
    assert not any("{" in text or "  " in text for text in words)


@pytest.mark.parametrize(
    ("goal", "stage", "words"),
    [
        (GOALS[0], "pull", "pull the drawer open"),
        (GOALS[1], "push", "push the drawer closed"),
        (GOALS[2], "push", "push the door to the left"),
        (GOALS[3], "press", "press the button down"),
        (GOALS[4], "press", "press the button to turn the light on"),
        (GOALS[4], "descend", "go down to the button"),
    ],
)
def test_what_comes_next_is_said_of_what_the_hand_works_on(goal: Goal, stage: str, words: str) -> None:
    assert next_words(scene(goal, stage=stage)) == words


@pytest.mark.parametrize(
    ("goal", "focus"),
    list(zip(GOALS, ("drawer", "drawer", "door", "button", "button"), strict=True)),
)
def test_a_thought_places_what_the_hand_works_on(goal: Goal, focus: str) -> None:
    x, y = FMT.position_numbers(np.array(PLACES[focus], np.float32))
    for seed in range(6):
        text = thought(scene(goal), FMT, np.random.default_rng(seed))
        assert f"{focus} at {x} {y}" in text or f"{focus} is at {x} {y}" in text


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_every_question_can_be_asked_without_any_object(kind: str) -> None:
    for qa in ask(scene(OPEN), kind):
        assert min(len(qa.question), len(qa.answer)) > 1
        assert set(qa.objects) <= set(PLACES)


def test_fixtures_are_asked_for_too_and_are_where_the_answer_says() -> None:
    found = {qa.objects[0]: qa.answer for qa in ask(scene(OPEN, TWINS), "where")}
    assert set(PLACES) <= set(found)
    for kind, place in PLACES.items():
        assert found[kind] == " ".join(map(str, FMT.position_numbers(np.array(place, np.float32))))


def test_what_a_sentence_names_can_be_looked_up_in_the_scene() -> None:
    truth = scene(OPEN, TWINS)
    assert named_objects(truth) == ("drawer",)
    assert named_objects(scene(Goal(kind="place", target="red block a", goal="blue bowl"), TWINS)) == (
        "red block a",
        "blue bowl",
    )


@pytest.mark.parametrize("kind", ["where", "offset", "left_of"])
def test_things_that_look_alike_are_not_asked_for_by_name(kind: str) -> None:
    for qa in ask(scene(OPEN, TWINS), kind):
        assert "red" not in qa.question


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_tags_are_never_said(kind: str) -> None:
    truth = scene(Goal(kind="place", target="red block a", goal="blue bowl"), TWINS)
    texts = [f"{qa.question} {qa.answer}" for qa in ask(truth, kind)]
    texts += [next_words(dataclasses.replace(truth, stage=stage)) for stage in STAGES]
    texts += [thought(truth, FMT, np.random.default_rng(seed)) for seed in range(6)]
    assert not any({"a", "b"} & set(text.split()) for text in texts)


def test_one_of_two_that_look_alike_in_the_gripper_is_enough() -> None:
    truth = scene(Goal(kind="place", target="red block a", goal="blue bowl"), TWINS)
    answers = {qa.question: qa.answer for qa in ask(truth, "held")}
    assert answers == {"is the red block in the gripper": "yes", "is the blue bowl in the gripper": "no"}
