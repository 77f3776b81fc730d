"""The suite `goal`: one table, ten tasks, and only the sentence tells which."""

import dataclasses
import math

import numpy as np
import pytest

from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.layout import PANDA_TABLE
from roboalign.sdk.sim.scene import SceneSpec, scene_from_json, scene_to_json
from roboalign.sdk.sim.seeds import eval_seed
from roboalign.sdk.sim.tasks import SPLITS, GoalTask
from roboalign.sdk.suites.goal import goal_tasks
from roboalign.sdk.suites.splits import HELDOUT_PAIRS
from roboalign.sdk.suites.workbench import bench_scene

TASKS = {task.name: task for task in goal_tasks()}
SEEDS = range(40)


def draw(task: GoalTask, seed: int = 0, split: str = "train") -> SceneSpec:
    return task.sample(np.random.default_rng(seed), robot="panda", split=split)


def without_words(scene: SceneSpec) -> SceneSpec:
    goal = {"family": "push", "target": scene.objects[0].name, "goal": "left", "goals": (), "task": ""}
    return dataclasses.replace(scene, instruction="", **goal)


def test_there_are_ten_tasks_with_every_split() -> None:
    assert len(TASKS) == 10
    assert all(name.startswith("goal/") and task.splits == SPLITS for name, task in TASKS.items())


def test_only_the_sentence_tells_the_tasks_apart() -> None:
    for seed in SEEDS:
        scenes = [draw(task, seed) for task in TASKS.values()]
        assert len({scene_to_json(without_words(scene)) for scene in scenes}) == 1
        assert len({scene.instruction for scene in scenes}) == len(scenes)


def test_training_always_has_the_same_things_on_the_table() -> None:
    names = {tuple(sorted(item.name for item in draw(task, s).objects)) for task in TASKS.values() for s in SEEDS}
    assert names == {("blue bowl", "green cylinder", "red block")}


def test_places_vary_a_little() -> None:
    scenes = [draw(TASKS["goal/stack"], seed) for seed in SEEDS]
    for kind in ("drawer", "door", "button", "light"):
        places = np.array([(f.x_m, f.y_m) for scene in scenes for f in scene.fixtures if f.kind == kind])
        assert (np.ptp(places, axis=0) > 0.008).all()
        assert (np.ptp(places, axis=0) < 0.04).all()


@pytest.mark.parametrize("split", ["train", "swap"])
def test_objects_leave_room_for_the_fingers(split: str) -> None:
    for seed in SEEDS:
        scene = draw(TASKS["goal/push_left"], seed, split)
        places = {item.shape: (item.x_m, item.y_m) for item in scene.objects}
        assert math.dist(places["block"], places["cylinder"]) >= PANDA_TABLE.spacing_m
        assert all(math.dist(places["bowl"], places[it]) >= PANDA_TABLE.bowl_spacing_m for it in ("block", "cylinder"))
        assert places["cylinder"][0] - max(places["block"][0], places["bowl"][0]) >= PANDA_TABLE.push_lane_m
        assert abs(places["cylinder"][1]) <= PANDA_TABLE.push_start_y_m


@pytest.mark.parametrize("name", TASKS)
def test_another_sentence_changes_nothing_else(name: str) -> None:
    train, other = draw(TASKS[name], 3), draw(TASKS[name], 3, "language")
    assert train.instruction != other.instruction
    assert dataclasses.replace(other, instruction=train.instruction) == train


@pytest.mark.parametrize("name", TASKS)
def test_the_swap_mirrors_the_objects_and_leaves_the_rest(name: str) -> None:
    train, other = draw(TASKS[name], 3), draw(TASKS[name], 3, "swap")
    mirrored = tuple(dataclasses.replace(item, y_m=-item.y_m) for item in train.objects)
    assert dataclasses.replace(train, objects=mirrored) == other


@pytest.mark.parametrize("name", TASKS)
def test_other_objects_stand_at_the_same_places(name: str) -> None:
    train, other = draw(TASKS[name], 3), draw(TASKS[name], 3, "object")
    assert {(item.x_m, item.y_m, item.shape) for item in train.objects} == {
        (item.x_m, item.y_m, item.shape) for item in other.objects
    }
    assert {(item.colour, item.shape) for item in other.objects} == {*HELDOUT_PAIRS, ("blue", "bowl")}
    assert train.fixtures == other.fixtures


@pytest.mark.parametrize("split", ["camera", "lighting"])
def test_camera_and_light_are_not_part_of_the_scene(split: str) -> None:
    assert draw(TASKS["goal/stack"], 5, split) == draw(TASKS["goal/stack"], 5)


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_survives_json(split: str) -> None:
    for task in TASKS.values():
        scene = draw(task, 1, split)
        assert scene_from_json(scene_to_json(scene)) == scene


def test_several_goals_become_a_sequence_with_a_sentence_for_each() -> None:
    one, two = draw(TASKS["goal/stack"]), draw(TASKS["goal/open_drawer"])
    scene = bench_scene(
        task="goal/stack",
        objects=one.objects,
        fixtures=one.fixtures,
        goals=(*one.goals, *two.goals),
        instructions=("stack", "open"),
        start=np.random.default_rng(0),
        robot="panda",
        split="train",
    )
    assert scene.is_sequence
    assert scene.instructions == ("stack", "open")


@pytest.mark.parametrize("name", TASKS)
def test_the_expert_solves_every_task_that_is_not_solved_at_the_start(env: SimEnv, name: str) -> None:
    env.reset(seed=eval_seed(1), options={"task": name})
    assert not env.is_success()
    while not env.is_success():
        assert not env.advance(env.expert_action()), "cut off before success"


def test_doing_one_task_solves_no_other(env: SimEnv) -> None:
    """Ten different ends: who does not listen is right once in ten times."""
    for name in TASKS:
        env.reset(seed=eval_seed(0), options={"task": name})
        while not env.is_success():
            env.advance(env.expert_action())
        truth, solved = env.truth(), []
        for other, task in TASKS.items():
            goals = draw(task).goals
            now = dataclasses.replace(truth, family=goals[0].kind, target=goals[0].target, goal=goals[0].goal)
            solved += [other] if task.is_success(dataclasses.replace(now, goals=goals)) else []
        assert solved == [name]


@pytest.mark.slow
@pytest.mark.parametrize(("noise_m", "least"), [(0.0, 48), (0.008, 43)])
@pytest.mark.parametrize("name", TASKS)
def test_the_expert_succeeds_on_50_seeds(env: SimEnv, name: str, noise_m: float, least: int) -> None:
    solved = 0
    for index in range(50):
        env.reset(seed=eval_seed(index), options={"task": name})
        rng, is_cut = np.random.default_rng(index), False
        while not (is_cut or env.is_success()):
            noise = np.array([*rng.normal(0, 1, 3) * noise_m, 0, 0], np.float32)
            is_cut = env.advance(env.expert_action() + noise)
        solved += env.is_success()
    assert solved >= least
