"""LeRobot's robots as ours and ours as theirs, against a device that follows LeRobot's documented API."""

import math

import numpy as np
import pytest

from roboalign.drivers import check_robot
from roboalign.drivers import lerobot as adapter
from roboalign.drivers.following import ToolFollower
from roboalign.drivers.lerobot import GripperScale, LeRobotDevice, LeRobotRobot, adapt_lerobot, make_lerobot_device
from roboalign.drivers.lerobot_arm import LeRobotArm
from roboalign.sdk.errors import BackendError, ConfigError, DataError, RobotError
from roboalign.sdk.robot import Robot
from roboalign.sdk.sim.so101 import SO101, SO101_ARM_JOINTS, so101_gripper_rad
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES

KEYS = (*(f"{name}.pos" for name in SO101_ARM_JOINTS), "gripper.pos")
HOME_DEG = [math.degrees(value) for value in SO101.home_joint_pos_rad]


class SoFollower:
    """LeRobot's `so101_follower` as its documentation has it: degrees, gripper in percent, joints that obey at once."""

    name = "so101_follower"

    def __init__(self, max_relative_target=None):
        self.max_relative_target = max_relative_target
        self.values = dict(zip(KEYS, [*HOME_DEG, 30.0], strict=True))
        self.is_connected = False
        self.is_calibrated = True
        self.calls = []
        self.fails = None
        self.pictures = 0

    @property
    def observation_features(self):
        return {**dict.fromkeys(KEYS, float), "front": (48, 64, 3)}

    @property
    def action_features(self):
        return dict.fromkeys(KEYS, float)

    def connect(self, calibrate=True):
        self.calls.append(("connect", calibrate))
        self.is_connected = True

    def calibrate(self):
        raise AssertionError("nobody asked for a calibration")

    def configure(self):
        self.calls.append(("configure",))

    def get_observation(self):
        if self.fails:
            raise self.fails
        self.pictures = (self.pictures + 1) % 200
        return {**self.values, "front": np.full((48, 64, 3), self.pictures, np.uint8)}

    def send_action(self, action):
        if self.fails:
            raise self.fails
        assert set(action) == set(KEYS)
        if self.max_relative_target is not None:
            reach = self.max_relative_target
            action = {k: min(max(v, self.values[k] - reach), self.values[k] + reach) for k, v in action.items()}
        self.values.update(action)
        self.calls.append(("send", dict(action)))
        return action

    def disconnect(self):
        self.calls.append(("disconnect",))
        self.is_connected = False


@pytest.fixture
def device():
    return SoFollower()


@pytest.fixture
def robot(device):
    return adapt_lerobot(device)


def action(dx=0.0, dy=0.0, dz=0.0, dyaw=0.0, grip=1.0):
    return np.array((dx, dy, dz, dyaw, grip), np.float32)


def test_the_device_follows_the_documented_names(device):
    assert isinstance(device, LeRobotDevice)


def test_a_lerobot_device_is_a_robot_and_keeps_its_promises(device):
    clock = [0.0]

    def sleep(seconds):
        clock[0] += seconds

    robot = adapter.LeRobotRobot(
        device,
        adapt_lerobot(device).spec,
        SO101.kinematics(),
        gripper=adapt_lerobot(device)._gripper,
        clock=lambda: clock[0],
        sleep=sleep,
    )
    assert isinstance(robot, Robot)
    report = check_robot(robot, sleep=sleep)
    report.raise_if_failed()
    assert len(report.checks) >= 15


def test_making_one_opens_nothing(robot, device):
    assert device.calls == []
    assert robot.spec.camera_names == ("front",)


def test_connecting_never_calibrates(robot, device):
    robot.connect()
    assert device.calls[0] == ("connect", False)
    assert not [call for call in device.calls if call[0] == "send"], "connecting does not move"


def test_an_uncalibrated_device_is_refused_and_closed(robot, device):
    device.is_calibrated = False
    with pytest.raises(RobotError, match=r"so101_follower is not calibrated; .*lerobot-calibrate"):
        robot.connect()
    assert not device.is_connected


def test_degrees_become_radians_and_the_tool(robot):
    robot.connect()
    seen = robot.observe("go")
    assert np.allclose(seen.joint_pos_rad, SO101.home_joint_pos_rad, atol=1e-6)
    pose = SO101.kinematics().forward(SO101.home_joint_pos_rad)
    assert np.allclose(seen.state[:3], pose[:3, 3], atol=1e-6)
    assert seen.images["front"].shape == (96, 96, 3)


def test_a_closed_gripper_is_zero_percent(robot, device):
    robot.connect()
    robot.act(action(grip=0.0))
    closed = device.values["gripper.pos"]
    robot.act(action(grip=1.0))
    opened = device.values["gripper.pos"]
    assert closed == pytest.approx(0.0, abs=1.0)
    wanted_rad = so101_gripper_rad(robot.spec.gripper_max_width_m)
    assert opened == pytest.approx(100 * (wanted_rad + 0.174533) / (1.74533 + 0.174533))
    assert robot.observe().state[4] == pytest.approx(robot.spec.gripper_max_width_m, abs=1e-4)


def test_a_device_that_clips_is_told_of():
    device = SoFollower(max_relative_target=1.0)
    robot = adapt_lerobot(device)
    robot.connect()
    device.values = dict(zip(KEYS, [*HOME_DEG, 0.0], strict=True))
    applied = robot.act(action(dz=0.02, grip=1.0))
    assert "gripper.pos: the device sent another target" in applied.reasons


@pytest.mark.parametrize("error", [ConnectionError("no status packet"), RuntimeError("Overload error!")])
def test_the_devices_exceptions_become_robot_errors(robot, device, error):
    robot.connect()
    device.fails = error
    with pytest.raises(RobotError, match=f"so101_follower: get_observation failed: {type(error).__name__}: {error}"):
        robot.observe()


def test_a_value_that_is_not_finite_is_refused_when_read(robot, device):
    robot.connect()
    device.values["elbow_flex.pos"] = float("nan")
    with pytest.raises(DataError, match="gave joints"):
        robot.observe()


def test_after_a_park_that_failed_halfway_the_arm_stays_there(device):
    """It went back to where it had stood before the park, in one step of the joints."""
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            device.fails = ConnectionError("unplugged")

    robot = LeRobotRobot(device, adapt_lerobot(device).spec, SO101.kinematics(), sleep=sleep)
    robot.connect()
    before = dict(device.values)
    with pytest.raises(RobotError, match="unplugged"):
        robot.park()
    device.fails = None
    where = dict(device.values)
    assert max(abs(where[key] - before[key]) for key in KEYS[:-1]) > 1.0
    robot.hold()
    assert device.calls[-1][1] == pytest.approx(where, abs=0.01)


def test_an_emergency_stop_commands_the_measured_position_and_latches(robot, device):
    robot.connect()
    robot.act(action(dz=0.01))
    device.values["elbow_flex.pos"] += 3.0
    where = dict(device.values)
    robot.estop()
    assert device.calls[-1][0] == "send"
    sent = device.calls[-1][1]
    assert all(sent[key] == pytest.approx(where[key], abs=0.01) for key in KEYS[:-1])
    with pytest.raises(RobotError, match="was stopped"):
        robot.act(action())


def test_an_emergency_stop_that_is_not_sent_is_no_success(robot, device):
    robot.connect()
    device.fails = ConnectionError("gone")
    with pytest.raises(RobotError, match="gone"):
        robot.estop()
    with pytest.raises(RobotError, match="was stopped"):
        robot.hold()


def test_other_joints_are_refused_by_name(device):
    with pytest.raises(ConfigError, match=r"does not take panda_joint1\.pos, .* it takes shoulder_pan\.pos"):
        adapt_lerobot(device, "panda")


def test_a_linear_gripper_goes_both_ways():
    scale = GripperScale.linear(0.08)
    assert scale.width_m(25.0) == pytest.approx(0.02)
    assert scale.percent(0.02) == pytest.approx(25.0)


def test_without_lerobot_the_message_says_what_it_needs(monkeypatch):
    def refuse(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(adapter, "import_module", refuse)
    with pytest.raises(BackendError, match=r"on Python 3\.12: pip install lerobot"):
        make_lerobot_device("so101_follower")


class MemorySo101:
    """The SO-101 of the tests in memory: our `Robot`, whose joints obey at once."""

    def __init__(self):
        self.inner = adapt_lerobot(SoFollower())

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.fixture
def tool_arm():
    arm = LeRobotArm(MemorySo101())
    arm.connect()
    return arm


@pytest.fixture
def joint_arm():
    arm = LeRobotArm(MemorySo101(), actions="joints", kinematics=SO101.kinematics())
    arm.connect()
    return arm


def test_ours_has_every_name_that_lerobot_asks_for():
    arm = LeRobotArm(MemorySo101())
    names = "observation_features action_features is_connected is_calibrated connect calibrate configure "
    names += "get_observation send_action disconnect name robot_type id cameras"
    assert not [name for name in names.split() if not hasattr(arm, name)]
    assert isinstance(arm, LeRobotDevice)


def test_features_can_be_read_before_connecting():
    arm = LeRobotArm(MemorySo101())
    assert arm.action_features == dict.fromkeys(ACTION_NAMES, float)
    assert arm.observation_features == {**dict.fromkeys(STATE_NAMES, float), "front": (96, 96, 3)}
    assert not arm.is_connected


def test_observations_have_the_promised_keys_types_and_shapes(tool_arm):
    seen = tool_arm.get_observation()
    features = tool_arm.observation_features
    assert set(seen) == set(features)
    for key, kind in features.items():
        assert seen[key].shape == kind if isinstance(kind, tuple) else type(seen[key]) is float


def test_what_was_really_sent_is_returned(tool_arm):
    asked = dict(zip(ACTION_NAMES, (0.0, 0.0, 9.0, 0.0, 1.0), strict=True))
    sent = tool_arm.send_action(asked)
    assert set(sent) == set(ACTION_NAMES)
    assert 0 < sent["dz_m"] <= tool_arm.robot.spec.max_step_m + 1e-6


def test_a_missing_key_is_named(tool_arm):
    with pytest.raises(DataError, match="the action lacks dyaw_rad, gripper_open"):
        tool_arm.send_action({"dx_m": 0.0, "dy_m": 0.0, "dz_m": 0.0})


def test_joint_targets_are_reached_step_by_step(joint_arm):
    """A goal from the arm's own observations: another place of the tool, seen earlier, is found again."""
    start = joint_arm.get_observation()
    spec = joint_arm.robot.spec
    for _ in range(3):
        joint_arm.robot.act(action(dx=0.02, dy=0.02, grip=1.0))
    joint_arm.robot.act(action())  # joints that the speed limit kept behind arrive
    goal = {key: value for key, value in joint_arm.get_observation().items() if key.endswith(".pos")}
    for _ in range(3):
        joint_arm.robot.act(action(dx=-0.02, dy=-0.02, grip=1.0))
    joint_arm._follower.reset(joint_arm.robot.observe(with_images=False))
    for _ in range(12):
        sent = joint_arm.send_action(goal)
    reached = joint_arm.get_observation()
    moved = max(abs(goal[key] - start[key]) for key in KEYS[:-1])
    assert moved > 5.0, "the goal is somewhere else"
    assert max(abs(reached[key] - goal[key]) for key in KEYS[:-1]) < 1.0
    assert set(sent) == set(KEYS)
    assert spec.num_joints == 5


def test_joint_targets_that_are_not_finite_hold(joint_arm):
    before = joint_arm.get_observation()
    joint_arm.send_action(dict.fromkeys(KEYS, float("nan")))
    after = joint_arm.get_observation()
    assert all(before[key] == pytest.approx(after[key], abs=1e-4) for key in KEYS)


@pytest.mark.parametrize(
    ("more", "message"), [({"actions": "torque"}, "expected tool or joints"), ({"actions": "joints"}, "kinematics")]
)
def test_wrong_settings_are_named(more, message):
    with pytest.raises(ConfigError, match=message):
        LeRobotArm(MemorySo101(), **more)


def test_a_follower_goes_straight_and_by_the_largest_step(robot):
    robot.connect()
    follower = ToolFollower(robot.spec)
    follower.reset(robot.observe(with_images=False))
    goal = follower.target + np.array((0.03, -0.015, 0.0, 0.0, 0.0), np.float32)
    goal[0] += 0.03
    step = follower.towards(goal)
    assert step[0] == pytest.approx(robot.spec.max_step_m)
    assert step[1] / step[0] == pytest.approx(-0.25)


def test_a_follower_turns_the_short_way(robot):
    robot.connect()
    follower = ToolFollower(robot.spec)
    follower.reset(robot.observe(with_images=False))
    goal = follower.target.copy()
    goal[3] += 2 * math.pi - 0.1
    assert follower.towards(goal)[3] == pytest.approx(-0.1, abs=1e-4)


def test_a_follower_that_was_not_told_where_it_is_refuses(robot):
    with pytest.raises(RobotError, match="call reset with an observation first"):
        ToolFollower(robot.spec).towards(np.zeros(5))
