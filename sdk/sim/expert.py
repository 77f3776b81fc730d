"""A scripted expert that solves every task family from the truth of the scene.

It has no memory: the action is a function of the present truth alone, so a policy that sees one picture can imitate it,
and any disturbance is corrected from wherever it led. Steps are proportional to what is left and clipped, and limits on
motion near objects fade in smoothly, so that a small error of a clone makes a small difference.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.sim.layout import PUSH_LINE_M, direction_sign, fold_yaw
from roboalign.sdk.sim.truth import ObjectTruth, SceneTruth
from roboalign.sdk.types import FloatArray

__all__ = ["expert_action", "expert_stage"]

_STEP_M = 0.04
_STEP_RAD = 0.15
_GAIN = 0.85
_DESCENT_M = 0.03
"""Largest step down: the last centimetres are slow enough for the arm to follow closely."""
_HOVER_M = 0.10
_CARRY_BOTTOM_M = 0.075
"""Height of a carried object's underside: clears every standing object."""
_DONE_M = 0.115
_OPEN_WIDTH_M = 0.068
_FREE_WIDTH_M = 0.053
"""Fingers wider apart than this have let go; a bowl's wall may keep them from opening further until they rise."""
_RIM_CLEAR_M = 0.036
"""Lower than this, fingers inside a bowl cannot open without lifting it."""
_EMPTY_WIDTH_M = 0.030
"""Fingers closer than this have missed: every graspable object is wider."""
_GRASP_TOLERANCE_M = 0.009
_PLACE_BOTTOM_M = 0.026
_TOO_LOW_M = 0.008
_PUSH_HEIGHT_M = 0.022
_PUSH_STANDOFF_M = 0.062
_PUSH_STEP_M = 0.032
_PUSH_OVERSHOOT_M = 0.012

_Plan = tuple[str, NDArray[np.float64], float, bool]
"""Stage, displacement float64[3], yaw change, whether the gripper is open."""


def expert_action(truth: SceneTruth) -> FloatArray:
    """Returns float32[5], the action to take now, in the order of `ACTION_NAMES`."""
    _, move, turn, is_open = _plan(truth)
    action = np.empty(5, np.float32)
    action[:3] = np.clip(move, -_STEP_M, _STEP_M)
    action[3] = float(np.clip(turn, -_STEP_RAD, _STEP_RAD))
    action[4] = 1.0 if is_open else 0.0
    return action


def expert_stage(truth: SceneTruth) -> str:
    """Returns the name of what the expert does now, one of `truth.STAGES`; `truth.stage` itself is not read."""
    return _plan(truth)[0]


def _plan(truth: SceneTruth) -> _Plan:
    if truth.family == "push":
        return _plan_push(truth)
    target, goal = truth.target_object, truth.find(truth.goal)
    if target.is_held:
        return _plan_held(truth, target, goal)
    if _rests_at_goal(truth.family, target, goal):
        return _plan_leave(truth, target)
    return _plan_pick(truth, target)


def _plan_pick(truth: SceneTruth, target: ObjectTruth) -> _Plan:
    """Above the object, down around it, close."""
    tool, width = truth.state[:3].astype(np.float64), float(truth.state[4])
    grasp_z = max(0.02, float(target.position_m[2]))
    offset = np.asarray(target.position_m[:2], np.float64) - tool[:2]
    error = float(np.hypot(*offset))
    turn = fold_yaw(target.yaw_rad - float(truth.state[3]), "block") if target.shape == "block" else 0.0
    is_around = error < _GRASP_TOLERANCE_M and abs(turn) < 0.12 and abs(tool[2] - grasp_z) < 0.01
    if is_around and width > _EMPTY_WIDTH_M:
        move = np.array([0.5 * offset[0], 0.5 * offset[1], grasp_z - tool[2]])
        return "grasp", move, 0.0, False
    is_ready = width > _OPEN_WIDTH_M or (tool[2] < grasp_z + 0.02 and width > _EMPTY_WIDTH_M)
    height = _funnel(error, grasp_z, _HOVER_M) if is_ready else _HOVER_M
    height = max(height, grasp_z + min(1.0, max(0.0, abs(turn) - 0.1) / 0.2) * (_HOVER_M - grasp_z))
    move = _approach(tool, offset, error, height)
    stage = "reach" if error > 0.02 or not is_ready else "descend"
    return stage, move, turn, True


def _plan_held(truth: SceneTruth, target: ObjectTruth, goal: ObjectTruth) -> _Plan:
    """Up, across, down, open."""
    is_stack = truth.family == "stack"
    offset = np.asarray(goal.position_m[:2] - target.position_m[:2], np.float64)
    error = float(np.hypot(*offset))
    bottom = float(target.position_m[2]) - target.height_m / 2
    goal_top = float(goal.position_m[2]) + goal.height_m / 2 if is_stack else 0.0
    low = goal_top + 0.002 if is_stack else _PLACE_BOTTOM_M
    high = max(_CARRY_BOTTOM_M, goal_top + 0.03)
    tolerance = 0.006 if is_stack else 0.012
    wanted_yaw = goal.yaw_rad if is_stack and target.shape == "block" else 0.0
    held_yaw = target.yaw_rad if is_stack and target.shape == "block" else float(truth.state[3])
    turn = fold_yaw(wanted_yaw - held_yaw, "block")
    if error < tolerance + 0.002 and -_TOO_LOW_M < bottom - low < 0.004:
        return "release", np.array([0.0, 0.0, min(0.0, low - bottom)]), 0.0, True
    wanted = low + (high - low) * _ramp(error, tolerance * 0.8, tolerance * 0.8 + 0.03)
    clearance = _ramp(bottom, 0.015, 0.05) if not is_stack else _ramp(bottom, 0.02, goal_top + 0.015)
    freedom = clearance if error > 0.02 else max(clearance, 0.5)
    move = np.empty(3)
    move[:2] = _towards(offset) * freedom
    move[2] = max(_GAIN * (wanted - bottom), -0.02 if bottom < low + 0.03 else -_DESCENT_M)
    if error > 0.02 and bottom < 0.045:
        stage = "lift"
    else:
        stage = "carry" if error > 0.015 else "lower"
    return stage, move, turn, False


def _plan_leave(truth: SceneTruth, target: ObjectTruth) -> _Plan:
    """Let go, then straight up and stay."""
    tool, width = truth.state[:3], float(truth.state[4])
    is_near = float(np.hypot(*(tool[:2] - target.position_m[:2]))) < 0.05 and tool[2] < target.position_m[2] + 0.05
    is_jammed = truth.family == "place" and tool[2] < _RIM_CLEAR_M and width < _OPEN_WIDTH_M
    if is_near and is_jammed:  # the fingers press on the bowl from inside: take the object up again
        return "grasp", np.zeros(3), 0.0, False
    if is_near and width < _FREE_WIDTH_M:
        return "release", np.zeros(3), 0.0, True
    height = max(_DONE_M, float(target.position_m[2]) + 0.075)
    if tool[2] < height - 0.005:
        return "retreat", np.array([0.0, 0.0, height + 0.015 - float(tool[2])]), 0.0, True
    return "done", np.zeros(3), 0.0, True


def _plan_push(truth: SceneTruth) -> _Plan:
    """Down behind the object, push it over the line, up."""
    sign = direction_sign(truth.goal)
    tool = truth.state[:3].astype(np.float64)
    target = np.asarray(truth.target_object.position_m, np.float64)
    turn = -float(truth.state[3])
    left_over = PUSH_LINE_M + _PUSH_OVERSHOOT_M - sign * target[1]
    if left_over < 0.002:
        if tool[2] < _DONE_M - 0.005:
            return "retreat", np.array([0.0, -sign * 0.015, _DONE_M + 0.015 - tool[2]]), turn, False
        return "done", np.zeros(3), 0.0, False
    behind = sign * (target[1] - tool[1])
    aside = target[0] - tool[0]
    if 0.028 < behind < _PUSH_STANDOFF_M + 0.03 and abs(aside) < 0.018 and tool[2] < _PUSH_HEIGHT_M + 0.008:
        gap = max(0.0, behind - 0.04)
        forward = min(_PUSH_STEP_M, _GAIN * left_over + gap + 0.004) * (1.0 - 0.6 * _ramp(abs(aside), 0.006, 0.018))
        return "push", np.array([0.8 * aside, sign * forward, _PUSH_HEIGHT_M - tool[2]]), turn, False
    offset = np.array([target[0], target[1] - sign * _PUSH_STANDOFF_M]) - tool[:2]
    error = float(np.hypot(*offset))
    is_closed = float(truth.state[4]) < 0.03
    height = _funnel(error, _PUSH_HEIGHT_M, _HOVER_M) if is_closed else _HOVER_M
    stage = "reach" if error > 0.025 or not is_closed else "descend"
    return stage, _approach(tool, offset, error, height), turn, False


def _rests_at_goal(family: str, target: ObjectTruth, goal: ObjectTruth) -> bool:
    """True when the object was let go where it should be, or is about to drop there."""
    error = float(np.hypot(*(target.position_m[:2] - goal.position_m[:2])))
    bottom = float(target.position_m[2]) - target.height_m / 2
    if family == "place":
        return error < 0.04 and bottom < _PLACE_BOTTOM_M + 0.01
    gap = bottom - float(goal.position_m[2]) - goal.height_m / 2
    return error < 0.022 and abs(gap) < 0.012 and target.tilt_rad < 0.2


def _funnel(error: float, low: float, high: float) -> float:
    """Returns the height to be at: `low` when aligned, `high` when 3 cm off, in between linearly."""
    return low + (high - low) * _ramp(error, 0.007, 0.03)


def _approach(
    tool: NDArray[np.float64], offset: NDArray[np.float64], error: float, height: float
) -> NDArray[np.float64]:
    """Returns the displacement towards a place; far from it and low, the tool rises before it moves sideways."""
    freedom = max(_ramp(tool[2], 0.06, 0.085), 1.0 - _ramp(error, 0.02, 0.035))
    move = np.empty(3)
    move[:2] = _towards(offset) * freedom
    move[2] = max(_GAIN * (height - tool[2]), -_STEP_M if tool[2] > _HOVER_M else -_DESCENT_M)
    return move


def _towards(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a proportional step whose length, not each axis, is limited, so that the path is straight."""
    step = _GAIN * offset
    length = math.hypot(step[0], step[1])
    return step if length <= _STEP_M else step * (_STEP_M / length)


def _ramp(value: float, start: float, end: float) -> float:
    """Returns 0 up to `start`, 1 from `end` on, linear in between."""
    return float(min(1.0, max(0.0, (value - start) / (end - start))))
