"""A policy in a process of its own that can be killed, and a virtual arm on a pseudo-terminal, seen from below."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.drivers.arm.rig import write_files

from roboalign.drivers.arm.assembly import assemble
from roboalign.drivers.arm.files import write_robot_file
from roboalign.drivers.virtual.config import VirtualBusConfig
from roboalign.drivers.virtual.process import VirtualBus
from roboalign.sdk.sim.so101 import so101_spec

POLICY = """
import sys, time, math
import numpy as np
from roboalign.drivers import load_robot
robot = load_robot(sys.argv[1])
robot.connect()
robot.go_home()
print("ready", flush=True)
start = time.monotonic()
step = 0
while True:
    try:
        x, y, z = 0.008 * math.cos(step / 4), 0.008 * math.sin(step / 3), 0.004 * math.cos(step / 2)
        robot.act(np.array((x, y, z, 0, 1), np.float32))
        step += 1
        time.sleep(max(0.0, start + step * 0.1 - time.monotonic()))
    except KeyboardInterrupt:
        robot.disconnect()
        raise
"""


@dataclass(frozen=True)
class Death:
    """What the arm did after its policy was killed."""

    held_s: float
    """Until the last goal of the interrupted motion was sent."""
    parked_s: float
    """Until every joint was at its park position."""
    fell_m: float
    """How far the hand came down before it parked."""
    let_go_s: float
    """Until no servo had torque."""


class Stage:
    """A virtual arm and its robot file, for policies that die."""

    def __init__(self, folder: Path, *, has_physics: bool = False) -> None:
        """Prepares the files."""
        self.log = folder / "wire.log"
        config = VirtualBusConfig(is_lockstep=False, has_physics=has_physics, rate_hz=100.0)
        self.bus = VirtualBus(folder / "arm", config, log=self.log)
        self.path = folder / "robot.toml"
        file = write_files(folder, port=str(folder / "arm"))
        write_robot_file(self.path, file)
        self.kinematics = assemble(file).kinematics

    def start(self) -> subprocess.Popen[bytes]:
        """Starts a policy and waits until it moves the arm."""
        policy = subprocess.Popen(
            [sys.executable, "-c", POLICY, str(self.path)], stdout=subprocess.PIPE, start_new_session=True
        )
        assert policy.stdout is not None
        assert policy.stdout.readline() == b"ready\n"
        return policy

    def hand_m(self, state: dict[str, object]) -> float:
        """Height of the tool."""
        joints = state["position_rad"]
        assert isinstance(joints, list)
        return float(self.kinematics.forward(joints[:-1])[2, 3])

    def kill(self, after_s: float) -> Death:
        """Kills a policy in motion and watches the arm until it was let go."""
        policy = self.start()
        time.sleep(after_s)
        before = self.bus.control.state()
        os.kill(policy.pid, signal.SIGKILL)
        killed_s = float(self.bus.control.state()["time_s"])
        height = self.hand_m(before)
        parked_s = let_go_s = 0.0
        heights: list[tuple[float, float]] = []
        park = np.array(so101_spec().park_joint_pos_rad)
        while not let_go_s:
            state = self.bus.control.state()
            now_s = float(state["time_s"]) - killed_s
            assert now_s < 12.0, f"the arm was not let go: {state}"
            heights.append((now_s, self.hand_m(state)))
            if not parked_s and np.abs(np.array(state["position_rad"][:-1]) - park).max() < 0.06:
                parked_s = now_s
            let_go_s = now_s if not any(state["has_torque"]) else 0.0
            time.sleep(0.01)
        policy.wait()
        assert policy.stdout is not None
        policy.stdout.close()
        held_s, moved_on_s = self._pause(killed_s)
        lowest = min(level for at_s, level in heights if at_s <= max(held_s, moved_on_s))
        return Death(held_s, parked_s, height - lowest, let_go_s)

    def _pause(self, killed_s: float) -> tuple[float, float]:
        """Returns when goals came to rest after the kill, and when the way to the park position began."""
        last, last_s, rested_s = "", killed_s, 0.0
        for line in self.log.read_text().splitlines():
            time_text, way, packet = line.split()
            at_s = float(time_text)
            if way != ">" or packet[2:6] != "832a":
                continue
            if packet != last:
                if at_s > killed_s and at_s - last_s > 0.2:
                    return max(0.0, last_s - killed_s), at_s - killed_s
                last, last_s = packet, at_s
        return max(0.0, last_s - killed_s), rested_s
