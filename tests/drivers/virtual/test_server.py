"""The pseudo-terminal, its link, and the control socket: what a host sees, and what is left behind."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import serial
from tests.drivers.virtual.conftest import Serve

from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.virtual import ControlClient, VirtualBus, VirtualBusConfig, VirtualBusServer, build_line
from roboalign.sdk.errors import ConfigError, RobotError

FEETECH = Feetech()
PING_1 = FEETECH.ping(1)
PONG_1 = FEETECH.encode_status(1, 0)
LIGHT = VirtualBusConfig(has_physics=False)
IDS = (1, 2, 3, 4, 5, 6)


def open_port(path: str | Path) -> serial.Serial:
    return serial.Serial(str(path), 1_000_000, timeout=20.0)


def ask(port: serial.Serial, request: bytes, num_bytes: int) -> bytes:
    port.write(request)
    return bytes(port.read(num_bytes))


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def hear_until_lost(port: serial.Serial) -> bytes:
    """Returns what comes before the port is gone; fails when it stays."""
    heard = b""
    with contextlib.suppress(serial.SerialException, OSError):
        while data := port.read(1):
            heard += data
        pytest.fail("the port did not get lost")
    return heard


def test_unplug_and_replug_change_the_name_behind_the_link(serve: Serve) -> None:
    server = serve(LIGHT)
    before = server.link.readlink()
    with open_port(server.link) as port, ControlClient(server.link) as control:
        assert ask(port, PING_1, 6) == PONG_1
        control.fault("unplug")
        assert not server.link.is_symlink()
        assert hear_until_lost(port) == b""
    with ControlClient(server.link) as control:
        control.fault("replug")
    assert server.link.readlink() != before
    with open_port(server.link) as port:
        assert ask(port, PING_1, 6) == PONG_1


def test_out_and_in_at_the_same_moment_is_a_replug_too(serve: Serve) -> None:
    server = serve(LIGHT)
    before = server.link.readlink()
    with open_port(server.link) as port, ControlClient(server.link) as control:
        control.fault("unplug", at_request=2)
        control.fault("replug", at_request=2)
        assert ask(port, PING_1, 6) == PONG_1
        port.write(PING_1)
        assert PONG_1.startswith(hear_until_lost(port))
        assert control.state()["is_plugged"]
    assert server.link.readlink() != before


def test_a_name_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long for a socket"):
        VirtualBusServer(build_line(LIGHT), tmp_path / ("x" * 120)).open()
    assert list(tmp_path.iterdir()) == []


def test_a_hundred_replugs_leak_no_descriptor(serve: Serve) -> None:
    server = serve(LIGHT)
    with ControlClient(server.link) as control:
        control.state()
        before = num_descriptors()
        for _ in range(100):
            control.fault("unplug")
            control.fault("replug")
        assert num_descriptors() == before
    with open_port(server.link) as port:
        assert ask(port, PING_1, 6) == PONG_1


def test_unplug_in_the_middle_of_an_answer(serve: Serve) -> None:
    server = serve(LIGHT)
    with open_port(server.link) as port, ControlClient(server.link) as control:
        control.fault("unplug", after_bytes=len(PING_1) + 3)
        port.write(PING_1)
        heard = hear_until_lost(port)
        assert PONG_1.startswith(heard)
        assert len(heard) <= 3


def test_servos_keep_their_torque_while_the_adapter_is_out(serve: Serve) -> None:
    server = serve(LIGHT)
    with ControlClient(server.link) as control:
        with open_port(server.link) as port:
            ask(port, FEETECH.write(1, 40, b"\x01"), 6)
        control.fault("unplug")
        assert control.state()["has_torque"][0]


def test_the_next_host_gets_the_port_after_an_exclusive_one(serve: Serve) -> None:
    """A held slave end would keep TIOCEXCL for ever, for everybody but root."""
    server = serve(LIGHT)
    for _ in range(3):
        with serial.Serial(str(server.link), 1_000_000, timeout=20.0, exclusive=True) as port:
            assert ask(port, PING_1, 6) == PONG_1


def test_a_closed_port_forgets_what_was_under_way(serve: Serve) -> None:
    server = serve(LIGHT)
    with ControlClient(server.link) as control:
        control.fault("late", delay_s=0.2)
        with open_port(server.link) as port:
            port.write(PING_1)
            while control.state()["requests"] < 1:
                time.sleep(0.001)
        time.sleep(0.4)
    with open_port(server.link) as port:
        assert ask(port, FEETECH.ping(2), 6) == FEETECH.encode_status(2, 0)


def test_a_host_that_does_not_read_blocks_nobody(serve: Serve) -> None:
    server = serve(LIGHT)
    request = FEETECH.sync_read(0, 80, IDS)
    with open_port(server.link) as port, ControlClient(server.link) as control:
        for sent in range(1, 101):
            port.write(request)
            while control.state()["requests"] < sent:
                time.sleep(0.001)
        assert server.num_lost > 0
        port.reset_input_buffer()
        port.write(PING_1)
        assert control.state()["is_plugged"]


def test_a_wrong_request_is_answered_and_the_next_one_too(serve: Serve) -> None:
    server = serve(LIGHT)
    with ControlClient(server.link) as control:
        for do, fields, message in (
            ("dance", {}, "unknown request 'dance'"),
            ("fault", {"kind": "dorp"}, "did you mean drop"),
            ("memory", {"id": 99}, "no servo has id 99"),
            ("frame", {}, "no picture"),
            ("fault", {"kind": "place", "joint": "knee"}, "unknown joint 'knee'"),
        ):
            with pytest.raises(RobotError, match=message):
                control.ask(do, **fields)
        assert control.memory(2)[5] == 2


def test_requests_may_come_in_pieces_and_garbage_is_answered(serve: Serve) -> None:
    server = serve(LIGHT)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20.0)
        client.connect(str(server.link) + ".ctl")
        client.sendall(b"nonsense\n" + b'{"do": "st')
        file = client.makefile("rb")
        assert json.loads(file.readline())["ok"] is False
        client.sendall(b'ate"}\n')
        assert json.loads(file.readline())["ids"] == list(IDS)
        file.close()


def test_no_link_and_no_socket_stay_behind(tmp_path: Path) -> None:
    link = tmp_path / "arm"
    before = num_descriptors()
    with VirtualBusServer(build_line(LIGHT), link):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["arm", "arm.ctl"]
    assert list(tmp_path.iterdir()) == []
    assert num_descriptors() == before


def test_a_place_that_is_taken_is_refused(tmp_path: Path, serve: Serve) -> None:
    server = serve(LIGHT)
    with pytest.raises(ConfigError, match="another virtual arm serves"):
        VirtualBusServer(build_line(LIGHT), server.link).open()
    mine = tmp_path / "mine"
    mine.write_text("precious")
    with pytest.raises(ConfigError, match="is there and no link"):
        VirtualBusServer(build_line(LIGHT), mine).open()
    assert mine.read_text() == "precious"
    refused = VirtualBusServer(build_line(LIGHT), server.link)
    with pytest.raises(ConfigError):
        refused.open()
    refused.close()
    assert server.link.is_symlink()


def test_what_a_killed_server_left_is_taken_over(tmp_path: Path) -> None:
    link = tmp_path / "arm"
    link.symlink_to("/dev/pts/99999")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(link) + ".ctl")
    with VirtualBusServer(build_line(LIGHT), link) as server:
        assert link.readlink() == Path(server.port_name)


def test_real_time_passes_by_itself(serve: Serve) -> None:
    server = serve(VirtualBusConfig(has_physics=False, is_lockstep=False))
    with open_port(server.link) as port, ControlClient(server.link) as control:
        ask(port, FEETECH.write(1, 42, (2148).to_bytes(2, "little")), 6)
        deadline_s = time.monotonic() + 20.0
        while ask(port, FEETECH.read(1, 56, 2), 8) != FEETECH.encode_status(1, 0, (2148).to_bytes(2, "little")):
            assert time.monotonic() < deadline_s
        assert control.state()["steps"] == 0


def test_bytes_take_their_time_on_the_terminal_too(serve: Serve) -> None:
    server = serve(VirtualBusConfig(has_physics=False, has_byte_time=True))
    with open_port(server.link) as port:
        start_s = time.monotonic()
        for _ in range(10):
            assert ask(port, PING_1, 6) == PONG_1
        assert time.monotonic() - start_s > 10 * (12 * 10e-6 + 500e-6)


def test_physics_is_seen_by_pictures_and_falls_without_torque(serve: Serve) -> None:
    server = serve(VirtualBusConfig(task="place", seed=1))
    with ControlClient(server.link) as control:
        for joint in ("shoulder_lift", "elbow_flex", "wrist_flex"):
            control.fault("place", joint=joint, rad=0.0)
        before, image = control.state(), control.frame("front", 64)
        control.ask("step", count=50)
        after = control.state()
        assert (image.shape, image.dtype) == ((64, 64, 3), "uint8")
        assert after["tool_position_m"][2] < before["tool_position_m"][2] - 0.05
        assert (control.frame("front", 64) != image).any()
        assert {"yellow block", "orange bowl"} <= set(control.ask("bodies")["bodies"])


def test_an_object_is_put_somewhere_by_hand(serve: Serve) -> None:
    server = serve(VirtualBusConfig(task="place", seed=1))
    with ControlClient(server.link) as control:
        control.ask("move", body="yellow block", position_m=[0.2, 0.05, 0.1], yaw_rad=0.5)
        block = control.bodies()["yellow block"]
        assert block.position_m.tolist() == pytest.approx([0.2, 0.05, 0.1], abs=1e-6)
        assert (block.yaw_rad, block.is_touched) == (pytest.approx(0.5, abs=1e-6), False)
        for wrong in ({"body": "cup"}, {"body": "yellow block", "position_m": [0.2]}):
            with pytest.raises(RobotError, match=r"cup|three numbers"):
                control.ask("move", **wrong)


def run_lockstep(folder: Path, name: str, num_cycles: int) -> tuple[bytes, str]:
    """A program that moves the arm in a process of its own; returns the log and the hash of the physical state."""
    log = folder / f"{name}.log"
    with VirtualBus(folder / name, VirtualBusConfig(), log=log) as bus:
        with open_port(bus.port) as port:
            for cycle in range(num_cycles):
                goals = {number: (2048 + 3 * (cycle % 100) * (-1) ** number).to_bytes(2, "little") for number in IDS}
                port.write(FEETECH.sync_write(42, goals))
                assert len(ask(port, FEETECH.sync_read(56, 15, IDS), 21 * len(IDS))) == 21 * len(IDS)
        assert bus.control.state()["steps"] == num_cycles
        state_hash = bus.control.ask("bodies")["state_hash"]
    return log.read_bytes(), state_hash


def test_two_lockstep_runs_are_equal_bit_by_bit(tmp_path: Path) -> None:
    first, second = (run_lockstep(tmp_path, name, 600) for name in ("one", "two"))
    assert first == second
    assert first[0].count(b"\n") == 3 * 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.log", "two.log"]


def test_ctrl_c_ends_the_command_cleanly(tmp_path: Path) -> None:
    link = tmp_path / "arm"
    command = [sys.executable, "-m", "roboalign", "sim-bus", "--link", str(link), "--no-physics", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        started = json.loads(process.stdout.readline())
        assert started["path"] == str(link)
        assert link.readlink() == Path(started["port"])
        process.send_signal(signal.SIGINT)
        assert process.wait(60.0) == 0
        assert process.stderr.read().decode().endswith("stopped\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", [Feetech(), Dynamixel()], ids=["feetech", "dynamixel"])
def test_the_command_takes_a_protocol_and_a_file_of_faults(tmp_path: Path, protocol: Feetech | Dynamixel) -> None:
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps({"fault": [{"kind": "drop", "id": 2}, {"kind": "overload", "id": 3}]}))
    config = VirtualBusConfig(protocol=protocol.name, has_physics=False, faults=faults)
    with VirtualBus(tmp_path / "arm", config) as bus, open_port(bus.port) as port:
        port.write(protocol.ping(2))  # whose answer is dropped
        port.write(protocol.ping(3))
        heard = b""
        while not (statuses := protocol.scan(heard, is_final=False)[0]):
            heard += port.read(1)
    assert [(status.id, bool(status.error)) for status in statuses] == [(3, True)]


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom roboalign.drivers.virtual import VirtualBus, VirtualBusConfig\n"
        "bus = VirtualBus(sys.argv[1], VirtualBusConfig(has_physics=False)).open()\n"
        "print(bus.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "arm")], capture_output=True, timeout=120)
    pid = int(done.stdout)
    deadline_s = time.monotonic() + 30.0
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()
    assert list(tmp_path.iterdir()) == []


def test_a_bus_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "arm").write_text("precious")
    with pytest.raises(RobotError, match="is there and no link"):
        VirtualBus(tmp_path / "arm", LIGHT).open()
