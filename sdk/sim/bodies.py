"""Builds the table and the objects of a scene as PyBullet bodies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from roboalign.sdk.sim.layout import COLOURS, PANDA_TABLE, TableLayout
from roboalign.sdk.sim.renderer import has_egl
from roboalign.sdk.sim.scene import ObjectSpec

__all__ = ["RobotBody", "add_object", "add_table"]

_TABLE_COLOUR = (0.80, 0.79, 0.76, 1.0)
_LINE_COLOUR = (0.30, 0.30, 0.32, 1.0)
_NUM_CYLINDER_SIDES = 20
_NUM_BOWL_WALLS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class RobotBody:
    """What it takes to reach the arm of a built world in PyBullet, for whoever drives its joints one by one."""

    bullet: ModuleType
    """The module `pybullet`."""
    client: int
    """Physics client."""
    body: int
    """Id of the arm."""
    joints: Mapping[str, int]
    """Index of every joint by name."""


def add_table(p: ModuleType, client: int, table: TableLayout = PANDA_TABLE) -> int:
    """Adds the table with its top at z = 0 and two painted lines, which nothing collides with; returns its body id."""
    half = table.table_half_m
    shape = p.createCollisionShape(p.GEOM_BOX, halfExtents=half, physicsClientId=client)
    visual = p.createVisualShape(p.GEOM_BOX, halfExtents=half, rgbaColor=_TABLE_COLOUR, physicsClientId=client)
    body = p.createMultiBody(0, shape, visual, basePosition=(table.table_x_m, 0, -half[2]), physicsClientId=client)
    p.changeDynamics(body, -1, lateralFriction=0.5, physicsClientId=client)
    half = table.line_half_m
    for y in (-table.push_line_m, table.push_line_m):
        line = p.createVisualShape(p.GEOM_BOX, halfExtents=half, rgbaColor=_LINE_COLOUR, physicsClientId=client)
        p.createMultiBody(0, -1, line, basePosition=(table.line_x_m, y, half[2]), physicsClientId=client)
    return int(body)


def add_object(
    p: ModuleType,
    client: int,
    item: ObjectSpec,
    table: TableLayout = PANDA_TABLE,
    rgb: tuple[float, float, float] | None = None,
) -> int:
    """Adds one object standing on the table and returns its body id; `rgb` replaces its colour's own paint."""
    colour = (*(COLOURS[item.colour] if rgb is None else rgb), 1.0)
    quaternion = (0.0, 0.0, math.sin(item.yaw_rad / 2), math.cos(item.yaw_rad / 2))
    if item.shape == "bowl":
        return _add_bowl(p, client, (item.x_m, item.y_m, 0.0), colour, table)
    if item.shape == "block":
        height = table.block_size_m
        half = (height / 2,) * 3
        collision = p.createCollisionShape(p.GEOM_BOX, halfExtents=half, physicsClientId=client)
        visual = p.createVisualShape(p.GEOM_BOX, halfExtents=half, rgbaColor=colour, physicsClientId=client)
    else:
        height, radius = table.cylinder_height_m, table.cylinder_width_m / 2
        collision = p.createCollisionShape(p.GEOM_CYLINDER, radius=radius, height=height, physicsClientId=client)
        visual = _cylinder_visual(p, client, radius, height, colour)
    place = (item.x_m, item.y_m, height / 2)
    body = p.createMultiBody(table.object_mass_kg, collision, visual, place, quaternion, physicsClientId=client)
    p.changeDynamics(
        body, -1, lateralFriction=0.8, spinningFriction=0.003, rollingFriction=0.0005, physicsClientId=client
    )
    return int(body)


def _cylinder_visual(p: ModuleType, client: int, radius: float, height: float, colour: tuple[float, ...]) -> int:
    """Returns a cylinder with a flat top.

    Tiny shades PyBullet's own as if it were an egg, so it gets a mesh; EGL leaves such a mesh out of the picture.
    """
    if has_egl(client):
        own = {"radius": radius, "length": height, "rgbaColor": colour}
        return int(p.createVisualShape(p.GEOM_CYLINDER, **own, physicsClientId=client))
    vertices: list[tuple[float, float, float]] = []
    normals: list[tuple[float, float, float]] = []
    indices: list[int] = []
    corners = [2 * math.pi * i / _NUM_CYLINDER_SIDES for i in range(_NUM_CYLINDER_SIDES + 1)]
    ring = [(math.cos(angle), math.sin(angle)) for angle in corners]
    for (x0, y0), (x1, y1) in itertools.pairwise(ring):
        base = len(vertices)
        for x, y in ((x0, y0), (x1, y1)):
            vertices += [(radius * x, radius * y, -height / 2), (radius * x, radius * y, height / 2)]
            normals += [(x, y, 0.0)] * 2
        indices += [base, base + 2, base + 3, base, base + 3, base + 1]
        for z, turn in ((height / 2, 1), (-height / 2, -1)):
            base = len(vertices)
            vertices += [(0.0, 0.0, z), (radius * x0, radius * y0, z), (radius * x1, radius * y1, z)]
            normals += [(0.0, 0.0, float(turn))] * 3
            indices += [base, base + 1, base + 2][::turn]
    return int(
        p.createVisualShape(
            p.GEOM_MESH,
            vertices=vertices,
            indices=indices,
            normals=normals,
            rgbaColor=colour,
            physicsClientId=client,
        )
    )


def _add_bowl(
    p: ModuleType,
    client: int,
    place: tuple[float, float, float],
    colour: tuple[float, ...],
    table: TableLayout,
) -> int:
    """Adds an octagonal tray: a flat floor and eight walls; its origin is the centre of its underside."""
    radius, wall_m, height_m = table.bowl_width_m / 2, table.bowl_wall_m, table.bowl_height_m
    wall_half = (wall_m / 2, math.tan(math.pi / _NUM_BOWL_WALLS) * radius, height_m / 2)
    floor_half = (radius * 0.76, radius * 0.76, table.bowl_base_m / 2)
    halves = [floor_half, floor_half]
    centres = [(0.0, 0.0, table.bowl_base_m / 2)] * 2
    turns = [(0.0, 0.0, 0.0, 1.0), (0.0, 0.0, math.sin(math.pi / 8), math.cos(math.pi / 8))]
    for wall in range(_NUM_BOWL_WALLS):
        angle = 2 * math.pi * wall / _NUM_BOWL_WALLS
        reach = radius - wall_m / 2
        halves.append(wall_half)
        centres.append((reach * math.cos(angle), reach * math.sin(angle), height_m / 2))
        turns.append((0.0, 0.0, math.sin(angle / 2), math.cos(angle / 2)))
    kinds = [p.GEOM_BOX] * len(halves)
    shades = [(*(0.62 * c for c in colour[:3]), 1.0)] * 2 + [colour] * _NUM_BOWL_WALLS
    collision = p.createCollisionShapeArray(
        shapeTypes=kinds,
        halfExtents=halves,
        collisionFramePositions=centres,
        collisionFrameOrientations=turns,
        physicsClientId=client,
    )
    visual = p.createVisualShapeArray(
        shapeTypes=kinds,
        halfExtents=halves,
        visualFramePositions=centres,
        visualFrameOrientations=turns,
        rgbaColors=shades,
        physicsClientId=client,
    )
    body = p.createMultiBody(table.bowl_mass_kg, collision, visual, place, physicsClientId=client)
    p.changeDynamics(body, -1, lateralFriction=0.9, physicsClientId=client)
    return int(body)
