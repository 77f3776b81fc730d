"""Thoughts about another scene, and thoughts of some calls ago."""

import numpy as np
import pytest
from evaluation_fakes import LineEnv

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.contenders import PolicyRef
from roboalign.sdk.evaluation.episodes import run_episode
from roboalign.sdk.evaluation.thoughts import ShuffledThoughts, StaleThoughts
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.types import ActionChunk


class Thinker:
    """Stays where it is and remembers what it was told to think about."""

    def __init__(self):
        self.about = []
        self.observed = []

    def reset(self):
        pass

    def act(self, observation, *, thought_about=None):
        self.observed.append(observation)
        self.about.append(thought_about)
        actions = np.zeros((8, 5), np.float32)
        return ActionChunk(actions=actions, rate_hz=10.0, source="flow", thought="x")

    def close(self):
        pass


@pytest.fixture(scope="module")
def env():
    made = SimEnv("place", max_steps=60)
    yield made
    made.close()


def shuffled_episode(env, *, seed, replan_every=None):
    thinker = Thinker()
    policy = ShuffledThoughts(thinker, env)
    run_episode(env, policy, seed=seed, task="place", replan_every=replan_every)
    policy.close()
    return thinker


def test_shuffled_thoughts_are_about_another_scene_of_the_task(env):
    thinker = shuffled_episode(env, seed=1_000_000_003)
    assert len(thinker.about) == 8
    for mine, other in zip(thinker.observed, thinker.about, strict=True):
        assert not np.array_equal(mine.images["front"], other.images["front"])
        assert mine.instruction != other.instruction
        assert "bowl" in other.instruction


def test_the_other_scene_moves_on_as_long_as_this_one_does(env):
    thinker = shuffled_episode(env, seed=1_000_000_003, replan_every=4)
    steps = np.diff([about.time_s for about in thinker.about[:5]])
    np.testing.assert_allclose(steps, 0.4, atol=1e-6)
    assert not np.array_equal(thinker.about[0].state, thinker.about[4].state)


def test_the_thoughts_of_an_episode_depend_on_its_seed_alone(env):
    first = shuffled_episode(env, seed=1_000_000_003)
    shuffled_episode(env, seed=1_000_000_004)
    again = shuffled_episode(env, seed=1_000_000_003)
    for one, two in zip(first.about, again.about, strict=True):
        np.testing.assert_array_equal(one.images["front"], two.images["front"])


def test_stale_thoughts_are_about_what_was_seen_some_calls_ago(env):
    thinker = Thinker()
    run_episode(env, StaleThoughts(thinker, 2), seed=1_000_000_003, task="place")
    assert thinker.about[0] is thinker.observed[0]
    assert thinker.about[2] is thinker.observed[0]
    assert thinker.about[7] is thinker.observed[5]


def test_a_scene_without_a_second_one_is_refused():
    with pytest.raises(ConfigError, match="LineEnv has no second scene to take thoughts from"):
        ShuffledThoughts(Thinker(), LineEnv())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "remote", "path": "ws://x:1", "has_shuffled_thoughts": True}, "a remote policy has no thoughts"),
        ({"kind": "bundle", "think": False, "thought_age": 1}, "a policy that does not think has no thoughts"),
        ({"kind": "bundle", "thought_age": 1, "has_shuffled_thoughts": True}, "either about another scene or old"),
        ({"kind": "bundle", "thought_age": -1}, "thought_age is -1, expected 0 or more"),
    ],
)
def test_thoughts_that_cannot_be_exchanged_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        PolicyRef(**values)


def test_a_row_says_whose_thoughts_it_had():
    assert PolicyRef(kind="bundle", has_shuffled_thoughts=True).name == "shipped bundle, shuffled thoughts"
    assert PolicyRef(kind="bundle", thought_age=2).name == "shipped bundle, thoughts 2 calls old"
