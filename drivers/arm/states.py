"""The states of an arm and the ways between them; every change has a reason, and some are one-way without a person.

    DISCONNECTED -> CONNECTED -> ARMED -> ACTIVE <-> HOLD
                        ^          |        |          |
                        |          +--------+----------+---> PARKING -> CONNECTED (torque off) or HOLD
                        |          +--------+----------+---> FAULT, ESTOP
                        +-- rearm --------------------------- FAULT, ESTOP

FAULT and ESTOP are left only by an explicit re-arm, or by parking (FAULT alone) and closing. Motion happens in ACTIVE
and PARKING only; torque is on from ARMED to PARKING, and stays on in FAULT and ESTOP for every servo that still obeys.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roboalign.sdk.errors import RobotError

__all__ = ["Change", "State", "StateMachine"]

_MAX_HISTORY = 200


class State(Enum):
    """What an arm is doing."""

    DISCONNECTED = "disconnected"
    """The port is closed."""
    CONNECTED = "connected"
    """The servos answer; torque is off."""
    ARMED = "armed"
    """Soft start: torque is rising, nothing moves."""
    ACTIVE = "active"
    """Follows commands."""
    HOLD = "hold"
    """Stays where it is, with torque; a fresh command goes on when the reason is gone."""
    PARKING = "parking"
    """Moves by itself: to its home or park position, and then may let go gently."""
    FAULT = "fault"
    """Something is broken; stays where it is until a person re-arms it."""
    ESTOP = "estop"
    """Stopped by a person; stays where it is until a person re-arms it."""


_WAYS: dict[State, frozenset[State]] = {
    State.DISCONNECTED: frozenset({State.CONNECTED}),
    State.CONNECTED: frozenset({State.ARMED, State.FAULT, State.ESTOP}),
    State.ARMED: frozenset({State.ACTIVE, State.PARKING, State.FAULT, State.ESTOP, State.CONNECTED}),
    State.ACTIVE: frozenset({State.HOLD, State.PARKING, State.FAULT, State.ESTOP}),
    State.HOLD: frozenset({State.ACTIVE, State.PARKING, State.FAULT, State.ESTOP}),
    State.PARKING: frozenset({State.CONNECTED, State.HOLD, State.FAULT, State.ESTOP}),
    State.FAULT: frozenset({State.PARKING, State.ESTOP}),
    State.ESTOP: frozenset(),
}
_LATCHED = frozenset({State.FAULT, State.ESTOP})


@dataclass(frozen=True, slots=True)
class Change:
    """One change of state."""

    time_s: float
    """When, on the clock of the bus owner."""
    state: State
    """What it became."""
    reason: str
    """Why, in words for a person."""


class StateMachine:
    """The present state, why, and since when."""

    def __init__(self) -> None:
        self.state = State.DISCONNECTED
        self.reason = "not connected yet"
        self.since_s = 0.0
        self.history: list[Change] = []

    @property
    def needs_rearm(self) -> bool:
        """True in FAULT and ESTOP."""
        return self.state in _LATCHED

    def to(self, state: State, reason: str, time_s: float) -> None:
        """Changes the state; in the same state only the reason is replaced.

        Raises:
            RobotError: There is no way; leaving FAULT or ESTOP takes `rearm`.
        """
        if state is not self.state and state not in _WAYS[self.state]:
            help_ = "; look at the arm, then connect(rearm=True)" if self.needs_rearm else ""
            raise RobotError(f"the arm cannot go from {self.state.value} ({self.reason}) to {state.value}{help_}")
        self._set(state, reason, time_s)

    def rearm(self, reason: str, time_s: float) -> None:
        """Leaves FAULT or ESTOP for CONNECTED: the caller states that a person looked. Else changes nothing."""
        if self.needs_rearm:
            self._set(State.CONNECTED, reason, time_s)

    def close(self, reason: str, time_s: float) -> None:
        """The port is closed, whatever the state was."""
        self._set(State.DISCONNECTED, reason, time_s)

    def _set(self, state: State, reason: str, time_s: float) -> None:
        if (state, reason) == (self.state, self.reason):
            return
        if state is not self.state:
            self.since_s = time_s
        self.state, self.reason = state, reason
        self.history.append(Change(time_s, state, reason))
        del self.history[:-_MAX_HISTORY]
