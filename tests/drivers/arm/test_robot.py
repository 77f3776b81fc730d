"""The public check of robots, on serial arms whose wire is in memory."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from tests.drivers.arm.rig import make_rig, with_settings
from tests.drivers.arm.test_safety import place_home

from roboalign.drivers import check_robot
from roboalign.drivers.arm.serial_arm import SerialArm
from roboalign.sdk.errors import CameraTimeout, RobotError


@pytest.mark.parametrize("arm", ["so101", "koch"])
def test_a_serial_arm_passes_every_check_of_a_robot(tmp_path: Path, arm: str) -> None:
    rig = make_rig(tmp_path, arm)
    place_home(rig)
    with_settings(rig, rate_hz=25.0)
    check_robot(rig.robot).raise_if_failed()
    assert rig.torques() == [False] * 6


def test_an_arm_that_parked_because_of_silence_is_taken_up_by_connect(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    with_settings(rig, rate_hz=25.0)
    rig.robot.connect()
    rig.robot.hold()
    rig.link.wait(1.0)
    still = np.array((0, 0, 0, 0, 1), np.float32)
    with pytest.raises(RobotError, match=r"parking: no command for 0\.5 s\); call connect\(\)"):
        rig.robot.act(still)
    assert "parking: no command for 0.5 s" in " ".join(rig.robot.hold().reasons)
    rig.robot.connect()
    rig.robot.hold()
    assert rig.torques() == [True] * 6


def test_go_home_and_park_arrive_and_keep_torque(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    rig.robot.connect()
    rig.robot.go_home()
    at_home = rig.robot.observe(with_images=False).joint_pos_rad
    assert np.abs(at_home - rig.parts.spec.home_joint_pos_rad).max() < 0.02
    assert not rig.robot.act(np.array((0, 0, 0.002, 0, 1), np.float32)).reasons
    rig.robot.park()
    assert rig.torques() == [True] * 6


@pytest.mark.parametrize("error", [None, CameraTimeout("camera 'front': no picture within 5 s")])
def test_cameras_are_open_before_the_arm_has_torque(tmp_path: Path, error: Exception | None) -> None:
    """They may take seconds to open, which an arm that waits for commands does not wait."""
    rig, had_torque = make_rig(tmp_path), []

    class Cameras:
        age_s = 0.0

        def open(self) -> None:
            had_torque.append(any(rig.torques()))
            if error is not None:
                raise error

        def close(self) -> None:
            pass

    robot = SerialArm(rig.parts, cameras=Cameras(), link=lambda parts: rig.link)
    with nullcontext() if error is None else pytest.raises(CameraTimeout):
        robot.connect()
    assert had_torque == [False]
    assert any(rig.torques()) is (error is None)
    robot.disconnect()
