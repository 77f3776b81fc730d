"""`SimEnv` keeps the promises of gymnasium and its own."""

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from roboalign.drivers import check_robot
from roboalign.sdk.errors import ConfigError, LimitViolation, RobotError
from roboalign.sdk.robot import Robot
from roboalign.sdk.sim import SimRobot, register_envs
from roboalign.sdk.sim.env import SimEnv, scene_for
from roboalign.sdk.sim.tasks import FAMILIES

STAY = np.array([0, 0, 0, 0, 1], np.float32)


def test_importing_the_package_loads_no_simulator() -> None:
    code = "import sys, roboalign.sdk.sim; print([m for m in ('pybullet', 'gymnasium', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("family", ["Place", "Push", "Stack", "Mix"])
def test_registered_environments_pass_gymnasiums_own_check(family: str) -> None:
    register_envs()
    made = gymnasium.make(f"roboalign/{family}-Panda-v0", disable_env_checker=True, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not symmetric and normalized.*")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        check_env(made.unwrapped)
    made.close()


def test_step_returns_a_picture_only_when_asked() -> None:
    for image_in_obs in (False, True):
        made = SimEnv("push", image_in_obs=image_in_obs)
        obs, info = made.reset(seed=0)
        assert ("image" in obs) is image_in_obs
        obs, reward, terminated, truncated, info = made.step(STAY)
        assert made.observation_space.contains(obs)
        assert (reward, terminated, truncated, info["steps"]) == (0.0, False, False, 1)
        made.close()


def test_an_observation_is_rendered_on_demand(env: SimEnv) -> None:
    env.reset(seed=0)
    assert not env.observe(with_image=False).images
    assert env.observe(with_image=True).images["front"].shape == (96, 96, 3)
    assert env.observe().instruction == env.instruction


def test_episodes_are_cut_off() -> None:
    made = SimEnv("place", max_steps=3)
    made.reset(seed=0)
    assert [made.step(STAY)[3] for _ in range(3)] == [False, False, True]
    made.close()


def test_mixed_seeds_give_every_family() -> None:
    assert {scene_for(seed, "mix").family for seed in range(20)} == set(FAMILIES)


def test_a_reset_option_overrides_family_and_sentence(env: SimEnv) -> None:
    env.reset(seed=1, options={"family": "stack", "instruction": "do it"})
    assert env.truth().family == "stack"
    assert env.instruction == env.truth().instruction == "do it"


def test_a_scene_can_be_given(env: SimEnv) -> None:
    scene = scene_for(77, "place")
    env.reset(seed=0, options={"scene": scene})
    given = env.state_hash()
    env.reset(seed=77, options={"family": "place"})
    assert env.state_hash() == given


def test_every_action_goes_through_the_limiter(env: SimEnv) -> None:
    env.reset(seed=0)
    before = env.truth().state
    env.advance(np.array([0.5, 0, 0, 0, 1], np.float32))
    assert env.last_applied is not None
    assert env.last_applied.is_changed
    assert env.truth().state[0] - before[0] < 0.045
    env.advance(np.array([np.nan, 0, 0, 0, 1], np.float32))
    assert "not finite" in env.last_applied.reasons[0]
    with pytest.raises(LimitViolation):
        env.advance(np.zeros(4, np.float32))


def test_the_tool_starts_where_the_scene_says(env: SimEnv) -> None:
    for seed in range(5):
        env.reset(seed=seed)
        state = env.truth().state
        np.testing.assert_allclose(state[:3], env.scene.tool_start_m, atol=1e-4)
        assert state[4] == pytest.approx(0.08, abs=1e-3)


def test_bad_settings_name_the_choices(env: SimEnv) -> None:
    with pytest.raises(ConfigError, match="place, push, stack, mix"):
        SimEnv("throw")
    with pytest.raises(ConfigError, match="train, heldout"):
        SimEnv(split="test")
    with pytest.raises(ConfigError, match="rgb_array"):
        SimEnv(render_mode="human")
    with pytest.raises(ConfigError, match="reset option"):
        env.reset(options={"task": "place"})


def test_before_the_first_reset_the_error_says_so() -> None:
    with pytest.raises(RobotError, match="reset"):
        SimEnv().truth()


def test_the_simulated_robot_keeps_the_promises_of_the_protocol() -> None:
    robot = SimRobot()
    assert isinstance(robot, Robot)
    check_robot(robot, sleep=lambda _: None).raise_if_failed()


def test_an_emergency_stop_keeps_the_arm_where_it_is() -> None:
    robot = SimRobot()
    robot.connect()
    robot.act(np.array([0.03, 0, 0, 0, 1], np.float32))
    robot.estop()
    with pytest.raises(RobotError, match="rearm"):
        robot.act(STAY)
    stopped = robot.observe(with_images=False).state
    robot.connect(rearm=True)
    robot.hold()
    np.testing.assert_allclose(robot.observe(with_images=False).state[:3], stopped[:3], atol=2e-3)
    robot.disconnect()


def test_the_truth_follows_a_robot_that_is_moved_past_the_environment(env: SimEnv) -> None:
    """A control loop steps `env.robot` itself; the truth used to stay that of the last `env.step`."""
    env.reset(seed=0)
    before = env.truth().state.copy()
    for _ in range(3):
        env.robot.act(np.array([0, 0, -0.03, 0, 1], np.float32))
    assert env.truth().state[2] < before[2] - 0.03
