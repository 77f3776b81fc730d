"""A scripted expert for "put A in B" and "put A on B", from the truth of the scene.

It is closed-loop: every action is computed from where things are now, and a lost grasp or a stalled move starts over.
Beside the truth it remembers which stage it is in and which side of a bowl it took. Boxes are taken low and across
their shorter side, bowls by the rim on the side that has most room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.libero.env import CONTROL_RATE_HZ
from roboalign.sdk.libero.mapping import MAX_STEP_M, MAX_STEP_RAD
from roboalign.sdk.libero.truth import LiberoObject, LiberoTruth
from roboalign.sdk.types import ActionChunk, FloatArray, Observation

__all__ = ["LiberoExpert", "TruthSource"]

_GAIN = 1.6
"""Share of the error that is commanded; the compliant controller covers about a third of a command."""
_TURN_GAIN = 1.2
_LOADED_M = 0.04
"""Largest command while carrying; a bowl that hangs by its rim slips when it is jerked."""
_HOVER_M = 0.06
"""Height above the grasp from which the tool descends."""
_CLEARANCE_M = 0.03
"""Room between what moves and what it passes over."""
_CORRIDOR_M = 0.09
"""Objects nearer than this to the path are passed over."""
_AT_M, _AT_RAD = 0.008, 0.08
_GRIP_DEPTH_M = 0.042
"""Below the top of a tall object; the palm is 45 mm above the fingertips."""
_PALM_M = 0.045
_PALM_HALF_M = (0.105, 0.034)
"""Half the palm along the line in which the fingers close, and across it."""
_LOWEST_GRIP_M = 0.009
_RIM_DEPTH_M = 0.020
"""Below the rim of a bowl."""
_WALL_M = 0.006
"""From the outside of a bowl to the middle of its wall."""
_BOWL_MIN_M = 0.085
"""Objects wider than this fit between no fingers; they are taken by their rim."""
_EASY_REACH_M = 0.66
"""Up to this distance from the base the elbow stays well bent with the tool pointing down."""
_PATIENCE = {"reach": 90, "descend": 40, "grasp": 14, "release": 16, "lower": 45}
"""Control periods in a stage before the expert moves on or starts over."""

Vector = NDArray[np.float64]


class TruthSource(Protocol):
    """A scene that can be asked what is true; `LiberoEnv` has it."""

    def truth(self) -> LiberoTruth:
        """Returns what is true now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grip:
    """Where the tool goes to take an object."""

    offset_m: Vector
    yaw_rad: float
    height_m: float


class LiberoExpert:
    """The expert as a policy: one action at a time. Not for several scenes at once."""

    needs_image = False

    def __init__(self, env: TruthSource) -> None:
        self._env = env
        self.reset()

    def reset(self) -> None:
        """Forgets the last episode."""
        self.stage = "reach"
        self._steps_in_stage = 0
        self._steps_without_grip = 0
        self._tried: list[float] = []
        self._side: float | None = None
        self._across: tuple[int, float] | None = None
        self._last_height_m = math.inf
        self._hold_m = np.zeros(3)

    def act(self, observation: Observation) -> ActionChunk:
        """Returns the next action; the observation is not looked at."""
        return ActionChunk(actions=self.action(self._env.truth())[None], rate_hz=CONTROL_RATE_HZ, source="expert")

    def close(self) -> None:
        """Does nothing: the scene belongs to the caller."""

    def action(self, truth: LiberoTruth) -> FloatArray:
        """Returns float32[5] for this moment.

        Raises:
            ConfigError: the task is no "put A in B" or "put A on B".
        """
        goal = next((goal for goal, done in zip(truth.task.goals, truth.goals_done, strict=True) if not done), None)
        goal = goal or truth.task.goals[-1]
        if len(goal) != 3 or goal[0] not in ("in", "on"):
            raise ConfigError(f"the LIBERO expert cannot do {' '.join(goal)!r}; it only puts things in or on others")
        item, place = truth.find(goal[1]), truth.find(goal[2])
        self._steps_in_stage += 1
        self._steps_without_grip = 0 if item.is_held else self._steps_without_grip + 1
        for _ in range(4):  # a stage may hand over to the next at once
            stage = self.stage
            result = getattr(self, f"_{stage}")(truth, item, place)
            if self.stage == stage:
                return _bounded(*result)
        return _bounded(np.zeros(3), 0.0, self.stage in ("reach", "descend", "release", "retreat"))

    def _go(self, stage: str) -> None:
        if stage != self.stage:
            self.stage, self._steps_in_stage, self._last_height_m = stage, 0, math.inf

    @property
    def _is_tired(self) -> bool:
        return self._steps_in_stage > _PATIENCE.get(self.stage, math.inf)

    @property
    def _is_lost(self) -> bool:
        """A contact may miss a step or two while the object is held well."""
        return self._steps_without_grip > 3

    def _start_over(self) -> None:
        self._side = self._across = None
        self._go("reach")

    def _reach(self, truth: LiberoTruth, item: LiberoObject, place: LiberoObject) -> tuple[Vector, float, bool]:
        """To above the object, over whatever is in between, turning on the way."""
        grip = self._grip(truth, item, place)
        tool = truth.state[:3].astype(np.float64)
        offset = item.position_m[:2] + grip.offset_m - tool[:2]
        turn = _fold(grip.yaw_rad - float(truth.state[3]), math.pi)
        distance = float(np.hypot(*offset))
        hover = max(grip.height_m, item.top_m) + _HOVER_M
        over = max(hover, _height_of_path(truth, tool[:2], tool[:2] + offset, skip=(item.name,)) + _CLEARANCE_M)
        height = hover if distance < 0.03 else over
        if distance < _AT_M and abs(turn) < _AT_RAD and truth.state[4] > 0.07:
            self._go("descend")
        if self._is_tired:
            self._side, self._across, self._steps_in_stage = None, None, 0
        move = np.array([*offset, height - tool[2]]) * _GAIN
        if distance > 0.03 and tool[2] < over - 0.02:  # up first
            move[:2] *= max(0.0, 1.0 - (over - 0.02 - tool[2]) / 0.03)
        return move, turn * _TURN_GAIN, True

    def _descend(self, truth: LiberoTruth, item: LiberoObject, place: LiberoObject) -> tuple[Vector, float, bool]:
        """Straight down around it."""
        grip = self._grip(truth, item, place)
        tool = truth.state[:3].astype(np.float64)
        offset = np.array([*(item.position_m[:2] + grip.offset_m - tool[:2]), grip.height_m - tool[2]])
        turn = _fold(grip.yaw_rad - float(truth.state[3]), math.pi)
        if float(np.hypot(*offset[:2])) > 0.03:
            self._start_over()
        is_stalled = self._steps_in_stage > 6 and self._last_height_m - tool[2] < 0.0004
        if abs(offset[2]) < 0.005 or (is_stalled and abs(offset[2]) < 0.025) or self._is_tired:
            self._go("grasp")
            self._hold_m = tool + offset * (1.0, 1.0, 0.3)
        self._last_height_m = float(tool[2])
        return offset * _GAIN, turn * _TURN_GAIN, True

    def _grasp(self, truth: LiberoTruth, item: LiberoObject, place: LiberoObject) -> tuple[Vector, float, bool]:
        """Close and wait until the fingers stand."""
        width = float(truth.state[4])
        is_still = self._last_height_m - width < 0.0005
        self._last_height_m = width
        if (item.is_held and is_still and self._steps_in_stage > 6) or self._is_tired:
            self._go("lift")
        return (self._hold_m - truth.state[:3]) * _GAIN, 0.0, False

    def _lift(self, truth: LiberoTruth, item: LiberoObject, place: LiberoObject) -> tuple[Vector, float, bool]:
        """Up to the height at which nothing is in the way."""
        if self._is_lost:
            self._start_over()
        need = self._carry_height(truth, item, place) - item.bottom_m
        if need < 0.02:
            self._go("carry")
        return np.array([0.0, 0.0, min(max(need, 0.01) * _GAIN, _LOADED_M)]), 0.0, False

    def _carry(self, truth: LiberoTruth, item: LiberoObject, place: LiberoObject) -> tuple[Vector, float, bool]:
        """Across to above the place."""
        if self._is_lost:
            self._start_over()
        offset = place.position_m[:2] - item.position_m[:2]
        need = self._carry_height(truth, item, place) - item.bottom_m
        if float(np.hypot(*offset)) < 0.012:
            self._go("lower")
        freedom = max(0.0, 1.0 - max(0.0, need - 0.01) / 0.03)
        return _at_most(np.array([*(offset * freedom), need]) * _GAIN, _LOADED_M), 0.0, False

    def _lower(self, truth: LiberoTruth, item: LiberoObject, place: LiberoObject) -> tuple[Vector, float, bool]:
        """Down until it lies on the plate, or its bottom is in the basket."""
        if self._is_lost:
            self._go("release")
        offset = place.position_m[:2] - item.position_m[:2]
        is_deep = _is_deep(place)
        low = place.top_m - 0.02 if is_deep else place.bottom_m
        gap = item.bottom_m - low
        is_stalled = self._steps_in_stage > 8 and self._last_height_m - item.bottom_m < 0.0003
        if (is_deep and gap < 0.006) or (is_stalled and gap < 0.03) or self._is_tired:
            self._go("release")
        self._last_height_m = item.bottom_m
        move = np.array([*offset, max(-0.035, min(-0.012, -gap))]) * _GAIN
        return move, 0.0, False

    def _release(self, truth: LiberoTruth, item: LiberoObject, place: LiberoObject) -> tuple[Vector, float, bool]:
        """Open and wait."""
        if truth.state[4] > 0.07 or self._is_tired:
            self._go("retreat")
        return np.zeros(3), 0.0, True

    def _retreat(self, truth: LiberoTruth, item: LiberoObject, place: LiberoObject) -> tuple[Vector, float, bool]:
        """Up; when the task is not done after that, start over."""
        height = max(place.top_m, item.top_m) + 0.10
        if truth.state[2] > height - 0.02:
            self._start_over()
        return np.array([0.0, 0.0, height - float(truth.state[2])]) * _GAIN, 0.0, True

    def _carry_height(self, truth: LiberoTruth, item: LiberoObject, place: LiberoObject) -> float:
        """Lowest height of the object's underside on the way to its place."""
        skip = (item.name, place.name)
        way = _height_of_path(truth, item.position_m[:2], place.position_m[:2], skip=skip)
        own = place.top_m if _is_deep(place) else place.top_m - 0.01
        return max(way, own) + _CLEARANCE_M

    def _grip(self, truth: LiberoTruth, item: LiberoObject, place: LiberoObject) -> _Grip:
        """Returns how to take the object as it lies now."""
        axes = np.argsort(np.abs(item.rotation[2]))[:2]  # the two axes that lie flattest
        if item.size_m[axes].min() > _BOWL_MIN_M:
            return self._grip_rim(truth, item, place)
        height = max(item.bottom_m + _LOWEST_GRIP_M, min(float(item.position_m[2]), item.top_m - 0.012))
        height = max(height, item.top_m - _GRIP_DEPTH_M)
        if self._across is None:
            self._across = _best_across(truth, item, height)
        across, shift = self._across
        along = int(axes[0] if axes[1] == across else axes[1])
        turn = _fold(_yaw_of(item.rotation[:2, across]) - float(truth.state[3]), math.pi)
        yaw = _fold(float(truth.state[3]) + turn, math.pi)
        return _Grip(offset_m=shift * item.rotation[:2, along], yaw_rad=yaw, height_m=height)

    def _grip_rim(self, truth: LiberoTruth, item: LiberoObject, place: LiberoObject) -> _Grip:
        if self._side is None:
            self._side = _best_side(truth, item, place, self._tried)
            self._tried.append(self._side)
        radius = float(item.half_extent_m[:2].min()) - _WALL_M
        offset = radius * np.array([math.cos(self._side), math.sin(self._side)])
        yaw = _fold(self._side - math.pi / 2, math.pi)
        return _Grip(offset_m=offset, yaw_rad=yaw, height_m=item.top_m - _RIM_DEPTH_M)


def _is_deep(place: LiberoObject) -> bool:
    return place.top_m - place.bottom_m > 0.08


def _yaw_of(direction: Vector) -> float:
    """Returns the tool's yaw at which the fingers close along a direction; 0 for the base's y axis."""
    return math.atan2(-float(direction[0]), float(direction[1]))


def _best_across(truth: LiberoTruth, item: LiberoObject, height_m: float) -> tuple[int, float]:
    """Returns the axis of a box to close along, and how far from its middle, so that the palm hits no neighbour."""
    axes = [int(axis) for axis in np.argsort(np.abs(item.rotation[2]))[:2]]
    narrow = float(item.size_m[axes].min())
    high = [other for other in truth.objects if other is not item and other.top_m > height_m + _PALM_M - 0.01]
    palm = [np.array([x, y]) * _PALM_HALF_M for x in (-1.0, -0.5, 0.5, 1.0) for y in (-1.0, 0.0, 1.0)]
    scores = []
    for across, along in (axes, axes[::-1]):
        if item.size_m[across] > narrow + 0.012:
            continue
        frame = item.rotation[:2, [across, along]]
        turn = abs(_fold(_yaw_of(frame[:, 0]), math.pi))
        for share in (0.0, -0.15, 0.15, -0.3, 0.3):
            shift = share * float(item.size_m[along])
            points = [item.position_m[:2] + frame @ (point + np.array([0.0, shift])) for point in palm]
            room = min([0.015, *(_gap(other, point) for other in high for point in points)])
            scores.append((room - 0.1 * abs(shift) - 0.002 * turn, across, shift))
    _, across, shift = max(scores)
    return across, shift


def _best_side(truth: LiberoTruth, item: LiberoObject, place: LiberoObject, tried: list[float]) -> float:
    """Returns the direction, seen from the bowl, in which to take its rim, away from those that were tried.

    A finger needs room outside the rim, and the arm must not be stretched, neither here nor at the place: with the
    elbow near its limit the controller no longer moves.
    """
    radius = float(item.half_extent_m[:2].max())
    others = [other for other in truth.objects if other is not item and other.top_m > item.bottom_m + 0.01]
    scores = []
    for angle in np.arange(-math.pi, math.pi, math.pi / 8):
        direction = np.array([math.cos(angle), math.sin(angle)])
        room = min([0.03, *(_gap(other, item.position_m[:2] + (radius + 0.015) * direction) for other in others)])
        reach = max(float(np.hypot(*(end.position_m[:2] + radius * direction))) for end in (item, place))
        turn = abs(_fold(float(angle) - math.pi / 2, math.pi))
        again = sum(abs(_fold(float(angle) - other, 2 * math.pi)) < 0.6 for other in tried)
        scores.append((room - 0.5 * max(0.0, reach - _EASY_REACH_M) - 0.003 * turn - 0.02 * again, float(angle)))
    return max(scores)[1]


def _gap(item: LiberoObject, point: Vector) -> float:
    """Returns the horizontal distance from a point to the box of an object, negative inside."""
    axes = np.argsort(np.abs(item.rotation[2]))[:2]
    local = np.abs((point - item.position_m[:2]) @ item.rotation[:2, axes]) - item.size_m[axes] / 2
    outside = np.maximum(local, 0.0)
    return float(np.hypot(*outside)) if outside.any() else float(local.max())


def _height_of_path(truth: LiberoTruth, start: Vector, end: Vector, *, skip: tuple[str, ...]) -> float:
    """Returns the height of the tallest object near the straight way; 0 when there is none."""
    points = [start + share * (end - start) for share in np.linspace(0.0, 1.0, 12)]
    others = [item for item in truth.objects if item.name not in skip]
    near = [item.top_m for item in others if min(_gap(item, point) for point in points) < _CORRIDOR_M]
    return max(near, default=0.0)


def _fold(angle: float, period: float) -> float:
    """Returns the angle within half a period of 0."""
    return (angle + period / 2) % period - period / 2


def _at_most(move: Vector, limit_m: float) -> Vector:
    return np.asarray(move * min(1.0, limit_m / max(float(np.abs(move).max()), 1e-9)), np.float64)


def _bounded(move: Vector, turn: float, is_open: bool) -> FloatArray:
    action = np.empty(5, np.float32)
    length = float(np.hypot(*move[:2]))
    action[:2] = move[:2] * min(1.0, MAX_STEP_M / max(length, 1e-9))
    action[2] = float(np.clip(move[2], -MAX_STEP_M, MAX_STEP_M))
    action[3] = float(np.clip(turn, -MAX_STEP_RAD, MAX_STEP_RAD))
    action[4] = 1.0 if is_open else 0.0
    return action
