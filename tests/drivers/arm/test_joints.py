"""Counts to radians and back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.drivers.arm.rig import COUNT_RAD, write_files

from roboalign.drivers.arm.assembly import assemble, gripper_map
from roboalign.drivers.arm.calibration import (
    CalibrationNotes,
    MotorCalibration,
    MotorNotes,
    read_calibration,
    sidecar_path,
    write_calibration,
    write_notes,
)
from roboalign.drivers.arm.files import JointLimit
from roboalign.drivers.arm.joints import Joints, JointUnits, present_count
from roboalign.drivers.arm.models import find_arm
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.robots import find_robot

LIMITS = [(-1.5, 1.5)] * 5


def calibration(arm: str, drive_mode: int = 0) -> dict[str, MotorCalibration]:
    return {
        motor.name: MotorCalibration(
            id=motor.id, drive_mode=drive_mode, homing_offset=0, range_min=1000, range_max=3000
        )
        for motor in find_arm(arm).motors
    }


def units(**changes: int | float) -> JointUnits:
    values = {"zero_count": 2048.0, "direction": 1, "range_min": 500, "range_max": 3600}
    return JointUnits(name="elbow", id=3, **(values | changes))  # type: ignore[arg-type]


@settings(max_examples=40)
@given(st.integers(500, 3600), st.sampled_from((1, -1)), st.floats(1900, 2200))
def test_a_count_comes_back_from_its_angle(count: int, direction: int, zero: float) -> None:
    joint = units(direction=direction, zero_count=zero)
    assert joint.count(joint.rad(count)) == count


@settings(max_examples=40)
@given(st.floats(-1e6, 1e6), st.sampled_from((1, -1)))
def test_no_angle_gives_a_count_outside_the_sweep(angle: float, direction: int) -> None:
    assert 500 <= units(direction=direction).count(angle) <= 3600


@settings(max_examples=40)
@given(st.integers(1, 4094), st.integers(-3, 3))
def test_a_position_beyond_the_seam_is_unwrapped(count: int, turns: int) -> None:
    assert units(range_min=0, range_max=4095).unwrapped(count + turns * 4096) == count


def test_a_joint_just_beyond_the_seam_is_near_and_not_a_turn_away() -> None:
    joint = units(range_min=20, range_max=2500)
    assert joint.unwrapped(4090) == -6


def test_the_two_families_apply_the_offset_with_opposite_signs() -> None:
    assert present_count("feetech", 3000, 953) == present_count("dynamixel", 3000, -953) == 2047


def test_without_notes_zero_is_the_middle_of_the_sweep() -> None:
    joints = Joints(find_arm("so101"), calibration("so101"), None, LIMITS, 0.05)
    assert joints.units[2].rad(2000) == 0.0
    assert joints.units[2].rad(3000) == pytest.approx(1000 * COUNT_RAD)


@pytest.mark.parametrize(("arm", "direction"), [("so101", -1), ("koch", 1)])
def test_the_host_turns_round_feetech_and_a_dynamixel_does_it_itself(arm: str, direction: int) -> None:
    joints = Joints(find_arm(arm), calibration(arm, drive_mode=1), None, LIMITS, 0.05)
    assert {unit.direction for unit in joints.units} == {direction}


def test_a_joint_that_is_not_symmetric_needs_a_noted_zero() -> None:
    limits = [*LIMITS[:4], (-0.2, 2.0)]
    with pytest.raises(ConfigError, match=r"wrist_roll turns from -0\.20 to 2\.00 rad.*motors\.wrist_roll\.zero_count"):
        Joints(find_arm("so101"), calibration("so101"), None, limits, 0.05)
    notes = CalibrationNotes(arm="so101", date="", motors={"wrist_roll": MotorNotes(zero_count=1200.0, direction=-1)})
    assert Joints(find_arm("so101"), calibration("so101"), notes, limits, 0.05).units[4].rad(1200) == 0.0


@pytest.mark.parametrize("drive_mode", [0, 1])
def test_a_linear_gripper_is_closed_and_open_at_the_ends_of_its_sweep(drive_mode: int) -> None:
    joints = Joints(find_arm("so101"), calibration("so101", drive_mode), None, LIMITS, 0.08)
    closed, opened = (3000, 1000) if drive_mode else (1000, 3000)
    assert joints.units[-1].count(joints.motors_rad((0,) * 5, 0.0)[-1]) == closed
    assert joints.units[-1].count(joints.motors_rad((0,) * 5, 0.08)[-1]) == opened
    assert joints.width_m(joints.units[-1].rad(2000)) == pytest.approx(0.04)


@settings(max_examples=40)
@given(st.floats(0.004, 0.05))
def test_the_so101_gripper_has_the_width_of_the_simulated_one(width_m: float) -> None:
    notes = CalibrationNotes(arm="so101", date="", motors={"gripper": MotorNotes(closed_count=1500)})
    joints = Joints(find_arm("so101"), calibration("so101"), notes, LIMITS, gripper_map(find_robot("so101").gripper))
    assert joints.width_m(joints.motors_rad((0,) * 5, width_m)[-1]) == pytest.approx(width_m, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"limits": {"elbow_flex": JointLimit(upper_rad=3.0)}}, r"limits.elbow_flex.upper_rad is 3.0.*may only narrow"),
        ({"limits": {"elbow_flex": JointLimit(max_speed_rad_s=9.0)}}, r"max_speed_rad_s is 9.0.*may only narrow"),
        ({"limits": {"elbow_flex": JointLimit(upper_rad=1.0)}}, r"the park position needs elbow_flex at 1.60 rad"),
    ],
)
def test_limits_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        assemble(write_files(tmp_path, **change))


def test_narrower_limits_reach_the_spec(tmp_path: Path) -> None:
    limit = JointLimit(lower_rad=-0.5, upper_rad=0.6, max_speed_rad_s=1.0)
    parts = assemble(write_files(tmp_path, limits={"shoulder_pan": limit}))
    assert (parts.spec.joint_lower_rad[0], parts.spec.joint_upper_rad[0]) == (-0.5, 0.6)
    assert parts.settings.max_speed_rad_s[0] == 1.0


def test_a_sidecar_of_another_arm_is_refused(tmp_path: Path) -> None:
    file = write_files(tmp_path)
    write_notes(sidecar_path(file.calibration), CalibrationNotes(arm="koch", date=""))
    with pytest.raises(ConfigError, match="is of a koch, the robot file says so101"):
        assemble(file)


@pytest.mark.parametrize("key", ["homing_offset", "range_min", "range_max"])
def test_notes_of_another_calibration_are_refused(tmp_path: Path, key: str) -> None:
    """An arm that LeRobot had calibrated anew was off by the difference of the offsets, without a word."""
    file = write_files(tmp_path)
    motors = read_calibration(file.calibration)
    elbow = motors["elbow_flex"]
    write_calibration(file.calibration, motors | {"elbow_flex": replace(elbow, **{key: getattr(elbow, key) + 1})})
    says = rf"so101.roboalign.json is not of so101.json: elbow_flex was noted for {key} -?\d+, .*roboalign calibrate"
    with pytest.raises(ConfigError, match=says):
        assemble(file)


def test_notes_that_do_not_say_what_they_are_of_are_refused(tmp_path: Path) -> None:
    file = write_files(tmp_path)
    notes = CalibrationNotes(arm="so101", date="", motors={"elbow_flex": MotorNotes(zero_count=2048)})
    write_notes(sidecar_path(file.calibration), notes)
    with pytest.raises(ConfigError, match=r"elbow_flex lacks homing_offset, so it may be of another.*calibrate"):
        assemble(file)


def test_a_calibration_of_another_id_is_refused() -> None:
    motors = calibration("so101")
    motors["elbow_flex"] = MotorCalibration(id=7, drive_mode=0, homing_offset=0, range_min=0, range_max=4000)
    with pytest.raises(ConfigError, match="elbow_flex at id 7, so101 has it at 3"):
        Joints(find_arm("so101"), motors, None, LIMITS, 0.05)


def test_an_arm_without_a_simulated_one_needs_its_geometry(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no simulated koch; add \[geometry\]"):
        assemble(write_files(tmp_path, "koch", geometry=None))
    assert assemble(write_files(tmp_path, "koch")).spec.joint_names[0] == "shoulder_pan"


def test_a_joint_that_may_turn_for_ever_is_limited_to_its_sweep(tmp_path: Path) -> None:
    parts = assemble(write_files(tmp_path))
    for unit, low, high in zip(
        parts.joints.units, parts.spec.joint_lower_rad, parts.spec.joint_upper_rad, strict=False
    ):
        assert unit.limits_rad[0] - 1e-9 <= low < high <= unit.limits_rad[1] + 1e-9
        assert math.isfinite(low)
