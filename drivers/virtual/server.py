"""Serves a virtual line behind a pseudo-terminal, under a name that stays when the adapter is plugged in again.

    LINK      -> /dev/pts/N, made anew under another N at each replug, absent while unplugged
    LINK.ctl     control socket (`roboalign.drivers.virtual.control`), there as long as the server

One thread, no callbacks: wait for bytes, requests or the next delivery, and do it. A host that does not read cannot
block it; the bytes are lost, as in a full serial buffer.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from pathlib import Path
from types import TracebackType

from roboalign.drivers.virtual.control import answer, control_path
from roboalign.drivers.virtual.line import VirtualLine
from roboalign.drivers.virtual.pty_port import PtyPort
from roboalign.sdk.control.clock import MonotonicClock
from roboalign.sdk.errors import ConfigError

__all__ = ["VirtualBusServer"]

_LOOK_FOR_HOST_S = 0.003
_REAL_TIME_S = 0.02
_IDLE_S = 0.5
_SPIN_S = 1e-4  # sleeping is no more exact than that, and a byte takes 10 us
_MAX_LAG_S = 0.1
_SEND_TIMEOUT_S = 5.0
_MAX_REQUEST = 65_536
_MAX_SOCKET_PATH = 107


class VirtualBusServer:
    """The process behind `roboalign sim-bus`; tests also run it in a thread."""

    def __init__(self, line: VirtualLine, link: str | Path, *, log: str | Path | None = None) -> None:
        """Stores what to serve, under which name, and the file that gets every packet (None: none)."""
        self.line = line
        self.link = Path(link)
        self.num_lost = 0
        """Bytes for which the host had no room."""
        self._log_path = None if log is None else Path(log)
        self._clock = MonotonicClock()
        self._port: PtyPort | None = None
        self._last_name = ""
        self._num_replugs = 0
        self._listener: socket.socket | None = None
        self._clients: dict[socket.socket, bytes] = {}
        self._watched: int | None = None
        self._wake = (-1, -1)
        self._is_stopping = False
        self._start_s = 0.0

    @property
    def port_name(self) -> str:
        """The pseudo-terminal, empty while unplugged."""
        return self._port.name if self._port is not None else ""

    def open(self) -> VirtualBusServer:
        """Makes the port, its link and the control socket.

        Raises:
            ConfigError: The link's place is taken.
        """
        try:
            self._claim()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def _start(self) -> None:
        self._wake = os.pipe()
        self.line.max_lag_s = _MAX_LAG_S
        self._start_s = self._clock.now() - self.line.arm.time_s
        if self._log_path is not None:
            file = self._log_path.open("w", encoding="ascii")
            self._log_file = file
            self.line.log = lambda way, time_s, data: print(f"{time_s:.6f} {way} {data.hex()}", file=file)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(control_path(self.link)))
        self._listener.listen(8)
        self._plug()

    def __enter__(self) -> VirtualBusServer:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _claim(self) -> None:
        """Takes the names over from a server that was killed; refuses those of a living one and of others' files."""
        control = control_path(self.link)
        if len(os.fsencode(control.absolute())) > _MAX_SOCKET_PATH:
            raise ConfigError(f"{control} is too long for a socket; choose a shorter name for the virtual port")
        if self.link.exists() and not self.link.is_symlink():
            raise ConfigError(f"{self.link} is there and no link; choose another name for the virtual port")
        if control.exists():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
                probe.connect(str(control))
                raise ConfigError(f"another virtual arm serves {self.link}; stop it or choose another name")
        for path in (control, self.link):
            path.unlink(missing_ok=True)

    def _plug(self) -> None:
        self._port = PtyPort().open(other_than=self._last_name)
        self._last_name, self._num_replugs = self._port.name, self.line.num_replugs
        new = self.link.with_name(f".{self.link.name}.{os.getpid()}")
        new.unlink(missing_ok=True)
        new.symlink_to(self._port.name)
        new.replace(self.link)

    def _unplug(self) -> None:
        if self._port is not None:
            self.link.unlink(missing_ok=True)
            self._port.close()
            self._port = None

    def watch(self, descriptor: int) -> None:
        """Stops when this descriptor reads as closed: the server then ends with the process that started it."""
        self._watched = descriptor

    def stop(self) -> None:
        """Ends `serve`, from any thread or signal handler."""
        self._is_stopping = True
        if self._wake[1] >= 0:
            os.write(self._wake[1], b".")

    def serve(self) -> None:
        """Serves until `stop`."""
        while not self._is_stopping:
            self._wait()
            self._follow_plug()

    def _wait(self) -> None:
        """Waits for the next thing to do and does it."""
        port, line = self._port, self.line
        readers: list[int | socket.socket | PtyPort] = [self._wake[0], *self._clients]
        if self._listener is not None:
            readers.append(self._listener)
        if port is not None and not port.is_hung_up:
            readers.append(port)
        if self._watched is not None:
            readers.append(self._watched)
        ready = select.select(readers, (), (), self._timeout_s())[0]
        if port is not None and (port in ready or port.is_hung_up):
            self._exchange(port)
        if line.step_s is None:
            line.pass_time(self._now())
        if port is not None and line.is_plugged:
            self._deliver(port)
        for item in ready:
            if item is self._listener:
                self._accept()
            elif isinstance(item, socket.socket):
                self._serve_client(item)
            elif isinstance(item, int) and item == self._watched and not os.read(item, 4096):
                self._is_stopping = True

    def _now(self) -> float:
        """The line's time: that of the arm at the start, and then the machine's."""
        return self._clock.now() - self._start_s

    def _timeout_s(self) -> float:
        timeout_s = _IDLE_S if self.line.step_s is not None else _REAL_TIME_S
        if self._port is not None and self._port.is_hung_up:
            timeout_s = min(timeout_s, _LOOK_FOR_HOST_S)
        next_s = self.line.next_s()
        if next_s is not None:
            timeout_s = min(timeout_s, next_s - self._now())
        return timeout_s - _SPIN_S if timeout_s > _SPIN_S else 0.0

    def _exchange(self, port: PtyPort) -> None:
        was_hung_up = port.is_hung_up
        data = port.read()
        if port.is_hung_up:
            if not was_hung_up:
                self.line.quiet()
            return
        if data:
            self.line.baud_hz = port.baud_hz
            self.line.receive(data, self._now())

    def _deliver(self, port: PtyPort) -> None:
        data = self.line.take(self._now())
        if data:
            self.num_lost += port.write(data)
        self.line.cut_if_spent()

    def _follow_plug(self) -> None:
        """Makes the pseudo-terminal what the line's plug is."""
        if self._port is not None and (not self.line.is_plugged or self._num_replugs != self.line.num_replugs):
            self._unplug()
        if self._port is None and self.line.is_plugged:
            self._plug()

    def _accept(self) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        client.settimeout(_SEND_TIMEOUT_S)
        self._clients[client] = b""

    def _serve_client(self, client: socket.socket) -> None:
        """Answers the requests that are complete; a client that hangs or misbehaves is dropped."""
        try:
            data = client.recv(4096)
            held = self._clients[client] + data
            while b"\n" in held:
                request, _, held = held.partition(b"\n")
                said = answer(self.line, request)
                self._follow_plug()  # a client that asked for the plug finds it so
                client.sendall(said)
            self._clients[client] = held
        except OSError:
            data = b""
        if not data or len(self._clients[client]) > _MAX_REQUEST:
            del self._clients[client]
            client.close()

    def close(self) -> None:
        """Takes port, link and socket away. Idempotent; leaves nothing behind, half-opened too."""
        self._unplug()
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            control_path(self.link).unlink(missing_ok=True)
        for descriptor in self._wake:
            if descriptor >= 0:
                os.close(descriptor)
        self._wake = (-1, -1)
        if self.line.log is not None:
            self._log_file.close()
            self.line.log = None
        self.line.arm.plant.close()
