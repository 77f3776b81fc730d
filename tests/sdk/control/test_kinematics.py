"""Kinematics against arms small enough to check by hand; test_kinematics_pybullet.py has the real one."""

import copy
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.sdk.control import Kinematics, pose_from_state, state_from_pose, tool_pose
from roboalign.sdk.errors import ConfigError


def urdf_of(*joints: str, links: str = "abcdefgh") -> str:
    """A URDF whose links are a, b, c, ... joined in that order."""
    bodies = "".join(f'<link name="{name}"/>' for name in links[: len(joints) + 1])
    return f"<robot name='arm'>{bodies}{''.join(joints)}</robot>"


def joint(name: str, parent: str, child: str, kind: str = "revolute", inside: str = "") -> str:
    limit = "" if "<limit" in inside or kind == "fixed" else '<limit lower="-3" upper="3" velocity="2"/>'
    return f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>{inside}{limit}</joint>'


PLANAR = urdf_of(
    joint("shoulder", "a", "b", inside='<axis xyz="0 0 1"/>'),
    joint("elbow", "b", "c", inside='<origin xyz="0.5 0 0"/><axis xyz="0 0 1"/>'),
    joint("wrist", "c", "d", inside='<origin xyz="0.4 0 0"/><axis xyz="0 0 1"/>'),
    joint("tool", "d", "e", "fixed", '<origin xyz="0.1 0 0"/>'),
)
GANTRY = urdf_of(
    joint("x", "a", "b", "prismatic", '<axis xyz="2 0 0"/><limit lower="0" upper="1" velocity="0.5"/>'),
    joint("y", "b", "c", "prismatic", '<axis xyz="0 1 0"/><limit lower="0" upper="1" velocity="0.5"/>'),
    joint("turn", "c", "d", "continuous", '<axis xyz="0 0 1"/>'),
)
angles = st.floats(-2.9, 2.9)


@pytest.fixture(scope="module")
def planar() -> Kinematics:
    return Kinematics.from_urdf(PLANAR, "e")


def planar_pose(a: float, b: float, c: float) -> tuple[float, float, float]:
    x = 0.5 * math.cos(a) + 0.4 * math.cos(a + b) + 0.1 * math.cos(a + b + c)
    y = 0.5 * math.sin(a) + 0.4 * math.sin(a + b) + 0.1 * math.sin(a + b + c)
    return x, y, a + b + c


@settings(deadline=None)
@given(angles, angles, angles)
def test_forward_agrees_with_trigonometry(a, b, c):
    pose = Kinematics.from_urdf(PLANAR, "e").forward((a, b, c))
    x, y, heading = planar_pose(a, b, c)
    assert pose[:3, 3] == pytest.approx((x, y, 0.0), abs=1e-12)
    assert pose[:2, 0] == pytest.approx((math.cos(heading), math.sin(heading)), abs=1e-12)


def test_the_chain_names_its_joints_and_limits(planar):
    assert planar.joint_names == ("shoulder", "elbow", "wrist")
    assert planar.num_joints == 3
    assert planar.joint_lower_rad.tolist() == [-3, -3, -3]
    assert planar.joint_max_speed_rad_s.tolist() == [2, 2, 2]


def test_a_copy_goes_on_by_itself_also_after_the_original_was_used(planar):
    narrow = planar.with_limits((-1, -1, -1), (1, 1, 1))
    here = narrow.forward([0.3, -0.4, 0.5])
    other = copy.deepcopy(narrow)
    assert other.joint_names == planar.joint_names
    np.testing.assert_array_equal(other.forward([0.3, -0.4, 0.5]), here)
    np.testing.assert_array_equal(other.joint_upper_rad, (1, 1, 1))


def test_an_inner_link_may_be_the_tip():
    assert Kinematics.from_urdf(PLANAR, "c").forward((0.0, 0.0))[:3, 3].tolist() == [0.5, 0.0, 0.0]


def test_sliding_joints_slide_along_their_unit_axis():
    gantry = Kinematics.from_urdf(GANTRY, "d")
    assert gantry.forward((0.3, 0.2, 0.0))[:3, 3].tolist() == [0.3, 0.2, 0.0]
    assert gantry.jacobian((0.3, 0.2, 0.0))[:, 0].tolist() == [1, 0, 0, 0, 0, 0]
    assert np.isinf(gantry.joint_upper_rad[2])


def test_a_gantry_is_solved_too():
    gantry = Kinematics.from_urdf(GANTRY, "d")
    target = gantry.forward((0.7, 0.1, 2.0))
    result = gantry.inverse(target, (0.0, 0.0, 0.0))
    assert result.is_reached
    assert result.joint_pos_rad == pytest.approx((0.7, 0.1, 2.0), abs=1e-3)


@pytest.mark.parametrize(
    ("rpy", "column"), [("0 0 1.5707963", (0, 1, 0)), ("1.5707963 0 0", (1, 0, 0)), ("0 1.5707963 0", (0, 0, -1))]
)
def test_origins_turn_by_fixed_axis_roll_pitch_yaw(rpy, column):
    urdf = urdf_of(joint("j", "a", "b", inside=f'<origin rpy="{rpy}"/><axis xyz="0 0 1"/>'))
    assert Kinematics.from_urdf(urdf, "b").forward((0.0,))[:3, 0] == pytest.approx(column, abs=1e-6)


def test_roll_comes_before_yaw():
    urdf = urdf_of(joint("j", "a", "b", inside='<origin rpy="1.5707963 0 1.5707963"/><axis xyz="0 0 1"/>'))
    assert Kinematics.from_urdf(urdf, "b").forward((0.0,))[:3, 2] == pytest.approx((1, 0, 0), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(angles, angles, angles)
def test_the_jacobian_is_the_derivative(a, b, c):
    arm = Kinematics.from_urdf(PLANAR, "e")
    joints = np.array((a, b, c))
    for index, nudge in enumerate(1e-6 * np.eye(3)):
        change = (arm.forward(joints + nudge) - arm.forward(joints - nudge)) / 2e-6
        assert arm.jacobian(joints)[:3, index] == pytest.approx(change[:3, 3], abs=1e-8)
        assert arm.jacobian(joints)[5, index] == pytest.approx(1.0)


def test_a_target_where_the_arm_already_is_changes_nothing(planar):
    joints = (0.3, -0.8, 0.5)
    result = planar.inverse(planar.forward(joints), joints, rest_joint_pos_rad=(0, 0, 0))
    assert result.joint_pos_rad.tolist() == list(joints)


def test_half_a_turn_away_is_no_dead_point():
    gantry = Kinematics.from_urdf(GANTRY, "d")
    result = gantry.inverse(gantry.forward((0.5, 0.5, math.pi)), (0.5, 0.5, 0.0))
    assert result.is_reached


def test_a_target_beyond_the_arm_is_reported_not_approached_in_silence(planar):
    target = np.eye(4)
    target[0, 3] = 1.5
    result = planar.inverse(target, (0.2, 0.2, 0.2))
    assert not result.is_reached
    assert result.position_error_m == pytest.approx(0.5, abs=0.05)
    assert "(1.500, 0.000, 0.000) m is out of reach" in result.reason


def test_a_target_behind_a_joint_limit_names_the_joint():
    slider = urdf_of(joint("x", "a", "b", "prismatic", '<axis xyz="1 0 0"/><limit lower="0" upper="1" velocity="1"/>'))
    target = np.eye(4)
    target[0, 3] = 1.2
    result = Kinematics.from_urdf(slider, "b").inverse(target, (0.5,))
    assert result.joint_pos_rad.tolist() == [1.0]
    assert "200.0 mm" in result.reason
    assert "with x at the limit" in result.reason


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=3, max_size=3), st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_solutions_are_always_inside_the_joint_limits(xyz, start):
    arm = Kinematics.from_urdf(PLANAR, "e").with_limits((-1, -1, -1), (1, 1, 1))
    target = np.eye(4)
    target[:3, 3] = xyz
    assert np.abs(arm.inverse(target, start).joint_pos_rad).max() <= 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_target_that_is_not_finite_is_answered_with_a_reason(planar, bad):
    result = planar.inverse(np.full((4, 4), bad), (0, 0, 0))
    assert not result.is_reached
    assert "not finite" in result.reason
    assert result.joint_pos_rad.tolist() == [0, 0, 0]


def test_vectors_and_poses_of_the_wrong_size_are_refused(planar):
    with pytest.raises(ConfigError, match=r"shape \(2,\), expected \(3,\)"):
        planar.forward((0, 0))
    with pytest.raises(ConfigError, match=r"expected \(4, 4\)"):
        planar.inverse(np.eye(3), (0, 0, 0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<robot", "not well-formed"),
        ("<model/>", "expected <robot>"),
        (PLANAR.replace('"e"', '"z"'), "no link 'e'; its links are a, b, c, d, z"),
        (urdf_of(*[joint("f", "a", "b", "fixed")]).replace('"b"', '"e"'), "nothing moves"),
        (PLANAR.replace("revolute", "floating"), "'floating', expected one of revolute"),
        (PLANAR.replace('<axis xyz="0 0 1"/>', '<axis xyz="0 0 0"/>', 1), "axis is zero"),
        (PLANAR.replace('xyz="0 0 1"', 'xyz="0 0"', 1), "expected 3 finite numbers"),
        (PLANAR.replace('xyz="0.5 0 0"', 'xyz="a b c"'), "expected 3 numbers"),
        (PLANAR.replace('xyz="0.5 0 0"', 'xyz="nan 0 0"'), "expected 3 finite numbers"),
        (PLANAR.replace(' velocity="2"', "", 1), "lacks <limit velocity"),
        (PLANAR.replace('lower="-3"', 'lower="4"', 1), "exceed the upper"),
        (PLANAR.replace("</joint>", '<mimic joint="x"/></joint>', 1), "is 'mimic'"),
    ],
)
def test_a_bad_urdf_is_refused_with_what_is_wrong(text, message):
    with pytest.raises(ConfigError, match=message):
        Kinematics.from_urdf(text, "e")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.urdf cannot be read"):
        Kinematics.from_urdf(tmp_path / "absent.urdf", "e")


def test_a_file_is_read_as_text_is(tmp_path):
    (tmp_path / "arm.urdf").write_text(PLANAR)
    assert Kinematics.from_urdf(str(tmp_path / "arm.urdf"), "e").num_joints == 3


def test_other_joint_names_than_expected_are_refused():
    with pytest.raises(ConfigError, match="expected"):
        Kinematics.from_urdf(PLANAR, "e", joint_names=("one", "two", "three"))


@settings(deadline=None)
@given(st.tuples(*[st.floats(-1, 1)] * 3), st.floats(-3.14, 3.14), st.floats(0, 0.08))
def test_state_and_pose_are_inverse(xyz, yaw, width):
    state = np.array((*xyz, yaw, width), np.float32)
    assert state_from_pose(pose_from_state(state), width) == pytest.approx(state, abs=1e-6)


def test_the_tool_points_down_and_turns_about_the_vertical():
    pose = tool_pose((0.5, 0.1, 0.2), math.pi / 2)
    assert pose[:3, 2].tolist() == [0, 0, -1]
    assert pose[:3, 0] == pytest.approx((0, 1, 0))
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1.0)
