"""Registers that outlive a power cut: compared before they are written, read back after, and locked again.

EEPROM wears out, so a register that already holds the value is left alone. A motor may move when its offset or mode
changes under torque, so torque must be off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from roboalign.drivers.bus.types import Fault, FaultKind, Register, Reply
from roboalign.sdk.errors import RobotError

if TYPE_CHECKING:
    from roboalign.drivers.bus.bus import Bus

__all__ = ["change_baud", "write_verified"]

_NUM_TRIES = 3


def write_verified(bus: Bus, register: Register, id: int, value: int) -> bool:  # noqa: A002 - the protocols' own word
    """Does what `Bus.write_verified` says; after a new `id`, reads back from it.

    Raises:
        RobotError: See there.
    """
    where = f"{bus.name}: servo {id}"
    if register.name == "baud_rate":
        raise RobotError(
            f"{where}: the rate of a servo is changed with change_baud, which follows it; nothing was sent"
        )
    if register.is_read_only:
        raise RobotError(f"{where}: register {register.name} is read-only; nothing was sent")
    register.encode(value)
    if bus.read_value(register, id) == value:
        return False
    if register.name == "id" and isinstance(bus.ping(value), Reply):
        raise RobotError(f"{where} cannot become {value}: another servo has that id; connect one at a time")
    _unlock(bus, register, id)
    answers_as = value if register.name == "id" else id
    try:
        for _ in range(_NUM_TRIES):
            answer = bus.write(register, id, value)
            if isinstance(answer, Fault) and answer.kind is FaultKind.REJECTED:
                raise RobotError(f"{where} does not take {register.name} = {value}: {answer.detail}")
            back = bus.read(register, answers_as)
            if isinstance(back, Reply) and register.decode(back.data) == value:
                return True
    finally:
        _relock(bus, register, (answers_as, id))
    found = f"reads back {register.decode(back.data)}" if isinstance(back, Reply) else back.detail
    raise RobotError(f"{where}: {register.name} was written as {value} and {found}; it may be out of its limits")


def change_baud(bus: Bus, register: Register, id: int, index: int, baud: int) -> bool:  # noqa: A002
    """Moves one servo to another rate, checks that it answers there, and returns whether it had to be moved.

    The port has its own rate again afterwards. `index` is the register's value for `baud`.

    Raises:
        RobotError: It refuses, torque is on, or it answers at neither rate.
    """
    before = bus.transport.baud
    if bus.read_value(register, id) == index:
        return False
    _unlock(bus, register, id)
    bus.write(register, id, index)  # the answer may come at either rate
    try:
        bus.set_baud(baud)
        if isinstance(bus.ping(id), Reply) and bus.read_value(register, id) == index:
            _relock(bus, register, (id,))
            return True
    finally:
        bus.set_baud(before)
    state = "still answers at" if isinstance(bus.ping(id), Reply) else "is silent also at"
    raise RobotError(f"{bus.name}: servo {id} does not answer at {baud} baud and {state} {before}; scan all rates")


def _unlock(bus: Bus, register: Register, servo: int) -> None:
    if not register.is_eeprom:
        return
    if bus.read_value(bus.protocol.torque, servo):
        raise RobotError(
            f"{bus.name}: {register.name} of servo {servo} is kept in EEPROM, which needs torque off; nothing was sent"
        )
    lock = bus.protocol.lock
    if lock is not None:
        write_verified(bus, lock, servo, 0)


def _relock(bus: Bus, register: Register, servos: tuple[int, ...]) -> None:
    """Closes the lock of the first of these ids that answers."""
    lock = bus.protocol.lock
    if lock is None or not register.is_eeprom:
        return
    for servo in dict.fromkeys(servos):
        if isinstance(bus.ping(servo), Reply):
            write_verified(bus, lock, servo, 1)
            return
