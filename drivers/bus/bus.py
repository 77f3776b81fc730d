"""A bus of servos: reads and writes registers by name, returns what it could get, and says of the rest why not.

    with Bus(SerialTransport("/dev/ttyACM0"), Feetech()) as bus:
        for servo, answer in bus.sync_read(FEETECH_TELEMETRY, (1, 2, 3, 4, 5, 6)).items():
            ...  # a Reply with bytes, error byte and time, or a Fault with a reason

A missing servo is a `Fault`, never an exception; a missing port is the exception `PortLost`, and nothing is sent before
`reopen`. The error byte of every answer is kept. Feetech's 8-bit sum cannot find every double error: positions go
through a plausibility gate above this.

One thread: a bus has no lock, for two threads that share a half-duplex line must agree on more than its bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TypeVar

from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.eeprom import write_verified
from roboalign.drivers.bus.exchange import FENCE_SIZES, Exchange, Request
from roboalign.drivers.bus.patience import BusSettings
from roboalign.drivers.bus.scan import Device, scan
from roboalign.drivers.bus.types import (
    BROADCAST_ID,
    Block,
    BusStats,
    Fault,
    FaultKind,
    PortLost,
    Register,
    Reply,
    Transport,
    WireProtocol,
)
from roboalign.sdk.control.clock import Clock
from roboalign.sdk.errors import RobotError, RobotTimeout

__all__ = ["Bus", "BusSettings", "Device"]

_AGAIN = (FaultKind.TIMEOUT, FaultKind.CORRUPT)
_MAX_CACHED = 512
_T = TypeVar("_T")


class Bus:
    """Servos on one serial line."""

    def __init__(
        self,
        transport: Transport,
        protocol: WireProtocol,
        *,
        settings: BusSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Stores the arguments; opens nothing.

        Args:
            transport: The port.
            protocol: `Feetech()` or `Dynamixel()`.
            settings: How patient to be.
            clock: The clock of the transport's deadlines.
        """
        self.transport = transport
        self.protocol = protocol
        self.settings = settings or BusSettings()
        self.stats = BusStats()
        self._now = clock.now if clock else time.monotonic
        self.exchange = Exchange(transport, protocol, self._now, self.settings, self.stats)
        """One question at a time, without names and retries: for scans and tools."""
        self._requests: dict[tuple[object, ...], Request] = {}
        self._is_lost = False

    def __enter__(self) -> Bus:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The port, for messages."""
        return self.transport.name

    @property
    def is_open(self) -> bool:
        """True between `open` and `close`, also while the port is lost."""
        return self.transport.is_open

    @property
    def is_lost(self) -> bool:
        """True from the loss of the port until `reopen`."""
        return self._is_lost

    def now(self) -> float:
        """Returns the time of the clock that `Reply.time_s` is on."""
        return self._now()

    def open(self) -> None:
        """Opens the port. Idempotent; raises RobotError when it cannot be opened."""
        if not self.transport.is_open:
            self.transport.open()
            self.exchange.forget()
            self._is_lost = False

    def close(self) -> None:
        """Closes the port, whatever its state. Idempotent; sends nothing, so torque stays as it is."""
        self.transport.close()

    def reopen(self) -> None:
        """Opens the port again after it was lost, under its new name. The servos may have been without power.

        Raises:
            RobotError: It is still not there.
        """
        self.transport.close()
        self.transport.open()
        self.exchange.forget()
        self._is_lost = False
        self.stats.reopens += 1

    def ping(self, id: int) -> Reply | Fault:  # noqa: A002 - the protocols' own word
        """Asks whether a device is there; the answer's bytes are the protocol's own."""
        size = self.protocol.probe_size
        return self._ask_one(id, ("probe",), lambda ids: self._request(self.protocol.probe(id), {id: size}))

    def read(self, place: Register | Block, id: int) -> Reply | Fault:  # noqa: A002
        """Reads a register or block of one device."""
        address, size, skip = self._span(place.address, place.size, self.protocol.confusing_size)
        answer = self._ask_one(
            id,
            ("read", address, size),
            lambda ids: self._request(self.protocol.read(id, address, size), {id: size}),
        )
        return answer if size == place.size else _cut(answer, skip, place.size)

    def read_value(self, register: Register, id: int) -> int:  # noqa: A002
        """Reads one value.

        Raises:
            RobotTimeout: The device does not answer.
            RobotError: It refused, or its answers are damaged.
        """
        return register.decode(_data(self.read(register, id), f"{self.name}: reading {register.name}"))

    def write(self, register: Register, id: int, value: int) -> Reply | Fault | None:  # noqa: A002
        """Writes one register; the answer says only that the packet arrived. None for a broadcast.

        Raises:
            RobotError: The value does not fit, or the register is read-only; nothing was sent.
        """
        data = self._encode(register, value)
        packet = self.protocol.write(id, register.address, data)
        if id == BROADCAST_ID:
            self._guard(lambda: self.exchange.tell(packet))
            return None
        return self._ask_one(id, None, lambda ids: self._request(packet, {id: 0}))

    def write_verified(self, register: Register, id: int, value: int) -> bool:  # noqa: A002
        """Writes one register if it holds another value, reads it back, and returns whether it had to be written.

        Opens and closes the EEPROM's lock where there is one; see `roboalign.drivers.bus.eeprom`.

        Raises:
            RobotError: The value does not fit, the device refuses, torque is on, or it reads back another value.
        """
        return write_verified(self, register, id, value)

    def sync_read(self, place: Register | Block, ids: Sequence[int]) -> dict[int, Reply | Fault]:
        """Reads the same place of several devices with one packet; a fault stands for each that did not answer."""
        wanted = tuple(ids)
        if not wanted:
            return {}
        address, size = place.address, place.size
        request = self._requests.get((address, size, wanted))
        if request is None or self._is_lost:
            return self._sync_read(address, size, wanted, None)
        try:
            answers = self.exchange.ask_again(request)
        except PortLost:
            self._is_lost = True
            raise
        if answers is not None and self.exchange.is_complete:
            return answers
        return self._sync_read(address, size, wanted, answers)

    def _sync_read(
        self, address: int, size: int, ids: tuple[int, ...], first: dict[int, Reply | Fault] | None
    ) -> dict[int, Reply | Fault]:
        """Does it with all care; `first` is what the first attempt gave, if there was one."""
        if size in FENCE_SIZES:
            start, more, skip = self._span(address, size)
            answers = self._sync_read(start, more, ids, None)
            return {servo: _cut(answer, skip, size) for servo, answer in answers.items()}
        is_fast = self.settings.has_fast_read and isinstance(self.protocol, Dynamixel)

        def build(wanted: tuple[int, ...]) -> Request:
            key = (address, size, wanted)
            return self._requests.get(key) or self._keep(key, self._sync_request(address, size, wanted, is_fast))

        return self._retry(ids, build, self.settings.num_sync_retries, is_eager=False, first=first)

    def sync_write(self, register: Register, values: Mapping[int, int]) -> None:
        """Writes the same register of several devices with one packet. Nobody answers: read back what matters.

        Raises:
            RobotError: A value does not fit, or the register is read-only; nothing was sent.
        """
        if values:
            data = {servo: self._encode(register, value) for servo, value in values.items()}
            packet = self.protocol.sync_write(register.address, data)
            self._guard(lambda: self.exchange.tell(packet))

    def bulk_read(self, places: Mapping[int, Register | Block]) -> dict[int, Reply | Fault]:
        """Reads another place of each device: one packet (Dynamixel), or a sync read per place (Feetech)."""
        protocol = self.protocol
        spans = {servo: self._span(place.address, place.size) for servo, place in places.items()}
        answers: dict[int, Reply | Fault] = {}
        if isinstance(protocol, Dynamixel):

            def build(wanted: tuple[int, ...]) -> Request:
                sizes = {servo: spans[servo][1] for servo in wanted}
                packet = protocol.bulk_read({servo: spans[servo][:2] for servo in wanted})
                replies = protocol.bulk_replies(wanted, list(sizes.values()))
                wire_s = self.exchange.wire_s(len(packet) + replies.num_bytes, len(wanted))
                return Request(packet, sizes, replies, wire_s)

            if places:
                answers = self._retry(tuple(places), build, self.settings.num_sync_retries, is_eager=False)
        else:
            groups: dict[tuple[int, int], list[int]] = {}
            for servo, (address, size, _) in spans.items():
                groups.setdefault((address, size), []).append(servo)
            for (address, size), members in groups.items():
                whole = Register(name="bulk", address=address, size=size)
                answers.update(self.sync_read(whole, members))
        return {
            servo: _cut(answers[servo], spans[servo][2], place.size)
            if spans[servo][1] != place.size
            else answers[servo]
            for servo, place in places.items()
        }

    def bulk_write(self, values: Mapping[int, tuple[Register, int]]) -> None:
        """Writes another register of each device. Nobody answers."""
        protocol = self.protocol
        if isinstance(protocol, Dynamixel):
            if values:
                data = {servo: (reg.address, self._encode(reg, value)) for servo, (reg, value) in values.items()}
                packet = protocol.bulk_write(data)
                self._guard(lambda: self.exchange.tell(packet))
            return
        groups: dict[Register, dict[int, int]] = {}
        for servo, (register, value) in values.items():
            self._encode(register, value)  # refuse all before sending any
            groups.setdefault(register, {})[servo] = value
        for register, members in groups.items():
            self.sync_write(register, members)

    def reboot(self, id: int) -> None:  # noqa: A002
        """Restarts a device, which drops its torque; wait half a second before asking it anything."""
        packet = self.protocol.reboot(id)
        self._guard(lambda: self.exchange.tell(packet))
        self.exchange.owe([id])

    def scan(self, ids: Iterable[int] = range(1, 31), *, wait_s: float = 0.006) -> dict[int, Device]:
        """Looks for devices by pinging one id after another, twice: 0.4 s for 30 ids. Finds ids that are used twice."""
        return self._guard(lambda: scan(self, tuple(ids), wait_s))

    def scan_bauds(
        self, bauds: Iterable[int], ids: Iterable[int] = range(1, 31), *, wait_s: float = 0.006
    ) -> dict[int, dict[int, Device]]:
        """Scans at every rate, and returns what was found by rate, leaving out rates without devices."""
        wanted, before = tuple(ids), self.transport.baud
        found: dict[int, dict[int, Device]] = {}
        try:
            for baud in bauds:
                self.set_baud(baud)
                devices = self.scan(wanted, wait_s=wait_s)
                if devices:
                    found[baud] = devices
        finally:
            self.set_baud(before)
        return found

    def set_baud(self, baud: int) -> None:
        """Changes the rate of the port, not that of the devices."""
        if baud != self.transport.baud:
            self._guard(lambda: self.transport.set_baud(baud))
            self._requests.clear()
            self.exchange.forget()

    def _span(self, address: int, size: int, other: int | None = None) -> tuple[int, int, int]:
        """Returns address and size to read, and how many bytes to skip: one more where the length is taken."""
        if size not in FENCE_SIZES and size != other:
            return address, size, 0
        return (address - 1, size + 1, 1) if address else (address, size + 1, 0)

    def _encode(self, register: Register, value: int) -> bytes:
        if register.is_read_only:
            raise RobotError(f"register {register.name} is read-only; nothing was sent")
        return register.encode(value)

    def _request(self, packet: bytes, sizes: Mapping[int, int]) -> Request:
        replies = self.protocol.replies(tuple(sizes), next(iter(sizes.values())))
        return Request(packet, sizes, replies, self.exchange.wire_s(len(packet) + replies.num_bytes, len(sizes)))

    def _sync_request(self, address: int, size: int, ids: tuple[int, ...], is_fast: bool) -> Request:
        sizes = dict.fromkeys(ids, size)
        if is_fast and isinstance(self.protocol, Dynamixel):
            packet = self.protocol.fast_sync_read(address, size, ids)
            replies = self.protocol.fast_replies(ids, size)
            return Request(packet, sizes, replies, self.exchange.wire_s(len(packet) + replies.num_bytes, len(ids)))
        return self._request(self.protocol.sync_read(address, size, ids), sizes)

    def _keep(self, key: tuple[object, ...], request: Request) -> Request:
        if len(self._requests) >= _MAX_CACHED:
            self._requests.clear()
        self._requests[key] = request
        return request

    def _ask_one(
        self,
        id: int,  # noqa: A002
        key: tuple[object, ...] | None,
        make: Callable[[tuple[int, ...]], Request],
    ) -> Reply | Fault:
        def build(wanted: tuple[int, ...]) -> Request:
            if key is None:
                return make(wanted)
            full = (*key, id)
            return self._requests.get(full) or self._keep(full, make(wanted))

        return self._retry((id,), build, self.settings.num_retries, is_eager=True)[id]

    def _retry(
        self,
        ids: tuple[int, ...],
        build: Callable[[tuple[int, ...]], Request],
        num_retries: int,
        *,
        is_eager: bool,
        first: dict[int, Reply | Fault] | None = None,
    ) -> dict[int, Reply | Fault]:
        """Asks, then asks again those who did not answer right; `first` is a first attempt that was made already."""
        if self._is_lost:
            raise PortLost(f"{self.name} is gone; reopen it")
        try:
            end_s = self._now() + self.settings.reply_timeout_s
            answers = self.exchange.ask(ids, build, is_eager=is_eager) if first is None else first
            for _ in range(num_retries):
                if not is_eager and self._now() >= end_s:  # a loop has other things to do than to wait twice
                    break
                again = tuple(
                    servo for servo, answer in answers.items() if isinstance(answer, Fault) and answer.kind in _AGAIN
                )
                if not again:
                    break
                self.stats.retries += 1
                answers.update(self.exchange.ask(again, build, is_eager=is_eager))
                if self.exchange.owing.issuperset(again):  # nobody of them passed the fence: gone, not unlucky
                    break
        except PortLost:
            self._is_lost = True
            raise
        return answers

    def _guard(self, act: Callable[[], _T]) -> _T:
        if self._is_lost:
            raise PortLost(f"{self.name} is gone; reopen it")
        try:
            return act()
        except PortLost:
            self._is_lost = True
            raise


def _cut(answer: Reply | Fault, skip: int, size: int) -> Reply | Fault:
    if isinstance(answer, Fault):
        return answer
    return Reply(answer.id, answer.error, answer.data[skip : skip + size], answer.time_s)


def _data(answer: Reply | Fault, what: str) -> bytes:
    if isinstance(answer, Reply):
        return answer.data
    kind = RobotTimeout if answer.kind is FaultKind.TIMEOUT else RobotError
    raise kind(f"{what}: {answer.detail}")
