"""Modbus packets of Robotiq's manual, late answers, and a gripper in memory that takes time and meets objects."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.drivers.bus.pty_line import PtyLine

from roboalign.drivers.bus.memory import MemoryTransport
from roboalign.drivers.bus.modbus import Modbus, modbus_crc, modbus_frame, read_holding, read_input, write_registers
from roboalign.drivers.bus.robotiq import ROBOTIQ_BAUD, Robotiq2F
from roboalign.drivers.bus.transport import SerialTransport
from roboalign.drivers.bus.types import PortLost
from roboalign.sdk.control.clock import Clock, FakeClock, MonotonicClock
from roboalign.sdk.errors import RobotError, RobotTimeout

Answers = list[tuple[float, bytes]]
DEVICE = 9


class MemoryGripper:
    """Device 9: registers, 0.3 s of activation, fingers of 255 counts a second, an object at `object_at`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.words = [0, 0, 0]
        self.since_s = clock.now()
        self.position = 0.0
        self.object_at = 256
        self.fault = 0
        self.spoil: Callable[[Answers], Answers] = lambda answers: answers
        self.heard: list[bytes] = []

    def __call__(self, packet: bytes) -> Answers:
        self.heard.append(packet)
        device, function = packet[:2]
        if device != DEVICE or modbus_crc(packet[:-2]) != int.from_bytes(packet[-2:], "little"):
            return []
        register, count = struct.unpack(">HH", packet[2:6])
        if function == 16:
            self._advance()
            self.words, self.since_s = list(struct.unpack(">3H", packet[7:13])), self.clock.now()
            body = packet[2:6]
        elif register == 0x07D0:
            values = [*self._status(), 0, 0][:count]
            body = bytes((2 * count,)) + struct.pack(f">{count}H", *values)
        else:
            return self.spoil([(0.0, modbus_frame(device, function | 0x80, b"\x02"))])
        return self.spoil([(0.0, modbus_frame(device, function, body))])

    def _advance(self) -> None:
        moved = 255 * (self.clock.now() - self.since_s)
        self.since_s = self.clock.now()
        if self.words[0] & 0x0800:
            goal = min(self.words[1] & 0xFF, self.object_at)
            self.position = (
                min(goal, self.position + moved) if goal > self.position else max(goal, self.position - moved)
            )

    def _status(self) -> tuple[int, int, int]:
        action = self.words[0] >> 8
        if not action & 1:
            return 0, self.fault << 8, 0
        if not action & 8:
            stage = 3 if self.clock.now() - self.since_s > 0.3 else 1
            return (1 | stage << 4) << 8, self.fault << 8, 0
        self._advance()
        goal = self.words[1] & 0xFF
        found = 3 if self.position == goal else 2 if self.position == self.object_at else 0
        return (9 | 3 << 4 | found << 6) << 8, self.fault << 8 | goal, int(self.position) << 8 | 7


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(50.0)


@pytest.fixture
def device(clock: FakeClock) -> MemoryGripper:
    return MemoryGripper(clock)


@pytest.fixture
def gripper(device: MemoryGripper, clock: FakeClock) -> Robotiq2F:
    made = Robotiq2F(MemoryTransport(device, clock, baud=115_200), clock=clock)
    made.open()
    return made


@pytest.fixture
def modbus(gripper: Robotiq2F) -> Modbus:
    return gripper.modbus


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (read_holding(9, 0x07D0, 1), "09 03 07 d0 00 01 85 cf"),
        (write_registers(9, 0x03E8, (0, 0, 0)), "09 10 03 e8 00 03 06 00 00 00 00 00 00 73 30"),
        (write_registers(9, 0x03E8, (0x0900, 0x00FF, 0xFFFF)), "09 10 03 e8 00 03 06 09 00 00 ff ff ff 42 29"),
        (modbus_frame(9, 3, b"\x02\x31\x00"), "09 03 02 31 00 4c 15"),
    ],
)
def test_packets_are_those_of_the_manual(packet: bytes, expected: str) -> None:
    assert packet.hex(" ") == expected


def test_a_gripper_is_activated_opened_and_closed(gripper: Robotiq2F, device: MemoryGripper) -> None:
    assert not gripper.status().is_active
    assert gripper.activate().is_active
    gripper.move(0.0)
    assert gripper.status().is_moving
    closed = gripper.wait()
    assert (closed.position, closed.has_object) == (255, False)
    assert closed.width_m == pytest.approx(0.0)
    gripper.move(0.0425, speed=1.0, force=0.0)
    assert gripper.wait().width_m == pytest.approx(0.0425, abs=0.001)
    assert device.words[2] == 0xFF00


def test_a_gripper_is_moved_through_a_port(tmp_path: Path) -> None:
    """Real time and a real file descriptor, as docs/drivers-bus.md says it is used."""
    pytest.importorskip("serial", reason="the serial extra")
    device = MemoryGripper(MonotonicClock())
    with PtyLine(device, tmp_path / "gripper") as line:
        gripper = Robotiq2F(SerialTransport(str(line.link), ROBOTIQ_BAUD))
        gripper.open()
        assert gripper.activate().is_active
        device.object_at = 100
        gripper.move(0.0)
        found = gripper.wait()
        gripper.close()
    assert (found.has_object, found.position) == (True, 100)


def test_an_active_gripper_is_not_activated_again(gripper: Robotiq2F, device: MemoryGripper) -> None:
    gripper.activate()
    device.heard.clear()
    gripper.activate()
    assert [packet[1] for packet in device.heard] == [3]


def test_an_object_is_told_from_an_arrival(gripper: Robotiq2F, device: MemoryGripper) -> None:
    gripper.activate()
    device.object_at = 100
    gripper.move(0.0)
    held = gripper.wait()
    assert held.has_object
    assert held.current_a == pytest.approx(0.07)
    assert held.width_m == pytest.approx(0.085 * (1 - 100 / 255))


def test_a_fault_is_told_in_words(gripper: Robotiq2F, device: MemoryGripper) -> None:
    gripper.activate()
    gripper.move(0.0)
    device.fault = 0x0A
    with pytest.raises(RobotError, match=r"supply below 21\.6 V"):
        gripper.wait()


@pytest.mark.parametrize("values", [(float("nan"), 0.5, 0.5), (0.05, 1.5, 0.5), (0.05, 0.5, float("inf"))])
def test_what_is_no_command_is_not_sent(
    gripper: Robotiq2F, device: MemoryGripper, values: tuple[float, float, float]
) -> None:
    with pytest.raises(RobotError, match="nothing was sent"):
        gripper.move(values[0], speed=values[1], force=values[2])
    assert device.heard == []


def test_a_silent_device_is_a_timeout(gripper: Robotiq2F, device: MemoryGripper) -> None:
    device.spoil = lambda answers: []
    with pytest.raises(RobotTimeout, match="did not answer within"):
        gripper.status()


def test_a_late_answer_is_not_taken_for_another(modbus: Modbus, device: MemoryGripper) -> None:
    device.spoil = lambda answers: [(0.15, data) for _, data in answers]
    with pytest.raises(RobotTimeout):
        modbus.read(DEVICE, 0x07D0, 1)
    device.spoil = lambda answers: answers
    device.words = [0x0100, 0, 0]
    device.since_s -= 1.0
    assert modbus.read(DEVICE, 0x07D0, 1) == (0x3100,)
    assert modbus.stats.fences == 1


def test_a_damaged_answer_is_refused(modbus: Modbus, device: MemoryGripper) -> None:
    device.spoil = lambda answers: [(0.0, data[:3] + b"\x55" + data[4:]) for _, data in answers]
    with pytest.raises(RobotError, match="was damaged"):
        modbus.read(DEVICE, 0x07D0, 3)
    device.spoil = lambda answers: answers
    assert modbus.read(DEVICE, 0x07D0, 3) == (0, 0, 0)


def test_an_echo_is_dropped(modbus: Modbus, device: MemoryGripper) -> None:
    device.spoil = lambda answers: [(0.0, device.heard[-1]), *answers]
    device.words = [0x0100, 0, 0]
    device.since_s -= 1.0
    assert modbus.read(DEVICE, 0x07D0, 1) == (0x3100,)
    modbus.write(DEVICE, 0x03E8, (0, 0, 0))


def test_two_registers_are_read_beside_the_fence(modbus: Modbus, device: MemoryGripper) -> None:
    assert len(modbus.read(DEVICE, 0x07D0, 2)) == 2
    assert device.heard[-1] == read_holding(DEVICE, 0x07D0, 3)


def test_a_refusal_names_the_reason(modbus: Modbus) -> None:
    with pytest.raises(RobotError, match="refused function 3: no such register"):
        modbus.read(DEVICE, 0x1234, 1)
    with pytest.raises(RobotError, match="1 to 247"):
        modbus.read(0, 0, 1)
    with pytest.raises(RobotError, match="registers at a time"):
        modbus.write(DEVICE, 0, ())


def test_an_input_register_has_its_own_function(modbus: Modbus) -> None:
    assert read_input(9, 1, 1)[1] == 4
    assert modbus.read(DEVICE, 0x07D0, 1, is_input=True) == (0,)


def test_a_lost_port_is_told(gripper: Robotiq2F, modbus: Modbus) -> None:
    assert isinstance(modbus.transport, MemoryTransport)
    modbus.transport.is_lost = True
    with pytest.raises(PortLost):
        gripper.status()
