"""Near misses played in the simulation: the expert does something else than what is asked, and no step may count."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.expert import expert_action, expert_stage
from roboalign.sdk.sim.scene import Goal
from roboalign.sdk.sim.seeds import eval_seed
from roboalign.sdk.sim.truth import SceneTruth
from roboalign.sdk.types import FloatArray

STEPS = 40


def reset(env: SimEnv, task: str, index: int = 0) -> SceneTruth:
    env.reset(seed=eval_seed(index), options={"task": task})
    return env.truth()


def pursue(env: SimEnv, goal: Goal, act: Callable[[SceneTruth, FloatArray], FloatArray] | None = None) -> list[bool]:
    """Plays the expert towards a goal of our own choice; returns after each step whether the task counts as solved."""
    counted = []
    for _ in range(STEPS):
        truth = dataclasses.replace(env.truth(), family=goal.kind, target=goal.target, goal=goal.goal, goals=())
        if expert_stage(truth) == "done":
            break
        action = expert_action(truth)
        env.advance(action if act is None else act(truth, action))
        counted.append(env.is_success())
    return counted


def twin_of(truth: SceneTruth) -> str:
    return next(o.name for o in truth.objects if o.name != truth.target and o.label == truth.target_object.label)


@pytest.mark.parametrize("task", ["left_of_bowl", "nearest_to_bowl", "between_bowl_and_block", "behind_cylinder"])
def test_the_wrong_twin_in_the_bowl_does_not_count(env: SimEnv, task: str) -> None:
    truth = reset(env, f"spatial/{task}")
    twin = twin_of(truth)
    assert not any(pursue(env, Goal(kind="place", target=twin, goal=truth.goal)))
    assert np.hypot(*(env.truth().find(twin).position_m - env.truth().find(truth.goal).position_m)[:2]) < 0.03


def test_the_right_object_in_the_wrong_bowl_does_not_count(env: SimEnv) -> None:
    goals = reset(env, "long/place_two").all_goals
    swapped = [Goal(kind="place", target=goals[i].target, goal=goals[1 - i].goal) for i in (0, 1)]
    assert not any(pursue(env, swapped[0]) + pursue(env, swapped[1]))


@pytest.mark.parametrize("task", ["place_two", "stack_and_push", "push_two", "stack_three"])
def test_the_first_of_two_goals_alone_does_not_count(env: SimEnv, task: str) -> None:
    first = reset(env, f"long/{task}").all_goals[0]
    assert not any(pursue(env, first))
    assert env.goals_done() == 1


def test_what_is_taken_out_again_no_longer_counts(env: SimEnv) -> None:
    goals = reset(env, "long/place_two").all_goals
    pursue(env, goals[0])
    assert env.truth().done == (True, False)
    pursue(env, dataclasses.replace(goals[0], goal=goals[1].goal))
    assert env.truth().done == (False, False)


def test_a_push_to_the_other_side_does_not_count(env: SimEnv) -> None:
    truth = reset(env, "push")
    other = {"left": "right", "right": "left"}[truth.goal]
    assert not any(pursue(env, Goal(kind="push", target=truth.target, goal=other)))


@pytest.mark.parametrize("stage", ["grasp", "lift", "carry", "lower"])
def test_an_object_that_is_still_held_does_not_count(env: SimEnv, stage: str) -> None:
    truth = reset(env, "object/red_block")
    reached: list[str] = []

    def stop(truth: SceneTruth, action: FloatArray) -> FloatArray:
        reached.extend([stage] * (env.truth().stage == stage))
        return np.zeros(5, np.float32) if reached else action

    assert not any(pursue(env, truth.all_goals[0], stop))
    assert reached


def test_an_object_dropped_on_the_way_does_not_count(env: SimEnv) -> None:
    truth = reset(env, "object/red_block")
    dropped: list[bool] = []

    def drop(truth: SceneTruth, action: FloatArray) -> FloatArray:
        dropped.extend([True] * bool(env.truth().target_object.position_m[2] > 0.06))
        return np.array([0, 0, 0, 0, 1], np.float32) if dropped else action

    assert not any(pursue(env, truth.all_goals[0], drop))
    assert dropped
    assert not env.truth().target_object.is_held
