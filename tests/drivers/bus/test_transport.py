"""A real file descriptor: pseudo-terminals that are pulled out, plugged in under another name, and fought over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.drivers.bus.pty_line import PtyLine

from roboalign.drivers.bus.bus import Bus
from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.bus.memory import MemoryServos
from roboalign.drivers.bus.transport import SerialTransport, find_owner
from roboalign.drivers.bus.types import Fault, PortLost, Register, Reply
from roboalign.sdk.errors import RobotError

pytest.importorskip("serial", reason="the serial extra")

IDS = (1, 2, 3, 4, 5, 6)
POSITION = Register(name="present_position", address=56, size=2)


@pytest.fixture(params=["feetech", "dynamixel"])
def protocol(request: pytest.FixtureRequest) -> Feetech | Dynamixel:
    return Feetech() if request.param == "feetech" else Dynamixel()


@pytest.fixture
def port(tmp_path: Path, protocol: Feetech | Dynamixel) -> Iterator[PtyLine]:
    with PtyLine(MemoryServos(protocol, IDS), tmp_path / "servos") as line:
        yield line


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def read_all(bus: Bus) -> bool:
    """True once all have answered; a busy machine, which serves the line too, may take several attempts."""
    end_s = time.monotonic() + 3.0
    while time.monotonic() < end_s:
        if all(isinstance(answer, Reply) for answer in bus.sync_read(POSITION, IDS).values()):
            return True
    return False


def test_servos_are_read_through_a_port(port: PtyLine, protocol: Feetech | Dynamixel) -> None:
    with Bus(SerialTransport(str(port.link)), protocol) as bus:
        assert read_all(bus)
        assert bus.is_open
    assert not bus.is_open


def test_waiting_for_a_silent_servo_costs_no_cpu(port: PtyLine, protocol: Feetech | Dynamixel) -> None:
    with Bus(SerialTransport(str(port.link)), protocol) as bus:
        cpu_s, wall_s = time.thread_time(), time.monotonic()
        assert isinstance(bus.read(POSITION, 99), Fault)
        assert time.thread_time() - cpu_s < 0.25 * (time.monotonic() - wall_s)


def read_for_ever(bus: Bus) -> None:
    while True:
        bus.sync_read(POSITION, IDS)


def cycle(bus: Bus, port: PtyLine, offset: int) -> tuple[float, bool]:
    """Pulls the plug after so many bytes of an exchange; returns how long the fault took, and if all came back."""
    port.cut_after = offset
    start_s = time.monotonic()
    with pytest.raises(PortLost):
        read_for_ever(bus)
    took_s = time.monotonic() - start_s
    with pytest.raises(PortLost, match="reopen"):
        bus.sync_read(POSITION, IDS)
    port.cut_after = None
    port.unplug()
    port.plug()
    bus.reopen()
    return took_s, read_all(bus)


@pytest.mark.parametrize("protocol", [Feetech()], ids=["feetech"])
def test_a_port_that_was_named_by_its_number_is_found_again_by_its_stable_name(
    port: PtyLine, protocol: Feetech, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a replug `/dev/ttyACM0` is another adapter's, or nobody's."""
    monkeypatch.setattr("roboalign.drivers.bus.transport._BY_ID", port.link.parent)
    number = os.path.realpath(port.link)
    with Bus(SerialTransport(number), protocol) as bus:
        assert read_all(bus)
        port.unplug()
        with pytest.raises(PortLost):
            read_for_ever(bus)
        other, slave = os.openpty()  # takes the number that is free now
        port.plug()
        assert os.path.realpath(port.link) != number
        bus.reopen()
        assert read_all(bus)
        os.close(other)
        os.close(slave)


@pytest.mark.parametrize("protocol", [Feetech()], ids=["feetech"])
def test_an_adapter_that_can_is_put_into_low_latency(port: PtyLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pseudo-terminal cannot, which is no reason to fail; on an FTDI chip it is 1 ms instead of 16."""
    import serial

    asked: list[bool] = []
    monkeypatch.setattr(serial.Serial, "set_low_latency_mode", lambda _, is_on: asked.append(is_on))
    transport = SerialTransport(str(port.link))
    transport.open()
    transport.close()
    assert asked == [True]


def exchange_bytes(protocol: Feetech | Dynamixel) -> int:
    return len(protocol.sync_read(POSITION.address, 2, IDS)) + len(IDS) * protocol.status_size(2)


def test_a_plug_pulled_after_any_byte_is_a_fault_at_once(port: PtyLine, protocol: Feetech | Dynamixel) -> None:
    with Bus(SerialTransport(str(port.link)), protocol) as bus:
        assert read_all(bus)
        before = num_descriptors()
        cycles = [cycle(bus, port, offset) for offset in range(1, exchange_bytes(protocol) + 1, 7)]
        assert num_descriptors() == before
    assert all(is_back for _, is_back in cycles)
    assert sorted(took_s for took_s, _ in cycles)[len(cycles) // 2] < 0.1


@pytest.mark.slow
def test_a_thousand_plugs_leak_nothing(port: PtyLine, protocol: Feetech | Dynamixel) -> None:
    with Bus(SerialTransport(str(port.link)), protocol) as bus:
        assert read_all(bus)
        before = num_descriptors()
        cycles = [cycle(bus, port, 1 + number % exchange_bytes(protocol)) for number in range(1000)]
        assert num_descriptors() == before
    took_s = sorted(took_s for took_s, _ in cycles)
    print(f"fault p50 {1e3 * took_s[500]:.1f} ms, p99 {1e3 * took_s[990]:.1f} ms, max {1e3 * took_s[-1]:.1f} ms")
    assert all(is_back for _, is_back in cycles)
    assert took_s[990] < 0.1


def test_a_port_that_is_absent_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(RobotError, match=r"is not there; (ports here|there is no serial port)"):
        SerialTransport(str(tmp_path / "nothing")).open()


def test_failing_to_open_leaks_nothing(port: PtyLine, tmp_path: Path) -> None:
    held = SerialTransport(str(port.link))
    held.open()
    before = num_descriptors()
    for _ in range(20):
        with pytest.raises(RobotError, match="this very process"):
            SerialTransport(str(port.link)).open()
    assert num_descriptors() == before
    held.close()
    held.close()


@pytest.mark.parametrize("protocol", [Feetech()], ids=["feetech"])
def test_a_second_process_is_told_who_has_the_port(port: PtyLine) -> None:
    held = SerialTransport(str(port.link))
    held.open()
    code = f"from roboalign.drivers.bus.transport import SerialTransport; SerialTransport({str(port.link)!r}).open()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert f"is in use by process {os.getpid()} (" in done.stderr
    assert find_owner(str(port.link)) is not None
    held.close()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_programs_that_know_no_lock_are_kept_out(port: PtyLine) -> None:
    """The vendors' packages take no lock; TIOCEXCL stops them unless they run as root."""
    held = SerialTransport(str(port.link))
    held.open()
    Path(os.path.realpath(port.link)).chmod(0o666)
    code = f"import os; os.setuid(65534); os.open({os.path.realpath(port.link)!r}, os.O_RDWR | os.O_NOCTTY)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "Device or resource busy" in done.stderr
    held.close()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_rate_that_the_port_cannot_have_is_refused(port: PtyLine) -> None:
    transport = SerialTransport(str(port.link))
    with pytest.raises(RobotError, match="cannot run at"):
        SerialTransport(str(port.link), -5).open()
    transport.open()
    transport.set_baud(115_200)
    assert transport.baud == 115_200
    with pytest.raises(RobotError, match="cannot run at"):
        transport.set_baud(-5)
    transport.close()


def test_a_closed_port_neither_reads_nor_writes(port: PtyLine) -> None:
    transport = SerialTransport(str(port.link))
    for act in (lambda: transport.read(0.0), lambda: transport.write(b"x", 0.0)):
        with pytest.raises(RobotError, match="not open"):
            act()
