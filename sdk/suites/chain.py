"""The suite `chain`: five goals in a row without a reset, each with its own sentence, as in CALVIN.

What can follow what is a graph of conditions and effects over a small symbolic state: drawer, door and light, where
object `A` is, and what the bowl holds. A goal may be asked for when its conditions hold and it is not true already, and
it never concerns the same thing as the goal before. What ends in the bowl or on a block stays there. The ten tasks
differ in their first goal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from roboalign.sdk.sim.language import TEMPLATES, instruction_for
from roboalign.sdk.sim.layout import GRASPABLE
from roboalign.sdk.sim.scene import Goal, SceneSpec
from roboalign.sdk.sim.tasks import GoalTask
from roboalign.sdk.suites.placing import Streams, draw_pairs
from roboalign.sdk.suites.splits import HELDOUT_PAIRS, sentence_set
from roboalign.sdk.suites.workbench import bench_scene, draw_fixtures, draw_objects

__all__ = ["ACTIONS", "MAX_STEPS_PER_GOAL", "NUM_GOALS", "Action", "BenchState", "chain_tasks", "possible"]

NUM_GOALS = 5
"""Goals of a chain."""
MAX_STEPS_PER_GOAL = 70
"""Control steps for each goal of a chain before it is cut off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchState:
    """What a table of this suite is like, as far as the graph is concerned."""

    drawer: str
    """`open` or `closed`."""
    door: str
    """`left` or `right`."""
    light: str
    """`on` or `off`."""
    shape_a: str = "block"
    """Shape of object A. Only a block is pushed: a cylinder that is pushed to and fro topples sooner or later."""
    place_a: str = "middle"
    """Where object A is: `middle`, `left`, `right`, `bowl` or `B`."""
    place_b: str = "table"
    """Where object B is: `table` or `bowl`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One edge of the graph."""

    kind: str
    """Kind of its goal."""
    target: str
    """A fixture, or the role `A` or `B`."""
    goal: str
    """As `Goal.goal`, or a role."""
    is_possible: Callable[[BenchState], bool]
    """Whether its conditions hold and it is not done already."""
    field: str
    """Which field of the state it changes."""
    value: str
    """What that field is afterwards."""

    def after(self, state: BenchState) -> BenchState:
        """Returns the state that it leads to."""
        return dataclasses.replace(state, **{self.field: self.value})


def _is_free(state: BenchState) -> bool:
    """A stands on the table, and so can be moved."""
    return state.place_a in ("middle", "left", "right")


def _is_bowl_empty(state: BenchState) -> bool:
    return "bowl" not in (state.place_a, state.place_b)


def _fixture(kind: str, target: str, goal: str) -> Action:
    return Action(
        kind=kind,
        target=target,
        goal=goal,
        is_possible=lambda state: getattr(state, target) != goal,
        field=target,
        value=goal,
    )


def _push(side: str) -> Action:
    return Action(
        kind="push",
        target="A",
        goal=side,
        is_possible=lambda state: _is_free(state) and state.shape_a == "block" and state.place_a != side,
        field="place_a",
        value=side,
    )


ACTIONS = MappingProxyType(
    {
        "open_drawer": _fixture("open", "drawer", "open"),
        "close_drawer": _fixture("close", "drawer", "closed"),
        "slide_left": _fixture("slide", "door", "left"),
        "slide_right": _fixture("slide", "door", "right"),
        "light_on": _fixture("light", "light", "on"),
        "light_off": _fixture("light", "light", "off"),
        "push_left": _push("left"),
        "push_right": _push("right"),
        "place": Action(
            kind="place",
            target="A",
            goal="bowl",
            is_possible=lambda state: _is_free(state) and _is_bowl_empty(state),
            field="place_a",
            value="bowl",
        ),
        "place_other": Action(
            kind="place",
            target="B",
            goal="bowl",
            is_possible=lambda state: state.place_a != "B" and state.place_b == "table" and _is_bowl_empty(state),
            field="place_b",
            value="bowl",
        ),
        "stack": Action(
            kind="stack",
            target="A",
            goal="B",
            is_possible=lambda state: _is_free(state) and state.place_b == "table",
            field="place_a",
            value="B",
        ),
    }
)
"""Every edge of the graph by name."""
_FIRST = tuple(name for name in ACTIONS if name != "place_other")
"""The first goals; they name the tasks."""


def possible(state: BenchState, last: Action | None = None) -> tuple[Action, ...]:
    """Returns what can be asked for in a state; never something with the thing that `last` was about."""
    taken = (last.target, last.goal) if last is not None else ()
    return tuple(
        action
        for action in ACTIONS.values()
        if action.is_possible(state) and action.target not in taken and action.goal not in set(taken) & {"A", "B"}
    )


def _draw_state(rng: np.random.Generator, first: Action) -> BenchState:
    """Draws a start from which the first goal is possible."""
    while True:
        state = BenchState(
            drawer=("closed", "open")[int(rng.integers(2))],
            door=("left", "right")[int(rng.integers(2))],
            light=("off", "on")[int(rng.integers(2))],
            shape_a=GRASPABLE[int(rng.integers(len(GRASPABLE)))],
        )
        if first.is_possible(state):
            return state


def _draw_chain(rng: np.random.Generator, state: BenchState, first: Action) -> tuple[Action, ...]:
    chain = [first]
    while len(chain) < NUM_GOALS:
        state = chain[-1].after(state)
        choices = possible(state, chain[-1])
        chain.append(choices[int(rng.integers(len(choices)))])
    return tuple(chain)


def _draw(rng: np.random.Generator, robot: str, split: str, first: str) -> SceneSpec:
    streams = Streams.of(rng)
    layout = streams.layout
    state = _draw_state(layout, ACTIONS[first])
    actions = _draw_chain(layout, state, ACTIONS[first])
    opening = {
        "drawer": float(state.drawer == "open"),
        "door": float(state.door == "right"),
        "light": float(state.light == "on"),
    }
    fixtures = draw_fixtures(layout, opening)
    looks = draw_pairs(layout, [state.shape_a, "block", "bowl"])
    if split == "object":
        looks[:2] = _heldout_looks(looks[0], looks[1])
    objects = draw_objects(layout, (looks[0], looks[1], looks[2]), robot)
    roles = dict(zip(("A", "B", "bowl"), (item.name for item in objects), strict=True))
    goals = tuple(
        Goal(kind=it.kind, target=roles.get(it.target, it.target), goal=roles.get(it.goal, it.goal)) for it in actions
    )
    return bench_scene(
        task=f"chain/{first}",
        objects=tuple(objects[i] for i in layout.permutation(len(objects))),
        fixtures=fixtures,
        goals=goals,
        instructions=tuple(_sentence(streams.language, goal, split) for goal in goals),
        start=streams.start,
        robot=robot,
        split=split,
    )


def _heldout_looks(look_a: tuple[str, str], look_b: tuple[str, str]) -> list[tuple[str, str]]:
    """Returns held-out pairs of the same shapes; when both are blocks, B keeps its look, as there is one such pair."""
    heldout = {shape: (colour, shape) for colour, shape in HELDOUT_PAIRS}
    return [heldout[look_a[1]], look_b if look_a[1] == look_b[1] else heldout[look_b[1]]]


def _sentence(rng: np.random.Generator, goal: Goal, split: str) -> str:
    said = sentence_set(split)
    index = int(rng.integers(len(TEMPLATES[goal.kind][said])))
    return instruction_for(goal.kind, goal.target, goal.goal, split=said, index=index)


def chain_tasks() -> tuple[GoalTask, ...]:
    """Returns the ten tasks of the suite, one for each first goal."""
    return tuple(_task(name) for name in _FIRST)


def _task(first: str) -> GoalTask:
    def draw(rng: np.random.Generator, robot: str, split: str) -> SceneSpec:
        return _draw(rng, robot, split, first)

    return GoalTask(name=f"chain/{first}", draw=draw, max_steps=NUM_GOALS * MAX_STEPS_PER_GOAL)
