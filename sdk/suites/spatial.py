"""The suite `spatial`: two objects look alike, and only where they stand tells which one is meant.

Directions are those of the camera picture: left is -y, right is +y, in front of is nearer to the camera (+x), behind is
-x. A relation holds for the target and not for its twin, both by a margin. Target and twin start in different halves of
the region, across the direction that the sentence speaks of, so the mirrored places of the split `swap` keep the
relation true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.sim.scene import Goal, SceneSpec
from roboalign.sdk.sim.tasks import GoalTask
from roboalign.sdk.suites.placing import Item, Place, Streams, draw_items, draw_pairs, make_scene
from roboalign.sdk.suites.splits import split_scene

__all__ = ["MARGIN_M", "MAX_STEPS", "RELATIONS", "Relation", "holds", "spatial_tasks"]

MAX_STEPS = 60
"""Control steps after which an episode is cut off, as in the family `place`."""
MARGIN_M = 0.04
"""By how much a relation holds for the target and fails for its twin."""
_BETWEEN_M = 0.03
"""Something between two others is at most this far from the line between them; its twin three times as far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """How a sentence tells the target from its twin."""

    train: tuple[str, ...]
    """Wordings, with `{mark}` and for `between` also `{other}`."""
    mirror_axis: str
    """The swap mirrors this coordinate: it keeps the relation."""
    margin_m: Callable[[Place, Place, Sequence[Place]], float]
    """How clearly the relation holds for the first place and not for the second, given the landmarks; negative when it
    does not."""


def _distance(one: Place, other: Place) -> float:
    return math.hypot(one[0] - other[0], one[1] - other[1])


def _aside(axis: int, sign: float) -> Callable[[Place, Place, Sequence[Place]], float]:
    def margin(target: Place, twin: Place, marks: Sequence[Place]) -> float:
        return min(sign * (target[axis] - marks[0][axis]), sign * (marks[0][axis] - twin[axis]))

    return margin


def _near(sign: float) -> Callable[[Place, Place, Sequence[Place]], float]:
    def margin(target: Place, twin: Place, marks: Sequence[Place]) -> float:
        return sign * (_distance(twin, marks[0]) - _distance(target, marks[0]))

    return margin


def _off_line(place: Place, marks: Sequence[Place]) -> float:
    """Returns how far a place is from the line between two others, more when it is not between their ends."""
    (ax, ay), (bx, by) = marks
    length = _distance(marks[0], marks[1])
    along = ((place[0] - ax) * (bx - ax) + (place[1] - ay) * (by - ay)) / length**2
    share = min(1.0, max(0.0, along))
    return _distance(place, (ax + share * (bx - ax), ay + share * (by - ay)))


def _between(target: Place, twin: Place, marks: Sequence[Place]) -> float:
    return MARGIN_M + min(_BETWEEN_M - _off_line(target, marks), _off_line(twin, marks) - 3 * _BETWEEN_M)


RELATIONS = {
    "left": Relation(
        train=("left of the {mark}", "to the left of the {mark}", "on the left side of the {mark}"),
        mirror_axis="x",
        margin_m=_aside(1, -1.0),
    ),
    "right": Relation(
        train=("right of the {mark}", "to the right of the {mark}", "on the right side of the {mark}"),
        mirror_axis="x",
        margin_m=_aside(1, 1.0),
    ),
    "behind": Relation(
        train=("behind the {mark}", "further back than the {mark}"), mirror_axis="y", margin_m=_aside(0, -1.0)
    ),
    "front": Relation(
        train=("in front of the {mark}", "further to the front than the {mark}"),
        mirror_axis="y",
        margin_m=_aside(0, 1.0),
    ),
    "nearest": Relation(
        train=("nearest to the {mark}", "closest to the {mark}", "nearer to the {mark}"),
        mirror_axis="y",
        margin_m=_near(1.0),
    ),
    "farthest": Relation(
        train=("farthest from the {mark}", "further away from the {mark}", "farther from the {mark}"),
        mirror_axis="y",
        margin_m=_near(-1.0),
    ),
    "between": Relation(
        train=("between the {mark} and the {other}", "between the {other} and the {mark}"),
        mirror_axis="x",
        margin_m=_between,
    ),
}
"""Relations by name."""
_TASKS = {
    "left_of_bowl": ("left", ("bowl",)),
    "right_of_bowl": ("right", ("bowl",)),
    "left_of_block": ("left", ("block",)),
    "right_of_cylinder": ("right", ("cylinder",)),
    "behind_cylinder": ("behind", ("cylinder",)),
    "in_front_of_block": ("front", ("block",)),
    "nearest_to_bowl": ("nearest", ("bowl",)),
    "farthest_from_block": ("farthest", ("block",)),
    "between_bowl_and_block": ("between", ("bowl", "block")),
    "between_bowl_and_cylinder": ("between", ("bowl", "cylinder")),
}
"""Relation and landmarks of each task. The bowl is where the target goes, landmark or not."""
_TEMPLATES = {
    "train": (
        "put the {target} {relation} in the {bowl}",
        "place the {target} {relation} in the {bowl}",
        "pick up the {target} {relation} and put it in the {bowl}",
        "move the {target} that is {relation} into the {bowl}",
        "take the {target} {relation} and place it inside the {bowl}",
        "the {target} {relation} goes in the {bowl}",
    ),
    "language": (
        "pick up the {target} that is {relation} and place it inside the {bowl}",
        "take the {target} {relation} and move it into the {bowl}",
    ),
}


def holds(relation: str, target: Place, twin: Place, marks: Sequence[Place]) -> bool:
    """True when the relation clearly holds for the target and clearly not for its twin."""
    return RELATIONS[relation].margin_m(target, twin, marks) >= MARGIN_M


def _sentences(relation: Relation, target: str, bowl: str, marks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    other = marks[1] if len(marks) > 1 else ""
    phrases = [phrase.format(mark=marks[0], other=other) for phrase in relation.train]
    return {
        name: tuple(text.format(target=target, relation=phrase, bowl=bowl) for text in templates for phrase in phrases)
        for name, templates in _TEMPLATES.items()
    }


def _draw(rng: np.random.Generator, robot: str, split: str, task: str) -> SceneSpec:
    name, mark_shapes = _TASKS[task]
    relation = RELATIONS[name]
    streams = Streams.of(rng)
    layout = streams.layout
    shape = ("block", "cylinder")[int(layout.integers(2))]
    more = [mark for mark in mark_shapes if mark != "bowl"]
    pairs = draw_pairs(layout, (shape, "bowl", *more))
    tags = ("a", "b") if layout.random() < 0.5 else ("b", "a")
    twins = [Item(colour=pairs[0][0], shape=shape, side=side, tag=tag) for side, tag in zip((-1, 1), tags, strict=True)]
    rest = [Item(colour=colour, shape=kind) for colour, kind in pairs[1:]]
    items = [*twins, *rest]
    marks = [next(i for i, item in enumerate(items) if i > 1 and item.shape == mark) for mark in mark_shapes]
    goals = (Goal(kind="place", target=twins[0].name, goal=rest[0].name),)

    def accept(places: Sequence[Place]) -> bool:
        return holds(name, places[0], places[1], [places[i] for i in marks])

    objects = draw_items(layout, items, goals, robot=robot, axis=relation.mirror_axis, accept=accept)
    sentences = _sentences(relation, " ".join(pairs[0]), rest[0].name, [items[i].name for i in marks])
    scene = make_scene(
        task=f"spatial/{task}",
        objects=objects,
        goals=goals,
        sentences=sentences,
        streams=streams,
        robot=robot,
        split=split,
    )
    return split_scene(scene, split, mirror_axis=relation.mirror_axis)


def spatial_tasks() -> tuple[GoalTask, ...]:
    """Returns the ten tasks of the suite."""
    return tuple(_task(name) for name in _TASKS)


def _task(name: str) -> GoalTask:
    def draw(rng: np.random.Generator, robot: str, split: str) -> SceneSpec:
        return _draw(rng, robot, split, name)

    return GoalTask(name=f"spatial/{name}", draw=draw, max_steps=MAX_STEPS)
