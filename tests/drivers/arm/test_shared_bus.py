"""An arm that is not alone: a LeKiwi's wheels on the same bus, and a second arm beside it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from tests.drivers.arm.policies import Stage
from tests.drivers.arm.rig import make_rig
from tests.drivers.arm.test_safety import FORWARD, started
from tests.drivers.setup_bench import Bench, Person
from tests.drivers.test_calibrate import hold_zero, sweep_all

from roboalign.drivers import load_robot
from roboalign.drivers.arm.assembly import assemble
from roboalign.drivers.arm.calibration import read_calibration
from roboalign.drivers.arm.files import JointLimit
from roboalign.drivers.arm.models import find_arm
from roboalign.drivers.arm.states import State
from roboalign.drivers.setup.bus_checks import check_bus
from roboalign.drivers.setup.calibrate import CalibrateConfig, calibrate, import_calibration
from roboalign.drivers.virtual.robots import JOINTS
from roboalign.sdk.errors import CheckFailed, RobotError

WHEELS = (7, 8, 9)
LIMITS = (("shoulder_pan", 797, 3299), ("shoulder_lift", 909, 3187), ("elbow_flex", 947, 3149))
LIMITS += (("wrist_flex", 967, 3129), ("wrist_roll", 0, 4095), ("gripper", 1934, 3186))


def theirs(folder: Path) -> Path:
    """What LeRobot writes for a LeKiwi: six motors of the arm, three of the base."""
    content = {
        f"arm_{name}": {"id": number, "drive_mode": 0, "homing_offset": 0, "range_min": low, "range_max": high}
        for number, (name, low, high) in enumerate(LIMITS, start=1)
    }
    wheel = {"drive_mode": 0, "homing_offset": 0, "range_min": 0, "range_max": 4095}
    content |= {name: {"id": number, **wheel} for name, number in find_arm("lekiwi").others.items()}
    path = folder / "theirs.json"
    path.write_text(json.dumps(content, indent=4))
    return path


def test_a_lekiwis_calibration_is_taken_over_byte_for_byte_with_its_wheels(tmp_path: Path) -> None:
    bench, source = Bench("lekiwi"), theirs(tmp_path)
    bench.servos.write(7, "homing_offset", 9)  # whatever a wheel holds
    bench.servos.write(2, "homing_offset", 9)
    config = CalibrateConfig(
        model=find_arm("lekiwi"), port="/dev/x", calibration=tmp_path / "k.json", robot_file=tmp_path / "k.toml"
    )
    with pytest.raises(CheckFailed, match="drive mode of arm_shoulder_lift differ"):
        import_calibration(bench.servos, config, source, Person(["n"]))
    robot = import_calibration(bench.servos, config, source, Person(["y"]))
    assert (tmp_path / "k.json").read_bytes() == source.read_bytes()
    assert [bench.servos.read(number, "homing_offset") for number in (2, 7)] == [0, 9]
    assert assemble(robot).spec.joint_lower_rad[0] == pytest.approx((797 - 2048) * 2 * np.pi / 4096, abs=0.01)


def test_a_lekiwi_is_swept_from_the_zero_pose_of_its_urdf(tmp_path: Path) -> None:
    bench = Bench("lekiwi", horn_seed=3)
    person = Person(["", hold_zero(bench)], [sweep_all(bench)])
    config = CalibrateConfig(
        model=find_arm("lekiwi"), port="/dev/x", calibration=tmp_path / "k.json", robot_file=tmp_path / "k.toml"
    )
    calibrate(bench.servos, config, person, sleep=bench.sleep)
    assert "upper arm upright" in person.asked[1]
    assert set(read_calibration(tmp_path / "k.json")) == {f"arm_{name}" for name in JOINTS}


def test_the_doctor_knows_a_lekiwis_wheels(tmp_path: Path) -> None:
    bench = Bench("lekiwi")
    rig = make_rig(tmp_path, "lekiwi")
    checks = {check.name: check for check in check_bus(lambda: bench.servos, find_arm("lekiwi"), rig.parts.file)}
    assert {checks[name].status for name in ("ids", "models", "calibration")} == {"passed"}


def test_the_wheels_of_a_lekiwi_are_left_as_they_are(tmp_path: Path) -> None:
    """They have torque and turn while the arm starts, moves, stops, parks and is let go."""
    rig = make_rig(tmp_path, "lekiwi", limits={"arm_shoulder_pan": JointLimit(upper_rad=0.5)})
    assert rig.parts.spec.joint_upper_rad[0] == 0.5
    for number in WHEELS:
        wheel = rig.virtual.find(number)
        wheel.memory[33], wheel.kept[33] = 1, 1
        wheel.write(40, b"\x01")
        wheel.write(46, b"\x2c\x01")
    before = [bytes(rig.virtual.find(number).memory[:56]) for number in WHEELS]
    robot = started(rig).robot
    robot.act(FORWARD)
    robot.estop()
    robot.connect(rearm=True)
    robot.disconnect()
    assert [bytes(rig.virtual.find(number).memory[:56]) for number in WHEELS] == before
    assert rig.torques() == [False] * 6 + [True] * 3


@pytest.mark.slow
def test_two_arms_of_one_program_have_an_owner_each(tmp_path: Path) -> None:
    """A bimanual arm: what stops the one leaves the other as it was. Real processes, pseudo-terminals, real time."""
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
    left, right = (Stage(tmp_path / name) for name in ("left", "right"))
    still = np.array((0, 0, 0, 0, 1), np.float32)
    with left.bus, right.bus:
        arms = [load_robot(stage.path) for stage in (left, right)]
        for arm in arms:
            arm.connect()
        left.bus.control.fault("unplug")
        time.sleep(0.5)
        with pytest.raises(RobotError, match="takes no commands"):
            arms[0].act(still)
        arms[1].connect()  # a busy machine may have let it park
        arms[1].act(still)
        assert [arm.state().state for arm in arms] == [State.FAULT, State.ACTIVE]
        left.bus.control.fault("replug")
        for arm in arms:
            arm.disconnect()
        assert not any(left.bus.control.state()["has_torque"] + right.bus.control.state()["has_torque"])
