"""lerobot 0.6.1's so101_follower as our Robot, and our robot by lerobot's plug-in loader, both on the virtual arm."""

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


def lerobot(*args: str | Path) -> dict[str, Any]:
    """Runs `lerobot_robots_side.py` in the environment of lerobot."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is missing; make it with tests/peers/lerobot_env.sh")
    command = [str(PYTHON), str(Path(__file__).with_name("lerobot_robots_side.py")), *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
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
