"""The process that owns the bus and outlives a crashed policy: `python -m roboalign.drivers.arm FD PID`.

It runs in a session of its own, so Ctrl-C in the policy's terminal does not reach it, and talks to the policy over a
socket pair. When the policy is gone (the socket ends, or its process does) it holds at once, parks, lets go, frees the
port and ends; SIGTERM and SIGHUP mean the same, and no signal but SIGKILL ends it sooner. Dynamixel servos have a
watchdog of their own for the case that this process dies; Feetech servos have none, and keep their last goal.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress

from roboalign.drivers.arm.assembly import ArmParts, assemble
from roboalign.drivers.arm.core import ArmCore
from roboalign.drivers.arm.files import RobotFile, robot_from_json, robot_to_json
from roboalign.drivers.arm.messages import ArmState, Command, decode_command, decode_state, encode
from roboalign.drivers.arm.servos import BusServos
from roboalign.drivers.arm.states import State
from roboalign.drivers.bus.bus import Bus
from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.bus.transport import SerialTransport
from roboalign.sdk.control.clock import MonotonicClock
from roboalign.sdk.control.realtime import raise_priority
from roboalign.sdk.errors import RoboalignError, RobotError, RobotTimeout

__all__ = ["ProcessLink", "main", "make_servos", "run_owner"]

_START_TIMEOUT_S, _ANSWER_TIMEOUT_S, _END_TIMEOUT_S = 20.0, 2.0, 15.0
_LAST_WORD_TIMEOUT_S = 0.1
_MAX_LINE = 1 << 16
_CHUNK = 1 << 16
_MAX_CRASHES = 3


def make_servos(parts: ArmParts) -> BusServos:
    """Returns the servos of an arm behind its serial port, closed."""
    model, file = parts.file.model, parts.file
    transport = SerialTransport(file.port, file.baud or model.baud)
    protocol = Feetech() if model.protocol == "feetech" else Dynamixel()
    return BusServos(Bus(transport, protocol), parts)


class _Lines:
    """Cuts a stream into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE:
            raise RobotError(f"a line of more than {_MAX_LINE} bytes; the other side is no policy of ours")
        return lines


class ProcessLink:
    """Implements `roboalign.drivers.arm.links.OwnerLink` with a process of its own."""

    def __init__(self, parts: ArmParts) -> None:
        """Stores which arm."""
        self._parts = parts
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lines = _Lines()
        self._answers: list[bytes] = []
        self._number = 0
        self._last_word: ArmState | None = None

    @property
    def last_word(self) -> ArmState | None:
        """How the owner left the arm; None while it runs, or when it ended without a word."""
        return self._last_word

    @property
    def pid(self) -> int | None:
        """Process id of the owner; None when it was not started."""
        return None if self._process is None else self._process.pid

    def open(self) -> None:
        """Starts the owner and waits until it has opened the port."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "roboalign.drivers.arm", str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._socket, self._lines, self._answers, self._last_word = ours, _Lines(), [], None
        try:
            ours.sendall(robot_to_json(self._parts.file).encode() + b"\n")
            state = self._answer(_START_TIMEOUT_S)
        except RobotError:
            self.close()
            raise
        if state.error:
            self.close()
            raise RobotError(state.error)

    def ask(self, command: Command) -> ArmState:
        """Sends a command and returns the answer."""
        if self._socket is None:
            raise RobotError("the bus owner is not running; call connect() first")
        self._number += 1
        try:
            self._socket.sendall(encode(dataclasses.replace(command, number=self._number)))
        except OSError as err:
            with suppress(RobotError):  # what it said before it ended
                while True:
                    self._answer(_LAST_WORD_TIMEOUT_S)
            raise self._ended(err) from err
        while (state := self._answer(_ANSWER_TIMEOUT_S)).number != self._number:
            pass  # the answer to an earlier question, for which we did not wait long enough
        return state

    def wait(self, period_s: float) -> None:
        """Sleeps."""
        time.sleep(period_s)

    def pace(self, period_s: float) -> None:
        """Returns at once."""

    def close(self) -> None:
        """Ends the connection and waits until the owner has let go of arm and port."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):  # it goes on parking by itself
                self._process.wait(_END_TIMEOUT_S)
                self._process = None

    def _answer(self, timeout_s: float) -> ArmState:
        assert self._socket is not None
        deadline_s = time.monotonic() + timeout_s
        while not self._answers:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select((self._socket,), (), (), left_s)[0]:
                raise RobotTimeout(f"the bus owner did not answer within {timeout_s:g} s; it holds and parks by itself")
            try:
                data = self._socket.recv(_CHUNK)
            except OSError as err:
                raise self._ended(err) from err
            if not data:
                raise self._ended("it hung up")
            self._answers += self._lines.feed(data)
        state = decode_state(self._answers.pop(0))
        if state.state is State.DISCONNECTED:
            self._last_word = state
        return state

    def _ended(self, why: object) -> RobotError:
        """Returns what to tell of an owner that is gone: one that left no word was killed, and let nobody go."""
        if self._last_word is not None:
            return RobotError(f"the bus owner has ended ({why}); call disconnect(), then connect()")
        return RobotError(
            f"the bus owner has ended without a word ({why}), so the arm may still hold with its torque on; cut the "
            "power, or disconnect() and connect() again, which takes the arm up"
        )


class _Client:
    """The owner's end: takes commands until a moment, and notices when the policy is gone."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._socket: socket.socket | None = connection
        self._lines = _Lines()
        connection.setblocking(False)
        self._pid_fd = -1
        with suppress(OSError, AttributeError):  # Linux alone; elsewhere the socket's end has to do
            self._pid_fd = os.pidfd_open(pid)

    @property
    def is_gone(self) -> bool:
        return self._socket is None

    def serve(self, core: ArmCore, until_s: float) -> None:
        """Answers commands until `until_s`, at least those that are there."""
        while True:
            left_s = until_s - time.monotonic()
            if self._socket is None:
                time.sleep(max(0.0, left_s))
                return
            connection = self._socket.fileno()
            watched = [connection] if self._pid_fd < 0 else [connection, self._pid_fd]
            with suppress(InterruptedError):
                ready = select.select(watched, (), (), max(0.0, left_s))[0]
                if self._pid_fd in ready:
                    self.close()
                elif ready:
                    self._take(core)
                elif left_s <= 0:
                    return
            if self.is_gone:
                core.lose_client()

    def _take(self, core: ArmCore) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_CHUNK)
            lines = self._lines.feed(data)
        except (OSError, RobotError):
            data, lines = b"", []
        if not data:
            self.close()
        for line in lines:
            try:
                state = core.handle(decode_command(line))
            except RobotError as err:
                state = core.state(str(err))
            self.tell(state)

    def tell(self, state: ArmState) -> None:
        """Sends an answer; a policy that does not read its answers is as good as gone."""
        if self._socket is None:
            return
        line = encode(state)
        try:
            if self._socket.send(line) != len(line):
                self.close()
        except OSError:
            self.close()

    def close(self) -> None:
        """Hangs up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._pid_fd >= 0:
            os.close(self._pid_fd)
            self._pid_fd = -1


def run_owner(connection: socket.socket, file: RobotFile, pid: int) -> None:
    """Owns the arm until it is let go; `connection` leads to the policy with process id `pid`."""
    client = _Client(connection, pid)
    clock = MonotonicClock()
    parts = assemble(file)
    core = ArmCore(make_servos(parts), parts.joints, parts.settings, clock)
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: signals.append(caught))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        core.open()
    except RobotError as err:
        client.tell(core.state(str(err)))
        return
    client.tell(core.state())
    period_s = 1.0 / parts.settings.rate_hz
    next_s, crashes = time.monotonic(), 0
    while not core.is_done and crashes < _MAX_CRASHES:
        try:
            if signals:
                core.lose_client()
            core.step()
            next_s = max(next_s + period_s, time.monotonic())
            client.serve(core, next_s)
            crashes = 0
        except Exception:  # noqa: BLE001 - the loop that must bring the arm to rest: a defect of ours parks it
            crashes += 1
            core.lose_client()
            with suppress(OSError, ValueError):
                traceback.print_exc()
    if not core.is_done:  # nothing else is left that could take the torque away
        with suppress(RobotError):
            core.give_up()
    client.tell(core.state())
    client.close()


def main(arguments: list[str]) -> int:
    """Runs the owner; the first line from the policy is the robot file."""
    connection = socket.socket(fileno=int(arguments[0]))
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(_CHUNK)
        if not piece:
            return 1
        data += piece
    raise_priority()
    try:
        run_owner(connection, robot_from_json(json.loads(data)), int(arguments[1]))
    except RoboalignError as err:
        with suppress(OSError):
            sys.stderr.write(f"bus owner: {err}\n")
        return 1
    return 0
