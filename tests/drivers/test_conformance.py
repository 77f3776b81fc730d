"""The conformance suite passes a robot that keeps its promises, and finds each broken one."""

import dataclasses
import itertools
import time

import numpy as np
import pytest

from roboalign.drivers import ConformanceReport, check_robot
from roboalign.sdk.errors import CheckFailed, RobotError
from roboalign.sdk.robot import Robot


def failed_claims(robot: Robot) -> str:
    return " | ".join(check.name for check in check_robot(robot, sleep=lambda _: None).failed)


def test_the_arm_in_memory_is_a_robot(arm):
    assert isinstance(arm, Robot)


def test_a_robot_that_keeps_its_promises_passes(arm):
    report = check_robot(arm)
    report.raise_if_failed()
    assert len(report.checks) >= 15
    assert report.robot == "memory-panda"


def test_the_simulated_robot_passes_the_same_suite():
    pytest.importorskip("pybullet")
    sim = pytest.importorskip("roboalign.sdk.sim")
    report = check_robot(sim.SimRobot())
    report.raise_if_failed()


def test_a_simulated_robot_is_not_waited_for(arm):
    before_s = time.monotonic()
    check_robot(arm, sleep=lambda seconds: pytest.fail(f"waited {seconds} s"))
    assert time.monotonic() - before_s < 10


def test_hardware_that_answers_at_once_is_waited_for(arm):
    waits: list[float] = []
    act = arm.act

    def act_at_once(action):
        applied = act(action)
        arm.time_s -= 0.1
        return applied

    arm.act = act_at_once
    check_robot(arm, sleep=waits.append)
    assert waits
    assert max(waits) <= 0.1 + 1e-9


def test_going_around_the_limiter_is_found(arm):
    """A driver that sends what it was asked."""
    act = arm.act

    def act_unlimited(action):
        applied = act(action)
        return dataclasses.replace(applied, sent=applied.requested, reasons=())

    arm.act = act_unlimited
    claims = failed_claims(arm)
    assert "step above the limit" in claims
    assert "not finite" in claims
    assert "workspace" in claims


def test_motion_on_nan_is_found(arm):
    act = arm.act
    arm.act = lambda action: act(np.nan_to_num(action, nan=0.01, posinf=0.01, neginf=-0.01))
    assert "not finite" in failed_claims(arm)


def test_zeroing_the_rest_of_a_nan_action_is_found_by_its_missing_reason(arm):
    act = arm.act
    arm.act = lambda action: act(np.where(np.isfinite(action).all(), action, np.float32(0)))
    assert "not finite" in failed_claims(arm)


def test_an_estop_that_does_not_latch_is_found(arm):
    arm.estop = lambda: None
    assert "estop latches" in failed_claims(arm)


def test_an_arm_that_sags_in_hold_is_found(arm):
    hold = arm.hold
    sags = itertools.count(1)

    def sagging_hold():
        applied = hold()
        arm.joints = arm.joints + np.float32(0.002) * next(sags)
        return applied

    arm.hold = sagging_hold
    assert "hold keeps its position" in failed_claims(arm)


def test_a_dead_gripper_is_found(arm):
    send = arm._send

    def send_without_gripper(applied):
        applied = send(applied)
        arm.width_m = 0.08
        return applied

    arm._send = send_without_gripper
    assert "gripper" in failed_claims(arm)


def test_a_wrong_camera_is_found(arm):
    arm.spec = dataclasses.replace(arm.spec, camera_names=("front", "wrist"))
    assert "shapes and limits" in failed_claims(arm)


def test_a_home_outside_the_limits_is_found_before_connecting(arm):
    arm.spec = dataclasses.replace(arm.spec, home_joint_pos_rad=(9.0, *arm.spec.home_joint_pos_rad[1:]))
    assert "spec can be read" in failed_claims(arm)


def test_a_missing_method_is_named(arm):
    class Half:
        spec = arm.spec

    report = check_robot(Half())
    assert "connect, observe, act" in report.failed[0].detail
    assert not report.is_ok


def test_a_robot_that_cannot_be_opened_is_reported_and_closed(arm):
    closed = []

    def refuse(*, rearm=False):
        raise RobotError("no arm on /dev/ttyUSB0")

    arm.connect = refuse
    arm.disconnect = lambda: closed.append(True)
    report = check_robot(arm)
    assert [check.detail for check in report.failed] == ["raised RobotError: no arm on /dev/ttyUSB0"]
    assert closed


def test_a_failed_report_raises_with_every_claim(arm):
    arm.estop = lambda: None
    report = check_robot(arm)
    with pytest.raises(CheckFailed, match=r"fails 1 of .*estop latches"):
        report.raise_if_failed()
    assert "FAIL estop latches" in str(report)


def test_an_empty_report_is_ok():
    assert ConformanceReport(robot="x", checks=()).is_ok
