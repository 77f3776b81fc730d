"""The suite `long`: two and three goals in one sentence, judged together at the end.

Goals that do not interfere are named in any order; the ones that build on each other in the order that works. The goals
of a scene are in the order of its sentence, which is the order of the expert; only the end counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.sim.layout import GRASPABLE
from roboalign.sdk.sim.scene import Goal, SceneSpec
from roboalign.sdk.sim.tasks import MAX_STEPS, GoalTask
from roboalign.sdk.suites.placing import Item, Streams, draw_items, draw_pairs, make_scene
from roboalign.sdk.suites.splits import split_scene

__all__ = ["long_tasks"]

_ANY = "graspable"
_CLAUSES = {
    "place": (
        "put the {target} in the {goal}",
        "place the {target} in the {goal}",
        "move the {target} into the {goal}",
    ),
    "push": (
        "push the {target} to the {goal}",
        "slide the {target} to the {goal}",
        "push the {target} over the {goal} line",
    ),
    "stack": (
        "stack the {target} on the {goal}",
        "put the {target} on the {goal}",
        "place the {target} on top of the {goal}",
    ),
}
"""How one goal is said; all goals of a sentence take the same place of these."""
_JOINTS = {
    "train": {2: ("{0} and {1}", "first {0} , then {1}", "{0} and then {1}"), 3: ("{0} , {1} and {2}",)},
    "language": {2: ("first {0} and then {1}", "{0} , then {1}"), 3: ("first {0} , {1} and then {2}",)},
}
"""How the goals of a sentence are joined."""
_MORE_JOINTS = ("first {0} , then {1} and then {2}", "{0} and {1} and then {2}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What a task asks for. Roles are `A`, `B`, ...; who is moved first starts in one half, who second in the other."""

    things: tuple[tuple[str, str, int], ...]
    """Role, shape (or `graspable`) and half of the region of each object."""
    goals: tuple[tuple[str, str, str], ...]
    """Kind, role of the target, role of the goal or `side` for a direction that is drawn."""
    first: tuple[tuple[int, int], ...] = ()
    """Pairs of goals of which the first one has to be named and reached before the second; all else is free."""

    @property
    def orders(self) -> list[tuple[int, ...]]:
        """Orders in which the goals may be named."""
        found = itertools.permutations(range(len(self.goals)))
        return [order for order in found if all(order.index(a) < order.index(b) for a, b in self.first)]


_PLANS = {
    "place_two": _Plan(
        things=(("A", _ANY, -1), ("B", _ANY, 1), ("X", "bowl", 0), ("Y", "bowl", 0)),
        goals=(("place", "A", "X"), ("place", "B", "Y")),
    ),
    "stack_two": _Plan(
        things=(("A", _ANY, -1), ("B", _ANY, 1), ("C", "block", 0), ("D", "block", 0)),
        goals=(("stack", "A", "C"), ("stack", "B", "D")),
    ),
    "place_and_push": _Plan(
        things=(("B", _ANY, 1), ("A", _ANY, -1), ("X", "bowl", 0), ("C", _ANY, 0)),
        goals=(("place", "A", "X"), ("push", "B", "side")),
    ),
    "push_two": _Plan(
        things=(("A", _ANY, -1), ("B", _ANY, 1), ("C", _ANY, 0)),
        goals=(("push", "A", "side"), ("push", "B", "side")),
    ),
    "stack_and_push": _Plan(
        things=(("B", _ANY, 1), ("A", _ANY, -1), ("C", "block", 0)),
        goals=(("stack", "A", "C"), ("push", "B", "side")),
    ),
    "stack_three": _Plan(
        things=(("A", "block", 1), ("B", _ANY, -1), ("C", "block", 0)),
        goals=(("stack", "A", "C"), ("stack", "B", "A")),
        first=((0, 1),),
    ),
    "place_and_stack": _Plan(
        things=(("A", _ANY, -1), ("B", _ANY, 1), ("C", "block", 0), ("X", "bowl", 0)),
        goals=(("place", "A", "X"), ("stack", "B", "C")),
    ),
    "stack_in_bowl": _Plan(
        things=(("A", "block", 1), ("B", _ANY, -1), ("X", "bowl", 0), ("C", _ANY, 0)),
        goals=(("place", "A", "X"), ("stack", "B", "A")),
        first=((0, 1),),
    ),
    "stack_in_bowl_and_push": _Plan(
        things=(("C", _ANY, 0), ("A", "block", 1), ("B", _ANY, -1), ("X", "bowl", 0)),
        goals=(("place", "A", "X"), ("stack", "B", "A"), ("push", "C", "side")),
        first=((0, 1),),
    ),
    "push_two_and_place": _Plan(
        things=(("A", _ANY, -1), ("B", _ANY, 1), ("C", _ANY, 0), ("X", "bowl", 0)),
        goals=(("push", "A", "side"), ("push", "B", "side"), ("place", "C", "X")),
    ),
}


def _sentences(goals: Sequence[Goal]) -> dict[str, tuple[str, ...]]:
    said: dict[str, tuple[str, ...]] = {}
    for name, joints in _JOINTS.items():
        more = _MORE_JOINTS if name == "train" and len(goals) == 3 else ()
        said[name] = tuple(
            joint.format(*(_CLAUSES[goal.kind][wording].format(target=goal.target, goal=goal.goal) for goal in goals))
            for joint in (*joints[len(goals)], *more)
            for wording in range(3)
        )
    return said


def _draw(rng: np.random.Generator, robot: str, split: str, task: str) -> SceneSpec:
    plan = _PLANS[task]
    streams = Streams.of(rng)
    layout = streams.layout
    shapes = [GRASPABLE[int(layout.integers(2))] if shape == _ANY else shape for _, shape, _ in plan.things]
    pairs = draw_pairs(layout, shapes)
    items = [
        Item(colour=colour, shape=shape, side=side)
        for (colour, shape), (_, _, side) in zip(pairs, plan.things, strict=True)
    ]
    names = {role: item.name for (role, _, _), item in zip(plan.things, items, strict=True)}
    order = plan.orders[int(layout.integers(len(plan.orders)))]
    sides = [("left", "right")[int(layout.integers(2))] for _ in plan.goals]
    goals = tuple(
        Goal(kind=kind, target=names[target], goal=sides[i] if place == "side" else names[place])
        for i, (kind, target, place) in ((i, plan.goals[i]) for i in order)
    )
    scene = make_scene(
        task=f"long/{task}",
        objects=draw_items(layout, items, goals, robot=robot),
        goals=goals,
        sentences=_sentences(goals),
        streams=streams,
        robot=robot,
        split=split,
    )
    return split_scene(scene, split)


def long_tasks() -> tuple[GoalTask, ...]:
    """Returns the ten tasks of the suite."""
    return tuple(_task(name) for name in _PLANS)


def _task(name: str) -> GoalTask:
    def draw(rng: np.random.Generator, robot: str, split: str) -> SceneSpec:
        return _draw(rng, robot, split, name)

    steps = sum(MAX_STEPS[kind] for kind, _, _ in _PLANS[name].goals)  # as many as the families have for each goal
    return GoalTask(name=f"long/{name}", draw=draw, max_steps=steps)
