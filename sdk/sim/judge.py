"""From the bodies of a scene to its truth: what an environment, and who watches a virtual arm, judge by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from roboalign.sdk.sim.expert import expert_stage
from roboalign.sdk.sim.goals import is_goal_reached
from roboalign.sdk.sim.layout import TableLayout, fold_yaw, object_height_m, object_width_m
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.scene import OBJECT_GOALS, ObjectSpec, SceneSpec
from roboalign.sdk.sim.truth import FixtureTruth, ObjectTruth, SceneTruth
from roboalign.sdk.sim.world import BodyState
from roboalign.sdk.types import FloatArray

__all__ = ["scene_truth"]


def scene_truth(
    scene: SceneSpec,
    bodies: Mapping[str, BodyState],
    state: FloatArray,
    starts_m: Mapping[str, FloatArray],
    *,
    fixtures: Sequence[FixtureTruth] = (),
    num_reached: int = 0,
) -> SceneTruth:
    """Returns all that is true of a scene.

    Args:
        scene: As it was laid out.
        bodies: Every object, as it is now.
        state: float32[5], the tool in the order of `STATE_NAMES`.
        starts_m: float32[3] by name, where each object was when the present goal began.
        fixtures: Everything that is fixed to the table.
        num_reached: In a sequence, how many goals were reached in their turn.
    """
    goals, table = scene.all_goals, find_robot(scene.robot).table
    truth = SceneTruth(
        family=scene.family,
        objects=tuple(_object_truth(item, bodies[item.name], table) for item in scene.objects),
        target=scene.target,
        goal=scene.goal,
        instruction=scene.instruction,
        state=state,
        start_position_m=np.zeros(3, np.float32),
        stage="reach",
        task=scene.task,
        goals=scene.goals,
        fixtures=tuple(fixtures),
        is_sequence=scene.is_sequence,
        robot=scene.robot,
    )
    done = tuple(
        index < num_reached if scene.is_sequence else is_goal_reached(truth, goal) for index, goal in enumerate(goals)
    )
    now = goals[done.index(False)] if False in done else goals[-1]
    start_m = starts_m[now.target] if now.kind in OBJECT_GOALS else truth.fixture(now.target).position_m
    truth = dataclasses.replace(
        truth,
        family=now.kind,
        target=now.target,
        goal=now.goal,
        done=done if scene.goals else (),
        start_position_m=start_m,
    )
    return dataclasses.replace(truth, stage=expert_stage(truth))


def _object_truth(item: ObjectSpec, state: BodyState, table: TableLayout) -> ObjectTruth:
    return ObjectTruth(
        name=item.name,
        colour=item.colour,
        shape=item.shape,
        position_m=state.position_m,
        yaw_rad=fold_yaw(state.yaw_rad, item.shape),
        width_m=object_width_m(item.shape, table),
        height_m=object_height_m(item.shape, table),
        speed_m_s=state.speed_m_s,
        tilt_rad=state.tilt_rad,
        is_held=state.is_held,
        is_touched=state.is_touched,
    )
