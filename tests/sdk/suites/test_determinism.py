"""An episode of a suite depends on its seed alone; `benchmarks/determinism.py` shows it on 200 of them."""

import hashlib

import pytest

pytest.importorskip("pybullet")

from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.seeds import eval_seed
from roboalign.sdk.suites import find_suite

EPISODES = [(find_suite(suite).tasks[i], i) for suite in ("spatial", "object", "goal", "long", "chain") for i in (2, 5)]


def play(env: SimEnv, task: str, index: int) -> tuple[str, str]:
    env.reset(seed=eval_seed(index), options={"task": task})
    for _ in range(6):
        env.advance(env.expert_action())
    return env.state_hash(), hashlib.sha256(env.observe().images["front"].tobytes()).hexdigest()


def test_the_order_of_episodes_changes_neither_states_nor_pictures(env: SimEnv) -> None:
    forward = {episode: play(env, *episode) for episode in EPISODES}
    backward = {episode: play(env, *episode) for episode in reversed(EPISODES)}
    assert forward == backward
    assert len(set(forward.values())) == len(EPISODES)


def test_no_two_frozen_states_look_alike(env: SimEnv) -> None:
    seen = set()
    for index in range(8):
        env.reset(seed=eval_seed(index), options={"task": "object/red_block"})
        seen.add(env.observe().images["front"].tobytes())
    assert len(seen) == 8
