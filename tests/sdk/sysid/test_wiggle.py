"""The wiggle: inside every limit, refused before it moves, and kept when it ends early."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from roboalign.sdk.errors import ConfigError, RobotError, RobotTimeout
from roboalign.sdk.sim.robot import SimRobot
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sysid import SysidConfig, WiggleConfig, identify, plan_for
from roboalign.sdk.sysid.wiggle import check_wiggle, find_centre, plan_wiggle
from roboalign.sdk.types import FloatArray


@pytest.mark.parametrize("name", ["so101", "panda"])
def test_a_wiggle_stays_inside_every_limit_and_above_the_table(name: str) -> None:
    model, config = find_robot(name), WiggleConfig(duration_s=20.0)
    spec, kinematics = model.spec(96), model.kinematics()
    centre = find_centre(spec, kinematics, config)
    wiggle = plan_wiggle(spec, centre, config, rate_hz=100.0)
    check_wiggle(spec, kinematics, wiggle, config)
    targets, period_s = wiggle.targets_rad, 1 / 100.0
    assert (targets > np.array(spec.joint_lower_rad)).all()
    assert (targets < np.array(spec.joint_upper_rad)).all()
    speed = np.diff(targets, axis=0) / period_s
    assert (np.abs(speed) <= np.array(spec.joint_max_speed_rad_s)).all()
    assert np.abs(np.diff(speed, axis=0) / period_s).max() <= 1.01 * config.acceleration_rad_s2
    assert min(kinematics.forward(row)[2, 3] for row in targets[::5]) >= config.clearance_m
    assert (np.abs(speed).max(0) > 0.9 * np.array(spec.joint_max_speed_rad_s)).all()
    np.testing.assert_allclose(targets[0], targets[-1], atol=1e-6)
    assert (wiggle.widths_m >= 0).all()
    assert (wiggle.widths_m <= spec.gripper_max_width_m).all()


def test_a_wiggle_that_would_hit_a_limit_is_refused_before_anything_moves() -> None:
    robot = SimRobot(robot="so101", renderer="tiny")
    robot.connect()
    before = robot.world.joint_pos_rad()
    narrow = dataclasses.replace(robot.spec, joint_lower_rad=(-0.3,) * 5, joint_upper_rad=(0.3,) * 5)
    with pytest.raises(ConfigError, match=r"cannot turn by 0\.3 rad both ways inside its limits"):
        find_centre(narrow, robot.kinematics, WiggleConfig())
    config = WiggleConfig(duration_s=5.0)
    tight = plan_wiggle(robot.spec, (1.9, 0.0, 0.0, 0.0, 0.0), config, rate_hz=100.0)
    with pytest.raises(ConfigError, match=r"shoulder_pan would go from .* its limits are -1.92 to 1.92"):
        check_wiggle(robot.spec, robot.kinematics, tight, config)
    fine = plan_wiggle(robot.spec, find_centre(robot.spec, robot.kinematics, config), config, rate_hz=100.0)
    with pytest.raises(ConfigError, match=r"m above the table, at least 0\.3 are wanted; nothing has moved"):
        check_wiggle(robot.spec, robot.kinematics, fine, dataclasses.replace(config, clearance_m=0.3))
    with pytest.raises(ConfigError, match="no pose was found"):
        plan_for(robot, SysidConfig(wiggle=WiggleConfig(clearance_m=0.9)))
    np.testing.assert_array_equal(robot.world.joint_pos_rad(), before)
    robot.disconnect()


def test_a_robot_without_joint_targets_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes no joint targets"):
        plan_for(object(), SysidConfig())  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [{"duration_s": 1.0}, {"amplitude_rad": 2.0}, {"acceleration_rad_s2": 0.0}])
def test_impossible_settings_are_named(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"WiggleConfig.{next(iter(values))}"):
        WiggleConfig(**values)  # type: ignore[arg-type]


class _Failing(SimRobot):
    """Stops answering after some targets."""

    left = 700
    error: RobotError | KeyboardInterrupt = RobotTimeout("elbow_flex (id 3) does not answer")

    def act_joints(self, joint_target_rad: FloatArray, gripper_width_m: float) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error
        super().act_joints(joint_target_rad, gripper_width_m)


@pytest.mark.parametrize("error", [RobotTimeout("elbow_flex (id 3) does not answer"), KeyboardInterrupt()])
def test_what_was_recorded_stays_when_the_arm_stops_answering(error: RobotError | KeyboardInterrupt) -> None:
    robot = _Failing(robot="so101", renderer="tiny")
    robot.error = error
    robot.connect()
    kept = []
    with pytest.raises(type(error)):
        identify(robot, SysidConfig(wiggle=WiggleConfig(duration_s=8.0)), keep=kept.append)
    assert len(kept) == 1
    assert 200 < len(kept[0].sent_s) < 700
    assert kept[0].end.startswith(type(error).__name__)
    robot.disconnect()
