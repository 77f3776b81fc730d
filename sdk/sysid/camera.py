"""How old pictures are, and how many get lost: the arm moves and rests by turns, and pictures follow late.

A picture of control step k shows the arm of step k - age. What is compared is how much a picture differs from the one
before it with how far the joints moved in an earlier step; a picture that is the same bit by bit although the arm had
moved was lost on the way, and the last one came again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.evaluation.intervals import wilson
from roboalign.sdk.robot import JointRobot
from roboalign.sdk.sysid.result import Estimate

__all__ = ["CameraTrace", "camera_estimates", "watch_camera"]

Float64Array = NDArray[np.float64]

_STEPS = 100
_MAX_AGE = 20
_REACH_RAD, _SPEED_RAD_S = 0.2, (0.3, 0.9)
_CHI2 = 3.84  # 95 % of one degree of freedom
_STILL_SHARE = 0.3  # of the mean motion: below it a picture may well be the same


@dataclass(frozen=True, kw_only=True)
class CameraTrace:
    """One entry a control step."""

    change: tuple[float, ...]
    """Mean difference of the picture to the one before, all cameras together."""
    is_same: tuple[bool, ...]
    """True when every picture is the one before, bit by bit."""
    motion_rad: tuple[float, ...]
    """How far the joints moved in the step, as read."""


def watch_camera(
    robot: JointRobot, centre_rad: Float64Array, send: Callable[[Float64Array, float], None]
) -> CameraTrace:
    """Moves the first joint by fits and starts around a pose and looks at every control step.

    `send` sends one joint target and lets its period pass.

    Raises:
        RobotError: The robot or a camera stopped answering.
    """
    rng = np.random.default_rng(0)
    spec = robot.spec
    count = max(1, round(robot.joint_rate_hz / spec.control_rate_hz))
    reach = np.minimum(_REACH_RAD, np.array(spec.joint_max_speed_rad_s[:1])).item()
    target, width_m = centre_rad.copy(), spec.gripper_max_width_m / 2
    before: dict[str, NDArray[np.uint8]] = {}
    joints: list[Float64Array] = []
    change, same = [], []
    for _ in range(_STEPS):
        speed = rng.uniform(*_SPEED_RAD_S) if rng.random() < 0.5 else 0.0
        offset = target[0] - centre_rad[0]
        side = -np.sign(offset) if abs(offset) > reach / 2 else rng.choice((-1.0, 1.0))
        end = np.clip(offset + side * speed / spec.control_rate_hz, -reach, reach)
        for part in range(1, count + 1):
            target[0] = centre_rad[0] + offset + (end - offset) * part / count
            send(target, width_m)
        seen = robot.observe()
        joints.append(seen.joint_pos_rad.astype(np.float64))
        if before:
            pairs = [(seen.images[name], before[name]) for name in before]
            change.append(float(np.mean([np.abs(a.astype(np.int16) - b).mean() for a, b in pairs])))
            same.append(all(np.array_equal(a, b) for a, b in pairs))
        before = dict(seen.images)
    moved = np.abs(np.diff(np.stack(joints)[:, 0]))
    return CameraTrace(change=tuple(change), is_same=tuple(same), motion_rad=tuple(moved.tolist()))


def camera_estimates(trace: CameraTrace) -> dict[str, Estimate]:
    """Returns `frame_age_steps` and `frame_share`; nothing when the pictures do not follow the arm at all."""
    change, motion = np.array(trace.change), np.array(trace.motion_rad)
    most = min(_MAX_AGE, len(change) // 3)
    shown = change[most:]
    if len(shown) < 10 or shown.std() == 0.0 or motion.std() == 0.0:
        return {}
    costs = np.array([_misfit(shown, motion[most - age : len(motion) - age]) for age in range(most + 1)])
    age = int(costs.argmin())
    likely = np.flatnonzero(costs - costs[age] < _CHI2)
    # A step may be off by one where the arm's own delay shifts its motion between two pictures.
    found = Estimate(
        value=float(age), low=float(likely.min()), high=float(likely.max()), is_identified=len(likely) <= 2
    )
    earlier = motion[most - age : len(motion) - age]
    has_moved = earlier > _STILL_SHARE * earlier.mean()
    lost, moved = int(np.array(trace.is_same)[most:][has_moved].sum()), int(has_moved.sum())
    interval = wilson(lost, max(moved, 1))
    share = Estimate(
        value=min(0.9, lost / max(moved, 1)),
        low=min(0.9, interval.low),
        high=min(0.9, interval.high),
        is_identified=moved >= 20,
    )
    return {"frame_age_steps": found, "frame_share": share}


def _misfit(change: Float64Array, motion: Float64Array) -> float:
    """Minus twice the log likelihood of pictures that change in proportion to a motion, up to a constant."""
    columns = np.column_stack([motion, np.ones(len(motion))])
    left = change - columns @ np.linalg.lstsq(columns, change, rcond=None)[0]
    return float(len(change) * np.log((left**2).mean() + 1e-12))
