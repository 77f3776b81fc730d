"""Starting a process beside control, waking it up, and telling it things now and then: a line of JSON each way.

What happens at every control period goes through the rings instead. A child has a session of its own, so that Ctrl-C
reaches control alone, which decides; it ends when control ends, however that happens.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress

from roboalign.sdk import errors
from roboalign.sdk.errors import BackendError, RoboalignError

__all__ = ["Child", "Parent"]

_CHUNK = 1 << 16
_STROKES = 512
_MAX_LINE = 1 << 20
_END_TIMEOUT_S = 2.0


class Child:
    """A process that this one started: `python -m roboalign.sdk.control ROLE FD BELL PID`."""

    def __init__(self, role: str, name: str) -> None:
        """Stores what it does and what messages call it."""
        self._role, self.name = role, name
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._bell = -1  # a pipe, which wakes a process up sooner than a socket does
        self._rest = b""

    @property
    def pid(self) -> int | None:
        """Process id; None when it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs. Costs one system call."""
        return self._process is not None and self._process.poll() is None

    def start(self, config: Mapping[str, object], fds: Collection[int]) -> None:
        """Starts it with `config`, lending it the file descriptors."""
        self._socket, theirs = socket.socketpair()
        bell, self._bell = os.pipe()
        os.set_blocking(self._bell, False)
        ends = (theirs.fileno(), bell)
        command = [sys.executable, "-m", "roboalign.sdk.control", self._role, *map(str, ends), str(os.getpid())]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=(*ends, *fds),
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
        finally:
            os.close(bell)
        self._rest = b""
        self.tell(config)

    def tell(self, message: Mapping[str, object]) -> None:
        """Sends a message. A child that is gone is noticed elsewhere."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendall(json.dumps(message).encode() + b"\n")

    def ring(self, stroke: bytes) -> None:
        """Wakes the child up, without waiting for anything: a bell that nobody hears needs no other stroke."""
        if self._bell >= 0:
            with suppress(OSError):
                os.write(self._bell, stroke)

    def answer(self, timeout_s: float) -> dict[str, object]:
        """Waits for a message.

        Raises:
            RoboalignError: The child says what went wrong.
            BackendError: It ended without a word, or says nothing for so long.
        """
        assert self._socket is not None
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select((self._socket,), (), (), left_s)[0]:
                raise BackendError(f"{self.name} said nothing for {timeout_s:g} s")
            data = b""
            with suppress(OSError):
                data = self._socket.recv(_CHUNK)
            if not data:
                raise BackendError(f"{self.name} ended without a word ({self._ending()}); its messages are above")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, object] = json.loads(line)
        if "error" in message:
            kind: object = getattr(errors, str(message["error"]), None)
            if isinstance(kind, type) and issubclass(kind, RoboalignError):
                raise kind(str(message["message"]))
            raise BackendError(f"{self.name}: {message['message']}")
        return message

    def close(self) -> None:
        """Lets it end by itself, and kills it when it does not. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _ending(self) -> str:
        if self._process is None:
            return "not started"
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_END_TIMEOUT_S)
            return f"signal {-code}" if code < 0 else f"exit code {code}"
        return "still running"


class Parent:
    """The child's end of the line."""

    def __init__(self, fd: int, bell: int) -> None:
        """Takes the descriptors that the command line names."""
        self._socket, self._bell = socket.socket(fileno=fd), bell
        self._rest = b""

    def wait_for_bell(self) -> bytes:
        """Blocks until rung, and returns all strokes since the last time.

        Raises:
            EOFError: The process that started this one is gone, or wants this one to end.
        """
        strokes = os.read(self._bell, _STROKES)
        if not strokes:
            raise EOFError
        return strokes

    def wait(self, timeout_s: float | None = None) -> list[dict[str, object]]:
        """Blocks until told something, or out of time; returns what was told.

        Raises:
            EOFError: The process that started this one is gone, or wants this one to end.
        """
        if b"\n" not in self._rest and select.select((self._socket,), (), (), timeout_s)[0]:
            data = b""
            with suppress(OSError):
                data = self._socket.recv(_CHUNK)
            if not data or len(self._rest) > _MAX_LINE:
                raise EOFError
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]

    def first(self) -> dict[str, object]:
        """Blocks until the first message."""
        while not (messages := self.wait()):
            pass
        return messages[0]

    def tell(self, message: Mapping[str, object]) -> None:
        """Sends a message."""
        with suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def tell_error(self, error: Exception) -> None:
        """Says what went wrong, in the words of our error tree."""
        kind = type(error).__name__
        text = str(error) if isinstance(error, RoboalignError) else f"{kind}: {error}"
        self.tell({"error": kind, "message": text})
