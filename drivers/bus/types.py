"""What the layers of a serial bus say to each other: registers, packets, replies, faults, and the three protocols.

    codec (WireProtocol) -> Transport -> Bus -> joints (roboalign.drivers.arm)

Neither Feetech's nor Dynamixel's status packet names the register it answers, and neither has a sequence number. What
keeps an old answer from being taken for a new one is the bus: see `roboalign.drivers.bus.bus`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from roboalign.drivers.bus.framing import Scan
from roboalign.sdk.errors import RobotError

__all__ = [
    "BROADCAST_ID",
    "Block",
    "BusStats",
    "Fault",
    "FaultKind",
    "Instruction",
    "Parser",
    "PortLost",
    "Register",
    "Replies",
    "Reply",
    "ServoModel",
    "Status",
    "Transport",
    "WireProtocol",
]

BROADCAST_ID = 0xFE
"""The id that every device on the bus listens to, in both protocols."""


class PortLost(RobotError):
    """The port is gone: unplugged, or its driver failed. Nothing is sent again before `Bus.reopen`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Register:
    """One entry of a servo's control table; values are little-endian on the wire."""

    name: str
    """Standard name, lower case: `present_position`."""
    address: int
    """First byte in the control table."""
    size: int = 1
    """Bytes: 1, 2 or 4."""
    sign_bit: int | None = None
    """Bit that holds the sign of a sign-and-magnitude value (Feetech); None when there is none."""
    is_twos_complement: bool = False
    """True for signed Dynamixel values."""
    is_eeprom: bool = False
    """Kept without power; can be written only while torque is off (Dynamixel) or the lock is open (Feetech)."""
    is_read_only: bool = False
    """Cannot be written."""

    def decode(self, data: bytes) -> int:
        """Returns the value of `size` bytes."""
        raw = int.from_bytes(data[: self.size], "little")
        if self.sign_bit is not None:
            magnitude = raw & ((1 << self.sign_bit) - 1)
            return -magnitude if raw >> self.sign_bit & 1 else magnitude
        if self.is_twos_complement and raw >> (8 * self.size - 1):
            return raw - (1 << 8 * self.size)
        return raw

    def encode(self, value: int) -> bytes:
        """Returns `size` bytes.

        Raises:
            RobotError: The value does not fit; nothing may be sent.
        """
        low, high = self.bounds
        if not low <= value <= high:
            raise RobotError(f"register {self.name} takes {low} to {high}, not {value}; nothing was sent")
        if self.sign_bit is not None and value < 0:
            return (-value | 1 << self.sign_bit).to_bytes(self.size, "little")
        return (value % (1 << 8 * self.size)).to_bytes(self.size, "little")

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value that the register can hold."""
        if self.sign_bit is not None:
            return 1 - (1 << self.sign_bit), (1 << self.sign_bit) - 1
        if self.is_twos_complement:
            return -(1 << 8 * self.size - 1), (1 << 8 * self.size - 1) - 1
        return 0, (1 << 8 * self.size) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Neighbouring registers that are read in one go."""

    registers: tuple[Register, ...]
    """In the order of their addresses; gaps are allowed."""
    address: int = field(init=False)
    """First byte."""
    size: int = field(init=False)
    """Bytes from the first register to the end of the last one."""

    def __post_init__(self) -> None:
        first, last = self.registers[0], self.registers[-1]
        object.__setattr__(self, "address", first.address)
        object.__setattr__(self, "size", last.address + last.size - first.address)

    def decode(self, data: bytes) -> dict[str, int]:
        """Returns every register's value by name."""
        start = self.address
        return {r.name: r.decode(data[r.address - start : r.address - start + r.size]) for r in self.registers}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServoModel:
    """One kind of servo, and the supply that it stands."""

    number: int
    """What it answers as `model_number`."""
    name: str
    """Lower case: `sts3215`."""
    min_volts: float
    """Lowest supply, of the data sheet."""
    max_volts: float
    """Highest supply, of the data sheet."""


class Status(NamedTuple):
    """A status packet whose checksum was right: what a device answered."""

    id: int
    """Who says so."""
    error: int
    """The protocol's error byte, 0 for none; its meaning is the `WireProtocol`'s (`describe_error`)."""
    data: bytes
    """Parameters, without stuffing."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction packet whose checksum was right: what a host asked. The virtual devices read these."""

    id: int
    """Addressee, `BROADCAST_ID` for all."""
    code: int
    """The protocol's instruction byte."""
    data: bytes
    """Parameters, without stuffing."""


class Reply(NamedTuple):
    """An answer that the bus believes. A tuple, like `Status`: a loop makes hundreds a second."""

    id: int
    """Who answered."""
    error: int
    """The error byte, 0 for none. Never thrown away, in a sync read either."""
    data: bytes
    """Exactly as many bytes as were asked for."""
    time_s: float
    """Clock time at which the last byte had arrived."""


class FaultKind(Enum):
    """Why there is no answer."""

    TIMEOUT = "timeout"
    """Nothing, or not all of it, came before the deadline."""
    CORRUPT = "corrupt"
    """Bytes came that are no valid packet, or one of the wrong length."""
    REJECTED = "rejected"
    """The device answered that it would not: instruction, range, access."""
    IMPLAUSIBLE = "implausible"
    """A valid packet whose value cannot be true, twice."""
    LOST = "lost"
    """The port is gone."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A missing answer."""

    id: int
    """Who did not answer."""
    kind: FaultKind
    """Why."""
    detail: str
    """In a sentence, with what to look at."""


@dataclass(kw_only=True, slots=True)
class BusStats:
    """Counts since the bus was opened."""

    transactions: int = 0
    """Instructions sent."""
    replies: int = 0
    """Answers believed."""
    timeouts: int = 0
    """Answers that did not come in time."""
    corrupt: int = 0
    """Answers thrown away: checksum, length, wrong sender."""
    stale_bytes: int = 0
    """Bytes of late answers that a fence threw away."""
    fences: int = 0
    """Times the line was proven empty before going on."""
    retries: int = 0
    """Instructions sent again."""
    reopens: int = 0
    """Times the port was opened again."""
    errors: dict[int, int] = field(default_factory=dict)
    """Answers with an error byte that was not 0, by id."""


class Parser(Protocol):
    """Finds packets in a stream of bytes; keeps what is not complete yet, and resynchronises after garbage."""

    def feed(self, data: bytes) -> Sequence[Status]:
        """Takes bytes as they come, in any pieces, and returns the status packets that they complete."""
        ...

    def flush(self) -> Sequence[Status]:
        """Gives up what is not complete, and returns the packets that it hid."""
        ...

    def clear(self) -> int:
        """Forgets what is not complete yet; returns how many bytes that were."""
        ...

    @property
    def num_discarded(self) -> int:
        """Bytes that belonged to no valid packet, so far."""
        ...


class Replies(Protocol):
    """What the undamaged answers to one request look like: known ids, places and lengths, so checking is cheap."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all answers together."""
        ...

    def clean(self, data: bytes, time_s: float) -> dict[int, Reply] | None:
        """Returns the answers by id when nothing is damaged, missing, too much, or an alert; else None."""
        ...

    def match(self, data: bytes) -> Sequence[Status] | None:
        """Returns one status for each id in order, or None when anything at all is not as it should be."""
        ...


class WireProtocol(Protocol):
    """Bytes of one protocol, without any port: what a host sends, and how answers are found."""

    @property
    def name(self) -> str:
        """`feetech` or `dynamixel`."""
        ...

    @property
    def confusing_size(self) -> int | None:
        """Bytes whose read has an echo that passes for its answer; None when an echo never does."""
        ...

    @property
    def probe_size(self) -> int:
        """Parameter bytes in the answer to `probe`."""
        ...

    @property
    def id_register(self) -> Register:
        """The register that holds a device's id."""
        ...

    @property
    def torque(self) -> Register:
        """The register that turns the motor on."""
        ...

    @property
    def lock(self) -> Register | None:
        """The register that write-protects the EEPROM, None when torque alone does."""
        ...

    def ping(self, id: int) -> bytes:  # noqa: A002 - the protocols' own word
        """Returns the packet that asks one device, or all, to answer."""
        ...

    def probe(self, id: int) -> bytes:  # noqa: A002
        """Returns the packet that finds out whether a device is there; an echo cannot pass for its answer."""
        ...

    def read(self, id: int, address: int, size: int) -> bytes:  # noqa: A002
        """Returns the packet that reads `size` bytes."""
        ...

    def write(self, id: int, address: int, data: bytes) -> bytes:  # noqa: A002
        """Returns the packet that writes bytes; devices answer it, unless it is broadcast."""
        ...

    def sync_read(self, address: int, size: int, ids: Sequence[int]) -> bytes:
        """Returns the packet that reads the same bytes of several devices, which answer one after another."""
        ...

    def sync_write(self, address: int, values: Mapping[int, bytes]) -> bytes:
        """Returns the packet that writes the same place of several devices; nobody answers."""
        ...

    def reboot(self, id: int) -> bytes:  # noqa: A002
        """Returns the packet that restarts a device."""
        ...

    def encode_status(self, id: int, error: int, data: bytes = b"") -> bytes:  # noqa: A002
        """Returns the packet with which a device answers."""
        ...

    def parser(self) -> Parser:
        """Returns a new parser of status packets."""
        ...

    def scan(self, data: bytes, *, is_final: bool = False) -> tuple[Sequence[Status], Scan]:
        """Returns the status packets in a buffer; `is_final` gives up incomplete ones and refuses overlapping ones."""
        ...

    def replies(self, ids: Sequence[int], size: int) -> Replies:
        """Returns what undamaged answers of `size` parameter bytes look like."""
        ...

    def status_size(self, num_data: int) -> int:
        """Returns the bytes of a status packet with `num_data` parameter bytes and no stuffing."""
        ...

    def describe_error(self, error: int) -> str:
        """Returns the error byte in words, empty for 0."""
        ...

    def is_rejection(self, error: int) -> bool:
        """True when the device did not do what it was asked; false for a mere alert (overload, voltage)."""
        ...


class Transport(Protocol):
    """A line of bytes with deadlines. Deadlines are absolute, on the clock of `time.monotonic`."""

    @property
    def name(self) -> str:
        """Where it leads, for messages: `/dev/ttyACM0`."""
        ...

    @property
    def is_open(self) -> bool:
        """True between `open` and `close`, also while the port is lost."""
        ...

    @property
    def baud(self) -> int:
        """Bits per second; 10 of them make a byte."""
        ...

    def set_baud(self, baud: int) -> None:
        """Changes the rate, at once when it is open."""
        ...

    def open(self) -> None:
        """Opens the port for this process alone.

        Raises:
            RobotError: It is absent, somebody else's, or not permitted; the message says which and what to do.
        """
        ...

    def close(self) -> None:
        """Closes it. Idempotent, also when the port is lost."""
        ...

    def write(self, data: bytes, deadline_s: float) -> None:
        """Sends all bytes. Raises PortLost, or RobotTimeout at the deadline."""
        ...

    def read(self, deadline_s: float) -> bytes:
        """Waits for bytes without spinning and returns those that are there, empty at the deadline. Raises PortLost."""
        ...
