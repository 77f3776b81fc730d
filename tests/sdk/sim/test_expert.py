"""The expert solves what it should, from the present alone, and recovers from disturbances."""

import dataclasses

import numpy as np
import pytest

from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.expert import expert_action, expert_stage
from roboalign.sdk.sim.seeds import train_seed
from roboalign.sdk.sim.tasks import FAMILIES
from roboalign.sdk.sim.truth import STAGES


def solve(env: SimEnv, family: str, seed: int, noise_m: float = 0.0) -> list[str]:
    """Runs the expert until it succeeds or time is up; returns its stages."""
    env.reset(seed=seed, options={"task": family})
    rng = np.random.default_rng(seed)
    stages = []
    while True:
        truth = env.truth()
        action = expert_action(truth)
        stages.append(truth.stage)
        assert truth.stage in STAGES
        assert action.dtype == np.float32
        assert env.action_space.contains(action)
        if noise_m and rng.random() < 0.3:
            action[:3] += rng.normal(0, noise_m, 3)
        if env.advance(action) or env.is_success():
            return stages


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expert_solves_every_family(env: SimEnv, family: str) -> None:
    for index in range(6):
        solve(env, family, train_seed(index))
        assert env.is_success(), f"{family} seed {index}"
        assert env.progress() == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expert_recovers_from_noise(env: SimEnv, family: str) -> None:
    for index in range(4):
        solve(env, family, train_seed(index), noise_m=0.01)
        assert env.is_success(), f"{family} seed {index}"


def test_the_expert_goes_through_its_stages_in_order(env: SimEnv) -> None:
    stages = solve(env, "place", train_seed(3))
    first = [stages.index(name) for name in ("reach", "descend", "grasp", "lift", "carry", "lower", "release")]
    assert first == sorted(first)


def test_after_success_the_expert_leaves_and_stays_away(env: SimEnv) -> None:
    solve(env, "place", train_seed(1))
    for _ in range(6):
        env.advance(expert_action(env.truth()))
    assert env.truth().stage == "done"
    assert env.is_success()
    still = expert_action(env.truth())
    np.testing.assert_array_equal(still, [0, 0, 0, 0, 1])


def test_the_expert_reads_the_truth_and_nothing_else(env: SimEnv) -> None:
    """A memoryless policy can be cloned from single pictures: any order of questions gives the same answers."""
    env.reset(seed=train_seed(2), options={"task": "stack"})
    truths = []
    for _ in range(10):
        truths.append(env.truth())
        env.advance(expert_action(env.truth()))
    forward = [expert_action(truth) for truth in truths]
    backward = [expert_action(truth) for truth in reversed(truths)][::-1]
    np.testing.assert_array_equal(forward, backward)


def test_the_stage_written_in_the_truth_does_not_steer_the_expert(env: SimEnv) -> None:
    env.reset(seed=train_seed(2), options={"task": "place"})
    truth = env.truth()
    misled = dataclasses.replace(truth, stage="done")
    assert expert_stage(misled) == truth.stage
    np.testing.assert_array_equal(expert_action(misled), expert_action(truth))


def test_a_dropped_object_is_picked_up_again(env: SimEnv) -> None:
    env.reset(seed=train_seed(4), options={"task": "place"})
    while env.truth().stage != "carry":
        env.advance(expert_action(env.truth()))
    env.advance(np.array([0, 0, 0, 0, 1], np.float32))
    env.advance(np.array([0, 0, 0, 0, 1], np.float32))
    assert not env.truth().target_object.is_held
    while not env.is_success():
        assert not env.advance(expert_action(env.truth())), "cut off before success"


def test_fingers_that_opened_inside_the_bowl_come_free(env: SimEnv) -> None:
    """Opened too low, the fingers pressed on the wall from inside; the expert rose and the bowl came along."""
    env.reset(seed=151, options={"task": "place"})
    while env.truth().stage != "release":
        env.advance(expert_action(env.truth()))
    env.advance(np.array([0, 0, -0.03, 0, 1], np.float32))
    assert env.truth().state[2] < 0.036
    while not env.is_success():
        assert not env.advance(expert_action(env.truth())), "cut off before success"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "noise_m", "least"),
    [("place", 0, 0.97), ("push", 0, 0.97), ("stack", 0, 0.9), ("place", 0.01, 0.85), ("push", 0.01, 0.85)],
)
def test_the_expert_succeeds_on_200_seeds(env: SimEnv, family: str, noise_m: float, least: float) -> None:
    solved = 0
    for index in range(200):
        solve(env, family, train_seed(index), noise_m)
        solved += env.is_success()
    assert solved >= least * 200
