"""The sweep of one joint: over the seam, judged, and as LeRobot's figures."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.drivers.arm.joints import present_count
from roboalign.drivers.setup.sweep import (
    MIDDLE,
    JointFacts,
    JointSweep,
    calibrate_joint,
    find_problem,
    homing_offset,
)
from roboalign.sdk.errors import ConfigError

LIMITS = (-1.7, 1.6)
PER_RAD = 4096 / (2 * math.pi)


def facts(**more):
    return JointFacts(**{"name": "elbow", "id": 3, "protocol": "feetech", "limits_rad": LIMITS, **more})


def swept(zero, lower=LIMITS[0], upper=LIMITS[1], sign=1, step=40):
    """A hand that moves a joint from its zero to both ends, as its encoder sees it."""
    places = [0.0]
    for goal in (lower, upper):
        count = max(2, int(abs(goal - places[-1]) * PER_RAD / step))
        places += [places[-1] + (goal - places[-1]) * part / count for part in range(1, count + 1)]
    counts = [round(zero + sign * rad * PER_RAD) % 4096 for rad in places]
    sweep = JointSweep(counts[0])
    for count in counts[1:]:
        sweep.add(count)
    return sweep


@settings(max_examples=80, deadline=None)
@given(zero=st.integers(0, 4095), protocol=st.sampled_from(["feetech", "dynamixel"]))
def test_wherever_the_horn_sits_the_zero_is_found_and_no_seam_is_inside(zero, protocol):
    sweep = swept(zero)
    result = calibrate_joint(facts(protocol=protocol), sweep, sweep.start)
    motor = result.calibration
    assert 0 <= motor.range_min < motor.range_max <= 4095
    assert result.notes.zero_count == pytest.approx(present_count(protocol, zero, motor.homing_offset) % 4096, abs=2)
    assert abs(motor.range_max - motor.range_min - 3.3 * PER_RAD) <= 2
    if protocol == "feetech":
        assert abs(motor.homing_offset) <= 2047


@settings(max_examples=40, deadline=None)
@given(zero=st.integers(0, 4095))
def test_the_middle_of_the_travel_reads_as_the_middle_of_the_counts(zero):
    motor = calibrate_joint(facts(), swept(zero)).calibration
    assert abs((motor.range_min + motor.range_max) / 2 - MIDDLE) <= 1.5


@pytest.mark.parametrize("middle", [0, 1, 2046, 2047, 2048, 4094, 4095])
def test_offsets_fit_the_register(middle):
    """Half-turn homing at 4095 asked for 2048, which the register cannot hold (lerobot #1296)."""
    offset = homing_offset("feetech", middle)
    assert -2047 <= offset <= 2047
    assert abs((middle - offset) - MIDDLE) <= 1


def test_a_joint_that_was_not_moved_is_refused():
    with pytest.raises(ConfigError, match=r"elbow: moved by 0 counts only \(0 degrees\); move it from end to end"):
        calibrate_joint(facts(), JointSweep(100))


def test_a_full_turn_is_refused():
    sweep = swept(0, -3.3, 3.3)
    assert sweep.travel >= 4096
    assert "a full turn is 4096" in find_problem(facts(), sweep)


def test_travel_that_falls_short_of_the_urdf_is_refused():
    problem = find_problem(facts(), swept(500, -0.8, 1.6))
    assert problem.startswith("elbow: swept 138 degrees, the URDF has 189: an end was not reached")


def test_travel_beyond_the_urdf_is_refused():
    assert "turns further than the model's joint" in find_problem(facts(), swept(500, -2.2, 1.9))


def test_a_zero_pose_that_is_off_is_refused_with_the_angle():
    sweep = swept(1000)
    assert find_problem(facts(), sweep, sweep.start) is None
    assert "elbow: the zero pose was +30 degrees" in find_problem(facts(), sweep, sweep.start + round(0.524 * PER_RAD))


def test_a_jump_between_two_samples_is_refused():
    sweep = JointSweep(0)
    sweep.add(1500)
    assert "moved by 1500 counts between two readings" in find_problem(facts(), sweep)


def test_a_joint_without_end_stops_may_stand_still():
    result = calibrate_joint(facts(is_full_turn=True), JointSweep(3900), 3900)
    assert (result.calibration.range_min, result.calibration.range_max) == (0, 4095)
    assert present_count("feetech", 3900, result.calibration.homing_offset) == MIDDLE
    assert result.notes.zero_count == pytest.approx(MIDDLE)


def test_a_gripper_has_no_zero_to_check():
    result = calibrate_joint(facts(limits_rad=None), swept(4000, 0.0, 1.9))
    assert result.notes.zero_count is None
    assert result.notes.seam_checked


def test_the_offset_sign_is_the_protocols():
    sweep = swept(3000)
    feetech = calibrate_joint(facts(), sweep).calibration.homing_offset
    dynamixel = calibrate_joint(facts(protocol="dynamixel"), sweep).calibration.homing_offset
    assert feetech == -dynamixel
