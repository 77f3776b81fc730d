"""Calibration and robot files: read, checked, written."""

import json
from pathlib import Path

import pytest

from roboalign.drivers.arm.calibration import (
    CalibrationNotes,
    MotorNotes,
    read_calibration,
    read_notes,
    sidecar_path,
    write_calibration,
    write_notes,
)
from roboalign.drivers.arm.files import CameraFile, Geometry, JointLimit, RobotFile, read_robot_file, write_robot_file
from roboalign.drivers.arm.models import ARMS, MOTORS, find_arm
from roboalign.sdk.errors import ConfigError

# As `json.dumps(..., indent=4)` of LeRobot 0.4 leaves it: no newline at the end.
LEROBOT_JSON = """{
    "shoulder_pan": {
        "id": 1,
        "drive_mode": 0,
        "homing_offset": -1470,
        "range_min": 758,
        "range_max": 3292
    },
    "gripper": {
        "id": 6,
        "drive_mode": 1,
        "homing_offset": 1407,
        "range_min": 2031,
        "range_max": 3476
    }
}"""


def robot_file(folder: Path, **changes: object) -> RobotFile:
    values: dict[str, object] = {"arm": "so101", "port": "/dev/ttyACM0", "calibration": folder / "so101.json"}
    return RobotFile(**(values | changes))  # type: ignore[arg-type]


def test_lerobots_calibration_survives_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "arm.json"
    path.write_text(LEROBOT_JSON)
    write_calibration(tmp_path / "again.json", read_calibration(path))
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_calibration_keeps_the_motors_we_do_not_know(tmp_path: Path) -> None:
    path = tmp_path / "arm.json"
    path.write_text(LEROBOT_JSON.replace("shoulder_pan", "left_wheel"))
    assert list(read_calibration(path)) == ["left_wheel", "gripper"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("758", "3292"), "range_min 3292 is not below range_max 3292"),
        (('"drive_mode": 1', '"drive_mode": 2'), "gripper: calibration of id 6: drive_mode is 2"),
        (('"range_min": 758', '"range_min": 758.5'), "shoulder_pan.range_min is 758.5"),
        (('"range_max": 3292', '"range_max": 4854'), "a turn or more"),
        (('"id": 1', '"ident": 1'), "unknown field 'ident'"),
        (('"drive_mode": 0,', ""), "shoulder_pan lacks drive_mode"),
        (("{\n", "[\n"), "is no JSON"),
    ],
)
def test_a_wrong_calibration_is_named(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    path = tmp_path / "arm.json"
    path.write_text(LEROBOT_JSON.replace(*change, 1))
    with pytest.raises(ConfigError, match=r"arm\.json") as error:
        read_calibration(path)
    assert says in str(error.value)


def test_a_missing_calibration_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="roboalign calibrate"):
        read_calibration(tmp_path / "none.json")


def test_notes_come_back_equal(tmp_path: Path) -> None:
    motors = {"elbow_flex": MotorNotes(zero_count=2050.5, direction=-1, seam_checked=True)}
    notes = CalibrationNotes(arm="so101", date="2026-01-02T03:04:05", adapter_serial="5A7A", motors=motors)
    path = sidecar_path(tmp_path / "arm.json")
    write_notes(path, notes)
    assert path.name == "arm.roboalign.json"
    assert read_notes(path) == notes


def test_newer_notes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "arm.roboalign.json"
    path.write_text(json.dumps({"version": 2, "arm": "so101"}))
    with pytest.raises(ConfigError, match="version is 2"):
        read_notes(path)


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_robot_file_comes_back_equal(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("tomllib")
    geometry = Geometry(
        urdf=tmp_path / "sub" / "arm.urdf",
        tool_link="tool",
        home_rad=(0.1,) * 5,
        park_rad=(0.0,) * 5,
        workspace_lower_m=(0.1, -0.1, 0.0),
        workspace_upper_m=(0.2, 0.1, 0.1),
        gripper_max_width_m=0.05,
    )
    robot = robot_file(
        tmp_path,
        baud=500_000,
        name='left "arm"',
        limits={"shoulder_pan": JointLimit(lower_rad=-1.0, max_speed_rad_s=1.5)},
        cameras={"front": CameraFile(device="0", crop=(80, 0, 480, 480)), "hand": CameraFile(device="/dev/video2")},
        geometry=geometry,
    )
    path = tmp_path / f"robot{suffix}"
    write_robot_file(path, robot)
    assert read_robot_file(path) == robot
    assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('arm = "so102"', "unknown arm 'so102'; did you mean"),
        ("baud = -1", "baud is -1, expected e.g. 1000000"),
        ('baud = "fast"', "baud is 'fast', expected a whole number"),
        ('prot = "x"', "unknown field 'prot'; did you mean port?"),
        ("control_rate_hz = 0", "control_rate_hz is 0.0"),
        ("[limits.elbow]\nlower_rad = 0.0", "unknown joint of so101 'elbow'; did you mean elbow_flex?"),
        ("[limits.gripper]\nlower_rad = 0.0", "the gripper is limited by its calibration"),
        ("[limits.elbow_flex]\nlower_rad = 1\nupper_rad = 1", "[limits.elbow_flex]: lower_rad 1.0 is not below"),
        ("[limits.elbow_flex]\nlower_rad = nan", "limits.elbow_flex.lower_rad is nan, expected a finite number"),
        ("[cameras.front]\nsize_px = 96", "cameras.front.device is missing"),
        ("[cameras.front]\ndevice = 0\ncrop = [0, 0, 700, 700]", "[cameras.front]: crop [0, 0, 700, 700]"),
        ("[cameras.front]\ndevice = 0\ncrop = [0, 0, 64, 32]", "is not square"),
        ("[cameras.a]\ndevice = 0\n[cameras.b]\ndevice = 1\nsize_px = 64", "different size_px"),
        ("[geometry]\nurdf = 'a.urdf'", "geometry.tool_link is missing"),
        ("cameras = 3", "cameras is 3, expected a table"),
    ],
)
def test_a_wrong_robot_file_is_named(tmp_path: Path, line: str, says: str) -> None:
    pytest.importorskip("tomllib")
    path = tmp_path / "robot.toml"
    start = ['arm = "so101"', 'port = "/dev/ttyACM0"', 'calibration = "so101.json"']
    key = line.split(" ")[0]
    path.write_text("\n".join([item for item in start if not item.startswith(f"{key} ")] + [line]))
    with pytest.raises(ConfigError, match=r"robot\.toml") as error:
        read_robot_file(path)
    assert says in str(error.value)


def test_every_motor_of_every_arm_is_known_and_ids_are_unique() -> None:
    for arm in ARMS.values():
        assert len(set(arm.ids)) == len(arm.ids)
        assert {MOTORS[motor.motor].protocol for motor in arm.motors} == {arm.protocol}


def test_an_arm_with_helpers_lists_their_ids() -> None:
    assert find_arm("widowx").ids == tuple(range(1, 10))
