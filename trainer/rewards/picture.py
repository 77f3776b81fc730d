"""The tool's path in the picture plane: what the `visual` reward compares.

The path of a chunk is the tool's position after each of its actions, as if every action were carried out exactly,
projected into the camera `front` of the arm at its nominal place (an episode's randomised camera is not taken into
account). Yaw, gripper and the motion along the line of sight are not seen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.types import ACTION_NAMES, FloatArray

__all__ = ["path_share", "project", "tool_path"]

_MIN_LENGTH = 0.01
"""Share of the picture's width: a demonstrated path shorter than one pixel of 96 is not measured finer."""
_MOVES = [ACTION_NAMES.index(name) for name in ("dx_m", "dy_m", "dz_m")]


def path_share(actions: FloatArray, target: FloatArray, state: FloatArray, robot: str) -> float:
    """Returns 1 for the demonstrated path, falling to 0 at the distance of standing still.

    Args:
        actions: float[T, A], the chunk to judge.
        target: float[T, A], the demonstrated chunk.
        state: float[5], the tool state before them.
        robot: name of the arm, which decides the camera.
    """
    view = find_robot(robot).table.front
    start = project(np.asarray(state[:3], np.float64)[None], view.eye_m, view.aim_m, view.fov_deg)
    mine, wanted = (
        project(tool_path(chunk, state), view.eye_m, view.aim_m, view.fov_deg) for chunk in (actions, target)
    )
    distance = np.linalg.norm(mine - wanted, axis=1).mean()
    length = np.linalg.norm(wanted - start, axis=1).mean()
    return float(np.clip(1 - distance / max(length, _MIN_LENGTH), 0.0, 1.0))


def tool_path(actions: FloatArray, state: FloatArray) -> NDArray[np.float64]:
    """Returns float64[T, 3], the tool's position after each action."""
    moves = np.asarray(actions, np.float64)[:, _MOVES]
    return np.asarray(state[:3], np.float64) + np.cumsum(moves, axis=0)


def project(
    points_m: NDArray[np.float64], eye_m: tuple[float, ...], aim_m: tuple[float, ...], fov_deg: float
) -> NDArray[np.float64]:
    """Returns float64[N, 2], (column, row) in shares of the picture from its upper left corner, of points[N, 3]."""
    eye, aim = np.asarray(eye_m), np.asarray(aim_m)
    forward = (aim - eye) / np.linalg.norm(aim - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    seen = np.asarray(points_m, np.float64) - eye
    depth = seen @ forward * 2 * np.tan(np.deg2rad(fov_deg) / 2)
    return np.stack([0.5 + seen @ right / depth, 0.5 - seen @ up / depth], axis=1)
