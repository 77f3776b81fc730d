"""lerobot 0.6.1's own bus classes drive the virtual arm; see `lerobot_env.sh` for their environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.drivers.virtual.conftest import Serve, serve  # noqa: F401 - the fixture

from roboalign.drivers.virtual import ControlClient, VirtualBusConfig

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("ROBOALIGN_LEROBOT_PYTHON", ROOT / ".venv-lerobot" / "bin" / "python"))
PARKED = [2048, 940, 3091, 2635, 3071, 2048]
ROBOTS = {"feetech": "so101", "dynamixel": "koch"}


def lerobot(protocol: str, link: Path, what: str) -> dict[str, Any]:
    """Runs `lerobot_bus_side.py` in the environment of lerobot."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is missing; make it with tests/peers/lerobot_env.sh")
    command = [str(PYTHON), str(Path(__file__).with_name("lerobot_bus_side.py")), protocol, str(link), what]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**env, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("protocol", ["feetech", "dynamixel"])
def test_lerobot_finds_homes_and_moves_the_arm(protocol: str, serve: Serve) -> None:  # noqa: F811
    server = serve(VirtualBusConfig(robot=ROBOTS[protocol], has_physics=False))
    with ControlClient(server.link) as control:
        # Half-turn homing measures from the middle of a turn; the joints stay within it.
        found = lerobot(protocol, server.link, "drive")
        state = control.state()
    assert list(found["models"].values()) == ([777] * 6 if protocol == "feetech" else [1060] * 2 + [1200] * 4)
    assert list(found["start"].values()) == PARKED
    sign = 1 if protocol == "feetech" else -1
    assert list(found["homings"].values()) == [sign * (count - 2047) for count in PARKED]
    assert list(found["homed"].values()) == [2047] * 6
    assert all(abs(count - 2100) <= 1 for count in found["moved"].values())
    assert list(found["torque"].values()) == [1] * 6
    assert state["has_torque"] == [False] * 6


@pytest.mark.parametrize("protocol", ["feetech", "dynamixel"])
def test_lerobot_pings_all_at_once(protocol: str, serve: Serve) -> None:  # noqa: F811
    server = serve(VirtualBusConfig(robot=ROBOTS[protocol], has_physics=False))
    found = lerobot(protocol, server.link, "ping_all")
    assert list(found["models"]) == ["1", "2", "3", "4", "5", "6"]
