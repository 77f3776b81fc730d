"""docs/own-robot.md as its reader would live it: every command of the page, in order, on a virtual arm.

`PORT` and `DEVICE` are replaced, and a person is played who moves the limp arm by hand, lays out the cube, and steers
by the keyboard. Nothing else is changed.
"""

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from roboalign.drivers.virtual import VirtualBus, VirtualBusConfig
from roboalign.drivers.virtual.robots import JOINTS, PARK_RAD
from roboalign.sdk.bundle import read_bundle
from roboalign.sdk.data import LeRobotDataset
from roboalign.sdk.sim.so101 import so101_spec

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "own-robot.md"
SPEC = so101_spec()
ENDS = (*zip(SPEC.joint_lower_rad, SPEC.joint_upper_rad, strict=True), (-0.174533, 1.74533))
TICK_S = 0.13  # a little more than a control period: one press, one step
GRIP_RAD = 0.002
NEAR_M = 0.009  # a press moves the tool by 15 mm


def commands():
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


class Person:
    """Answers one command's questions, and has hands."""

    def __init__(self, control, rng):
        self.control, self.rng = control, rng
        self.cube = next(name for name in control.bodies() if name.endswith(("block", "cylinder")))
        self.type = lambda text: None
        self.busy = None
        self.at = np.array(PARK_RAD)

    def hear(self, line):
        """Reacts to what the command says; what takes long is done beside."""
        todo = None
        if "hold it, then press Enter" in line:
            todo = self.hold
        elif "zero pose" in line and "press Enter" in line:
            todo = self.hold_zero
        elif "Press Enter when done" in line or "Move those joints again" in line:
            todo = self.sweep
        elif line.startswith("Written: ") or "turn it inside by hand" in line:
            todo = self.let_go
        elif "Type yes to go on" in line:
            self.type("yes\n")
        elif re.match(r"episode \d+: set the scene", line):
            todo = self.steer
        if todo is not None and (self.busy is None or not self.busy.is_alive()):
            self.busy = threading.Thread(target=todo, daemon=True)
            self.busy.start()

    def hold_at(self, angles):
        """Turns all joints by hand and keeps them there, whatever gravity does while the command looks elsewhere."""
        for joint, rad in zip(JOINTS, np.asarray(angles, float).tolist(), strict=True):
            self.control.fault("place", joint=joint, rad=rad)
            self.control.fault("block", joint=joint, lower_rad=rad - GRIP_RAD, upper_rad=rad + GRIP_RAD)
        self.at = np.asarray(angles, float)

    def let_go(self):
        """Lays the arm down where it can lie, and takes the hands away."""
        self.hold_at(PARK_RAD)
        for joint in JOINTS:
            self.control.fault("free", joint=joint)

    def hold(self):
        self.hold_at(PARK_RAD)
        self.type("\n")

    def hold_zero(self):
        self.hold_at([0.0] * len(JOINTS))
        self.type("\n")

    def sweep(self):
        """Moves all joints from where they are to both ends, a few degrees for each reading."""
        low, high = np.array(ENDS).T
        path = [self.at + (low - self.at) * part / 60 for part in range(1, 61)]
        path += [low + (high - low) * part / 80 for part in range(1, 81)]
        for angles in path:
            self.hold_at(angles)
            seen = self.control.state()["steps"]
            while self.control.state()["steps"] < seen + 2:
                time.sleep(0.005)
        self.type("\n")

    def steer(self):
        """Puts the cube somewhere, goes beside it, down, through, up, and keeps the episode."""
        x, y = self.rng.uniform(0.18, 0.23), self.rng.uniform(-0.03, 0.03)
        self.control.ask("move", body=self.cube, position_m=[x, y, 0.012])
        for place in ((x, y + 0.06, 0.07), (x, y + 0.06, 0.02), (x, y - 0.03, 0.02), (x, y - 0.03, 0.07)):
            self.go(place)
        self.type("\n")

    def go(self, place):
        for _ in range(25):
            off = np.array(place) - self.control.state()["tool_position_m"]
            ways = zip(("ws", "ad", "rf"), off, strict=True)
            keys = [pair[int(error < 0)] for pair, error in ways if abs(error) > NEAR_M]
            if not keys:
                return
            self.type("".join(keys))
            time.sleep(TICK_S)


def run(command, person, cwd):
    """Runs one command of the page with the person in front of it; returns its exit code and what it said."""
    words = [sys.executable, "-m", "roboalign", *shlex.split(command)[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    said = []
    with subprocess.Popen(words, cwd=cwd, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:

        def type_(text):
            if process.poll() is None:
                process.stdin.write(text)
                process.stdin.flush()

        person.type = type_
        for line in process.stderr:
            said.append(line)
            person.hear(line)
        if person.busy is not None:
            person.busy.join(timeout=60)
        said.append(process.stdout.read())
    return process.returncode, "".join(said)


def test_the_page_goes_from_calibration_to_a_running_policy():
    verbs = [" ".join(word for word in line.split()[1:3] if not word.startswith("-")) for line in commands()]
    assert [verb.split(" runs")[0] for verb in verbs] == [
        "calibrate",
        "record",
        "data check",
        "train sft",
        "train align",
        "train head",
        "export",
        "run",
    ]
    assert all(line.startswith("roboalign ") for line in commands())


@pytest.mark.slow
def test_the_page_works_as_written(tmp_path):
    pytest.importorskip("trl")
    link = tmp_path / "arm"
    config = VirtualBusConfig(robot="so101", rate_hz=100.0, task="push", seed=1, horn_seed=5)
    with VirtualBus(link, config) as bus:
        person = Person(bus.control, np.random.default_rng(0))
        for line in commands():
            command = line.replace("PORT", str(link)).replace("DEVICE", f"sim:{link}#show")
            code, said = run(command, person, tmp_path)
            for _ in range(5):  # the page: the same command goes on after an interruption
                if code == 0 or "record" not in command:
                    break
                code, said = run(command, person, tmp_path)
            assert code == 0, f"{command}\n{said}"
        assert bus.control.state()["has_torque"] == [False] * 6, "the arm was parked and let go"
    dataset = LeRobotDataset(tmp_path / "my-data")
    assert dataset.info.total_episodes == 50
    assert tuple(dataset.info.cameras) == ("desk",)
    manifest = read_bundle(tmp_path / "runs" / "bundle").manifest
    assert manifest.policy.camera_names == ("desk",)
    assert manifest.robot.name == "so101"
