"""A three-joint robot for the limiter and the loop; its numbers are not representable in binary on purpose."""

import sys

import pytest

from roboalign.sdk.types import RobotSpec


@pytest.fixture(scope="session")
def spec() -> RobotSpec:
    return RobotSpec(
        name="tiny",
        joint_names=("a", "b", "c"),
        joint_lower_rad=(-2.1, -0.3, 0.1),
        joint_upper_rad=(2.1, 0.7, 3.3),
        joint_max_speed_rad_s=(1.1, 2.3, 0.7),
        home_joint_pos_rad=(0.0, 0.1, 1.0),
        park_joint_pos_rad=(0.5, 0.0, 2.0),
        gripper_max_width_m=0.08,
        workspace_lower_m=(0.3, -0.26, 0.005),
        workspace_upper_m=(0.7, 0.26, 0.35),
        max_step_m=0.04,
        max_step_rad=0.2,
        control_rate_hz=10.0,
        camera_names=("front",),
        image_size_px=16,
    )


@pytest.fixture
def often():
    """Threads take turns a thousand times as often as they do otherwise."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
