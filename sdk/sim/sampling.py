"""Draws the scenes of the families `place`, `push` and `stack`."""

from __future__ import annotations

import math

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.language import SENTENCES, TEMPLATES, instruction_for
from roboalign.sdk.sim.layout import COLOURS, GRASPABLE, TableLayout, y_limit_m
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.scene import OBJECT_GOALS, ObjectSpec, SceneSpec

__all__ = ["sample_scene"]

_MAX_YAW = 0.3


def sample_scene(rng: np.random.Generator, family: str, split: str = "train", robot: str = "panda") -> SceneSpec:
    """Returns a random scene of a family; the result depends on the generator's state and on the arguments only.

    Layout, language and robot start are drawn from separate child generators, so that a change of the sentences does
    not move the objects.
    """
    if family not in OBJECT_GOALS:
        raise ConfigError(f"unknown task family {family!r}; choose one of {', '.join(OBJECT_GOALS)}")
    if split not in SENTENCES:
        raise ConfigError(f"unknown instruction split {split!r}; choose one of {', '.join(SENTENCES)}")
    table = find_robot(robot).table
    layout, language, start = (np.random.default_rng(int(seed)) for seed in rng.integers(0, 2**63, size=3))
    things = _sample_things(layout, family)
    places = _sample_places(layout, family, [shape for _, shape in things], table)
    objects = []
    for (colour, shape), (x, y) in zip(things, places, strict=True):
        yaw = float(layout.uniform(-_MAX_YAW, _MAX_YAW)) if shape == "block" else 0.0
        objects.append(ObjectSpec(colour=colour, shape=shape, x_m=x, y_m=y, yaw_rad=yaw))
    target = objects[0].name
    goal = ("left", "right")[int(layout.integers(2))] if family == "push" else objects[1].name
    index = int(language.integers(len(TEMPLATES[family][split])))
    offset = start.uniform(-table.tool_jitter_m, table.tool_jitter_m, size=3)
    x, y, z = table.tool_start_m
    order = layout.permutation(len(objects))
    return SceneSpec(
        family=family,
        objects=tuple(objects[i] for i in order),
        target=target,
        goal=goal,
        instruction=instruction_for(family, target, goal, split=split, index=index),
        tool_start_m=(x + float(offset[0]), y + float(offset[1]), z + 0.5 * float(offset[2])),
        robot=robot,
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


def _sample_places(
    rng: np.random.Generator, family: str, shapes: list[str], table: TableLayout
) -> list[tuple[float, float]]:
    """Draws table positions with room for the fingers around each object, by rejection."""
    for _ in range(2000):
        places: list[tuple[float, float]] = []
        for i, shape in enumerate(shapes):
            limit = table.push_start_y_m if family == "push" and i == 0 else y_limit_m(shape, table)
            for _ in range(20):
                place = (float(rng.uniform(*table.x_range_m)), float(rng.uniform(-limit, limit)))
                if _is_free(place, shape, places, shapes, family, table):
                    places.append(place)
                    break
            else:
                break
        if len(places) == len(shapes):
            return places
    raise ConfigError(f"no room for {len(shapes)} objects on the table")  # not reached with the counts drawn above


def _is_free(
    place: tuple[float, float],
    shape: str,
    places: list[tuple[float, float]],
    shapes: list[str],
    family: str,
    table: TableLayout,
) -> bool:
    for j, other in enumerate(places):
        spacing = table.bowl_spacing_m if "bowl" in (shape, shapes[j]) else table.spacing_m
        if math.hypot(place[0] - other[0], place[1] - other[1]) < spacing:
            return False
        if family == "push" and j == 0 and abs(place[0] - other[0]) < table.push_lane_m:
            return False
        # carried from in front of its goal, the object and the hand would hide the goal from the camera
        is_goal = family != "push" and len(places) == 1
        if is_goal and place[0] < other[0] and abs(place[1] - other[1]) < table.view_lane_m:
            return False
    return True
