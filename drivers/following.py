"""From "go there" to the next action: what a leader arm, or another program's joint targets, become for a `Robot`.

A robot is moved by displacements, limited one by one. Whoever knows places instead keeps the place that was last sent,
as the robot's own controller does, and asks for the next step towards the goal.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roboalign.sdk.errors import RobotError
from roboalign.sdk.types import STATE_NAMES, Applied, FloatArray, Observation, RobotSpec

__all__ = ["ToolFollower"]


class ToolFollower:
    """Remembers where the tool was sent and answers the next action towards a goal. `reset` first."""

    def __init__(self, spec: RobotSpec) -> None:
        self._spec = spec
        self._target: NDArray[np.float64] | None = None

    @property
    def target(self) -> FloatArray:
        """float32[5] in the order of `STATE_NAMES`: where the tool was last sent."""
        return self._known().astype(np.float32)

    def reset(self, observation: Observation) -> None:
        """Starts from where the tool is."""
        self._target = np.asarray(observation.state, np.float64).copy()

    def towards(self, state: ArrayLike) -> FloatArray:
        """Returns the action that goes towards `state` (order of `STATE_NAMES`) by at most the robot's largest step.

        The way is straight: a goal that is several steps away is approached on a line, not axis by axis. A goal
        that is not finite, or of another length, becomes an action that is not finite, which the robot answers by a
        hold.
        """
        target, goal = self._known(), np.asarray(state, np.float64)
        action = np.full(len(STATE_NAMES), np.nan, np.float32)
        if goal.shape != target.shape or not np.isfinite(goal).all():
            return action
        low = np.append(np.minimum(self._spec.workspace_lower_m, target[:3]), [-math.inf])
        high = np.append(np.maximum(self._spec.workspace_upper_m, target[:3]), [math.inf])
        step = np.clip(goal[:4], low, high) - target[:4]
        step[3] = math.remainder(goal[3] - target[3], 2 * math.pi)
        largest = np.array((self._spec.max_step_m,) * 3 + (self._spec.max_step_rad,))
        action[:4] = step / max(1.0, float(np.abs(step / largest).max()))
        action[4] = min(1.0, max(0.0, goal[4] / self._spec.gripper_max_width_m))
        return action

    def took(self, applied: Applied) -> None:
        """Notes what the robot really sent for the action."""
        target = self._known()
        target[:4] += np.asarray(applied.sent[:4], np.float64)
        target[3] = math.remainder(target[3], 2 * math.pi)
        target[4] = float(applied.sent[4]) * self._spec.gripper_max_width_m

    def _known(self) -> NDArray[np.float64]:
        if self._target is None:
            raise RobotError("the follower does not know where the tool is; call reset with an observation first")
        return self._target
