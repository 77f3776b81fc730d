"""calibrate on a virtual arm whose horns are mounted at random: zero, ends and seam are found; nothing half is left."""

import dataclasses
import json
from datetime import datetime, timezone

import pytest
from tests.drivers.arm.test_servos import widowx_servos
from tests.drivers.setup_bench import Bench, Person

from roboalign.drivers.arm.assembly import assemble
from roboalign.drivers.arm.calibration import MotorCalibration, read_calibration, read_notes, sidecar_path
from roboalign.drivers.arm.files import CameraFile, RobotFile, read_robot_file, write_robot_file
from roboalign.drivers.arm.models import find_arm
from roboalign.drivers.setup.calibrate import (
    CalibrateConfig,
    calibrate,
    check_calibration,
    import_calibration,
)
from roboalign.drivers.setup.registers import find_difference, set_modes, write_motor
from roboalign.drivers.virtual.robots import JOINTS
from roboalign.drivers.virtual.servo import RAD_PER_COUNT
from roboalign.sdk.errors import CheckFailed, ConfigError, RobotError
from roboalign.sdk.sim.so101 import so101_gripper_width_m, so101_spec

SPEC = so101_spec()
LIMITS = [*zip(SPEC.joint_lower_rad, SPEC.joint_upper_rad, strict=True), (-0.174533, 1.74533)]
ZERO = (0.0, 0.0, 0.0, 0.0, 0.0, -0.174533)
NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)


def sweep_all(bench, skip=()):
    """The hands of somebody who moves all joints to both ends, together, in steps of a few degrees."""
    steps = []
    for part in range(1, 33):
        steps.append([0.0 + lower * part / 32 for lower, _ in LIMITS])
    for part in range(1, 65):
        steps.append([lower + (upper - lower) * part / 64 for lower, upper in LIMITS])
    for part in range(1, 33):
        steps.append([upper * (1 - part / 32) for _, upper in LIMITS])

    def move(angles):
        bench.place(**{name: angle for name, angle in zip(JOINTS, angles, strict=True) if name not in skip})

    return [lambda angles=angles: move(angles) for angles in steps]


def hold_zero(bench):
    def answer(question):
        bench.place_all(ZERO)
        return ""

    return answer


def config_of(tmp_path):
    return CalibrateConfig(
        model=find_arm("so101"),
        port="/dev/serial/by-id/arm",
        calibration=tmp_path / "so101.json",
        robot_file=tmp_path / "robot.toml",
        adapter_serial="5A7A",
    )


def run(bench, tmp_path, *, person=None):
    person = person or Person(["", hold_zero(bench)], [sweep_all(bench)])
    robot = calibrate(bench.servos, config_of(tmp_path), person, sleep=bench.sleep, now=lambda: NOW)
    return robot, person


@pytest.fixture
def bench():
    return Bench(horn_seed=3)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_joint_reads_its_own_angle_afterwards(seed, tmp_path):
    """The servos, asked after calibration, give the angles of the joints by the files alone."""
    bench = Bench(horn_seed=seed)
    run(bench, tmp_path)
    calibration, notes = read_calibration(tmp_path / "so101.json"), read_notes(tmp_path / "so101.roboalign.json")
    angles = (0.3, -0.5, 0.7, -0.4, 1.0, 0.6)
    bench.place_all(angles)
    for name, angle in zip(JOINTS[:5], angles, strict=False):
        motor, note = calibration[name], notes.motors[name]
        found = bench.servos.read(motor.id, "present_position")
        assert (found - note.zero_count) * note.direction * RAD_PER_COUNT == pytest.approx(angle, abs=0.01), name
        assert 0 <= motor.range_min < found < motor.range_max <= 4095


def test_the_gripper_knows_where_it_is_closed(bench, tmp_path):
    run(bench, tmp_path)
    calibration, notes = read_calibration(tmp_path / "so101.json"), read_notes(tmp_path / "so101.roboalign.json")
    bench.place(gripper=-0.174533)
    closed = bench.servos.read(6, "present_position")
    bench.place(gripper=1.74533)
    opened = bench.servos.read(6, "present_position")
    assert (notes.motors["gripper"].closed_count, notes.motors["gripper"].open_count) == (closed, opened)
    assert {closed, opened} == {calibration["gripper"].range_min, calibration["gripper"].range_max}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_gripper_opens_whichever_end_of_its_counts_is_closed(sign, tmp_path):
    """Closed at the upper end, it never opened: its ends were swapped, but it still counted upwards."""
    bench = Bench(horn_seed=3)
    servo = bench.arm.find(6)
    servo.encoder = dataclasses.replace(servo.encoder, sign=sign)
    robot, _ = run(bench, tmp_path)
    joints = assemble(robot).joints
    for angle in (0.1, 0.2, 0.4):
        bench.place(gripper=angle)
        count, width_m = bench.servos.read(6, "present_position"), so101_gripper_width_m(angle)
        assert joints.width_m(joints.units[-1].rad(count)) == pytest.approx(width_m, abs=1e-3)
        assert joints.units[-1].count(joints.motors_rad([0.0] * 5, width_m)[-1]) == pytest.approx(count, abs=10)


def test_registers_and_files_agree_and_the_file_is_lerobots(bench, tmp_path):
    robot, _ = run(bench, tmp_path)
    content = json.loads((tmp_path / "so101.json").read_text())
    assert list(content) == list(JOINTS)
    for entry in content.values():
        assert list(entry) == ["id", "drive_mode", "homing_offset", "range_min", "range_max"]
        assert bench.servos.read(entry["id"], "homing_offset") == entry["homing_offset"]
        assert bench.servos.read(entry["id"], "min_position_limit") == entry["range_min"]
        assert bench.servos.read(entry["id"], "max_position_limit") == entry["range_max"]
    notes = read_notes(tmp_path / "so101.roboalign.json")
    assert (notes.arm, notes.adapter_serial, notes.date) == ("so101", "5A7A", NOW.isoformat(timespec="seconds"))
    assert all(note.seam_checked for note in notes.motors.values())
    assert read_robot_file(tmp_path / "robot.toml") == robot
    assert robot.port == "/dev/serial/by-id/arm"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["robot.toml", "so101.json", "so101.roboalign.json"]


def test_an_offset_that_a_dynamixel_would_cut_is_not_taken_for_held(tmp_path):
    """In position mode 1202 acts as 1024, though the register says 1202: the arm was off by 16 degrees."""
    bench = Bench("koch")
    middle = {"drive_mode": 0, "homing_offset": 0, "range_min": 500, "range_max": 3500}
    content = {name: {"id": number, **middle} for number, name in enumerate(JOINTS, start=1)}
    content["elbow_flex"]["homing_offset"] = 1202
    (tmp_path / "theirs.json").write_text(json.dumps(content))
    bench.servos.write(3, "homing_offset", 1202)
    config = CalibrateConfig(
        model=find_arm("koch"), port="/dev/x", calibration=tmp_path / "koch.json", robot_file=tmp_path / "koch.toml"
    )
    with pytest.raises(CheckFailed, match="homing offset or drive mode of elbow_flex differ"):
        import_calibration(bench.servos, config, tmp_path / "theirs.json", Person(["n"]))
    import_calibration(bench.servos, config, tmp_path / "theirs.json", Person(["y"]))
    assert bench.servos.read(3, "operating_mode") == 4
    assert bench.servos.read(3, "present_position") == pytest.approx(bench.arm.find(3).count + 1202, abs=2)


def test_a_wrist_that_its_maker_turned_round_is_calibrated_as_it_is_and_connects(tmp_path):
    """The file said drive mode 0 whatever the register held, so a WidowX was refused on connecting."""
    bench, model = Bench("widowx", horn_seed=5), find_arm("widowx")
    bench.arm.find(7).encoder = dataclasses.replace(bench.arm.find(7).encoder, sign=-1)
    bench.servos.write(7, "drive_mode", 0x05)

    def turn(rad):
        bench.place(**{motor.name: rad for motor in model.motors})
        return ""

    hands = [lambda rad=rad: turn(rad / 10) for rad in (*range(0, -13, -1), *range(-12, 13))]
    config = CalibrateConfig(
        model=model, port="/dev/x", calibration=tmp_path / "w.json", robot_file=tmp_path / "w.toml"
    )
    calibrate(bench.servos, config, Person(["", lambda _: turn(0.0)], [hands]), sleep=bench.sleep)
    calibration = read_calibration(tmp_path / "w.json")
    modes = {name: motor.drive_mode for name, motor in calibration.items()}
    assert modes == {**dict.fromkeys(modes, 0), "wrist_angle": 1}
    assert bench.servos.read(7, "drive_mode") == 0x05
    bench.servos.bus.close()
    servos = widowx_servos(bench.servos.bus, calibration)
    servos.open()
    turn(0.4)
    readings, _ = servos.read(range(7))
    angles = [units.rad(readings[index].position) for index, units in enumerate(servos.parts.joints.units)]
    assert angles[:6] == pytest.approx([0.4] * 6, abs=0.01)


def test_a_sweep_of_before_the_servo_was_turned_is_not_finished(tmp_path):
    """An interrupted run of before noted drive mode 0 for every servo; written now, its range would be mirrored."""
    bench = Bench("koch")
    source, config = theirs_with(tmp_path, drive_mode=0)
    waiting = tmp_path / ".koch.pending.json"
    waiting.write_text(source.read_text())
    bench.servos.write(3, "drive_mode", 1)
    person = Person(["", hold_zero(bench)], [sweep_all(bench)])
    calibrate(bench.servos, config, person, sleep=bench.sleep)
    assert "swept with another drive mode of elbow_flex: sweep again" in person.said[0]
    assert read_calibration(tmp_path / "koch.json")["elbow_flex"].drive_mode == 1
    assert not waiting.exists()


def theirs_with(tmp_path, drive_mode):
    """A file as of LeRobot's Koch leader, whose elbow it turns round."""
    middle = {"homing_offset": 0, "range_min": 500, "range_max": 3500}
    content = {name: {"id": number, "drive_mode": 0, **middle} for number, name in enumerate(JOINTS, start=1)}
    content["elbow_flex"]["drive_mode"] = drive_mode
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(content))
    return path, CalibrateConfig(
        model=find_arm("koch"), port="/dev/x", calibration=tmp_path / "koch.json", robot_file=tmp_path / "koch.toml"
    )


def test_a_drive_mode_of_the_file_is_written_to_its_servo(tmp_path):
    """The servo kept its own, so the arm was refused on connecting, and told to calibrate again."""
    bench = Bench("koch")
    source, config = theirs_with(tmp_path, drive_mode=1)
    with pytest.raises(CheckFailed, match="homing offset or drive mode of elbow_flex differ"):
        import_calibration(bench.servos, config, source, Person(["n"]))
    motor = read_calibration(source)["elbow_flex"]
    assert find_difference(bench.servos, motor) == "has drive mode 0, the file says 1"
    bench.place(elbow_flex=0.5)
    before = bench.servos.read(3, "present_position")
    import_calibration(bench.servos, config, source, Person(["y"]))
    assert not find_difference(bench.servos, motor)
    assert bench.servos.read(3, "present_position") == pytest.approx(-before % 4096, abs=2)


def test_a_file_that_may_hide_a_turned_servo_is_not_taken_over(tmp_path):
    """LeRobot writes 0 for a joint that it swept with 1: with 0 in the servo the joint would turn the other way."""
    bench = Bench("koch")
    source, config = theirs_with(tmp_path, drive_mode=0)
    bench.servos.write(3, "drive_mode", 1)
    with pytest.raises(CheckFailed, match=r"says drive mode 0, the servos of elbow_flex have 1: .*sweep the arm"):
        import_calibration(bench.servos, config, source, Person([]))
    assert not config.calibration.exists()


@pytest.mark.parametrize("seed", [4, 8])
def test_dynamixel_arms_are_calibrated_too(tmp_path, seed):
    """Their offsets have the other sign, and there is no URDF here to check the zero against."""
    bench = Bench("koch", horn_seed=seed)
    config = CalibrateConfig(
        model=find_arm("koch"), port="/dev/x", calibration=tmp_path / "koch.json", robot_file=tmp_path / "koch.toml"
    )
    calibrate(bench.servos, config, Person(["", hold_zero(bench)], [sweep_all(bench)]), sleep=bench.sleep)
    for name, (lower, upper) in zip(JOINTS, LIMITS, strict=True):
        motor = read_calibration(tmp_path / "koch.json")[name]
        assert bench.servos.read(motor.id, "homing_offset") == motor.homing_offset
        assert 0 <= motor.range_min < motor.range_max <= 4095
        bench.place(**{name: (lower + upper) / 2})
        middle = (motor.range_min + motor.range_max) / 2
        if name not in ("shoulder_pan", "wrist_roll"):
            assert bench.servos.read(motor.id, "present_position") == pytest.approx(middle, abs=3), name


def test_the_arm_is_limp_before_anybody_is_asked_to_move_it(tmp_path):
    bench = Bench(horn_seed=1)
    bench.servos.write(3, "torque_enable", 1)
    seen = []

    def look(question):
        seen.append([bench.servos.read(number, "torque_enable") for number in range(1, 7)])
        bench.place_all(ZERO)
        return ""

    run(bench, tmp_path, person=Person(["", look], [sweep_all(bench)]))
    assert seen == [[0] * 6]


def test_a_joint_that_was_forgotten_is_named_and_can_be_moved_afterwards(tmp_path):
    bench = Bench(horn_seed=2)
    person = Person(["", hold_zero(bench)], [sweep_all(bench, skip=("elbow_flex",)), sweep_all(bench)])
    run(bench, tmp_path, person=person)
    assert any("elbow_flex: moved by 0 counts only" in line for line in person.said)
    assert (tmp_path / "so101.json").is_file()


def test_a_joint_that_was_moved_too_fast_is_swept_anew(tmp_path):
    bench = Bench(horn_seed=2)
    jerk = [lambda: bench.place(elbow_flex=1.68), lambda: bench.place(elbow_flex=-0.2)]
    person = Person(["", hold_zero(bench)], [[*jerk, *sweep_all(bench)], sweep_all(bench)])
    run(bench, tmp_path, person=person)
    assert any("elbow_flex: moved by" in line and "between two readings" in line for line in person.said)
    zero = read_notes(tmp_path / "so101.roboalign.json").motors["elbow_flex"].zero_count
    bench.place(elbow_flex=0.0)
    assert bench.servos.read(3, "present_position") == pytest.approx(zero, abs=3)


def test_a_refusal_writes_nothing_anywhere(tmp_path):
    bench = Bench(horn_seed=2)
    before = [bytes(servo.kept) for servo in bench.arm.servos]
    person = Person(["", hold_zero(bench)], [sweep_all(bench, skip=("elbow_flex",))] * 5)
    with pytest.raises(CheckFailed, match="calibration refused, nothing was written: elbow_flex: moved by 0"):
        run(bench, tmp_path, person=person)
    assert list(tmp_path.iterdir()) == []
    assert [bytes(servo.kept) for servo in bench.arm.servos] == before


def test_ctrl_c_during_the_sweep_keeps_the_calibration_of_before(bench, tmp_path):
    run(bench, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    registers = [bytes(servo.kept) for servo in bench.arm.servos]

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bench, tmp_path, person=Person(["", hold_zero(bench)], [[*sweep_all(bench)[:20], interrupt]]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert [bytes(servo.kept) for servo in bench.arm.servos] == registers


def test_ctrl_c_between_two_registers_is_finished_by_the_next_run(tmp_path, monkeypatch):
    bench = Bench(horn_seed=3)
    write, count = bench.servos.write, []

    def write_some(servo, name, value):
        count.append(name)
        if len(count) == 8:
            raise KeyboardInterrupt
        return write(servo, name, value)

    monkeypatch.setattr(bench.servos, "write", write_some)
    with pytest.raises(KeyboardInterrupt):
        run(bench, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "so101.json").exists()
    person = Person(["y"])
    run(bench, tmp_path, person=person)
    assert "waits in" in person.asked[0]
    for motor in read_calibration(tmp_path / "so101.json").values():
        assert bench.servos.read(motor.id, "homing_offset") == motor.homing_offset
    assert not [path for path in tmp_path.iterdir() if "pending" in path.name]


def test_a_motor_that_falls_silent_stops_the_sweep_by_name(tmp_path):
    bench = Bench(horn_seed=1)

    def die():
        bench.arm.find(4).is_dead = True

    with pytest.raises(RobotError, match=r"wrist_flex stopped answering during the sweep; .* nothing was written"):
        run(bench, tmp_path, person=Person(["", hold_zero(bench)], [[die, *sweep_all(bench)]]))
    assert list(tmp_path.iterdir()) == []


def test_a_motor_that_is_silent_at_the_start_is_named(tmp_path):
    bench = Bench(horn_seed=1)
    bench.arm.find(2).is_dead = True
    with pytest.raises(RobotError, match=r"shoulder_lift does not answer on .*roboalign doctor"):
        run(bench, tmp_path)


def test_cameras_and_limits_of_an_older_robot_file_stay(tmp_path):
    bench = Bench(horn_seed=1)
    cameras = {"front": CameraFile(device="/dev/video7")}
    old = RobotFile(arm="so101", port="/dev/old", calibration=tmp_path / "old.json", cameras=cameras)
    write_robot_file(tmp_path / "robot.toml", old)
    robot, _ = run(bench, tmp_path)
    assert robot.cameras == cameras
    assert robot.port == "/dev/serial/by-id/arm"


def test_cameras_that_are_named_come_into_the_robot_file(tmp_path):
    """They had to be written by hand; one that is there keeps what was written."""
    bench = Bench(horn_seed=1)
    front = CameraFile(device="/dev/video7", crop=(80, 0, 480, 480), size_px=64)
    old = RobotFile(arm="so101", port="/dev/old", calibration=tmp_path / "old.json", cameras={"front": front})
    write_robot_file(tmp_path / "robot.toml", old)
    named = {"front": "/dev/v4l/by-path/front", "wrist": "/dev/v4l/by-path/wrist"}
    config = dataclasses.replace(config_of(tmp_path), cameras=named)
    calibrate(bench.servos, config, Person(["", hold_zero(bench)], [sweep_all(bench)]), sleep=bench.sleep)
    cameras = read_robot_file(tmp_path / "robot.toml").cameras
    assert cameras["front"] == dataclasses.replace(front, device=named["front"])
    assert cameras["wrist"] == CameraFile(device=named["wrist"], size_px=64)


def test_a_robot_file_of_another_arm_is_not_overwritten(tmp_path):
    bench = Bench(horn_seed=1)
    write_robot_file(tmp_path / "robot.toml", RobotFile(arm="koch", port="/dev/x", calibration=tmp_path / "k.json"))
    with pytest.raises(ConfigError, match=r"robot\.toml is of a koch, not of a so101"):
        run(bench, tmp_path, person=Person([]))
    with pytest.raises(ConfigError, match="name another file with --out"):
        import_calibration(bench.servos, config_of(tmp_path), tmp_path / "theirs.json", Person([]))


def test_lerobots_file_is_taken_over_byte_for_byte(bench, tmp_path):
    run(bench, tmp_path)
    theirs = tmp_path / "theirs" / "my_arm.json"
    theirs.parent.mkdir()
    theirs.write_bytes((tmp_path / "so101.json").read_bytes())
    other = tmp_path / "other"
    robot = import_calibration(bench.servos, config_of(other), theirs, Person([]))
    assert (other / "so101.json").read_bytes() == theirs.read_bytes()
    assert robot.calibration == other / "so101.json"
    ours, imported = (read_notes(sidecar_path(folder / "so101.json")) for folder in (tmp_path, other))
    for name in JOINTS[:4]:
        assert imported.motors[name].zero_count == pytest.approx(ours.motors[name].zero_count, abs=1.5)


def test_notes_of_an_older_calibration_are_not_taken_over(bench, tmp_path):
    run(bench, tmp_path)
    content = json.loads((tmp_path / "so101.json").read_text())
    content["elbow_flex"]["range_min"] += 3
    (tmp_path / "so101.json").write_text(json.dumps(content))
    with pytest.raises(
        CheckFailed, match=r"is not of so101\.json: elbow_flex was noted for range_min.*remove so101\.ro"
    ):
        import_calibration(None, config_of(tmp_path / "other"), tmp_path / "so101.json", Person([]))
    sidecar_path(tmp_path / "so101.json").unlink()
    assert assemble(import_calibration(None, config_of(tmp_path), tmp_path / "so101.json", Person([])))


def test_a_file_of_another_arm_is_noticed_by_the_servos_offsets(bench, tmp_path):
    run(bench, tmp_path)
    bench.servos.write(2, "homing_offset", 7)
    with pytest.raises(
        CheckFailed, match=r"is not the calibration of this arm: homing offset .* of shoulder_lift differ"
    ):
        import_calibration(bench.servos, config_of(tmp_path / "o"), tmp_path / "so101.json", Person(["n"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"range_min": 0, "range_max": 4095}, "swept 360 degrees, the URDF has 194"),
        ({"range_min": 2000, "range_max": 2050}, "moved by 50 counts only"),
        ({"range_min": 2600, "range_max": 4800}, "2600 to 4800 holds the encoder's seam"),
        ({"id": 9}, "elbow_flex has id 9, expected 3"),
    ],
    ids=["the whole turn", "not moved", "seam", "id"],
)
def test_what_lerobot_would_accept_is_refused(tmp_path, change, message):
    bench = Bench(horn_seed=1)
    run(bench, tmp_path)
    content = json.loads((tmp_path / "so101.json").read_text())
    content["elbow_flex"].update(change)
    (tmp_path / "bad.json").write_text(json.dumps(content))
    problems = check_calibration(find_arm("so101"), read_calibration(tmp_path / "bad.json"))
    assert [problem for problem in problems if message in problem], problems
    with pytest.raises(CheckFailed, match="cannot be used"):
        import_calibration(None, config_of(tmp_path), tmp_path / "bad.json", Person([]))


@pytest.mark.parametrize("drive_mode", [0, 1])
@pytest.mark.parametrize("is_set_up", [True, False])
def test_the_helper_of_a_joint_reports_its_position_whatever_its_horn(drive_mode, is_set_up):
    """A helper obeys what is written to its motor, so it got the same offset, and other horns would have fought."""
    bench = Bench("widowx", horn_seed=3)
    model = find_arm("widowx")
    bench.servos.release(model.ids)
    set_modes(bench.servos, model)
    bench.arm.find(3).encoder.zero_count += 300
    bench.arm.settle()
    bench.servos.write(3, "drive_mode", int(is_set_up))
    motor = MotorCalibration(id=2, drive_mode=drive_mode, homing_offset=500, range_min=100, range_max=4000)
    write_motor(bench.servos, model.motor("shoulder"), motor)
    assert [bench.servos.read(number, "drive_mode") for number in (2, 3)] == [drive_mode, 1 - drive_mode]
    for rad in (0.0, 0.5):
        bench.place(shoulder=rad)
        first, second = (bench.servos.read(number, "present_position") for number in (2, 3))
        assert second == pytest.approx(first, abs=1)
