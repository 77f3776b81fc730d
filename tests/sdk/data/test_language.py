"""Every sentence is read back and compared with the scene it was made from."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.sdk.data.language import QUESTION_KINDS, named_objects, next_words, question, thought
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.reply import parse_reply, write_reply
from roboalign.sdk.sim.language import instruction_for
from roboalign.sdk.sim.truth import STAGES, ObjectTruth, SceneTruth

FMT = PromptFormat()
HALF_UNIT_M = FMT.length_unit_m / 2 + 1e-6
NAMES = [f"{c} {s}" for c, s in itertools.product(("red", "green", "blue", "yellow"), ("block", "cylinder", "bowl"))]
PLANES = st.tuples(st.floats(0.38, 0.64), st.floats(-0.18, 0.18))
SEEDS = st.integers(0, 2**32 - 1)


def make_object(name: str, place_m: tuple[float, float], *, is_held: bool = False) -> ObjectTruth:
    colour, shape = name.split()
    return ObjectTruth(
        name=name,
        colour=colour,
        shape=shape,
        position_m=np.array([*place_m, 0.02], np.float32),
        yaw_rad=0.0,
        width_m=0.04,
        height_m=0.04,
        speed_m_s=0.0,
        tilt_rad=0.0,
        is_held=is_held,
        is_touched=is_held,
    )


def make_scene(
    *objects: ObjectTruth, family: str = "place", tool_m: tuple[float, float] = (0.5, 0.0), stage: str = "reach"
) -> SceneTruth:
    target, goal = objects[0].name, "left" if family == "push" else objects[-1].name
    return SceneTruth(
        family=family,
        objects=objects,
        target=target,
        goal=goal,
        instruction=instruction_for(family, target, goal),
        state=np.array([*tool_m, 0.2, 0.0, 0.08], np.float32),
        start_position_m=objects[0].position_m,
        stage=stage,
    )


@st.composite
def scenes(draw: st.DrawFn) -> SceneTruth:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True))
    is_held = draw(st.booleans())
    objects = [make_object(name, draw(PLANES), is_held=is_held and i == 0) for i, name in enumerate(names)]
    family = draw(st.sampled_from(["place", "push", "stack"]))
    scene = make_scene(*objects, family=family, tool_m=draw(PLANES), stage=draw(st.sampled_from(STAGES)))
    scene.state[4] = draw(st.floats(0.0, 0.08))
    return scene


def ask(scene: SceneTruth, kind: str, seed: int):
    return question(scene, FMT, np.random.default_rng(seed), kind)


def place_m(words: str) -> np.ndarray:
    """Reads `x y` back into metres."""
    return np.array([int(word) for word in words.split()]) * FMT.length_unit_m + FMT.origin_m[:2]


def offset_m(words: str) -> np.ndarray:
    """Reads `n near|far m left|right` back into metres along x and y."""
    near, along, right, across = words.split()
    signs = {"near": 1, "far": -1}[along], {"right": 1, "left": -1}[across]
    return np.array([int(near) * signs[0], int(right) * signs[1]]) * FMT.length_unit_m


def is_there(found_m: np.ndarray, obj: ObjectTruth, origin: tuple[float, float] | np.ndarray = (0.0, 0.0)) -> bool:
    wanted = np.asarray(obj.position_m[:2], np.float64) - origin
    return bool(np.abs(found_m - wanted).max() <= HALF_UNIT_M)


def about(call):
    """Runs a claim about a scene and a seed on many of them."""
    return settings(deadline=None, max_examples=60)(given(scene=scenes(), seed=SEEDS)(call))


@about
def test_where_an_object_is_can_be_read_back(scene, seed) -> None:
    qa = ask(scene, "where", seed)
    (name,) = qa.objects
    assert name in qa.question
    assert is_there(place_m(qa.answer), scene.find(name))


@about
def test_how_far_an_object_is_can_be_read_back(scene, seed) -> None:
    qa = ask(scene, "offset", seed)
    (name,) = qa.objects
    assert name in qa.question
    assert is_there(offset_m(qa.answer), scene.find(name), scene.state[:2])


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((0.60, 0.0), "20 near 0 right"),
        ((0.40, 0.0), "20 far 0 right"),
        ((0.50, 0.1), "0 near 20 right"),
        ((0.50, -0.1), "0 near 20 left"),
        ((0.499, -0.001), "0 near 0 right"),
    ],
)
def test_near_is_plus_x_and_right_is_plus_y(place, words) -> None:
    scene = make_scene(make_object("red block", place), family="push")
    assert ask(scene, "offset", 0).answer == words


@about
def test_everything_on_the_table_is_listed_where_it_is(scene, seed) -> None:
    qa = ask(scene, "everything", seed)
    listed = dict(re.fullmatch(r"(\w+ \w+) (\d+ \d+)", item).groups() for item in qa.answer.split(" , "))
    assert list(listed) == sorted(o.name for o in scene.objects)
    assert all(is_there(place_m(listed[o.name]), o) for o in scene.objects)
    assert qa.objects == ()


@about
def test_what_is_named_at_a_place_is_there(scene, seed) -> None:
    qa = ask(scene, "colour", seed)
    assert qa.objects == (qa.answer,)
    assert is_there(place_m(qa.question.removeprefix("what is at ")), scene.find(qa.answer))


@about
def test_left_of_means_smaller_y_and_both_places_are_given(scene, seed) -> None:
    qa = ask(scene, "left_of", seed)
    first, second = (scene.find(name) for name in qa.objects)
    assert qa.question == f"is the {first.name} left of the {second.name}"
    word, places = qa.answer.split(" , ")
    assert word == ("yes" if first.position_m[1] < second.position_m[1] else "no")
    assert [is_there(place_m(p), o) for p, o in zip(places.split(" and "), (first, second), strict=True)] == [
        True,
        True,
    ]


@pytest.mark.parametrize(("y", "word"), [(-0.1, "yes"), (0.1, "no")])
def test_left_is_minus_y(y, word) -> None:
    scene = make_scene(make_object("red block", (0.5, y)), make_object("blue bowl", (0.5, 0.0)))
    answers = {qa.objects[0]: qa.answer[:3].strip() for qa in (ask(scene, "left_of", seed) for seed in range(20))}
    assert answers == {"red block": word, "blue bowl": {"yes": "no", "no": "yes"}[word]}


def test_a_lone_object_is_asked_for_its_place_instead_of_its_neighbour() -> None:
    scene = make_scene(make_object("red block", (0.5, 0.1)), family="push")
    assert ask(scene, "left_of", 0) == ask(scene, "where", 0)


@about
def test_held_is_answered_by_the_truth(scene, seed) -> None:
    qa = ask(scene, "held", seed)
    (name,) = qa.objects
    assert qa.question == f"is the {name} in the gripper"
    assert qa.answer == ("yes" if scene.find(name).is_held else "no")


@about
def test_next_asks_the_scenes_own_instruction(scene, seed) -> None:
    qa = ask(scene, "next", seed)
    assert (qa.question, qa.answer, qa.objects) == (scene.instruction, next_words(scene), named_objects(scene))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_words_without_gaps(stage) -> None:
    words = next_words(
        make_scene(make_object("red block", (0.5, 0.0)), make_object("blue bowl", (0.4, 0.0)), stage=stage)
    )
    assert re.fullmatch(r"[a-z ]+", words)


def test_no_two_stages_share_their_words() -> None:
    scene = make_scene(make_object("red block", (0.5, 0.0)), make_object("blue bowl", (0.4, 0.0)))
    assert len({next_words(replace(scene, stage=stage)) for stage in STAGES}) == len(STAGES)


@pytest.mark.parametrize(
    ("family", "names"),
    [("place", ("red block", "blue bowl")), ("stack", ("red block", "blue bowl")), ("push", ("red block",))],
)
def test_the_direction_of_a_push_is_no_object(family, names) -> None:
    scene = make_scene(make_object("red block", (0.5, 0.0)), make_object("blue bowl", (0.4, 0.0)), family=family)
    assert named_objects(scene) == names


@pytest.mark.parametrize("kind", QUESTION_KINDS)
@about
def test_a_question_reaches_the_model_unchanged(scene, seed, kind) -> None:
    qa = ask(scene, kind, seed)
    assert FMT.clean_text(qa.question) == qa.question


@pytest.mark.parametrize("kind", QUESTION_KINDS)
@about
def test_the_same_seed_asks_the_same_question(scene, seed, kind) -> None:
    assert ask(scene, kind, seed) == ask(scene, kind, seed)


FACTS = re.compile(
    r"(?=.*?(?P<focus>\w+ \w+)(?: is)? at (?P<place>\d+ \d+) )"
    r"(?=.*?(?P<offset>\d+ (?:near|far) \d+ (?:left|right)))"
    r"(?=.*?(?:gripper|hand) (?:is )?(?P<hand>open|closed|holding the \w+ \w+) )"
    r".*(?:next|so|\. i) (?P<plan>[a-z ]+) \.$"
)


def facts(text: str) -> dict[str, str]:
    found = FACTS.match(text)
    assert found is not None, text
    return found.groupdict()


def thoughts(scene: SceneTruth) -> set[str]:
    """All the ways in which a scene is put into words."""
    return {thought(scene, FMT, np.random.default_rng(seed)) for seed in range(24)}


@settings(deadline=None, max_examples=60)
@given(scene=scenes())
def test_three_styles_of_a_thought_carry_the_same_facts(scene) -> None:
    first, *others = [facts(text) for text in thoughts(scene)]
    assert len(others) == 2
    assert all(other == first for other in others)


@about
def test_a_thought_says_what_is_true(scene, seed) -> None:
    said = facts(thought(scene, FMT, np.random.default_rng(seed)))
    focus = scene.find(said["focus"])
    assert is_there(place_m(said["place"]), focus)
    assert is_there(offset_m(said["offset"]), focus, scene.state[:2])
    assert said["plan"] == next_words(scene)
    held = [o.name for o in scene.objects if o.is_held]
    empty = "open" if scene.state[4] > 0.06 else "closed"
    assert said["hand"] == (f"holding the {held[0]}" if held else empty)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("family", ["place", "stack"])
def test_a_thought_is_about_the_goal_once_the_target_is_on_its_way(family, stage) -> None:
    target, goal = make_object("red block", (0.5, 0.1), is_held=True), make_object("green block", (0.4, -0.1))
    scene = make_scene(target, goal, family=family, stage=stage)
    wanted = goal if stage in ("carry", "lower", "release") else target
    assert {facts(text)["focus"] for text in thoughts(scene)} == {wanted.name}


@pytest.mark.parametrize("stage", STAGES)
def test_a_thought_about_a_push_is_always_about_the_target(stage) -> None:
    scene = make_scene(
        make_object("red block", (0.5, 0.1)), make_object("blue bowl", (0.4, 0.0)), family="push", stage=stage
    )
    assert {facts(text)["focus"] for text in thoughts(scene)} == {"red block"}


@about
def test_a_thought_fits_into_a_reply(scene, seed) -> None:
    text = thought(scene, FMT, np.random.default_rng(seed))
    reply = parse_reply(write_reply(text, next_words(scene)))
    assert (reply.thought, reply.answer) == (text, next_words(scene))
