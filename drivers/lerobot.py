"""LeRobot's robots, and those of installed `lerobot_robot_*` packages, as a `Robot`. The way back is `lerobot_arm`.

What LeRobot asks of a robot is a set of names (`observation_features`, `action_features`, `connect`, `get_observation`,
`send_action`, `disconnect`, ...), not a base class, so nothing here imports lerobot; `make_lerobot_device` does, when
it is called, and `roboalign.drivers.lerobot_plugin` is what LeRobot's own commands load. Written for lerobot 0.6.1.

A LeRobot device has no telemetry, no emergency stop and, by its default, drops its torque when it is disconnected. Its
`Robot` here limits every command as ours do, but can stop it only by commanding the position that was last read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from roboalign.drivers.arm.files import CameraFile
from roboalign.drivers.cameras import check_camera_names, prepare_image
from roboalign.sdk.control.cartesian import CartesianController
from roboalign.sdk.control.kinematics import Kinematics, state_from_pose
from roboalign.sdk.errors import BackendError, ConfigError, DataError, RobotError, RobotTimeout, unknown_name
from roboalign.sdk.types import Applied, FloatArray, ImageArray, Observation, RobotSpec

__all__ = ["GripperScale", "LeRobotDevice", "LeRobotRobot", "adapt_lerobot", "make_lerobot_device"]

_GRIPPER_KEY = "gripper.pos"
_CLIPPED_DEG = 0.5  # a device that sent another value than this far off has clipped it
_PARK_TIMEOUT_S = 20.0
_PARK_TOLERANCE_RAD = 0.05
_FOREIGN = (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)


@runtime_checkable
class LeRobotDevice(Protocol):
    """The names of `lerobot.robots.Robot` that are used here."""

    name: str

    @property
    def observation_features(self) -> Mapping[str, object]:
        """By key: `float`, or the shape of a picture."""
        ...

    @property
    def action_features(self) -> Mapping[str, object]:
        """By key: `float`."""
        ...

    @property
    def is_connected(self) -> bool:
        """True between `connect` and `disconnect`."""
        ...

    @property
    def is_calibrated(self) -> bool:
        """True when it needs no calibration."""
        ...

    def connect(self, calibrate: bool = True) -> None:
        """Opens it."""
        ...

    def get_observation(self) -> Mapping[str, Any]:
        """Returns values and pictures by key."""
        ...

    def send_action(self, action: dict[str, Any]) -> Mapping[str, Any]:
        """Sends targets by key and returns those that were really sent."""
        ...

    def disconnect(self) -> None:
        """Closes it."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class GripperScale:
    """How LeRobot's 0 (closed) to 100 (open) becomes the distance between the fingers, and back."""

    width_m: Callable[[float], float]
    """Distance for a percentage."""
    percent: Callable[[float], float]
    """Percentage for a distance."""

    @classmethod
    def linear(cls, max_width_m: float) -> GripperScale:
        """Returns the scale of a gripper whose fingers move in proportion."""
        return cls(width_m=lambda percent: max_width_m * percent / 100, percent=lambda width: 100 * width / max_width_m)


class LeRobotRobot:
    """A LeRobot device as a `Robot`. Everything that moves goes through `CartesianController`.

    Joint values are LeRobot's degrees (`use_degrees=True`, its default): zero is the middle of the calibrated range,
    which must be the zero of `kinematics`.
    """

    def __init__(
        self,
        device: LeRobotDevice,
        spec: RobotSpec,
        kinematics: Kinematics,
        *,
        gripper: GripperScale | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Stores the arguments; nothing is opened.

        Raises:
            ConfigError: The device lacks a joint or a camera of `spec`.
        """
        self.device = device
        self._spec = spec
        self._kinematics = kinematics
        self._gripper = gripper if gripper is not None else GripperScale.linear(spec.gripper_max_width_m)
        self._clock, self._sleep = clock, sleep
        self._keys = tuple(f"{name}.pos" for name in spec.joint_names)
        self._controller: CartesianController | None = None
        self._is_stopped = False
        self._joints = np.zeros(spec.num_joints)
        self._width_m = 0.0
        self._read_s = -math.inf
        self._check_features()

    @property
    def spec(self) -> RobotSpec:
        """Names, limits and rates."""
        return self._spec

    def connect(self, *, rearm: bool = False) -> None:
        """Opens the device without calibrating it and holds where it is.

        Raises:
            RobotError: It does not open, is not calibrated, or was stopped and `rearm` is false.
        """
        if self._is_stopped and not rearm:
            raise RobotError("the robot was stopped; look at it, then call connect(rearm=True)")
        if self._controller is not None and not self._is_stopped:
            return
        if not self.device.is_connected:
            self._foreign("connect", lambda: self.device.connect(calibrate=False))
        if not self.device.is_calibrated:
            self._foreign("disconnect", self.device.disconnect)
            raise RobotError(f"LeRobot's {self.device.name} is not calibrated; calibrate it with: lerobot-calibrate")
        controller = CartesianController(self._spec, self._kinematics)
        self._read()
        controller.reset(self._joints, self._width_m)
        self._controller, self._is_stopped = controller, False

    def observe(self, instruction: str = "", with_images: bool = True) -> Observation:
        """Reads joints and cameras; LeRobot reads all of them at once, wanted or not."""
        if self._controller is None:
            raise RobotError("the LeRobot device is not connected; call connect() first")
        found = self._read()
        images = {name: self._picture(name, found) for name in self._spec.camera_names} if with_images else {}
        return Observation(
            images=images,
            state=state_from_pose(self._kinematics.forward(self._joints), self._width_m),
            joint_pos_rad=self._joints.astype(np.float32),
            instruction=instruction,
            time_s=self._read_s,
            commanded=self._controller.commanded,
        )

    def act(self, action: FloatArray) -> Applied:
        """Limits one action and sends joint targets; what the device changed itself is among the reasons."""
        controller, period_s = self._armed(), 1.0 / self._spec.control_rate_hz
        if self._clock() - self._read_s > 0.5 * period_s:
            self._read()
        return self._send(controller.act(action, self._joints, period_s))

    def hold(self) -> Applied:
        """Sends the last joint targets again."""
        return self._send(self._armed().hold())

    def park(self) -> None:
        """Moves the joints to the park position within the speed limits.

        What follows goes on from where it ended: after a park that failed halfway, the next action sent the target of
        before it, in one step.
        """
        controller, period_s = self._armed(), 1.0 / self._spec.control_rate_hz
        goal = np.asarray(self._spec.park_joint_pos_rad, np.float64)
        target = controller.joint_target_rad
        width_m = controller.gripper_width_m
        reached: ArrayLike = target
        try:
            for _ in range(int(_PARK_TIMEOUT_S / period_s)):
                self._read()
                if np.abs(self._joints - goal).max() < _PARK_TOLERANCE_RAD:
                    reached = self._joints
                    return
                target, _ = controller.limiter.limit_joints(goal, target, self._joints, period_s)
                self._send_joints(target, width_m)
                reached = target
                self._sleep(period_s)
        finally:
            controller.reset(reached, width_m)
        raise RobotTimeout(f"the arm did not reach its park position within {_PARK_TIMEOUT_S:g} s; something blocks it")

    def estop(self) -> None:
        """Latches, and commands the joints that are read now: a LeRobot device has no other way to stop.

        Raises:
            RobotError: The device did not take that command; cut its power.
        """
        self._is_stopped = True
        if self._controller is None or not self.device.is_connected:
            return
        self._read()
        self._controller.reset(self._joints, self._width_m)
        self._send_joints(self._controller.joint_target_rad, self._width_m)

    def disconnect(self) -> None:
        """Closes the device; unless its own settings say otherwise, its torque is off afterwards. Park it before."""
        self._controller = None
        if self.device.is_connected:
            self._foreign("disconnect", self.device.disconnect)

    def _armed(self) -> CartesianController:
        if self._is_stopped:
            raise RobotError("the robot was stopped; look at it, then call connect(rearm=True)")
        if self._controller is None:
            raise RobotError("the LeRobot device is not connected; call connect() first")
        return self._controller

    def _send(self, applied: Applied) -> Applied:
        clipped = self._send_joints(applied.joint_target_rad, self._armed().gripper_width_m)
        reasons = (*applied.reasons, *(f"{name}: the device sent another target" for name in clipped))
        return Applied(
            requested=applied.requested, sent=applied.sent, joint_target_rad=applied.joint_target_rad, reasons=reasons
        )

    def _send_joints(self, target_rad: FloatArray, width_m: float) -> list[str]:
        action = {key: math.degrees(value) for key, value in zip(self._keys, target_rad, strict=True)}
        action[_GRIPPER_KEY] = min(100.0, max(0.0, self._gripper.percent(width_m)))
        sent = self._foreign("send_action", lambda: self.device.send_action(dict(action)))
        values = {key: sent.get(key, value) for key, value in action.items()} if isinstance(sent, Mapping) else action
        return [key for key, value in action.items() if abs(float(values[key]) - value) > _CLIPPED_DEG]

    def _read(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._foreign("get_observation", self.device.get_observation)
        missing = [key for key in (*self._keys, _GRIPPER_KEY) if key not in found]
        if missing:
            raise DataError(f"LeRobot's {self.device.name} gave no {', '.join(missing)}; it gave {', '.join(found)}")
        joints = np.radians([float(found[key]) for key in self._keys])
        width_m = self._gripper.width_m(float(found[_GRIPPER_KEY]))
        if not (np.isfinite(joints).all() and math.isfinite(width_m)):
            raise DataError(f"LeRobot's {self.device.name} gave joints {joints}, gripper width {width_m}")
        # A hand that opens wider than the policy knows is fully open to it.
        self._width_m = min(max(width_m, 0.0), self._spec.gripper_max_width_m)
        self._joints, self._read_s = joints, self._clock()
        return found

    def _picture(self, name: str, found: Mapping[str, Any]) -> ImageArray:
        if name not in found:
            raise DataError(f"LeRobot's {self.device.name} gave no picture of camera {name!r}")
        image = np.asarray(found[name])
        return prepare_image(image, CameraFile(device=f"lerobot:{name}", size_px=self._spec.image_size_px))

    def _check_features(self) -> None:
        lacking = [key for key in (*self._keys, _GRIPPER_KEY) if key not in self.device.action_features]
        if lacking:
            keys = ", ".join(self.device.action_features)
            raise ConfigError(
                f"LeRobot's {self.device.name} does not take {', '.join(lacking)}, which robot {self._spec.name!r} "
                f"has; it takes {keys}"
            )
        pictures = [key for key, kind in self.device.observation_features.items() if isinstance(kind, tuple)]
        check_camera_names(self._spec.camera_names, pictures, f"robot {self._spec.name!r}")

    def _foreign(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except _FOREIGN as err:
            raise RobotError(f"LeRobot's {self.device.name}: {what} failed: {type(err).__name__}: {err}") from err


def adapt_lerobot(device: LeRobotDevice, robot: str = "so101", *, image_size_px: int = 96) -> LeRobotRobot:
    """Returns a connected-to-nothing `Robot` for a LeRobot device that has the links of a simulated arm of ours.

    Its cameras are those of the device. The gripper's percentage is an angle of its motor where the arm has one joint
    there, as the SO-101 has.

    Raises:
        ConfigError: There is no such arm, or the device has other joints.
    """
    import dataclasses

    from roboalign.sdk.sim.robots import find_robot
    from roboalign.sdk.sim.so101 import so101_gripper_rad, so101_gripper_width_m

    model = find_robot(robot)
    cameras = tuple(key for key, kind in device.observation_features.items() if isinstance(kind, tuple))
    spec = dataclasses.replace(model.spec(image_size_px), name=f"lerobot-{device.name}", camera_names=cameras)
    if robot != "so101":
        return LeRobotRobot(device, spec, model.kinematics())
    closed_rad, open_rad = _SO101_GRIPPER_RAD
    span = open_rad - closed_rad
    scale = GripperScale(
        width_m=lambda percent: so101_gripper_width_m(closed_rad + span * percent / 100),
        percent=lambda width: 100 * (so101_gripper_rad(width) - closed_rad) / span,
    )
    return LeRobotRobot(device, spec, model.kinematics(), gripper=scale)


_SO101_GRIPPER_RAD = (-0.174533, 1.74533)
"""Limits of the joint `gripper` in the published URDF: 0 and 100 % of a gripper that was swept to both ends."""


def make_lerobot_device(kind: str, **settings: Any) -> LeRobotDevice:
    """Returns a robot of LeRobot, or of an installed `lerobot_robot_*` package, by its type: `so101_follower`.

    Raises:
        BackendError: lerobot is not installed.
        ConfigError: There is no such type, or it refuses the settings.
    """
    try:
        robots = import_module("lerobot.robots")
        import_module("lerobot.utils.import_utils").register_third_party_plugins()
    except ImportError as err:
        raise BackendError(
            f"a LeRobot device needs lerobot, which cannot be imported ({err}); on Python 3.12: pip install lerobot"
        ) from err
    _load_built_in(kind)
    known: Mapping[str, type] = robots.RobotConfig.get_known_choices()
    if kind not in known:
        raise ConfigError(unknown_name("LeRobot robot", kind, sorted(known)))
    try:
        device: LeRobotDevice = robots.make_robot_from_config(known[kind](**settings))
    except _FOREIGN as err:
        raise ConfigError(f"LeRobot's {kind} refuses {settings}: {err}") from err
    return device


def _load_built_in(kind: str) -> None:
    """Imports the module of LeRobot that registers this type; the SO arms share one."""
    for name in (kind, kind.replace("so100_", "so_").replace("so101_", "so_")):
        try:
            import_module(f"lerobot.robots.{name}")
        except ImportError:
            continue
        return
