"""One pseudo-terminal that looks like a serial adapter: raw, non-blocking, and it tells what rate the host has set.

The slave end is not held open here, so that a host's exclusive lock ends with the host, as it does on a real port. What
that costs: while no host has it open, whoever serves it looks for one every few milliseconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
import tty

__all__ = ["PtyPort"]

_TCGETS2 = 0x802C542A  # Linux, all architectures with the generic ioctl numbers (x86, Arm)
_TERMIOS2 = struct.Struct("4IB19s2I")
_CHUNK = 65_536


class PtyPort:
    """The adapter's end of a pseudo-terminal. `open` makes it, `close` pulls it out of the host's hands."""

    def __init__(self) -> None:
        self._master = -1
        self.name = ""
        """The host's end, e.g. `/dev/pts/3`."""
        self.is_hung_up = False
        """True while no host has the port open, once one had."""

    def open(self, other_than: str = "") -> PtyPort:
        """Makes a pseudo-terminal whose name is not `other_than`."""
        master, slave = os.openpty()
        name = os.ttyname(slave)
        if name == other_than:
            second = PtyPort().open()
            os.close(slave)
            os.close(master)
            self._master, self.name, self.is_hung_up = second._master, second.name, second.is_hung_up
            return self
        tty.setraw(slave)
        os.close(slave)
        os.set_blocking(master, False)
        self._master, self.name, self.is_hung_up = master, name, True
        return self

    def fileno(self) -> int:
        """Returns the descriptor to wait on while `is_hung_up` is false."""
        return self._master

    @property
    def baud_hz(self) -> int:
        """The rate that the host has set."""
        raw = fcntl.ioctl(self._master, _TCGETS2, bytes(_TERMIOS2.size))
        return int(_TERMIOS2.unpack(raw)[-1])

    def read(self) -> bytes:
        """Returns what the host has sent, empty for nothing; notices that the host closed the port."""
        try:
            data = os.read(self._master, _CHUNK)
        except BlockingIOError:
            self.is_hung_up = False
            return b""
        except OSError:  # EIO: nobody has the other end open
            if not self.is_hung_up:
                self.is_hung_up = True
                with contextlib.suppress(termios.error):
                    tty.setraw(self._master)
            return b""
        self.is_hung_up = False
        return data

    def write(self, data: bytes) -> int:
        """Sends to the host and returns how many bytes found no room, as in a host that does not read."""
        if self.is_hung_up:
            return len(data)
        try:
            return len(data) - os.write(self._master, data)
        except OSError:
            return len(data)

    def close(self) -> None:
        """Pulls it out: a host that has it open gets an error. Idempotent."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
