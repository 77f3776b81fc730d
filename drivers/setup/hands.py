"""Who may take the arm from a policy, and when: a key, the gamepad's shoulder button, or a leader arm that is moved.

Each asks a pilot what it would do and gives it the arm only while the person has it. Whoever takes over begins from
where the arm is, with the gripper as it is, so that nothing leaps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from roboalign.drivers.arm.files import read_robot_file
from roboalign.drivers.following import ToolFollower
from roboalign.drivers.setup.pilots import GamepadPilot, KeyboardPilot, LeaderPilot, Wish, read_keys
from roboalign.drivers.setup.station import PILOTS
from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.types import Applied, FloatArray, Observation, RobotSpec

__all__ = ["TAKE_HELP", "TAKE_KEY", "Hands", "KeyHands", "LeaderHands", "PadHands", "make_hands"]

TAKE_KEY = "t"
"""Takes the arm, and gives it back."""
TAKE_HELP = {
    "keyboard": f"{TAKE_KEY} takes the arm and gives it back",
    "gamepad": "the left shoulder button takes the arm while it is held",
    "leader": "moving the leader takes the arm, leaving it alone for a second gives it back",
}
"""How to take over, by pilot."""

_MOVED = np.array((0.01, 0.01, 0.01, 0.1, 0.01))  # of the leader's tool, in the order of STATE_NAMES
_STILL_SHARE, _STILL_S = 0.3, 1.0


class Hands(Protocol):
    """A person beside a policy. `open` before anything moves, `start` before the first action of an episode."""

    def open(self) -> None:
        """Opens the device. Raises RobotError when it is not there. Idempotent."""
        ...

    def start(self, observation: Observation) -> None:
        """Begins with the policy in charge."""
        ...

    def action(self, observation: Observation) -> FloatArray | None:
        """Returns float32[5] while the person has the arm, None while the policy does; does not wait."""
        ...

    def took(self, applied: Applied) -> None:
        """Notes what was really sent for the person's action."""
        ...

    def wish(self) -> Wish:
        """Returns what the person wants to happen since they were asked last."""
        ...

    def close(self) -> None:
        """Gives back what was opened. Idempotent."""
        ...


class KeyHands:
    """A key takes over; then every key steers as in teleoperation."""

    def __init__(self, spec: RobotSpec, keys: Callable[[], str]) -> None:
        """`keys` returns the letters that were typed since it was called last, without waiting."""
        self._keys, self._typed, self._has_arm = keys, "", False
        self._pilot = KeyboardPilot(spec, self._pass_on)

    def open(self) -> None:
        """Nothing to open."""

    def start(self, observation: Observation) -> None:
        """Begins with the policy in charge; what was typed before does not count."""
        self._keys()
        self._has_arm, self._typed = False, ""
        self._pilot.start(observation)

    def action(self, observation: Observation) -> FloatArray | None:
        """Returns a step for the keys since the last call while the person has the arm."""
        typed = self._keys()
        if typed.lower().count(TAKE_KEY) % 2:
            self._has_arm = not self._has_arm
            self._pilot.start(observation)
        self._typed = typed.replace(TAKE_KEY, "").replace(TAKE_KEY.upper(), "")
        action = self._pilot.action(observation)  # wishes count whoever has the arm
        return action if self._has_arm else None

    def took(self, applied: Applied) -> None:
        """Nothing to note."""

    def wish(self) -> Wish:
        """Returns the wish of a key."""
        return self._pilot.wish()

    def close(self) -> None:
        """Nothing to close; who made `keys` puts the terminal back."""

    def _pass_on(self) -> str:
        typed, self._typed = self._typed, ""
        return typed


class PadHands:
    """The left shoulder button takes over while it is held."""

    def __init__(self, spec: RobotSpec, device: str | Path) -> None:
        """Stores the arguments."""
        self._pilot, self._had_arm = GamepadPilot(spec, device), False

    def open(self) -> None:
        """Opens the pad. Raises RobotError when it is not there."""
        self._pilot.open()

    def start(self, observation: Observation) -> None:
        """Begins with the policy in charge."""
        self._pilot.start(observation)
        self._had_arm = False

    def action(self, observation: Observation) -> FloatArray | None:
        """Returns a step for the sticks while the button is held."""
        action = self._pilot.action(observation)
        if self._pilot.is_held and not self._had_arm:
            self._pilot.take_gripper(observation)
            action = self._pilot.action(observation)
        self._had_arm = self._pilot.is_held
        return action if self._had_arm else None

    def took(self, applied: Applied) -> None:
        """Nothing to note."""

    def wish(self) -> Wish:
        """Returns the wish of a button."""
        return self._pilot.wish()

    def close(self) -> None:
        """Closes the pad."""
        self._pilot.close()


class LeaderHands:
    """A leader arm that is moved takes over: the arm repeats its motion from where it is, not its pose.

    So does it after periods in which that was not sent: how the leader moved meanwhile is not made up for.
    """

    def __init__(self, spec: RobotSpec, leader: LeaderPilot) -> None:
        """Takes the pilot that reads the leader."""
        self._leader, self._follower = leader, ToolFollower(spec)
        self._max_still = round(_STILL_S * spec.control_rate_hz)
        self._has_arm, self._still = False, 0
        self._is_sent = False
        self._rest: FloatArray | None = None
        self._offset = np.zeros(len(_MOVED), np.float32)

    def open(self) -> None:
        """Opens the leader's port and lets it go limp. Raises RobotError when the port or a servo is not there."""
        self._leader.open()

    def start(self, observation: Observation) -> None:
        """Begins with the policy in charge; where the leader lies then is rest."""
        self._leader.start(observation)
        self._has_arm, self._still, self._rest = False, 0, None

    def action(self, observation: Observation) -> FloatArray | None:
        """Returns the step towards where the leader's motion leads while it is moved.

        Raises:
            RobotError: The leader has been silent for too long.
        """
        place = self._leader.read_place()
        if place is None:
            return self._follower.towards(np.full(len(_MOVED), np.nan)) if self._has_arm else None
        if self._rest is None:
            self._rest = place
        if not self._has_arm:
            if self._moved(place) <= 1.0:
                return None
            self._has_arm, self._still, self._rest = True, 0, place
            self._is_sent = False
        elif self._moved(place) > _STILL_SHARE:
            self._rest, self._still = place, 0
        else:
            self._still += 1
            self._has_arm = self._still < self._max_still
        if not self._has_arm:
            return None
        if not self._is_sent:
            self._follower.reset(observation)
            self._offset = np.asarray(observation.state - place, np.float32)
        self._is_sent = False
        return self._follower.towards(place + self._offset)

    def took(self, applied: Applied) -> None:
        """Notes what was really sent."""
        self._is_sent = True
        self._follower.took(applied)

    def wish(self) -> Wish:
        """Returns the wish of a key."""
        return self._leader.wish()

    def close(self) -> None:
        """Closes the leader's port; it stays limp."""
        self._leader.close()

    def _moved(self, place: FloatArray) -> float:
        """How far the leader is from where it rested, in thresholds."""
        assert self._rest is not None
        way = np.abs(place - self._rest)
        way[3] = abs(np.angle(np.exp(1j * (place[3] - self._rest[3]))))
        return float((way / _MOVED).max())


def make_hands(
    kind: str,
    *,
    leader: Path | None = None,
    gamepad: Path = Path("/dev/input/js0"),
    keys: Callable[[], str] = read_keys,
) -> Callable[[RobotSpec], Hands]:
    """Returns what makes the person's hands once the robot's spec is known.

    Raises:
        ConfigError: There are no such hands, or a leader was asked for without its robot file.
    """
    if kind not in PILOTS:
        raise ConfigError(unknown_name("takeover", kind, PILOTS))
    if kind == "keyboard":
        return lambda spec: KeyHands(spec, keys)
    if kind == "gamepad":
        return lambda spec: PadHands(spec, gamepad)
    if leader is None:
        raise ConfigError("the takeover 'leader' needs the leader arm's robot file: --leader leader.toml")
    file = read_robot_file(leader)
    return lambda spec: LeaderHands(spec, LeaderPilot(spec, file, keys=keys))
