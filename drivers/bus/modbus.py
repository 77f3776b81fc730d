"""Modbus RTU: packets as pure functions of bytes, and a master that asks one device at a time.

    ADDRESS FUNCTION BODY... CRC_L CRC_H        CRC-16, polynomial 0xA001, start 0xFFFF

A reply to a read names neither register nor request, as in the servo protocols; what keeps a late one from being taken
for another is the same fence: after any failure, a read of a number of registers that is kept for this, another each
time. A reply to a write repeats address and count, which are compared.
Functions 3, 4, 16 and 23; no broadcast.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from roboalign.drivers.bus.types import BusStats, PortLost, Transport
from roboalign.sdk.control.clock import Clock, MonotonicClock
from roboalign.sdk.errors import RobotError, RobotTimeout

__all__ = [
    "Modbus",
    "modbus_crc",
    "modbus_frame",
    "read_holding",
    "read_input",
    "write_registers",
]

_READ_HOLDING, _READ_INPUT, _WRITE = 3, 4, 16
_FAILED = 0x80
_FENCE_COUNTS = (2, 4, 6, 8, 10, 12, 14, 16)
_MAX_COUNT = 123
_EXCEPTIONS = {1: "unknown function", 2: "no such register", 3: "bad value", 4: "device failure", 6: "busy"}


def modbus_crc(data: bytes) -> int:
    """Returns the CRC of bytes; it is sent low byte first."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc


def modbus_frame(device: int, function: int, body: bytes) -> bytes:
    """Returns a packet.

    Raises:
        RobotError: The address is not 1 to 247.
    """
    if not 1 <= device <= 247:
        raise RobotError(f"a Modbus device has an address of 1 to 247, not {device}")
    frame = bytes((device, function)) + body
    return frame + modbus_crc(frame).to_bytes(2, "little")


def read_holding(device: int, register: int, count: int) -> bytes:
    """Returns the packet that reads holding registers."""
    return modbus_frame(device, _READ_HOLDING, struct.pack(">HH", register, count))


def read_input(device: int, register: int, count: int) -> bytes:
    """Returns the packet that reads input registers."""
    return modbus_frame(device, _READ_INPUT, struct.pack(">HH", register, count))


def write_registers(device: int, register: int, values: Sequence[int]) -> bytes:
    """Returns the packet that writes registers."""
    body = struct.pack(">HHB", register, len(values), 2 * len(values)) + struct.pack(f">{len(values)}H", *values)
    return modbus_frame(device, _WRITE, body)


class Modbus:
    """Asks devices on one RS-485 line. One thread."""

    def __init__(self, transport: Transport, *, timeout_s: float = 0.1, clock: Clock | None = None) -> None:
        """Stores the arguments; `clock` is that of the transport's deadlines."""
        self.transport = transport
        self.stats = BusStats()
        self._timeout_s = timeout_s
        self._now = (clock or MonotonicClock()).now
        self._owing: set[int] = set()
        self._num_fences = 0

    def open(self) -> None:
        """Opens the port."""
        self.transport.open()
        self._owing.clear()

    def close(self) -> None:
        """Closes the port. Idempotent."""
        self.transport.close()

    def read(self, device: int, register: int, count: int, *, is_input: bool = False) -> tuple[int, ...]:
        """Reads registers.

        Raises:
            RobotTimeout: No answer.
            RobotError: The device refuses, or the answer is damaged.
            PortLost: The port is gone.
        """
        _check_count(count)
        asked = count + 1 if count in _FENCE_COUNTS else count  # the fences' numbers are taken
        packet = (read_input if is_input else read_holding)(device, register, asked)
        body = self._ask(device, packet, 5 + 2 * asked)
        return struct.unpack(f">{asked}H", body[1:])[:count]

    def write(self, device: int, register: int, values: Sequence[int]) -> None:
        """Writes registers; see `read` for what is raised."""
        _check_count(len(values))
        packet = write_registers(device, register, values)
        if self._ask(device, packet, 8) != packet[2:6]:
            self._owing.add(device)
            raise RobotError(f"{self.transport.name}: device {device} confirmed another write than was asked for")

    def _ask(self, device: int, packet: bytes, num_bytes: int) -> bytes:
        """Returns the body of the answer, without address, function and CRC."""
        if self.transport.read(0.0):
            self._owing.add(device)
        if device in self._owing:
            count = _FENCE_COUNTS[self._num_fences % len(_FENCE_COUNTS)]
            self._num_fences += 1
            self.stats.fences += 1
            self._exchange(device, read_holding(device, 0, count), 5 + 2 * count, is_fence=True)
            self._owing.discard(device)
        return self._exchange(device, packet, num_bytes, is_fence=False)

    def _exchange(self, device: int, packet: bytes, num_bytes: int, *, is_fence: bool) -> bytes:
        self.stats.transactions += 1
        deadline_s = self._now() + self._timeout_s + 10 * (len(packet) + num_bytes) / self.transport.baud
        self.transport.write(packet, deadline_s)
        data = b""
        try:
            while chunk := self.transport.read(deadline_s):
                data += chunk
                answer = _find(data, packet, num_bytes)
                if answer is not None:
                    return self._check(device, answer, is_fence)
        except PortLost:
            self._owing.clear()
            raise
        self._owing.add(device)
        if data:
            self.stats.corrupt += 1
            raise RobotError(f"{self.transport.name}: the answer of device {device} was damaged; check the wiring")
        self.stats.timeouts += 1
        raise RobotTimeout(
            f"{self.transport.name}: device {device} did not answer within {self._timeout_s:g} s; check power, "
            "A/B wires and address"
        )

    def _check(self, device: int, answer: bytes, is_fence: bool) -> bytes:
        if answer[1] & _FAILED and not is_fence:  # a fence may ask for registers that are not there: it answered
            reason = _EXCEPTIONS.get(answer[2], f"exception {answer[2]}")
            raise RobotError(f"{self.transport.name}: device {device} refused function {answer[1] & 0x7F}: {reason}")
        self.stats.replies += 1
        return answer[2:-2]


def _find(data: bytes, packet: bytes, num_bytes: int) -> bytes | None:
    """Returns the answer in a buffer: right device, function, length and CRC, and no echo of the question."""
    start = len(packet) if data.startswith(packet) and len(packet) != num_bytes else 0
    for at in range(start, len(data) - 4):
        size = num_bytes if data[at + 1] == packet[1] else 5
        if data[at] != packet[0] or data[at + 1] & ~_FAILED != packet[1] or at + size > len(data):
            continue
        answer = data[at : at + size]
        has_count = packet[1] == _WRITE or size == 5 or answer[2] == size - 5
        if has_count and modbus_crc(answer[:-2]) == answer[-2] | answer[-1] << 8:
            return answer
    return None


def _check_count(count: int) -> None:
    if not 1 <= count <= _MAX_COUNT:
        raise RobotError(f"Modbus moves 1 to {_MAX_COUNT} registers at a time, not {count}")
