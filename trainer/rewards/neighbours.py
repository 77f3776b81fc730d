"""Further demonstrations of the same moment: frames with the same task at the same stage, near in state and scene.

Two frames are neighbours when task, goal, names and stage agree, they are of different episodes, and tool, gripper,
target and goal differ by no more than `RADIUS_M` in any coordinate (the yaw by `RADIUS_RAD`). Everything is decided by
the frames alone, so equal data give equal tables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.sim.truth import SceneTruth
from roboalign.trainer.frames import FrameTable

__all__ = ["MAX_NEIGHBOURS", "RADIUS_M", "RADIUS_RAD", "find_neighbours"]

RADIUS_M = 0.02
RADIUS_RAD = 0.3
MAX_NEIGHBOURS = 4
_BLOCK = 512
"""Rows compared at a time; bounds the memory."""


def find_neighbours(frames: FrameTable, source: FrameTable) -> list[tuple[int, ...]]:
    """Returns for each frame the rows of `source` that are its neighbours, nearest first, at most MAX_NEIGHBOURS.

    Args:
        frames: the frames to find neighbours for.
        source: where they are looked for; it may be the same table.
    """
    rows, pool = _by_moment(frames), _by_moment(source)
    features, candidates = _features(frames), _features(source)
    found: list[tuple[int, ...]] = [()] * len(frames)
    for moment, mine in rows.items():
        others = np.asarray(pool.get(moment, []), np.int64)
        for first in range(0, len(mine), _BLOCK):
            block = np.asarray(mine[first : first + _BLOCK], np.int64)
            gap = np.abs(features[block][:, None] - candidates[others][None]).max(axis=2, initial=0.0)
            gap[frames.episodes[block][:, None] == source.episodes[others][None]] = np.inf
            for row, gaps in zip(block, gap, strict=True):
                nearest = np.argsort(gaps, kind="stable")[:MAX_NEIGHBOURS]
                found[row] = tuple(int(others[i]) for i in nearest if gaps[i] <= 1.0)
    return found


def _by_moment(table: FrameTable) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, truth in enumerate(table.require_truths("the reward multi")):
        names = (*sorted(item.name for item in truth.objects), *sorted(item.name for item in truth.fixtures))
        groups[truth.robot, truth.task_name, truth.target, truth.goal, truth.stage, names].append(row)
    return groups


def _features(table: FrameTable) -> NDArray[np.float64]:
    """Returns float64[N, F] in radii: two frames are near when no entry differs by more than 1."""
    truths = table.require_truths("the reward multi")
    return np.stack([_feature(truth, state) for truth, state in zip(truths, table.states, strict=True)])


def _feature(truth: SceneTruth, state: NDArray[np.float32]) -> NDArray[np.float64]:
    focus = truth.target_object if truth.is_about_object else truth.fixture(truth.target)
    goal = truth.goal_object
    places = [focus.position_m, focus.position_m if goal is None else goal.position_m]
    lengths_m = np.concatenate([state[:3], state[4:5], *places]).astype(np.float64)
    return np.append(lengths_m / RADIUS_M, float(state[3]) / RADIUS_RAD)
