"""Arms are chosen by name, and each fits the table that it brings along."""

import numpy as np
import pytest

pytest.importorskip("pybullet")

from roboalign.drivers import check_robot
from roboalign.sdk.control import tool_pose
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.layout import GRASPABLE, View, object_height_m, object_width_m, y_limit_m
from roboalign.sdk.sim.robot import SimRobot
from roboalign.sdk.sim.robots import ROBOTS, RobotModel, find_robot
from roboalign.sdk.sim.tasks import scene_for

MODELS = pytest.mark.parametrize("model", ROBOTS.values(), ids=list(ROBOTS))


@pytest.mark.parametrize(("wrong", "near"), [("so100", "so101"), ("Panda", "panda"), ("pandas", "panda")])
def test_an_unknown_robot_is_refused_with_the_nearest_name(wrong: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {near}"):
        find_robot(wrong)


def test_a_model_stands_for_itself() -> None:
    assert find_robot(ROBOTS["so101"]) is ROBOTS["so101"]


@MODELS
def test_every_arm_keeps_the_promises_of_a_robot(model: RobotModel) -> None:
    check_robot(SimRobot(robot=model)).raise_if_failed()


@MODELS
def test_the_spec_names_the_joints_of_the_urdf(model: RobotModel) -> None:
    spec, kinematics = model.spec(64), model.kinematics()
    assert spec.name == model.name
    assert spec.joint_names == kinematics.joint_names == model.arm_joints
    np.testing.assert_allclose(spec.joint_lower_rad, kinematics.joint_lower_rad, atol=1e-3)
    np.testing.assert_allclose(spec.joint_upper_rad, kinematics.joint_upper_rad, atol=1e-3)


@MODELS
def test_the_tool_points_down_wherever_an_object_may_stand(model: RobotModel) -> None:
    """From the height of a grasp to that of travelling, at every yaw of a fresh block, and a centimetre beyond."""
    table, kinematics, home = model.table, model.kinematics(), model.home_joint_pos_rad
    for x in np.linspace(table.x_range_m[0] - 0.01, table.x_range_m[1], 4):
        for y in np.linspace(-1, 1, 5) * (y_limit_m("block", table) + 0.005):
            for z, yaw in ((table.expert.min_grasp_m, 0.3), (table.expert.hover_m, -0.3), (table.expert.hover_m, 0.0)):
                found = kinematics.inverse(tool_pose((x, y, z), yaw), home, rest_joint_pos_rad=home)
                assert found.is_reached, found.reason


@MODELS
def test_the_workspace_holds_all_that_the_expert_does(model: RobotModel) -> None:
    spec, table, sizes = model.spec(96), model.table, model.table.expert
    assert spec.workspace_lower_m[0] < table.x_range_m[0] < table.x_range_m[1] < spec.workspace_upper_m[0]
    assert table.push_line_m + sizes.push_overshoot_m < spec.workspace_upper_m[1]
    assert spec.workspace_lower_m[2] < sizes.push_height_m < sizes.done_m < spec.workspace_upper_m[2]
    assert sizes.step_m <= spec.max_step_m


@MODELS
def test_objects_fit_between_the_open_jaws_and_into_the_bowl(model: RobotModel) -> None:
    table, sizes = model.table, model.table.expert
    for shape in GRASPABLE:
        assert sizes.empty_width_m < object_width_m(shape, table) < sizes.open_width_m < model.gripper.max_width_m
        assert object_width_m(shape, table) < table.bowl_width_m - 2 * table.bowl_wall_m
        assert sizes.carry_bottom_m > object_height_m(shape, table)


@MODELS
def test_the_gripper_measures_the_width_that_it_is_sent_to(model: RobotModel) -> None:
    for width_m in np.linspace(0.01, model.gripper.max_width_m, 9):
        assert model.gripper.width_m(model.gripper.joint_targets(float(width_m))) == pytest.approx(width_m, abs=1e-9)


def test_a_scene_for_another_arm_is_refused() -> None:
    with pytest.raises(ConfigError, match="laid out for robot 'panda'"):
        SimRobot(robot="so101").load_scene(scene_for(0, "push"))


def test_a_view_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ConfigError, match="straight"):
        View(eye_m=(0.2, 0.0, 1.0), aim_m=(0.2, 0.0, 0.0), fov_deg=30.0)
    with pytest.raises(ConfigError, match="fov_deg is 0"):
        View(eye_m=(1.0, 0.0, 1.0), aim_m=(0.2, 0.0, 0.0), fov_deg=0)
