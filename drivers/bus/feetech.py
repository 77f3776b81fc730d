"""Feetech STS and SMS servos: packets as pure functions of bytes, for the host and for a device.

    FF FF ID LEN INST PARAMS... SUM     instruction; LEN counts what follows it, SUM = ~(ID + LEN + INST + PARAMS)
    FF FF ID LEN ERR  PARAMS... SUM     status: the same frame, so an echoed instruction looks like an answer

The sum has 8 bits: it finds every error within one byte, and lets about one in a hundred 2-bit errors through. Readings
need a plausibility check above this (`roboalign.drivers.arm`). The SCS series (big-endian, no sync read) is not
served.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum

from roboalign.drivers.bus.framing import Frame, Measure, Scan, StreamParser, scan
from roboalign.drivers.bus.types import BROADCAST_ID, Instruction, Register, Reply, Status
from roboalign.sdk.errors import RobotError

__all__ = ["Feetech", "FeetechCode", "FeetechReplies"]

_HEADER = b"\xff\xff"
_MAX_ID = 0xFD
_MAX_PARAMS = 253
_ERRORS = ("input voltage", "position sensor", "temperature", "current", "angle", "overload")


class FeetechCode(IntEnum):
    """Instruction bytes."""

    PING = 1
    READ = 2
    WRITE = 3
    REG_WRITE = 4
    ACTION = 5
    FACTORY_RESET = 6
    REBOOT = 8
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83


class Feetech:
    """The protocol, without state. Implements `roboalign.drivers.bus.types.WireProtocol`."""

    name = "feetech"
    confusing_size: int | None = 2
    """A read of 2 bytes, echoed, looks like an answer of 2 bytes with error 2."""
    probe_size = 1
    """Parameter bytes in the answer to `probe`."""
    id_register = Register(name="id", address=5, is_eeprom=True)
    """Where the id is kept."""
    torque = Register(name="torque_enable", address=40)
    """1 turns the motor on."""
    lock: Register | None = Register(name="lock", address=55)
    """1 write-protects the EEPROM."""

    def encode(self, id: int, code: int, data: bytes = b"") -> bytes:  # noqa: A002 - the protocol's own word
        """Returns an instruction packet.

        Raises:
            RobotError: The id is above 0xFE or there are more than 253 bytes; nothing may be sent.
        """
        if not 0 <= id <= BROADCAST_ID or len(data) > _MAX_PARAMS:
            raise RobotError(f"a Feetech packet has an id of 0 to 254 and up to 253 bytes, not {id} and {len(data)}")
        body = bytes((id, len(data) + 2, code)) + data
        return _HEADER + body + bytes((~sum(body) & 0xFF,))

    def encode_status(self, id: int, error: int, data: bytes = b"") -> bytes:  # noqa: A002
        """Returns the packet with which a device answers."""
        return self.encode(id, error, data)

    def ping(self, id: int) -> bytes:  # noqa: A002
        """Returns the packet that asks one device, or all, to answer."""
        return self.encode(id, FeetechCode.PING)

    def probe(self, id: int) -> bytes:  # noqa: A002
        """Returns a read of the id: the echo of a ping looks like the answer of a servo with low voltage."""
        return self.read(id, self.id_register.address, self.probe_size)

    def read(self, id: int, address: int, size: int) -> bytes:  # noqa: A002
        """Returns the packet that reads `size` bytes."""
        return self.encode(id, FeetechCode.READ, bytes((address, size)))

    def write(self, id: int, address: int, data: bytes) -> bytes:  # noqa: A002
        """Returns the packet that writes bytes; the device answers, unless all are meant."""
        return self.encode(id, FeetechCode.WRITE, bytes((address,)) + data)

    def reg_write(self, id: int, address: int, data: bytes) -> bytes:  # noqa: A002
        """Returns the packet that writes bytes when `action` comes."""
        return self.encode(id, FeetechCode.REG_WRITE, bytes((address,)) + data)

    def action(self, id: int = BROADCAST_ID) -> bytes:  # noqa: A002
        """Returns the packet that lets the writes of `reg_write` happen."""
        return self.encode(id, FeetechCode.ACTION)

    def reboot(self, id: int) -> bytes:  # noqa: A002
        """Returns the packet that restarts a device. Not in every firmware: unverified on hardware."""
        return self.encode(id, FeetechCode.REBOOT)

    def sync_read(self, address: int, size: int, ids: Sequence[int]) -> bytes:
        """Returns the packet that reads the same bytes of several devices, which answer one after another."""
        return self.encode(BROADCAST_ID, FeetechCode.SYNC_READ, bytes((address, size, *ids)))

    def sync_write(self, address: int, values: Mapping[int, bytes]) -> bytes:
        """Returns the packet that writes the same place of several devices; nobody answers."""
        size = _common_size(values)
        parts = [bytes((servo,)) + data for servo, data in values.items()]
        return self.encode(BROADCAST_ID, FeetechCode.SYNC_WRITE, bytes((address, size)) + b"".join(parts))

    def parser(self) -> StreamParser[Status]:
        """Returns a new parser of status packets. An echoed instruction to one device passes: the bus knows it."""
        return StreamParser(_measure, _as_status)

    def instruction_parser(self) -> StreamParser[Instruction]:
        """Returns a new parser of instruction packets, for devices."""
        return StreamParser(_measure, lambda frame: Instruction(frame.id, frame.code, frame.data))

    def scan(self, data: bytes, *, is_final: bool = False) -> tuple[list[Status], Scan]:
        """Returns the status packets in a buffer, and what is left of it."""
        result = scan(_measure, data, is_final=is_final)
        statuses = [_as_status(frame) for frame in result.frames]
        return [status for status in statuses if status is not None], result

    def replies(self, ids: Sequence[int], size: int) -> FeetechReplies:
        """Returns what undamaged answers of these devices, in this order, look like."""
        return FeetechReplies(ids, size)

    def status_size(self, num_data: int) -> int:
        """Returns the bytes of a status packet with `num_data` parameter bytes."""
        return num_data + 6

    def describe_error(self, error: int) -> str:
        """Returns the error byte in words, empty for 0."""
        known = [name for bit, name in enumerate(_ERRORS) if error >> bit & 1]
        if error >> len(_ERRORS):
            known.append(f"unknown bits 0x{error & 0xC0:02x}")
        return ", ".join(known)

    def is_rejection(self, error: int) -> bool:
        """False: the error byte only alerts. A Feetech servo clamps or ignores in silence."""
        return False


class FeetechReplies:
    """The answers to one request when nothing is damaged: all lengths and places are known, so checking is cheap."""

    def __init__(self, ids: Sequence[int], size: int) -> None:
        """Precomputes the head of every answer of `size` parameter bytes."""
        self._ids = tuple(ids)
        self._clean_heads = tuple(_HEADER + bytes((servo, size + 2, 0)) for servo in self._ids)
        self._unpack_clean = struct.Struct("<" + f"5s{size}sB" * len(self._ids)).unpack
        self._heads = tuple(_HEADER + bytes((servo, size + 2)) for servo in self._ids)
        self._sums = [servo + size + 2 for servo in self._ids]
        layout = struct.Struct("<" + f"4sB{size}sB" * len(self._ids))
        self._unpack = layout.unpack
        self.num_bytes = layout.size
        """Bytes of all answers together."""

    def clean(self, data: bytes, time_s: float) -> dict[int, Reply] | None:
        """Returns the answers by id when nothing is damaged, missing, too much, or an alert; else None."""
        if len(data) != self.num_bytes:
            return None
        parts = self._unpack_clean(data)
        if parts[::3] != self._clean_heads:
            return None
        answers = {}
        for servo, head, params, check in zip(self._ids, self._sums, parts[1::3], parts[2::3], strict=True):
            if (head + sum(params) + check) & 0xFF != 0xFF:
                return None
            answers[servo] = Reply(servo, 0, params, time_s)
        return answers

    def match(self, data: bytes) -> list[Status] | None:
        """Returns one status for each id, or None when anything at all is not as it should be."""
        if len(data) != self.num_bytes:
            return None
        parts = self._unpack(data)
        if parts[::4] != self._heads:
            return None
        found = []
        for servo, head, error, params, check in zip(
            self._ids, self._sums, parts[1::4], parts[2::4], parts[3::4], strict=True
        ):
            if (head + error + sum(params) + check) & 0xFF != 0xFF:
                return None
            found.append(Status(servo, error, params))
        return found


def _common_size(values: Mapping[int, bytes]) -> int:
    sizes = {len(data) for data in values.values()}
    if len(sizes) != 1:
        raise RobotError(f"a sync write needs the same number of bytes for every id, found {sorted(sizes)}")
    return sizes.pop()


def _measure(data: bytes, at: int) -> Measure:
    num_bytes = len(data)
    start = data.find(_HEADER, at)
    if start < 0:
        is_half = num_bytes > at and data[-1] == 0xFF
        return Measure(num_bytes - is_half, num_bytes, None, is_half)
    while start + 2 < num_bytes and data[start + 2] == 0xFF:  # a longer run of 0xFF: the header is its end
        start += 1
    if start + 4 > num_bytes:
        return Measure(start, num_bytes, None, True)
    end = start + 4 + data[start + 3]
    if data[start + 3] < 2:
        return Measure(start, start + 1, None, False)
    if end > num_bytes:
        return Measure(start, end, None, True)
    if sum(data[start + 2 : end]) & 0xFF != 0xFF:
        return Measure(start, start + 1, None, False)
    return Measure(start, end, Frame(data[start + 2], data[start + 4], data[start + 5 : end - 1]), False)


def _as_status(frame: Frame) -> Status | None:
    return Status(frame.id, frame.code, frame.data) if frame.id <= _MAX_ID else None
