"""The bus on servos in memory: registers, partial results, fences, echoes, retries, EEPROM, scans."""

from __future__ import annotations

import time
from random import Random

import pytest
from tests.drivers.bus.bench import IDS, Answers, Bench

from roboalign.drivers.bus.bus import Bus, BusSettings
from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.dynamixel_table import DYNAMIXEL_REGISTERS, DYNAMIXEL_TELEMETRY
from roboalign.drivers.bus.eeprom import change_baud
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.bus.feetech_table import FEETECH_BAUDS, FEETECH_REGISTERS, FEETECH_TELEMETRY
from roboalign.drivers.bus.memory import MemoryServos, MemoryTransport
from roboalign.drivers.bus.types import BROADCAST_ID, Fault, FaultKind, PortLost, Register, Reply
from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.errors import ConfigError, RobotError, RobotTimeout

POSITION = Register(name="present_position", address=56, size=2)
LOAD = Register(name="present_load", address=60, size=2)
GOAL = Register(name="goal_position", address=42, size=2)
OFFSET = FEETECH_REGISTERS["homing_offset"]


def reply(answer: Reply | Fault | None) -> Reply:
    assert isinstance(answer, Reply), answer
    return answer


def fault(answer: Reply | Fault | None) -> Fault:
    assert isinstance(answer, Fault), answer
    return answer


def test_one_register_is_read_and_written(bench: Bench) -> None:
    assert reply(bench.bus.read(POSITION, 3)).data == bench.data(3, 56, 2)
    assert reply(bench.bus.write(GOAL, 3, 1234)).data == b""
    assert bench.bus.read_value(GOAL, 3) == 1234
    assert reply(bench.bus.ping(3)).id == 3


def test_a_sync_read_gives_one_answer_for_each_id_in_order(bench: Bench) -> None:
    answers = bench.bus.sync_read(POSITION, (6, 1, 3))
    assert list(answers) == [6, 1, 3]
    assert {servo: reply(a).data for servo, a in answers.items()} == {n: bench.data(n, 56, 2) for n in (6, 1, 3)}
    assert len(bench.written) == 1


def test_the_telemetry_block_is_decoded_by_name() -> None:
    bench = Bench(Feetech())
    bench.servos.tables[1][56:71] = bytes((0x10, 0x88, 5, 0, 0x64, 4, 121, 35, 0, 0x20, 1, 0, 0, 100, 0x80))
    values = FEETECH_TELEMETRY.decode(reply(bench.bus.sync_read(FEETECH_TELEMETRY, (1,))[1]).data)
    assert values["present_position"] == -0x0810
    assert values["present_load"] == -100
    assert (values["present_voltage"], values["present_temperature"], values["status"]) == (121, 35, 0x20)
    assert values["present_current"] == -100
    assert (FEETECH_TELEMETRY.size, DYNAMIXEL_TELEMETRY.size) == (15, 23)


def test_sync_and_bulk_writes_reach_every_servo(bench: Bench) -> None:
    bench.bus.sync_write(GOAL, {1: 100, 2: 200})
    bench.bus.bulk_write({3: (GOAL, 300), 4: (LOAD, 4)})
    assert [bench.bus.read_value(GOAL, servo) for servo in (1, 2, 3)] == [100, 200, 300]
    assert bench.bus.read_value(LOAD, 4) == 4


def test_a_bulk_read_takes_another_place_of_each(bench: Bench) -> None:
    places = {1: POSITION, 2: FEETECH_TELEMETRY, 5: Register(name="five", address=10, size=5)}
    answers = bench.bus.bulk_read(places)
    assert {n: reply(a).data for n, a in answers.items()} == {
        n: bench.data(n, place.address, place.size) for n, place in places.items()
    }


@pytest.mark.parametrize("address", [0, 7])
def test_a_read_as_long_as_a_fence_is_widened(bench: Bench, address: int) -> None:
    place = Register(name="five", address=address, size=5)
    assert reply(bench.bus.read(place, 2)).data == bench.data(2, address, 5)
    assert reply(bench.bus.sync_read(place, (2, 3))[3]).data == bench.data(3, address, 5)
    assert not any(bench.is_fence(packet) for packet in bench.written)


def test_a_silent_servo_is_a_fault_and_the_others_answer(bench: Bench) -> None:
    bench.servos.silent.add(4)
    answers = bench.bus.sync_read(POSITION, IDS)
    assert fault(answers[4]).kind is FaultKind.TIMEOUT
    assert [reply(answers[n]).data for n in IDS if n != 4] == [bench.data(n, 56, 2) for n in IDS if n != 4]


def test_a_silent_servo_costs_the_others_little_time_and_comes_back(bench: Bench) -> None:
    bench.bus.sync_read(POSITION, IDS)
    bench.servos.silent.add(4)
    start_s = bench.clock.now()
    for _ in range(100):
        assert fault(bench.bus.sync_read(POSITION, IDS)[4]).kind is FaultKind.TIMEOUT
        bench.clock.advance(0.02)
    assert bench.clock.now() - start_s - 2.0 < 0.25
    bench.servos.silent.clear()
    bench.clock.advance(1.0)
    assert reply(bench.bus.sync_read(POSITION, IDS)[4]).data == bench.data(4, 56, 2)


def test_the_error_byte_of_a_sync_read_is_kept() -> None:
    bench = Bench(Feetech())
    bench.servos.errors[6] = 0x20
    answer = reply(bench.bus.sync_read(POSITION, IDS)[6])
    assert bench.protocol.describe_error(answer.error) == "overload"
    assert bench.bus.stats.errors == {6: 1}


def test_a_refusal_is_told_from_an_alert() -> None:
    bench = Bench(Dynamixel())
    bench.servos.errors.update({1: 0x80, 2: 0x07})
    assert reply(bench.bus.write(GOAL, 1, 5)).error == 0x80
    refused = fault(bench.bus.write(GOAL, 2, 5))
    assert refused.kind is FaultKind.REJECTED
    assert "access denied" in refused.detail
    assert bench.bus.stats.retries == 0


def late(delay_s: float, num: int = 1) -> object:
    left = [num]

    def spoil(packet: bytes, answers: Answers) -> Answers:
        if left[0] > 0 and answers:
            left[0] -= 1
            return [(delay_s, data) for _, data in answers]
        return answers

    return spoil


@pytest.mark.parametrize("timeouts", [0.9, 1.1, 2.0, 5.0])
def test_a_late_answer_is_not_taken_for_that_of_another_register(bench: Bench, timeouts: float) -> None:
    """The vendors' packages returned the old position as the load, with success, 17 and 19 times of 20."""
    bench.spoil = late(timeouts * bench.bus.settings.reply_timeout_s)  # type: ignore[assignment]
    bench.bus.read(POSITION, 1)
    answer = bench.bus.read(LOAD, 1)
    assert not isinstance(answer, Reply) or answer.data == bench.data(1, 60, 2)
    bench.clock.advance(1.0)
    assert reply(bench.bus.read(LOAD, 1)).data == bench.data(1, 60, 2)


def test_a_fence_answers_late_too_and_nothing_is_mistaken(bench: Bench) -> None:
    bench.spoil = late(0.2, num=4)  # type: ignore[assignment]
    wrong = 0
    for number in range(40):
        place = (POSITION, LOAD)[number % 2]
        answer = bench.bus.read(place, 1)
        wrong += isinstance(answer, Reply) and answer.data != bench.data(1, place.address, 2)
    assert wrong == 0
    assert reply(answer).data


def late_lottery(bench: Bench, num: int) -> tuple[int, int]:
    """Reads random places while one answer in five is late by 0.9 to 5 timeouts; returns wrong ones and right ones."""
    rng = Random(num)
    timeout_s = bench.bus.settings.reply_timeout_s

    def spoil(packet: bytes, answers: Answers) -> Answers:
        return [((rng.uniform(0.9, 5.0) * timeout_s if rng.random() < 0.2 else 0.0), data) for _, data in answers]

    bench.spoil = spoil
    places = [Register(name=str(address), address=address, size=2) for address in range(40, 80, 2)]
    wrong = right = 0
    for number in range(num):
        place, ids = rng.choice(places), rng.sample(IDS, 3)
        answers = bench.bus.sync_read(place, ids) if number % 2 else {ids[0]: bench.bus.read(place, ids[0])}
        for servo, answer in answers.items():
            if isinstance(answer, Reply):
                is_right = answer.data == bench.data(servo, place.address, 2)
                right, wrong = right + is_right, wrong + (not is_right)
    return wrong, right


def test_late_answers_are_never_wrong(bench: Bench) -> None:
    wrong, right = late_lottery(bench, 600)
    assert wrong == 0
    assert right > 300


@pytest.mark.parametrize("gap_s", [0.0, 0.012, 0.02])
@pytest.mark.parametrize("stall_s", [0.7, 1.1])
def test_a_line_that_stands_still_lets_no_answer_be_mistaken(bench: Bench, stall_s: float, gap_s: float) -> None:
    """A fence's length used again after 0.55 s of a stall of 0.7 was "proved" by the first one's answer, up to 9 times.

    What was asked meanwhile waits in a queue, as in an adapter that the system had put to sleep, and is then answered
    one by one.
    """
    bench.bus.sync_read(POSITION, IDS)
    end_s = free_s = bench.clock.now() + stall_s

    def spoil(packet: bytes, answers: Answers) -> Answers:
        nonlocal free_s
        now_s = bench.clock.now()
        if free_s > now_s:
            free_s += gap_s
        return [(max(0.0, free_s - now_s), data) for _, data in answers]

    bench.spoil = spoil
    places = [Register(name=str(address), address=address, size=2) for address in range(40, 80, 2)]
    wrong = 0
    for number in range(400):
        place = places[number % len(places)]
        for servo, answer in bench.bus.sync_read(place, IDS).items():
            wrong += isinstance(answer, Reply) and answer.data != bench.data(servo, place.address, 2)
        bench.clock.advance(0.005)
    assert bench.clock.now() > end_s + 1.0
    assert wrong == 0
    assert all(isinstance(answer, Reply) for answer in bench.bus.sync_read(POSITION, IDS).values())


@pytest.mark.slow
def test_ten_thousand_late_answers_are_never_wrong(bench: Bench) -> None:
    assert late_lottery(bench, 50_000)[0] == 0


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 0x04,)) + data[at + 1 :]


def test_a_damaged_answer_costs_no_timeout_and_is_read_again(bench: Bench) -> None:
    bench.bus.sync_read(POSITION, IDS)
    spoiled = []

    def spoil(packet: bytes, answers: Answers) -> Answers:
        if len(answers) == len(IDS) and not spoiled:
            spoiled.append(packet)
            answers[2] = (0.0, damaged(answers[2][1], -2))
        return answers

    bench.spoil = spoil
    start_s = bench.clock.now()
    answers = bench.bus.sync_read(POSITION, IDS)
    assert {n: reply(a).data for n, a in answers.items()} == {n: bench.data(n, 56, 2) for n in IDS}
    assert bench.clock.now() == start_s
    assert (bench.bus.stats.corrupt, bench.bus.stats.retries, bench.bus.stats.fences) == (1, 1, 1)


def test_a_damaged_answer_without_another_try_is_a_fault() -> None:
    bench = Bench(Feetech(), BusSettings(num_sync_retries=0))
    bench.spoil = lambda packet, answers: [(0.0, damaged(answers[0][1], 5)), *answers[1:]] if answers else []
    answers = bench.bus.sync_read(POSITION, IDS)
    assert fault(answers[1]).kind is FaultKind.CORRUPT
    assert all(isinstance(answers[n], Reply) for n in IDS[1:])


def test_an_answer_of_the_wrong_length_is_refused(bench: Bench) -> None:
    """scservo_sdk returned a data byte and the checksum as a position, with success."""
    bench.spoil = lambda packet, answers: (
        answers if bench.is_fence(packet) else [(0.0, bench.protocol.encode_status(1, 0, b"\x07"))]
    )
    assert fault(bench.bus.read(POSITION, 1)).kind is FaultKind.CORRUPT


def test_an_answer_of_another_servo_is_refused(bench: Bench) -> None:
    bench.spoil = lambda packet, answers: (
        answers if bench.is_fence(packet) else [(0.0, bench.protocol.encode_status(2, 0, b"\x07\x07"))]
    )
    assert fault(bench.bus.read(POSITION, 1)).kind is FaultKind.CORRUPT


@pytest.mark.parametrize("noise", [b"\x00", b"\xff", b"\xff\xff", b"\xff\xff\xfd", b"\x37\x81\xff\xff\x01"])
def test_noise_before_answers_is_skipped(bench: Bench, noise: bytes) -> None:
    bench.spoil = lambda packet, answers: [(0.0, noise + answers[0][1]), *answers[1:]] if answers else []
    for _ in range(5):
        answers = bench.bus.sync_read(POSITION, IDS)
        right = {n: a.data for n, a in answers.items() if isinstance(a, Reply)}
        assert all(data == bench.data(n, 56, 2) for n, data in right.items())
        assert len(right) == len(IDS)


def test_answers_that_come_byte_by_byte_are_put_together(bench: Bench) -> None:
    bench.spoil = lambda packet, answers: [(0.0, bytes((byte,))) for _, data in answers for byte in data]
    assert [reply(a).data for a in bench.bus.sync_read(POSITION, IDS).values()] == [bench.data(n, 56, 2) for n in IDS]


@pytest.mark.parametrize("first", ["ping", "read", "sync", "telemetry"])
def test_echoes_are_dropped_whatever_comes_first(bench: Bench, first: str) -> None:
    bench.spoil = lambda packet, answers: [(0.0, packet), *answers]
    calls = {
        "ping": lambda: [bench.bus.ping(1)],
        "read": lambda: [bench.bus.read(POSITION, 1)],
        "sync": lambda: list(bench.bus.sync_read(POSITION, IDS).values()),
        "telemetry": lambda: list(bench.bus.sync_read(FEETECH_TELEMETRY, IDS).values()),
    }
    assert all(isinstance(a, Reply) and a.error == 0 for a in calls[first]())
    for call in calls.values():
        assert all(isinstance(a, Reply) and a.error == 0 for a in call())
    assert bench.bus.stats.fences == 0


def test_echoes_that_come_now_and_then_are_never_answers(bench: Bench) -> None:
    rng = Random(1)
    bench.spoil = lambda packet, answers: [(0.0, packet)] * (rng.random() < 0.5) + answers * (rng.random() < 0.9)
    answers = [bench.bus.read(POSITION, 1) for _ in range(200)]
    assert {answer.data for answer in answers if isinstance(answer, Reply)} == {bench.data(1, 56, 2)}


def test_an_echo_of_a_dead_bus_is_no_servo(feetech: Bench) -> None:
    """The echo of a ping reads as the answer of a servo with low voltage, that of a read as a position."""
    feetech.spoil = lambda packet, answers: [(0.0, packet)]
    assert fault(feetech.bus.ping(1)).kind is FaultKind.TIMEOUT
    assert fault(feetech.bus.read(POSITION, 1)).kind is FaultKind.TIMEOUT
    assert feetech.bus.scan() == {}


def test_an_answer_that_equals_the_question_is_no_echo(feetech: Bench) -> None:
    feetech.servos.errors[1] = 1
    assert reply(feetech.bus.ping(1)).error == 1
    assert feetech.bus.scan()[1].error == 1
    feetech.servos.tables[1][56:58] = bytes((56, 2))
    feetech.servos.errors[1] = 2
    assert reply(feetech.bus.read(POSITION, 1)).data == bytes((56, 2))


def test_bytes_that_nobody_asked_for_lead_to_a_fence(bench: Bench) -> None:
    bench.bus.sync_read(POSITION, IDS)
    bench.spoil = lambda packet, answers: [*answers, (0.001, answers[0][1])]  # two servos of one id
    bench.bus.ping(3)
    bench.spoil = lambda packet, answers: answers
    bench.clock.advance(0.002)
    bench.written.clear()
    assert reply(bench.bus.read(POSITION, 3)).data == bench.data(3, 56, 2)
    assert bench.is_fence(bench.written[0])


def test_a_lost_port_is_told_once_and_stays_lost_until_it_is_reopened(bench: Bench) -> None:
    bench.bus.sync_read(POSITION, IDS)
    bench.transport.is_lost = True
    for _ in range(2):
        with pytest.raises(PortLost):
            bench.bus.sync_read(POSITION, IDS)
    bench.transport.is_lost = False
    with pytest.raises(PortLost, match="reopen"):
        bench.bus.sync_write(GOAL, {1: 1})
    bench.bus.reopen()
    assert reply(bench.bus.sync_read(POSITION, IDS)[1])
    assert bench.bus.stats.reopens == 1


def test_reading_a_value_raises_what_happened(bench: Bench) -> None:
    bench.servos.silent.add(2)
    with pytest.raises(RobotTimeout, match="servo 2 did not answer"):
        bench.bus.read_value(POSITION, 2)


def test_what_does_not_fit_is_not_sent(bench: Bench) -> None:
    for act in (
        lambda: bench.bus.write(GOAL, 1, 70000),
        lambda: bench.bus.sync_write(GOAL, {1: 5, 2: -1}),
        lambda: bench.bus.bulk_write({1: (GOAL, 5), 2: (GOAL, -1)}),
        lambda: bench.bus.write(FEETECH_REGISTERS["present_load"], 1, 0),
    ):
        with pytest.raises(RobotError, match="nothing was sent"):
            act()
    assert bench.written == []


def test_a_broadcast_write_waits_for_nobody(bench: Bench) -> None:
    assert bench.bus.write(GOAL, BROADCAST_ID, 7) is None
    assert [bench.bus.read_value(GOAL, n) for n in IDS] == [7] * 6


def test_an_equal_eeprom_register_is_not_written_again(feetech: Bench) -> None:
    feetech.servos.tables[1][40] = 0
    assert feetech.bus.write_verified(OFFSET, 1, -100)
    assert feetech.bus.read_value(OFFSET, 1) == -100
    assert feetech.servos.tables[1][55] == 1, "the lock is closed again"
    feetech.written.clear()
    assert not feetech.bus.write_verified(OFFSET, 1, -100)
    assert len(feetech.written) == 1


def test_eeprom_is_not_written_under_torque(bench: Bench) -> None:
    bench.servos.tables[1][bench.protocol.torque.address] = 1
    with pytest.raises(RobotError, match="torque off"):
        bench.bus.write_verified(OFFSET, 1, 5)
    assert bench.bus.read_value(OFFSET, 1) != 5


def test_a_register_that_reads_back_another_value_is_an_error(feetech: Bench) -> None:
    feetech.servos.tables[1][40] = 0
    feetech.spoil = lambda packet, answers: (
        feetech.servos.tables[1].__setitem__(slice(31, 33), b"\x09\x00") or answers  # type: ignore[func-returns-value]
    )
    with pytest.raises(RobotError, match="reads back 9"):
        feetech.bus.write_verified(OFFSET, 1, 5)
    assert feetech.servos.tables[1][55] == 1


def test_a_new_id_is_verified_under_the_new_id(feetech: Bench) -> None:
    table = feetech.servos.tables
    table[1][40], table[1][5] = 0, 1

    def spoil(packet: bytes, answers: Answers) -> Answers:
        for servo in list(table):
            if table[servo][5] == 40 and servo == 1:
                table[40] = table.pop(1)
        return answers

    feetech.spoil = spoil
    assert feetech.bus.write_verified(FEETECH_REGISTERS["id"], 1, 40)
    assert reply(feetech.bus.ping(40))
    assert table[40][55] == 1
    table[2][40] = 0
    with pytest.raises(RobotError, match="another servo has that id"):
        feetech.bus.write_verified(FEETECH_REGISTERS["id"], 2, 40)


def test_a_servo_is_followed_to_another_rate(feetech: Bench) -> None:
    table = feetech.servos.tables[1]
    table[40], table[6] = 0, 0
    feetech.spoil = lambda packet, answers: answers if FEETECH_BAUDS[table[6]] == feetech.transport.baud else []
    baud = FEETECH_REGISTERS["baud_rate"]
    assert change_baud(feetech.bus, baud, 1, 4, FEETECH_BAUDS[4])
    assert feetech.transport.baud == 1_000_000
    assert list(feetech.bus.scan_bauds((1_000_000, 115_200), (1,))) == [115_200]
    assert feetech.transport.baud == 1_000_000


def test_a_scan_finds_who_is_there_quickly(bench: Bench) -> None:
    bench.servos.tables[2][3:5] = (777).to_bytes(2, "little")
    start_s = bench.clock.now()
    found = bench.bus.scan()
    assert bench.clock.now() - start_s < 0.5
    assert tuple(found) == IDS
    assert not any(device.is_shared for device in found.values())
    if bench.protocol.name == "feetech":
        assert found[2].model_number == 777
    assert reply(bench.bus.sync_read(POSITION, IDS)[1]).data == bench.data(1, 56, 2)


@pytest.mark.parametrize("kind", ["doubled", "garbled"])
def test_a_scan_finds_an_id_that_is_used_twice(bench: Bench, kind: str) -> None:
    def spoil(packet: bytes, answers: Answers) -> Answers:
        head = {"feetech": b"\xff\xff\x03", "dynamixel": b"\xff\xff\xfd\x00\x03"}[bench.protocol.name]
        if not answers or not answers[0][1].startswith(head):
            return answers
        return answers * 2 if kind == "doubled" else [(0.0, b"\xff\xff\x03\x83\xfe\x7f")]

    bench.spoil = spoil
    found = bench.bus.scan(range(1, 8))
    assert [n for n, device in found.items() if device.is_shared] == [3]
    assert tuple(found) == IDS


def test_a_fast_sync_read_gives_the_same_and_survives_a_cut_frame() -> None:
    bench = Bench(Dynamixel(), BusSettings(has_fast_read=True))
    answers = bench.bus.sync_read(DYNAMIXEL_TELEMETRY, IDS)
    assert {n: reply(a).data for n, a in answers.items()} == {n: bench.data(n, 124, 23) for n in IDS}
    bench.spoil = lambda packet, found: [(0.0, found[0][1][:90])] if len(found[0][1]) > 90 else found
    answers = bench.bus.sync_read(DYNAMIXEL_TELEMETRY, IDS)
    right = [n for n, a in answers.items() if isinstance(a, Reply) and a.data == bench.data(n, 124, 23)]
    assert right[:3] == [1, 2, 3]
    assert all(isinstance(answers[n], Fault) for n in IDS if n not in right)


def test_stuffed_answers_are_read(dynamixel: Bench) -> None:
    register = DYNAMIXEL_REGISTERS["present_position"]
    dynamixel.servos.tables[2][132:136] = b"\xff\xff\xfd\xff"
    answers = dynamixel.bus.sync_read(register, IDS)
    assert register.decode(reply(answers[2]).data) == -131073
    assert dynamixel.bus.stats.fences == 0


def test_the_wall_clock_does_not_matter(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(1000))
    monkeypatch.setattr(time, "time", lambda: 3600.0 * (-1) ** next(jumps))
    clock = FakeClock()
    servos = MemoryServos(bench.protocol, IDS)
    with Bus(MemoryTransport(servos, clock), bench.protocol, clock=clock) as bus:
        assert all(isinstance(a, Reply) for a in bus.sync_read(POSITION, IDS).values())
        servos.silent.add(1)
        assert isinstance(bus.read(POSITION, 1), Fault)
        assert clock.now() < 0.2


@pytest.mark.parametrize("values", [{"min_timeout_s": 0.0}, {"min_timeout_s": 1.0}, {"num_retries": -1}])
def test_impossible_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="BusSettings"):
        BusSettings(**values)  # type: ignore[arg-type]
