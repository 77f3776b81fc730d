"""The types that cross every boundary: what a robot senses, what a policy answers, what was really sent.

Units are SI; angles are radians; frames are right-handed. "Tool" is the point between the fingertips (TCP), "base" the
robot's base link. Shapes are `[T, A]` with T steps and A action fields. Arrays are checked once, when an object is
made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError, DataError

__all__ = [
    "ACTION_NAMES",
    "COMMANDED_STATE_NAMES",
    "STATES",
    "STATE_NAMES",
    "THOUGHT_STATUSES",
    "ActionChunk",
    "Applied",
    "FloatArray",
    "ImageArray",
    "Observation",
    "RobotSpec",
    "ThoughtUse",
]

FloatArray = NDArray[np.float32]
ImageArray = NDArray[np.uint8]

STATE_NAMES = ("tool_x_m", "tool_y_m", "tool_z_m", "tool_yaw_rad", "gripper_width_m")
"""Fields of `Observation.state`: tool pose in the base frame (tool pointing down) and the distance between the
fingers."""

COMMANDED_STATE_NAMES = ("commanded_x_m", "commanded_y_m", "commanded_z_m", "commanded_yaw_rad", "gripper_width_m")
"""The same with the tool not where the joints are, but where it was last sent: what an action displaces. On an arm that
is late the two differ. The width stays the measured one, which tells whether something is held."""

STATES = {"measured": STATE_NAMES, "commanded": COMMANDED_STATE_NAMES}
"""The states that a policy may learn from, by the word that settings use."""

ACTION_NAMES = ("dx_m", "dy_m", "dz_m", "dyaw_rad", "gripper_open")
"""Fields of one action: displacement of the tool target during one control period, in the base frame, and the gripper
command (1 = fully open, 0 = closed)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RobotSpec:
    """What is fixed about a robot: names, limits and rates. Can be read before the robot is connected."""

    name: str
    """Registered name of the robot, e.g. `panda`."""
    joint_names: tuple[str, ...]
    """Arm joints in the order of every joint vector (the gripper is not among them)."""
    joint_lower_rad: tuple[float, ...]
    """Lower position limit of each joint."""
    joint_upper_rad: tuple[float, ...]
    """Upper position limit of each joint."""
    joint_max_speed_rad_s: tuple[float, ...]
    """Speed limit of each joint."""
    home_joint_pos_rad: tuple[float, ...]
    """Joint positions at the start of an episode."""
    park_joint_pos_rad: tuple[float, ...]
    """Joint positions in which the arm can be left alone."""
    gripper_max_width_m: float
    """Distance between the fingers when fully open."""
    workspace_lower_m: tuple[float, float, float]
    """Smallest tool position in the base frame that a command may ask for."""
    workspace_upper_m: tuple[float, float, float]
    """Largest tool position in the base frame that a command may ask for."""
    max_step_m: float
    """Largest displacement of the tool in one control period, per axis."""
    max_step_rad: float
    """Largest yaw change in one control period."""
    control_rate_hz: float
    """Rate at which actions are applied."""
    camera_names: tuple[str, ...]
    """Cameras in `Observation.images`."""
    image_size_px: int
    """Height and width of every camera image."""
    joint_max_accel_rad_s2: tuple[float, ...] = ()
    """How fast the speed of each joint's target may rise; empty sets no limit. Slowing down is never limited."""
    state_names: tuple[str, ...] = STATE_NAMES
    """Fields of `Observation.state`."""
    action_names: tuple[str, ...] = ACTION_NAMES
    """Fields of an action."""

    def __post_init__(self) -> None:
        num_joints = len(self.joint_names)
        for name in (
            "joint_lower_rad",
            "joint_upper_rad",
            "joint_max_speed_rad_s",
            "home_joint_pos_rad",
            "park_joint_pos_rad",
            *(("joint_max_accel_rad_s2",) if self.joint_max_accel_rad_s2 else ()),
        ):
            if len(getattr(self, name)) != num_joints:
                raise ConfigError(
                    f"RobotSpec.{name} has {len(getattr(self, name))} entries, expected one for each of the "
                    f"{num_joints} joints"
                )
        for name, low, high in zip(self.joint_names, self.joint_lower_rad, self.joint_upper_rad, strict=True):
            if not low < high:
                raise ConfigError(f"RobotSpec: joint {name} has lower limit {low} >= upper limit {high}")

    @property
    def num_joints(self) -> int:
        """Number of arm joints."""
        return len(self.joint_names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What the robot senses at one moment, with the instruction it is following."""

    images: Mapping[str, ImageArray]
    """uint8[H, W, 3] RGB per camera name. May be empty when no picture was asked for."""
    state: FloatArray
    """float32[5] in the order of `STATE_NAMES`."""
    joint_pos_rad: FloatArray
    """float32[J] in the order of `RobotSpec.joint_names`."""
    instruction: str
    """The sentence to follow."""
    time_s: float
    """Monotonic time at which the state was read."""
    commanded: FloatArray | None = None
    """float32[4], x, y, z and yaw of the tool where it was last sent, as in `state`; None where nobody says."""

    def __post_init__(self) -> None:
        state = np.asarray(self.state, dtype=np.float32)
        if state.shape != (len(STATE_NAMES),):
            raise DataError(
                f"observation state has shape {state.shape}, expected ({len(STATE_NAMES)},): {', '.join(STATE_NAMES)}"
            )
        values: list[float] = state.tolist()  # numbers: looking at arrays of five takes ten times as long
        if not all(map(math.isfinite, values)):
            bad = [name for name, value in zip(STATE_NAMES, values, strict=True) if not math.isfinite(value)]
            raise DataError(f"observation state is not finite in {', '.join(bad)}; check the sensor or the calibration")
        joints = np.asarray(self.joint_pos_rad, dtype=np.float32)
        if joints.ndim != 1 or not all(map(math.isfinite, joints.tolist())):
            raise DataError(f"observation joint_pos_rad must be a finite vector, found {joints}")
        for name, image in self.images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise DataError(
                    f"image {name!r} is {image.dtype}{list(image.shape)}, expected uint8[height, width, 3] RGB"
                )
        if self.commanded is not None:
            commanded = np.asarray(self.commanded, dtype=np.float32)
            if commanded.shape != (4,) or not all(map(math.isfinite, commanded.tolist())):
                raise DataError(f"observation commanded is {commanded}, expected 4 finite numbers: x, y, z and yaw")
            object.__setattr__(self, "commanded", commanded)
        object.__setattr__(self, "state", state)
        object.__setattr__(self, "joint_pos_rad", joints)
        object.__setattr__(self, "images", MappingProxyType(dict(self.images)))

    def state_of(self, names: tuple[str, ...]) -> FloatArray:
        """Returns float32[5], the state in the order of `STATE_NAMES` or of `COMMANDED_STATE_NAMES`.

        Raises:
            DataError: The names are others, or the robot does not say where its tool was sent.
        """
        if names == STATE_NAMES:
            return self.state
        if names != COMMANDED_STATE_NAMES:
            raise DataError(f"the state {', '.join(names)} is unknown, expected one of {', '.join(STATES)}")
        if self.commanded is None:
            raise DataError(
                "where the tool was sent is asked for, and the observation does not say where that is; give "
                "Observation.commanded, or take the measured state"
            )
        return np.append(self.commanded, self.state[4:])


THOUGHT_STATUSES = ("awaited", "fresh", "held", "expired", "instruction_changed", "none", "failed")
"""What became of the newest thought: `awaited`, `fresh` and `held` were acted on: the answer waited for it (thinking
beside), for the first time, and again; `expired` and `instruction_changed` were dropped; `none` is finished yet;
`failed` says that the thinker could not write one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThoughtUse:
    """Which thought a chunk was made with, how old that was, and why there was none."""

    status: str
    """One of `THOUGHT_STATUSES`."""
    id: int | None = None
    """Number of the thought in its episode, from 1; None where there was none."""
    age_s: float | None = None
    """Time since it was finished, when the actions were begun."""
    image_age_s: float | None = None
    """Time since the policy was given the picture that it is about."""
    reason: str | None = None
    """Why no thought was used, or why none newer came; None where nothing is wrong."""

    def __post_init__(self) -> None:
        if self.status not in THOUGHT_STATUSES:
            raise DataError(f"the thought's status is {self.status!r}, expected one of {', '.join(THOUGHT_STATUSES)}")

    @property
    def is_used(self) -> bool:
        """Whether the actions are conditioned on a thought."""
        return self.status in ("awaited", "fresh", "held")


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionChunk:
    """A policy's answer: the next T actions, and why."""

    actions: FloatArray
    """float32[T, A] in the order of `ACTION_NAMES`; T is 0 exactly when `source` is `hold`."""
    rate_hz: float
    """Rate at which the actions are meant to be applied."""
    source: str
    """Who acted: `flow` (action head), `fast` (decoded action tokens), `expert`, `random`, or `hold` (no usable
    answer)."""
    thought: str | None = None
    """The reasoning text that the actions are conditioned on; None when the policy did not think."""
    reason: str | None = None
    """Why the policy holds; None unless `source` is `hold`."""
    tokens: tuple[int, ...] = ()
    """Ids of the tokens that were generated, thought and action tokens alike."""
    latency_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds spent in each part (`vision_prompt`, `thought`, `action`, `total`); `wait` for a thinker's pass."""
    thought_use: ThoughtUse | None = None
    """Which thought it was and how old; None when the policy does not think, or was told what to think."""

    def __post_init__(self) -> None:
        actions = np.asarray(self.actions, dtype=np.float32)
        if actions.ndim != 2 or actions.shape[1] != len(ACTION_NAMES):
            raise DataError(f"actions have shape {actions.shape}, expected (steps, {len(ACTION_NAMES)})")
        if not np.isfinite(actions).all():
            raise DataError("actions are not finite; a policy must answer 'hold' instead")
        if (self.source == "hold") != (len(actions) == 0):
            raise DataError(f"source is {self.source!r} but there are {len(actions)} actions; only a hold has none")
        if self.source == "hold" and not self.reason:
            raise DataError("a hold needs a reason")
        object.__setattr__(self, "actions", actions)

    @classmethod
    def hold(
        cls, reason: str, *, rate_hz: float, thought: str | None = None, tokens: tuple[int, ...] = ()
    ) -> ActionChunk:
        """Returns the answer that asks the robot to stay where it is, and says why."""
        empty = np.zeros((0, len(ACTION_NAMES)), np.float32)
        return cls(actions=empty, rate_hz=rate_hz, source="hold", reason=reason, thought=thought, tokens=tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """What was really sent to the robot for one action, and why it differs from what was asked."""

    requested: FloatArray
    """float32[A] as the policy asked, in the order of `ACTION_NAMES`."""
    sent: FloatArray
    """float32[A] as sent, after the limiter."""
    joint_target_rad: FloatArray
    """float32[J] joint targets that were commanded."""
    reasons: tuple[str, ...] = ()
    """One entry for each change, e.g. `dz_m: below the workspace`; empty when nothing was changed."""

    @property
    def is_changed(self) -> bool:
        """True when the command was clamped, replaced by a hold, or refused."""
        return bool(self.reasons)
