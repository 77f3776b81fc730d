"""What the policy's process and the bus owner say to each other: one JSON object a line, a reply to each.

The owner trusts nothing that it is told: a goal with a value that is not finite, or of the wrong length, is answered
with the reason and changes nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from roboalign.drivers.arm.states import State
from roboalign.sdk.errors import RobotError

__all__ = ["ArmState", "Command", "Order", "decode_command", "decode_state", "encode"]

_MAX_NUMBERS = 32


class Order(Enum):
    """What a command asks for."""

    STATE = "state"
    """Nothing: tell how the arm is."""
    TRACE = "trace"
    """Nothing: tell how the arm is, and what was sent and read in the cycles since this was asked last."""
    CONNECT = "connect"
    """Torque on, gently; holds where it is."""
    GOAL = "goal"
    """Go there."""
    HOLD = "hold"
    """Stay."""
    PARK = "park"
    """Go to the park position and stay there with torque."""
    HOME = "home"
    """Go to the home position and stay there with torque."""
    ESTOP = "estop"
    """Stop at once, and stay stopped."""
    CLOSE = "close"
    """Park, let go gently, close the port, end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command to the owner."""

    order: Order
    """What to do."""
    motors_rad: tuple[float, ...] = ()
    """GOAL only: the arm joints and the gripper's motor."""
    within_s: float = 0.1
    """GOAL only: when it should be there, from now."""
    rearm: bool = False
    """CONNECT only: a person has looked."""
    number: int = 0
    """Comes back in the answer, so that a late answer is not taken for another one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmState:
    """How the arm is. Vectors are per motor: the arm joints, then the gripper."""

    state: State
    """What it is doing."""
    reason: str
    """Why."""
    time_s: float
    """Now, on the monotonic clock of the machine."""
    position_rad: tuple[float, ...]
    """Last believed position; NaN never read."""
    age_s: tuple[float, ...]
    """How old each position is; infinite when never read."""
    goal_rad: tuple[float, ...]
    """What was sent last."""
    load: tuple[float, ...]
    """Share of full drive, as last read."""
    volts: tuple[float, ...]
    """Supply, as last read."""
    temperature_c: tuple[float, ...]
    """Temperature, as last read."""
    torque_share: tuple[float, ...]
    """Torque limit that is set, 0 when torque is off."""
    alarms: tuple[str, ...] = ()
    """What is wrong now, one sentence each, naming the joint."""
    late: tuple[int, ...] = ()
    """Motors that were not there when the last parking ended."""
    kept: tuple[int, ...] = ()
    """Motors that may have torque although nobody holds them: they did not let go, or the port is lost."""
    error: str = ""
    """Why the command that this answers was refused; empty when it was taken."""
    number: int = 0
    """Number of the command that this answers."""
    trace: tuple[tuple[float, ...], ...] = ()
    """TRACE only, a row a cycle, oldest first: time sent, time read, goal of each motor, position of each motor."""
    counts: dict[str, int] = field(default_factory=dict)
    """Cycles, rejected readings, and what the bus counts."""


def encode(message: Command | ArmState) -> bytes:
    """Returns one line."""
    content = dataclasses.asdict(message)
    for name, value in content.items():
        if isinstance(value, Enum):
            content[name] = value.value
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def decode_command(line: bytes) -> Command:
    """Returns a command.

    Raises:
        RobotError: It is none, or a number in it is not finite.
    """
    try:
        content = json.loads(line)
        numbers = tuple(float(value) for value in content.get("motors_rad", ()))
        within_s = float(content.get("within_s", 0.1))
        command = Command(
            order=Order(content["order"]),
            motors_rad=numbers,
            within_s=within_s,
            rearm=content.get("rearm") is True,
            number=int(content.get("number", 0)),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise RobotError(f"the bus owner was told {line[:80]!r}, which is no command: {err}") from err
    if len(numbers) > _MAX_NUMBERS or not all(map(math.isfinite, (*numbers, within_s))):
        raise RobotError(f"a goal of {len(numbers)} numbers was refused: {numbers[:_MAX_NUMBERS]} are not all finite")
    return command


def decode_state(line: bytes) -> ArmState:
    """Returns what the owner says.

    Raises:
        RobotError: It is no state: the two ends are of different versions.
    """
    try:
        content: dict[str, Any] = json.loads(line)
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return ArmState(**(values | {"state": State(content["state"])}))
    except (ValueError, TypeError, KeyError) as err:
        raise RobotError(f"the bus owner said {line[:80]!r}, which is no state: {err}") from err
