"""The part of the scripted expert that works on drawers, doors, buttons and lamps, from above and without memory.

A handle is pushed or pulled alike: the closed gripper comes down on one side of it and moves it. See `expert.py` for
the ideas that are common to all goals.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.sim.fixtures import FIXTURE_SIZES
from roboalign.sdk.sim.layout import ExpertSizes
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.truth import FixtureTruth, SceneTruth

__all__ = ["plan"]

_GAIN = 0.85
_HOVER_M = 0.125
"""Height at which the closed gripper travels: its tips clear handles, and blocks on blocks."""
_TRAVEL_LOW_M = 0.080
_TRAVEL_FREE_M = 0.100
_GRIP_DEPTH_M = 0.012
"""The tool works this far below a handle's upper end; the fingertips are 1 cm lower."""
_FINGERTIP_M = 0.010
"""Distance of the closed fingertips below the tool."""
_CONTACT_M = {"drawer": 0.0205, "door": 0.0235}
"""Distance between tool and handle at which the closed fingers touch it."""
_STANDOFF_M = 0.018
"""Distance from there at which they come down."""
_ALL_THE_WAY = {"open": 0.97, "close": 0.02, "left": 0.03, "right": 0.97}
_REACHED_M = 0.003
_PRESSED_SHARE = 0.7
_OVERTRAVEL_M = 0.004
"""The tool aims so far below the end of the cap's way."""


def plan(truth: SceneTruth) -> tuple[str, NDArray[np.float64], float, bool]:
    """Returns stage, displacement float64[3], yaw change, and whether the gripper is open."""
    turn = -float(truth.state[3])
    move_part = _plan_press if truth.family in ("press", "light") else _plan_slide
    sizes = find_robot(truth.robot).table.expert
    stage, move = move_part(truth, sizes)
    return stage, move, 0.0 if stage == "done" else turn, _may_hold(truth, sizes)


def _may_hold(truth: SceneTruth, sizes: ExpertSizes) -> bool:
    """True while something may be between the fingers, left from the goal before: it must not be carried along."""
    is_wide = float(truth.state[4]) > sizes.empty_width_m
    return is_wide and (float(truth.state[2]) < _TRAVEL_FREE_M or any(item.is_held for item in truth.objects))


def _plan_slide(truth: SceneTruth, sizes: ExpertSizes) -> tuple[str, NDArray[np.float64]]:
    """Down beside the handle, move it all the way, up."""
    fixture, tool = truth.fixture(truth.target), truth.state[:3].astype(np.float64)
    axis, sign = (0, 1.0 if truth.family == "open" else -1.0)
    if truth.family == "slide":
        axis, sign = (1, 1.0 if truth.goal == "right" else -1.0)
    travel_m = FIXTURE_SIZES.drawer_travel_m if axis == 0 else FIXTURE_SIZES.door_travel_m
    wanted = _ALL_THE_WAY[truth.goal if truth.family == "slide" else truth.family]
    left_over = sign * (wanted - fixture.opening) * travel_m
    if left_over < _REACHED_M:
        return _retreat(tool, sizes, axis, -sign * 0.015)
    handle = fixture.position_m.astype(np.float64)
    low = float(handle[2]) - _GRIP_DEPTH_M
    behind, aside = sign * (handle[axis] - tool[axis]), float(handle[1 - axis] - tool[1 - axis])
    contact = _CONTACT_M[truth.target]
    is_beside = contact - 0.012 < behind < contact + _STANDOFF_M + 0.025 and abs(aside) < 0.02
    if is_beside and tool[2] < low + 0.012:
        gap = max(0.0, behind - contact)
        move = np.empty(3)
        move[axis] = sign * min(sizes.push_step_m, _GAIN * left_over + gap + 0.004)
        move[1 - axis], move[2] = 0.8 * aside, low - tool[2]
        return "pull" if truth.family == "open" else "push", move
    place = handle[:2].copy()
    place[axis] -= sign * (contact + _STANDOFF_M)
    return _approach(truth, sizes, place, low)


def _plan_press(truth: SceneTruth, sizes: ExpertSizes) -> tuple[str, NDArray[np.float64]]:
    """Down on the cap until it counts, up."""
    tool, button = truth.state[:3].astype(np.float64), truth.fixture("button")
    if _is_set(truth, button):
        return _retreat(tool, sizes, 0, 0.0)
    if button.opening > _PRESSED_SHARE:  # it is down from the press before: let it come up first
        return "retreat", np.array([0.0, 0.0, 0.03])
    travel_m = FIXTURE_SIZES.button_travel_m
    top = float(button.position_m[2]) + button.opening * travel_m
    low = top + _FINGERTIP_M - travel_m - _OVERTRAVEL_M
    offset = button.position_m[:2].astype(np.float64) - tool[:2]
    if math.hypot(*offset) < 0.014 and tool[2] < top + _FINGERTIP_M + 0.03:
        return "press", np.array([0.5 * offset[0], 0.5 * offset[1], max(low - tool[2], -0.022)])
    return _approach(truth, sizes, button.position_m[:2].astype(np.float64), top + _FINGERTIP_M + 0.012)


def _is_set(truth: SceneTruth, button: FixtureTruth) -> bool:
    if truth.family == "press":
        return button.num_presses > 0
    return (truth.fixture("light").opening > 0.5) is (truth.goal == "on")


def _retreat(
    tool: NDArray[np.float64], sizes: ExpertSizes, axis: int, aside_m: float
) -> tuple[str, NDArray[np.float64]]:
    if tool[2] > sizes.done_m - 0.005:
        return "done", np.zeros(3)
    move = np.array([0.0, 0.0, sizes.done_m + 0.015 - tool[2]])
    move[axis] = aside_m
    return "retreat", move


def _approach(
    truth: SceneTruth, sizes: ExpertSizes, place: NDArray[np.float64], low: float
) -> tuple[str, NDArray[np.float64]]:
    """Closes the gripper and goes above a place, then down; far from it and low, the tool rises before it moves."""
    tool = truth.state[:3].astype(np.float64)
    is_closed = float(truth.state[4]) < sizes.empty_width_m
    offset = place - tool[:2]
    error = math.hypot(*offset)
    height = low + (_HOVER_M - low) * _ramp(error, 0.008, 0.03) if is_closed else _HOVER_M
    freedom = max(_ramp(tool[2], _TRAVEL_LOW_M, _TRAVEL_FREE_M), 1.0 - _ramp(error, 0.012, 0.022))
    step = _GAIN * offset * min(1.0, sizes.step_m / max(_GAIN * error, 1e-9))
    down = -sizes.step_m if tool[2] > _HOVER_M else -sizes.descent_m
    move = np.array([step[0] * freedom, step[1] * freedom, max(_GAIN * (height - tool[2]), down)])
    return "reach" if error > 0.025 or not is_closed else "descend", move


def _ramp(value: float, start: float, end: float) -> float:
    """Returns 0 up to `start`, 1 from `end` on, linear in between."""
    return float(min(1.0, max(0.0, (value - start) / (end - start))))
