"""The suite `goal`: one table, ten things to do with it; only the sentence tells which.

Drawer and door start half open, so that every task is open at the start and no task can be guessed from the picture:
a policy that does not listen solves at most one in ten.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from roboalign.sdk.sim.language import TEMPLATES, instruction_for
from roboalign.sdk.sim.scene import Goal, SceneSpec
from roboalign.sdk.sim.tasks import GoalTask
from roboalign.sdk.suites.placing import Streams
from roboalign.sdk.suites.splits import sentence_set
from roboalign.sdk.suites.workbench import HELDOUT_LOOKS, bench_scene, draw_fixtures, draw_objects

__all__ = ["MAX_STEPS", "goal_tasks"]

MAX_STEPS = 70
"""Control steps after which an episode is cut off."""
_LOOKS = (("green", "cylinder"), ("red", "block"))
_BOWL = ("blue", "bowl")
_HALF_OPEN = (0.45, 0.55)

_GOALS = MappingProxyType(
    {
        "cylinder_in_bowl": ("place", "A", "bowl"),
        "block_in_bowl": ("place", "B", "bowl"),
        "push_left": ("push", "A", "left"),
        "push_right": ("push", "A", "right"),
        "stack": ("stack", "A", "B"),
        "open_drawer": ("open", "drawer", "open"),
        "close_drawer": ("close", "drawer", "closed"),
        "slide_left": ("slide", "door", "left"),
        "slide_right": ("slide", "door", "right"),
        "press_button": ("press", "button", "pressed"),
    }
)
"""Kind, target and goal of each task."""


def _draw(rng: np.random.Generator, robot: str, split: str, name: str) -> SceneSpec:
    streams = Streams.of(rng)
    layout = streams.layout
    opening = {"drawer": float(layout.uniform(*_HALF_OPEN)), "door": float(layout.uniform(*_HALF_OPEN))}
    fixtures = draw_fixtures(layout, opening)
    looks = HELDOUT_LOOKS if split == "object" else _LOOKS
    objects = draw_objects(layout, (*looks, _BOWL), robot)
    roles = dict(zip(("A", "B", "bowl"), (item.name for item in objects), strict=True))
    kind, target, place = _GOALS[name]
    goal = Goal(kind=kind, target=roles.get(target, target), goal=roles.get(place, place))
    said = sentence_set(split)
    index = int(streams.language.integers(len(TEMPLATES[kind][said])))
    return bench_scene(
        task=f"goal/{name}",
        objects=tuple(objects[i] for i in layout.permutation(len(objects))),
        fixtures=fixtures,
        goals=(goal,),
        instructions=(instruction_for(kind, goal.target, goal.goal, split=said, index=index),),
        start=streams.start,
        robot=robot,
        split=split,
    )


def goal_tasks() -> tuple[GoalTask, ...]:
    """Returns the ten tasks of the suite."""
    return tuple(_task(name) for name in _GOALS)


def _task(name: str) -> GoalTask:
    def draw(rng: np.random.Generator, robot: str, split: str) -> SceneSpec:
        return _draw(rng, robot, split, name)

    return GoalTask(name=f"goal/{name}", draw=draw, max_steps=MAX_STEPS)
