"""From actions to joint targets on a gantry whose tool points down: every number can be checked by eye."""

import dataclasses
import math

import numpy as np
import pytest

from roboalign.sdk.control import CartesianController, Kinematics
from roboalign.sdk.errors import ConfigError, LimitViolation, RobotError

JOINT = """<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/><axis xyz="{axis}"/>
<limit lower="-3" upper="3" velocity="1"/></joint>"""
URDF = f"""<robot name="gantry"><link name="base"/><link name="1"/><link name="2"/><link name="3"/><link name="4"/>
<link name="tool"/>
{JOINT.format(name="x", kind="prismatic", parent="base", child="1", axis="1 0 0")}
{JOINT.format(name="y", kind="prismatic", parent="1", child="2", axis="0 1 0")}
{JOINT.format(name="z", kind="prismatic", parent="2", child="3", axis="0 0 1")}
{JOINT.format(name="turn", kind="revolute", parent="3", child="4", axis="0 0 1")}
<joint name="down" type="fixed"><parent link="4"/><child link="tool"/><origin rpy="3.14159265358979 0 0"/></joint>
</robot>"""
START = (0.5, 0.0, 0.2, 0.1)
PERIOD_S = 0.1


@pytest.fixture
def controller(spec) -> CartesianController:
    gantry = dataclasses.replace(
        spec,
        joint_names=("x", "y", "z", "turn"),
        joint_lower_rad=(0.0, -1.0, 0.0, -3.0),
        joint_upper_rad=(0.65, 1.0, 1.0, 3.0),
        joint_max_speed_rad_s=(1.0, 1.0, 0.3, 3.0),
        home_joint_pos_rad=START,
        park_joint_pos_rad=START,
    )
    made = CartesianController(gantry, Kinematics.from_urdf(URDF, "tool"))
    made.reset(START, 0.08)
    return made


def test_an_action_displaces_the_joint_target(controller):
    applied = controller.act((0.02, -0.01, 0.01, 0.1, 1.0), START, PERIOD_S)
    assert applied.joint_target_rad == pytest.approx((0.52, -0.01, 0.21, 0.2), abs=2e-3)
    assert applied.reasons == ()
    assert applied.joint_target_rad.dtype == np.float32


def test_displacements_add_up_from_the_target_not_from_the_measured_pose(controller):
    for _ in range(5):
        controller.act((0.01, 0, 0, 0, 1), START, PERIOD_S)
    assert controller.tool_target == pytest.approx((0.55, 0, 0.2, 0.1, 0.08), abs=1e-6)


def test_reset_moves_nothing(controller):
    assert controller.joint_target_rad == pytest.approx(START)
    assert controller.hold().joint_target_rad == pytest.approx(START)


def test_nan_is_a_hold_that_moves_nothing(controller):
    before = controller.joint_target_rad
    applied = controller.act((math.nan, 0.01, 0, 0, 0), START, PERIOD_S)
    assert applied.joint_target_rad.tolist() == before.tolist()
    assert applied.sent.tolist() == [0, 0, 0, 0, 1]
    assert applied.reasons == ("hold: dx_m not finite",)
    assert np.isnan(applied.requested[0])


def test_joint_targets_are_limited_and_the_next_action_starts_there(controller):
    target, width_m = controller.act_joints((0.9, 0.0, 0.2, 0.1), 0.5, START, PERIOD_S)
    assert target[0] == pytest.approx(0.6), "a speed of 1 m/s for a period"
    assert width_m == controller.spec.gripper_max_width_m
    assert controller.act((0, 0, 0, 0, 1), target, PERIOD_S).joint_target_rad == pytest.approx(target, abs=1e-6)


@pytest.mark.parametrize("width_m", [math.nan, math.inf])
def test_a_width_that_is_not_finite_keeps_the_last_one(controller, width_m):
    controller.act_joints(START, 0.03, START, PERIOD_S)
    assert controller.act_joints(START, width_m, START, PERIOD_S)[1] == pytest.approx(0.03)


def test_a_target_out_of_reach_holds_with_the_reason_and_still_moves_the_gripper(controller):
    """The rail ends at 0.65, the workspace at 0.70."""
    for _ in range(6):
        applied = controller.act((0.03, 0, 0, 0, 0), START, PERIOD_S)
    assert applied.reasons[0].startswith("hold: target (0.68")
    assert "x at the limit" in applied.reasons[0]
    assert applied.sent.tolist() == [0, 0, 0, 0, 0]
    assert controller.tool_target[0] == pytest.approx(0.65, abs=0.011)
    assert controller.gripper_width_m == 0.0


def test_after_a_target_out_of_reach_the_way_back_is_open(controller):
    for _ in range(6):
        controller.act((0.03, 0, 0, 0, 1), START, PERIOD_S)
    assert controller.act((-0.03, 0, 0, 0, 1), START, PERIOD_S).reasons == ()


def test_a_slow_joint_catches_up_in_the_next_periods(controller):
    """z moves 30 mm in a period, 40 mm are asked for: the target of the tool is kept, the joint follows."""
    first = controller.act((0, 0, 0.04, 0, 1), START, PERIOD_S)
    assert first.reasons == ("z: speed limit",)
    second = controller.act((0, 0, 0.0, 0, 1), first.joint_target_rad, PERIOD_S)
    assert second.joint_target_rad[2] == pytest.approx(0.24, abs=2e-4)


def test_hold_drops_what_is_still_to_come(controller):
    first = controller.act((0, 0, 0.04, 0, 1), START, PERIOD_S)
    held = controller.hold()
    assert held.joint_target_rad.tolist() == first.joint_target_rad.tolist()
    after = controller.act((0, 0, 0, 0, 1), first.joint_target_rad, PERIOD_S)
    assert after.joint_target_rad == pytest.approx(first.joint_target_rad, abs=2e-4)


def test_the_gripper_follows_the_action(controller):
    controller.act((0, 0, 0, 0, 0.5), START, PERIOD_S)
    assert controller.gripper_width_m == pytest.approx(0.04)
    assert controller.hold().sent[4] == pytest.approx(0.5)


def test_yaw_wraps_around(controller):
    measured = np.array(START)
    for _ in range(30):
        measured = controller.act((0, 0, 0, 0.2, 1), measured, PERIOD_S).joint_target_rad
    assert -math.pi <= controller.tool_target[3] <= math.pi


def test_a_controller_without_reset_refuses(controller):
    fresh = CartesianController(controller.spec, controller.kinematics)
    with pytest.raises(RobotError, match="call reset"):
        fresh.hold()


def test_a_wrong_shape_is_refused(controller):
    with pytest.raises(LimitViolation, match="expected"):
        controller.act((0, 0, 0), START, PERIOD_S)


def test_measurements_that_are_not_finite_are_refused_at_reset(controller):
    with pytest.raises(RobotError, match="check the sensors"):
        controller.reset((math.nan, 0, 0, 0), 0.08)


def test_kinematics_of_another_robot_are_refused(spec):
    with pytest.raises(ConfigError, match="has joints"):
        CartesianController(spec, Kinematics.from_urdf(URDF, "tool"))


def test_a_huge_request_is_clamped_without_a_warning(controller):
    applied = controller.act((1e300, 0, 0, 0, 1), START, PERIOD_S)
    assert applied.sent[0] == pytest.approx(0.04)


def test_a_joint_from_rest_speeds_up_period_by_period_and_stops_at_once(controller):
    spec = dataclasses.replace(controller.spec, joint_max_accel_rad_s2=(0.2,) * 4)
    controller = CartesianController(spec, controller.kinematics)
    controller.reset(START, 0.04)
    forward = np.array((0.02, 0, 0, 0, 0.5), np.float32)
    targets, reasons = [controller.joint_target_rad], []
    for _ in range(4):
        applied = controller.act(forward, controller.joint_target_rad, 0.1)
        targets.append(applied.joint_target_rad)
        reasons += applied.reasons
    steps = np.abs(np.diff(targets, axis=0)).max(axis=1)
    assert steps[0] == pytest.approx(0.002, rel=0.01)
    assert (np.diff(steps) <= 0.002 + 1e-6).all()
    assert steps[-1] > steps[0]
    assert any(reason.endswith(": acceleration limit") for reason in reasons)
    held = controller.hold().joint_target_rad
    assert (held == targets[-1]).all(), "a hold is not slowed down"
    again = controller.act(forward, held, 0.1).joint_target_rad
    assert np.abs(again - held).max() == pytest.approx(0.002, rel=0.01)
