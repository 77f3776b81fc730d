"""The table of the suites `goal` and `chain`: four fixtures at the back, and in front of them two objects and a bowl.

A row in front (`A`, nearest to the camera) has a free lane to both sides; behind it stand `B` on the left and a bowl on
the right. Positions vary a little from scene to scene.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.layout import TableLayout
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.scene import FixtureSpec, Goal, ObjectSpec, SceneSpec
from roboalign.sdk.suites.placing import Place
from roboalign.sdk.suites.splits import mirrored, rounded

__all__ = ["HELDOUT_LOOKS", "bench_scene", "draw_fixtures", "draw_objects"]

Look = tuple[str, str]
"""Colour and shape."""

HELDOUT_LOOKS: tuple[Look, Look] = (("orange", "cylinder"), ("purple", "block"))
"""What `A` and `B` look like in the split `object`: the two held-out pairs."""
_ZONES = (((0.612, 0.638), (-0.055, 0.055)), ((0.512, 0.528), (-0.145, -0.080)), ((0.522, 0.538), (0.080, 0.125)))
"""Where A, B and the bowl may start: ranges of x and y."""
_FIXTURES = {
    "drawer": ((0.295, 0.315), (-0.148, -0.136)),
    "door": ((0.345, 0.380), (0.007, 0.023)),
    "button": ((0.360, 0.395), (0.152, 0.168)),
    "light": ((0.300, 0.315), (0.152, 0.168)),
}
"""Where the middle of each fixture may be."""
_MAX_YAW_RAD = 0.3
_TRIES = 2000


def draw_fixtures(rng: np.random.Generator, opening: dict[str, float]) -> tuple[FixtureSpec, ...]:
    """Returns the four fixtures at slightly varied places; `opening` tells how drawer, door and light start."""
    return tuple(
        FixtureSpec(kind=kind, x_m=float(rng.uniform(*xs)), y_m=float(rng.uniform(*ys)), opening=opening.get(kind, 0.0))
        for kind, (xs, ys) in _FIXTURES.items()
    )


def draw_objects(rng: np.random.Generator, looks: tuple[Look, Look, Look], robot: str) -> tuple[ObjectSpec, ...]:
    """Returns A, B and the bowl; places do not depend on the looks, so that scenes of other colours match them."""
    places = _draw_places(rng, find_robot(robot).table)
    yaws = rng.uniform(-_MAX_YAW_RAD, _MAX_YAW_RAD, size=len(looks)).tolist()
    return tuple(
        ObjectSpec(colour=colour, shape=shape, x_m=x, y_m=y, yaw_rad=yaw if shape == "block" else 0.0)
        for (colour, shape), (x, y), yaw in zip(looks, places, yaws, strict=True)
    )


def _draw_places(rng: np.random.Generator, table: TableLayout) -> list[Place]:
    for _ in range(_TRIES):
        places = [(float(rng.uniform(*xs)), float(rng.uniform(*ys))) for xs, ys in _ZONES]
        is_lane_free = all(places[0][0] - x > table.push_lane_m for x, _ in places[1:])
        if is_lane_free and _have_room(places, table):
            return places
    raise ConfigError(f"no room for {len(_ZONES)} objects in front of the fixtures in {_TRIES} tries")


def _have_room(places: list[Place], table: TableLayout) -> bool:
    bowl = places[-1]
    return all(
        math.dist(one, other) > (table.bowl_spacing_m if other is bowl else table.spacing_m)
        for one, other in itertools.combinations(places, 2)
    )


def bench_scene(
    *,
    task: str,
    objects: tuple[ObjectSpec, ...],
    fixtures: tuple[FixtureSpec, ...],
    goals: tuple[Goal, ...],
    instructions: tuple[str, ...],
    start: np.random.Generator,
    robot: str,
    split: str,
) -> SceneSpec:
    """Returns the scene of a task; one instruction for one goal, or several that are given one after another.

    The split `swap` mirrors the objects, so that B stands where training has the bowl; the fixtures stay.
    """
    table = find_robot(robot).table
    offset = start.uniform(-table.tool_jitter_m, table.tool_jitter_m, size=3)
    x, y, z = table.tool_start_m
    is_sequence = len(goals) > 1
    scene = SceneSpec(
        family=goals[0].kind,
        objects=objects,
        target=goals[0].target,
        goal=goals[0].goal,
        goals=goals,
        fixtures=fixtures,
        instruction=instructions[0],
        instructions=instructions if is_sequence else (),
        is_sequence=is_sequence,
        tool_start_m=(x + float(offset[0]), y + float(offset[1]), z + 0.5 * float(offset[2])),
        task=task,
        robot=robot,
    )
    return mirrored(scene, "y") if split == "swap" else rounded(scene)
