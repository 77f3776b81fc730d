"""What is on the wire when all is well, and what each fault does to it, byte by byte."""

import tracemalloc
from pathlib import Path

import pytest

from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.bus.types import PortLost
from roboalign.drivers.virtual import FaultPlan, LineFault, VirtualLine, VirtualPort, make_arm, read_faults
from roboalign.drivers.virtual.dialects import dialect_of
from roboalign.sdk.errors import ConfigError, RobotError

FEETECH = Feetech()
PING_1 = bytes.fromhex("ffff010201fb")
PONG_1 = bytes.fromhex("ffff010200fc")
PONG_2 = bytes.fromhex("ffff020200fb")
READ_1 = bytes.fromhex("ffff0104023802be")
POSITION_1 = bytes.fromhex("ffff0104000008f2")
PING_2 = FEETECH.ping(2)
PING_ALL = FEETECH.ping(0xFE)


def make_port(
    *faults: LineFault,
    seed: int = 0,
    protocol: str = "feetech",
    has_byte_time: bool = False,
    step_s: float | None = None,
) -> VirtualPort:
    line = VirtualLine(
        make_arm("so101", protocol),
        dialect_of(protocol),
        faults=FaultPlan(faults, seed),
        has_byte_time=has_byte_time,
        step_s=step_s,
    )
    port = VirtualPort(line)
    port.open()
    return port


def ask(port: VirtualPort, request: bytes, timeout_s: float = 0.02) -> bytes:
    """Sends, and returns all that comes until the line is silent for the timeout."""
    port.write(request, port.clock.now() + timeout_s)
    found = b""
    while data := port.read(port.clock.now() + timeout_s):
        found += data
    return found


def test_ping_and_read_are_answered_with_the_published_bytes() -> None:
    port = make_port()
    assert ask(port, PING_1) == PONG_1
    assert ask(port, READ_1) == POSITION_1


def test_dynamixel_ping_is_answered_with_model_and_firmware() -> None:
    port = make_port(protocol="dynamixel")
    assert ask(port, bytes.fromhex("fffffd000103000119 4e")) == Dynamixel().encode_status(1, 0, bytes((0x24, 4, 46)))


def test_requests_in_pieces_and_behind_garbage_are_understood() -> None:
    port = make_port()
    for byte in b"\xff\x00\xff" + PING_1:
        port.write(bytes((byte,)), 1.0)
    assert port.read(1.0) == PONG_1


def test_half_a_request_is_forgotten_after_a_silence() -> None:
    port = make_port()
    port.write(b"\xff\xff\x01\x20", 1.0)
    port.clock.sleep_until(0.1)
    assert ask(port, PING_1) == PONG_1


def test_broadcast_ping_is_answered_by_all_in_order() -> None:
    statuses, _ = FEETECH.scan(ask(make_port(), PING_ALL), is_final=True)
    assert [status.id for status in statuses] == [1, 2, 3, 4, 5, 6]


def test_a_missing_servo_leaves_a_hole_in_a_sync_read() -> None:
    port = make_port(LineFault(kind="dead", id=3))
    statuses, _ = FEETECH.scan(ask(port, FEETECH.sync_read(56, 2, [1, 3, 6])), is_final=True)
    assert [status.id for status in statuses] == [1, 6]


def test_a_fast_sync_read_ends_at_a_missing_servo() -> None:
    port = make_port(LineFault(kind="dead", id=3), protocol="dynamixel")
    codec = Dynamixel()
    data = ask(port, codec.fast_sync_read(132, 4, [1, 2, 3, 4]))
    assert [status.id for status in codec.fast_replies([1, 2, 3, 4], 4).prefix(data)] == [1, 2]
    assert len(data) == 8 + 2 * 8


def test_writes_to_all_and_sync_writes_are_not_answered() -> None:
    port = make_port()
    assert ask(port, FEETECH.write(0xFE, 40, b"\x01")) == b""
    assert ask(port, FEETECH.sync_write(42, {1: b"\x00\x08", 2: b"\x10\x04"})) == b""
    servos = port.line.arm.servos
    assert [servo.is_torque_on for servo in servos] == [True] * 6
    assert servos[1].read(42, 2) == b"\x10\x04"


def test_registered_writes_wait_for_action() -> None:
    port = make_port()
    ask(port, FEETECH.reg_write(1, 40, b"\x01"))
    assert not port.line.arm.servos[0].is_torque_on
    ask(port, FEETECH.action())
    assert port.line.arm.servos[0].is_torque_on


def test_status_level_0_silences_writes() -> None:
    port = make_port()
    assert ask(port, FEETECH.write(1, 8, b"\x00")) == b""
    assert ask(port, FEETECH.write(1, 40, b"\x01")) == b""
    assert ask(port, PING_1) == PONG_1


def test_a_new_id_counts_from_the_next_packet() -> None:
    port = make_port()
    assert ask(port, FEETECH.write(1, 5, b"\x09")) == PONG_1
    assert ask(port, PING_1) == b""
    assert ask(port, FEETECH.ping(9)) == FEETECH.encode_status(9, 0)


def test_a_secondary_id_is_obeyed_in_silence() -> None:
    codec = Dynamixel()
    port = make_port(protocol="dynamixel")
    ask(port, codec.write(2, 12, b"\x01"))
    answer = ask(port, codec.write(1, 64, b"\x01"))
    assert answer == codec.encode_status(1, 0)
    assert [servo.is_torque_on for servo in port.line.arm.servos[:3]] == [True, True, False]


def test_a_shadow_pair_lifts_together() -> None:
    codec = Dynamixel()
    line = VirtualLine(make_arm("widowx"), dialect_of("dynamixel"), step_s=0.02)
    port = VirtualPort(line)
    port.open()
    assert sorted(servo.id for servo in line.arm.servos) == list(range(1, 10))
    for number in (2, 3):
        ask(port, codec.write(number, 64, b"\x01"))
    ask(port, codec.write(2, 116, (2500).to_bytes(4, "little")))
    for _ in range(50):
        answers = codec.replies([2, 3], 4).match(ask(port, codec.sync_read(132, 4, [2, 3])))
    assert answers is not None
    assert [int.from_bytes(status.data, "little") for status in answers] == [2500, 2500]
    shoulder = line.arm.plant.states()[1]
    assert shoulder.position_rad == pytest.approx((2500 - 2048) * 6.2832 / 4096, abs=0.002)


def test_bytes_take_ten_bit_times_and_the_return_delay() -> None:
    port = make_port(has_byte_time=True)
    port.write(READ_1, 1.0)
    assert port.read(1.0) == POSITION_1
    assert port.clock.now() == pytest.approx((8 + 8) * 10e-6 + 500e-6)


def test_who_speaks_while_a_device_does_garbles_both() -> None:
    port = make_port(has_byte_time=True)
    port.write(READ_1, 1.0)
    port.clock.sleep_until(600e-6)  # the answer is on the wire from 580 to 660 us
    port.write(PING_2, 1.0)
    assert len(heard := ask(port, b"")) == len(POSITION_1)
    assert heard != POSITION_1
    assert port.line.stats.collisions == 1


def test_drop() -> None:
    port = make_port(LineFault(kind="drop", skip=1, count=2))
    assert [ask(port, PING_1) for _ in range(4)] == [PONG_1, b"", b"", PONG_1]


def test_drop_of_one_servo_only() -> None:
    port = make_port(LineFault(kind="drop", id=2, probability=1.0))
    assert (ask(port, PING_1), ask(port, PING_2)) == (PONG_1, b"")


def test_late_replies_come_before_what_was_asked_later() -> None:
    port = make_port(LineFault(kind="late", delay_s=0.05))
    port.write(READ_1, 1.0)
    assert port.read(0.02) == b""
    port.write(PING_2, 1.0)
    assert port.read(1.0) == POSITION_1 + PONG_2
    assert port.clock.now() == pytest.approx(0.05)


def test_late_replies_can_be_overtaken() -> None:
    port = make_port(LineFault(kind="late", delay_s=0.05, is_overtaken=True))
    port.write(READ_1, 1.0)
    port.write(PING_2, 1.0)
    assert (port.read(1.0), port.read(1.0)) == (PONG_2, POSITION_1)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_corrupt_flips_so_many_bits(bits: int) -> None:
    damaged = ask(make_port(LineFault(kind="corrupt", bits=bits)), READ_1)
    assert sum((a ^ b).bit_count() for a, b in zip(damaged, POSITION_1, strict=True)) == bits


def test_corrupt_replaces_so_many_bytes() -> None:
    damaged = ask(make_port(LineFault(kind="corrupt", bytes=3)), READ_1)
    assert sum(a != b for a, b in zip(damaged, POSITION_1, strict=True)) == 3


def test_half() -> None:
    port = make_port(LineFault(kind="half"), LineFault(kind="half", bytes=7, skip=1))
    assert (ask(port, READ_1), ask(port, READ_1)) == (POSITION_1[:4], POSITION_1[:7])


def test_split() -> None:
    port = make_port(LineFault(kind="split", delay_s=0.001))
    port.write(READ_1, 1.0)
    pieces = [port.read(1.0) for _ in range(8)]
    assert pieces == [bytes((byte,)) for byte in POSITION_1]
    assert port.clock.now() == pytest.approx(0.007)


def test_merge() -> None:
    port = make_port(LineFault(kind="merge"))
    port.write(READ_1, 1.0)
    assert port.read(0.02) == b""
    port.write(PING_2, 1.0)
    assert port.read(1.0) == POSITION_1 + PONG_2


def test_echo() -> None:
    port = make_port(LineFault(kind="echo", probability=1.0))
    assert (ask(port, PING_1), ask(port, PING_2)) == (PING_1 + PONG_1, PING_2 + PONG_2)


def test_noise() -> None:
    heard = ask(make_port(LineFault(kind="noise", bytes=5)), PING_1)
    assert len(heard) == 5 + len(PONG_1)
    assert heard.endswith(PONG_1)


def test_garbage() -> None:
    heard = ask(make_port(LineFault(kind="garbage")), READ_1)
    assert len(heard) == len(POSITION_1) // 2
    assert not FEETECH.scan(heard, is_final=True)[0]


def test_dead_and_revived() -> None:
    port = make_port()
    port.line.inject(LineFault(kind="dead", id=1))
    assert ask(port, PING_1) == b""
    port.line.inject(LineFault(kind="revive", id=1))
    assert ask(port, PING_1) == PONG_1


def test_duplicate_ids_speak_at_once() -> None:
    port = make_port(LineFault(kind="duplicate", id=1))
    heard = {ask(port, READ_1) for _ in range(30)}
    assert len(heard) > 1
    assert all(not answer or answer[0] == 0xFF for answer in heard)
    good = [status for answer in heard for status in FEETECH.scan(answer, is_final=True)[0]]
    assert len(good) < len(heard)


def test_wrong_baud_of_a_servo_and_of_the_host() -> None:
    port = make_port()
    port.line.inject(LineFault(kind="wrong_baud", id=1, baud=57_600))
    assert (ask(port, PING_1), ask(port, PING_2)) == (b"", PONG_2)
    port.set_baud(57_600)
    assert (ask(port, PING_1), ask(port, PING_2)) == (PONG_1, b"")


def test_overload_is_in_the_error_byte() -> None:
    port = make_port()
    port.line.inject(LineFault(kind="overload", id=1))
    assert ask(port, PING_1) == FEETECH.encode_status(1, 32)


def test_hot_is_in_the_error_byte_and_the_reading() -> None:
    port = make_port()
    port.line.inject(LineFault(kind="hot", id=1, celsius=75.0))
    port.clock.sleep_until(0.1)
    assert ask(port, FEETECH.read(1, 63, 1)) == FEETECH.encode_status(1, 4, b"\x4b")


def test_undervoltage_is_in_the_error_byte_and_the_reading() -> None:
    port = make_port()
    port.line.inject(LineFault(kind="voltage", volts=3.8))
    port.clock.sleep_until(0.1)
    assert ask(port, FEETECH.read(1, 62, 1)) == FEETECH.encode_status(1, 1, b"\x26")


def test_brownout_silences_and_torque_is_gone_afterwards() -> None:
    port = make_port()
    ask(port, FEETECH.write(1, 40, b"\x01"))
    port.line.inject(LineFault(kind="brownout", delay_s=0.2))
    assert ask(port, PING_1) == b""
    port.clock.sleep_until(0.9)
    port.line.pass_time(0.9)
    assert ask(port, FEETECH.read(1, 40, 1)) == FEETECH.encode_status(1, 0, b"\x00")


def test_what_happens_to_a_joint_is_in_the_readings() -> None:
    """Obstacle, push and a hand, as bytes: load with its sign in bit 10, position."""
    port = make_port(step_s=0.02)
    step = FEETECH.sync_read(56, 2, [1])
    read_load, read_position = FEETECH.read(1, 60, 2), FEETECH.read(1, 56, 2)
    ask(port, FEETECH.write(1, 42, (2448).to_bytes(2, "little")))
    port.line.inject(LineFault(kind="block", joint="shoulder_pan", upper_rad=0.2))
    for _ in range(25):
        ask(port, step)
    assert ask(port, read_position) == FEETECH.encode_status(1, 0, (2178).to_bytes(2, "little"))
    assert ask(port, read_load) == FEETECH.encode_status(1, 0, (1000).to_bytes(2, "little"))
    port.line.inject(LineFault(kind="free", joint="shoulder_pan"))
    port.line.inject(LineFault(kind="push", joint="shoulder_pan", share=0.3))
    for _ in range(25):
        ask(port, step)
    assert ask(port, read_position) == FEETECH.encode_status(1, 0, (2448).to_bytes(2, "little"))
    assert ask(port, read_load) == FEETECH.encode_status(1, 0, (300 | 1 << 10).to_bytes(2, "little"))
    ask(port, FEETECH.write(1, 40, b"\x00"))
    port.line.inject(LineFault(kind="place", joint="shoulder_pan", rad=-0.1))
    assert ask(port, read_position) == FEETECH.encode_status(1, 0, (1983).to_bytes(2, "little"))


def test_a_supply_below_what_controllers_need_silences_until_it_is_back() -> None:
    port = make_port(LineFault(kind="voltage", volts=3.0), LineFault(kind="voltage", volts=12.0, at_s=0.5))
    ask(port, FEETECH.write(1, 40, b"\x01"))
    port.clock.sleep_until(0.1)
    port.line.pass_time(0.1)
    assert ask(port, PING_1) == b""
    port.clock.sleep_until(0.6)
    port.line.pass_time(0.6)
    port.line.pass_time(1.0)
    port.clock.sleep_until(1.0)
    assert ask(port, FEETECH.read(1, 40, 1)) == FEETECH.encode_status(1, 0, b"\x00")


def test_faults_wait_for_their_time_or_request() -> None:
    port = make_port(LineFault(kind="dead", id=1, at_request=3), LineFault(kind="revive", id=1, at_s=1.0))
    assert [ask(port, PING_1) for _ in range(3)] == [PONG_1, PONG_1, b""]
    port.clock.sleep_until(1.01)
    assert ask(port, PING_1) == PONG_1


@pytest.mark.parametrize("num_bytes", range(1, len(READ_1) + len(POSITION_1) + 1))
def test_unplugged_after_any_byte(num_bytes: int) -> None:
    """What arrived before the cut arrives; then the port is gone until it is opened again."""
    port = make_port()
    port.line.inject(LineFault(kind="unplug", after_bytes=num_bytes))
    heard, is_lost = b"", False
    try:
        port.write(READ_1, 1.0)
        while len(heard) <= len(POSITION_1):
            heard += port.read(port.clock.now() + 0.02)
    except PortLost:
        is_lost = True
    assert is_lost
    assert heard == POSITION_1[: max(0, num_bytes - len(READ_1))]
    with pytest.raises(RobotError, match="unplugged"):
        port.open()
    name = port.name
    port.line.inject(LineFault(kind="replug"))
    assert port.name != name
    with pytest.raises(PortLost):
        port.read(0.0)
    port.open()
    assert ask(port, PING_1) == PONG_1


def test_equal_seeds_give_equal_bytes() -> None:
    faults = [LineFault(kind=kind, probability=0.2) for kind in ("drop", "corrupt", "noise", "half", "garbage")]
    runs = []
    for seed in (1, 1, 2):
        port = make_port(*faults, seed=seed)
        runs.append([ask(port, READ_1) for _ in range(100)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_lockstep_passes_time_by_sync_reads_of_the_position_alone() -> None:
    port = make_port(step_s=0.02)
    ask(port, READ_1)
    ask(port, FEETECH.sync_read(62, 2, [1, 2]))
    assert port.line.arm.time_s == 0.0
    ask(port, FEETECH.sync_read(56, 15, [1, 2]))
    ask(port, FEETECH.sync_read(56, 2, [1, 2]))
    assert port.line.arm.time_s == pytest.approx(0.04)


def test_memory_stays_flat() -> None:
    port = make_port(LineFault(kind="drop", probability=0.1), LineFault(kind="noise", probability=0.1), step_s=0.02)
    request = FEETECH.sync_read(56, 15, [1, 2, 3])
    sizes = []
    tracemalloc.start()
    for _ in range(2):
        for _ in range(300):
            ask(port, request)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 2_000


def test_faults_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text('{"seed": 3, "fault": [{"kind": "drop", "count": 2}, {"kind": "hot", "id": 3, "celsius": 75}]}')
    plan = read_faults(path)
    assert plan.has_replies
    assert [fault.kind for fault in plan.due(0.0, 0)] == ["hot"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"fault": [{"kind": "dorp"}]}', "fault 1: unknown fault 'dorp'; did you mean drop"),
        ('{"fault": [{"kind": "drop", "cuont": 1}]}', "fault 1: unknown field 'cuont'; did you mean count"),
        ('{"fault": [{"kind": "drop", "count": "two"}]}', "count is 'two', expected int"),
        ('{"fault": [{"kind": "drop", "probability": 2}]}', "probability of fault drop is 2"),
        ('{"fault": [{"kind": "drop", "count": 0}]}', "count of fault drop is 0, expected 1 or more"),
        ('{"fault": [{"kind": "late", "delay_s": -1}]}', "delay_s of fault late is -1"),
        ('{"fault": [{"kind": "dead"}]}', "fault dead needs an id"),
        ('{"fault": [{"kind": "block", "lower_rad": 0}]}', "fault block needs a joint"),
        ('{"faults": []}', "unknown field 'faults'; did you mean fault"),
    ],
)
def test_wrong_files_are_refused_with_the_place(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_faults(path)
