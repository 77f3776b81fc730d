"""A virtual bus in a process of its own, as a context manager: what tests and benchmarks talk to."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from roboalign.drivers.virtual.config import VirtualBusConfig
from roboalign.drivers.virtual.control import ControlClient
from roboalign.sdk.errors import RobotError, RobotTimeout

__all__ = ["VirtualBus"]

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0


class VirtualBus:
    """Starts `roboalign sim-bus` and stops it again; it also ends when this process dies.

    Inside the `with`, `port` can be opened by any serial library, and `control` injects faults.
    """

    def __init__(
        self, link: str | Path, config: VirtualBusConfig | None = None, *, log: str | Path | None = None
    ) -> None:
        """Stores the name of the port and what is behind it."""
        self.port = str(link)
        self.config = config or VirtualBusConfig()
        self.control = ControlClient(link)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def open(self) -> VirtualBus:
        """Starts the process and waits until the port is there.

        Raises:
            RobotError: It ended instead; the message has what it said.
            RobotTimeout: It took too long.
        """
        if self._process is not None:
            return self
        command = [sys.executable, "-m", "roboalign", *self._arguments()]
        said = self._said = tempfile.TemporaryFile()  # noqa: SIM115 - not a pipe, which would block it when full
        process = self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
        assert process.stdout is not None
        if not select.select([process.stdout], (), (), _START_TIMEOUT_S)[0]:
            self.close()
            raise RobotTimeout(f"the virtual bus at {self.port} was not ready after {_START_TIMEOUT_S:.0f} s")
        if not process.stdout.readline():
            process.wait(_STOP_TIMEOUT_S)
            said.seek(0)
            words = said.read().decode(errors="replace").strip()
            self.close()
            raise RobotError(f"the virtual bus at {self.port} did not start: {words or 'it said nothing'}")
        self.control.open()
        return self

    def _arguments(self) -> list[str]:
        config = self.config
        arguments = ["sim-bus", "--until-eof", "--link", self.port, "--robot", config.robot]
        arguments += ["--proto", config.chosen_protocol, "--rate-hz", str(config.rate_hz), "--seed", str(config.seed)]
        arguments.append("--lockstep" if config.is_lockstep else "--real-time")
        arguments.append("--physics" if config.has_physics else "--no-physics")
        arguments += ["--baud-time"] * config.has_byte_time
        for name, value in (
            ("--faults", config.faults),
            ("--task", config.task),
            ("--hidden", config.hidden),
            ("--hidden-seed", config.hidden_seed),
            ("--horn-seed", config.horn_seed),
            ("--log", self._log),
        ):
            arguments += [] if value is None else [name, str(value)]
        return arguments

    @property
    def pid(self) -> int:
        """The process; raises RobotError before `open`."""
        if self._process is None:
            raise RobotError("the virtual bus does not run; call open() first")
        return self._process.pid

    def close(self) -> None:
        """Stops the process: asks first, kills after ten seconds. Idempotent."""
        self.control.close()
        process, self._process = self._process, None
        if process is None:
            return
        streams = [stream for stream in (process.stdin, process.stdout, self._said) if stream is not None]
        if process.stdin is not None:
            process.stdin.close()
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline_s - time.monotonic()))
        if process.poll() is None:
            process.kill()
            process.wait()
        for stream in streams:
            stream.close()

    def __enter__(self) -> VirtualBus:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
