"""The vendors' own packages talk to the virtual devices unmodified: these do not merely agree with our drivers.

Only the packages' setting LATENCY_TIMER is raised: their 34 ms include the time that a busy machine does not give to
the server.
"""

from collections.abc import Iterator

import pytest
from tests.drivers.virtual.conftest import Serve

from roboalign.drivers.virtual import ControlClient, VirtualBusConfig

scs = pytest.importorskip("scservo_sdk", reason="pip install 'roboalign[dev]'")
dxl = pytest.importorskip("dynamixel_sdk", reason="pip install 'roboalign[dev]'")

IDS = (1, 2, 3, 4, 5, 6)
PARKED = [2048, 940, 3091, 2635, 3071, 2048]
PATIENCE_MS = 1500
IMPATIENCE_MS = 30


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("scservo_sdk", "dynamixel_sdk"):
        monkeypatch.setattr(f"{package}.port_handler.LATENCY_TIMER", PATIENCE_MS)


class Scs:
    """scservo_sdk on one port."""

    def __init__(self, link: str) -> None:
        self.port = scs.PortHandler(link)
        assert self.port.openPort()
        self.packets = scs.PacketHandler(0)
        self.control = ControlClient(link)

    def sync_read(self, address: int, size: int) -> tuple[int, list[int]]:
        group = scs.GroupSyncRead(self.port, self.packets, address, size)
        for number in IDS:
            assert group.addParam(number)
        result = group.txRxPacket()
        return result, [group.getData(number, address, size) for number in IDS]


@pytest.fixture
def feetech(serve: Serve) -> Iterator[Scs]:
    server = serve(VirtualBusConfig(has_physics=False))
    client = Scs(str(server.link))
    yield client
    client.control.close()
    client.port.closePort()


def test_feetech_ping_tells_the_model(feetech: Scs) -> None:
    assert [feetech.packets.ping(feetech.port, number) for number in IDS] == [(777, 0, 0)] * 6


def test_feetech_reads_and_writes(feetech: Scs) -> None:
    packets, port = feetech.packets, feetech.port
    assert packets.read2ByteTxRx(port, 2, 56) == (940, 0, 0)
    assert packets.write1ByteTxRx(port, 2, 41, 50) == (0, 0)
    assert packets.read1ByteTxRx(port, 2, 41) == (50, 0, 0)
    assert packets.regWriteTxRx(port, 2, 41, 1, [60]) == (0, 0)
    assert packets.action(port, scs.BROADCAST_ID) == 0
    assert packets.read1ByteTxRx(port, 2, 41) == (60, 0, 0)


def test_feetech_sync_read_and_sync_write_move_the_arm(feetech: Scs) -> None:
    assert feetech.sync_read(56, 2) == (0, PARKED)
    group = scs.GroupSyncWrite(feetech.port, feetech.packets, 42, 2)
    for number in IDS:
        assert group.addParam(number, [0x00, 0x08])
    assert group.txPacket() == 0
    for _ in range(50):
        result, found = feetech.sync_read(56, 2)
    assert (result, found) == (0, [2048] * 6)


def test_feetech_errors_and_silence_are_seen(feetech: Scs, monkeypatch: pytest.MonkeyPatch) -> None:
    with feetech.control as control:
        control.fault("overload", id=6)
        assert feetech.packets.read2ByteTxRx(feetech.port, 6, 56) == (2048, 0, scs.ERRBIT_OVERLOAD)
        control.fault("dead", id=3)
        monkeypatch.setattr("scservo_sdk.port_handler.LATENCY_TIMER", IMPATIENCE_MS)
        assert feetech.packets.ping(feetech.port, 3)[1] == scs.COMM_RX_TIMEOUT


def test_feetech_hears_its_own_baud_rate_only(feetech: Scs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert feetech.packets.write1ByteTxRx(feetech.port, 1, 55, 0)[0] == 0
    feetech.packets.write1ByteTxOnly(feetech.port, 1, 6, 2)
    assert feetech.packets.ping(feetech.port, 2)[1] == 0
    assert feetech.port.setBaudRate(250_000)
    assert feetech.packets.ping(feetech.port, 1) == (777, 0, 0)
    monkeypatch.setattr("scservo_sdk.port_handler.LATENCY_TIMER", IMPATIENCE_MS)
    assert feetech.packets.ping(feetech.port, 2)[1] == scs.COMM_RX_TIMEOUT


class Dxl:
    """dynamixel_sdk on one port."""

    def __init__(self, link: str) -> None:
        self.port = dxl.PortHandler(link)
        assert self.port.openPort()
        self.packets = dxl.PacketHandler(2.0)
        self.control = ControlClient(link)


@pytest.fixture
def dynamixel(serve: Serve) -> Iterator[Dxl]:
    server = serve(VirtualBusConfig(robot="koch", has_physics=False))
    client = Dxl(str(server.link))
    yield client
    client.control.close()
    client.port.closePort()


def test_dynamixel_ping_and_broadcast_ping(dynamixel: Dxl) -> None:
    assert dynamixel.packets.ping(dynamixel.port, 1) == (1060, 0, 0)
    found, result = dynamixel.packets.broadcastPing(dynamixel.port)
    assert result == 0
    assert {number: model for number, (model, _) in found.items()} == {
        **dict.fromkeys((1, 2), 1060),
        **dict.fromkeys((3, 4, 5, 6), 1200),
    }


def test_dynamixel_reads_writes_and_rejections(dynamixel: Dxl) -> None:
    packets, port = dynamixel.packets, dynamixel.port
    assert packets.write1ByteTxRx(port, 1, 64, 1) == (0, 0)
    assert packets.read4ByteTxRx(port, 1, 132) == (2048, 0, 0)
    assert packets.write1ByteTxRx(port, 1, 11, 4) == (0, dxl.ERRNUM_ACCESS)
    assert packets.write4ByteTxRx(port, 1, 116, 5000) == (0, dxl.ERRNUM_DATA_LIMIT)
    assert packets.write4ByteTxRx(port, 1, 116, 2100) == (0, 0)
    assert packets.reboot(port, 1) == (0, 0)
    assert packets.read1ByteTxRx(port, 1, 64) == (0, 0, 0)


def test_dynamixel_alert_is_in_every_answer(dynamixel: Dxl) -> None:
    with dynamixel.control as control:
        control.fault("overload", id=1)
    assert dynamixel.packets.read1ByteTxRx(dynamixel.port, 1, 70) == (32, 0, 0x80)


@pytest.mark.parametrize("is_fast", [False, True])
def test_dynamixel_sync_read(dynamixel: Dxl, is_fast: bool) -> None:
    group = dxl.GroupSyncRead(dynamixel.port, dynamixel.packets, 132, 4)
    for number in IDS:
        assert group.addParam(number)
    assert (group.fastSyncRead() if is_fast else group.txRxPacket()) == 0
    assert [group.getData(number, 132, 4) for number in IDS] == PARKED


@pytest.mark.parametrize("is_fast", [False, True])
def test_dynamixel_bulk_read(dynamixel: Dxl, is_fast: bool) -> None:
    group = dxl.GroupBulkRead(dynamixel.port, dynamixel.packets)
    places = {1: (132, 4), 2: (146, 1), 3: (0, 2)}
    for number, place in places.items():
        assert group.addParam(number, *place)
    assert (group.fastBulkRead() if is_fast else group.txRxPacket()) == 0
    assert [group.getData(number, *place) for number, place in places.items()] == [2048, 25, 1200]


def test_dynamixel_sync_and_bulk_write_move_the_arm(dynamixel: Dxl) -> None:
    torque = dxl.GroupSyncWrite(dynamixel.port, dynamixel.packets, 64, 1)
    for number in IDS:
        assert torque.addParam(number, [1])
    assert torque.txPacket() == 0
    goals = dxl.GroupBulkWrite(dynamixel.port, dynamixel.packets)
    for number in IDS:
        assert goals.addParam(number, 116, 4, [0, 8, 0, 0])
    assert goals.txPacket() == 0
    group = dxl.GroupSyncRead(dynamixel.port, dynamixel.packets, 132, 4)
    for number in IDS:
        assert group.addParam(number)
    for _ in range(50):
        assert group.txRxPacket() == 0
    found = [group.getData(number, 132, 4) for number in IDS]
    assert all(abs(count - 2048) <= 1 for count in found)
