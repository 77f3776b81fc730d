"""From an action to joint targets: limiter, inverse kinematics, limiter. One path for simulation and hardware.

The controller keeps the target of the tool (where it was last asked to be), not the measured pose, so that errors of
the arm's own controller do not add up. It holds no port and does not move anything: a robot sends what it returns.

Everything that a command needs was made in advance. The three arrays of the `Applied` that is returned belong to the
caller, who may keep them, as recordings do; those that nobody holds any more are used again (`sdk/control/stock.py`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from roboalign.sdk.control.kinematics import Kinematics, pose_from_state, state_from_pose
from roboalign.sdk.control.limiter import Limiter
from roboalign.sdk.control.stock import Stock
from roboalign.sdk.errors import ConfigError, RobotError
from roboalign.sdk.types import STATE_NAMES, Applied, FloatArray, RobotSpec

__all__ = ["CartesianController"]


class CartesianController:
    """Turns tool displacements into limited joint targets. `reset` before the first command."""

    def __init__(self, spec: RobotSpec, kinematics: Kinematics) -> None:
        """Uses the joint limits of `spec`, which must name the joints of `kinematics`.

        Raises:
            ConfigError: The joint names differ.
        """
        if kinematics.joint_names != spec.joint_names:
            found = f"robot {spec.name!r} has joints {spec.joint_names}, its kinematics {kinematics.joint_names}"
            raise ConfigError(f"{found}; give both the same URDF")
        self.spec = spec
        self.kinematics = kinematics.with_limits(spec.joint_lower_rad, spec.joint_upper_rad)
        self.limiter = Limiter(spec)
        self._home = np.array(spec.home_joint_pos_rad, np.float64)
        self._tool_target: list[float] | None = None
        self._joint_target: FloatArray = np.zeros(spec.num_joints, np.float32)
        self._joint_step: FloatArray = np.zeros(spec.num_joints, np.float32)
        self._spare_target: FloatArray = np.zeros(spec.num_joints, np.float32)
        self._state: FloatArray = np.zeros(len(STATE_NAMES), np.float32)
        self._solution, self._pose = np.zeros(spec.num_joints), np.zeros((4, 4))
        self._asked_actions, self._sent_actions = Stock(len(spec.action_names)), Stock(len(spec.action_names))
        self._targets = Stock(spec.num_joints)

    @property
    def tool_target(self) -> FloatArray:
        """float32[5] in the order of `STATE_NAMES`: where the tool was last asked to be, and the gripper width."""
        return np.array(self._target(), np.float32)

    @property
    def commanded(self) -> FloatArray | None:
        """float32[4]: x, y, z and yaw of `tool_target`; None before the first reset."""
        return None if self._tool_target is None else np.array(self._tool_target[:4], np.float32)

    @property
    def gripper_width_m(self) -> float:
        """Distance between the fingers that is commanded now."""
        return self._target()[4]

    @property
    def joint_target_rad(self) -> FloatArray:
        """float32[J]: the last joint targets."""
        self._target()
        return self._joint_target.copy()

    def reset(self, measured_rad: ArrayLike, gripper_width_m: float) -> None:
        """Takes the measured joints and gripper as the target, so that nothing moves until the next action."""
        joints = np.asarray(measured_rad, dtype=np.float64)
        if not (np.isfinite(joints).all() and math.isfinite(gripper_width_m)):
            found = f"joints {joints}, gripper width {gripper_width_m}"
            raise RobotError(f"measured {found}: expected finite numbers; check the sensors")
        width = min(max(gripper_width_m, 0.0), self.spec.gripper_max_width_m)
        self.limiter.limit_joints(joints, joints, joints, 1.0 / self.spec.control_rate_hz, self._joint_target)
        self._joint_step.fill(0.0)
        self._tool_target = self._tool_where_sent(width)

    def act_joints(
        self, joint_target_rad: ArrayLike, gripper_width_m: float, measured_rad: ArrayLike, dt_s: float
    ) -> tuple[FloatArray, float]:
        """Returns the joint targets and the width to send for these; the next action starts there.

        Joints are limited like those of every command; the workspace box, which is about the tool, is not asked. A
        width that is not finite keeps the last one.

        Raises:
            LimitViolation: A vector has the wrong shape.
        """
        target, _ = self.limiter.limit_joints(joint_target_rad, self._joint_target, measured_rad, dt_s)
        asked_m = float(gripper_width_m) if math.isfinite(gripper_width_m) else self.gripper_width_m
        width_m = min(max(asked_m, 0.0), self.spec.gripper_max_width_m)
        np.subtract(target, self._joint_target, out=self._joint_step)
        np.copyto(self._joint_target, target)
        self._tool_target = self._tool_where_sent(width_m)
        return target, width_m

    def act(self, action: ArrayLike, measured_rad: ArrayLike, dt_s: float) -> Applied:
        """Returns what to send for one action. A target out of reach moves only the gripper, and says so.

        Raises:
            LimitViolation: A vector has the wrong shape.
        """
        target = self._target()
        sent, reasons = self.limiter.limit_action(action, target, self._sent_actions.take())
        if any(reason.startswith("hold: ") for reason in reasons):
            return self.hold(requested=action, reasons=reasons)
        wanted = [was + change for was, change in zip(target[:4], sent.tolist(), strict=False)]
        wanted[3] = math.remainder(wanted[3], 2 * math.pi)
        wanted.append(float(sent[4] * self.spec.gripper_max_width_m))
        pose = pose_from_state(wanted, self._pose)
        solution = self.kinematics.inverse(pose, self._joint_target, rest_joint_pos_rad=self._home, out=self._solution)
        if not solution.is_reached:
            sent[:4] = 0.0
            self._joint_step.fill(0.0)
            self._tool_target = [*target[:4], wanted[4]]
            reasons = (*reasons, f"hold: {solution.reason}")
        else:
            self._tool_target = wanted
            last, now = self._joint_target, self._spare_target
            _, names = self.limiter.limit_joints(solution.joint_pos_rad, last, measured_rad, dt_s, now)
            _, risen = self.limiter.limit_rise(now, last, self._joint_step, dt_s, now)
            np.subtract(now, last, out=self._joint_step)
            self._joint_target, self._spare_target = now, last
            reasons = (*reasons, *names, *risen)
        return self._applied(action, sent, reasons)

    def hold(self, *, requested: ArrayLike | None = None, reasons: tuple[str, ...] = ("hold",)) -> Applied:
        """Stays at the last joint targets and drops what the arm had not yet caught up with."""
        width = self._target()[4]
        self._joint_step.fill(0.0)
        self._tool_target = [*self._tool_where_sent(width)[:4], width]
        sent = self.limiter.hold_action(self._tool_target, self._sent_actions.take())
        return self._applied(sent if requested is None else requested, sent, reasons)

    def _tool_where_sent(self, width_m: float) -> list[float]:
        """Returns the target of a tool that is where the joints were sent, as the numbers of an observation."""
        pose = self.kinematics.forward(self._joint_target, self._pose)
        numbers: list[float] = state_from_pose(pose, width_m, self._state).tolist()
        return numbers

    def _applied(self, requested: ArrayLike, sent: FloatArray, reasons: tuple[str, ...]) -> Applied:
        given, asked, target = np.asarray(requested), self._asked_actions.take(), self._targets.take()
        with np.errstate(over="ignore"):  # what was asked may be any number; it is only reported
            if given.shape == asked.shape:
                np.copyto(asked, given, casting="unsafe")
            else:
                asked = np.array(given, dtype=np.float32)
        np.copyto(target, self._joint_target)
        return Applied(requested=asked, sent=sent, joint_target_rad=target, reasons=reasons)

    def _target(self) -> list[float]:
        if self._tool_target is None:
            raise RobotError("the controller has no target yet; call reset with the measured joints first")
        return self._tool_target
