"""The safe wiggle: joint targets that show every part of a servo's dynamics, planned and checked before it moves.

All joints move at once and independently around one pose, in three kinds of motion: slow ways with reversals (play,
dead band), long fast ways (delay, top speed), and short ones at full acceleration (gain, damping). Rests lie between.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roboalign.sdk.control.kinematics import Kinematics
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.types import RobotSpec

__all__ = ["Wiggle", "WiggleConfig", "check_wiggle", "find_centre", "plan_wiggle"]

Float64Array = NDArray[np.float64]

_MARGIN_RAD = 0.1  # between the widest target and a joint's limit
_REST_S, _GAP_S = 1.5, 0.25
_SLOW_RAD_S = (0.06, 0.5)
_SHORT_RAD = (0.08, 0.3)
_SHARES = (("slow", 0.15), ("fast", 0.1), ("short", 0.75))
_CYCLE_S = 10.0  # after so long every kind of motion has been seen once
_TRIES = 600
_MIN_REACH_M = 0.08  # of the tool from the base's axis: nearer, it may hit its own base
_SPEED_SHARE = 0.99  # of the speed limit, so that the limiter has nothing to say


@dataclass(frozen=True, kw_only=True, slots=True)
class WiggleConfig:
    """How far, how hard and how long."""

    duration_s: float = 180.0
    """Time of the whole wiggle without the way to its first pose."""
    amplitude_rad: float = 0.3
    """How far each joint goes from the middle pose, at most."""
    acceleration_rad_s2: float = 36.0
    """Largest acceleration of a target; less where the robot allows less."""
    clearance_m: float = 0.06
    """How far above the table (z = 0) the tool stays at least, whatever the joints combine to."""
    seed: int = 0
    """Chooses the ways; equal seeds give equal wiggles."""

    def __post_init__(self) -> None:
        for name, low, high in (("duration_s", 5.0, 900.0), ("amplitude_rad", 0.05, 1.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"WiggleConfig.{name} is {value}, expected {low:g} to {high:g}")
        if not self.acceleration_rad_s2 > 0:
            raise ConfigError(f"WiggleConfig.acceleration_rad_s2 is {self.acceleration_rad_s2}, expected more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wiggle:
    """A planned wiggle."""

    rate_hz: float
    """Targets a second."""
    centre_rad: tuple[float, ...]
    """Pose in the middle, where it begins and ends."""
    targets_rad: Float64Array
    """float64[K, J], joint targets."""
    widths_m: Float64Array
    """float64[K], distances between the fingers."""


def find_centre(spec: RobotSpec, kinematics: Kinematics, config: WiggleConfig) -> tuple[float, ...]:
    """Returns the pose nearest to home around which every combination of the joints stays clear.

    Raises:
        ConfigError: There is none; nothing has moved.
    """
    reach = config.amplitude_rad + _MARGIN_RAD
    low, high = np.array(spec.joint_lower_rad) + reach, np.array(spec.joint_upper_rad) - reach
    cramped = [name for name, a, b in zip(spec.joint_names, low, high, strict=True) if a > b]
    if cramped:
        raise ConfigError(
            f"{spec.name}: {', '.join(cramped)} cannot turn by {config.amplitude_rad:g} rad both ways inside its "
            "limits with a margin; give a smaller amplitude"
        )
    home = np.clip(np.array(spec.home_joint_pos_rad), low, high)
    rng = np.random.default_rng(0)
    tries = home + rng.normal(0.0, 0.7, (_TRIES, spec.num_joints)) * (np.arange(_TRIES) > 0)[:, None]
    tries = np.clip(tries, low, high)
    for index in np.argsort(np.abs(tries - home).max(1), kind="stable"):
        pose = tuple(tries[index].tolist())
        if not _why_unsafe(spec, kinematics, pose, config):
            return pose
    raise ConfigError(
        f"{spec.name}: no pose was found around which the tool stays {config.clearance_m:g} m above the table while "
        f"every joint turns by {config.amplitude_rad:g} rad; give a smaller amplitude"
    )


def check_wiggle(spec: RobotSpec, kinematics: Kinematics, wiggle: Wiggle, config: WiggleConfig) -> None:
    """Refuses a wiggle that would hit a limit or the table.

    Raises:
        ConfigError: It would; the message says which joint or how low. Nothing has moved.
    """
    low, high = np.array(spec.joint_lower_rad), np.array(spec.joint_upper_rad)
    margin = _MARGIN_RAD / 2
    for index, name in enumerate(spec.joint_names):
        least, most = float(wiggle.targets_rad[:, index].min()), float(wiggle.targets_rad[:, index].max())
        if least < low[index] + margin or most > high[index] - margin:
            raise ConfigError(
                f"{name} would go from {least:.2f} to {most:.2f} rad, its limits are {low[index]:.2f} to "
                f"{high[index]:.2f} with a margin of {margin:g}; nothing has moved: give a smaller amplitude"
            )
    problem = _why_unsafe(spec, kinematics, wiggle.centre_rad, config)
    if problem:
        raise ConfigError(f"{spec.name}: {problem}; nothing has moved: give a smaller amplitude or another pose")


def _why_unsafe(spec: RobotSpec, kinematics: Kinematics, pose: ArrayLike, config: WiggleConfig) -> str:
    """Looks at every corner of the box of joint targets; a late joint is still inside it."""
    centre = np.asarray(pose, np.float64)
    for corner in itertools.product((-1.0, 1.0), repeat=spec.num_joints):
        x, y, z = kinematics.forward(centre + config.amplitude_rad * np.array(corner))[:3, 3].tolist()
        if z < config.clearance_m:
            return f"the tool would come to {z:.3f} m above the table, at least {config.clearance_m:g} are wanted"
        if (x * x + y * y) ** 0.5 < _MIN_REACH_M and z < 3 * config.clearance_m:
            return "the tool would come too near to its own base"
    return ""


def plan_wiggle(
    spec: RobotSpec, centre_rad: ArrayLike, config: WiggleConfig, *, rate_hz: float, gripper_speed_m_s: float = 0.05
) -> Wiggle:
    """Returns the targets of a wiggle around a pose."""
    centre = np.asarray(centre_rad, np.float64)
    count = int(config.duration_s * rate_hz)
    limit = min(config.acceleration_rad_s2, *(spec.joint_max_accel_rad_s2 or (config.acceleration_rad_s2,)))
    columns = []
    for joint in range(spec.num_joints):
        rng = np.random.default_rng((config.seed, joint))
        top = _SPEED_SHARE * spec.joint_max_speed_rad_s[joint]
        columns.append(centre[joint] + _way(rng, count, rate_hz, config.amplitude_rad, top, limit))
    half_m = spec.gripper_max_width_m / 2
    rng = np.random.default_rng((config.seed, spec.num_joints))
    widths = half_m + _way(rng, count, rate_hz, 0.8 * half_m, gripper_speed_m_s, 20.0 * gripper_speed_m_s)
    step = max(1, round(rate_hz / spec.control_rate_hz))  # pictures come by whole control steps
    most = step * -(-max(len(widths), *(len(column) for column in columns)) // step)
    padded = [np.append(column, np.full(most - len(column), column[-1])) for column in (*columns, widths)]
    return Wiggle(
        rate_hz=rate_hz,
        centre_rad=tuple(centre.tolist()),
        targets_rad=np.stack(padded[:-1], 1),
        widths_m=padded[-1],
    )


def _way(
    rng: np.random.Generator, count: int, rate_hz: float, amplitude: float, top_speed: float, acceleration: float
) -> Float64Array:
    """Returns about `count` positions, one joint's way from the middle and back to it."""
    parts: list[Float64Array] = [np.zeros(int(_REST_S * rate_hz))]
    body = count - 2 * len(parts[0])
    position = 0.0
    cycles = max(1, round(body / rate_hz / _CYCLE_S))
    for kind, share in _SHARES * cycles:
        left = int(share * body / cycles)
        while left > 0:
            end, speed, rest_s = _next(rng, kind, position, amplitude, top_speed, acceleration)
            move = _trapezoid(position, end, speed, acceleration, rate_hz)
            parts.append(np.append(move, np.full(int(rest_s * rate_hz), end)))
            left -= max(1, len(parts[-1]))
            position = end
    back = _trapezoid(position, 0.0, 0.5 * top_speed, 0.5 * acceleration, rate_hz)
    return np.concatenate([*parts, back, np.zeros(int(_REST_S / 2 * rate_hz))])


def _next(
    rng: np.random.Generator, kind: str, position: float, amplitude: float, top_speed: float, acceleration: float
) -> tuple[float, float, float]:
    """Returns where the next way ends, how fast it is, and how long it rests there."""
    side = -1.0 if position > 0 else 1.0
    if kind == "slow":
        low, high = (min(speed, top_speed) for speed in _SLOW_RAD_S)
        speed = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        way = min(1.6 * amplitude, speed * rng.uniform(0.25, 0.8))
        rest_s = _GAP_S if rng.random() < 0.3 else 0.0
    elif kind == "fast":
        speed = top_speed * rng.uniform(0.5, 1.0) if rng.random() < 0.5 else top_speed
        return side * amplitude * float(rng.uniform(0.7, 1.0)), speed, _GAP_S if rng.random() < 0.4 else 0.0
    else:
        speed = top_speed
        way = min(1.2 * amplitude, float(np.exp(rng.uniform(*np.log(_SHORT_RAD)))))
        rest_s = 0.12 if rng.random() < 0.15 else 0.0
    end = position + side * way
    return float(np.clip(end, -amplitude, amplitude)), speed, rest_s


def _trapezoid(start: float, end: float, speed: float, acceleration: float, rate_hz: float) -> Float64Array:
    """Returns the positions of a way after each period: speed up, keep the speed, slow down."""
    length = abs(end - start)
    if length < 1e-9:
        return np.zeros(0)
    peak = min(speed, (length * acceleration) ** 0.5)
    ramp_s, total_s = peak / acceleration, length / peak + peak / acceleration
    times = np.minimum(np.arange(1, int(np.ceil(total_s * rate_hz)) + 1) / rate_hz, total_s)
    first = 0.5 * acceleration * np.minimum(times, ramp_s) ** 2
    middle = peak * np.clip(times - ramp_s, 0.0, total_s - 2 * ramp_s)
    late = np.clip(times - (total_s - ramp_s), 0.0, ramp_s)
    done = first + middle + peak * late - 0.5 * acceleration * late**2
    return np.asarray(start + np.sign(end - start) * done)
