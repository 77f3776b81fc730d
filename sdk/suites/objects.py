"""The suite `object`: pick one object out of several and put it in the bowl; ten pairs of colour and shape.

One other object has the target's shape and one has its colour where that is no held-out pair, so neither word alone
finds the target. The target starts in one half of the region, always the same one for a task, the others in the other
half: a policy that learned the place instead of the look fails in the split `swap`.
"""

from __future__ import annotations

import numpy as np

from roboalign.sdk.sim.layout import GRASPABLE
from roboalign.sdk.sim.scene import Goal, SceneSpec
from roboalign.sdk.sim.tasks import GoalTask
from roboalign.sdk.suites.placing import Item, Streams, draw_items, draw_pairs, make_scene
from roboalign.sdk.suites.splits import TRAIN_PAIRS, split_scene

__all__ = ["MAX_STEPS", "object_tasks"]

MAX_STEPS = 60
"""Control steps after which an episode is cut off, as in the family `place`."""
_TEMPLATES = {
    "train": (
        "put the {target} in the {bowl}",
        "place the {target} in the {bowl}",
        "pick up the {target} and put it in the {bowl}",
        "move the {target} into the {bowl}",
        "drop the {target} into the {bowl}",
        "take the {target} and place it inside the {bowl}",
    ),
    "language": (
        "pick up the {target} and drop it inside the {bowl}",
        "take the {target} and move it into the {bowl}",
    ),
}


def _draw(rng: np.random.Generator, robot: str, split: str, pair: tuple[str, str], side: int) -> SceneSpec:
    streams = Streams.of(rng)
    layout = streams.layout
    colour, shape = pair
    other_shape = GRASPABLE[1 - GRASPABLE.index(shape)]
    same_colour = (colour, other_shape)
    others = [same_colour] if same_colour in TRAIN_PAIRS else draw_pairs(layout, [other_shape], [pair])
    others += draw_pairs(layout, [shape], [pair, *others])
    if layout.random() < 0.5:
        others += draw_pairs(layout, [GRASPABLE[int(layout.integers(2))]], [pair, *others])
    bowl = draw_pairs(layout, ["bowl"])[0]
    items = [Item(colour=colour, shape=shape, side=side), Item(colour=bowl[0], shape="bowl")]
    items += [Item(colour=hue, shape=kind, side=-side) for hue, kind in others]
    goals = (Goal(kind="place", target=items[0].name, goal=items[1].name),)
    sentences = {
        name: tuple(text.format(target=items[0].name, bowl=items[1].name) for text in texts)
        for name, texts in _TEMPLATES.items()
    }
    scene = make_scene(
        task=f"object/{colour}_{shape}",
        objects=draw_items(layout, items, goals, robot=robot),
        goals=goals,
        sentences=sentences,
        streams=streams,
        robot=robot,
        split=split,
    )
    return split_scene(scene, split)


def object_tasks() -> tuple[GoalTask, ...]:
    """Returns the ten tasks of the suite, one for each pair that is not held out."""
    return tuple(_task(pair, (-1, 1)[i % 2]) for i, pair in enumerate(TRAIN_PAIRS))


def _task(pair: tuple[str, str], side: int) -> GoalTask:
    def draw(rng: np.random.Generator, robot: str, split: str) -> SceneSpec:
        return _draw(rng, robot, split, pair, side)

    return GoalTask(name=f"object/{pair[0]}_{pair[1]}", draw=draw, max_steps=MAX_STEPS)
