"""Each held-out split changes its own thing and nothing else, for every task of spatial, object and long."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.layout import PANDA_TABLE
from roboalign.sdk.sim.scene import Goal, ObjectSpec, SceneSpec
from roboalign.sdk.sim.tasks import GoalTask
from roboalign.sdk.suites.long import long_tasks
from roboalign.sdk.suites.objects import object_tasks
from roboalign.sdk.suites.placing import fits
from roboalign.sdk.suites.spatial import RELATIONS, holds, spatial_tasks
from roboalign.sdk.suites.splits import HELDOUT_PAIRS, TRAIN_PAIRS, mirrored, rounded

TASKS = (*spatial_tasks(), *object_tasks(), *long_tasks())
SEEDS = range(200)
FEW = range(6)
CM = 0.01

every_task = pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])


@functools.cache
def draw(task: GoalTask, seed: int, split: str = "train") -> SceneSpec:
    return task.sample(np.random.default_rng(seed), split=split)


def pairs(scene: SceneSpec) -> list[tuple[str, str]]:
    return [(item.colour, item.shape) for item in scene.objects]


def places(scene: SceneSpec) -> list[tuple[float, float, float]]:
    return [(item.x_m, item.y_m, item.yaw_rad) for item in scene.objects]


def place_of(scene: SceneSpec, name: str) -> tuple[float, float]:
    return next((item.x_m, item.y_m) for item in scene.objects if item.name == name)


@every_task
def test_language_changes_the_sentence_alone(task: GoalTask) -> None:
    for seed in FEW:
        train, other = draw(task, seed), draw(task, seed, "language")
        assert other.instruction != train.instruction
        assert dataclasses.replace(other, instruction=train.instruction) == train


@every_task
def test_object_changes_the_pair_of_the_targets_alone(task: GoalTask) -> None:
    for seed in FEW:
        train, other = draw(task, seed), draw(task, seed, "object")
        assert places(other) == places(train)
        assert [goal.kind for goal in other.goals] == [goal.kind for goal in train.goals]
        assert [item.shape for item in other.objects] == [item.shape for item in train.objects]
        new = {item.name: old.name for item, old in zip(other.objects, train.objects, strict=True)}
        assert [new[goal.target] for goal in other.goals] == [goal.target for goal in train.goals]
        assert other.tool_start_m == train.tool_start_m


@every_task
def test_object_makes_a_held_out_pair_the_target_and_says_so(task: GoalTask) -> None:
    for seed in FEW:
        train, other = draw(task, seed), draw(task, seed, "object")
        first = next(item for item in other.objects if item.name == other.target)
        assert (first.colour, first.shape) in HELDOUT_PAIRS
        assert f"{first.colour} {first.shape}" in other.instruction
        assert len(other.instruction.split()) == len(train.instruction.split())


@every_task
def test_no_held_out_pair_is_in_any_other_split(task: GoalTask) -> None:
    for seed in FEW:
        for split in ("train", "language", "swap", "camera", "lighting"):
            assert not set(pairs(draw(task, seed, split))) & set(HELDOUT_PAIRS)


@every_task
def test_swap_changes_the_places_alone(task: GoalTask) -> None:
    for seed in FEW:
        train, other = draw(task, seed), draw(task, seed, "swap")
        back = tuple(
            dataclasses.replace(new, x_m=old.x_m, y_m=old.y_m)
            for new, old in zip(other.objects, train.objects, strict=True)
        )
        assert dataclasses.replace(other, objects=back) == train
        assert places(other) != places(train)


@every_task
def test_swap_exchanges_the_halves_of_the_region(task: GoalTask) -> None:
    for seed in FEW:
        train, other = draw(task, seed), draw(task, seed, "swap")
        assert other in (mirrored(train, "x"), mirrored(train, "y"))
        assert mirrored(mirrored(train, "y"), "y") == train


@every_task
def test_camera_and_lighting_leave_the_scene_to_the_environment(task: GoalTask) -> None:
    for seed in FEW:
        assert draw(task, seed, "camera") == draw(task, seed, "lighting") == draw(task, seed)


@every_task
@pytest.mark.parametrize("split", ["train", "swap"])
def test_objects_stand_on_the_table_with_room_for_the_hand(task: GoalTask, split: str) -> None:
    for seed in FEW:
        scene = draw(task, seed, split)
        for one, two in itertools.combinations(scene.objects, 2):
            spacing = math.hypot(one.x_m - two.x_m, one.y_m - two.y_m)
            is_bowl = "bowl" in (one.shape, two.shape)
            assert spacing >= (PANDA_TABLE.bowl_spacing_m if is_bowl else PANDA_TABLE.spacing_m)
        assert fits(scene.objects, scene.goals, PANDA_TABLE)
        low, high = PANDA_TABLE.x_range_m
        assert all(low <= x <= high and abs(y) <= PANDA_TABLE.object_y_limit_m for x, y, _ in places(scene))


@every_task
def test_the_numbers_of_a_scene_are_those_that_are_stored(task: GoalTask) -> None:
    for split in ("train", "swap"):
        assert all(rounded(draw(task, seed, split)) == draw(task, seed, split) for seed in FEW)


RELATION_OF = {
    "left_of_bowl": ("left", ("bowl",)),
    "right_of_bowl": ("right", ("bowl",)),
    "left_of_block": ("left", ("block",)),
    "right_of_cylinder": ("right", ("cylinder",)),
    "behind_cylinder": ("behind", ("cylinder",)),
    "in_front_of_block": ("front", ("block",)),
    "nearest_to_bowl": ("nearest", ("bowl",)),
    "farthest_from_block": ("farthest", ("block",)),
    "between_bowl_and_block": ("between", ("bowl", "block")),
    "between_bowl_and_cylinder": ("between", ("bowl", "cylinder")),
}


def twin_and_marks(scene: SceneSpec, shapes: tuple[str, ...]) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    """Finds, from the scene alone, the object that looks like the target, and the landmarks of these shapes."""
    target = next(item for item in scene.objects if item.name == scene.target)
    twins = [o for o in scene.objects if (o.colour, o.shape) == (target.colour, target.shape) and o is not target]
    assert len(twins) == 1
    marks = []
    for shape in shapes:
        found = [o for o in scene.objects if o.shape == shape and o is not target and o is not twins[0]]
        assert len(found) == 1
        marks.append((found[0].x_m, found[0].y_m))
    return (twins[0].x_m, twins[0].y_m), marks


@pytest.mark.parametrize("split", ["train", "swap"])
@pytest.mark.parametrize("task", spatial_tasks(), ids=list(RELATION_OF))
def test_the_relation_clearly_holds_for_the_target_alone(task: GoalTask, split: str) -> None:
    relation, shapes = RELATION_OF[task.name.partition("/")[2]]
    for seed in SEEDS if split == "train" else range(40):
        scene = draw(task, seed, split)
        target = place_of(scene, scene.target)
        twin, marks = twin_and_marks(scene, shapes)
        assert RELATIONS[relation].margin_m(target, twin, marks) > 3.5 * CM
        assert not holds(relation, twin, target, marks)


def test_relations_are_those_of_the_camera_picture() -> None:
    """The camera faces the robot: the picture's right is +y, its lower edge (the front) is +x."""
    mark = [(0.5, 0.0)]
    assert holds("right", (0.5, 0.1), (0.5, -0.1), mark)
    assert holds("left", (0.5, -0.1), (0.5, 0.1), mark)
    assert holds("front", (0.6, 0.0), (0.4, 0.0), mark)
    assert holds("behind", (0.4, 0.0), (0.6, 0.0), mark)


def test_what_is_beyond_the_end_of_two_landmarks_is_not_between_them() -> None:
    marks = [(0.5, -0.1), (0.5, 0.0)]
    assert holds("between", (0.5, -0.05), (0.5, 0.15), marks)
    assert not holds("between", (0.5, 0.15), (0.6, 0.15), marks)


@pytest.mark.parametrize("task", spatial_tasks(), ids=list(RELATION_OF))
def test_a_spatial_sentence_never_says_a_tag(task: GoalTask) -> None:
    for seed in FEW:
        scene = draw(task, seed)
        assert not {"a", "b"} & set(scene.instruction.split())
        assert scene.target[-2:] in (" a", " b")
        assert scene.target[:-2] in scene.instruction


def test_the_tag_says_nothing_about_which_twin_is_meant() -> None:
    tags = [draw(task, seed).target[-1] for task in spatial_tasks() for seed in FEW]
    assert 0.35 < tags.count("a") / len(tags) < 0.65


@pytest.mark.parametrize("task", object_tasks(), ids=[task.name for task in object_tasks()])
def test_neither_colour_nor_shape_alone_finds_the_target(task: GoalTask) -> None:
    for seed in FEW:
        scene = draw(task, seed)
        colour, shape = scene.target.split()
        others = [(item.colour, item.shape) for item in scene.objects if item.name != scene.target]
        assert any(kind == shape and hue != colour for hue, kind in others)
        is_held_out = any((colour, kind) in HELDOUT_PAIRS for kind in ("block", "cylinder"))
        assert is_held_out or any(hue == colour and kind not in (shape, "bowl") for hue, kind in others)


def test_the_object_suite_has_one_task_for_each_training_pair() -> None:
    assert [task.name for task in object_tasks()] == [f"object/{colour}_{shape}" for colour, shape in TRAIN_PAIRS]


def test_in_training_the_target_has_a_half_of_its_own() -> None:
    for task in object_tasks():
        signs = set()
        for seed in FEW:
            scene = draw(task, seed)
            sign = math.copysign(1.0, place_of(scene, scene.target)[1])
            signs.add(sign)
            others = [o for o in scene.objects if o.name != scene.target and o.shape != "bowl"]
            assert all(sign * other.y_m < 0 for other in others)
        assert len(signs) == 1


@every_task
def test_every_set_of_sentences_is_large_enough_and_apart(task: GoalTask) -> None:
    said: dict[str, set[str]] = {"train": set(), "language": set()}
    for split, found in said.items():
        for seed in range(40 if split == "train" else 12):
            found.add(_form(draw(task, seed, split)))
    assert len(said["train"]) >= 5
    assert len(said["language"]) >= 2
    assert not said["train"] & said["language"]
    known = {word for form in said["train"] for word in form.split()}
    assert {word for form in said["language"] for word in form.split()} <= known


def _form(scene: SceneSpec) -> str:
    """Returns the sentence without its colours and shapes: two of one form differ in objects only."""
    words = {"red", "green", "blue", "yellow", "purple", "orange", "block", "cylinder", "bowl", "left", "right"}
    return " ".join("_" if word in words else word for word in scene.instruction.split())


def test_goals_that_do_not_interfere_are_named_in_any_order() -> None:
    task = next(task for task in long_tasks() if task.name == "long/place_and_push")
    orders = {tuple(goal.kind for goal in draw(task, seed).goals) for seed in FEW}
    assert orders == {("place", "push"), ("push", "place")}


def test_goals_that_build_on_each_other_keep_their_order() -> None:
    task = next(task for task in long_tasks() if task.name == "long/stack_in_bowl_and_push")
    for seed in FEW:
        kinds = [goal.kind for goal in draw(task, seed).goals]
        assert kinds.index("place") < kinds.index("stack")


@every_task
def test_goals_are_in_the_order_of_the_sentence(task: GoalTask) -> None:
    for seed in FEW:
        scene = draw(task, seed)
        at = [scene.instruction.index(goal.target.removesuffix(" a").removesuffix(" b")) for goal in scene.goals]
        assert at[0] == min(at)


def test_a_mirror_along_another_axis_is_refused() -> None:
    block = ObjectSpec(colour="red", shape="block", x_m=0.5, y_m=0.0)
    goal = Goal(kind="push", target="red block", goal="left")
    fields = {"family": "push", "target": goal.target, "goal": goal.goal, "instruction": "", "tool_start_m": (0, 0, 0)}
    with pytest.raises(ConfigError, match="choose x or y"):
        mirrored(SceneSpec(objects=(block,), **fields), "z")
