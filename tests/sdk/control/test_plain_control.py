"""The product's limiter and kinematics equal plain ones bit by bit, and make no array but results that are kept."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.sdk.control.fake_process import Bench
from tests.sdk.control.plain_control import PlainKinematics, PlainLimiter
from tests.sdk.control.test_kinematics import GANTRY

from roboalign.sdk.control import (
    CartesianController,
    Kinematics,
    Limiter,
    kinematics_work,
    pose_from_state,
    state_from_pose,
)
from roboalign.sdk.errors import LimitViolation
from roboalign.sdk.sim.robots import find_robot

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
from array_count import check, count_arrays

ODD = (np.nan, np.inf, -np.inf, 1e300, -1e300, 1e38, 5e-324, 1e-45, 0.0, -0.0)


def bits(values) -> bytes:
    """NaNs are equal: which of them a calculation gives is the processor's choice."""
    values = np.asarray(values)
    return np.where(np.isnan(values), values.dtype.type(np.nan), values).tobytes()


def spoil(rng, *vectors) -> None:
    for vector in vectors:
        if rng.random() < 0.1:
            vector[rng.integers(len(vector))] = rng.choice(ODD)


def draw(rng, spec, number: int):
    """An action, where the tool is, wanted, last and measured joints, the last step and the time."""
    lower, upper = np.array(spec.joint_lower_rad), np.array(spec.joint_upper_rad)
    low, high = np.array(spec.workspace_lower_m), np.array(spec.workspace_upper_m)
    place = np.where(rng.random(3) < 0.2, rng.choice((low, high)), low + (high - low) * rng.uniform(-0.1, 1.1, 3))
    tool = np.array((*place, rng.normal(), rng.uniform(-0.01, 1.1 * spec.gripper_max_width_m)))
    action = rng.normal(size=5) * rng.choice((0.3, 1.0)) * ((spec.max_step_m,) * 3 + (spec.max_step_rad, 1.0))
    last = np.clip(lower + (upper - lower) * rng.uniform(-0.05, 1.05, len(lower)), lower, upper + rng.choice((0, 0.1)))
    wanted = last + rng.normal(size=len(last)) * rng.choice((0.0, 1e-7, 3e-3, 0.05, 1.0))
    measured = last + rng.normal(size=len(last)) * rng.choice((0.0, 0.01, 0.3, 2.0))
    step = rng.normal(size=len(last)) * 0.01
    dt_s = float(
        rng.choice((1.0 / spec.control_rate_hz, 4e-3, rng.uniform(-0.1, 1.0), np.nan), p=(0.6, 0.2, 0.18, 0.02))
    )
    if number % 2:
        action, last, wanted, measured, step = (v.astype(np.float32) for v in (action, last, wanted, measured, step))
    return action, tool, wanted, last, measured, step, dt_s


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("name", ["so101", "panda"])
@pytest.mark.parametrize("acceleration", [None, 40.0])
def test_the_limiter_is_the_plain_one_bit_by_bit(name, acceleration):
    spec = find_robot(name).spec(96)
    if acceleration is not None:
        spec = dataclasses.replace(spec, joint_max_accel_rad_s2=(acceleration,) * spec.num_joints)
    ours, plain, rng = Limiter(spec), PlainLimiter(spec), np.random.default_rng(7)
    for number in range(300):
        action, tool, wanted, last, measured, step, dt_s = draw(rng, spec, number)
        spoil(rng, action, wanted, last, measured)
        sent, reasons = plain.limit_action(action, tool)
        found, why = ours.limit_action(action, tool)
        assert (bits(found), why) == (bits(sent), reasons), (action, tool)
        expected = plain.limit_joints(wanted, last, measured, dt_s)
        if expected is None:
            with pytest.raises(LimitViolation):
                ours.limit_joints(wanted, last, measured, dt_s)
            continue
        out = np.empty(spec.num_joints, np.float32)
        found, why = ours.limit_joints(wanted, last, measured, dt_s, out)
        assert (bits(found), why) == (bits(expected[0]), expected[1]), (wanted, last, measured, dt_s)
        assert found is out
        before = np.clip(np.nan_to_num(last), -4, 4).astype(np.float32)
        sent, reasons = plain.limit_rise(expected[0], before, step, dt_s)
        found, why = ours.limit_rise(out, before, step, dt_s, out)
        assert (bits(found), why) == (bits(sent), reasons), (expected[0], before, step, dt_s)


@pytest.mark.parametrize("name", ["so101", "panda", "gantry"])
def test_the_kinematics_are_the_plain_ones_bit_by_bit(name):
    ours = Kinematics.from_urdf(GANTRY, "d") if name == "gantry" else find_robot(name).kinematics()
    plain, rng = PlainKinematics(ours), np.random.default_rng(8)
    lower, upper = np.maximum(ours.joint_lower_rad, -4), np.minimum(ours.joint_upper_rad, 4)
    rest, reached = (lower + upper) / 2, 0
    for number in range(40):
        joints = lower + (upper - lower) * rng.random(len(lower))
        joints = np.where(rng.random(len(lower)) < 0.2, lower, joints)
        start = joints.astype(np.float32) if number % 2 else joints
        assert bits(ours.forward(start)) == bits(plain.forward(start))
        assert bits(ours.jacobian(start)) == bits(plain.jacobian(start))
        goal = plain.forward(np.clip(joints + rng.normal(size=len(lower)) * rng.choice((1e-3, 0.1, 1.0)), lower, upper))
        if number % 5 == 0:
            goal[:3, 3] += 0.3 * rng.normal(size=3)
        best, distance_m, angle_rad = plain.inverse(goal, start, rest)
        found = ours.inverse(goal, start, rest_joint_pos_rad=rest, out=np.empty(len(lower)))
        assert bits(found.joint_pos_rad) == bits(best)
        assert (found.position_error_m, found.rotation_error_rad) == (distance_m, angle_rad)
        reached += found.is_reached
    assert 10 < reached < 40, "both ways out were taken"


def test_without_numpys_inner_solver_the_numbers_are_the_same(monkeypatch):
    arm = find_robot("so101").kinematics()
    goal, start = arm.forward((0.3, -0.4, 0.6, 0.2, 0.1)), (0.0,) * 5
    before = arm.inverse(goal, start)
    monkeypatch.setattr(kinematics_work, "_solve1", None)
    assert bits(arm.inverse(goal, start).joint_pos_rad) == bits(before.joint_pos_rad)


def test_results_are_the_callers_own():
    arm = find_robot("so101").kinematics()
    first, pose = arm.inverse(arm.forward((0.1,) * 5), (0.0,) * 5).joint_pos_rad, arm.forward((0.1,) * 5)
    kept, kept_pose = first.copy(), pose.copy()
    arm.inverse(arm.forward((0.3,) * 5), (0.0,) * 5)
    arm.jacobian((0.5,) * 5)
    assert (first == kept).all()
    assert (pose == kept_pose).all()


def of_the_product(places) -> dict[str, int]:
    return {Path(name).name: n for name, n in places.items() if "roboalign/sdk/control" in name}


def test_the_counter_counts_every_array():
    check()


def a_controller_that_has_moved():
    spec = dataclasses.replace(find_robot("so101").spec(96), joint_max_accel_rad_s2=(40.0,) * 5)
    controller = CartesianController(spec, find_robot("so101").kinematics())
    controller.reset(spec.home_joint_pos_rad, 0.02)
    measured, action = controller.joint_target_rad, np.array((0.002, -0.5, 0.001, 0.05, 0.5), np.float32)
    controller.act(action, measured, 0.01)
    return controller, measured, action


def test_what_a_command_returns_is_the_callers_to_keep():
    controller, measured, action = a_controller_that_has_moved()
    kept = []
    with count_arrays() as places:
        for _ in range(40):
            action[1] = -action[1]
            kept.append(controller.act(action, measured, 0.01))
            kept.append(controller.hold())
    reasons = {reason for applied in kept for reason in applied.reasons}
    assert any("step above" in reason for reason in reasons)
    assert any("acceleration limit" in reason for reason in reasons)
    assert sum(of_the_product(places).values()) >= 3 * (80 - 8), "what is kept is not used again"
    for name in ("requested", "sent", "joint_target_rad"):
        arrays = [getattr(applied, name) for applied in kept]
        assert not any(np.shares_memory(one, two) for k, one in enumerate(arrays) for two in arrays[:k])


def test_a_command_whose_result_is_dropped_makes_no_array():
    controller, measured, action = a_controller_that_has_moved()
    reasons = set()
    with count_arrays() as places:
        for _ in range(40):
            action[1] = -action[1]
            reasons |= {*controller.act(action, measured, 0.01).reasons, *controller.hold().reasons}
            action[3] = np.nan if action[3] == action[3] else 0.05
    assert {reason.split(": ")[-1] for reason in reasons} >= {"step above 0.03", "dyaw_rad not finite", "hold"}
    assert of_the_product(places) == {}


def test_a_period_of_the_loop_makes_no_array(spec):
    """Neither a result nor a view, also where a chunk is taken over and the policy is asked."""
    bench = Bench(spec)
    counting, sleep_until, answers = count_arrays(), bench.process.sleep_until, []

    def sleep_uncounted(time_s: float) -> None:
        before = dict(places)
        sleep_until(time_s)
        places.clear()
        places.update(before)

    bench.process.sleep_until = sleep_uncounted  # in it the fake policy writes its answers
    places = {}

    def count_from_the_tenth() -> bool:
        nonlocal places
        if bench.loop._tally.ticks == 10:
            answers.append(bench.loop._answers.taken)
            places = counting.__enter__()
        return bench.loop._tally.ticks == 60

    with_loop = bench.run(100, until=count_from_the_tenth, is_traced=True)
    found = of_the_product(dict(places))
    counting.__exit__(None, None, None)
    assert with_loop.chunks > answers[0] + 5
    assert found == {}
    bench.close()


def test_poses_and_states_go_into_what_is_given():
    state, pose = np.array((0.2, 0.1, 0.05, 0.3, 0.02), np.float32), np.zeros((4, 4))
    assert pose_from_state(state, pose) is pose
    assert (pose == pose_from_state(state)).all()
    assert state_from_pose(pose, 0.02, state) is state
