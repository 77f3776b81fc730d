"""A line in memory: a transport without a port, and devices that are nothing but registers.

Time is a `FakeClock`: waiting costs none, so a million transactions take a minute. What a device says arrives after
the delay that it names, and never before what was said earlier: a serial line is first in, first out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from roboalign.drivers.bus.dynamixel import Dynamixel, DynamixelCode
from roboalign.drivers.bus.feetech import Feetech, FeetechCode
from roboalign.drivers.bus.types import BROADCAST_ID, Instruction, PortLost, Status
from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.errors import RobotError

__all__ = ["Line", "MemoryServos", "MemoryTransport"]

Line = Callable[[bytes], Iterable[tuple[float, bytes]]]
"""What answers: takes what was written, returns pairs of delay in seconds and bytes."""


class MemoryTransport:
    """Implements `roboalign.drivers.bus.types.Transport` on a function."""

    def __init__(self, line: Line, clock: FakeClock, *, baud: int = 1_000_000) -> None:
        """Stores the arguments; reading moves the clock to the next bytes or to the deadline."""
        self.line = line
        self.clock = clock
        self.is_lost = False
        """Set it to pull the plug."""
        self._baud = baud
        self._is_open = False
        self._arriving: deque[tuple[float, bytes]] = deque()

    @property
    def name(self) -> str:
        """Says that it is none."""
        return "memory"

    @property
    def baud(self) -> int:
        """Bits per second, which nothing here takes."""
        return self._baud

    @property
    def is_open(self) -> bool:
        """True between `open` and `close`."""
        return self._is_open

    def set_baud(self, baud: int) -> None:
        """Changes the rate."""
        self._baud = baud

    def open(self) -> None:
        """Opens it; nothing is waiting."""
        if self.is_lost:
            raise RobotError("memory is not there; it is unplugged")
        self._arriving.clear()
        self._is_open = True

    def close(self) -> None:
        """Closes it."""
        self._is_open = False

    def write(self, data: bytes, deadline_s: float) -> None:
        """Sends bytes. Raises PortLost."""
        self._check()
        now_s = self.clock.now()
        for delay_s, answer in self.line(data):
            due_s = now_s + delay_s
            if self._arriving and due_s < self._arriving[-1][0]:
                due_s = self._arriving[-1][0]
            self._arriving.append((due_s, answer))

    def read(self, deadline_s: float) -> bytes:
        """Returns what has arrived, or moves the clock on. Raises PortLost."""
        self._check()
        clock, arriving = self.clock, self._arriving
        if not arriving or arriving[0][0] > max(deadline_s, clock.now()):
            clock.sleep_until(deadline_s)
            return b""
        clock.sleep_until(arriving[0][0])
        now_s = clock.now()
        data = arriving.popleft()[1]
        while arriving and arriving[0][0] <= now_s:
            data += arriving.popleft()[1]
        return data

    def _check(self) -> None:
        if not self._is_open:
            raise RobotError("memory is not open")
        if self.is_lost:
            raise PortLost("memory is gone; plug it in, then open it again")


class MemoryServos:
    """Devices that keep bytes and answer at once; a `Line`. Motion and access rules are in `drivers.virtual`."""

    def __init__(self, protocol: Feetech | Dynamixel, ids: Iterable[int], *, num_bytes: int = 256) -> None:
        """Makes one control table of zeros for each id."""
        self.protocol = protocol
        self.tables = {id: bytearray(num_bytes) for id in ids}  # noqa: A001
        self.errors: dict[int, int] = {}
        """Error byte of each id that has one."""
        self.silent: set[int] = set()
        """Ids that do not answer."""
        self._parser = protocol.instruction_parser()
        self._wide = 1 if isinstance(protocol, Feetech) else 2
        self._ping_size = 0 if isinstance(protocol, Feetech) else protocol.probe_size

    def __call__(self, data: bytes) -> list[tuple[float, bytes]]:
        """Takes what was written and returns the answers, one packet each, without delay."""
        return [(0.0, answer) for asked in self._parser.feed(data) for answer in self._obey(asked)]

    def _number(self, data: bytes, at: int) -> int:
        return int.from_bytes(data[at : at + self._wide], "little")

    def _obey(self, asked: Instruction) -> list[bytes]:
        data, wide = asked.data, self._wide
        if asked.code in (FeetechCode.SYNC_READ, DynamixelCode.FAST_SYNC_READ):
            place = {id: (self._number(data, 0), self._number(data, wide)) for id in data[2 * wide :]}  # noqa: A001
            return self._answer(asked.code, place)
        if asked.code == DynamixelCode.BULK_READ:
            parts = [data[at : at + 5] for at in range(0, len(data), 5)]
            return self._answer(asked.code, {p[0]: (self._number(p, 1), self._number(p, 3)) for p in parts})
        if asked.code == FeetechCode.SYNC_WRITE:
            address, size = self._number(data, 0), self._number(data, wide)
            for at in range(2 * wide, len(data), size + 1):
                self._store(data[at], address, data[at + 1 : at + 1 + size])
            return []
        if asked.code == DynamixelCode.BULK_WRITE:
            at = 0
            while at < len(data):
                size = self._number(data, at + 3)
                self._store(data[at], self._number(data, at + 1), data[at + 5 : at + 5 + size])
                at += 5 + size
            return []
        ids = sorted(self.tables) if asked.id == BROADCAST_ID else [asked.id]
        return [answer for servo in ids for answer in self._obey_one(servo, asked)]

    def _obey_one(self, servo: int, asked: Instruction) -> list[bytes]:
        table = self.tables.get(servo)
        if table is None:
            return []
        if asked.code == FeetechCode.READ:
            return self._answer(
                asked.code, {servo: (self._number(asked.data, 0), self._number(asked.data, self._wide))}
            )
        if asked.code == FeetechCode.WRITE:
            self._store(servo, self._number(asked.data, 0), asked.data[self._wide :])
            return self._answer(asked.code, {servo: (0, 0)} if asked.id != BROADCAST_ID else {})
        if asked.code == FeetechCode.PING:
            return self._answer(asked.code, {servo: (0, self._ping_size)})
        return []

    def _store(self, servo: int, address: int, data: bytes) -> None:
        if servo in self.tables:
            self.tables[servo][address : address + len(data)] = data

    def _answer(self, code: int, places: Mapping[int, tuple[int, int]]) -> list[bytes]:
        known = {servo: place for servo, place in places.items() if servo in self.tables and servo not in self.silent}
        statuses = [
            Status(servo, self.errors.get(servo, 0), bytes(self.tables[servo][address : address + size]))
            for servo, (address, size) in known.items()
        ]
        if code == DynamixelCode.FAST_SYNC_READ and isinstance(self.protocol, Dynamixel):
            return [self.protocol.encode_fast_status(statuses)] if statuses else []
        return [self.protocol.encode_status(status.id, status.error, status.data) for status in statuses]
