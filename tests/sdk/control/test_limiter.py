"""Whatever goes in, what comes out is inside the limits. Dense around each bound, and the tests are shown to bite."""

import dataclasses
import inspect
import itertools
import math
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.sdk.control import limiter as limiter_module
from roboalign.sdk.control.limiter import MAX_LEAD_S, MAX_PERIODS, Limiter
from roboalign.sdk.errors import ConfigError, LimitViolation
from roboalign.sdk.types import RobotSpec

PERIOD_S = 0.1
CENTRE = (0.5, 0.0, 0.2, 0.0, 0.08)
NUDGES = (-1e-3, -1e-6, -1e-9, 0.0, 1e-9, 1e-6, 1e-3)
ACCELERATION = (2.0, 3.5, 1.0)
any_float = st.floats(allow_nan=True, allow_infinity=True)
finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def limiter(spec) -> Limiter:
    return Limiter(spec)


def check_action(limiter: Limiter, action, target) -> None:
    """The claims about every action that is sent."""
    spec = limiter.spec
    sent, reasons = limiter.limit_action(action, target)
    action, target = np.asarray(action, np.float64), np.asarray(target, np.float64)
    assert sent.dtype == np.float32
    assert np.isfinite(sent).all()
    assert np.abs(sent[:3]).max() <= spec.max_step_m
    assert abs(sent[3]) <= spec.max_step_rad
    assert 0 <= sent[4] <= 1
    landed = target[:3] + sent[:3]
    assert (landed >= np.minimum(spec.workspace_lower_m, target[:3])).all()
    assert (landed <= np.maximum(spec.workspace_upper_m, target[:3])).all()
    if not np.isfinite(action).all():
        assert not sent[:4].any()
        assert reasons[0].startswith("hold: ")
    else:
        asked = np.clip(action[:4], -1e6, 1e6)
        assert (sent[:4] * asked >= 0).all(), "never against what was asked"
        assert (np.abs(sent[:4]) <= np.abs(asked) * (1 + 1e-6) + 1e-12).all(), "never more than was asked"
        is_same = np.abs(sent - action).max() <= 2e-6
        assert is_same or reasons, "a change needs a reason"
        assert not (reasons and np.abs(sent - action).max() < 1e-7), "a reason needs a change"


def check_joints(limiter: Limiter, target, last, measured, dt_s) -> None:
    """The claims about every joint target that is sent."""
    spec = limiter.spec
    sent, reasons = limiter.limit_joints(target, last, measured, dt_s)
    target, last, measured = (np.asarray(values, np.float64) for values in (target, last, measured))
    lower, upper = np.array(spec.joint_lower_rad), np.array(spec.joint_upper_rad)
    assert sent.dtype == np.float32
    assert ((sent >= lower) & (sent <= upper)).all()
    anchor = np.clip(last if np.isfinite(last).all() else measured, lower, upper)
    dt_used_s = min(dt_s, MAX_PERIODS * PERIOD_S) if dt_s > 0 else 0.0
    assert (np.abs(sent - anchor) <= np.array(spec.joint_max_speed_rad_s) * dt_used_s + 5e-7).all()
    if not np.isfinite(np.concatenate((target, measured, (dt_s,)))).all():
        assert np.abs(sent - anchor).max() <= 5e-7
        assert any(reason.startswith("hold: ") for reason in reasons)
        return
    lead = np.array(spec.joint_max_speed_rad_s) * MAX_LEAD_S
    assert (sent <= np.maximum(np.maximum(measured + lead, anchor), lower) + 5e-7).all()
    assert (sent >= np.minimum(np.minimum(measured - lead, anchor), upper) - 5e-7).all()
    assert np.abs(sent - target).max() <= 2e-6 or reasons, "a change needs a reason"


def check_rise(limiter: Limiter, target, last, last_step) -> None:
    """The claims about every step whose rise in speed was limited; the steps are rad in `PERIOD_S`."""
    target, last, last_step = (np.asarray(values, np.float32) for values in (target, last, last_step))
    sent, reasons = limiter.limit_rise(target, last, last_step, PERIOD_S)
    assert sent.dtype == np.float32
    assert ((sent >= np.minimum(target, last)) & (sent <= np.maximum(target, last))).all(), "between last and target"
    room = np.array(ACCELERATION) * PERIOD_S**2
    step, asked = sent.astype(np.float64) - last, target.astype(np.float64) - last
    is_same_way = step * last_step > 0
    assert (np.abs(step) <= np.where(is_same_way, np.abs(last_step), 0.0) + room + 5e-7).all()
    is_slower = (asked * last_step >= 0) & (np.abs(asked) <= np.abs(last_step))
    assert (np.abs(step - asked) <= 5e-7)[is_slower].all(), "slowing down is never limited"
    assert (np.abs(step - asked).max() <= 2e-6) == (not reasons), "a change has a reason, and a reason a change"


def dense_rises():
    """Steps around what the acceleration allows, from rest, in the way the joint goes, and back."""
    middle = np.array((0.1, 0.2, 1.0), np.float32)
    room = np.array(ACCELERATION) * PERIOD_S**2
    for before, after in itertools.product(
        (0.0, 0.5, -0.5, 3.0), (0.0, 0.4, 0.99, 1.01, 1.6, 3.9, 4.1, 9.0, -0.9, -4.0)
    ):
        yield middle + after * room, middle, before * room


def dense_actions(spec: RobotSpec):
    """Every field just inside, at and just outside each of its bounds, from targets at and around the workspace."""
    for index in range(3):
        for bound, nudge in itertools.product((spec.workspace_lower_m, spec.workspace_upper_m), NUDGES):
            target = list(CENTRE)
            target[index] = bound[index] + nudge
            for size, sign, more in itertools.product((0.0, 1e-9, 0.01, 0.04, 0.5), (-1, 1), NUDGES):
                action = [0.0, 0.0, 0.0, 0.0, 1.0]
                action[index] = sign * size + more
                yield action, target
    for index, nudge, sign in itertools.product(range(5), NUDGES, (-1, 1)):
        action = [0.0] * 5
        action[index] = sign * (0.04, 0.04, 0.04, 0.2, 1.0)[index] + nudge
        yield action, CENTRE
    for index, bad in itertools.product(range(5), (math.nan, math.inf, -math.inf, 1e300, -1e300)):
        action = [0.01, 0.01, 0.01, 0.01, 1.0]
        action[index] = bad
        yield action, CENTRE


def dense_joints(spec: RobotSpec):
    """Each joint around its position, speed and lead limits, and every kind of broken input."""
    home = list(spec.home_joint_pos_rad)
    for index, nudge in itertools.product(range(3), NUDGES):
        for bound in (spec.joint_lower_rad[index], spec.joint_upper_rad[index]):
            near = [*home[:index], bound, *home[index + 1 :]]
            over = [*home[:index], bound + nudge, *home[index + 1 :]]
            yield over, near, near, PERIOD_S
            yield near, over, over, PERIOD_S
        for sign, dt_s in itertools.product((-1, 1), (1e-3, PERIOD_S, 10.0)):
            far = list(home)
            far[index] += sign * (spec.joint_max_speed_rad_s[index] * dt_s + nudge)
            yield far, home, home, dt_s
            blocked = list(home)
            for lead in (1.0, 2.0):
                blocked[index] = home[index] - sign * lead * spec.joint_max_speed_rad_s[index] * MAX_LEAD_S
                yield far, home, blocked, dt_s
    for bad, slot in itertools.product((math.nan, math.inf, -math.inf, 1e300), range(3)):
        vectors = [list(home), list(home), list(home)]
        vectors[slot][1] = bad
        yield *vectors, PERIOD_S
    for dt_s in (0.0, -1.0, math.nan, math.inf, 1e-12):
        yield [joint + 0.05 for joint in home], home, home, dt_s


def test_actions_are_inside_the_limits_around_every_bound(limiter):
    cases = list(dense_actions(limiter.spec))
    assert len(cases) > 2000
    for action, target in cases:
        check_action(limiter, action, target)


def test_joint_targets_are_inside_the_limits_around_every_bound(limiter):
    cases = list(dense_joints(limiter.spec))
    assert len(cases) > 300
    for case in cases:
        check_joints(limiter, *case)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_no_action_at_all_gets_past_the_limits(limiter, data):
    action = data.draw(st.lists(any_float, min_size=5, max_size=5))
    target = data.draw(st.lists(st.floats(-10, 10), min_size=5, max_size=5))
    check_action(limiter, action, target)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_no_joint_target_at_all_gets_past_the_limits(limiter, data):
    vector = st.lists(st.one_of(any_float, st.floats(-4, 4)), min_size=3, max_size=3)
    target, last, measured = (data.draw(vector) for _ in range(3))
    dt_s = data.draw(st.one_of(any_float, st.floats(0, 1)))
    try:
        check_joints(limiter, target, last, measured, dt_s)
    except LimitViolation:
        assert not np.isfinite(last).all()
        assert not np.isfinite(measured).all()


@settings(deadline=None)
@given(action=st.tuples(*[st.floats(-0.02, 0.02)] * 3, st.floats(-0.2, 0.2), st.floats(0, 1)))
def test_an_action_inside_the_limits_is_sent_as_it_is(limiter, action):
    sent, reasons = limiter.limit_action(np.array(action, np.float32), CENTRE)
    assert sent.tolist() == pytest.approx(np.array(action, np.float32).tolist(), abs=1e-7)
    assert not reasons


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_a_chain_of_any_targets_never_outruns_the_joints(limiter, data):
    """The limiter's own output is its next anchor; wherever the commands go, speed holds between them."""
    last = np.array(limiter.spec.home_joint_pos_rad, np.float32)
    for target in data.draw(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=8)):
        check_joints(limiter, target, last, last, PERIOD_S)
        last, _ = limiter.limit_joints(target, last, last, PERIOD_S)


@pytest.mark.parametrize(
    ("action", "target", "reason"),
    [
        ((0, 0, -0.04, 0, 1), (0.5, 0, 0.01, 0, 0.08), "dz_m: below the workspace"),
        ((0, 0, 0.04, 0, 1), (0.5, 0, 0.34, 0, 0.08), "dz_m: above the workspace"),
        ((0.05, 0, 0, 0, 1), CENTRE, "dx_m: step above 0.04"),
        ((0, 0, 0, -0.3, 1), CENTRE, "dyaw_rad: step above 0.2"),
        ((0, 0, 0, 0, 1.5), CENTRE, "gripper_open: outside 0 to 1"),
        ((0, math.nan, 0, 0, math.inf), CENTRE, "hold: dy_m, gripper_open not finite"),
    ],
)
def test_reasons_name_the_field_and_the_bound(limiter, action, target, reason):
    assert limiter.limit_action(action, target)[1] == (reason,)


@pytest.mark.parametrize(
    ("target", "measured", "reason"),
    [
        ((2.2, 0.1, 1.0), (2.09, 0.1, 1.0), "a: position limit"),
        ((1.0, 0.1, 1.0), (0.0, 0.1, 1.0), "a: speed limit"),
        ((math.nan, 0.1, 1.0), (0.0, 0.1, 1.0), "hold: joint target not finite"),
        ((0.0, 0.1, 1.0), (math.nan, 0.1, 1.0), "hold: measured joints not finite"),
    ],
)
def test_joint_reasons_name_the_joint_and_the_limit(limiter, target, measured, reason):
    last = measured if np.isfinite(measured).all() else (0.0, 0.1, 1.0)
    assert limiter.limit_joints(target, last, measured, PERIOD_S)[1] == (reason,)


def test_a_blocked_arm_does_not_wind_up(limiter):
    blocked, last = (0.0, 0.1, 1.0), np.array((0.0, 0.1, 1.0), np.float32)
    for _ in range(20):
        last, reasons = limiter.limit_joints((2.0, 0.1, 1.0), last, blocked, PERIOD_S)
    assert last[0] == pytest.approx(1.1 * MAX_LEAD_S, abs=1e-6)
    assert "a: too far ahead of the arm" in reasons


def test_a_stalled_loop_earns_no_long_jump(limiter):
    last = (0.0, 0.1, 1.0)
    sent, _ = limiter.limit_joints((2.0, 0.1, 1.0), last, last, 60.0)
    assert sent[0] == pytest.approx(1.1 * MAX_PERIODS * PERIOD_S, abs=1e-6)


def test_a_tool_outside_the_workspace_is_not_driven_but_may_come_back(limiter):
    outside = (0.5, 0.0, 0.5, 0.0, 0.08)
    assert not limiter.limit_action((0, 0, 0, 0, 1), outside)[0][:4].any()
    assert limiter.limit_action((0, 0, 0.04, 0, 1), outside)[0][2] == 0.0
    assert limiter.limit_action((0, 0, -0.04, 0, 1), outside)[0][2] == pytest.approx(-0.04)


def test_a_hold_keeps_the_gripper_as_commanded(limiter):
    assert limiter.hold_action((0.5, 0, 0.2, 0, 0.08))[4] == 1.0
    assert limiter.hold_action((0.5, 0, 0.2, 0, 0.0))[4] == 0.0
    assert limiter.limit_action((math.nan,) * 5, (0.5, 0, 0.2, 0, 0.02))[0].tolist() == [0, 0, 0, 0, 0.25]


@pytest.mark.parametrize("action", [(), (0,) * 4, (0,) * 6, ((0,) * 5,), "abcde", None])
def test_an_action_that_is_no_vector_of_five_is_refused(limiter, action):
    with pytest.raises(LimitViolation, match="action"):
        limiter.limit_action(action, CENTRE)


def test_nothing_safe_to_command_is_refused(limiter):
    bad = (math.nan,) * 3
    with pytest.raises(LimitViolation, match="neither the last joint target nor the measured"):
        limiter.limit_joints((0, 0.1, 1), bad, bad, PERIOD_S)
    with pytest.raises(LimitViolation, match="tool target"):
        limiter.limit_action((0,) * 5, (math.nan,) * 5)


@pytest.fixture(scope="module")
def risen(spec) -> RobotSpec:
    return dataclasses.replace(spec, joint_max_accel_rad_s2=ACCELERATION)


def test_a_joint_speeds_up_no_faster_than_it_may(risen):
    for case in dense_rises():
        check_rise(Limiter(risen), *case)


def test_without_an_acceleration_nothing_is_shortened(limiter):
    for target, last, step in dense_rises():
        sent, reasons = limiter.limit_rise(target.astype(np.float32), last, step, PERIOD_S)
        assert (sent == target.astype(np.float32)).all()
        assert reasons == ()


def test_an_acceleration_for_some_joints_only_is_refused(spec):
    with pytest.raises(ConfigError, match="joint_max_accel_rad_s2 has 2 entries, expected one for each of the 3"):
        dataclasses.replace(spec, joint_max_accel_rad_s2=(1.0, 2.0))


MUTATIONS = (
    ("_clip(step, -room, room)", "step"),
    ("most * dt_s**2", "most * dt_s"),
    ("((step > 0.0) - (step < 0.0)), 0.0)", "((step > 0.0) - (step < 0.0)), -9.9)"),
    ("before * ((step > 0.0) - (step < 0.0))", "abs(before)"),
    ("room = has + most", "room = most"),
    ("_clip(asked[index], -most, most)", "asked[index]"),
    ("_clip(asked[index], -most, most)", "_clip(asked[index], -most, 2 * most)"),
    ("_clip(target + step, low, high) - target", "target + step - target"),
    ("min(self._workspace_low[index], target)", "self._workspace_low[index] - 1e-5"),
    ("max(self._workspace_high[index], target)", "self._workspace_high[index] + 1e-5"),
    ("sent = _next_float32(sent, 0.0)", "pass"),
    ("_float32(_clip(asked[4], 0.0, 1.0))", "_float32(asked[4])"),
    ("if not math.isfinite(value)]", "if math.isnan(value)]"),
    ("if not math.isfinite(value)]", "if math.isinf(value)]"),
    (
        "_clip(value, *limits) for value, *limits in zip(wanted",
        "max(value, limits[0]) for value, *limits in zip(wanted",
    ),
    (
        "_clip(_float32(led[index]), self._lower[index], self._upper[index])",
        "_clip(led[index] + 1e-6, self._lower[index], self._upper[index] + 1e-6)",
    ),
    ("_clip(joint, anchor - reach, anchor + reach)", "joint"),
    ("min(dt_s, MAX_PERIODS / self.spec.control_rate_hz)", "dt_s"),
    ("_clip(slow[index], low, high)", "slow[index]"),
    ("max(measured[index] + lead, anchor)", "measured[index] + lead"),
    ("if not (math.isfinite(dt_s) and dt_s > 0):", "if not math.isfinite(dt_s):"),
    ('(("joint target", wanted), ("measured joints", measured))', '(("joint target", wanted),)'),
    ("[_float32(_clip(v, *limits)) for v", "[_float32(v) for v"),
    (
        "self._lower, self._upper = _round_inwards(lower, upper)",
        "self._lower, self._upper = (lower - 1e-6).tolist(), (upper + 1e-6).tolist()",
    ),
)


def mutant_of(old: str, new: str, spec: RobotSpec) -> Limiter:
    source = inspect.getsource(limiter_module)
    assert source.count(old) == 1, f"the limiter has changed, rewrite the mutation of {old!r}"
    module = types.ModuleType("mutant")
    exec(compile(source.replace(old, new), "mutant", "exec"), module.__dict__)
    mutant: Limiter = module.Limiter(spec)
    return mutant


@pytest.mark.parametrize(("old", "new"), MUTATIONS, ids=range(len(MUTATIONS)))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_broken_limiter_is_caught(risen, spec, old, new):
    """Each mutation opens one hole; the dense cases above must find it."""
    mutant = mutant_of(old, new, risen)
    cases = [(check_action, case) for case in dense_actions(spec)] + [
        (check_joints, case) for case in dense_joints(spec)
    ]
    cases += [(check_rise, case) for case in dense_rises()]
    for check, case in cases:
        try:
            check(mutant, *case)
        except AssertionError:
            return
    pytest.fail(f"no test noticed that {old!r} became {new!r}")
