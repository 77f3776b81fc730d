"""When a goal is reached and how far it got, from the state of the scene alone.

Nothing here looks at the expert: the predicates judge whatever robot acted.
"""

from __future__ import annotations

import numpy as np

from roboalign.sdk.sim.layout import direction_sign
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.scene import OBJECT_GOALS, Goal
from roboalign.sdk.sim.truth import ObjectTruth, SceneTruth

__all__ = [
    "goal_progress",
    "is_at_goal",
    "is_goal_reached",
    "is_in_bowl",
    "is_on_top",
    "is_over_line",
    "is_success",
    "progress",
]

_REST_SPEED_M_S = 0.02
_UPRIGHT_RAD = 0.15
_STACK_GAP_M = 0.006
_STANDING_M = 0.01
"""What stands on the table is at most this far above or below its place."""
_NOT_DONE = 0.95
"""Largest progress of a goal that is not reached."""
OPEN_SHARE = 0.8
"""A drawer or door counts from this share of its way on."""
CLOSED_SHARE = 0.1
"""A drawer counts as closed up to this share."""


def is_in_bowl(item: ObjectTruth, bowl: ObjectTruth, *, robot: str = "panda") -> bool:
    """True when the object's centre is inside the bowl's wall and low enough to be supported by its floor."""
    inner = bowl.width_m / 2 - find_robot(robot).table.bowl_wall_m
    offset = float(np.hypot(*(item.position_m[:2] - bowl.position_m[:2])))
    height = float(item.position_m[2] - bowl.position_m[2])
    return offset < inner and 0.0 < height < bowl.height_m + 0.4 * item.height_m and bowl.tilt_rad < _UPRIGHT_RAD


def is_on_top(item: ObjectTruth, base: ObjectTruth) -> bool:
    """True when the object stands upright on the other one, its centre well over the other's top face."""
    offset = np.abs(item.position_m[:2] - base.position_m[:2])
    gap = float(item.position_m[2] - base.position_m[2]) - (item.height_m + base.height_m) / 2
    is_flat = _is_upright(item) and _is_upright(base)
    return bool(np.hypot(*offset) < base.width_m / 2) and abs(gap) < _STACK_GAP_M and is_flat


def _is_upright(item: ObjectTruth) -> bool:
    """True when the object stands on its underside; a block looks the same on every face, so any will do."""
    tilt = item.tilt_rad
    if item.shape == "block":
        tilt = abs((tilt + np.pi / 4) % (np.pi / 2) - np.pi / 4)
    return tilt < _UPRIGHT_RAD


def is_over_line(item: ObjectTruth, direction: str, *, robot: str = "panda") -> bool:
    """True when the object's centre lies beyond the painted line on that side."""
    return float(item.position_m[1]) * direction_sign(direction) > find_robot(robot).table.push_line_m


def is_at_goal(truth: SceneTruth, goal: Goal) -> bool:
    """True when the target is where the goal wants it, moving or not, held or not."""
    if goal.kind not in OBJECT_GOALS:
        return _is_fixture_there(truth, goal)
    target = truth.find(goal.target)
    if goal.kind == "push":
        return is_over_line(target, goal.goal, robot=truth.robot)
    place = truth.find(goal.goal)
    return is_in_bowl(target, place, robot=truth.robot) if goal.kind == "place" else is_on_top(target, place)


def _is_fixture_there(truth: SceneTruth, goal: Goal) -> bool:
    fixture = truth.fixture(goal.target)
    if goal.kind == "press":
        return fixture.num_presses > 0
    if goal.kind == "light":
        return (fixture.opening > 0.5) is (goal.goal == "on")
    if goal.kind == "close":
        return fixture.opening < CLOSED_SHARE
    is_high = goal.kind == "open" or goal.goal == "right"
    return fixture.opening > OPEN_SHARE if is_high else fixture.opening < 1.0 - OPEN_SHARE


def is_goal_reached(truth: SceneTruth, goal: Goal) -> bool:
    """True when the target is where the goal wants it, at rest.

    A pushed object stands on the table; a placed or stacked one is let go of, and so is what it lies in or on.
    """
    if not is_at_goal(truth, goal):
        return False
    if goal.kind not in OBJECT_GOALS:
        return truth.fixture(goal.target).speed_m_s <= _REST_SPEED_M_S or goal.kind in ("press", "light")
    target = truth.find(goal.target)
    if target.speed_m_s > _REST_SPEED_M_S or target.is_held:
        return False
    if goal.kind == "push":
        return _is_pushed(target, goal.goal, truth.robot)
    return not target.is_touched and not _is_carried(truth.find(goal.goal))


def _is_pushed(item: ObjectTruth, direction: str, robot: str) -> bool:
    """True when the object stands on the table beyond the line, or lies there so far that its fall did not carry it.

    Falling over moves the centre by half the height; an object in the air, on top of another or leaning does not count.
    """
    height = float(item.position_m[2])
    if _is_upright(item):
        return abs(height - item.height_m / 2) < _STANDING_M
    is_flat = abs(item.tilt_rad - np.pi / 2) < _UPRIGHT_RAD and abs(height - item.width_m / 2) < _STANDING_M
    beyond = float(item.position_m[1]) * direction_sign(direction) - find_robot(robot).table.push_line_m
    return is_flat and beyond > item.height_m / 2


def _is_carried(place: ObjectTruth) -> bool:
    """True when a bowl or block is on the move with whatever it holds, or hangs from the robot."""
    lift = float(place.position_m[2]) - (0.0 if place.shape == "bowl" else place.height_m / 2)
    return place.is_held or place.speed_m_s > _REST_SPEED_M_S or (place.is_touched and lift > _STANDING_M)


def goal_progress(truth: SceneTruth, goal: Goal) -> float:
    """Returns how far one goal is at this moment, 0 to 1.

    Place and stack: 0.25 held, 0.5 lifted, 0.75 over or at the goal, 1 reached. Push: share of the way to the line.
    Drawer and door: share of their way. Button and light: all or nothing.
    """
    if is_goal_reached(truth, goal):
        return 1.0
    if goal.kind == "push":
        return _push_progress(truth, goal)
    if goal.kind not in OBJECT_GOALS:
        return _fixture_progress(truth, goal)
    table = find_robot(truth.robot).table
    target, place = truth.find(goal.target), truth.find(goal.goal)
    is_over = float(np.hypot(*(target.position_m[:2] - place.position_m[:2]))) < table.bowl_width_m / 4
    is_lifted = float(target.position_m[2]) - target.height_m / 2 > table.lift_m
    if is_at_goal(truth, goal) or (target.is_held and is_lifted and is_over):
        return 0.75
    if target.is_held:
        return 0.5 if is_lifted else 0.25
    return 0.0


def _push_progress(truth: SceneTruth, goal: Goal) -> float:
    if goal.target != truth.target:  # only the start of the present target is known
        return 0.0
    line, sign = find_robot(truth.robot).table.push_line_m, direction_sign(goal.goal)
    start = float(truth.start_position_m[1]) * sign
    done = (float(truth.find(goal.target).position_m[1]) * sign - start) / (line - start)
    return float(np.clip(done, 0.0, _NOT_DONE))


def _fixture_progress(truth: SceneTruth, goal: Goal) -> float:
    if goal.kind in ("press", "light"):
        return 0.0
    opening = truth.fixture(goal.target).opening
    is_high = goal.kind == "open" or goal.goal == "right"
    return float(np.clip(opening if is_high else 1.0 - opening, 0.0, _NOT_DONE))


def is_success(truth: SceneTruth) -> bool:
    """True when every goal is reached; in a sequence, when each was reached in its turn."""
    if truth.is_sequence:
        return bool(truth.done) and all(truth.done)
    return all(is_goal_reached(truth, goal) for goal in truth.all_goals)


def progress(truth: SceneTruth) -> float:
    """Returns how far the task is at this moment, 0 to 1: the mean over its goals."""
    goals = truth.all_goals
    if not truth.is_sequence:
        return float(np.mean([goal_progress(truth, goal) for goal in goals]))
    num_done = sum(truth.done)
    present = goal_progress(truth, goals[num_done]) if num_done < len(goals) else 0.0
    return (num_done + min(present, _NOT_DONE)) / len(goals)
