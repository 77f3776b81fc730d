"""Task families: how scenes are drawn, when a task is solved, and how far it got.

Nothing here looks at the expert: the predicates judge whatever robot acted, from the state of the scene alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.language import SPLITS, TEMPLATES, instruction_for
from roboalign.sdk.sim.layout import (
    BOWL_HEIGHT_M,
    BOWL_WALL_M,
    BOWL_WIDTH_M,
    COLOURS,
    GRASPABLE,
    PUSH_LINE_M,
    direction_sign,
)
from roboalign.sdk.sim.truth import ObjectTruth, SceneTruth

__all__ = [
    "FAMILIES",
    "MAX_STEPS",
    "ObjectSpec",
    "SceneSpec",
    "is_in_bowl",
    "is_on_top",
    "is_over_line",
    "is_success",
    "progress",
    "sample_scene",
]

FAMILIES = ("place", "push", "stack")
"""Names of the task families."""
MAX_STEPS = {"place": 60, "push": 60, "stack": 70}
"""Control steps after which an episode is cut off."""

_X_RANGE = (0.40, 0.62)
_Y_RANGE = {"block": 0.155, "cylinder": 0.155, "bowl": 0.15}
_SPACING = 0.112
_BOWL_SPACING = 0.138
_PUSH_START_Y = 0.065
_PUSH_LANE = 0.085
_VIEW_LANE = 0.09
_MAX_YAW = 0.3
_REST_SPEED = 0.02
_UPRIGHT_RAD = 0.15
_LIFT_M = 0.03


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectSpec:
    """One object as a scene starts."""

    colour: str
    """One of `layout.COLOURS`."""
    shape: str
    """One of `layout.SHAPES`."""
    x_m: float
    """Position in the base frame."""
    y_m: float
    """Position in the base frame."""
    yaw_rad: float = 0.0
    """Rotation about the vertical."""

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise ConfigError(f"ObjectSpec.colour is {self.colour!r}; choose one of {', '.join(COLOURS)}")
        if self.shape not in (*GRASPABLE, "bowl"):
            raise ConfigError(f"ObjectSpec.shape is {self.shape!r}; choose one of block, cylinder, bowl")

    @property
    def name(self) -> str:
        """Colour and shape, as instructions say it."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneSpec:
    """All that is needed to build a scene: two equal specs give bit-identical simulations."""

    family: str
    """One of `FAMILIES`."""
    objects: tuple[ObjectSpec, ...]
    """What stands on the table; names are unique."""
    target: str
    """Name of the object to move."""
    goal: str
    """Name of the bowl or block it goes to, or `left` / `right` for `push`."""
    instruction: str
    """The sentence given to the robot."""
    tool_start_m: tuple[float, float, float]
    """Where the tool starts, in the base frame."""
    tool_yaw_rad: float = 0.0
    """Yaw at which the tool starts."""

    def __post_init__(self) -> None:
        names = [item.name for item in self.objects]
        if len(set(names)) != len(names):
            raise ConfigError(f"SceneSpec.objects has two objects of the same name: {', '.join(names)}")
        if self.family not in FAMILIES:
            raise ConfigError(f"SceneSpec.family is {self.family!r}; choose one of {', '.join(FAMILIES)}")
        if self.target not in names:
            raise ConfigError(f"SceneSpec.target is {self.target!r}, which is not among: {', '.join(names)}")
        goals = ("left", "right") if self.family == "push" else tuple(names)
        if self.goal not in goals or self.goal == self.target:
            raise ConfigError(f"SceneSpec.goal is {self.goal!r}; for {self.family} choose one of {', '.join(goals)}")


def sample_scene(rng: np.random.Generator, family: str, split: str = "train") -> SceneSpec:
    """Returns a random scene of a family; the result depends on the generator's state only.

    Layout, language and robot start are drawn from separate child generators, so that a change of the sentences does
    not move the objects.
    """
    if family not in FAMILIES:
        raise ConfigError(f"unknown task family {family!r}; choose one of {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise ConfigError(f"unknown instruction split {split!r}; choose one of {', '.join(SPLITS)}")
    layout, language, start = (np.random.default_rng(int(seed)) for seed in rng.integers(0, 2**63, size=3))
    things = _sample_things(layout, family)
    places = _sample_places(layout, family, [shape for _, shape in things])
    objects = []
    for (colour, shape), (x, y) in zip(things, places, strict=True):
        yaw = float(layout.uniform(-_MAX_YAW, _MAX_YAW)) if shape == "block" else 0.0
        objects.append(ObjectSpec(colour=colour, shape=shape, x_m=x, y_m=y, yaw_rad=yaw))
    target = objects[0].name
    goal = ("left", "right")[int(layout.integers(2))] if family == "push" else objects[1].name
    index = int(language.integers(len(TEMPLATES[family][split])))
    offset = start.uniform(-0.04, 0.04, size=3)
    order = layout.permutation(len(objects))
    return SceneSpec(
        family=family,
        objects=tuple(objects[i] for i in order),
        target=target,
        goal=goal,
        instruction=instruction_for(family, target, goal, split=split, index=index),
        tool_start_m=(0.475 + float(offset[0]), float(offset[1]), 0.20 + 0.5 * float(offset[2])),
    )


def _sample_things(rng: np.random.Generator, family: str) -> list[tuple[str, str]]:
    """Draws colours and shapes: first the target, second the goal (not for push), then what else stands there."""
    colours = list(COLOURS)

    def draw(shapes: tuple[str, ...], taken: list[tuple[str, str]], colour: str | None = None) -> tuple[str, str]:
        while True:
            pick = (colour or colours[int(rng.integers(len(colours)))], shapes[int(rng.integers(len(shapes)))])
            if pick not in taken:
                return pick
            colour = None

    things = [draw(GRASPABLE, [])]
    if family == "place":
        things.append(draw(("bowl",), things))
        if rng.random() < 0.5:
            things.append(draw(("bowl",), things))
    elif family == "stack":
        things.append(draw(("block",), things))
    # a distractor of the target's own colour, or any other, so that neither colour nor shape alone finds the target
    num_more = {"place": 1, "push": 1, "stack": 0}[family] + int(rng.random() < (0.7 if family == "stack" else 0.5))
    if len(things) + num_more > 4:
        num_more = 1
    for i in range(num_more):
        same_colour = things[0][0] if i == 0 and rng.random() < 0.4 else None
        things.append(draw(GRASPABLE, things, same_colour))
    return things


def _sample_places(rng: np.random.Generator, family: str, shapes: list[str]) -> list[tuple[float, float]]:
    """Draws table positions with room for the fingers around each object, by rejection."""
    for _ in range(2000):
        places: list[tuple[float, float]] = []
        for i, shape in enumerate(shapes):
            limit = _PUSH_START_Y if family == "push" and i == 0 else _Y_RANGE[shape]
            for _ in range(20):
                place = (float(rng.uniform(*_X_RANGE)), float(rng.uniform(-limit, limit)))
                if _is_free(place, shape, places, shapes, family):
                    places.append(place)
                    break
            else:
                break
        if len(places) == len(shapes):
            return places
    raise ConfigError(f"no room for {len(shapes)} objects on the table")  # not reached with the counts drawn above


def _is_free(
    place: tuple[float, float], shape: str, places: list[tuple[float, float]], shapes: list[str], family: str
) -> bool:
    for j, other in enumerate(places):
        spacing = _BOWL_SPACING if "bowl" in (shape, shapes[j]) else _SPACING
        if math.hypot(place[0] - other[0], place[1] - other[1]) < spacing:
            return False
        if family == "push" and j == 0 and abs(place[0] - other[0]) < _PUSH_LANE:
            return False
        # carried from in front of its goal, the object and the hand would hide the goal from the camera
        is_goal = family != "push" and len(places) == 1
        if is_goal and place[0] < other[0] and abs(place[1] - other[1]) < _VIEW_LANE:
            return False
    return True


def is_in_bowl(item: ObjectTruth, bowl: ObjectTruth) -> bool:
    """True when the object's centre is inside the bowl's wall and low enough to be supported by its floor."""
    inner = bowl.width_m / 2 - BOWL_WALL_M
    offset = float(np.hypot(*(item.position_m[:2] - bowl.position_m[:2])))
    height = float(item.position_m[2] - bowl.position_m[2])
    return offset < inner and 0.0 < height < BOWL_HEIGHT_M + 0.4 * item.height_m


def is_on_top(item: ObjectTruth, base: ObjectTruth) -> bool:
    """True when the object stands upright on the other one, its centre well over the other's top face."""
    offset = np.abs(item.position_m[:2] - base.position_m[:2])
    gap = float(item.position_m[2] - base.position_m[2]) - (item.height_m + base.height_m) / 2
    is_upright = item.tilt_rad < _UPRIGHT_RAD and base.tilt_rad < _UPRIGHT_RAD
    return bool(np.hypot(*offset) < base.width_m / 2) and abs(gap) < 0.006 and is_upright


def is_over_line(item: ObjectTruth, direction: str) -> bool:
    """True when the object's centre lies beyond the painted line on that side."""
    return float(item.position_m[1]) * direction_sign(direction) > PUSH_LINE_M


def _is_at_goal(truth: SceneTruth) -> bool:
    target = truth.target_object
    if truth.family == "push":
        return is_over_line(target, truth.goal)
    goal = truth.find(truth.goal)
    return is_in_bowl(target, goal) if truth.family == "place" else is_on_top(target, goal)


def is_success(truth: SceneTruth) -> bool:
    """True when the target is where the instruction wants it, at rest; placed and stacked objects also let go of."""
    target = truth.target_object
    if not _is_at_goal(truth) or target.speed_m_s > _REST_SPEED or target.is_held:
        return False
    return truth.family == "push" or not target.is_touched


def progress(truth: SceneTruth) -> float:
    """Returns how far the task is at this moment, 0 to 1.

    Place and stack: 0.25 held, 0.5 lifted, 0.75 over or at the goal, 1 solved. Push: share of the way to the line.
    """
    if is_success(truth):
        return 1.0
    target = truth.target_object
    if truth.family == "push":
        sign = direction_sign(truth.goal)
        start = float(truth.start_position_m[1]) * sign
        done = (float(target.position_m[1]) * sign - start) / (PUSH_LINE_M - start)
        return float(np.clip(done, 0.0, 0.95))
    goal = truth.find(truth.goal)
    is_over = float(np.hypot(*(target.position_m[:2] - goal.position_m[:2]))) < BOWL_WIDTH_M / 4
    is_lifted = float(target.position_m[2]) - target.height_m / 2 > _LIFT_M
    if _is_at_goal(truth) or (target.is_held and is_lifted and is_over):
        return 0.75
    if target.is_held:
        return 0.5 if is_lifted else 0.25
    return 0.0
