"""`roboalign run` on a virtual arm, and one of its processes killed: held and parked, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.drivers.arm.rig import write_files

from roboalign.drivers.arm.files import CameraFile, write_robot_file
from roboalign.drivers.virtual.config import VirtualBusConfig
from roboalign.drivers.virtual.process import VirtualBus
from roboalign.sdk.control.open_loop import open_loop
from roboalign.sdk.control.replay import replay
from roboalign.sdk.sim.so101 import so101_spec

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PARK = so101_spec().park_joint_pos_rad
LONG_S = 240.0
"""A busy machine takes its time; nothing here is about speed."""


@pytest.fixture
def bus(tmp_path):
    file = replace(write_files(tmp_path), port=str(tmp_path / "arm"), cameras={"front": CameraFile(device="pattern")})
    write_robot_file(tmp_path / "robot.toml", replace(file, park_after_s=1.0))
    with VirtualBus(tmp_path / "arm", VirtualBusConfig(robot="so101", is_lockstep=False, has_physics=False)) as bus:
        yield bus


def start(folder: Path, *more: str, program: tuple[str, ...] = ("-m", "roboalign")) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        *program,
        "run",
        "nano-so101",
        "--robot",
        "robot.toml",
        "--yes",
        "--json",
        *more,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def children(pid: int) -> dict[str, int]:
    """Roles and ids of the processes that a run has started."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if "roboalign.sdk.control" in words:
            found[words[words.index("roboalign.sdk.control") + 1]] = int(child)
    return found


def wait_for(condition, what: str) -> None:
    deadline_s = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.1)


def off_park(bus: VirtualBus) -> float:
    return float(np.abs(np.array(bus.control.state()["position_rad"][:5]) - PARK).max())


def is_let_go(bus: VirtualBus) -> bool:
    return not any(bus.control.state()["has_torque"])


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_arm_whose_policy_is_killed_is_held_and_parked_with_the_reason(bus, tmp_path):
    running = start(tmp_path, "--seconds", "200", "--trace", "run.jsonl", "--report", "run.html")
    wait_for(lambda: off_park(bus) > 0.5 or running.poll() is not None, "the arm never moved")
    pids = children(running.pid)
    assert set(pids) == {"policy", "recorder"}
    os.kill(pids["policy"], signal.SIGKILL)
    out, said = running.communicate(timeout=LONG_S)
    assert running.returncode == 0, said
    report = json.loads(out)["report"]
    assert report["stopped_by"] == "watchdog: the policy's process ended"
    assert report["reasons"]["watchdog"] >= 40
    assert "does not move, watchdog: the policy's process ended" in said
    assert off_park(bus) < 0.1
    assert is_let_go(bus)
    assert not any(is_running(pid) for pid in pids.values())
    assert "watchdog" in (tmp_path / "run.html").read_text()
    assert replay(tmp_path / "run.jsonl").max_action_error == 0.0
    found, _ = open_loop(tmp_path / "run.jsonl")
    assert found.readings > 0.8 * report["ticks"]
    assert found.rms_deg < 5.0


def test_an_arm_whose_control_process_is_killed_is_parked_by_its_bus_and_nothing_is_left(bus, tmp_path):
    shared = set(Path("/dev/shm").iterdir())
    running = start(tmp_path, "--seconds", "200", "--trace", "run.jsonl")
    wait_for(lambda: off_park(bus) > 0.5 or running.poll() is not None, "the arm never moved")
    pids = children(running.pid)
    running.kill()
    running.communicate()
    wait_for(lambda: is_let_go(bus) and off_park(bus) < 0.1, "the arm was not parked and let go")
    wait_for(lambda: not any(is_running(pid) for pid in pids.values()), "a process was left behind")
    assert set(Path("/dev/shm").iterdir()) <= shared
    assert '"ended": "the control process is gone"' in (tmp_path / "run.jsonl").read_text()


IMPORTS = """
import json, sys
from roboalign.cli.main import main
from roboalign.drivers.arm.serial_arm import SerialArm

class Watch:
    def find_spec(self, name, path=None, target=None):
        loaded.append(name)

def connect(arm, real=SerialArm.connect, **more):
    real(arm, **more)
    sys.meta_path.insert(0, watch)

def park(arm, real=SerialArm.park):
    sys.meta_path.remove(watch)
    real(arm)

loaded, watch, SerialArm.connect, SerialArm.park = [], Watch(), connect, park
code = main(sys.argv[1:])
print(json.dumps([code, loaded]))
"""


def test_nothing_is_loaded_while_the_arm_waits_for_commands(bus, tmp_path):
    """From a cold disk it took seconds, so that the arm parked before its first command."""
    running = start(tmp_path, "--seconds", "2", program=("-c", IMPORTS))
    out, said = running.communicate(timeout=LONG_S)
    assert json.loads(out.splitlines()[-1]) == [0, []], said
    assert json.loads(out.splitlines()[0])["report"]["moved"] > 0
