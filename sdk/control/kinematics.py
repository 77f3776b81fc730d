"""Forward and inverse kinematics of a serial arm, read from its URDF: one numpy code for simulation and hardware.

The solver is damped least squares with joint limits, warm started from the present joint positions. It answers what it
reached: a target that it cannot reach within tolerance is not "nearly" commanded, it is reported, and the caller holds.
It never restarts from another posture, because the arm would have to swing through the room to get there. It does not
check collisions of the arm with itself or with the table.

Poses are float64[4, 4] in the base frame (the URDF root link). Joint vectors follow `Kinematics.joint_names`; the field
names say radians, a prismatic joint is in metres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roboalign.sdk.control.urdf import JointChain, read_chain
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.types import FloatArray

__all__ = ["IkResult", "Kinematics", "pose_from_state", "state_from_pose", "tool_pose"]

Float64Array = NDArray[np.float64]

_MAX_ERROR_M = 0.2  # error that one iteration tries to remove; a longer step leaves the region where the Jacobian holds
_MAX_ERROR_RAD = 0.8
_DAMPING = 1e-6  # at zero error; grows with the squared error (Levenberg-Marquardt), so the end is a Newton step
_DAMPING_PER_ERROR = 0.05
_REST_GAIN = 0.1  # share of the way to the rest posture that one iteration takes inside the null space
_STALL_ITERATIONS = 12  # an unreachable target stops improving long before the iteration limit


@dataclass(frozen=True, kw_only=True, slots=True)
class IkResult:
    """Joint positions found for a tool pose, and whether they reach it."""

    joint_pos_rad: Float64Array
    """float64[J], inside the joint limits; the closest found when `is_reached` is false."""
    is_reached: bool
    """True when both errors are within tolerance. When false the caller must hold."""
    position_error_m: float
    """Distance between the wanted and the reached tool position."""
    rotation_error_rad: float
    """Angle between the wanted and the reached tool orientation."""
    reason: str | None = None
    """Why the target was not reached; None when it was."""


class Kinematics:
    """A chain of joints from the URDF root to a tip link."""

    def __init__(self, chain: JointChain) -> None:
        """Stores the chain; `from_urdf` reads one."""
        self._chain = chain
        self.joint_names = chain.joint_names
        self.joint_lower_rad, self.joint_upper_rad = chain.lower, chain.upper
        self.joint_max_speed_rad_s = chain.max_speed
        # The transform of joint i is const + sin(q) sine + cos(q) cosine + q slide (Rodrigues), origin folded in.
        cross = np.zeros((len(chain.joint_names), 4, 4))
        slide = np.zeros_like(cross)
        for index, (x, y, z) in enumerate(chain.axes):
            if chain.is_prismatic[index]:
                slide[index, :3, 3] = (x, y, z)
            else:
                cross[index, :3, :3] = ((0, -z, y), (z, 0, -x), (-y, x, 0))
        square = cross @ cross
        self._const = chain.origins @ (np.eye(4) + square)
        self._sine, self._cosine, self._slide = chain.origins @ cross, -chain.origins @ square, chain.origins @ slide
        self._prismatic = np.array(chain.is_prismatic)
        self._has_slide = any(chain.is_prismatic)

    @classmethod
    def from_urdf(
        cls, path_or_text: str | Path, tip_link: str = "panda_grasptarget", joint_names: Sequence[str] | None = None
    ) -> Kinematics:
        """Reads the chain from the root link to `tip_link`.

        Args:
            path_or_text: A file, or the XML itself (recognised by its leading `<`).
            tip_link: The link whose frame is the tool.
            joint_names: If given, checked against the movable joints of the chain.

        Raises:
            ConfigError: The file is missing or no URDF, the tip or a joint is absent, or a joint type is unsupported.
        """
        chain = read_chain(path_or_text, tip_link)
        if joint_names is not None and tuple(joint_names) != chain.joint_names:
            raise ConfigError(f"the joints up to {tip_link!r} are {chain.joint_names}, expected {tuple(joint_names)}")
        return cls(chain)

    def with_limits(self, joint_lower_rad: ArrayLike, joint_upper_rad: ArrayLike) -> Kinematics:
        """Returns the same chain with other joint limits, e.g. the narrower ones of a `RobotSpec`."""
        lower, upper = self._joints(joint_lower_rad), self._joints(joint_upper_rad)
        return Kinematics(replace(self._chain, lower=lower, upper=upper))

    @property
    def num_joints(self) -> int:
        """Number of movable joints."""
        return len(self.joint_names)

    def forward(self, joint_pos_rad: ArrayLike) -> Float64Array:
        """Returns the tool pose float64[4, 4] in the base frame."""
        pose: Float64Array = self._frames(self._joints(joint_pos_rad))[-1] @ self._chain.tip
        return pose

    def jacobian(self, joint_pos_rad: ArrayLike) -> Float64Array:
        """Returns float64[6, J]: tool velocity and angular velocity in the base frame per unit of joint speed."""
        frames = self._frames(self._joints(joint_pos_rad))
        return self._jacobian(frames, (frames[-1] @ self._chain.tip)[:3, 3])

    def inverse(
        self,
        target: ArrayLike,
        q0: ArrayLike,
        *,
        rest_joint_pos_rad: ArrayLike | None = None,
        position_tolerance_m: float = 1e-4,
        rotation_tolerance_rad: float = 1e-3,
        max_iterations: int = 100,
    ) -> IkResult:
        """Finds joint positions that put the tool at `target`, starting from `q0`.

        What the pose leaves free (the elbow of a seven-joint arm) is pulled towards `rest_joint_pos_rad`, by default
        `q0`: give the home posture, and the arm does not drift into its limits over an episode. Deterministic.

        Raises:
            ConfigError: `target` is not [4, 4] or a joint vector has the wrong length. A target that is not finite is
                no error: it is answered with `is_reached` false.
        """
        goal = np.asarray(target, dtype=np.float64)
        if goal.shape != (4, 4):
            raise ConfigError(f"inverse kinematics target has shape {goal.shape}, expected (4, 4)")
        start = np.clip(self._joints(q0), self.joint_lower_rad, self.joint_upper_rad)
        rest = start if rest_joint_pos_rad is None else self._joints(rest_joint_pos_rad)
        if not (np.isfinite(goal).all() and np.isfinite(start).all() and np.isfinite(rest).all()):
            why = "the target pose or the joint positions are not finite"
            return _result(start, math.inf, math.inf, why)
        tolerance = (position_tolerance_m, rotation_tolerance_rad)
        joints, distance_m, angle_rad = self._solve(goal, start, rest, tolerance, max_iterations)
        if distance_m <= position_tolerance_m and angle_rad <= rotation_tolerance_rad:
            return _result(joints, distance_m, angle_rad, None)
        return _result(joints, distance_m, angle_rad, self._why_not(goal, joints, distance_m, angle_rad))

    def _solve(
        self,
        goal: Float64Array,
        start: Float64Array,
        rest: Float64Array,
        tolerance: tuple[float, float],
        max_iterations: int,
    ) -> tuple[Float64Array, float, float]:
        """Iterates until within `tolerance` (metres, radians) or stalled; returns the best joints and their errors."""
        joints = start
        best = (joints, math.inf, math.inf)
        best_score, since_best = math.inf, 0
        for _ in range(max_iterations):
            frames = self._frames(joints)
            pose = frames[-1] @ self._chain.tip
            error, distance_m, angle_rad = _pose_error(goal, pose)
            score = distance_m / tolerance[0] + angle_rad / tolerance[1]
            since_best = 0 if score < 0.98 * best_score else since_best + 1
            if score < best_score:
                best, best_score = (joints, distance_m, angle_rad), score
            if (distance_m <= tolerance[0] and angle_rad <= tolerance[1]) or since_best >= _STALL_ITERATIONS:
                break
            step = self._step(self._jacobian(frames, pose[:3, 3]), error, joints, rest)
            joints = np.clip(joints + step, self.joint_lower_rad, self.joint_upper_rad)
        return best

    def _step(
        self, jacobian: Float64Array, error: Float64Array, joints: Float64Array, rest: Float64Array
    ) -> Float64Array:
        """Returns one damped step towards the goal, plus the pull to `rest` inside the null space.

        Joints that push into their limits are taken out, and what is left is solved again.
        """
        pull = _REST_GAIN * (np.clip(rest, self.joint_lower_rad, self.joint_upper_rad) - joints)
        damping = _DAMPING + _DAMPING_PER_ERROR * float(error @ error)
        step = pull
        for _ in range(3):
            normal = jacobian @ jacobian.T
            normal.flat[::7] += damping
            step = jacobian.T @ np.linalg.solve(normal, error - jacobian @ pull) + pull
            moved = joints + step
            is_blocked = ((moved > self.joint_upper_rad) & (joints >= self.joint_upper_rad - 1e-9)) | (
                (moved < self.joint_lower_rad) & (joints <= self.joint_lower_rad + 1e-9)
            )
            if not is_blocked.any():
                break
            jacobian, pull = np.where(is_blocked, 0.0, jacobian), np.where(is_blocked, 0.0, pull)
        return step

    def _why_not(self, goal: Float64Array, joints: Float64Array, distance_m: float, angle_rad: float) -> str:
        """Says where the tool was asked to go, how far off the best posture is, and which joints stopped it."""
        at_limit = (joints <= self.joint_lower_rad + 1e-6) | (joints >= self.joint_upper_rad - 1e-6)
        stopped = [name for name, is_at in zip(self.joint_names, at_limit, strict=True) if is_at]
        cause = f" with {', '.join(stopped)} at the limit" if stopped else ""
        x, y, z = goal[:3, 3]
        return (
            f"target ({x:.3f}, {y:.3f}, {z:.3f}) m is out of reach: the nearest posture is {distance_m * 1000:.1f} mm"
            f" and {math.degrees(angle_rad):.1f} deg off{cause}"
        )

    def _joints(self, joint_pos_rad: ArrayLike) -> Float64Array:
        joints = np.asarray(joint_pos_rad, dtype=np.float64)
        if joints.shape != (len(self.joint_names),):
            raise ConfigError(f"joint positions have shape {joints.shape}, expected ({len(self.joint_names)},)")
        return joints

    def _frames(self, joints: Float64Array) -> Float64Array:
        """Returns [J, 4, 4]: the frame after each joint, in the base frame."""
        q = joints[:, None, None]
        frames = self._const + np.sin(q) * self._sine + np.cos(q) * self._cosine
        if self._has_slide:
            frames += q * self._slide
        for index in range(1, len(joints)):
            frames[index] = frames[index - 1] @ frames[index]
        return frames

    def _jacobian(self, frames: Float64Array, tool_m: Float64Array) -> Float64Array:
        axes = (frames[:, :3, :3] @ self._chain.axes[:, :, None])[:, :, 0]
        arms = tool_m - frames[:, :3, 3]
        jacobian = np.empty((6, len(axes)))
        jacobian[0] = axes[:, 1] * arms[:, 2] - axes[:, 2] * arms[:, 1]
        jacobian[1] = axes[:, 2] * arms[:, 0] - axes[:, 0] * arms[:, 2]
        jacobian[2] = axes[:, 0] * arms[:, 1] - axes[:, 1] * arms[:, 0]
        jacobian[3:] = axes.T
        if self._has_slide:
            jacobian[:3, self._prismatic] = axes.T[:, self._prismatic]
            jacobian[3:, self._prismatic] = 0.0
        return jacobian


def tool_pose(xyz_m: ArrayLike, yaw_rad: float) -> Float64Array:
    """Returns the pose float64[4, 4] of a tool that points straight down at `xyz_m`; at yaw 0 its x axis is the base's.

    >>> tool_pose((0.5, 0.0, 0.1), 0.0)[:3, 2]
    array([ 0.,  0., -1.])
    """
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    pose = np.array(((cos, sin, 0.0, 0.0), (sin, -cos, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
    pose[:3, 3] = np.asarray(xyz_m, dtype=np.float64)
    return pose


def pose_from_state(state: ArrayLike) -> Float64Array:
    """Returns the tool pose of an `Observation.state`, pointing straight down; the gripper width is ignored."""
    values = np.asarray(state, dtype=np.float64)
    return tool_pose(values[:3], float(values[3]))


def state_from_pose(pose: ArrayLike, gripper_width_m: float) -> FloatArray:
    """Returns float32[5] in the order of `STATE_NAMES`; the yaw, in (-pi, pi], is the heading of the tool's x axis."""
    matrix = np.asarray(pose, dtype=np.float64)
    x, y, z = matrix[:3, 3]
    return np.array((x, y, z, math.atan2(matrix[1, 0], matrix[0, 0]), gripper_width_m), dtype=np.float32)


def _result(joints: Float64Array, distance_m: float, angle_rad: float, reason: str | None) -> IkResult:
    return IkResult(
        joint_pos_rad=joints,
        is_reached=reason is None,
        position_error_m=distance_m,
        rotation_error_rad=angle_rad,
        reason=reason,
    )


def _pose_error(goal: Float64Array, pose: Float64Array) -> tuple[Float64Array, float, float]:
    """Returns the shortened error float64[6] (metres, rotation vector), the full distance and the full angle."""
    dx, dy, dz = (goal[:3, 3] - pose[:3, 3]).tolist()
    (r00, r01, r02), (r10, r11, r12), (r20, r21, r22) = (goal[:3, :3] @ pose[:3, :3].T).tolist()
    wx, wy, wz = r21 - r12, r02 - r20, r10 - r01
    twice_sin = math.sqrt(wx * wx + wy * wy + wz * wz)
    angle = math.atan2(twice_sin, r00 + r11 + r22 - 1.0)
    if twice_sin < 1e-6 and angle > 1.0:  # half a turn: the antisymmetric part vanishes, any sign of the axis will do
        column = max(range(3), key=(r00, r11, r22).__getitem__)
        wx, wy, wz = ((r00 + 1, r10, r20), (r01, r11 + 1, r21), (r02, r12, r22 + 1))[column]
        twice_sin = math.sqrt(wx * wx + wy * wy + wz * wz)
    distance = math.sqrt(dx * dx + dy * dy + dz * dz)
    shrink = min(1.0, _MAX_ERROR_M / distance) if distance > 0 else 1.0
    turn = min(angle, _MAX_ERROR_RAD) / twice_sin if twice_sin > 1e-12 else 0.5
    return np.array((dx * shrink, dy * shrink, dz * shrink, wx * turn, wy * turn, wz * turn)), distance, angle
