"""What the devices on a line answer to an instruction, in either protocol: who speaks when, and which packet.

    Instruction  ->  [Slot, Slot, ...]      each slot is one turn to speak; devices with one id speak at once

Bytes come from the same codecs that the drivers use; the oracles for those are the vendors' own packages, which talk to
these devices in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from roboalign.drivers.bus.dynamixel import Dynamixel, DynamixelCode
from roboalign.drivers.bus.feetech import Feetech, FeetechCode
from roboalign.drivers.bus.framing import StreamParser
from roboalign.drivers.bus.types import BROADCAST_ID, Instruction, Status
from roboalign.drivers.virtual.servo import VirtualServo
from roboalign.drivers.virtual.sts import StsServo
from roboalign.drivers.virtual.xseries import LENGTH, XServo
from roboalign.sdk.errors import ConfigError

__all__ = ["Dialect", "FeetechDialect", "Slot", "Speech", "XDialect", "dialect_of"]

_NO_SUCH_INSTRUCTION = 2
_TURN_BYTES = 14


@dataclass(frozen=True, slots=True)
class Speech:
    """One device's packet."""

    servo: VirtualServo
    """Who speaks."""
    packet: bytes
    """What it says."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One turn on the line."""

    speeches: tuple[Speech, ...]
    """More than one when several devices have the same id, or share one frame."""
    wait_bytes: int = 0
    """Byte times that they wait besides their return delay: after a broadcast ping devices answer by id."""


class Dialect(Protocol):
    """The device side of a protocol."""

    @property
    def name(self) -> str:
        """`feetech` or `dynamixel`."""
        ...

    def parser(self) -> StreamParser[Instruction]:
        """Returns a new parser of instructions."""
        ...

    def is_heartbeat(self, instruction: Instruction) -> bool:
        """True for a read of several devices' present position, which drives a line in lockstep."""
        ...

    def respond(self, instruction: Instruction, servos: Sequence[VirtualServo]) -> list[Slot]:
        """Lets the devices that hear it do as they are told, and returns what they say."""
        ...


class FeetechDialect:
    """Devices of the STS and SMS series. The error byte is their state; they reject nothing."""

    name = "feetech"

    def __init__(self) -> None:
        self._codec = Feetech()

    def parser(self) -> StreamParser[Instruction]:
        """Returns a new parser of instructions."""
        return self._codec.instruction_parser()

    def is_heartbeat(self, instruction: Instruction) -> bool:
        """True for a sync read that covers the present position."""
        data = instruction.data
        return instruction.code == FeetechCode.SYNC_READ and len(data) > 2 and data[0] <= 56 < data[0] + data[1]

    def respond(self, instruction: Instruction, servos: Sequence[VirtualServo]) -> list[Slot]:
        """Lets the devices that hear it do as they are told, and returns what they say."""
        code, data = instruction.code, instruction.data
        mine = [servo for servo in servos if isinstance(servo, StsServo)]
        if code == FeetechCode.SYNC_READ and len(data) > 2:
            return list(_turns(data[2:], mine, lambda servo: self._say(servo, servo.read(data[0], data[1]))))
        if code == FeetechCode.SYNC_WRITE and len(data) > 2:
            self._sync_write(data, mine)
            return []
        if instruction.id == BROADCAST_ID:
            return self._broadcast(instruction, mine)
        return list(_turns([instruction.id], mine, lambda servo: self._obey(servo, code, data)))

    def _say(self, servo: StsServo, data: bytes = b"", own_id: int | None = None) -> bytes:
        return self._codec.encode_status(servo.id if own_id is None else own_id, servo.error_bits, data)

    def _broadcast(self, instruction: Instruction, servos: list[StsServo]) -> list[Slot]:
        """Everybody does it and nobody answers; but a ping is answered by all, one after another."""
        if instruction.code == FeetechCode.PING:
            return _roll_call(servos, self._say)
        for servo in servos:
            self._obey(servo, instruction.code, instruction.data)
        return []

    def _obey(self, servo: StsServo, code: int, data: bytes) -> bytes | None:
        own_id = servo.id  # a new id counts from the next packet on
        if code == FeetechCode.PING:
            return self._say(servo)
        if code == FeetechCode.READ and len(data) == 2:
            return self._say(servo, servo.read(data[0], data[1]))
        if code == FeetechCode.WRITE and len(data) > 1:
            servo.write(data[0], data[1:])
        elif code == FeetechCode.REG_WRITE and len(data) > 1:
            servo.registered = (data[0], data[1:])
        elif code == FeetechCode.ACTION:
            servo.act()
        elif code == FeetechCode.FACTORY_RESET:
            servo.reset()
        elif code == FeetechCode.REBOOT:
            servo.is_restart_asked = True
        else:
            return None  # an instruction that it does not know is not answered
        return self._say(servo, own_id=own_id) if servo.status_level >= 1 else None

    def _sync_write(self, data: bytes, servos: list[StsServo]) -> None:
        address, size = data[0], data[1]
        for at in range(2, len(data) - size, size + 1):
            for servo in servos:
                if servo.id == data[at]:
                    servo.write(address, data[at + 1 : at + 1 + size])


class XDialect:
    """Devices of the Dynamixel X series."""

    name = "dynamixel"

    def __init__(self) -> None:
        self._codec = Dynamixel()

    def parser(self) -> StreamParser[Instruction]:
        """Returns a new parser of instructions."""
        return self._codec.instruction_parser()

    def is_heartbeat(self, instruction: Instruction) -> bool:
        """True for a sync or bulk read that covers a present position."""
        data = instruction.data
        if instruction.code in (DynamixelCode.SYNC_READ, DynamixelCode.FAST_SYNC_READ) and len(data) > 4:
            places = [(_word(data, 0), _word(data, 2))]
        elif instruction.code in (DynamixelCode.BULK_READ, DynamixelCode.FAST_BULK_READ):
            places = [place for _, place in _bulk(data)]
        else:
            return False
        return any(address <= 132 < address + size for address, size in places)

    def respond(self, instruction: Instruction, servos: Sequence[VirtualServo]) -> list[Slot]:
        """Lets the devices that hear it do as they are told, and returns what they say."""
        code, data = instruction.code, instruction.data
        mine = [servo for servo in servos if isinstance(servo, XServo)]
        for servo in mine:
            servo.touch()
        if code in (DynamixelCode.SYNC_READ, DynamixelCode.FAST_SYNC_READ) and len(data) > 4:
            place = (_word(data, 0), _word(data, 2))
            return self._read_many([(number, place) for number in data[4:]], mine, code == DynamixelCode.FAST_SYNC_READ)
        if code in (DynamixelCode.BULK_READ, DynamixelCode.FAST_BULK_READ):
            return self._read_many(_bulk(data), mine, code == DynamixelCode.FAST_BULK_READ)
        if code in (DynamixelCode.SYNC_WRITE, DynamixelCode.BULK_WRITE):
            for number, address, values in _writes(code, data):
                for servo in _addressed(number, mine):
                    servo.write(address, values)
            return []
        if instruction.id == BROADCAST_ID:
            if code == DynamixelCode.PING:
                return _roll_call(mine, self._introduce)
            for servo in mine:
                self._obey(servo, code, data)
            return []
        for servo in _addressed(instruction.id, mine):
            if servo.id != instruction.id:
                self._obey(servo, code, data)  # by its secondary id: in silence
        return list(_turns([instruction.id], mine, lambda servo: self._obey(servo, code, data)))

    def _say(self, servo: XServo, error: int = 0, data: bytes = b"", own_id: int | None = None) -> bytes:
        return self._codec.encode_status(servo.id if own_id is None else own_id, error | servo.error_bits, data)

    def _introduce(self, servo: XServo) -> bytes:
        return self._say(servo, data=servo.read(0, 2) + servo.read(6, 1))

    def _obey(self, servo: XServo, code: int, data: bytes) -> bytes | None:
        own_id, error = servo.id, 0  # a new id counts from the next packet on
        if code == DynamixelCode.PING:
            return self._introduce(servo)
        if code == DynamixelCode.READ:
            if servo.status_level < 1:
                return None
            if len(data) != 4:
                return self._say(servo, LENGTH)
            return self._say(servo, data=servo.read(_word(data, 0), _word(data, 2)))
        if code in (DynamixelCode.WRITE, DynamixelCode.REG_WRITE):
            if len(data) < 3:
                error = LENGTH
            elif code == DynamixelCode.WRITE:
                error = servo.write(_word(data, 0), data[2:])
            else:
                servo.registered = (_word(data, 0), data[2:])
        elif code == DynamixelCode.ACTION:
            error = servo.act()
        elif code == DynamixelCode.FACTORY_RESET and data:
            servo.reset(data[0])
        elif code == DynamixelCode.REBOOT:
            servo.is_restart_asked = True
        elif code == DynamixelCode.CLEAR and data[:1] == b"\x01":
            servo.clear()
        else:
            error = _NO_SUCH_INSTRUCTION
        return self._say(servo, error, own_id=own_id) if servo.status_level >= 2 else None

    def _read_many(
        self, asked: Sequence[tuple[int, tuple[int, int]]], servos: list[XServo], is_fast: bool
    ) -> list[Slot]:
        places = dict(asked)
        readers = [servo for servo in servos if servo.status_level >= 1]
        if not is_fast:
            return list(_turns(places, readers, lambda servo: self._say(servo, data=servo.read(*places[servo.id]))))
        frame = b""
        speakers: list[XServo] = []
        statuses = [Status(number, 0, bytes(size)) for number, (_, size) in asked]
        for at, (number, place) in enumerate(asked):
            found = [servo for servo in readers if servo.id == number]
            if not found:
                break  # whoever comes later waits for this one and says nothing
            statuses[at] = Status(number, found[0].error_bits, found[0].read(*place))
            speakers.append(found[0])
        frame = self._codec.encode_fast_status(statuses)
        kept = len(frame) - sum(size + 4 for _, (_, size) in asked[len(speakers) :])
        if not speakers:
            return []
        return [Slot((Speech(speakers[0], frame[:kept]),))]


def dialect_of(protocol: str) -> FeetechDialect | XDialect:
    """Returns the device side of `feetech` or `dynamixel`; raises ConfigError for another name."""
    if protocol == "feetech":
        return FeetechDialect()
    if protocol == "dynamixel":
        return XDialect()
    raise ConfigError(f"protocol is {protocol!r}, expected feetech or dynamixel")


def _turns(ids: Iterable[int], servos: list, say: Callable) -> Iterator[Slot]:  # type: ignore[type-arg]
    """Yields one slot for every id that somebody has; whoever is missing leaves no gap but time."""
    by_id: dict[int, list] = {}  # type: ignore[type-arg]
    for servo in servos:
        by_id.setdefault(servo.id, []).append(servo)
    for number in ids:
        said = [(servo, say(servo)) for servo in by_id.get(number, ())]
        speeches = tuple([Speech(servo, packet) for servo, packet in said if packet is not None])
        if speeches:
            yield Slot(speeches)


def _roll_call(servos: list, say: Callable) -> list[Slot]:  # type: ignore[type-arg]
    """The answers to a broadcast ping, by id."""
    slots, before = [], 0
    for slot in _turns(sorted({servo.id for servo in servos}), servos, say):
        number = slot.speeches[0].servo.id
        slots.append(Slot(slot.speeches, wait_bytes=(number - before) * _TURN_BYTES))
        before = number + 1
    return slots


def _addressed(number: int, servos: list[XServo]) -> list[XServo]:
    return [servo for servo in servos if number in (servo.id, servo.shadow_id, BROADCAST_ID)]


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _bulk(data: bytes) -> list[tuple[int, tuple[int, int]]]:
    return [(data[at], (_word(data, at + 1), _word(data, at + 3))) for at in range(0, len(data) - 4, 5)]


def _writes(code: int, data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yields id, address and bytes of a sync or bulk write."""
    if code == DynamixelCode.SYNC_WRITE:
        address, size = _word(data, 0), _word(data, 2)
        for at in range(4, len(data) - size, size + 1):
            yield data[at], address, data[at + 1 : at + 1 + size]
        return
    at = 0
    while at + 5 <= len(data):
        size = _word(data, at + 3)
        yield data[at], _word(data, at + 1), data[at + 5 : at + 5 + size]
        at += 5 + size
