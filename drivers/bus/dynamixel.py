"""Dynamixel Protocol 2.0: packets as pure functions of bytes, for the host and for a device.

    FF FF FD 00 ID LEN_L LEN_H INST PARAMS... CRC_L CRC_H     LEN counts what follows it
    status: INST is 0x55 and the first parameter is the error byte

`FF FF FD` after the length is written `FF FF FD FD` ("stuffing", counted in LEN and CRC), so a header never occurs
inside a packet. The CRC has 16 bits: it finds every error of up to 3 bits in a packet of a bus's size, every burst of
up to 16 bits, and all but 1 in 65536 of the rest. The answer to a fast sync read is one frame without stuffing, for no
device knows in advance what the others would add.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from functools import cache

from roboalign.drivers.bus.framing import Frame, Measure, Scan, StreamParser, scan
from roboalign.drivers.bus.types import BROADCAST_ID, Instruction, Register, Reply, Status
from roboalign.sdk.errors import RobotError

__all__ = ["Dynamixel", "DynamixelCode", "DynamixelFastReplies", "DynamixelReplies", "crc16"]

_HEADER = b"\xff\xff\xfd\x00"
_PLAIN, _STUFFED = b"\xff\xff\xfd", b"\xff\xff\xfd\xfd"
_STATUS = 0x55
_MAX_ID = 0xFC
_MAX_LENGTH = 0xFFFF
_MAX_STATUS_LENGTH = 4096
"""Longer than any control table; a damaged length must not make the parser wait for 65 kB."""
_ERRORS = {
    1: "result failed",
    2: "unknown instruction",
    3: "bad CRC",
    4: "value out of range",
    5: "wrong length",
    6: "limit exceeded",
    7: "access denied (read-only, or torque is on)",
}


class DynamixelCode(IntEnum):
    """Instruction bytes."""

    PING = 1
    READ = 2
    WRITE = 3
    REG_WRITE = 4
    ACTION = 5
    FACTORY_RESET = 6
    REBOOT = 8
    CLEAR = 0x10
    STATUS = _STATUS
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83
    FAST_SYNC_READ = 0x8A
    BULK_READ = 0x92
    BULK_WRITE = 0x93
    FAST_BULK_READ = 0x9A


@cache
def _crc_table() -> list[int]:
    """Remainders of all 16-bit words: half as many steps as with bytes, and 2 MB that only Dynamixel users pay."""
    high = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = crc << 1 ^ 0x8005 if crc & 0x8000 else crc << 1
        high.append(crc & 0xFFFF)
    return [crc << 8 & 0xFF00 ^ high[crc >> 8 ^ low] for crc in high for low in range(256)]


@cache
def _unpacker(num_words: int) -> Callable[[bytes], tuple[int, ...]]:
    return struct.Struct(f">{num_words}H").unpack


def crc16(data: bytes, crc: int = 0) -> int:
    """Returns the CRC (polynomial 0x8005, not reflected) of bytes, going on from an earlier one."""
    table = _crc_table()
    num_words = len(data) >> 1
    if len(data) & 1:
        for word in _unpacker(num_words)(data[:-1]):
            crc = table[crc ^ word]
        return crc << 8 & 0xFF00 ^ table[crc >> 8 ^ data[-1]]
    for word in _unpacker(num_words)(data):
        crc = table[crc ^ word]
    return crc


class Dynamixel:
    """The protocol, without state. Implements `roboalign.drivers.bus.types.WireProtocol`."""

    name = "dynamixel"
    confusing_size: int | None = None
    """An echo never looks like an answer."""
    probe_size = 3
    """Parameter bytes in the answer to a ping: model number, firmware."""
    id_register = Register(name="id", address=7, is_eeprom=True)
    """Where the id is kept."""
    torque = Register(name="torque_enable", address=64)
    """1 turns the motor on, and write-protects the EEPROM."""
    lock: Register | None = None
    """There is none."""

    def encode(self, id: int, code: int, data: bytes = b"") -> bytes:  # noqa: A002 - the protocol's own word
        """Returns an instruction packet, stuffed.

        Raises:
            RobotError: The id is above 0xFE or the packet would be too long; nothing may be sent.
        """
        body = bytes((code,)) + data
        if _PLAIN in body:
            body = body.replace(_PLAIN, _STUFFED)
        length = len(body) + 2
        if not 0 <= id <= BROADCAST_ID or length > _MAX_LENGTH:
            raise RobotError(
                f"a Dynamixel packet has an id of 0 to 254 and up to 65532 bytes, not {id} and {len(data)}"
            )
        packet = _HEADER + struct.pack("<BH", id, length) + body
        return packet + crc16(packet).to_bytes(2, "little")

    def encode_status(self, id: int, error: int, data: bytes = b"") -> bytes:  # noqa: A002
        """Returns the packet with which a device answers."""
        return self.encode(id, _STATUS, bytes((error,)) + data)

    def encode_fast_status(self, answers: Sequence[Status]) -> bytes:
        """Returns the one frame with which devices, in this order, answer a fast sync or bulk read."""
        length = sum(len(answer.data) + 4 for answer in answers) + 1
        frame = _HEADER + struct.pack("<BHB", BROADCAST_ID, length, _STATUS)
        for answer in answers:
            frame += bytes((answer.error, answer.id)) + answer.data
            frame += crc16(frame).to_bytes(2, "little")
        return frame

    def ping(self, id: int) -> bytes:  # noqa: A002
        """Returns the packet that asks one device, or all, to answer."""
        return self.encode(id, DynamixelCode.PING)

    def probe(self, id: int) -> bytes:  # noqa: A002
        """Returns a ping."""
        return self.ping(id)

    def read(self, id: int, address: int, size: int) -> bytes:  # noqa: A002
        """Returns the packet that reads `size` bytes."""
        return self.encode(id, DynamixelCode.READ, struct.pack("<HH", address, size))

    def write(self, id: int, address: int, data: bytes) -> bytes:  # noqa: A002
        """Returns the packet that writes bytes; the device answers, unless all are meant."""
        return self.encode(id, DynamixelCode.WRITE, struct.pack("<H", address) + data)

    def reg_write(self, id: int, address: int, data: bytes) -> bytes:  # noqa: A002
        """Returns the packet that writes bytes when `action` comes."""
        return self.encode(id, DynamixelCode.REG_WRITE, struct.pack("<H", address) + data)

    def action(self, id: int = BROADCAST_ID) -> bytes:  # noqa: A002
        """Returns the packet that lets the writes of `reg_write` happen."""
        return self.encode(id, DynamixelCode.ACTION)

    def reboot(self, id: int) -> bytes:  # noqa: A002
        """Returns the packet that restarts a device; it drops its torque."""
        return self.encode(id, DynamixelCode.REBOOT)

    def sync_read(self, address: int, size: int, ids: Sequence[int]) -> bytes:
        """Returns the packet that reads the same bytes of several devices, which answer one after another."""
        return self.encode(BROADCAST_ID, DynamixelCode.SYNC_READ, struct.pack("<HH", address, size) + bytes(ids))

    def fast_sync_read(self, address: int, size: int, ids: Sequence[int]) -> bytes:
        """Returns the packet that reads the same bytes of several devices, which share one answer."""
        return self.encode(BROADCAST_ID, DynamixelCode.FAST_SYNC_READ, struct.pack("<HH", address, size) + bytes(ids))

    def sync_write(self, address: int, values: Mapping[int, bytes]) -> bytes:
        """Returns the packet that writes the same place of several devices; nobody answers."""
        sizes = {len(data) for data in values.values()}
        if len(sizes) != 1:
            raise RobotError(f"a sync write needs the same number of bytes for every id, found {sorted(sizes)}")
        parts = [bytes((servo,)) + data for servo, data in values.items()]
        head = struct.pack("<HH", address, sizes.pop())
        return self.encode(BROADCAST_ID, DynamixelCode.SYNC_WRITE, head + b"".join(parts))

    def bulk_read(self, places: Mapping[int, tuple[int, int]]) -> bytes:
        """Returns the packet that reads (address, size) of each id; they answer one after another."""
        parts = [struct.pack("<BHH", servo, address, size) for servo, (address, size) in places.items()]
        return self.encode(BROADCAST_ID, DynamixelCode.BULK_READ, b"".join(parts))

    def bulk_write(self, values: Mapping[int, tuple[int, bytes]]) -> bytes:
        """Returns the packet that writes bytes at an address of each id; nobody answers."""
        parts = [struct.pack("<BHH", servo, address, len(data)) + data for servo, (address, data) in values.items()]
        return self.encode(BROADCAST_ID, DynamixelCode.BULK_WRITE, b"".join(parts))

    def parser(self) -> StreamParser[Status]:
        """Returns a new parser of status packets; echoed instructions are none."""
        return StreamParser(_measure, _as_status)

    def instruction_parser(self) -> StreamParser[Instruction]:
        """Returns a new parser of instruction packets, for devices; the others' answers are none."""
        return StreamParser(_measure, _as_instruction)

    def scan(self, data: bytes, *, is_final: bool = False) -> tuple[list[Status], Scan]:
        """Returns the status packets in a buffer, and what is left of it."""
        result = scan(_measure, data, is_final=is_final)
        statuses = [_as_status(frame) for frame in result.frames]
        return [status for status in statuses if status is not None], result

    def replies(self, ids: Sequence[int], size: int) -> DynamixelReplies:
        """Returns what undamaged answers of these devices, in this order, look like."""
        return DynamixelReplies(ids, [size] * len(ids))

    def bulk_replies(self, ids: Sequence[int], sizes: Sequence[int]) -> DynamixelReplies:
        """Returns what undamaged answers to a bulk read look like."""
        return DynamixelReplies(ids, sizes)

    def fast_replies(self, ids: Sequence[int], size: int) -> DynamixelFastReplies:
        """Returns what the one answer to a fast sync read looks like."""
        return DynamixelFastReplies(ids, size)

    def status_size(self, num_data: int) -> int:
        """Returns the bytes of a status packet with `num_data` parameter bytes and no stuffing."""
        return num_data + 11

    def describe_error(self, error: int) -> str:
        """Returns the error byte in words, empty for 0."""
        words = [_ERRORS.get(error & 0x7F, f"unknown error {error & 0x7F}")] if error & 0x7F else []
        return ", ".join([*words, *(["hardware alert (read hardware_error_status)"] if error & 0x80 else [])])

    def is_rejection(self, error: int) -> bool:
        """True when the device did not do what it was asked; the alert bit alone is none."""
        return bool(error & 0x7F)


class DynamixelReplies:
    """The answers to one request when nothing is damaged or stuffed: all places are known, so checking is cheap."""

    def __init__(self, ids: Sequence[int], sizes: Sequence[int]) -> None:
        """Precomputes the head of every answer of so many parameter bytes."""
        self._ids = tuple(ids)
        heads = [
            _HEADER + struct.pack("<BHB", servo, size + 4, _STATUS) for servo, size in zip(ids, sizes, strict=True)
        ]
        self._clean_heads = tuple(head + b"\0" for head in heads)
        self._clean_crcs = [crc16(head) for head in self._clean_heads]
        self._unpack_clean = struct.Struct("<" + "".join(f"9s{size}sH" for size in sizes)).unpack
        self._heads = tuple(heads)
        self._crcs = [crc16(head) for head in heads]
        layout = struct.Struct("<" + "".join(f"8s{size + 1}sH" for size in sizes))
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
        for servo, head, params, check in zip(self._ids, self._clean_crcs, parts[1::3], parts[2::3], strict=True):
            if crc16(params, head) != check:
                return None
            answers[servo] = Reply(servo, 0, params, time_s)
        return answers

    def match(self, data: bytes) -> list[Status] | None:
        """Returns one status for each id, or None when anything at all is not as it should be."""
        if len(data) != self.num_bytes:
            return None
        parts = self._unpack(data)
        if parts[::3] != self._heads:
            return None
        found = []
        for servo, head, params, check in zip(self._ids, self._crcs, parts[1::3], parts[2::3], strict=True):
            if crc16(params, head) != check:
                return None
            found.append(Status(servo, params[0], params[1:]))
        return found


class DynamixelFastReplies:
    """The one answer to a fast sync read. What precedes the first damage is still believed: every part has a CRC."""

    def __init__(self, ids: Sequence[int], size: int) -> None:
        """Precomputes the head of the frame."""
        self._ids = tuple(ids)
        self._size = size
        self._head = _HEADER + struct.pack("<BHB", BROADCAST_ID, len(ids) * (size + 4) + 1, _STATUS)
        self.num_bytes = len(self._head) + len(ids) * (size + 4)
        """Bytes of the whole frame."""

    def match(self, data: bytes) -> list[Status] | None:
        """Returns one status for each id, or None when anything at all is not as it should be."""
        if len(data) != self.num_bytes or not data.startswith(self._head):
            return None
        found = self.prefix(data)
        return found if len(found) == len(self._ids) else None

    def clean(self, data: bytes, time_s: float) -> dict[int, Reply] | None:
        """Returns the answers by id when nothing is damaged, missing, too much, or an alert; else None."""
        found = self.match(data)
        if found is None or any(status.error for status in found):
            return None
        return {status.id: Reply(status.id, 0, status.data, time_s) for status in found}

    def prefix(self, data: bytes) -> list[Status]:
        """Returns the answers up to the first that is missing or damaged, wherever the frame starts."""
        at = data.find(self._head)
        if at < 0:
            return []
        found = []
        crc, at, step = crc16(self._head), at + len(self._head), self._size + 4
        for servo in self._ids:
            part = data[at : at + step]
            crc = crc16(part[:-2], crc)
            if len(part) < step or part[1] != servo or part[-2:] != crc.to_bytes(2, "little"):
                break
            found.append(Status(servo, part[0], part[2:-2]))
            crc = crc16(part[-2:], crc)
            at += step
        return found


def _measure(data: bytes, at: int) -> Measure:
    num_bytes = len(data)
    start = data.find(_HEADER, at)
    if start < 0:
        for size in (3, 2, 1):
            if num_bytes - size >= at and data.endswith(_HEADER[:size]):
                return Measure(num_bytes - size, num_bytes, None, True)
        return Measure(num_bytes, num_bytes, None, False)
    if start + 8 > num_bytes:
        return Measure(start, num_bytes, None, True)
    length = data[start + 5] | data[start + 6] << 8
    end = start + 7 + length
    is_fast = data[start + 4] == BROADCAST_ID and data[start + 7] == _STATUS
    is_status = data[start + 7] == _STATUS
    if length < 3 or (is_status and length > _MAX_STATUS_LENGTH):
        return Measure(start, start + 1, None, False)
    if not is_fast:
        inner = data.find(_HEADER, start + 7, min(end - 2, num_bytes))
        if inner >= 0:  # stuffing keeps headers out of bodies: this packet lost its end
            return Measure(start, inner, None, False)
    if end > num_bytes:
        return Measure(start, end, None, True)
    if crc16(data[start : end - 2]) != data[end - 2] | data[end - 1] << 8:
        return Measure(start, start + 1, None, False)
    body = data[start + 7 : end - 2]
    if not is_fast and _STUFFED in body:
        body = body.replace(_STUFFED, _PLAIN)
    return Measure(start, end, Frame(data[start + 4], body[0], body[1:]), False)


def _as_status(frame: Frame) -> Status | None:
    if frame.code != _STATUS or frame.id > _MAX_ID or not frame.data:
        return None
    return Status(frame.id, frame.data[0], frame.data[1:])


def _as_instruction(frame: Frame) -> Instruction | None:
    return None if frame.code == _STATUS else Instruction(frame.id, frame.code, frame.data)
