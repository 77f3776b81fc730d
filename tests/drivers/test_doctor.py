"""doctor on virtual arms with faults: every fault of the bus, the supply and the cameras is named with its remedy."""

import itertools
import json
from pathlib import Path

import pytest
from PIL import Image
from tests.drivers.setup_bench import Bench

from roboalign.drivers.arm.calibration import MotorCalibration, write_calibration
from roboalign.drivers.arm.files import CameraFile, RobotFile, write_robot_file
from roboalign.drivers.doctor import Machine, examine
from roboalign.drivers.virtual.faults import LineFault
from roboalign.drivers.virtual.robots import JOINTS
from roboalign.sdk.errors import ConfigError, RobotError

COUNTS = itertools.count()


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/ttyACM0").touch()
    return Machine(root=tmp_path, user="ada", may_open=lambda _: True)


def write_robot(folder, cameras=None, **change):
    """A robot file whose calibration is that of the virtual arm: encoders at their middle when joints are at zero."""
    spans = {"gripper": (-114, 1138), "elbow_flex": (-1101, 1101)}
    motors = {}
    for number, name in enumerate(JOINTS, start=1):
        low, high = spans.get(name, (-1100, 1100))
        if name == "wrist_roll":
            low, high = -1789, 1852
        if name == "shoulder_pan":
            low, high = -1251, 1251
        motors[name] = MotorCalibration(
            id=number, drive_mode=0, homing_offset=0, range_min=2048 + low, range_max=2048 + high
        )
    motors.update(change)
    write_calibration(folder / "so101.json", motors)
    file = RobotFile(arm="so101", port="/dev/ttyACM0", calibration=folder / "so101.json", cameras=cameras or {})
    write_robot_file(folder / "robot.json", file)
    return folder / "robot.json"


def silent(protocol):
    """A bus of the other protocol on the same wires: nobody understands."""
    bench = Bench("koch" if protocol == "dynamixel" else "so101")
    for servo in bench.arm.servos:
        servo.is_dead = True
    return bench.servos


def examine_bench(bench, machine, robot=None, **more):
    opened = []

    def open_bus(port, protocol, baud):
        opened.append((port, protocol, baud))
        if protocol != bench.servos.protocol:
            return silent(protocol)
        bench.servos.bus.set_baud(baud)
        return bench.servos

    settings = {"arm": "so101", "port": "/dev/ttyACM0"} if robot is None else {"robot": robot}
    report = examine(machine=machine, open_bus=open_bus, sleep=lambda _: None, **{**settings, **more})
    return report, opened


def find(report, name):
    (check,) = [check for check in report.checks if check.name == name]
    return check


def suffer(bench, kind, **fields):
    bench.line.inject(LineFault.from_table({"kind": kind, **fields}, "test"))


def test_a_sound_arm_has_nothing_wrong(bench, machine, tmp_path):
    report, opened = examine_bench(bench, machine, write_robot(tmp_path))
    assert [str(check) for check in report.checks if check.status in ("failed",)] == []
    assert opened == [("/dev/ttyACM0", "feetech", 1_000_000)]
    names = {check.name for check in report.checks if check.status == "passed"}
    assert names >= {
        "servos answer",
        "duplicate ids",
        "ids",
        "models",
        "firmware",
        "voltage",
        "servo errors",
        "temperature",
        "readings",
        "calibration",
    }


def test_it_writes_nothing_and_moves_nothing(bench, machine, tmp_path):
    before = [bytes(servo.memory) for servo in bench.arm.servos]
    examine_bench(bench, machine, write_robot(tmp_path))
    assert [bytes(servo.memory) for servo in bench.arm.servos] == before


def test_notes_of_another_calibration_are_found(bench, machine, tmp_path):
    robot = write_robot(tmp_path)
    notes = {"version": 1, "arm": "so101", "date": "", "motors": {"elbow_flex": {"zero_count": 2000.0}}}
    (tmp_path / "so101.roboalign.json").write_text(json.dumps(notes))
    check = find(examine_bench(bench, machine, robot)[0], "calibration")
    assert check.status == "failed"
    assert "so101.roboalign.json is not of so101.json: elbow_flex lacks homing_offset" in check.found
    assert "--from so101.json" in check.remedy


def test_a_missing_servo_is_named_by_its_joint(bench, machine):
    suffer(bench, "dead", id=4)
    report, _ = examine_bench(bench, machine)
    assert find(report, "ids").found == "id 4 (wrist_flex) does not answer"
    assert "cable" in find(report, "ids").remedy
    assert not report.is_ok


def test_two_servos_with_one_id_are_found(bench, machine):
    suffer(bench, "duplicate", id=2)
    report, _ = examine_bench(bench, machine)
    assert find(report, "duplicate ids").found == "more than one servo has id 2"


def test_a_whole_arm_at_another_rate_is_found(bench, machine):
    for number in range(1, 7):
        suffer(bench, "wrong_baud", id=number, baud=500_000)
    report, _ = examine_bench(bench, machine)
    check = find(report, "servos answer")
    assert check.found == "nobody at 1000000 baud, but ids 1, 2, 3, 4, 5, 6 at 500000 baud"
    assert "setup-motors" in check.remedy


def test_nobody_is_a_question_of_power(bench, machine):
    for number in range(1, 7):
        suffer(bench, "dead", id=number)
    report, _ = examine_bench(bench, machine)
    check = find(report, "servos answer")
    assert check.found == "no feetech servo at any rate"
    assert "power" in check.remedy


def test_the_wrong_servo_in_a_joint_is_named(machine):
    bench = Bench("koch")
    report, _ = examine_bench(bench, machine, arm="omx")
    assert find(report, "ids").status == "failed"
    report, _ = examine_bench(bench, machine, arm="koch_leader")
    check = find(report, "models")
    assert "shoulder_pan (id 1) is xl430-w250, expected xl330-m077" in check.found


def test_twelve_volts_on_servos_set_up_for_less_is_an_alarm(bench, machine):
    for servo in bench.arm.servos:
        servo.memory[14] = 80
    report, _ = examine_bench(bench, machine)
    check = find(report, "voltage")
    assert check.status == "failed"
    assert "id 1 has 12.0 V, it is set up for" in check.found
    assert check.remedy.startswith("switch the power off now")


def test_an_overload_is_read_from_the_error_byte(bench, machine):
    suffer(bench, "overload", id=5)
    report, _ = examine_bench(bench, machine)
    check = find(report, "servo errors")
    assert "id 5: overload" in check.found
    assert "relieve the joint" in check.remedy


def test_servos_of_one_model_with_different_firmware_are_a_warning(bench, machine):
    bench.arm.find(4).memory[0:2] = b"\x03\x2a"
    report, _ = examine_bench(bench, machine)
    check = find(report, "firmware")
    assert check.status == "warning"
    assert "3.42 (id 4)" in check.found
    assert "newest version with the maker's tool" in check.remedy


def test_a_hot_servo_is_a_warning(bench, machine):
    suffer(bench, "hot", id=3, celsius=60)
    report, _ = examine_bench(bench, machine)
    assert find(report, "temperature").status == "warning"
    assert "id 3: 60 C" in find(report, "temperature").found


def test_a_bad_cable_shows_in_the_readings(bench, machine):
    suffer(bench, "corrupt", probability=0.2, bits=1)
    report, _ = examine_bench(bench, machine)
    check = find(report, "readings")
    assert check.status == "failed"
    assert "press every plug in" in check.remedy


def test_an_offset_that_is_not_the_files_is_found(bench, machine, tmp_path):
    robot = write_robot(tmp_path)
    bench.servos.write(3, "homing_offset", 100)
    report, _ = examine_bench(bench, machine, robot)
    assert "elbow_flex holds offset 100, the file says 0" in find(report, "calibration").found


def test_servos_that_answer_too_late_are_not_taken_for_wrong_ones(bench, machine, tmp_path):
    suffer(bench, "late", probability=1.0, delay_s=0.2)
    report, _ = examine_bench(bench, machine, write_robot(tmp_path))
    if find(report, "servos answer").status == "passed":
        assert "did not say what it is" in find(report, "models").found
        assert find(report, "temperature").status == "skipped"
        assert find(report, "calibration").status == "warning"
    assert not report.is_ok


def test_a_missing_calibration_says_how_to_make_one(bench, machine, tmp_path):
    robot = write_robot(tmp_path)
    (tmp_path / "so101.json").unlink()
    report, _ = examine_bench(bench, machine, robot)
    assert find(report, "calibration").remedy == "roboalign calibrate"


def test_without_an_arm_both_protocols_are_tried(machine):
    report, opened = examine_bench(Bench("koch"), machine, arm=None)
    assert [protocol for _, protocol, _ in opened][-1] == "dynamixel"
    assert "1: xl430-w250" in find(report, "models").found


def test_a_port_that_cannot_be_opened_is_a_failed_check(machine):
    def refuse(port, protocol, baud):
        raise RobotError("port is open in 12 (cheese)")

    report = examine(port="/dev/ttyACM0", arm="so101", machine=machine, open_bus=refuse)
    assert find(report, "bus opens").found == "port is open in 12 (cheese)"


def test_an_absent_port_keeps_the_bus_closed(machine):
    report = examine(port="/dev/ttyACM9", machine=machine, open_bus=lambda *_: pytest.fail("opened"))
    assert find(report, "port is there").status == "failed"


def test_without_a_port_the_servos_are_skipped(machine):
    report = examine(machine=machine)
    assert find(report, "servos").status == "skipped"
    assert report.is_ok


def test_a_robot_file_that_cannot_be_read_is_a_finding(machine, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps({"arm": "so102"}))
    report = examine(tmp_path / "bad.json", machine=machine)
    assert find(report, "robot file").status == "failed"


def test_an_unknown_arm_is_a_usage_error(machine):
    with pytest.raises(ConfigError, match="unknown arm 'so11'; did you mean so101"):
        examine(arm="so11", machine=machine)


def test_cameras_are_opened_and_one_picture_of_each_is_kept(bench, machine, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    cameras = {"front": CameraFile(device=f"file:{tmp_path}/red.png", rate_hz=200.0)}
    robot = write_robot(tmp_path, cameras)
    report, _ = examine_bench(bench, machine, robot, pictures=tmp_path / "seen")
    assert find(report, "camera front").status in ("passed", "warning")
    assert Image.open(tmp_path / "seen/front.png").getpixel((0, 0)) == (255, 0, 0)


def test_an_absent_camera_says_which_are_there(bench, machine, tmp_path):
    robot = write_robot(tmp_path, {"front": CameraFile(device="/dev/video93")})
    pytest.importorskip("cv2")
    report, _ = examine_bench(bench, machine, robot)
    assert "there is no camera /dev/video93" in find(report, "camera front").found
    name = find(report, "camera name")
    assert name.status == "warning"
    assert "by-path" in name.remedy


def test_two_names_for_one_device_are_refused(bench, machine, tmp_path):
    link = tmp_path / "dev/v4l/by-path/usb-1"
    link.parent.mkdir(parents=True)
    (tmp_path / "dev/video0").touch()
    link.symlink_to(tmp_path / "dev/video0")
    cameras = {"front": CameraFile(device="0"), "wrist": CameraFile(device="/dev/v4l/by-path/usb-1")}
    report, _ = examine_bench(bench, machine, write_robot(tmp_path, cameras))
    assert find(report, "camera order").found == "front and wrist are the same device"


def test_a_virtual_arms_port_is_not_taken_for_a_busy_one(machine):
    pts = machine.root / "dev/pts/4"
    pts.parent.mkdir()
    pts.touch()
    (machine.root / "tmp").mkdir()
    Path(machine.root / "tmp/arm").symlink_to(pts)
    report = examine(port="/tmp/arm", arm="so101", machine=machine, open_bus=lambda *_: Bench().servos)
    assert find(report, "port is free").status == "passed"
