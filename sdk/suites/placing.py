"""Finds table positions for the objects of a scene, and puts the scene together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.layout import COLOURS, TableLayout, direction_sign, y_limit_m
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.scene import Goal, ObjectSpec, SceneSpec
from roboalign.sdk.suites.splits import TRAIN_PAIRS, rounded, sentence_set

__all__ = ["Item", "Place", "Streams", "draw_items", "draw_pairs", "fits", "half", "make_scene"]

Place = tuple[float, float]
"""x and y of an object in metres, base frame."""
_MAX_YAW_RAD = 0.3
_MIDDLE_M = 0.008
"""Objects of one half keep at least this far from the middle line, so that mirrored places are clearly others."""
_DIGITS = 4
"""Places are drawn in whole 0.1 mm, as they are stored."""
_EXACT = 6
"""Distances are compared after rounding to so many digits, so that a mirror image is judged as its original."""
_TRIES = 4000
_TRIES_EACH = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One object to be placed."""

    colour: str
    """One of `layout.COLOURS`."""
    shape: str
    """One of `layout.SHAPES`."""
    side: int = 0
    """Half of the region that it starts in: -1 or 1 along the axis of the mirror, 0 for anywhere."""
    tag: str = ""
    """See `ObjectSpec.tag`."""

    @property
    def name(self) -> str:
        """As `ObjectSpec.name`."""
        return f"{self.colour} {self.shape}" + (f" {self.tag}" if self.tag else "")


@dataclass(frozen=True, slots=True)
class Streams:
    """Random numbers of a scene, apart by concern, so that a change of the sentences does not move the objects."""

    layout: np.random.Generator
    """What stands where."""
    language: np.random.Generator
    """Which sentence."""
    start: np.random.Generator
    """Where the tool starts."""

    @classmethod
    def of(cls, rng: np.random.Generator) -> Streams:
        """Returns three streams; draws a fixed number of values from `rng`."""
        return cls(*(np.random.default_rng(int(seed)) for seed in rng.integers(0, 2**63, size=3)))


def draw_pairs(
    rng: np.random.Generator,
    shapes: Sequence[str],
    taken: Sequence[tuple[str, str]] = (),
) -> list[tuple[str, str]]:
    """Draws one colour for each shape; no pair twice, none of `taken`, and no held-out pair."""
    pairs = list(taken)
    for shape in shapes:
        free = [(colour, shape) for colour in COLOURS if (colour, shape) not in pairs]
        if shape != "bowl":
            free = [pair for pair in free if pair in TRAIN_PAIRS]
        pairs.append(free[int(rng.integers(len(free)))])
    return pairs[len(taken) :]


def half(rng: tuple[float, float], side: int) -> tuple[float, float]:
    """Returns the lower (-1) or upper (1) half of a range without the middle, or the whole range (0)."""
    middle = (rng[0] + rng[1]) / 2
    if side == 0:
        return rng
    return (rng[0], middle - _MIDDLE_M) if side < 0 else (middle + _MIDDLE_M, rng[1])


def draw_items(
    rng: np.random.Generator,
    items: Sequence[Item],
    goals: Sequence[Goal],
    *,
    robot: str,
    axis: str = "y",
    accept: Callable[[Sequence[Place]], bool] = lambda places: True,
) -> tuple[ObjectSpec, ...]:
    """Returns the items at random free places, in random order.

    Args:
        rng: Decides places, yaw and order.
        items: What to place.
        goals: What will be done with them: pushes and placements need room.
        robot: Name of the arm, for the size of its table.
        axis: Along which `Item.side` counts, and along which the swap mirrors.
        accept: A condition on all places, in the order of `items`.

    Raises:
        ConfigError: No such places were found; a task whose conditions hardly ever hold should be stated otherwise.
    """
    table = find_robot(robot).table
    pushed = {goal.target for goal in goals if goal.kind == "push"}
    zones = [_zone(item, item.name in pushed, axis, table) for item in items]

    pairs = {(i, j): _Pair.of(items[i], items[j], goals, table) for j in range(len(items)) for i in range(j)}

    def agree(i: int, a: Place, j: int, b: Place) -> bool:
        pair = pairs[i, j]
        if round(math.dist(a, b), _EXACT) < pair.spacing_m:
            return False
        return not pair.rules or (
            pair.is_free(a, b, table) and pair.is_free(_mirror(a, axis, table), _mirror(b, axis, table), table)
        )

    for _ in range(_TRIES):
        places = _draw_once(rng, zones, agree)
        if places is not None and accept(places):
            break
    else:
        raise ConfigError(f"no room for {', '.join(item.name for item in items)} in {_TRIES} tries")
    objects = [_object(rng, item, place) for item, place in zip(items, places, strict=True)]
    return tuple(objects[i] for i in rng.permutation(len(objects)))


def _zone(item: Item, is_pushed: bool, axis: str, table: TableLayout) -> tuple[tuple[float, float], ...]:
    limit = table.push_start_y_m if is_pushed else y_limit_m(item.shape, table)
    x_range, y_range = table.x_range_m, (-limit, limit)
    return (half(x_range, item.side), y_range) if axis == "x" else (x_range, half(y_range, item.side))


def _draw_once(
    rng: np.random.Generator,
    zones: Sequence[tuple[tuple[float, float], ...]],
    agree: Callable[[int, Place, int, Place], bool],
) -> list[Place] | None:
    """Draws the places one after another, each in agreement with those before it; None when that fails."""
    places: list[Place] = []
    for i, (x_range, y_range) in enumerate(zones):
        for u, v in rng.random((_TRIES_EACH, 2)).tolist():
            x, y = x_range[0] + u * (x_range[1] - x_range[0]), y_range[0] + v * (y_range[1] - y_range[0])
            place = (round(x, _DIGITS), round(y, _DIGITS))
            if all(agree(j, places[j], i, place) for j in range(i)):
                places.append(place)
                break
        else:
            return None
    return places


def _mirror(place: Place, axis: str, table: TableLayout) -> Place:
    return (place[0], -place[1]) if axis == "y" else (sum(table.x_range_m) - place[0], place[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """What two objects have to keep to."""

    spacing_m: float
    """Least distance of their centres."""
    rules: tuple[tuple[str, float, bool], ...]
    """Goals that concern both: kind, sign of a push, and whether it is the second object that is moved."""

    @classmethod
    def of(cls, one: Item | ObjectSpec, two: Item | ObjectSpec, goals: Sequence[Goal], table: TableLayout) -> _Pair:
        spacing = table.bowl_spacing_m if "bowl" in (one.shape, two.shape) else table.spacing_m
        rules = []
        for goal in goals:
            for moved, other, is_second in ((one.name, two.name, False), (two.name, one.name, True)):
                if goal.target == moved and (goal.kind == "push" or goal.goal == other):
                    sign = direction_sign(goal.goal) if goal.kind == "push" else 0.0
                    rules.append((goal.kind, sign, is_second))
        return cls(spacing_m=spacing, rules=tuple(rules))

    def is_free(self, a: Place, b: Place, table: TableLayout) -> bool:
        """True when neither is in the way of what is done with the other."""
        for kind, sign, is_second in self.rules:
            moved, other = (b, a) if is_second else (a, b)
            is_aside = round(abs(other[1] - moved[1]), _EXACT) >= table.view_lane_m
            if kind == "push" and _is_in_lane(moved, sign, other, table):
                return False
            if kind != "push" and round(moved[0] - other[0], _EXACT) > 0 and not is_aside:
                return False
        return True


def _is_in_lane(start: Place, sign: float, other: Place, table: TableLayout) -> bool:
    """True when something stands ahead of a push, or where the gripper comes down behind the object."""
    behind = table.expert.push_standoff_m + table.spacing_m / 2
    is_beside = round(abs(other[0] - start[0]), _EXACT) < table.push_lane_m
    return is_beside and round(sign * (other[1] - start[1]), _EXACT) > -behind


def fits(objects: Sequence[ObjectSpec], goals: Sequence[Goal], table: TableLayout) -> bool:
    """True when there is room around each object, a free lane for each push, and a free view of each goal.

    A view is not free where what is carried to the goal, and the hand, come between it and the camera.
    """
    for one, two in itertools.combinations(objects, 2):
        pair, a, b = _Pair.of(one, two, goals, table), (one.x_m, one.y_m), (two.x_m, two.y_m)
        if round(math.dist(a, b), _EXACT) < pair.spacing_m or not pair.is_free(a, b, table):
            return False
    return True


def _object(rng: np.random.Generator, item: Item, place: Place) -> ObjectSpec:
    yaw = float(rng.uniform(-_MAX_YAW_RAD, _MAX_YAW_RAD))
    return ObjectSpec(
        colour=item.colour,
        shape=item.shape,
        tag=item.tag,
        x_m=place[0],
        y_m=place[1],
        yaw_rad=yaw if item.shape == "block" else 0.0,
    )


def make_scene(
    *,
    task: str,
    objects: tuple[ObjectSpec, ...],
    goals: tuple[Goal, ...],
    sentences: dict[str, tuple[str, ...]],
    streams: Streams,
    robot: str,
    split: str,
) -> SceneSpec:
    """Returns the training scene of a task with a sentence of the split's set.

    `sentences` holds complete sentences for `train` and `language`.
    """
    table = find_robot(robot).table
    said = sentences[sentence_set(split)]
    offset = streams.start.uniform(-table.tool_jitter_m, table.tool_jitter_m, size=3)
    x, y, z = table.tool_start_m
    return rounded(
        SceneSpec(
            family=goals[0].kind,
            objects=objects,
            target=goals[0].target,
            goal=goals[0].goal,
            goals=goals,
            instruction=said[int(streams.language.integers(len(said)))],
            tool_start_m=(x + float(offset[0]), y + float(offset[1]), z + 0.5 * float(offset[2])),
            task=task,
            robot=robot,
        )
    )
