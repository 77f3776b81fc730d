"""The tiny world's pictures with true scenes behind them, for tests of what the samples say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tiny

from roboalign.sdk.sim.language import instruction_for
from roboalign.sdk.sim.truth import STAGES, ObjectTruth, SceneTruth
from roboalign.trainer.frames import FrameTable

_FAMILIES = ("place", "push", "stack")
_GOALS = {"place": "blue bowl", "push": "left", "stack": "green block"}


def scene(index: int) -> SceneTruth:
    """Returns a scene of three objects; families and stages take turns, and the target is held in the later stages."""
    rng = np.random.default_rng(index)
    family = _FAMILIES[index % len(_FAMILIES)]
    stage = STAGES[index % len(STAGES)]
    objects = tuple(
        _object(name, rng, is_held=name == "red block" and stage in ("lift", "carry", "lower"))
        for name in ("red block", "green block", "blue bowl")
    )
    goal = _GOALS[family]
    return SceneTruth(
        family=family,
        objects=objects,
        target="red block",
        goal=goal,
        instruction=instruction_for(family, "red block", goal, index=index),
        state=np.array([0.5, 0.0, 0.2, 0.0, 0.08], np.float32),
        start_position_m=objects[0].position_m,
        stage=stage,
    )


def _object(name: str, rng: np.random.Generator, *, is_held: bool) -> ObjectTruth:
    colour, shape = name.split()
    return ObjectTruth(
        name=name,
        colour=colour,
        shape=shape,
        position_m=np.array([rng.uniform(0.38, 0.64), rng.uniform(-0.18, 0.18), 0.02], np.float32),
        yaw_rad=0.0,
        width_m=0.04,
        height_m=0.04,
        speed_m_s=0.0,
        tilt_rad=0.0,
        is_held=is_held,
        is_touched=is_held,
    )


def frames(count: int = 40) -> FrameTable:
    """Returns the tiny world's frames with true scenes."""
    truths = tuple(scene(index) for index in range(count))
    states = np.stack([truth.state for truth in truths])
    return replace(tiny.frames(count), truths=truths, states=states)
