import numpy as np
import pytest
from evaluation_fakes import SPEC, LineEnv, WalkPolicy, make_truth

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.controls import BlindPolicy, RandomPolicy, ShuffledInstruction, expert_policy
from roboalign.sdk.evaluation.episodes import SeededPolicy
from roboalign.sdk.evaluation.play import parse_task
from roboalign.sdk.evaluation.shuffle import shuffle_task
from roboalign.sdk.types import Observation

OBSERVATION = Observation(images={}, state=np.zeros(5), joint_pos_rad=np.zeros(1), instruction="true", time_s=0.0)


class Scene:
    def __init__(self, truth):
        self._truth = truth

    def truth(self):
        return self._truth


def chunks(policy, seed, count=200):
    policy.seed_episode(seed)
    policy.reset()
    return np.stack([policy.act(OBSERVATION).actions for _ in range(count)])


def test_random_actions_stay_within_the_limits_and_use_them():
    actions = chunks(RandomPolicy(SPEC), 0)
    assert np.abs(actions[..., :3]).max() <= np.float32(0.04)
    assert np.abs(actions[..., 3]).max() <= np.float32(0.2)
    assert np.abs(actions[..., :3]).max() > 0.039
    assert set(np.unique(actions[..., 4])) == {0.0, 1.0}


def test_random_answers_say_who_acted():
    assert RandomPolicy(SPEC).act(OBSERVATION).source == "random"


def test_a_random_episode_depends_on_its_seed_alone():
    policy = RandomPolicy(SPEC)
    first = chunks(policy, 3, 5)
    chunks(policy, 9, 17)
    np.testing.assert_array_equal(first, chunks(policy, 3, 5))
    assert not np.array_equal(first, chunks(policy, 4, 5))


def test_random_moves_are_held_for_a_chunk():
    actions = chunks(RandomPolicy(SPEC), 0)[..., :3]
    within = actions.std(axis=1).mean()
    between = actions.mean(axis=1).std()
    assert between > 2 * within


PLACE = ("place", "red block", "blue bowl", "red block", "green cylinder", "blue bowl", "orange bowl")


@pytest.mark.parametrize("seed", range(20))
def test_a_shuffled_place_names_another_target_and_goal_of_the_scene(seed):
    task = parse_task(shuffle_task(make_truth(*PLACE), np.random.default_rng(seed)))
    assert (task.family, task.target, task.goal) == ("place", "green cylinder", "orange bowl")


def test_a_shuffled_push_names_another_object_and_the_other_side():
    truth = make_truth("push", "red block", "left", "red block", "green cylinder", "blue block")
    tasks = [parse_task(shuffle_task(truth, np.random.default_rng(seed))) for seed in range(20)]
    assert {(task.target, task.goal) for task in tasks} == {("green cylinder", "right"), ("blue block", "right")}


@pytest.mark.parametrize("seed", range(20))
def test_a_scene_without_a_second_target_gets_the_sentence_of_another_scene(seed):
    truth = make_truth("stack", "red cylinder", "blue block", "red cylinder", "blue block")
    task = parse_task(shuffle_task(truth, np.random.default_rng(seed)))
    assert task.family == "stack"
    assert task.target != "red cylinder"


def test_the_wrapped_policy_hears_one_wrong_sentence_for_a_whole_episode():
    inner = WalkPolicy()
    policy = ShuffledInstruction(inner, Scene(make_truth(*PLACE)))
    assert isinstance(policy, SeededPolicy)
    for seed in (1, 2, 1):
        policy.seed_episode(seed)
        policy.reset()
        policy.act(OBSERVATION)
        policy.act(OBSERVATION)
    assert "true" not in inner.told
    assert inner.told[0] == inner.told[1] == inner.told[4]


def test_closing_the_shuffle_closes_the_policy():
    inner = WalkPolicy()
    ShuffledInstruction(inner, Scene(make_truth(*PLACE))).close()
    assert inner.is_closed


def test_a_blind_policy_gets_black_pictures_and_everything_else():
    env, inner = LineEnv(), WalkPolicy()
    env.reset(seed=1, options={"task": "place"})
    env.x = 0.1
    seen = []
    inner.act = lambda observation: seen.append(observation)
    BlindPolicy(inner).act(env.observe(with_image=True))
    assert not seen[0].images["front"].any()
    assert (seen[0].instruction, seen[0].state[0]) == ("place for 1", np.float32(0.1))


def test_a_wrapped_policy_that_does_not_look_gets_no_pictures():
    inner = WalkPolicy()
    inner.needs_image = False
    assert not BlindPolicy(inner).needs_image


def test_a_scene_without_an_expert_says_so():
    with pytest.raises(ConfigError, match="LineEnv has no expert"):
        expert_policy(LineEnv())
