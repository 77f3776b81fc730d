"""A serial port with deadlines: it waits in `poll`, never spins, belongs to one process, and can be opened again.

Two locks, because neither is enough: `flock` keeps out pyserial's users (`exclusive=True`) and ourselves also when run
as root, `TIOCEXCL` keeps out every program that is not root's. Whoever holds the port is named by process id.

The name of a port changes when it is plugged in again (`/dev/ttyACM0` to `/dev/ttyACM1`), so the name under
`/dev/serial/by-id` is looked up when it is opened, and preferred from then on. Linux and macOS. Not thread-safe.
"""

from __future__ import annotations

import errno
import os
import select
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from roboalign.drivers.bus.types import PortLost
from roboalign.sdk.errors import RobotError, missing_extra

if TYPE_CHECKING:
    import serial

__all__ = ["SerialTransport", "find_owner", "list_ports"]

_BY_ID = Path("/dev/serial/by-id")
_PATTERNS = ("ttyACM*", "ttyUSB*")
_CHUNK = 4096


class SerialTransport:
    """One serial port. Implements `roboalign.drivers.bus.types.Transport`; deadlines are `time.monotonic()` times."""

    def __init__(self, port: str, baud: int = 1_000_000) -> None:
        """Stores the arguments.

        Args:
            port: A device, or a link to one; a name under `/dev/serial/by-id` survives replugging.
            baud: Bits per second.
        """
        self._port = port
        self._baud = baud
        self._by_id: str | None = None
        self._serial: serial.Serial | None = None
        self._fd = -1
        self._poll = select.poll()

    @property
    def name(self) -> str:
        """The port as it was given."""
        return self._port

    @property
    def baud(self) -> int:
        """Bits per second."""
        return self._baud

    @property
    def is_open(self) -> bool:
        """True between `open` and `close`, also while the port is lost."""
        return self._serial is not None

    def open(self) -> None:
        """Opens the port for this process alone; what was waiting in it is thrown away.

        Raises:
            RobotError: It is absent, somebody else's, or not permitted; the message says which and what to do.
        """
        if self._serial is not None:
            return
        try:
            import termios

            import serial
        except ImportError as err:
            raise missing_extra("pyserial", "serial", "a serial port") from err
        path = self._find()
        try:
            opened = serial.Serial(path, self._baud, timeout=0, write_timeout=0, exclusive=True)
        except (serial.SerialException, termios.error, OSError, ValueError) as err:
            raise _why_not(path, self._baud, err) from err
        try:
            _claim(opened.fileno())
            with suppress(OSError, ValueError, NotImplementedError, AttributeError):
                opened.set_low_latency_mode(True)  # a pseudo-terminal has no such mode
        except (termios.error, OSError) as err:
            opened.close()
            raise _why_not(path, self._baud, err) from err
        self._serial, self._fd = opened, opened.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._by_id = _stable_name(path)

    def close(self) -> None:
        """Closes it. Idempotent, also when the port is lost."""
        opened, self._serial, self._fd = self._serial, None, -1
        if opened is not None:
            with suppress(OSError):  # the port may be gone
                _release(opened.fileno())
            with suppress(OSError):
                opened.close()

    def set_baud(self, baud: int) -> None:
        """Changes the rate, at once when it is open.

        Raises:
            RobotError: The adapter does not know this rate.
            PortLost: The port is gone.
        """
        if self._serial is not None:
            import termios

            try:
                self._serial.baudrate = baud
                self._serial.reset_input_buffer()
                _claim(self._fd)
            except ValueError as err:
                raise RobotError(f"{self._port} cannot run at {baud} baud: {err}") from err
            except (termios.error, OSError) as err:
                raise self._lost(OSError(*err.args)) from err
        self._baud = baud

    def write(self, data: bytes, deadline_s: float) -> None:
        """Sends all bytes.

        Raises:
            PortLost: The port is gone, or the adapter does not take them: what is lost is lost, open it again.
        """
        if self._fd < 0:
            raise RobotError(f"{self._port} is not open")
        while True:
            try:
                num_sent = os.write(self._fd, data)
            except BlockingIOError:
                num_sent = 0
            except OSError as err:
                raise self._lost(err) from err
            if num_sent == len(data):
                return
            data = data[num_sent:]
            writable = select.poll()
            writable.register(self._fd, select.POLLOUT)
            if not writable.poll(max(0.0, 1000.0 * (deadline_s - monotonic()))):
                raise PortLost(f"{self._port} takes no more bytes ({len(data)} left); check the adapter")

    def read(self, deadline_s: float) -> bytes:
        """Waits for bytes and returns those that are there, empty at the deadline; what is there is returned after it.

        Raises:
            PortLost: The port is gone.
        """
        if self._fd < 0:
            raise RobotError(f"{self._port} is not open")
        left_s = deadline_s - monotonic()
        try:
            if not self._poll.poll(1000.0 * left_s if left_s > 0.0 else 0):  # rounds up to whole milliseconds
                return b""
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return b""
        except OSError as err:
            raise self._lost(err) from err
        if not data:  # "readable" and yet nothing: how a tty says that its device went away
            raise self._lost(OSError(errno.ENODEV, "the device went away"))
        return data

    def _find(self) -> str:
        for name in (self._by_id, self._port):
            if name is not None and Path(name).exists():
                return name
        ports = list_ports()
        found = f"ports here: {', '.join(ports)}" if ports else "there is no serial port at all; check cable and power"
        raise RobotError(f"{self._port} is not there; {found}")

    def _lost(self, err: OSError) -> PortLost:
        reason = os.strerror(err.errno) if err.errno else str(err)
        return PortLost(f"{self._port} is gone ({reason}); check cable and power, then open it again")


def list_ports() -> list[str]:
    """Returns the serial ports of this machine, by their names that survive replugging where there are such."""
    stable = sorted(str(path) for path in _BY_ID.glob("*")) if _BY_ID.is_dir() else []
    covered = {os.path.realpath(name) for name in stable}
    plain = sorted(str(path) for pattern in _PATTERNS for path in Path("/dev").glob(pattern))
    return stable + [name for name in plain if os.path.realpath(name) not in covered]


def find_owner(port: str) -> tuple[int, str] | None:
    """Returns process id and command of who has locked or opened the port; None when nobody can be seen.

    A holder of the lock comes first: the maker of a pseudo-terminal has it open, too. Other users' processes can be
    seen by root alone.
    """
    with suppress(OSError, ValueError, IndexError):
        status = Path(port).stat()
        key = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            if "FLOCK" in words and key in words:
                return _process(int(words[words.index(key) - 1]))
    target = os.path.realpath(port)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.name != str(os.getpid()) and any(
                str(link.readlink()) == target for link in (process / "fd").iterdir()
            ):
                return _process(int(process.name))
    return None


def _process(pid: int) -> tuple[int, str]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return pid, "of another user"
    return pid, b" ".join(words[:4]).decode("utf-8", "replace").strip()


def _stable_name(path: str) -> str | None:
    if Path(path).is_symlink():  # whoever gave a link meant it
        return path
    target = os.path.realpath(path)
    names = _BY_ID.glob("*") if _BY_ID.is_dir() else ()
    return next((str(name) for name in names if os.path.realpath(name) == target), None)


def _claim(fd: int) -> None:
    """Keeps others out, and lets an empty read mean that the device is gone: VMIN is 1, where pyserial sets 0."""
    import fcntl
    import termios

    fcntl.ioctl(fd, termios.TIOCEXCL)
    modes = termios.tcgetattr(fd)
    modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSANOW, modes)


def _release(fd: int) -> None:
    """Lets others in: the flag lives as long as anyone has the port open, such as the maker of a pseudo-terminal."""
    import fcntl
    import termios

    fcntl.ioctl(fd, termios.TIOCNXCL)


def _why_not(path: str, baud: int, err: Exception) -> RobotError:
    number = getattr(err, "errno", None)
    if isinstance(err, ValueError):
        return RobotError(f"{path} cannot run at {baud} baud: {err}")
    if number in (errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK) or "lock" in str(err).lower():
        owner = find_owner(path)
        who = f"process {owner[0]} ({owner[1]})" if owner else "another process, which this user cannot see"
        if owner and owner[0] == os.getpid():
            who = "this very process, which has opened it before"
        return RobotError(f"{path} is in use by {who}; stop it first")
    if number in (errno.EACCES, errno.EPERM):
        return RobotError(
            f"{path} may not be opened by this user; sudo usermod -aG dialout $USER, then log in again (or see ls -l)"
        )
    return RobotError(f"{path} cannot be opened: {err}")
