"""What each held-out split changes: one thing, and nothing else.

Every split is a function of the training scene of the same seed, so that pairs of scenes differ in that one thing:

| split | changes | stays |
|---|---|---|
| `train` | - | - |
| `language` | the sentence: paraphrases that training never uses, made of words that it does | everything else |
| `object` | the pair of colour and shape of the targets, held out of training; the sentence names it | places |
| `swap` | places: mirrored, so that targets stand where training has the other objects | objects, sentence, yaw |
| `camera`, `lighting` | nothing here: the environment draws them from held-out ranges | the scene |
"""

from __future__ import annotations

import dataclasses
import re

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.layout import COLOURS, GRASPABLE, TableLayout
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.scene import OBJECT_GOALS, Goal, ObjectSpec, SceneSpec

__all__ = [
    "HELDOUT_PAIRS",
    "TRAIN_PAIRS",
    "mirrored",
    "rounded",
    "sentence_set",
    "split_scene",
    "with_heldout_pairs",
]

HELDOUT_PAIRS = (("purple", "block"), ("orange", "cylinder"))
"""Pairs of colour and shape that occur in the split `object` of the suites and in no training scene of theirs. Both
colours and both shapes do occur in training, apart from each other."""
TRAIN_PAIRS = tuple(
    (colour, shape) for colour in COLOURS for shape in GRASPABLE if (colour, shape) not in HELDOUT_PAIRS
)
"""The other ten."""
_HELDOUT_COLOUR = {shape: colour for colour, shape in HELDOUT_PAIRS}


def sentence_set(split: str) -> str:
    """Returns which set of paraphrases a split draws from: `language` or `train`."""
    return "language" if split == "language" else "train"


def split_scene(scene: SceneSpec, split: str, *, mirror_axis: str = "y") -> SceneSpec:
    """Returns the scene of a split, given the training scene (with a sentence from `sentence_set(split)`).

    Args:
        scene: As it was drawn for training.
        split: One of `SPLITS`.
        mirror_axis: Which coordinate the swap mirrors: `y` exchanges left and right, `x` near and far. A task whose
            sentence says left or right mirrors `x`, one that says behind or in front of mirrors `y`.
    """
    if split == "object":
        return with_heldout_pairs(scene)
    return mirrored(scene, mirror_axis) if split == "swap" else scene


def with_heldout_pairs(scene: SceneSpec) -> SceneSpec:
    """Returns the scene with its targets in held-out colours: the first block and the first cylinder to be moved.

    Objects that look like such a target change with it. Goals, names and sentences follow; places do not.
    """
    looks = {item.name: f"{item.colour} {item.shape}" for item in scene.objects}
    shapes = {item.name: item.shape for item in scene.objects}
    targets = [goal.target for goal in scene.all_goals if goal.kind in OBJECT_GOALS]
    first = {shapes[name]: looks[name] for name in reversed(targets)}
    new_colour = {look: _HELDOUT_COLOUR[shape] for shape, look in first.items()}
    renamed: dict[str, str] = {}
    objects = []
    for item in scene.objects:
        changed = dataclasses.replace(item, colour=new_colour.get(looks[item.name], item.colour))
        renamed[item.name] = changed.name
        objects.append(changed)

    def say(sentence: str) -> str:
        if not new_colour:
            return sentence
        words = "|".join(re.escape(look) for look in new_colour)
        return re.sub(rf"\b({words})\b", lambda hit: f"{new_colour[hit[0]]} {hit[0].split()[1]}", sentence)

    def rename(goal: Goal) -> Goal:
        target, place = renamed.get(goal.target, goal.target), renamed.get(goal.goal, goal.goal)
        return dataclasses.replace(goal, target=target, goal=place)

    return dataclasses.replace(
        scene,
        objects=tuple(objects),
        target=renamed.get(scene.target, scene.target),
        goal=renamed.get(scene.goal, scene.goal),
        goals=tuple(rename(goal) for goal in scene.goals),
        instruction=say(scene.instruction),
        instructions=tuple(say(sentence) for sentence in scene.instructions),
    )


def mirrored(scene: SceneSpec, axis: str = "y") -> SceneSpec:
    """Returns the scene with every object at its mirror image within the region where objects start."""
    if axis not in ("x", "y"):
        raise ConfigError(f"mirror axis is {axis!r}; choose x or y")
    table = find_robot(scene.robot).table
    return rounded(dataclasses.replace(scene, objects=tuple(_mirror(item, axis, table) for item in scene.objects)))


def _mirror(item: ObjectSpec, axis: str, table: TableLayout) -> ObjectSpec:
    if axis == "y":
        return dataclasses.replace(item, y_m=-item.y_m)
    return dataclasses.replace(item, x_m=sum(table.x_range_m) - item.x_m)


def rounded(scene: SceneSpec) -> SceneSpec:
    """Returns the scene with lengths in whole 0.1 mm and angles in whole 0.1 mrad, as the frozen states are stored."""

    def of(value: float) -> float:
        return round(value, 4) + 0.0  # no minus zero

    objects = (
        dataclasses.replace(item, x_m=of(item.x_m), y_m=of(item.y_m), yaw_rad=of(item.yaw_rad))
        for item in scene.objects
    )
    fixtures = (
        dataclasses.replace(item, x_m=of(item.x_m), y_m=of(item.y_m), opening=of(item.opening))
        for item in scene.fixtures
    )
    x, y, z = scene.tool_start_m
    return dataclasses.replace(
        scene,
        objects=tuple(objects),
        fixtures=tuple(fixtures),
        tool_start_m=(of(x), of(y), of(z)),
        tool_yaw_rad=of(scene.tool_yaw_rad),
    )
