"""The Panda of pybullet_data: our kinematics within 1 mm and 0.5 degrees of PyBullet's converged solution."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from roboalign.sdk.control import Kinematics, tool_pose

pybullet = pytest.importorskip("pybullet")
pybullet_data = pytest.importorskip("pybullet_data")

URDF = Path(pybullet_data.getDataPath(), "franka_panda", "panda.urdf")
TIP = 11  # panda_grasptarget
HOME = np.array((0.0, 0.1, 0.0, -2.3, 0.0, 2.4, 0.785))


class Panda:
    """PyBullet's arm, placed joint by joint."""

    def __init__(self) -> None:
        self.client = pybullet.connect(pybullet.DIRECT)
        self.body = pybullet.loadURDF(str(URDF), useFixedBase=True, physicsClientId=self.client)

    def forward(self, joints: np.ndarray) -> np.ndarray:
        for index, angle in enumerate(joints):
            pybullet.resetJointState(self.body, index, angle, physicsClientId=self.client)
        link = pybullet.getLinkState(self.body, TIP, computeForwardKinematics=True, physicsClientId=self.client)
        pose = np.eye(4)
        pose[:3, :3] = np.reshape(pybullet.getMatrixFromQuaternion(link[5]), (3, 3))
        pose[:3, 3] = link[4]
        return pose

    def inverse(self, target: np.ndarray) -> np.ndarray:
        """PyBullet's solver, repeated from its own answer until it stands still."""
        quaternion = quaternion_of(target[:3, :3])
        self.forward(HOME)
        joints = HOME
        for _ in range(20):
            joints = np.array(
                pybullet.calculateInverseKinematics(
                    self.body,
                    TIP,
                    target[:3, 3].tolist(),
                    quaternion,
                    maxNumIterations=200,
                    residualThreshold=1e-7,
                    physicsClientId=self.client,
                )[:7]
            )
            self.forward(joints)
        return joints


def quaternion_of(rotation: np.ndarray) -> tuple[float, ...]:
    yaw = math.atan2(rotation[1, 0], rotation[0, 0])
    return pybullet.getQuaternionFromEuler((math.pi, 0.0, yaw))


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    return math.acos(min(1.0, max(-1.0, (np.trace(a[:3, :3] @ b[:3, :3].T) - 1) / 2)))


def targets(count: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        xyz = rng.uniform((0.30, -0.26, 0.005), (0.70, 0.26, 0.35))
        yield tool_pose(xyz, rng.uniform(-math.pi / 2, math.pi / 2))


@pytest.fixture(scope="module")
def kinematics() -> Kinematics:
    return Kinematics.from_urdf(URDF, "panda_grasptarget")


@pytest.fixture(scope="module")
def panda() -> Iterator[Panda]:
    arm = Panda()
    yield arm
    pybullet.disconnect(arm.client)


def test_forward_agrees_with_pybullet(kinematics, panda):
    rng = np.random.default_rng(0)
    for joints in rng.uniform(kinematics.joint_lower_rad, kinematics.joint_upper_rad, (100, 7)):
        assert np.abs(kinematics.forward(joints) - panda.forward(joints)).max() < 2e-6


def test_inverse_agrees_with_pybullets_converged_solution(kinematics, panda):
    for target in targets(50, seed=1):
        result = kinematics.inverse(target, HOME, rest_joint_pos_rad=HOME)
        assert result.is_reached
        ours = panda.forward(result.joint_pos_rad)
        theirs = panda.forward(panda.inverse(target))
        assert np.linalg.norm(ours[:3, 3] - theirs[:3, 3]) < 1e-3
        assert math.degrees(angle_between(ours, theirs)) < 0.5


def test_every_pose_of_the_workspace_is_reached_inside_the_limits(kinematics):
    for target in targets(300, seed=2):
        result = kinematics.inverse(target, HOME, rest_joint_pos_rad=HOME)
        assert result.is_reached, result.reason
        assert (result.joint_pos_rad >= kinematics.joint_lower_rad).all()
        assert (result.joint_pos_rad <= kinematics.joint_upper_rad).all()
        reached = kinematics.forward(result.joint_pos_rad)
        assert np.linalg.norm(reached[:3, 3] - target[:3, 3]) <= 1e-4
        assert angle_between(reached, target) <= 1e-3


def test_a_straight_line_makes_no_jump_in_the_joints(kinematics):
    joints = HOME
    for x in np.linspace(0.35, 0.68, 80):
        result = kinematics.inverse(tool_pose((x, -0.2, 0.05), 0.5), joints, rest_joint_pos_rad=HOME)
        assert result.is_reached
        if x > 0.35:
            assert np.abs(result.joint_pos_rad - joints).max() < 0.1
        joints = result.joint_pos_rad


def test_the_elbow_does_not_drift_over_a_long_episode(kinematics):
    """Without the pull to the rest posture the redundant joint wanders off with the path."""
    rng = np.random.default_rng(3)
    joints, xyz = HOME, np.array((0.5, 0.0, 0.2))
    for _ in range(400):
        xyz = np.clip(xyz + rng.uniform(-0.03, 0.03, 3), (0.35, -0.2, 0.02), (0.65, 0.2, 0.3))
        joints = kinematics.inverse(tool_pose(xyz, 0.0), joints, rest_joint_pos_rad=HOME).joint_pos_rad
    assert abs(joints[2]) < 0.6


def test_the_same_question_has_the_same_answer_to_the_last_bit(kinematics):
    first = [kinematics.inverse(target, HOME).joint_pos_rad.tobytes() for target in targets(20, seed=4)]
    again = [Kinematics.from_urdf(URDF).inverse(target, HOME).joint_pos_rad.tobytes() for target in targets(20, seed=4)]
    assert first == again


@pytest.mark.parametrize("xyz", [(1.0, 0.0, 0.1), (0.9, 0.5, 0.2), (0.0, 0.0, 0.1), (0.5, 0.0, -0.9)])
def test_a_pose_out_of_reach_is_not_reached(kinematics, xyz):
    result = kinematics.inverse(tool_pose(xyz, 0.0), HOME)
    assert not result.is_reached
    assert "out of reach" in result.reason


def test_a_step_is_solved_in_about_a_millisecond(kinematics):
    """Generous by ten, for a loaded machine; about 0.15 ms on an idle core."""
    joints = kinematics.inverse(tool_pose((0.5, 0.0, 0.2), 0.0), HOME).joint_pos_rad
    started_s = time.process_time()
    for _ in range(100):
        kinematics.inverse(tool_pose((0.53, 0.02, 0.18), 0.1), joints, rest_joint_pos_rad=HOME)
    assert (time.process_time() - started_s) / 100 < 2e-3
