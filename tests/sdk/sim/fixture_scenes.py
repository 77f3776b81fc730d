"""Scenes with fixtures for tests: one goal about one of them, and how the fixtures stand at the start."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.scene import FixtureSpec, Goal, SceneSpec
from roboalign.sdk.sim.tasks import find_task

OPEN = Goal(kind="open", target="drawer", goal="open")
CLOSE = Goal(kind="close", target="drawer", goal="closed")
LEFT = Goal(kind="slide", target="door", goal="left")
RIGHT = Goal(kind="slide", target="door", goal="right")
PRESS = Goal(kind="press", target="button", goal="pressed")
LIGHT_ON = Goal(kind="light", target="light", goal="on")
LIGHT_OFF = Goal(kind="light", target="light", goal="off")
GOALS = (OPEN, CLOSE, LEFT, RIGHT, PRESS, LIGHT_ON, LIGHT_OFF)
AWAY = {OPEN: 0.0, CLOSE: 1.0, LEFT: 1.0, RIGHT: 0.0, PRESS: 0.0, LIGHT_ON: 0.0, LIGHT_OFF: 1.0}
"""How the fixture of a goal stands when the goal is as far away as can be."""


def fixture_scene(goal: Goal, seed: int = 0, **opening: float) -> SceneSpec:
    """The table of the suite `goal` with another goal; what is not in `opening` stands as far away as can be."""
    scene = find_task("goal/open_drawer").sample(np.random.default_rng(seed), robot="panda", split="train")
    start = {"drawer": 0.5, "door": 0.5, "light": 0.0, goal.target: AWAY[goal], **opening}
    fixtures = tuple(_opened(item, start.get(item.kind, 0.0)) for item in scene.fixtures)
    named = {"family": goal.kind, "target": goal.target, "goal": goal.goal, "goals": (goal,)}
    return dataclasses.replace(scene, fixtures=fixtures, **named)


def _opened(item: FixtureSpec, opening: float) -> FixtureSpec:
    return dataclasses.replace(item, opening=opening)


def load(env: SimEnv, goal: Goal, seed: int = 0, **opening: float) -> None:
    env.reset(seed=seed, options={"scene": fixture_scene(goal, seed, **opening)})


def go(env: SimEnv, *points: Sequence[float], is_open: bool = False, steps: int = 25) -> None:
    """Moves the tool through points, each as closely as it gets in so many steps."""
    for point in points:
        for _ in range(steps):
            left_over = np.asarray(point) - env.truth().state[:3]
            env.advance(np.array([*np.clip(0.8 * left_over, -0.035, 0.035), 0.0, float(is_open)], np.float32))
            if np.abs(left_over).max() < 0.003:
                break


def hand(env: SimEnv, kind: str) -> np.ndarray:
    """Where the hand works on a fixture now."""
    return env.truth().fixture(kind).position_m.astype(float)


def wait(env: SimEnv, steps: int, is_open: bool = False) -> None:
    for _ in range(steps):
        env.advance(np.array([0, 0, 0, 0, float(is_open)], np.float32))
