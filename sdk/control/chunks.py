"""Chunks of actions that overlap in time: which action comes next, when to ask again, and how smooth the seams are.

A policy that answers late answers about a moment that has passed. Time is counted in actions that were applied: a chunk
made after n of them holds the actions from n on, so what was applied meanwhile is left out of it, and ticks in which
the robot stood still count nothing. Actions are displacements, so positions never jump at a seam; their speed can.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.types import ACTION_NAMES, FloatArray

__all__ = ["CHUNK_STRATEGIES", "ChunkQueue", "DelayEstimate", "Seam", "Seams", "blend_weights", "pool_seams"]

CHUNK_STRATEGIES = ("hold", "switch", "ensemble", "blend", "rtc")
"""What happens where a new chunk overlaps the one before: `hold` uses the old one up first, `switch` takes the new one
at once, `ensemble` averages all chunks that have an action for the moment (ACT, arXiv 2304.13705, section 4), `blend`
goes from the old to the new one with the soft mask of real-time chunking (arXiv 2506.07339, equation 5), `rtc` takes
the new one at once too, which the policy has made to go on from what is `left` of the old one."""

_ENSEMBLE_DECAY = 0.01  # ACT's m: weight exp(-m i) for the i-th chunk, the oldest first
_WINDOW = 100  # latencies that an estimate looks back on
_MOTION = [ACTION_NAMES.index(name) for name in ("dx_m", "dy_m", "dz_m")]
_GRIPPER = ACTION_NAMES.index("gripper_open")


def blend_weights(num_actions: int, overlap: int, delay: int) -> FloatArray:
    """Returns float32[num_actions], the old chunk's weight: 1 before `delay`, falling to 0 where the overlap ends.

    >>> [round(float(weight), 2) for weight in blend_weights(6, overlap=4, delay=2)]
    [1.0, 1.0, 0.37, 0.08, 0.0, 0.0]
    """
    place, delay = np.arange(num_actions), min(delay, overlap)
    share = np.clip((overlap - place) / (overlap - delay + 1), 0.0, 1.0)
    weights = share * np.expm1(share) / (math.e - 1.0)
    return np.where(place < delay, 1.0, weights).astype(np.float32)


class DelayEstimate:
    """The 99th percentile of the latest latencies; what was slow long ago is forgotten."""

    def __init__(self, window: int = _WINDOW) -> None:
        self._latencies_s: deque[float] = deque(maxlen=window)

    def add(self, latency_s: float) -> None:
        """Takes the time from an observation to its chunk."""
        self._latencies_s.append(latency_s)

    @property
    def p99_s(self) -> float:
        """The estimate; 0 before anything was measured."""
        return float(np.percentile(self._latencies_s, 99)) if self._latencies_s else 0.0

    def steps(self, rate_hz: float) -> int:
        """Returns the control periods that pass before a chunk comes."""
        return math.ceil(self.p99_s * rate_hz - 1e-6)

    def refusal(self, num_actions: int, rate_hz: float) -> str | None:
        """Returns why chunks of so many actions cannot bridge the delay; None where they can."""
        if self.steps(rate_hz) < num_actions:
            return None
        return (
            f"an answer takes {self.p99_s:.2f} s (99th percentile), and its {num_actions} actions at {rate_hz:g} Hz"
            f" cover {num_actions / rate_hz:.2f} s: nothing of it would be left; wait for each chunk"
            " (thinking before_every_chunk or off), or take a smaller model, a faster board or longer chunks"
        )


@dataclass(slots=True)
class _Row:
    actions: FloatArray
    made_at: int

    @property
    def end(self) -> int:
        return self.made_at + len(self.actions)


class ChunkQueue:
    """The actions to come. Ask for one in each control period; add a chunk when it comes.

    >>> queue = ChunkQueue("switch")
    >>> queue.add(np.full((3, 5), 1.0, np.float32), made_at=0)
    >>> float(queue.next()[0]), queue.count, queue.num_left
    (1.0, 1, 2)
    >>> queue.add(np.full((3, 5), 2.0, np.float32), made_at=0)
    >>> float(queue.next()[0]), queue.num_left
    (2.0, 1)
    """

    def __init__(self, strategy: str = "hold") -> None:
        if strategy not in CHUNK_STRATEGIES:
            raise ConfigError(unknown_name("chunk strategy", strategy, CHUNK_STRATEGIES))
        self._strategy = strategy
        self._rows: list[_Row] = []
        self._is_seam = False
        self._last: _Row | None = None
        self.count = 0
        """Actions that were given out. Note it when an observation is made: `made_at` of the chunk that follows."""

    @property
    def num_left(self) -> int:
        """Actions before new ones are needed."""
        return max((row.end for row in self._rows), default=self.count) - self.count

    @property
    def is_seam(self) -> bool:
        """Whether the latest action was the first one that another chunk has a part in."""
        return self._is_seam

    @property
    def left(self) -> FloatArray:
        """float32[N, A], what is left of the newest chunk: what a policy is given to go on from."""
        if self.num_left == 0:
            return np.zeros((0, len(ACTION_NAMES)), np.float32)
        newest = self._rows[-1]
        return newest.actions[self.count - newest.made_at :]

    def clear(self) -> None:
        """Drops everything that is left."""
        self._rows = []

    def add(self, actions: FloatArray, *, made_at: int) -> None:
        """Takes a chunk float32[T, A] observed when `count` was `made_at`; what is over is dropped."""
        row = _Row(actions, made_at)
        if row.end <= self.count:
            return
        if self._strategy in ("switch", "rtc"):
            self._rows = [row]
        elif self._strategy == "blend":
            self._rows = [self._blended(row)]
        else:
            self._rows.append(row)

    def next(self) -> FloatArray | None:
        """Returns the action float32[A] of this control period; None where there is none."""
        self._rows = [row for row in self._rows if row.end > self.count]
        if not self._rows:
            self._last, self._is_seam = None, False
            return None
        newest = self._rows[0] if self._strategy == "hold" else self._rows[-1]
        action = self._mean() if self._strategy == "ensemble" else newest.actions[self.count - newest.made_at]
        self._is_seam = self._last is not None and self._last is not newest
        self._last = newest
        self.count += 1
        return action

    def _mean(self) -> FloatArray:
        weights = np.exp(-_ENSEMBLE_DECAY * np.arange(len(self._rows)))
        actions = np.stack([row.actions[self.count - row.made_at] for row in self._rows])
        return np.average(actions, axis=0, weights=weights).astype(np.float32)

    def _blended(self, row: _Row) -> _Row:
        old = self._rows[0] if self._rows else None
        overlap = 0 if old is None else min(old.end, row.end) - row.made_at
        delay = self.count - row.made_at
        if old is None or overlap <= delay or row.made_at < old.made_at:
            return row
        actions = row.actions.copy()
        weights = blend_weights(overlap, overlap, delay)[:, None]
        kept = old.actions[row.made_at - old.made_at :][:overlap]
        actions[:overlap] = weights * kept + (1.0 - weights) * row.actions[:overlap]
        return _Row(actions, row.made_at)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seam:
    """How much something changes from one control period to the next: inside chunks, and where another one begins."""

    num_within: int
    """Changes inside chunks."""
    within: float
    """Their mean."""
    num_across: int
    """Changes at seams."""
    across: float
    """Their mean."""

    @property
    def ratio(self) -> float:
        """Mean change at a seam, in changes inside a chunk; NaN where one of both was not seen."""
        return self.across / self.within if self.num_across and self.within > 0.0 else math.nan


def pool_seams(runs: Sequence[Mapping[str, Seam]]) -> Mapping[str, Seam]:
    """Returns the seams of several runs together."""
    pooled: dict[str, Seam] = {}
    for name, seam in (item for run in runs for item in run.items()):
        before = pooled.get(name, Seam(num_within=0, within=0.0, num_across=0, across=0.0))
        within, across = before.num_within + seam.num_within, before.num_across + seam.num_across
        pooled[name] = Seam(
            num_within=within,
            within=(before.num_within * before.within + seam.num_within * seam.within) / max(within, 1),
            num_across=across,
            across=(before.num_across * before.across + seam.num_across * seam.across) / max(across, 1),
        )
    return pooled


class Seams:
    """Measures seams of what is commanded: steps of the joint targets, changes of the tool's speed and of the gripper.

    The joint step is what a servo has to do in one period; a policy that holds has none, and starts anew.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {name: [0.0, 0.0, 0.0, 0.0] for name in ("joint", "velocity", "gripper")}
        self._action: FloatArray | None = None
        self._joints: FloatArray | None = None

    def add(self, action: FloatArray | None, joint_target_rad: FloatArray | None = None, *, is_seam: bool) -> None:
        """Takes the command of a control period; None for a hold, behind which nothing is compared."""
        before, joints = self._action, self._joints
        self._action, self._joints = action, joint_target_rad
        if action is None or before is None:
            return
        change = np.abs(action - before)
        self._book("velocity", float(np.linalg.norm(change[_MOTION])), is_seam)
        self._book("gripper", float(change[_GRIPPER]), is_seam)
        if joint_target_rad is not None and joints is not None:
            self._book("joint", float(np.abs(joint_target_rad - joints).max()), is_seam)

    def result(self) -> Mapping[str, Seam]:
        """Returns what was measured, by name."""
        return {
            name: Seam(
                num_within=int(n),
                within=total / n if n else 0.0,
                num_across=int(num_across),
                across=total_across / num_across if num_across else 0.0,
            )
            for name, (n, total, num_across, total_across) in self._sums.items()
            if n or num_across
        }

    def _book(self, name: str, value: float, is_seam: bool) -> None:
        place = 2 if is_seam else 0
        self._sums[name][place] += 1.0
        self._sums[name][place + 1] += value
