"""The process that owns the bus: it outlives its policy. Real processes, a pseudo-terminal, real time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.drivers.arm.policies import Stage

from roboalign.drivers import load_robot
from roboalign.drivers.arm.owner import ProcessLink
from roboalign.drivers.arm.states import State
from roboalign.sdk.errors import RobotError

_LOADED_S = 0.3  # what a loaded machine may add to a time; benchmarks/arm_safety.py measures without it


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One virtual arm for all tests here; each leaves it parked and the port free."""
    stage = Stage(tmp_path_factory.mktemp("stage"))
    with stage.bus:
        yield stage


def test_an_arm_whose_policy_is_killed_holds_parks_and_is_let_go(stage: Stage) -> None:
    death = stage.kill(0.6)
    assert death.held_s <= 0.1 + _LOADED_S
    assert 0 < death.parked_s <= 3.0 + _LOADED_S
    assert death.fell_m <= 0.02
    assert death.let_go_s >= death.parked_s + 0.8


@pytest.mark.slow
@pytest.mark.parametrize("has_physics", [False, True])
def test_a_hundred_policies_are_killed(tmp_path: Path, has_physics: bool) -> None:
    stage = Stage(tmp_path, has_physics=has_physics)
    dice = np.random.default_rng(7)
    with stage.bus:
        for _ in range(50):
            death = stage.kill(float(dice.uniform(0.05, 2.0)))
            assert death.held_s <= 0.1 + _LOADED_S
            assert 0 < death.parked_s <= 3.0 + _LOADED_S
            assert death.fell_m <= 0.02


@pytest.mark.slow
def test_interrupting_twice_while_it_parks_lets_it_park(stage: Stage) -> None:
    policy = stage.start()
    os.kill(policy.pid, signal.SIGINT)
    time.sleep(0.6)
    os.kill(policy.pid, signal.SIGINT)
    policy.wait(10)
    assert policy.stdout is not None
    policy.stdout.close()
    deadline_s = time.monotonic() + 10
    while any((state := stage.bus.control.state())["has_torque"]):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    park = load_robot(stage.path).spec.park_joint_pos_rad
    assert np.abs(np.array(state["position_rad"][:-1]) - park).max() < 0.06


def test_an_arm_in_a_process_of_its_own_moves_stops_and_frees_the_port(stage: Stage) -> None:
    robot = load_robot(stage.path)
    robot.connect()
    robot.go_home()
    before = robot.observe(with_images=False)
    for _ in range(3):
        robot.act(np.array((0, 0, -0.005, 0, 1), np.float32))
        time.sleep(0.1)
    time.sleep(0.1)
    after = robot.observe(with_images=False)
    assert -0.02 < float(after.state[2] - before.state[2]) < -0.01
    with pytest.raises(RobotError, match=r"arm"):
        load_robot(stage.path).connect()
    robot.estop()
    with pytest.raises(RobotError, match="was stopped"):
        robot.hold()
    robot.connect(rearm=True)
    robot.disconnect()
    assert not any(stage.bus.control.state()["has_torque"])
    again = load_robot(stage.path)
    again.connect()
    again.disconnect()


def test_the_last_word_of_the_owner_reaches_the_policy(stage: Stage) -> None:
    """What the owner said when it ended was thrown away: `disconnect` returned as if every servo had let go."""
    robot = load_robot(stage.path)
    robot.connect()
    stage.bus.control.fault("dead", id=3)
    try:
        with pytest.raises(RobotError, match=r"elbow_flex \(id 3\) did not let go: .*; cut the power"):
            robot.disconnect()
    finally:
        stage.bus.control.fault("revive", id=3)


def test_an_owner_that_dies_is_told_and_can_be_started_again(stage: Stage) -> None:
    """`disconnect` returned as if the arm had been let go, while every servo held its last goal."""
    robot = load_robot(stage.path)
    robot.connect()
    link = robot._link
    assert isinstance(link, ProcessLink)
    assert link.pid is not None
    os.kill(link.pid, signal.SIGKILL)
    time.sleep(0.1)
    with pytest.raises(RobotError, match=r"owner has ended without a word .* torque on"):
        robot.hold()
    with pytest.raises(RobotError, match=r"so101 is closed, but it is not known .* torque on; cut the power, or"):
        robot.disconnect()
    assert all(stage.bus.control.state()["has_torque"])
    robot.disconnect()
    robot.connect()
    assert robot.state().state is State.ACTIVE
    robot.disconnect()
    assert not any(stage.bus.control.state()["has_torque"])


def test_an_owner_that_was_asked_to_end_leaves_its_word(stage: Stage) -> None:
    """SIGTERM parks and lets go, so nothing is unsure, whenever the policy asks."""
    robot = load_robot(stage.path)
    robot.connect()
    link = robot._link
    assert isinstance(link, ProcessLink)
    assert link.pid is not None
    os.kill(link.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + 10
    while any(stage.bus.control.state()["has_torque"]):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    robot.disconnect()
