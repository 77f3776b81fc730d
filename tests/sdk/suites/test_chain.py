"""The suite `chain`: every chain can be done, asks for nothing that is so already, and goals count in their turn."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.scene import Goal, SceneSpec, scene_from_json, scene_to_json
from roboalign.sdk.sim.seeds import eval_seed
from roboalign.sdk.sim.tasks import SPLITS
from roboalign.sdk.suites.chain import ACTIONS, NUM_GOALS, Action, BenchState, chain_tasks, possible
from roboalign.sdk.suites.splits import TRAIN_PAIRS

TASKS = {task.name: task for task in chain_tasks()}
SEEDS = range(30)


def draw(name: str, seed: int = 0, split: str = "train") -> SceneSpec:
    return TASKS[name].sample(np.random.default_rng(seed), robot="panda", split=split)


def roles(scene: SceneSpec) -> dict[str, str]:
    """Names to roles: A is the one in front."""
    things = sorted((it for it in scene.objects if it.shape != "bowl"), key=lambda it: -it.x_m)
    bowl = next(it for it in scene.objects if it.shape == "bowl")
    return {things[0].name: "A", things[1].name: "B", bowl.name: "bowl"}


def actions(scene: SceneSpec) -> list[Action]:
    names = roles(scene)

    def edge(goal: Goal) -> Action:
        wanted = (goal.kind, names.get(goal.target, goal.target), names.get(goal.goal, goal.goal))
        return next(it for it in ACTIONS.values() if (it.kind, it.target, it.goal) == wanted)

    return [edge(goal) for goal in scene.goals]


def start(scene: SceneSpec) -> BenchState:
    opening = {item.kind: item.opening > 0.5 for item in scene.fixtures}
    shape = next(item.shape for item in scene.objects if roles(scene)[item.name] == "A")
    return BenchState(
        drawer="open" if opening["drawer"] else "closed",
        door="right" if opening["door"] else "left",
        light="on" if opening["light"] else "off",
        shape_a=shape,
    )


@functools.cache
def scenes() -> tuple[SceneSpec, ...]:
    return tuple(draw(name, seed) for name in TASKS for seed in SEEDS)


def test_there_are_ten_tasks_of_five_goals_with_every_split() -> None:
    assert len(TASKS) == 10
    assert all(task.splits == SPLITS for task in TASKS.values())
    assert all(len(scene.goals) == len(scene.instructions) == NUM_GOALS == 5 for scene in scenes())
    assert all(scene.is_sequence and scene.instruction == scene.instructions[0] for scene in scenes())


def test_every_goal_can_be_reached_in_its_turn_and_is_not_so_already() -> None:
    for scene in scenes():
        state = start(scene)
        for action in actions(scene):
            assert action.is_possible(state)
            assert action.after(state) != state
            state = action.after(state)


def test_no_goal_is_about_the_same_thing_as_the_one_before() -> None:
    for scene in scenes():
        for one, two in itertools.pairwise(scene.goals):
            assert one.target != two.target


def test_the_first_goal_is_the_one_of_the_tasks_name() -> None:
    for name in TASKS:
        assert actions(draw(name))[0] is ACTIONS[name.removeprefix("chain/")]


def test_every_edge_of_the_graph_is_asked_for() -> None:
    asked = [id(action) for scene in scenes() for action in actions(scene)]
    assert all(asked.count(id(action)) > 0.02 * len(asked) for action in ACTIONS.values())


@pytest.mark.parametrize(
    ("place_a", "place_b", "impossible"),
    [
        ("bowl", "table", {"place", "place_other", "stack", "push_left", "push_right"}),
        ("B", "table", {"place", "place_other", "stack", "push_left", "push_right"}),
        ("left", "table", {"push_left"}),
        ("right", "bowl", {"push_right", "place", "place_other", "stack"}),
    ],
)
def test_where_the_objects_are_decides_what_can_be_done(place_a: str, place_b: str, impossible: set[str]) -> None:
    state = BenchState(drawer="open", door="left", light="on", place_a=place_a, place_b=place_b)
    found = {name for name, action in ACTIONS.items() if action not in possible(state)}
    assert found == impossible | {"open_drawer", "slide_left", "light_on"}


def test_a_cylinder_is_never_pushed() -> None:
    pushed = [goal.target for scene in scenes() for goal in scene.goals if goal.kind == "push"]
    assert pushed
    assert all(name.endswith("block") for name in pushed)


def test_training_has_no_heldout_pair() -> None:
    for scene in scenes():
        assert {(it.colour, it.shape) for it in scene.objects if it.shape != "bowl"} <= set(TRAIN_PAIRS)


@pytest.mark.parametrize("name", TASKS)
def test_another_sentence_changes_nothing_else(name: str) -> None:
    train, other = draw(name, 3), draw(name, 3, "language")
    assert all(one != two for one, two in zip(train.instructions, other.instructions, strict=True))
    said = {"instruction": train.instruction, "instructions": train.instructions}
    assert dataclasses.replace(other, **said) == train


@pytest.mark.parametrize("name", TASKS)
def test_the_swap_mirrors_the_objects_and_leaves_the_rest(name: str) -> None:
    train, other = draw(name, 3), draw(name, 3, "swap")
    mirrored = tuple(dataclasses.replace(item, y_m=-item.y_m) for item in train.objects)
    assert dataclasses.replace(train, objects=mirrored) == other


@pytest.mark.parametrize("name", TASKS)
def test_other_objects_change_colours_and_names_only(name: str) -> None:
    for seed in range(6):
        train, other = draw(name, seed), draw(name, seed, "object")
        assert [it is ot for it, ot in zip(actions(train), actions(other), strict=True)] == [True] * NUM_GOALS
        assert train.fixtures == other.fixtures
        assert [(it.x_m, it.y_m, it.shape, it.yaw_rad) for it in train.objects] == [
            (it.x_m, it.y_m, it.shape, it.yaw_rad) for it in other.objects
        ]
        front = next(it for it in other.objects if roles(other)[it.name] == "A")
        assert (front.colour, front.shape) not in TRAIN_PAIRS


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_survives_json(split: str) -> None:
    for name in TASKS:
        scene = draw(name, 1, split)
        assert scene_from_json(scene_to_json(scene)) == scene


def test_the_sentence_changes_when_a_goal_is_reached_and_every_goal_counts_once(env: SimEnv) -> None:
    env.reset(seed=eval_seed(0), options={"task": "chain/open_drawer"})
    heard = [env.instruction]
    while not env.is_success():
        done = env.goals_done()
        assert not env.advance(env.expert_action()), "cut off before success"
        assert env.goals_done() - done in (0, 1)
        assert env.instruction == env.scene.instructions[min(env.goals_done(), NUM_GOALS - 1)]
        heard += [env.instruction] if env.instruction != heard[-1] else []
    assert heard == list(env.scene.instructions)
    assert env.progress() == 1.0


def test_a_goal_that_is_undone_later_stays_counted(env: SimEnv) -> None:
    """Opened, then closed again: both were asked for, both count."""
    env.reset(seed=eval_seed(0), options={"task": "chain/open_drawer"})
    chain = tuple(ACTIONS[name] for name in ("open_drawer", "slide_right", "close_drawer"))
    goals = tuple(Goal(kind=it.kind, target=it.target, goal=it.goal) for it in chain)
    fixtures = tuple(dataclasses.replace(it, opening=0.0) if it.kind == "door" else it for it in env.scene.fixtures)
    scene = dataclasses.replace(env.scene, goals=goals, instructions=("a", "b", "c"), fixtures=fixtures)
    env.reset(seed=0, options={"scene": scene})
    while not env.is_success():
        assert not env.advance(env.expert_action()), "cut off before success"
    assert env.goals_done() == 3
    assert env.truth().fixture("drawer").opening < 0.1


@pytest.mark.parametrize("name", ["chain/push_left"])
def test_the_expert_walks_whole_chains(env: SimEnv, name: str) -> None:
    env.reset(seed=eval_seed(1), options={"task": name})
    while not env.is_success():
        assert not env.advance(env.expert_action()), f"cut off after {env.goals_done()} goals"


@pytest.mark.slow
@pytest.mark.parametrize(("noise_m", "least"), [(0.0, 48), (0.008, 43)])
@pytest.mark.parametrize("name", TASKS)
def test_the_expert_walks_50_chains(env: SimEnv, name: str, noise_m: float, least: int) -> None:
    solved = 0
    for index in range(50):
        env.reset(seed=eval_seed(index), options={"task": name})
        rng, is_cut = np.random.default_rng(index), False
        while not (is_cut or env.is_success()):
            noise = np.array([*rng.normal(0, 1, 3) * noise_m, 0, 0], np.float32)
            is_cut = env.advance(env.expert_action() + noise)
        solved += env.is_success()
    assert solved >= least
