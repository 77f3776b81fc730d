"""Goals between commands: from the last one that was sent, within position, speed and acceleration limits.

Nothing here looks at what was measured: a loaded arm that is re-seeded from its measured position dips
(https://github.com/huggingface/lerobot/pull/4610). The first goal is the measured pose, taken once at the soft start.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MAX_ACCELERATION_RAD_S2", "Motion"]

Float64Array = NDArray[np.float64]

MAX_ACCELERATION_RAD_S2 = 40.0
"""Of a goal; stops a joint at full speed in 70 ms."""


class Motion:
    """The goals of all motors, stepped once a cycle."""

    def __init__(self, lower_rad: ArrayLike, upper_rad: ArrayLike, max_speed_rad_s: ArrayLike) -> None:
        """Stores the limits, one entry per motor."""
        self.lower = np.asarray(lower_rad, dtype=np.float64)
        self.upper = np.asarray(upper_rad, dtype=np.float64)
        self.speed = np.asarray(max_speed_rad_s, dtype=np.float64)
        self.goal = np.zeros_like(self.lower)
        self.velocity = np.zeros_like(self.lower)
        self._start = self._end = self.goal
        self._duration_s = self._elapsed_s = 0.0

    def reset(self, position_rad: ArrayLike) -> None:
        """Takes a pose as the goal, at rest. One outside the limits is kept: it may only come back."""
        self.goal = np.array(position_rad, dtype=np.float64)
        self.velocity = np.zeros_like(self.goal)

    def replace(self, index: int, position_rad: float) -> None:
        """Takes another goal for one motor, at rest: to let go of what it pushes against."""
        self.goal[index], self.velocity[index] = position_rad, 0.0

    @property
    def is_at_rest(self) -> bool:
        """True when no goal is moving."""
        return not self.velocity.any()

    def follow(self, target_rad: Float64Array, left_s: float, period_s: float, scale: float = 1.0) -> None:
        """Moves the goals so that they reach `target_rad` in about `left_s`, at most at `scale` of the speed limits."""
        target = np.clip(target_rad, np.minimum(self.lower, self.goal), np.maximum(self.upper, self.goal))
        remaining = target - self.goal
        distance = np.abs(remaining)
        wanted = np.minimum(distance / max(left_s, period_s), self.speed * scale)
        wanted = np.minimum(wanted, np.sqrt(2 * MAX_ACCELERATION_RAD_S2 * distance))
        self._advance(np.sign(remaining) * wanted, period_s, remaining)

    def brake(self, period_s: float) -> None:
        """Slows the goals down to rest."""
        self._advance(np.zeros_like(self.goal), period_s, None)

    def start_path(self, end_rad: Float64Array, shortest_s: float, longest_s: float) -> float:
        """Plans a smooth way to `end_rad`, all motors together; returns how long it takes. Starts at rest.

        It takes `shortest_s` or, when the speed limits allow no better, longer; `longest_s` is aimed at for long ways.
        """
        self._start, self._end = self.goal.copy(), np.clip(end_rad, self.lower, self.upper)
        distance = np.abs(self._end - self._start)
        least_s = float(
            (1.5 * distance / self.speed).max(initial=0.0)
        )  # a smoothstep peaks at 1.5 times its mean speed
        easy_s = float((1.5 * distance / (0.5 * self.speed)).max(initial=0.0))
        self._duration_s = max(shortest_s, least_s, min(easy_s, longest_s))
        self._elapsed_s = 0.0
        return self._duration_s

    def advance_path(self, period_s: float, scale: float = 1.0) -> bool:
        """Moves the goals along the planned way; true when they are at its end."""
        self._elapsed_s = min(self._elapsed_s + period_s * scale, self._duration_s)
        share = 1.0 if self._duration_s == 0 else self._elapsed_s / self._duration_s
        before = self.goal
        self.goal = self._start + (self._end - self._start) * share * share * (3 - 2 * share)
        self.velocity = (self.goal - before) / period_s if share < 1 else np.zeros_like(self.goal)
        return share >= 1

    def _advance(self, velocity: Float64Array, period_s: float, remaining: Float64Array | None) -> None:
        change = MAX_ACCELERATION_RAD_S2 * period_s
        new = np.clip(velocity, self.velocity - change, self.velocity + change)
        new[np.abs(new) < 1e-9] = 0.0
        step = new * period_s
        if remaining is not None:  # never past the target, whatever the acceleration would like
            is_past = (np.abs(step) >= np.abs(remaining)) & (np.sign(step) == np.sign(remaining))
            step = np.where(is_past | (remaining == 0), remaining, step)
            new = np.where(is_past | (remaining == 0), 0.0, new)
        lower, upper = np.minimum(self.lower, self.goal), np.maximum(self.upper, self.goal)
        self.goal = np.clip(self.goal + step, lower, upper)
        self.velocity = new
        assert math.isfinite(float(self.goal.sum()))
