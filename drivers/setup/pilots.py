"""Who steers: a keyboard, a gamepad, a leader arm, or a script. Each answers the next action, and what it wishes for.

A keyboard sends letters, no releases, so one press is one step and a held key repeats at the terminal's rate. A gamepad
moves the arm only while its left shoulder button is held, so that one which lies on the desk does nothing.
"""

from __future__ import annotations

import os
import select
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np

from roboalign.drivers.arm.assembly import ArmParts, assemble
from roboalign.drivers.arm.files import RobotFile
from roboalign.drivers.following import ToolFollower
from roboalign.drivers.setup.servos import ServoBus, open_servos
from roboalign.sdk.control.kinematics import state_from_pose
from roboalign.sdk.errors import ConfigError, RobotError
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, Applied, FloatArray, Observation, RobotSpec

__all__ = [
    "KEYS",
    "KEY_HELP",
    "GamepadPilot",
    "KeyboardPilot",
    "LeaderPilot",
    "Pilot",
    "ScriptPilot",
    "Wish",
    "read_keys",
]

_STEP_SHARE = 0.5  # of the robot's largest step, for one key press or a stick at its end
_MAX_LOST = 10


class Wish(Enum):
    """What a pilot wants to happen after this action."""

    GO_ON = "go on"
    """Nothing."""
    KEEP = "keep"
    """The episode is done and good."""
    DISCARD = "discard"
    """The episode is to be forgotten and done again."""
    QUIT = "quit"
    """No more."""


class Pilot(Protocol):
    """Steers a robot. `start` before the first action of an episode."""

    def start(self, observation: Observation) -> None:
        """Starts from where the robot is."""
        ...

    def action(self, observation: Observation) -> FloatArray:
        """Returns float32[5] in the order of `ACTION_NAMES`, without waiting."""
        ...

    def took(self, applied: Applied) -> None:
        """Notes what was really sent."""
        ...

    def wish(self) -> Wish:
        """Returns what it wants since it was asked last."""
        ...

    def close(self) -> None:
        """Gives back what it opened. Idempotent."""
        ...


KEYS: Mapping[str, tuple[int, float]] = MappingProxyType(
    {
        "w": (0, 1.0),
        "s": (0, -1.0),
        "a": (1, 1.0),
        "d": (1, -1.0),
        "r": (2, 1.0),
        "f": (2, -1.0),
        "q": (3, 1.0),
        "e": (3, -1.0),
    }
)
"""Field of the action and direction of each key: w/s forward, back; a/d left, right; r/f up, down; q/e turn."""

KEY_HELP = "w/s forward, back; a/d left, right; r/f up, down; q/e turn; space gripper; Enter keep; x discard; Esc quit"
_KEY_WISHES = {"\n": Wish.KEEP, "\r": Wish.KEEP, "x": Wish.DISCARD, "\x1b": Wish.QUIT, "\x03": Wish.QUIT}


class KeyboardPilot:
    """Steers by key presses."""

    def __init__(self, spec: RobotSpec, keys: Callable[[], str]) -> None:
        """`keys` returns the letters that were typed since it was called last, without waiting."""
        self._spec, self._keys = spec, keys
        self._is_open = True
        self._wish = Wish.GO_ON

    def start(self, observation: Observation) -> None:
        """Takes the gripper as it is; keys that were typed before do not count."""
        self._is_open = bool(observation.state[4] > 0.5 * self._spec.gripper_max_width_m)
        self._keys()
        self._wish = Wish.GO_ON

    def action(self, observation: Observation) -> FloatArray:
        """Returns one step for the keys since the last action; several presses of one key are one step."""
        action = np.zeros(len(ACTION_NAMES), np.float32)
        typed = self._keys()
        for key in dict.fromkeys(typed.lower()):
            if key in KEYS:
                field, direction = KEYS[key]
                action[field] += direction * _step(self._spec, field)
            elif key in _KEY_WISHES:
                self._wish = _KEY_WISHES[key]
        if typed.count(" ") % 2:
            self._is_open = not self._is_open
        action[4] = float(self._is_open)
        return action

    def took(self, applied: Applied) -> None:
        """Nothing to note."""

    def wish(self) -> Wish:
        """Returns the wish of a key."""
        wish, self._wish = self._wish, Wish.GO_ON
        return wish

    def close(self) -> None:
        """Nothing to close; who made `keys` puts the terminal back."""


def read_keys() -> str:
    """Returns what was typed on standard input since the last call, without waiting; the terminal must be in cbreak."""
    typed = b""
    while select.select([sys.stdin], [], [], 0.0)[0]:
        part = os.read(sys.stdin.fileno(), 64)
        if not part:
            break
        typed += part
    return typed.decode("utf-8", "ignore")


_JS_EVENT = struct.Struct("<IhBB")  # linux/joystick.h: time in ms, value, type, number
_JS_BUTTON, _JS_AXIS, _JS_INIT = 1, 2, 0x80
_AXES: Mapping[int, tuple[int, float]] = MappingProxyType({1: (0, -1.0), 0: (1, -1.0), 4: (2, -1.0), 3: (3, -1.0)})
_DEAD_MAN, _GRIPPER = 4, 0
_BUTTON_WISHES = {7: Wish.KEEP, 6: Wish.DISCARD, 8: Wish.QUIT}
_DEAD_ZONE = 0.15


class GamepadPilot:
    """Steers by a gamepad (`/dev/input/js0`, numbering of the xpad driver) while its left shoulder button is held.

    Left stick: forward and sideways; right stick: up and turn; A: gripper; Start: keep; Back: discard; Guide: quit.
    A pad that is pulled out lets go of everything.
    """

    def __init__(self, spec: RobotSpec, device: str | Path = "/dev/input/js0") -> None:
        """Stores the arguments."""
        self._spec, self._device = spec, Path(device)
        self._fd: int | None = None
        self._axes: dict[int, float] = {}
        self._is_held = False
        self._is_open = True
        self._wish = Wish.GO_ON

    def open(self) -> None:
        """Opens the pad. Does nothing when it is open.

        Raises:
            RobotError: It is not there.
        """
        if self._fd is not None:
            return
        try:
            self._fd = os.open(self._device, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as err:
            found = ", ".join(str(path) for path in sorted(Path("/dev/input").glob("js*"))) or "none"
            raise RobotError(f"no gamepad at {self._device} ({err.strerror}); gamepads here: {found}") from err

    def start(self, observation: Observation) -> None:
        """Opens the pad where it is not open, and takes the gripper as it is.

        Raises:
            RobotError: It is not there.
        """
        self.open()
        self._is_open = bool(observation.state[4] > 0.5 * self._spec.gripper_max_width_m)
        self._wish = Wish.GO_ON

    def action(self, observation: Observation) -> FloatArray:
        """Returns a step for the sticks as they are now."""
        self._read()
        action = np.zeros(len(ACTION_NAMES), np.float32)
        action[4] = float(self._is_open)
        if self._is_held:
            for axis, value in self._axes.items():
                if axis in _AXES and abs(value) > _DEAD_ZONE:
                    field, direction = _AXES[axis]
                    action[field] = direction * value * _step(self._spec, field)
        return action

    @property
    def is_held(self) -> bool:
        """Whether the left shoulder button is held."""
        return self._is_held

    def take_gripper(self, observation: Observation) -> None:
        """Takes the gripper as it is."""
        self._is_open = bool(observation.state[4] > 0.5 * self._spec.gripper_max_width_m)

    def took(self, applied: Applied) -> None:
        """Nothing to note."""

    def wish(self) -> Wish:
        """Returns the wish of a button."""
        wish, self._wish = self._wish, Wish.GO_ON
        return wish

    def close(self) -> None:
        """Closes the pad."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _read(self) -> None:
        if self._fd is None:
            self._axes.clear()
            self._is_held = False
            return
        while True:
            try:
                data = os.read(self._fd, _JS_EVENT.size)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if len(data) < _JS_EVENT.size:
                self.close()
                self._axes.clear()
                self._is_held = False
                self._wish = Wish.QUIT
                return
            _, value, kind, number = _JS_EVENT.unpack(data)
            self._take(kind, number, value)

    def _take(self, kind: int, number: int, value: int) -> None:
        if kind & ~_JS_INIT == _JS_AXIS:
            self._axes[number] = value / 32767
        elif kind & ~_JS_INIT == _JS_BUTTON:
            if number == _DEAD_MAN:
                self._is_held = bool(value)
            elif value and not kind & _JS_INIT:
                self._is_open ^= number == _GRIPPER
                self._wish = _BUTTON_WISHES.get(number, self._wish)


class LeaderPilot:
    """Steers by a second arm that is moved by hand: the tool goes where the leader's tool would be.

    The leader is read, never driven: its torque is switched off when it starts. A reading that is missing is a hold;
    ten in a row are an error. Only place, height and turn of the leader's hand count, the follower's tool points down.
    """

    def __init__(
        self,
        spec: RobotSpec,
        leader: RobotFile | ArmParts,
        *,
        servos: ServoBus | None = None,
        keys: Callable[[], str] | None = None,
    ) -> None:
        """Stores the arguments.

        Args:
            spec: Of the robot that follows.
            leader: The leader's robot file, with its calibration.
            servos: Its bus; by default its port is opened.
            keys: Where Enter, x and Esc come from.
        """
        self._parts = leader if isinstance(leader, ArmParts) else assemble(leader)
        file = self._parts.file
        self._servos = servos or open_servos(file.port, file.model.protocol, file.baud or file.model.baud)
        self._follower = ToolFollower(spec)
        self._keys = keys
        self._ids = tuple(unit.id for unit in self._parts.joints.units)
        self._num_lost = 0
        self._wish = Wish.GO_ON

    def open(self) -> None:
        """Opens the leader's port and lets it go limp. Does nothing when it is open.

        Raises:
            RobotError: The port or a servo is not there.
        """
        if not self._servos.bus.is_open:
            self._servos.bus.open()
            self._servos.release(self._parts.file.model.ids)

    def start(self, observation: Observation) -> None:
        """Opens the leader's port where it is not open, and starts from where the robot is."""
        self.open()
        self._follower.reset(observation)
        if self._keys is not None:
            self._keys()
        self._wish = Wish.GO_ON

    def action(self, observation: Observation) -> FloatArray:
        """Returns the step towards the leader's pose.

        Raises:
            RobotError: The leader has been silent for too long.
        """
        place = self.read_place()
        return self._follower.towards(np.full(len(STATE_NAMES), np.nan) if place is None else place)

    def read_place(self) -> FloatArray | None:
        """Hears the keys, and returns where the leader's tool is; None when a joint did not answer.

        Raises:
            RobotError: The leader has been silent for too long.
        """
        for key in self._keys() if self._keys is not None else "":
            self._wish = _KEY_WISHES.get(key, self._wish)
        place = self._place()
        self._num_lost = 0 if place is not None else self._num_lost + 1
        if self._num_lost > _MAX_LOST:
            raise RobotError(f"the leader on {self._servos.name} stopped answering; check its cable and power")
        return place

    def took(self, applied: Applied) -> None:
        """Notes what was really sent."""
        self._follower.took(applied)

    def wish(self) -> Wish:
        """Returns the wish of a key."""
        wish, self._wish = self._wish, Wish.GO_ON
        return wish

    def close(self) -> None:
        """Closes the leader's port; it stays limp."""
        self._servos.bus.close()

    def _place(self) -> FloatArray | None:
        """Where the leader's tool is, in the order of `STATE_NAMES`; None when a joint did not answer."""
        counts = self._servos.read_many(self._ids, "present_position")
        if len(counts) < len(self._ids):
            return None
        units = self._parts.joints.units
        angles = [unit.rad(unit.unwrapped(counts[unit.id])) for unit in units]
        pose = self._parts.kinematics.forward(angles[:-1])
        return state_from_pose(pose, self._parts.joints.width_m(angles[-1]))


class ScriptPilot:
    """Plays actions from a list, then wishes for what it was told; for tests and demonstrations."""

    def __init__(self, episodes: Iterable[tuple[Sequence[FloatArray], Wish]]) -> None:
        """Takes the actions and the last wish of each episode, in turn; QUIT when there are no more."""
        self._episodes = iter(episodes)
        self._actions: list[FloatArray] = []
        self._last = Wish.QUIT

    def start(self, observation: Observation) -> None:
        """Begins the next episode."""
        actions, self._last = next(self._episodes, ((), Wish.QUIT))
        self._actions = list(actions)

    def action(self, observation: Observation) -> FloatArray:
        """Returns the next action, or one that changes nothing."""
        if self._actions:
            return self._actions.pop(0)
        return np.array((0, 0, 0, 0, 1), np.float32)

    def took(self, applied: Applied) -> None:
        """Nothing to note."""

    def wish(self) -> Wish:
        """Returns the episode's wish once its actions are used up."""
        return Wish.GO_ON if self._actions else self._last

    def close(self) -> None:
        """Nothing to close."""


def _step(spec: RobotSpec, field: int) -> float:
    if ACTION_NAMES[field] not in ACTION_NAMES[:4]:
        raise ConfigError(f"field {field} of an action is no displacement")
    return _STEP_SHARE * (spec.max_step_rad if field == 3 else spec.max_step_m)
