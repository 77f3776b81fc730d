"""The arrays that kinematics works in, made once, and the one call of numpy that has no public `out`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

__all__ = ["KinematicsWork", "solve_into"]


class KinematicsWork:
    """The arrays of one calculation for J joints, and views of them: all that it needs, made once."""

    def __init__(self, num_joints: int) -> None:
        self.joints, self.rest, self.best, self.pull, self.moved, self.sines, self.product = np.zeros((7, num_joints))
        self.joints_J11, self.sines_J11 = self.joints[:, None, None], self.sines[:, None, None]
        self.local, self.term, self.frames = (np.zeros((num_joints, 4, 4)) for _ in range(3))
        self.local_of, self.frame_of = list(self.local), list(self.frames)
        self.links = list(zip(self.frame_of, self.local_of[1:], self.frame_of[1:], strict=False))
        self.last_frame = self.frames[-1]
        self.rotations, self.origins = self.frames[:, :3, :3], self.frames[:, :3, 3]
        self.goal, self.pose, self.turn = np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((3, 3))
        self.goal_m, self.pose_m = self.goal[:3, 3], self.pose[:3, 3]
        self.goal_turn, self.pose_turn_T = self.goal[:3, :3], self.pose[:3, :3].T
        self.goal_numbers = self.goal.reshape(16)
        self.axes_J31, self.arms = np.zeros((num_joints, 3, 1)), np.zeros((num_joints, 3))
        self.axes_T = self.axes_J31[:, :, 0].T
        self.axis_of, self.arm_of = list(self.axes_T), list(self.arms.T)
        self.jacobian, self.normal = np.zeros((6, num_joints)), np.zeros((6, 6))
        self.jacobian_T, self.normal_diagonal = self.jacobian.T, self.normal.reshape(36)[::7]
        self.jacobian_shift, self.jacobian_turn = self.jacobian[:3], self.jacobian[3:]
        self.jacobian_rows, self.jacobian_columns = list(self.jacobian_shift), list(self.jacobian_T)
        self.error, self.twist, self.solution = np.zeros((3, 6))
        self.damping = np.zeros(())


def solve_into(solution: NDArray[np.float64], matrix: NDArray[np.float64], right: NDArray[np.float64]) -> None:
    """Does what `np.linalg.solve` does, errors included, which allocates an array each time."""
    if _solve1 is None:
        np.copyto(solution, np.linalg.solve(matrix, right))
        return
    with np.errstate(call=_raise_singular, invalid="call", over="ignore", divide="ignore", under="ignore"):
        _solve1(matrix, right, out=solution)


def _raise_singular(kind: str, flag: int) -> None:
    raise np.linalg.LinAlgError("Singular matrix")


def _inner_solver() -> Callable[..., object] | None:
    """Returns what `np.linalg.solve` calls for one right side, and which has an `out`; None where numpy moved it."""
    try:
        inside = import_module("numpy.linalg._umath_linalg")
    except ImportError:
        return None
    solver: Callable[..., object] | None = getattr(inside, "solve1", None)
    return solver


_solve1 = _inner_solver()
