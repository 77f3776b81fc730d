"""From a box of servos to a policy on an arm, in one go: fresh ids, calibration, doctor, teleoperation, recording, run.

Everything is the real code on a virtual arm's bytes; only people, cameras and time are the test's. The `slow` one does
the same through a pseudo-terminal with physics, by the command line.
"""

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
from PIL import Image
from tests.drivers.arm.rig import write_files
from tests.drivers.setup_bench import Bench, Person
from tests.drivers.test_calibrate import NOW, hold_zero, sweep_all
from tests.drivers.test_setup_motors import connects, fresh

from roboalign.drivers.arm.assembly import assemble
from roboalign.drivers.arm.core import ArmCore
from roboalign.drivers.arm.files import CameraFile, read_robot_file, write_robot_file
from roboalign.drivers.arm.links import InlineLink
from roboalign.drivers.arm.models import find_arm
from roboalign.drivers.arm.serial_arm import SerialArm
from roboalign.drivers.arm.servos import BusServos
from roboalign.drivers.cameras import Camera, CameraSet
from roboalign.drivers.doctor import Machine, examine
from roboalign.drivers.setup.calibrate import CalibrateConfig, calibrate
from roboalign.drivers.setup.motors import setup_motors
from roboalign.drivers.setup.pilots import LeaderPilot, ScriptPilot, Wish
from roboalign.drivers.setup.run import run_on_robot
from roboalign.drivers.setup.teleop import RecordConfig, record, steer
from roboalign.drivers.virtual import VirtualBus, VirtualBusConfig
from roboalign.drivers.virtual.robots import JOINTS
from roboalign.sdk.data import LeRobotDataset, check_dataset
from roboalign.sdk.policy import Policy
from roboalign.sdk.sim.so101 import so101_spec

ROOT = Path(__file__).resolve().parents[2]
HOME = (*so101_spec().home_joint_pos_rad, 0.5)


def move(dx=0.0, dy=0.0, dz=0.0, grip=1.0):
    return np.array((dx, dy, dz, 0.0, grip), np.float32)


def calibrated(folder, seed, name="robot"):
    """A bench whose arm was calibrated by hand, with its robot file."""
    bench = Bench(horn_seed=seed)
    config = CalibrateConfig(
        model=find_arm("so101"),
        port="/dev/ttyACM0",
        calibration=folder / f"{name}-so101.json",
        robot_file=folder / f"{name}.toml",
    )
    person = Person(["", hold_zero(bench)], [sweep_all(bench)])
    robot = calibrate(bench.servos, config, person, sleep=bench.sleep, now=lambda: NOW)
    return bench, robot, folder / f"{name}.toml"


class Drawn:
    """A camera that draws where the first joint is, so that no two pictures of a moving arm are the same."""

    is_on_demand = True

    def __init__(self, bench):
        self.bench = bench

    def open(self):
        pass

    def read(self):
        image = np.full((96, 96, 3), 90, np.uint8)
        image[:4] = [[[int(2000 * abs(state.position_rad)) % 256]] for state in self.bench.arm.plant.states()[:4]]
        image[5] = int(self.bench.clock.now() * 100) % 256
        return image, time.monotonic()

    def close(self):
        pass


def open_arm(bench, robot_file):
    """The arm of a robot file on the bench's wires, its bus owner in this process."""
    file = replace(read_robot_file(robot_file), park_after_s=5.0)
    parts = assemble(file)
    bench.servos.bus.close()
    cameras = CameraSet({name: Camera(name, each, source=Drawn(bench)) for name, each in file.cameras.items()})
    core = ArmCore(BusServos(bench.servos.bus, parts), parts.joints, parts.settings, bench.clock)
    return SerialArm(parts, cameras=cameras, link=lambda _: InlineLink(core, bench.clock))


def test_a_box_of_servos_becomes_an_arm_that_a_policy_moves(tmp_path):
    pytest.importorskip("onnxruntime")
    # The ids: six servos as they come from the factory, one at a time.
    box = Bench(servos=[fresh()])
    servos = [fresh() for _ in JOINTS]
    setup_motors(box.servos, find_arm("so101"), Person([connects(box, servo) for servo in servos]))
    assert sorted(servo.id for servo in servos) == [1, 2, 3, 4, 5, 6]
    # The calibration: horns at random, swept by hand.
    bench, robot, robot_file = calibrated(tmp_path, seed=5)
    # A camera, as the user writes it into robot.toml.
    Image.new("RGB", (96, 96), (90, 120, 90)).save(tmp_path / "desk.png")
    front = CameraFile(device=f"file:{tmp_path}/desk.png", rate_hz=200.0)
    write_robot_file(robot_file, replace(robot, cameras={"front": front}, park_after_s=5.0))
    # The doctor finds nothing.
    (tmp_path / "root/dev").mkdir(parents=True)
    (tmp_path / "root/dev/ttyACM0").touch()
    machine = Machine(root=tmp_path / "root", may_open=lambda _: True)
    report = examine(robot_file, machine=machine, open_bus=lambda *_: bench.servos, sleep=lambda _: None)
    assert [str(check) for check in report.checks if check.status == "failed"] == []
    # Teleoperation moves the real joints, through radians, limiter and bytes.
    bench.place_all(HOME)
    arm = open_arm(bench, robot_file)
    arm.connect()
    arm.go_home()
    before = arm.observe(with_images=False).state
    steer(arm, ScriptPilot([([move(dx=0.01)] * 4, Wish.KEEP)]), clock=bench.clock)
    after = arm.observe(with_images=False).state
    assert after[0] - before[0] == pytest.approx(0.04, abs=0.012)
    true = [state.position_rad for state in bench.arm.plant.states()][:5]
    assert arm.observe(with_images=False).joint_pos_rad == pytest.approx(true, abs=0.03)
    # Two short episodes.
    pilot = ScriptPilot([([move(dz=0.005, grip=0.0)] * 5, Wish.KEEP), ([move(dy=0.005)] * 5, Wish.KEEP)])
    recording = RecordConfig(out=tmp_path / "data", task="put the red block in the blue bowl", episodes=2)
    found = record(arm, pilot, recording, clock=bench.clock)
    assert (found.kept, found.is_complete) == (2, True)
    dataset = LeRobotDataset(tmp_path / "data")
    assert len(dataset.episode(1)) == 5
    assert not [item for item in check_dataset(tmp_path / "data").findings if item.severity == "error"]
    arm.disconnect()
    assert [servo.is_torque_on for servo in bench.arm.servos] == [False] * 6
    # The shipped policy for a few steps; the arm parks.
    person = Person(["yes"])
    arm = open_arm(bench, robot_file)
    with Policy.load("nano-so101") as policy:
        ran = run_on_robot(arm, policy, recording.task, person, max_ticks=9, clock=bench.clock)
    assert (ran.ticks, ran.holds, ran.stopped_by) == (9, 0, "max_ticks")
    park = so101_spec().park_joint_pos_rad
    assert [state.position_rad for state in bench.arm.plant.states()][:5] == pytest.approx(park, abs=0.12)
    assert [servo.is_torque_on for servo in bench.arm.servos] == [False] * 6


def test_a_leader_arm_moves_the_follower(tmp_path):
    """Two arms, each calibrated on its own horns: the hand of the one goes where the hand of the other is."""
    bench, _, robot_file = calibrated(tmp_path, seed=5)
    desk, _, leader_file = calibrated(tmp_path, seed=9, name="leader")
    bench.place_all(HOME)
    desk.place_all(HOME)
    desk.servos.bus.close()
    arm = open_arm(bench, robot_file)
    arm.connect()
    arm.go_home()
    kinematics = arm.parts.kinematics
    goal = kinematics.inverse(
        kinematics.forward(HOME[:5]) + np.array([[0, 0, 0, 0.03], [0, 0, 0, 0.04], [0, 0, 0, 0], [0, 0, 0, 0]]),
        HOME[:5],
    )
    assert goal.is_reached

    class Hand(LeaderPilot):
        ticks = 0

        def action(self, observation):
            self.ticks += 1
            if self.ticks == 3:
                desk.place_all((*goal.joint_pos_rad, 0.0))
            return super().action(observation)

    pilot = Hand(arm.spec, assemble(read_robot_file(leader_file)), servos=desk.servos)
    steer(arm, pilot, max_ticks=14, clock=bench.clock)
    pilot.close()
    assert arm.observe(with_images=False).joint_pos_rad == pytest.approx(goal.joint_pos_rad, abs=0.05)
    assert [servo.is_torque_on for servo in desk.arm.servos] == [False] * 6, "the leader is never driven"
    arm.disconnect()


def test_a_leader_that_falls_silent_holds_then_stops(tmp_path):
    bench, _, robot_file = calibrated(tmp_path, seed=5)
    desk, _, leader_file = calibrated(tmp_path, seed=9, name="leader")
    bench.place_all(HOME)
    arm = open_arm(bench, robot_file)
    arm.connect()
    desk.arm.find(3).is_dead = True
    desk.servos.bus.close()
    desk.servos.release = lambda ids: None
    pilot = LeaderPilot(arm.spec, assemble(read_robot_file(leader_file)), servos=desk.servos)
    applied = []
    with pytest.raises(Exception, match=r"the leader on .* stopped answering"):
        steer(arm, pilot, clock=bench.clock, on_frame=lambda seen, sent: applied.append(sent))
    assert len(applied) == 10
    assert all("not finite" in each.reasons[0] for each in applied)
    arm.disconnect()


def roboalign(*args, cwd, answers=""):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "roboalign", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment, input=answers, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_doctor_sees_a_virtual_arm_and_its_scene_through_the_command_line(tmp_path):
    link = tmp_path / "arm"
    file = replace(write_files(tmp_path), port=str(link), cameras={"front": CameraFile(device=f"sim:{link}")})
    write_robot_file(tmp_path / "robot.toml", file)
    with VirtualBus(link, VirtualBusConfig(robot="so101", task="place")):
        done = roboalign("doctor", "robot.toml", "--json", "--pictures", "seen", cwd=tmp_path)
    failed = {check["name"] for check in json.loads(done.stdout)["checks"] if check["status"] == "failed"}
    assert failed <= {"readings"}, done.stdout  # a busy machine may answer late
    picture = np.asarray(Image.open(tmp_path / "seen/front.png"))
    assert picture.shape == (96, 96, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50, "a scene has more colours than a blank picture"


@pytest.mark.slow
def test_the_shipped_bundle_moves_a_virtual_arm_through_the_command_line(tmp_path):
    """Processes, pseudo-terminal and bytes are real; the joints have no physics, which a busy machine cannot keep."""
    link = tmp_path / "arm"
    file = replace(write_files(tmp_path), port=str(link), cameras={"front": CameraFile(device="pattern")})
    write_robot_file(tmp_path / "robot.toml", replace(file, park_after_s=20.0))
    run = ("run", "nano-so101", "--robot", "robot.toml", "--seconds", "3")
    with VirtualBus(link, VirtualBusConfig(robot="so101", is_lockstep=False, has_physics=False)) as bus:
        start = bus.control.state()["position_rad"]
        done = roboalign(*run, cwd=tmp_path, answers="no\n")
        assert done.returncode == 1
        assert "nothing has moved" in done.stderr
        assert bus.control.state()["position_rad"] == pytest.approx(start, abs=0.01)
        done = roboalign(*run, "--yes", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["report"]["ticks"] + json.loads(done.stdout)["report"]["misses"] >= 30
        state = bus.control.state()
        assert state["has_torque"] == [False] * 6
        assert state["position_rad"][:5] == pytest.approx(so101_spec().park_joint_pos_rad, abs=0.1)


@pytest.mark.slow
def test_a_virtual_arm_keeps_every_promise_through_the_command_line(tmp_path):
    """The check of simulator and own drivers, in real time, with the bus owner in its process."""
    link = tmp_path / "arm"
    file = replace(write_files(tmp_path), port=str(link), cameras={"front": CameraFile(device="pattern")})
    write_robot_file(tmp_path / "robot.toml", replace(file, park_after_s=5.0))
    with VirtualBus(link, VirtualBusConfig(robot="so101", is_lockstep=False, has_physics=False)) as bus:
        for joint, rad in zip(JOINTS, HOME, strict=True):
            bus.control.fault("place", joint=joint, rad=rad)
        done = roboalign("check-robot", "--robot", "robot.toml", "--yes", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert all(check["is_ok"] for check in json.loads(done.stdout)["report"]["checks"])
        assert bus.control.state()["has_torque"] == [False] * 6


@pytest.mark.slow
def test_ctrl_c_parks_a_running_arm(tmp_path):
    link = tmp_path / "arm"
    file = replace(write_files(tmp_path), port=str(link), cameras={"front": CameraFile(device="pattern")})
    write_robot_file(tmp_path / "robot.toml", replace(file, park_after_s=20.0))
    command = [sys.executable, "-m", "roboalign", "run", "nano-so101", "--robot", "robot.toml", "--yes"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with VirtualBus(link, VirtualBusConfig(robot="so101", is_lockstep=False, has_physics=False)) as bus:
        running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        park = so101_spec().park_joint_pos_rad
        deadline_s = time.monotonic() + 240
        while np.abs(np.array(bus.control.state()["position_rad"][:5]) - park).max() < 0.5:
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=240)[1]
        state = bus.control.state()
    assert running.returncode == 130, said
    assert "Traceback" not in said
    assert state["has_torque"] == [False] * 6
    assert state["position_rad"][:5] == pytest.approx(park, abs=0.1)
