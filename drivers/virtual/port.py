"""A virtual line as a `Transport`, without thread, process or pseudo-terminal: for tests that count by the million."""

from __future__ import annotations

from roboalign.drivers.bus.types import PortLost
from roboalign.drivers.virtual.line import VirtualLine
from roboalign.sdk.control.clock import Clock, FakeClock
from roboalign.sdk.errors import RobotError

__all__ = ["VirtualPort"]


class VirtualPort:
    """A host's end of a line. Waiting moves the clock; with a `FakeClock` it takes no time."""

    def __init__(self, line: VirtualLine, clock: Clock | None = None, *, baud: int = 1_000_000) -> None:
        """Stores the line, the clock of all deadlines (default: a `FakeClock`) and the host's rate."""
        self.line = line
        self._baud = baud
        self.clock: Clock = clock or FakeClock()
        self._is_open = False
        self._opened_as = 0

    @property
    def name(self) -> str:
        """Where it leads; another name after every replug, as in life."""
        return f"virtual{self.line.num_replugs}"

    @property
    def is_open(self) -> bool:
        """True between `open` and `close`, also while the port is lost."""
        return self._is_open

    @property
    def baud(self) -> int:
        """Bits per second; servos with another rate hear nothing."""
        return self._baud

    def set_baud(self, baud: int) -> None:
        """Changes the rate, at once when it is open."""
        self._baud = baud
        if self._is_open:
            self.line.baud_hz = baud

    def open(self) -> None:
        """Opens the port.

        Raises:
            RobotError: The adapter is not plugged in.
        """
        if not self.line.is_plugged:
            raise RobotError(f"{self.name} is not there; the virtual adapter is unplugged")
        self._opened_as = self.line.num_replugs
        self._is_open = True
        self.line.baud_hz = self._baud
        self.line.quiet()

    def close(self) -> None:
        """Closes it. Idempotent."""
        self._is_open = False

    def write(self, data: bytes, deadline_s: float) -> None:
        """Sends all bytes; with byte times the line is busy until they are out, but this does not wait."""
        del deadline_s
        self._require_port()
        self.line.receive(data, self.clock.now())
        self._require_port()

    def read(self, deadline_s: float) -> bytes:
        """Waits for bytes and returns those that are there, empty at the deadline."""
        self._require_port()
        while not (data := self.line.take(self.clock.now())):
            self.line.cut_if_spent()
            self._require_port()
            arrival_s = self.line.next_s()
            if arrival_s is None or arrival_s > deadline_s:
                self.clock.sleep_until(deadline_s)
                self.line.pass_time(self.clock.now())
                return b""
            self.clock.sleep_until(arrival_s)
        return data

    def _require_port(self) -> None:
        if not self._is_open:
            raise RobotError(f"{self.name} is not open; call open() first")
        if not self.line.is_plugged or self._opened_as != self.line.num_replugs:
            raise PortLost(f"{self.name} is gone; the virtual adapter was unplugged")
