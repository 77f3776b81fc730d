"""The public check of a robot: run it on your own driver, `check_robot(MyRobot(...)).raise_if_failed()`.

It MOVES the robot: a few centimetres towards the middle of its workspace, up to the top of the workspace, the gripper
open and closed, and to the park position. Clear the space, keep a hand on the emergency stop. It checks what the
protocol promises, from the outside; it does not measure accuracy, force or latency.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from roboalign.sdk.control.limiter import MAX_PERIODS
from roboalign.sdk.errors import CheckFailed, LimitViolation, RobotError
from roboalign.sdk.robot import Robot
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, Applied, FloatArray, Observation, RobotSpec

__all__ = ["CheckResult", "ConformanceReport", "check_robot"]

_STILL_M = 0.003  # tool motion that counts as none: settling, sensor noise
_STILL_RAD = 0.01  # the same for a joint
_ROUNDING = 1e-4  # a float32 joint limit, a micrometre of the workspace
_MOVES = 4  # actions of one test move
_SETTLE_PERIODS = 10
_INSTRUCTION = "put the red block in the blue bowl"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """One claim about a robot, and whether it holds."""

    name: str
    """The claim, e.g. `a NaN in an action becomes a hold with a reason`."""
    is_ok: bool
    """True when the robot does as claimed."""
    detail: str = ""
    """What was found instead; empty when it holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConformanceReport:
    """What `check_robot` found."""

    robot: str
    """Name of the robot, from its spec."""
    checks: tuple[CheckResult, ...]
    """One entry per claim, in the order they were tried."""

    @property
    def is_ok(self) -> bool:
        """True when every claim holds."""
        return all(check.is_ok for check in self.checks)

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The claims that do not hold."""
        return tuple(check for check in self.checks if not check.is_ok)

    def raise_if_failed(self) -> None:
        """Raises `CheckFailed` that lists the claims that do not hold."""
        if not self.is_ok:
            lines = "; ".join(f"{check.name}: {check.detail}" for check in self.failed)
            raise CheckFailed(f"robot {self.robot!r} fails {len(self.failed)} of {len(self.checks)} checks: {lines}")

    def __str__(self) -> str:
        lines = [f"{'ok  ' if check.is_ok else 'FAIL'} {check.name}" for check in self.checks]
        details = [f": {check.detail}" if check.detail else "" for check in self.checks]
        return "\n".join(line + detail for line, detail in zip(lines, details, strict=True))


def check_robot(robot: Robot, *, sleep: Callable[[float], None] = time.sleep) -> ConformanceReport:
    """Connects a robot, moves it, stops it, and reports which promises of the `Robot` protocol it keeps.

    Never raises for what the robot does; of one that cannot be connected the rest is not tried. Leaves
    the robot disconnected.

    Args:
        robot: Not connected yet.
        sleep: Waits on hardware, whose `act` returns at once. A simulation, whose time moves with `act`, never waits.
    """
    trial = _Trial(robot, sleep)
    results = [_run(name, check, trial) for name, check in _BEFORE]
    connected = _run("connect opens the robot, twice does no harm", _check_connect, trial)
    results.append(connected)
    try:
        if connected.is_ok:
            results += [_run(name, check, trial) for name, check in _CHECKS]
    finally:
        results.append(_run("disconnect is idempotent and ends all motion", _check_disconnect, trial))
    return ConformanceReport(robot=str(getattr(getattr(robot, "spec", None), "name", robot)), checks=tuple(results))


class _Trial:
    """A robot under test, with every command it took."""

    def __init__(self, robot: Robot, sleep: Callable[[float], None]) -> None:
        self.robot = robot
        self._sleep = sleep
        self.sent: list[Applied] = []

    @property
    def spec(self) -> RobotSpec:
        return self.robot.spec

    def look(self) -> Observation:
        return self.robot.observe(with_images=False)

    def act(self, action: ArrayLike) -> Applied:
        return self._paced(lambda: self.robot.act(np.asarray(action, dtype=np.float32)))

    def hold(self) -> Applied:
        return self._paced(self.robot.hold)

    def settle(self) -> Observation:
        for _ in range(_SETTLE_PERIODS):
            self.hold()
        return self.look()

    def inwards(self, step_m: float) -> FloatArray:
        """An action that moves the tool `step_m` along z, towards the middle of the workspace, gripper open."""
        middle_m = 0.5 * (self.spec.workspace_lower_m[2] + self.spec.workspace_upper_m[2])
        sign = 1.0 if self.look().state[2] < middle_m else -1.0
        return np.array((0.0, 0.0, sign * step_m, 0.0, 1.0), dtype=np.float32)

    def _paced(self, command: Callable[[], Applied]) -> Applied:
        before_s = self.look().time_s
        applied = command()
        self.sent.append(applied)
        left_s = 1.0 / self.spec.control_rate_hz - (self.look().time_s - before_s)
        if left_s > 1e-6:
            self._sleep(left_s)
        return applied


def _expect(is_ok: bool | np.bool_, found: str) -> None:
    if not is_ok:
        raise CheckFailed(found)


def _refuses(call: Callable[[], object], kind: type[Exception], what: str) -> None:
    try:
        call()
    except kind:
        return
    raise CheckFailed(f"{what} did not raise {kind.__name__}")


def _run(name: str, check: Callable[[_Trial], None], trial: _Trial) -> CheckResult:
    try:
        check(trial)
    except CheckFailed as err:
        return CheckResult(name=name, is_ok=False, detail=str(err))
    except Exception as err:  # noqa: BLE001 - foreign code under test: whatever it raises is the finding
        return CheckResult(name=name, is_ok=False, detail=f"raised {type(err).__name__}: {err}")
    return CheckResult(name=name, is_ok=True)


def _check_protocol(trial: _Trial) -> None:
    names = ("spec", "connect", "observe", "act", "hold", "park", "estop", "disconnect")
    missing = [name for name in names if not hasattr(trial.robot, name)]
    _expect(not missing, f"lacks {', '.join(missing)}")


def _check_spec(trial: _Trial) -> None:
    spec = trial.spec
    _expect(spec.action_names == ACTION_NAMES, f"action_names are {spec.action_names}, expected {ACTION_NAMES}")
    _expect(spec.state_names == STATE_NAMES, f"state_names are {spec.state_names}, expected {STATE_NAMES}")
    for names in (spec.joint_names, spec.camera_names):
        _expect(len(set(names)) == len(names), f"names repeat: {names}")
    for name in ("gripper_max_width_m", "max_step_m", "max_step_rad", "control_rate_hz", "image_size_px"):
        value = getattr(spec, name)
        _expect(math.isfinite(value) and value > 0, f"{name} is {value}")
    lower, upper = np.array(spec.joint_lower_rad), np.array(spec.joint_upper_rad)
    for name in ("home_joint_pos_rad", "park_joint_pos_rad"):
        joints = np.array(getattr(spec, name))
        _expect(((joints >= lower) & (joints <= upper)).all(), f"{name} {joints} is outside the joint limits")
    speed = np.array(spec.joint_max_speed_rad_s)
    _expect((np.isfinite(speed) & (speed > 0)).all(), f"joint_max_speed_rad_s is {speed}")
    low, high = np.array(spec.workspace_lower_m), np.array(spec.workspace_upper_m)
    _expect((np.isfinite(low) & np.isfinite(high) & (low < high)).all(), f"workspace is {low} to {high}")


def _check_unconnected(trial: _Trial) -> None:
    still = np.array((0, 0, 0, 0, 1), np.float32)
    _refuses(lambda: trial.robot.act(still), RobotError, "act before connect")
    _refuses(trial.robot.observe, RobotError, "observe before connect")


def _check_connect(trial: _Trial) -> None:
    trial.robot.connect()
    trial.robot.connect()


def _check_observe(trial: _Trial) -> None:
    spec = trial.spec
    seen = trial.robot.observe(_INSTRUCTION)
    _expect(seen.instruction == _INSTRUCTION, f"the instruction came back as {seen.instruction!r}")
    _expect(seen.joint_pos_rad.shape == (spec.num_joints,), f"joint_pos_rad has shape {seen.joint_pos_rad.shape}")
    low = np.array(spec.joint_lower_rad) - _STILL_RAD
    high = np.array(spec.joint_upper_rad) + _STILL_RAD
    is_inside = (seen.joint_pos_rad >= low) & (seen.joint_pos_rad <= high)
    _expect(is_inside.all(), f"joints {seen.joint_pos_rad} are outside their limits")
    width_m = float(seen.state[4])
    is_width_ok = -_STILL_M <= width_m <= spec.gripper_max_width_m + _STILL_M
    _expect(is_width_ok, f"gripper width is {width_m} m, expected 0 to {spec.gripper_max_width_m}")
    size = (spec.image_size_px, spec.image_size_px, 3)
    _expect(set(seen.images) == set(spec.camera_names), f"cameras {sorted(seen.images)}, expected {spec.camera_names}")
    for name, image in seen.images.items():
        _expect(image.shape == size, f"image {name!r} has shape {image.shape}, expected {size}")
    blind = trial.robot.observe(with_images=False)
    _expect(not blind.images, "with_images=False gave images")
    _expect(math.isfinite(blind.time_s) and blind.time_s >= seen.time_s, f"time went {seen.time_s} to {blind.time_s}")


def _check_small_move(trial: _Trial) -> None:
    action = trial.inwards(0.25 * trial.spec.max_step_m)
    before = trial.settle().state
    for _ in range(_MOVES):
        applied = trial.act(action)
        _expect(np.allclose(applied.requested, action), f"requested {action}, reported as {applied.requested}")
        _expect(not applied.reasons, f"a small move inside the workspace was changed: {applied.reasons}")
        _expect(np.allclose(applied.sent, action, atol=1e-6), f"sent {applied.sent} for {action} without a reason")
    moved = trial.settle().state - before
    wanted_m = _MOVES * float(action[2])
    _expect(0.5 <= moved[2] / wanted_m <= 1.5, f"asked for {wanted_m:.3f} m along z, moved {moved[2]:.3f} m")
    _expect(np.abs(moved[:2]).max() < _STILL_M, f"moved {moved[:2]} m sideways")


def _check_step_limit(trial: _Trial) -> None:
    spec = trial.spec
    action = trial.inwards(10 * spec.max_step_m)
    before = trial.settle().state
    applied = trial.act(action)
    _expect(abs(applied.sent[2]) <= spec.max_step_m + 1e-6, f"sent dz {applied.sent[2]} m, limit {spec.max_step_m} m")
    _expect(any("dz_m" in reason for reason in applied.reasons), f"no reason names dz_m: {applied.reasons}")
    moved_m = abs(float(trial.settle().state[2] - before[2]))
    _expect(moved_m <= spec.max_step_m + _STILL_M, f"moved {moved_m:.3f} m in one action")


def _check_not_finite(trial: _Trial) -> None:
    before = trial.settle()
    for index, name in enumerate(ACTION_NAMES):
        for bad in (math.nan, math.inf, -math.inf):
            action = trial.inwards(trial.spec.max_step_m)
            action[index] = bad
            applied = trial.act(action)
            _expect(bool(applied.reasons), f"{name} = {bad} gave no reason")
            _expect(np.isfinite(applied.sent).all(), f"{name} = {bad} was sent as {applied.sent}")
            _expect(not applied.sent[:4].any(), f"{name} = {bad} still sent a displacement {applied.sent[:4]}")
    _expect_still(before, trial.look(), "actions that are not finite")


def _check_workspace(trial: _Trial) -> None:
    spec = trial.spec
    top_m = spec.workspace_upper_m[2]
    start_m = float(trial.settle().state[2])
    up = np.array((0, 0, spec.max_step_m, 0, 1), np.float32)
    reasons: tuple[str, ...] = ()
    for _ in range(math.ceil(max(0.0, top_m - start_m) / spec.max_step_m) + 2):
        reasons = trial.act(up).reasons
    _expect(bool(reasons), f"asked to rise above the workspace ({top_m} m) and gave no reason")
    height_m = float(trial.settle().state[2])
    _expect(height_m <= max(top_m, start_m) + _STILL_M, f"rose to {height_m:.3f} m, workspace ends at {top_m} m")


def _check_gripper(trial: _Trial) -> None:
    widths_m = []
    for opening in (1.0, 0.0, 1.0):
        for _ in range(_SETTLE_PERIODS):
            trial.act((0, 0, 0, 0, opening))
        widths_m.append(float(trial.look().state[4]))
    is_ok = widths_m[1] < 0.5 * trial.spec.gripper_max_width_m < min(widths_m[0], widths_m[2])
    _expect(is_ok, f"open, closed, open gave widths {widths_m} m")


def _check_hold(trial: _Trial) -> None:
    before = trial.settle()
    for _ in range(_SETTLE_PERIODS):
        applied = trial.hold()
        _expect(not applied.sent[:4].any(), f"hold sent a displacement {applied.sent[:4]}")
    _expect_still(before, trial.look(), "hold")


def _check_shape(trial: _Trial) -> None:
    for shape in ((0,), (4,), (6,), (1, 5)):
        action = np.zeros(shape, np.float32)
        _refuses(lambda action=action: trial.robot.act(action), LimitViolation, f"an action of shape {shape}")  # type: ignore[misc]


def _check_joint_targets(trial: _Trial) -> None:
    spec = trial.spec
    targets = np.array([applied.joint_target_rad for applied in trial.sent], dtype=np.float64)
    _expect(targets.shape == (len(trial.sent), spec.num_joints), f"joint targets have shape {targets.shape}")
    low, high = np.array(spec.joint_lower_rad) - _ROUNDING, np.array(spec.joint_upper_rad) + _ROUNDING
    _expect(((targets >= low) & (targets <= high)).all(), "a joint target was outside the limits")
    fastest = np.abs(np.diff(targets, axis=0)) * spec.control_rate_hz / MAX_PERIODS
    is_ok = (fastest <= np.array(spec.joint_max_speed_rad_s) + _ROUNDING).all()
    _expect(is_ok, f"joint targets moved at up to {fastest.max(axis=0, initial=0.0)} rad/s")


def _check_park(trial: _Trial) -> None:
    trial.robot.park()
    error = np.abs(trial.look().joint_pos_rad - np.array(trial.spec.park_joint_pos_rad))
    _expect(error.max() <= 5 * _STILL_RAD, f"parked {error} rad away from park_joint_pos_rad")


def _check_estop(trial: _Trial) -> None:
    trial.robot.estop()
    trial.robot.estop()
    stopped = trial.look()
    still = np.array((0, 0, 0, 0, 1), np.float32)
    _refuses(lambda: trial.robot.act(still), RobotError, "act after estop")
    _refuses(trial.robot.hold, RobotError, "hold after estop")
    _refuses(trial.robot.park, RobotError, "park after estop")
    _refuses(trial.robot.connect, RobotError, "connect after estop, without rearm,")
    _expect_still(stopped, trial.look(), "estop")
    trial.robot.connect(rearm=True)
    trial.hold()


def _check_disconnect(trial: _Trial) -> None:
    trial.robot.disconnect()
    trial.robot.disconnect()
    _refuses(trial.robot.hold, RobotError, "hold after disconnect")


def _expect_still(before: Observation, after: Observation, what: str) -> None:
    joints = np.abs(after.joint_pos_rad - before.joint_pos_rad).max()
    tool_m = np.abs(after.state[:3] - before.state[:3]).max()
    _expect(joints <= _STILL_RAD, f"{what} moved a joint by {joints:.4f} rad")
    _expect(tool_m <= _STILL_M, f"{what} moved the tool by {tool_m:.4f} m")


_BEFORE = (
    ("it has every method of the Robot protocol", _check_protocol),
    ("its spec can be read before connecting and is sane", _check_spec),
    ("it refuses to act before it is connected", _check_unconnected),
)
_CHECKS = (
    ("observations have the shapes and limits of the spec", _check_observe),
    ("a small action moves the tool by as much", _check_small_move),
    ("a step above the limit is clamped, with a reason", _check_step_limit),
    ("an action that is not finite becomes a hold, with a reason", _check_not_finite),
    ("the workspace is not left, with a reason", _check_workspace),
    ("the gripper opens and closes", _check_gripper),
    ("hold keeps its position", _check_hold),
    ("an action of the wrong shape is refused", _check_shape),
    ("joint targets stay inside position and speed limits", _check_joint_targets),
    ("park arrives at the park position", _check_park),
    ("estop latches until connect(rearm=True)", _check_estop),
)
