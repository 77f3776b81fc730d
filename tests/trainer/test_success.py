"""The simulated reward: scenes are laid out again from a frame's truth, and an expert finishes the task."""

from dataclasses import replace

import numpy as np
import pytest

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.truth import SceneTruth
from roboalign.trainer.success import Rollout, RolloutPool, restore_scene, steps_to_success

T = 8


@pytest.fixture(scope="module")
def episode() -> tuple[list[SceneTruth], np.ndarray]:
    env = SimEnv("place")
    env.reset(seed=3)
    truths, actions = [], []
    while not env.is_success():
        truths.append(env.truth())
        actions.append(env.expert_action())
        env.advance(actions[-1])
    env.close()
    return truths, np.array(actions)


def still(gripper: float) -> np.ndarray:
    chunk = np.zeros((T, 5), np.float32)
    chunk[:, 4] = gripper
    return chunk


def rollouts(episode) -> tuple[list[int], list[Rollout]]:
    truths, actions = episode
    held = next(i for i, truth in enumerate(truths) if truth.stage == "carry")
    away = still(1.0)
    away[:, 2] = 0.02
    tries = [
        (0, actions[:T]),
        (0, still(1.0)),
        (0, away),
        (0, None),
        (held, actions[held : held + T]),
        (held, still(0.0)),
    ]
    return [row for row, _ in tries], [Rollout(truth=truths[row], actions=chunk) for row, chunk in tries]


def test_the_experts_chunk_is_worth_1_and_standing_still_nothing(episode) -> None:
    with RolloutPool(1) as pool:
        values = pool.outcomes(*rollouts(episode), T)
    assert values[0] == 1.0
    assert values[1:4] == [0.0, 0.0, 0.0]
    assert values[4] >= 0.8
    assert values[5] == 0.0


def test_two_processes_give_what_one_gives(episode) -> None:
    results = []
    for workers in (1, 2):
        with RolloutPool(workers) as pool:
            results.append(pool.outcomes(*rollouts(episode), T))
    assert results[0] == results[1]


def test_the_expert_needs_as_long_in_the_restored_scene(episode) -> None:
    truths, actions = episode
    for row in range(0, len(truths), 4):
        assert abs(steps_to_success(Rollout(truth=truths[row], actions=None)) - (len(actions) - row)) <= 2


def test_a_held_object_is_held_in_the_restored_scene(episode) -> None:
    truth = next(truth for truth in episode[0] if truth.stage == "carry")
    env = SimEnv("place")
    restore_scene(env, truth)
    found = env.truth()
    env.close()
    assert found.target_object.is_held
    np.testing.assert_allclose(found.target_object.position_m, truth.target_object.position_m, atol=0.003)
    np.testing.assert_allclose(found.state[:4], truth.state[:4], atol=0.003)


def test_what_cannot_be_restored_is_refused_by_name(episode) -> None:
    sequence = replace(episode[0][0], is_sequence=True)
    with pytest.raises(DataError, match="has a sequence of goals, which a simulated reward cannot restore"):
        restore_scene(SimEnv("place"), sequence)


def test_no_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="workers are 0, expected at least 1"):
        RolloutPool(0)
