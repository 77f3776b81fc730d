"""Limiter and kinematics once more, in whole arrays and with a new one for each result: what the product must equal.

The product reckons in numbers and in arrays that it made in advance, which reads less like the mathematics. This is
slower, and is compared with it bit by bit.
"""

from __future__ import annotations

import math

import numpy as np

from roboalign.sdk.control.kinematics import Kinematics
from roboalign.sdk.control.limiter import MAX_LEAD_S, MAX_PERIODS

SILENT = 1e-6


def _inwards(lower, upper):
    low, high = lower.astype(np.float32), upper.astype(np.float32)
    low = np.where(low < lower, np.nextafter(low, np.float32(np.inf)), low).astype(np.float32)
    high = np.where(high > upper, np.nextafter(high, np.float32(-np.inf)), high).astype(np.float32)
    return low, high


class PlainLimiter:
    """For vectors of the right length."""

    def __init__(self, spec) -> None:
        self.spec = spec
        self.step = np.array((spec.max_step_m,) * 3 + (spec.max_step_rad,), np.float64)
        self.low = np.array((*spec.workspace_lower_m, -math.inf), np.float64)
        self.high = np.array((*spec.workspace_upper_m, math.inf), np.float64)
        self.lower, self.upper = _inwards(np.array(spec.joint_lower_rad), np.array(spec.joint_upper_rad))
        self.speed = np.array(spec.joint_max_speed_rad_s, np.float64)
        self.acceleration = np.array(spec.joint_max_accel_rad_s2 or (math.inf,) * spec.num_joints, np.float64)

    def hold_action(self, target):
        action = np.zeros(5, np.float32)
        action[4] = np.clip(target[4] / self.spec.gripper_max_width_m, 0.0, 1.0)
        return action

    def limit_action(self, action, target):
        asked, target_now = np.asarray(action, np.float64), np.asarray(target, np.float64)
        names, target = self.spec.action_names, target_now[:4]
        is_bad = ~np.isfinite(asked)
        if is_bad.any():
            bad = [name for name, is_it in zip(names, is_bad, strict=True) if is_it]
            return self.hold_action(target_now), (f"hold: {', '.join(bad)} not finite",)
        step = np.clip(asked[:4], -self.step, self.step)
        reasons = [
            f"{names[i]}: step above {self.step[i]:g}" for i in np.flatnonzero(np.abs(step - asked[:4]) > SILENT)
        ]
        low, high = np.minimum(self.low, target), np.maximum(self.high, target)
        inside = np.clip(np.clip(target + step, low, high) - target, np.minimum(step, 0), np.maximum(step, 0))
        for i in np.flatnonzero(np.abs(inside - step) > SILENT):
            reasons.append(f"{names[i]}: {'below' if inside[i] > step[i] else 'above'} the workspace")
        sent = np.empty(5, np.float32)
        sent[:4] = inside
        landed = target + sent[:4]
        is_over = (landed < low) | (landed > high) | (np.abs(sent[:4]) > self.step)
        sent[:4] = np.where(is_over, np.nextafter(sent[:4], np.float32(0)), sent[:4])
        sent[4] = np.clip(asked[4], 0.0, 1.0)
        if abs(float(sent[4]) - asked[4]) > SILENT:
            reasons.append(f"{names[4]}: outside 0 to 1")
        return sent, tuple(reasons)

    def limit_joints(self, wanted, last, measured, dt_s):
        wanted, last, measured = (np.asarray(values, np.float64) for values in (wanted, last, measured))
        reasons: list[str] = []
        if not np.isfinite(last).all():
            if not np.isfinite(measured).all():
                return None
            last, reasons = measured, ["hold: last joint target not finite, took the measured joints"]
        anchor = np.clip(last, self.lower, self.upper).astype(np.float32)
        reasons += self._changes(anchor, last, "last target was outside its limits")
        for name, values in (("joint target", wanted), ("measured joints", measured)):
            if not np.isfinite(values).all():
                return anchor, (*reasons, f"hold: {name} not finite")
        if not (math.isfinite(dt_s) and dt_s > 0):
            return anchor, (*reasons, f"hold: time since the last command is {dt_s} s")
        joints = np.clip(wanted, self.lower, self.upper)
        reach, lead = self.speed * min(dt_s, MAX_PERIODS / self.spec.control_rate_hz), self.speed * MAX_LEAD_S
        slow = np.clip(joints, anchor - reach, anchor + reach)
        led = np.clip(slow, np.minimum(measured - lead, anchor), np.maximum(measured + lead, anchor))
        reasons += self._changes(joints, wanted, "position limit")
        reasons += self._changes(slow, joints, "speed limit")
        reasons += self._changes(led, slow, "too far ahead of the arm")
        sent = np.clip(led.astype(np.float32), self.lower, self.upper)
        is_over = np.abs(sent.astype(np.float64) - anchor) > reach
        return np.where(is_over, np.nextafter(sent, anchor), sent).astype(np.float32), tuple(reasons)

    def limit_rise(self, target, last, last_step, dt_s):
        step = target.astype(np.float64) - last
        has = np.maximum(np.asarray(last_step, np.float64) * np.sign(step), 0.0)
        room = has + self.acceleration * dt_s**2
        sent = (last + np.clip(step, -room, room)).astype(np.float32)
        return sent, tuple(self._changes(sent, target, "acceleration limit"))

    def _changes(self, now, before, why):
        changed = np.flatnonzero(np.abs(now.astype(np.float64) - before) > SILENT)
        return [f"{self.spec.joint_names[index]}: {why}" for index in changed]


class PlainKinematics:
    """Forward, Jacobian and inverse of the same chain."""

    def __init__(self, arm: Kinematics) -> None:
        self.chain, self.arm = arm._chain, arm

    def frames(self, joints):
        q = joints[:, None, None]
        frames = self.arm._const + np.sin(q) * self.arm._sine + np.cos(q) * self.arm._cosine
        if any(self.chain.is_prismatic):
            frames += q * self.arm._slide
        for index in range(1, len(joints)):
            frames[index] = frames[index - 1] @ frames[index]
        return frames

    def forward(self, joints):
        return self.frames(np.asarray(joints, np.float64))[-1] @ self.chain.tip

    def jacobian(self, joints):
        frames = self.frames(np.asarray(joints, np.float64))
        axes = (frames[:, :3, :3] @ self.chain.axes[:, :, None])[:, :, 0]
        arms = (frames[-1] @ self.chain.tip)[:3, 3] - frames[:, :3, 3]
        first, second = ([1, 2, 0], [2, 0, 1])
        jacobian = np.concatenate(((axes[:, first] * arms[:, second] - axes[:, second] * arms[:, first]).T, axes.T))
        slides = np.array(self.chain.is_prismatic)
        jacobian[:3, slides], jacobian[3:, slides] = axes.T[:, slides], 0.0
        return jacobian

    def inverse(self, goal, q0, rest, tolerance=(1e-4, 1e-3), max_iterations=100):
        """Returns the best joints, the distance and the angle that are left."""
        lower, upper = self.chain.lower, self.chain.upper
        joints = np.clip(np.asarray(q0, np.float64), lower, upper)
        best, best_score, since_best = (joints, math.inf, math.inf), math.inf, 0
        for _ in range(max_iterations):
            error, distance, angle = self.error(goal, self.forward(joints))
            score = distance / tolerance[0] + angle / tolerance[1]
            since_best = 0 if score < 0.98 * best_score else since_best + 1
            if score < best_score:
                best, best_score = (joints, distance, angle), score
            if (distance <= tolerance[0] and angle <= tolerance[1]) or since_best >= 12:
                break
            joints = np.clip(joints + self.step(joints, error, rest), lower, upper)
        return best

    def step(self, joints, error, rest):
        lower, upper = self.chain.lower, self.chain.upper
        jacobian, pull = self.jacobian(joints), 0.1 * (np.clip(rest, lower, upper) - joints)
        damping = 1e-6 + 0.05 * float(error @ error)
        for _ in range(3):
            normal = jacobian @ jacobian.T
            normal.flat[::7] += damping
            step = jacobian.T @ np.linalg.solve(normal, error - jacobian @ pull) + pull
            moved = joints + step
            is_blocked = ((moved > upper) & (joints >= upper - 1e-9)) | ((moved < lower) & (joints <= lower + 1e-9))
            if not is_blocked.any():
                break
            jacobian, pull = np.where(is_blocked, 0.0, jacobian), np.where(is_blocked, 0.0, pull)
        return step

    def error(self, goal, pose):
        shift, turn = goal[:3, 3] - pose[:3, 3], goal[:3, :3] @ pose[:3, :3].T
        axis = [turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]
        length = math.sqrt(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2])
        angle = math.atan2(length, turn[0, 0] + turn[1, 1] + turn[2, 2] - 1.0)
        if length < 1e-6 and angle > 1.0:
            column = int(np.argmax(np.diag(turn)))
            axis = list(turn[:, column] + np.eye(3)[:, column])
            length = math.sqrt(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2])
        distance = math.sqrt(shift[0] * shift[0] + shift[1] * shift[1] + shift[2] * shift[2])
        shrink = min(1.0, 0.2 / distance) if distance > 0 else 1.0
        scale = min(angle, 0.8) / length if length > 1e-12 else 0.5
        return np.array((*(shift * shrink), *(value * scale for value in axis))), distance, angle
