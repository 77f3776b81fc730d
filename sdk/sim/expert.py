"""A scripted expert that solves every task family from the truth of the scene.

It has no memory: the action is a function of the present truth alone, so a policy that sees one picture can imitate it,
and any disturbance is corrected from wherever it led. Steps are proportional to what is left and clipped, and limits on
motion near objects fade in smoothly, so that a small error of a clone makes a small difference.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.sim import fixture_expert
from roboalign.sdk.sim.layout import ExpertSizes, TableLayout, direction_sign, fold_yaw
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.truth import ObjectTruth, SceneTruth
from roboalign.sdk.types import FloatArray

__all__ = ["expert_action", "expert_stage"]

_STEP_RAD = 0.15
_GAIN = 0.85
_TOO_LOW_M = 0.008
_STACKED_M = 0.015
"""What is higher than a standing object by more than this stands on another one."""
_AROUND_M = 0.03
"""The fingers surround an object whose centre is at most this far from the tool."""
_TOPPLED_RAD = 0.8
"""A cylinder that tilts by more has fallen over, and has to be pushed further to count."""
_CLEAR_M = 0.02
"""Height of the tool above an object's top at which the fingers no longer surround it."""

_Plan = tuple[str, NDArray[np.float64], float, bool]
"""Stage, displacement float64[3], yaw change, whether the gripper is open."""


def expert_action(truth: SceneTruth) -> FloatArray:
    """Returns float32[5], the action to take now, in the order of `ACTION_NAMES`."""
    _, move, turn, is_open = _plan(truth)
    step_m = _table(truth).expert.step_m
    action = np.empty(5, np.float32)
    action[:3] = np.clip(move, -step_m, step_m)
    action[3] = float(np.clip(turn, -_STEP_RAD, _STEP_RAD))
    action[4] = 1.0 if is_open else 0.0
    return action


def expert_stage(truth: SceneTruth) -> str:
    """Returns the name of what the expert does now, one of `truth.STAGES`; `truth.stage` itself is not read."""
    return _plan(truth)[0]


def _table(truth: SceneTruth) -> TableLayout:
    return find_robot(truth.robot).table


def _sizes(truth: SceneTruth) -> ExpertSizes:
    """Returns the sizes for this moment: past something that was stacked, the hand travels higher."""
    table = _table(truth)
    tops = [float(item.position_m[2]) + item.height_m / 2 for item in truth.objects if item.name != truth.target]
    sizes, extra = table.expert, max(tops, default=0.0) - table.cylinder_height_m
    if extra <= _STACKED_M:
        return sizes
    return dataclasses.replace(
        sizes,
        hover_m=sizes.hover_m + extra,
        travel_low_m=sizes.travel_low_m + extra,
        travel_free_m=sizes.travel_free_m + extra,
        carry_bottom_m=sizes.carry_bottom_m + extra,
    )


def _plan_rise(truth: SceneTruth) -> _Plan | None:
    """Straight up from an object that an earlier goal was about and that the fingers still surround; None elsewhere."""
    tool = truth.state[:3].astype(np.float64)
    near = [item for item in truth.objects if float(np.hypot(*(item.position_m[:2] - tool[:2]))) < _AROUND_M]
    if len(truth.all_goals) == 1 or any(item.name == truth.target for item in near):
        return None
    tops = [float(item.position_m[2]) + item.height_m / 2 for item in near if item.shape != "bowl"]
    rise = max(tops, default=0.0) + _CLEAR_M - tool[2]
    return ("retreat", np.array([0.0, 0.0, rise + 0.015]), 0.0, True) if tops and rise > 0.0 else None


def _plan(truth: SceneTruth) -> _Plan:
    if not truth.is_about_object:
        return fixture_expert.plan(truth)
    rise = _plan_rise(truth)
    if rise is not None:
        return rise
    if truth.family == "push":
        return _plan_push(truth)
    target, goal = truth.target_object, truth.find(truth.goal)
    if target.is_held:
        return _plan_held(truth, target, goal)
    if _rests_at_goal(_table(truth).expert, truth.family, target, goal):
        return _plan_leave(truth, target)
    return _plan_pick(truth, target)


def _plan_pick(truth: SceneTruth, target: ObjectTruth) -> _Plan:
    """Above the object, down around it, close."""
    sizes = _sizes(truth)
    tool, width = truth.state[:3].astype(np.float64), float(truth.state[4])
    grasp_z = max(sizes.min_grasp_m, float(target.position_m[2]))
    offset = np.asarray(target.position_m[:2], np.float64) - tool[:2]
    error = float(np.hypot(*offset))
    turn = fold_yaw(target.yaw_rad - float(truth.state[3]), "block") if target.shape == "block" else 0.0
    grip = _grip_offset(offset, float(truth.state[3]), sizes.grip_shift_m)
    is_close = float(np.hypot(*grip)) < sizes.grasp_tolerance_m
    is_around = is_close and abs(turn) < 0.12 and abs(tool[2] - grasp_z) < 0.01
    if is_around and width > sizes.empty_width_m:
        move = np.array([0.5 * grip[0], 0.5 * grip[1], grasp_z - tool[2]])
        return "grasp", move, 0.0, False
    is_ready = width > sizes.open_width_m or (tool[2] < grasp_z + 0.02 and width > sizes.empty_width_m)
    height = _funnel(error, grasp_z, sizes.hover_m) if is_ready else sizes.hover_m
    height = max(height, grasp_z + min(1.0, max(0.0, abs(turn) - 0.1) / 0.2) * (sizes.hover_m - grasp_z))
    move = _approach(sizes, tool, offset, error, height)
    stage = "reach" if error > 0.02 or not is_ready else "descend"
    return stage, move, turn, True


def _grip_offset(offset: NDArray[np.float64], yaw_rad: float, shift_m: float) -> NDArray[np.float64]:
    """Returns the offset less what a single moving jaw drags the object along the tool's y axis anyway."""
    if shift_m == 0.0:
        return offset
    axis = np.array([math.sin(yaw_rad), -math.cos(yaw_rad)])
    return offset - axis * min(shift_m, max(0.0, float(offset @ axis)))


def _plan_held(truth: SceneTruth, target: ObjectTruth, goal: ObjectTruth) -> _Plan:
    """Up, across, down, open."""
    sizes = _sizes(truth)
    is_stack = truth.family == "stack"
    offset = np.asarray(goal.position_m[:2] - target.position_m[:2], np.float64)
    error = float(np.hypot(*offset))
    bottom = float(target.position_m[2]) - target.height_m / 2
    goal_top = float(goal.position_m[2]) + goal.height_m / 2 if is_stack else 0.0
    low = goal_top + 0.002 if is_stack else sizes.place_bottom_m
    high = max(sizes.carry_bottom_m, goal_top + 0.03)
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
    move[:2] = _towards(offset, sizes.step_m) * freedom
    move[2] = max(_GAIN * (wanted - bottom), -0.02 if bottom < low + 0.03 else -sizes.descent_m)
    if error > 0.02 and bottom < 0.045:
        stage = "lift"
    else:
        stage = "carry" if error > 0.015 else "lower"
    return stage, move, turn, False


def _plan_leave(truth: SceneTruth, target: ObjectTruth) -> _Plan:
    """Let go, then straight up and stay."""
    sizes = _table(truth).expert
    tool, width = truth.state[:3], float(truth.state[4])
    is_near = float(np.hypot(*(tool[:2] - target.position_m[:2]))) < 0.05 and tool[2] < target.position_m[2] + 0.05
    is_jammed = truth.family == "place" and tool[2] < sizes.rim_clear_m and width < sizes.open_width_m
    if is_near and is_jammed:  # the fingers press on the bowl from inside: take the object up again
        return "grasp", np.zeros(3), 0.0, False
    if is_near and width < sizes.free_width_m:
        return "release", np.zeros(3), 0.0, True
    height = max(sizes.done_m, float(target.position_m[2]) + 0.075)
    if tool[2] < height - 0.005:
        return "retreat", np.array([0.0, 0.0, height + 0.015 - float(tool[2])]), 0.0, True
    return "done", np.zeros(3), 0.0, True


def _plan_push(truth: SceneTruth) -> _Plan:
    """Down behind the object, push it over the line, up."""
    table = _table(truth)
    sizes = _sizes(truth)
    sign = direction_sign(truth.goal)
    tool = truth.state[:3].astype(np.float64)
    hand = _closed_hand(tool[:2], float(truth.state[3]), sizes.closed_shift_m)
    target = np.asarray(truth.target_object.position_m, np.float64)
    turn = -float(truth.state[3])
    item = truth.target_object
    fall_m = item.height_m / 2 if item.shape == "cylinder" and item.tilt_rad > _TOPPLED_RAD else 0.0
    left_over = table.push_line_m + sizes.push_overshoot_m + fall_m - sign * target[1]
    if left_over < 0.002:
        if tool[2] < sizes.done_m - 0.005:
            return "retreat", np.array([0.0, -sign * 0.015, sizes.done_m + 0.015 - tool[2]]), turn, False
        return "done", np.zeros(3), 0.0, False
    behind = sign * (target[1] - hand[1])
    aside = target[0] - hand[0]
    straight, lost = sizes.push_aside_m
    is_behind = sizes.push_min_m < behind < sizes.push_standoff_m + 0.03 and abs(aside) < lost
    if is_behind and tool[2] < sizes.push_height_m + 0.008:
        gap = max(0.0, behind - sizes.push_contact_m)
        forward = min(sizes.push_step_m, _GAIN * left_over + gap + 0.004)
        forward *= 1.0 - 0.6 * _ramp(abs(aside), straight, lost)
        return "push", np.array([0.8 * aside, sign * forward, sizes.push_height_m - tool[2]]), turn, False
    offset = np.array([target[0], target[1] - sign * sizes.push_standoff_m]) - hand
    error = float(np.hypot(*offset))
    is_closed = float(truth.state[4]) < sizes.closed_width_m
    height = _funnel(error, sizes.push_height_m, sizes.hover_m) if is_closed else sizes.hover_m
    stage = "reach" if error > 0.025 or not is_closed else "descend"
    return stage, _approach(sizes, tool, offset, error, height), turn, False


def _closed_hand(tool_m: NDArray[np.float64], yaw_rad: float, shift_m: float) -> NDArray[np.float64]:
    """Returns where a closed gripper with one moving jaw is: beside the tool, along its y axis."""
    return tool_m if shift_m == 0.0 else tool_m + shift_m * np.array([math.sin(yaw_rad), -math.cos(yaw_rad)])


def _rests_at_goal(sizes: ExpertSizes, family: str, target: ObjectTruth, goal: ObjectTruth) -> bool:
    """True when the object was let go where it should be, or is about to drop there."""
    error = float(np.hypot(*(target.position_m[:2] - goal.position_m[:2])))
    bottom = float(target.position_m[2]) - target.height_m / 2
    if family == "place":
        return error < 0.04 and bottom < sizes.place_bottom_m + 0.01
    gap = bottom - float(goal.position_m[2]) - goal.height_m / 2
    return error < 0.022 and abs(gap) < 0.012 and target.tilt_rad < 0.2


def _funnel(error: float, low: float, high: float) -> float:
    """Returns the height to be at: `low` when aligned, `high` when 3 cm off, in between linearly."""
    return low + (high - low) * _ramp(error, 0.007, 0.03)


def _approach(
    sizes: ExpertSizes, tool: NDArray[np.float64], offset: NDArray[np.float64], error: float, height: float
) -> NDArray[np.float64]:
    """Returns the displacement towards a place; far from it and low, the tool rises before it moves sideways."""
    freedom = max(_ramp(tool[2], sizes.travel_low_m, sizes.travel_free_m), 1.0 - _ramp(error, 0.02, 0.035))
    move = np.empty(3)
    move[:2] = _towards(offset, sizes.step_m) * freedom
    move[2] = max(_GAIN * (height - tool[2]), -sizes.step_m if tool[2] > sizes.hover_m else -sizes.descent_m)
    return move


def _towards(offset: NDArray[np.float64], step_m: float) -> NDArray[np.float64]:
    """Returns a proportional step whose length, not each axis, is limited, so that the path is straight."""
    step = _GAIN * offset
    length = math.hypot(step[0], step[1])
    return step if length <= step_m else step * (step_m / length)


def _ramp(value: float, start: float, end: float) -> float:
    """Returns 0 up to `start`, 1 from `end` on, linear in between."""
    return float(min(1.0, max(0.0, (value - start) / (end - start))))
