"""A bus in memory whose line can be made to misbehave, for both protocols."""

from __future__ import annotations

from collections.abc import Callable

from roboalign.drivers.bus.bus import Bus, BusSettings
from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.exchange import FENCE_SIZES
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.bus.memory import MemoryServos, MemoryTransport
from roboalign.sdk.control.clock import FakeClock

IDS = (1, 2, 3, 4, 5, 6)

Answers = list[tuple[float, bytes]]


class Bench:
    """A bus, its servos, and `spoil`: called with what was written and the answers, returns what arrives."""

    def __init__(self, protocol: Feetech | Dynamixel, settings: BusSettings | None = None) -> None:
        self.protocol = protocol
        self.clock = FakeClock(100.0)
        self.servos = MemoryServos(protocol, IDS)
        self.written: list[bytes] = []
        self.spoil: Callable[[bytes, Answers], Answers] = lambda packet, answers: answers
        self.transport = MemoryTransport(self._line, self.clock)
        self.bus = Bus(self.transport, protocol, settings=settings, clock=self.clock)
        for servo, table in self.servos.tables.items():
            table[:] = bytes((servo * 16 + at) & 0x7F for at in range(len(table)))
        self.bus.open()

    def _line(self, packet: bytes) -> Answers:
        self.written.append(packet)
        return self.spoil(packet, self.servos(packet))

    def data(self, servo: int, address: int, size: int) -> bytes:
        return bytes(self.servos.tables[servo][address : address + size])

    def is_fence(self, packet: bytes) -> bool:
        return any(packet == self.protocol.read(servo, 0, size) for servo in IDS for size in FENCE_SIZES)
