"""Forward and inverse kinematics of a serial arm, read from its URDF: one numpy code for simulation and hardware.

The solver is damped least squares with joint limits, warm started from the present joint positions. It answers what it
reached: a target that it cannot reach within tolerance is not "nearly" commanded, it is reported, and the caller holds.
It never restarts from another posture, because the arm would have to swing through the room to get there. It does not
check collisions of the arm with itself or with the table.

Poses are float64[4, 4] in the base frame (the URDF root link). Joint vectors follow `Kinematics.joint_names`; the field
names say radians, a prismatic joint is in metres.

What a calculation needs on the way is made once for each thread (`kinematics_work.py`), so that none of it is allocated
while an arm moves; a result is a new array, or the caller's `out`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roboalign.sdk.control.kinematics_work import KinematicsWork, solve_into
from roboalign.sdk.control.urdf import JointChain, read_chain
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.types import FloatArray

__all__ = ["IkResult", "Kinematics", "pose_from_state", "state_from_pose", "tool_pose"]

Float64Array = NDArray[np.float64]

_MAX_ERROR_M = 0.2  # error that one iteration tries to remove; a longer step leaves the region where the Jacobian holds
_MAX_ERROR_RAD = 0.8
_DAMPING = 1e-6  # at zero error; grows with the squared error (Levenberg-Marquardt), so the end is a Newton step
_DAMPING_PER_ERROR = 0.05
_REST_GAIN = np.array(0.1)  # share of the way to the rest posture that one iteration takes inside the null space
_NONE = np.array(0.0)
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
        self._axes = chain.axes[:, :, None]
        self._bounds = list(zip(chain.lower.tolist(), chain.upper.tolist(), strict=True))
        self._of_thread = threading.local()

    def __reduce__(self) -> tuple[type[Kinematics], tuple[JointChain]]:
        """Copies and pickles the chain alone; what belongs to a thread is made anew."""
        return Kinematics, (self._chain,)

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

    def forward(self, joint_pos_rad: ArrayLike, out: Float64Array | None = None) -> Float64Array:
        """Returns the tool pose float64[4, 4] in the base frame; in `out`, of that shape, where it is given."""
        work = self._work()
        self._take(joint_pos_rad, work.joints)
        self._place(work)
        return np.matmul(work.last_frame, self._chain.tip, out=np.empty((4, 4)) if out is None else out)

    def jacobian(self, joint_pos_rad: ArrayLike) -> Float64Array:
        """Returns float64[6, J]: tool velocity and angular velocity in the base frame per unit of joint speed."""
        work = self._work()
        self._take(joint_pos_rad, work.joints)
        self._place(work)
        np.matmul(work.last_frame, self._chain.tip, out=work.pose)
        self._differentiate(work)
        return work.jacobian.copy()

    def inverse(
        self,
        target: ArrayLike,
        q0: ArrayLike,
        *,
        rest_joint_pos_rad: ArrayLike | None = None,
        position_tolerance_m: float = 1e-4,
        rotation_tolerance_rad: float = 1e-3,
        max_iterations: int = 100,
        out: Float64Array | None = None,
    ) -> IkResult:
        """Finds joint positions that put the tool at `target`, starting from `q0`.

        What the pose leaves free (the elbow of a seven-joint arm) is pulled towards `rest_joint_pos_rad`, by default
        `q0`: give the home posture, and the arm does not drift into its limits over an episode. Deterministic. `out`,
        float64[J], takes the joint positions of the result instead of a new array.

        Raises:
            ConfigError: `target` is not [4, 4] or a joint vector has the wrong length. A target that is not finite is
                no error: it is answered with `is_reached` false.
        """
        goal = np.asarray(target, dtype=np.float64)
        if goal.shape != (4, 4):
            raise ConfigError(f"inverse kinematics target has shape {goal.shape}, expected (4, 4)")
        work = self._work()
        np.copyto(work.goal, goal)
        self._take(q0, work.joints)
        work.joints.clip(self.joint_lower_rad, self.joint_upper_rad, out=work.joints)
        np.copyto(work.best, work.joints)
        if rest_joint_pos_rad is None:
            np.copyto(work.rest, work.joints)
        else:
            self._take(rest_joint_pos_rad, work.rest)
        if _is_finite(work.goal_numbers) and _is_finite(work.joints) and _is_finite(work.rest):
            distance_m, angle_rad = self._solve(work, (position_tolerance_m, rotation_tolerance_rad), max_iterations)
            is_reached = distance_m <= position_tolerance_m and angle_rad <= rotation_tolerance_rad
            reason = None if is_reached else self._why_not(work.goal, work.best, distance_m, angle_rad)
        else:
            distance_m = angle_rad = math.inf
            reason = "the target pose or the joint positions are not finite"
        joints = np.empty_like(work.best) if out is None else out
        np.copyto(joints, work.best)
        return _result(joints, distance_m, angle_rad, reason)

    def _solve(self, work: KinematicsWork, tolerance: tuple[float, float], max_iterations: int) -> tuple[float, float]:
        """Iterates from `work.joints` until within `tolerance` (metres, radians) or stalled.

        Leaves the best joints in `work.best`, and returns their errors.
        """
        best_m = best_rad = best_score = math.inf
        since_best = 0
        work.rest.clip(self.joint_lower_rad, self.joint_upper_rad, out=work.rest)
        for _ in range(max_iterations):
            self._place(work)
            np.matmul(work.last_frame, self._chain.tip, out=work.pose)
            distance_m, angle_rad = _pose_error(work)
            score = distance_m / tolerance[0] + angle_rad / tolerance[1]
            since_best = 0 if score < 0.98 * best_score else since_best + 1
            if score < best_score:
                np.copyto(work.best, work.joints)
                best_m, best_rad, best_score = distance_m, angle_rad, score
            if (distance_m <= tolerance[0] and angle_rad <= tolerance[1]) or since_best >= _STALL_ITERATIONS:
                break
            self._differentiate(work)
            self._step(work)
            work.moved.clip(self.joint_lower_rad, self.joint_upper_rad, out=work.joints)
        return best_m, best_rad

    def _step(self, work: KinematicsWork) -> None:
        """Puts one damped step towards the goal, plus the pull to `rest` inside the null space, into `work.moved`.

        Joints that push into their limits are taken out, and what is left is solved again.
        """
        np.subtract(work.rest, work.joints, out=work.pull)
        np.multiply(work.pull, _REST_GAIN, out=work.pull)
        np.matmul(work.error, work.error, out=work.damping)
        work.damping[()] = _DAMPING + _DAMPING_PER_ERROR * work.damping.item()
        for _ in range(3):
            np.matmul(work.jacobian, work.jacobian_T, out=work.normal)
            np.add(work.normal_diagonal, work.damping, out=work.normal_diagonal)
            np.matmul(work.jacobian, work.pull, out=work.twist)
            np.subtract(work.error, work.twist, out=work.twist)
            solve_into(work.solution, work.normal, work.twist)
            np.matmul(work.jacobian_T, work.solution, out=work.moved)
            np.add(work.moved, work.pull, out=work.moved)
            np.add(work.joints, work.moved, out=work.moved)
            blocked = self._blocked(work)
            if not blocked:
                break
            for index in blocked:
                work.jacobian_columns[index].fill(0.0)
                work.pull[index] = 0.0

    def _blocked(self, work: KinematicsWork) -> list[int]:
        """Returns the joints that `work.moved` pushes into the limits that they stand at."""
        places = zip(work.joints.tolist(), work.moved.tolist(), self._bounds, strict=True)
        return [
            index
            for index, (now, then, (low, high)) in enumerate(places)
            if (then > high and now >= high - 1e-9) or (then < low and now <= low + 1e-9)
        ]

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
        joints = np.empty(len(self.joint_names))
        self._take(joint_pos_rad, joints)
        return joints

    def _take(self, joint_pos_rad: ArrayLike, into: Float64Array) -> None:
        """Copies joint positions, once they are as many as there are joints."""
        joints = joint_pos_rad if isinstance(joint_pos_rad, np.ndarray) else np.asarray(joint_pos_rad, dtype=np.float64)
        if joints.shape != (len(self.joint_names),):
            raise ConfigError(f"joint positions have shape {joints.shape}, expected ({len(self.joint_names)},)")
        np.copyto(into, joints, casting="unsafe")

    def _work(self) -> KinematicsWork:
        """Returns this thread's arrays."""
        work: KinematicsWork | None = getattr(self._of_thread, "work", None)
        if work is None:
            work = self._of_thread.work = KinematicsWork(len(self.joint_names))
        return work

    def _place(self, work: KinematicsWork) -> None:
        """Puts the frame after each joint, in the base frame, into `work.frames`."""
        np.sin(work.joints, out=work.sines)
        np.multiply(work.sines_J11, self._sine, out=work.local)
        np.add(self._const, work.local, out=work.local)
        np.cos(work.joints, out=work.sines)
        np.multiply(work.sines_J11, self._cosine, out=work.term)
        np.add(work.local, work.term, out=work.local)
        if self._has_slide:
            np.multiply(work.joints_J11, self._slide, out=work.term)
            np.add(work.local, work.term, out=work.local)
        np.copyto(work.frame_of[0], work.local_of[0])
        for before, own, frame in work.links:
            np.matmul(before, own, out=frame)

    def _differentiate(self, work: KinematicsWork) -> None:
        """Puts the Jacobian at `work.frames` and `work.pose` into `work.jacobian`."""
        np.matmul(work.rotations, self._axes, out=work.axes_J31)
        np.subtract(work.pose_m, work.origins, out=work.arms)
        for row, (first, second) in zip(work.jacobian_rows, ((1, 2), (2, 0), (0, 1)), strict=True):  # axis x arm
            np.multiply(work.axis_of[first], work.arm_of[second], out=row)
            np.multiply(work.axis_of[second], work.arm_of[first], out=work.product)
            np.subtract(row, work.product, out=row)
        np.copyto(work.jacobian_turn, work.axes_T)
        if self._has_slide:
            np.copyto(work.jacobian_shift, work.axes_T, where=self._prismatic)
            np.copyto(work.jacobian_turn, _NONE, where=self._prismatic)


def tool_pose(xyz_m: ArrayLike, yaw_rad: float) -> Float64Array:
    """Returns the pose float64[4, 4] of a tool that points straight down at `xyz_m`; at yaw 0 its x axis is the base's.

    >>> tool_pose((0.5, 0.0, 0.1), 0.0)[:3, 2]
    array([ 0.,  0., -1.])
    """
    x, y, z = np.asarray(xyz_m, dtype=np.float64).tolist()
    return pose_from_state([x, y, z, yaw_rad])


def pose_from_state(state: ArrayLike | list[float], out: Float64Array | None = None) -> Float64Array:
    """Returns the tool pose of an `Observation.state`, pointing straight down; the gripper width is ignored.

    `out`, float64[4, 4], takes it instead of a new array.
    """
    x, y, z, yaw, *_ = state if isinstance(state, list) else np.asarray(state, dtype=np.float64).tolist()
    cos, sin = math.cos(yaw), math.sin(yaw)
    pose = np.empty((4, 4)) if out is None else out
    for row, numbers in enumerate(((cos, sin, 0.0, x), (sin, -cos, 0.0, y), (0.0, 0.0, -1.0, z), (0.0, 0.0, 0.0, 1.0))):
        for column, number in enumerate(numbers):
            pose[row, column] = number
    return pose


def state_from_pose(pose: ArrayLike, gripper_width_m: float, out: FloatArray | None = None) -> FloatArray:
    """Returns float32[5] in the order of `STATE_NAMES`; the yaw, in (-pi, pi], is the heading of the tool's x axis.

    `out`, of that shape, takes it instead of a new array.
    """
    matrix = np.asarray(pose, dtype=np.float64)
    state = np.empty(5, np.float32) if out is None else out
    for index in range(3):
        state[index] = matrix[index, 3]
    state[3], state[4] = math.atan2(matrix[1, 0], matrix[0, 0]), gripper_width_m
    return state


def _result(joints: Float64Array, distance_m: float, angle_rad: float, reason: str | None) -> IkResult:
    return IkResult(
        joint_pos_rad=joints,
        is_reached=reason is None,
        position_error_m=distance_m,
        rotation_error_rad=angle_rad,
        reason=reason,
    )


def _is_finite(values: Float64Array) -> bool:
    return all(map(math.isfinite, values.tolist()))


def _pose_error(work: KinematicsWork) -> tuple[float, float]:
    """Puts the shortened error float64[6] (metres, rotation vector) into `work.error`.

    Returns the full distance and the full angle.
    """
    (x, y, z), (to_x, to_y, to_z) = work.pose_m.tolist(), work.goal_m.tolist()
    dx, dy, dz = to_x - x, to_y - y, to_z - z
    np.matmul(work.goal_turn, work.pose_turn_T, out=work.turn)
    (r00, r01, r02), (r10, r11, r12), (r20, r21, r22) = work.turn.tolist()
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
    for index, value in enumerate((dx * shrink, dy * shrink, dz * shrink, wx * turn, wy * turn, wz * turn)):
        work.error[index] = value
    return distance, angle
