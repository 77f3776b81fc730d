"""Scenes are drawn as promised, and the success predicates cannot be fooled."""

import dataclasses
import itertools

import numpy as np
import pytest

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.goals import is_success, progress
from roboalign.sdk.sim.language import TEMPLATES, instruction_for
from roboalign.sdk.sim.layout import PANDA_TABLE, object_height_m, object_width_m
from roboalign.sdk.sim.sampling import sample_scene
from roboalign.sdk.sim.scene import ObjectSpec, SceneSpec
from roboalign.sdk.sim.seeds import EVAL_OFFSET, eval_seed, is_eval_seed, train_seed
from roboalign.sdk.sim.tasks import FAMILIES
from roboalign.sdk.sim.truth import ObjectTruth, SceneTruth

SEEDS = range(300)


def thing(colour: str, shape: str, x: float, y: float, z: float | None = None, **changes: object) -> ObjectTruth:
    height = 0.0 if shape == "bowl" else object_height_m(shape) / 2
    fields = {
        "name": f"{colour} {shape}",
        "colour": colour,
        "shape": shape,
        "position_m": np.array([x, y, height if z is None else z], np.float32),
        "yaw_rad": 0.0,
        "width_m": object_width_m(shape),
        "height_m": object_height_m(shape),
        "speed_m_s": 0.0,
        "tilt_rad": 0.0,
        "is_held": False,
        "is_touched": False,
    }
    return ObjectTruth(**{**fields, **changes})


def scene_truth(family: str, goal: str, *objects: ObjectTruth) -> SceneTruth:
    return SceneTruth(
        family=family,
        objects=objects,
        target=objects[0].name,
        goal=goal,
        instruction="",
        state=np.array([0.5, 0, 0.2, 0, 0.08], np.float32),
        start_position_m=np.array([0.5, 0.0, 0.0225], np.float32),
        stage="reach",
    )


BOWL = thing("blue", "bowl", 0.5, 0.1)
BASE = thing("green", "block", 0.5, 0.1)
IN_BOWL_Z = 0.006 + 0.0225
ON_TOP_Z = 0.045 + 0.0225


def placed(**changes: object) -> SceneTruth:
    return scene_truth("place", "blue bowl", thing("red", "block", 0.51, 0.09, IN_BOWL_Z, **changes), BOWL)


def stacked(x: float = 0.505, z: float = ON_TOP_Z, **changes: object) -> SceneTruth:
    return scene_truth("stack", "green block", thing("red", "block", x, 0.1, z, **changes), BASE)


def pushed(y: float, direction: str, **changes: object) -> SceneTruth:
    return scene_truth("push", direction, thing("red", "block", 0.5, y, **changes), thing("blue", "cylinder", 0.6, 0.2))


def test_an_object_at_rest_in_the_bowl_is_placed() -> None:
    assert is_success(placed())
    assert progress(placed()) == 1.0


@pytest.mark.parametrize("changes", [{"is_held": True}, {"is_touched": True}, {"speed_m_s": 0.1}])
def test_an_object_in_the_bowl_counts_only_when_let_go_and_at_rest(changes: dict[str, object]) -> None:
    assert not is_success(placed(**changes))


def test_an_object_beside_the_bowl_is_not_placed() -> None:
    truth = scene_truth("place", "blue bowl", thing("red", "block", 0.5, 0.1 + 0.0575 + 0.0225), BOWL)
    assert not is_success(truth)
    assert progress(truth) == 0.0


def test_an_object_on_the_rim_is_not_placed() -> None:
    on_rim = thing("red", "block", 0.54, 0.1, PANDA_TABLE.bowl_height_m + 0.0225)
    assert not is_success(scene_truth("place", "blue bowl", on_rim, BOWL))


def test_an_object_held_above_the_bowl_is_three_quarters_done() -> None:
    above = thing("red", "block", 0.5, 0.1, 0.12, is_held=True, is_touched=True)
    truth = scene_truth("place", "blue bowl", above, BOWL)
    assert not is_success(truth)
    assert progress(truth) == 0.75


def test_the_wrong_bowl_does_not_count() -> None:
    other = thing("green", "bowl", 0.5, -0.1)
    truth = dataclasses.replace(placed(), objects=(*placed().objects, other), goal="green bowl")
    assert not is_success(truth)


def test_an_object_upright_on_the_block_is_stacked() -> None:
    assert is_success(stacked())


@pytest.mark.parametrize(
    "truth",
    [
        stacked(x=0.505, tilt_rad=0.5),
        stacked(x=0.54, z=0.05, tilt_rad=0.9),
        stacked(x=0.545, z=0.0225),
        stacked(z=ON_TOP_Z + 0.02),
        stacked(is_held=True, is_touched=True),
        stacked(is_touched=True),
        stacked(speed_m_s=0.2),
    ],
    ids=["tilted", "leaning", "beside", "above", "held", "touched", "falling"],
)
def test_what_only_looks_stacked_is_not(truth: SceneTruth) -> None:
    assert not is_success(truth)


def test_a_block_with_another_thing_on_it_is_not_stacked_on_that_thing() -> None:
    swapped = dataclasses.replace(stacked(), target="green block", goal="red block")
    assert not is_success(swapped)


@pytest.mark.parametrize(
    ("y", "direction", "expected"),
    [
        (0.15, "right", True),
        (-0.15, "left", True),
        (0.15, "left", False),
        (-0.15, "right", False),
        (0.13, "right", False),
    ],
)
def test_a_push_counts_beyond_the_line_on_its_own_side(y: float, direction: str, expected: bool) -> None:
    assert is_success(pushed(y, direction)) is expected


def test_pushing_another_object_over_the_line_does_not_count() -> None:
    truth = pushed(0.0, "right")
    assert truth.find("blue cylinder").position_m[1] > PANDA_TABLE.push_line_m
    assert not is_success(truth)


def test_a_pushed_object_has_to_come_to_rest() -> None:
    assert not is_success(pushed(0.15, "right", speed_m_s=0.1))


def test_push_progress_is_the_share_of_the_way() -> None:
    assert progress(pushed(0.07, "right")) == pytest.approx(0.5)
    assert progress(pushed(0.07, "left")) == 0.0


@pytest.mark.parametrize(("z", "is_held", "expected"), [(0.0225, False, 0.0), (0.0225, True, 0.25), (0.09, True, 0.5)])
def test_progress_counts_grasped_and_lifted(z: float, is_held: bool, expected: float) -> None:
    truth = scene_truth("place", "blue bowl", thing("red", "block", 0.5, -0.1, z, is_held=is_held), BOWL)
    assert progress(truth) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_scenes_leave_room_for_the_fingers(family: str) -> None:
    for seed in SEEDS:
        scene = sample_scene(np.random.default_rng(seed), family)
        for one, two in itertools.combinations(scene.objects, 2):
            spacing = np.hypot(one.x_m - two.x_m, one.y_m - two.y_m)
            assert spacing >= (0.138 if "bowl" in (one.shape, two.shape) else 0.112)
        for item in scene.objects:
            assert 0.38 <= item.x_m <= 0.64
            assert abs(item.y_m) <= 0.18
            assert abs(item.yaw_rad) <= 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_scenes_hold_what_the_family_needs(family: str) -> None:
    for seed in SEEDS:
        scene = sample_scene(np.random.default_rng(seed), family)
        shapes = [item.shape for item in scene.objects]
        graspable = len(shapes) - shapes.count("bowl")
        assert 2 <= graspable <= 3
        assert shapes.count("bowl") in ((1, 2) if family == "place" else (0,))
        assert "bowl" not in scene.target
        if family == "place":
            assert scene.goal.endswith("bowl")
        elif family == "stack":
            assert scene.goal.endswith("block")
        else:
            target = next(item for item in scene.objects if item.name == scene.target)
            assert abs(target.y_m) <= PANDA_TABLE.push_line_m - 0.07


def test_distractors_often_share_the_targets_colour_or_shape() -> None:
    shared_colour = shared_shape = 0
    for seed in SEEDS:
        scene = sample_scene(np.random.default_rng(seed), "push")
        colour, shape = scene.target.split()
        others = [item for item in scene.objects if item.name != scene.target]
        shared_colour += any(item.colour == colour for item in others)
        shared_shape += any(item.shape == shape for item in others)
    assert shared_colour > 0.2 * len(SEEDS)
    assert shared_shape > 0.2 * len(SEEDS)


def test_the_same_generator_state_draws_the_same_scene() -> None:
    assert sample_scene(np.random.default_rng(5), "place") == sample_scene(np.random.default_rng(5), "place")


def test_the_split_changes_the_sentence_and_nothing_else() -> None:
    train = sample_scene(np.random.default_rng(5), "stack", "train")
    heldout = sample_scene(np.random.default_rng(5), "stack", "language")
    assert train.instruction != heldout.instruction
    assert dataclasses.replace(heldout, instruction=train.instruction) == train


@pytest.mark.parametrize("family", FAMILIES)
def test_heldout_sentences_are_new_but_made_of_known_words(family: str) -> None:
    train, heldout = TEMPLATES[family]["train"], TEMPLATES[family]["language"]
    assert len(train) >= 6
    assert len(heldout) >= 2
    assert not set(train) & set(heldout)
    known = {word for split in TEMPLATES.values() for text in split["train"] for word in text.split()}
    assert {word for text in heldout for word in text.split()} <= known


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sentence_names_target_and_goal(family: str) -> None:
    for split, templates in TEMPLATES[family].items():
        for index in range(len(templates)):
            text = instruction_for(family, "red block", "left", split=split, index=index)
            assert "red block" in text
            assert "left" in text


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="place, push, stack"):
        sample_scene(np.random.default_rng(0), "throw")
    with pytest.raises(ConfigError, match="train, language"):
        sample_scene(np.random.default_rng(0), "place", "test")
    with pytest.raises(ConfigError, match="red, green"):
        ObjectSpec(colour="pink", shape="block", x_m=0.5, y_m=0.0)


def test_a_scene_with_two_objects_of_one_name_is_refused() -> None:
    twin = ObjectSpec(colour="red", shape="block", x_m=0.5, y_m=0.0)
    with pytest.raises(ConfigError, match="same name"):
        SceneSpec(
            family="push",
            objects=(twin, dataclasses.replace(twin, y_m=0.12)),
            target="red block",
            goal="left",
            instruction="",
            tool_start_m=(0.48, 0.0, 0.2),
        )


def test_training_and_evaluation_seeds_never_meet() -> None:
    assert train_seed(EVAL_OFFSET - 1) < eval_seed(0)
    assert is_eval_seed(eval_seed(7))
    assert not is_eval_seed(train_seed(7))
    with pytest.raises(ConfigError, match="outside"):
        train_seed(EVAL_OFFSET)
