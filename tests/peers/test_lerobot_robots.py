"""Robots of lerobot 0.6.1 and of an installed plug-in as ours, and ours by its loader; most on the virtual arm."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.drivers.arm.rig import write_files
from tests.drivers.virtual.conftest import Serve, serve  # noqa: F401 - the fixture

from roboalign.drivers.arm.files import write_robot_file
from roboalign.drivers.virtual import ControlClient, VirtualBusConfig
from roboalign.drivers.virtual.robots import JOINTS
from roboalign.sdk.sim.so101 import so101_spec

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("ROBOALIGN_LEROBOT_PYTHON", ROOT / ".venv-lerobot" / "bin" / "python"))
HOME = (*so101_spec().home_joint_pos_rad, 0.4)


PLUGIN = """
import math
from dataclasses import dataclass

from lerobot.robots import Robot, RobotConfig

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")


@RobotConfig.register_subclass("bench")
@dataclass
class BenchConfig(RobotConfig):
    pass


class Bench(Robot):
    config_class, name = BenchConfig, "bench"
    is_connected, is_calibrated = False, True
    observation_features = action_features = None

    def __init__(self, config):
        super().__init__(config)
        self.found = {f"{name}.pos": math.degrees(rad) for name, rad in zip(NAMES, HOME, strict=True)}
        self.found["gripper.pos"] = 100.0
        self.action_features = self.observation_features = dict.fromkeys(self.found, float)

    def connect(self, calibrate=True):
        self.is_connected = True

    def calibrate(self):
        raise RuntimeError("nobody asked")

    def configure(self):
        pass

    def get_observation(self):
        return dict(self.found)

    def send_action(self, action):
        self.found.update(action)
        return action

    def disconnect(self):
        self.is_connected = False
"""


def lerobot(*args: str | Path, path: Path | None = None) -> dict[str, Any]:
    """Runs `lerobot_robots_side.py` in the environment of lerobot; packages in `path` count as installed."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is missing; make it with tests/peers/lerobot_env.sh")
    command = [str(PYTHON), str(Path(__file__).with_name("lerobot_robots_side.py")), *map(str, args)]
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{path or ''}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def place(control: ControlClient) -> None:
    for joint, rad in zip(JOINTS, HOME, strict=True):
        control.fault("place", joint=joint, rad=rad)


def test_lerobots_follower_moves_as_our_robot(tmp_path: Path, serve: Serve) -> None:  # noqa: F811
    entry = {"drive_mode": 0, "homing_offset": 0, "range_min": 0, "range_max": 4095}
    content = {name: {"id": number, **entry} for number, name in enumerate(JOINTS, start=1)}
    (tmp_path / "arm.json").write_text(json.dumps(content))
    server = serve(VirtualBusConfig(robot="so101", has_physics=False))
    with ControlClient(server.link) as control:
        place(control)
        found = lerobot("theirs", server.link, tmp_path)
    assert found["is_device"]
    assert found["reasons"] == []
    moved_m = [after - before for after, before in zip(found["after"][:3], found["before"][:3], strict=True)]
    assert moved_m == pytest.approx([0.02, 0.0, 0.0], abs=0.006)
    assert not found["is_connected"]


def test_our_robot_is_found_and_made_by_lerobot(tmp_path: Path, serve: Serve) -> None:  # noqa: F811
    server = serve(VirtualBusConfig(robot="so101", has_physics=False))
    file = replace(write_files(tmp_path), port=str(server.link), park_after_s=30.0)
    write_robot_file(tmp_path / "robot.json", file)
    with ControlClient(server.link) as control:
        place(control)
        found = lerobot("ours", tmp_path / "robot.json")
        state = control.state()
    keys = sorted(f"{name}.pos" for name in JOINTS)
    assert (found["is_robot"], found["name"]) == (True, "roboalign")
    assert found["observation"] == found["action"] == found["seen"] == keys
    for name in JOINTS[:5]:
        assert found["sent"][f"{name}.pos"] == pytest.approx(found["goal"][f"{name}.pos"], abs=3.0)
    assert not found["is_connected"]
    assert state["has_torque"] == [False] * 6


def test_an_installed_plug_in_serves_as_our_robot(tmp_path: Path) -> None:
    """A package that is found by its name alone, as LeRobot finds it, keeps every promise of a `Robot`."""
    package = tmp_path / "lerobot_robot_bench"
    package.mkdir()
    (package / "__init__.py").write_text(f"HOME = {HOME[:5]}\n{PLUGIN}")
    (tmp_path / "lerobot_robot_bench-1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: lerobot_robot_bench\nVersion: 1.0\n"
    (tmp_path / "lerobot_robot_bench-1.0.dist-info" / "METADATA").write_text(metadata)
    found = lerobot("plugin", "bench", tmp_path, path=tmp_path)
    assert found["failed"] == []
    assert found["checks"] > 10
