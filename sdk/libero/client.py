"""Talks to the benchmark's process: starts it, asks, waits no longer than told, and says why it died.

Messages are those of `server`; this side never imports the benchmark.
"""

from __future__ import annotations

import collections
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from numpy.typing import NDArray

from roboalign.sdk.errors import BackendError
from roboalign.sdk.libero import server

__all__ = ["Answer", "LiberoClient", "server_command"]

STARTUP_TIMEOUT_S = 180.0
"""Importing MuJoCo and robosuite takes 2 s warm, and up to a minute when numba compiles for the first time."""
REQUEST_TIMEOUT_S = 120.0
"""Loading a scene takes 3 to 10 s, everything else far less."""
CLOSE_TIMEOUT_S = 5.0
STDERR_LINES = 12
"""Last lines of the process's stderr that go into an error."""
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

Answer = tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]
"""Header and arrays of an answer."""


def server_command(python: Path, renderer: str = "egl") -> list[str]:
    """Returns the command that starts the benchmark's process; `-I` keeps our folder off its import path."""
    return [str(python), "-I", str(Path(server.__file__).resolve()), "--renderer", renderer]


class LiberoClient:
    """One benchmark process. The constructor stores arguments; `open` or `with` starts it. Not thread-safe."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._command = tuple(command)
        self._timeout_s = request_timeout_s
        self._env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: collections.deque[str] = collections.deque(maxlen=STDERR_LINES)
        self._drain: threading.Thread | None = None
        self.versions: Mapping[str, str] = {}
        """Packages of the benchmark's environment; empty before `open`."""
        self.renderer = ""
        """`egl` or `osmesa`; empty before `open`."""

    def __enter__(self) -> LiberoClient:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """True while the process runs."""
        return self._process is not None and self._process.poll() is None

    def open(self) -> None:
        """Starts the process and compares versions; does nothing when it runs already.

        Raises:
            BackendError: it cannot be started, speaks another version, or died.
        """
        if self.is_open:
            return
        self.close()
        environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1"), **self._env}
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                bufsize=0,
            )
        except OSError as err:
            raise BackendError(
                f"the LIBERO process cannot be started ({self._command[0]}: {err.strerror}); "
                "run 'roboalign libero setup'"
            ) from err
        self._stderr.clear()
        self._drain = threading.Thread(target=self._read_stderr, args=(self._process.stderr,), daemon=True)
        self._drain.start()
        header, _ = self.ask("hello", timeout_s=STARTUP_TIMEOUT_S)
        if header.get("protocol") != server.PROTOCOL:
            self.close()
            raise BackendError(
                f"the LIBERO process speaks protocol {header.get('protocol')!r}, this roboalign {server.PROTOCOL}; "
                "run 'roboalign libero setup' again"
            )
        self.versions, self.renderer = dict(header["versions"]), str(header["renderer"])

    def ask(
        self,
        kind: str,
        fields: Mapping[str, object] | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Answer:
        """Sends one request and returns its answer.

        Args:
            kind: What to do, see `server.Server.answer`.
            fields: JSON values that belong to it.
            arrays: Arrays that belong to it.
            timeout_s: Longest wait; None takes the client's.

        Raises:
            BackendError: the process is not open, died, did not answer in time, or answered with an error. After
                anything but an error of its own it is closed: its stream can no longer be trusted.
        """
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise BackendError(f"the LIBERO process is not open (request {kind!r}); call open() first")
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        reader = _DeadlineReader(process.stdout, time.monotonic() + limit_s)
        try:
            server.write_message(cast(Any, _Whole(process.stdin)), {**(fields or {}), "op": kind}, dict(arrays or {}))
            message = server.read_message(cast(Any, reader))
        except TimeoutError as err:
            tail = self._give_up()
            raise BackendError(f"the LIBERO process did not answer {kind!r} within {limit_s:g} s{tail}") from err
        except (OSError, server.MessageError) as err:
            raise BackendError(f"the LIBERO process failed at {kind!r} ({err}){self._give_up()}") from err
        except BaseException:
            self._give_up()
            raise
        if message is None:
            raise BackendError(f"the LIBERO process ended at {kind!r}{self._give_up()}")
        header, results = message
        error = header.get("error")
        if error is not None:
            raise BackendError(f"LIBERO refused {kind!r}: {error['kind']}: {error['message']}")
        return header, results

    def close(self) -> None:
        """Ends the process; idempotent, and safe when it never started or is dead."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None and process.stdin is not None:
            try:
                server.write_message(cast(Any, _Whole(process.stdin)), {"op": "close"})
                process.stdin.close()
                process.wait(CLOSE_TIMEOUT_S)
            except (OSError, subprocess.TimeoutExpired):
                process.kill()
        self._finish(process)

    def _give_up(self) -> str:
        """Kills the process; returns what it said last, for an error message."""
        process, self._process = self._process, None
        if process is None:
            return ""
        code = process.poll()
        if code is None:
            process.kill()
        self._finish(process)
        said = " | ".join(line for line in self._stderr if line.strip())
        ended = "" if code is None else f"; it exited with {code}"
        return f"{ended}; its last words: {said}" if said else f"{ended}; it said nothing"

    def _finish(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        if self._drain is not None:
            self._drain.join(timeout=CLOSE_TIMEOUT_S)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # a broken pipe still counts as closed
                    continue

    def _read_stderr(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._stderr.append(line.decode("utf-8", "replace").rstrip())


class _Whole:
    """A raw pipe whose `write` writes everything."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._pipe.fileno(), left) :]

    def flush(self) -> None:
        """Nothing is buffered."""


class _DeadlineReader:
    """Reads a raw pipe until a point in time; raises TimeoutError beyond it."""

    def __init__(self, pipe: IO[bytes], deadline_s: float) -> None:
        self._pipe, self._deadline_s = pipe, deadline_s

    def read(self, size: int) -> bytes:
        parts, left = [], size
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe, selectors.EVENT_READ)
            while left:
                wait_s = self._deadline_s - time.monotonic()
                if wait_s <= 0 or not selector.select(wait_s):
                    raise TimeoutError
                part = os.read(self._pipe.fileno(), min(left, 1 << 20))
                if not part:
                    break
                parts.append(part)
                left -= len(part)
        return b"".join(parts)
