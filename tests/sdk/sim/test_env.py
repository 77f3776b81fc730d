"""`SimEnv` keeps the promises of gymnasium and its own."""

import subprocess
import sys
import warnings
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from roboalign.drivers import check_robot
from roboalign.sdk.errors import ConfigError, LimitViolation, RobotError
from roboalign.sdk.robot import Robot
from roboalign.sdk.sim import SimRobot, register_envs
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.seeds import EVAL_OFFSET
from roboalign.sdk.sim.tasks import FAMILIES, find_task, scene_for, task_names
from roboalign.sdk.suites import gym_id

STAY = np.array([0, 0, 0, 0, 1], np.float32)


def test_importing_the_package_loads_no_simulator() -> None:
    code = "import sys, roboalign.sdk.sim; print([m for m in ('pybullet', 'gymnasium', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def check_registered(env_id: str) -> None:
    made = gymnasium.make(env_id, disable_env_checker=True, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not symmetric and normalized.*")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        check_env(made.unwrapped)
    made.close()


def registered_ids() -> list[str]:
    register_envs()
    return sorted(env_id for env_id in gymnasium.registry if env_id.startswith("roboalign/"))


@pytest.mark.parametrize("task", ["Place-Panda", "Push-SO101", "Mix-Panda"])
def test_registered_environments_pass_gymnasiums_own_check(task: str) -> None:
    register_envs()
    check_registered(f"roboalign/{task}-v0")


@pytest.mark.slow
@pytest.mark.parametrize("env_id", registered_ids())
def test_every_registered_environment_passes_gymnasiums_own_check(env_id: str) -> None:
    check_registered(env_id)


def test_every_task_is_registered_for_each_of_its_arms() -> None:
    pairs = [(task, robot) for task in task_names() for robot in find_task(task).robots]
    assert len(pairs) >= 50
    assert {gym_id(task, robot) for task, robot in (*pairs, ("mix", "panda"))} == set(registered_ids())


def test_environments_run_in_spawned_processes() -> None:
    register_envs()
    made = gymnasium.make_vec(
        "roboalign/Place-Panda-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
    )
    obs, info = made.reset(seed=[3, 4])
    alone = SimEnv("place", image_in_obs=True)
    for index, seed in enumerate((3, 4)):
        expected, one = alone.reset(seed=seed)
        np.testing.assert_array_equal(obs["image"][index], expected["image"])
        assert info["instruction"][index] == one["instruction"]
    alone.close()
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


def test_a_seed_that_nobody_gave_is_of_the_training_stream(env: SimEnv) -> None:
    """It was drawn from 0 to 2**31, where more than half of the seeds are for evaluation."""
    env.reset(seed=0)
    assert all(int(env.reset()[1]["seed"]) < EVAL_OFFSET for _ in range(6))


def test_a_reset_option_overrides_family_and_sentence(env: SimEnv) -> None:
    env.reset(seed=1, options={"task": "stack", "instruction": "do it"})
    assert env.truth().family == "stack"
    assert env.instruction == env.truth().instruction == "do it"


def test_a_scene_can_be_given(env: SimEnv) -> None:
    scene = scene_for(77, "place")
    env.reset(seed=0, options={"scene": scene})
    given = env.state_hash()
    env.reset(seed=77, options={"task": "place"})
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


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.array([np.nan, 0, 0, 0, 1]), "not finite in dx_m"),
        (np.zeros(4), r"float64\[4\], expected 5 numbers"),
        (np.zeros((1, 5)), r"float64\[1, 5\]"),
        (np.array(["a"] * 5), "expected 5 numbers"),
    ],
    ids=["nan", "short", "batch", "text"],
)
def test_an_action_that_makes_no_sense_is_refused_and_moves_nothing(env: SimEnv, action: object, message: str) -> None:
    env.reset(seed=0)
    before = env.state_hash()
    with pytest.raises(ConfigError, match=message):
        env.step(action)
    assert env.state_hash() == before


def test_a_step_after_the_end_is_refused() -> None:
    made = SimEnv("place", max_steps=1)
    made.reset(seed=0)
    assert made.step(STAY)[3]
    with pytest.raises(RobotError, match="has ended; call reset"):
        made.step(STAY)
    made.reset(seed=0)
    made.step(STAY)
    made.close()


def test_an_action_beyond_the_limits_is_reported(env: SimEnv) -> None:
    env.reset(seed=0)
    info = env.step(np.array([0.5, 0, 0, 0, 1], np.float32))[4]
    assert any("dx_m" in reason for reason in info["limited"])


def test_bad_settings_name_the_choices(env: SimEnv) -> None:
    with pytest.raises(ConfigError, match="did you mean place"):
        SimEnv("plase")
    with pytest.raises(ConfigError, match="train, language"):
        SimEnv(split="test")
    with pytest.raises(ConfigError, match="task 'stack' has no robot 'so101'; choose one of panda"):
        SimEnv("stack", robot="so101")
    with pytest.raises(ConfigError, match="task 'place' has no split 'swap'"):
        SimEnv("place", split="swap")
    with pytest.raises(ConfigError, match="rgb_array"):
        SimEnv(render_mode="human")
    with pytest.raises(ConfigError, match="reset option"):
        env.reset(options={"family": "place"})


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


def test_a_task_may_answer_in_numpys_types():
    """`roboalign eval` of the example's task used to end in a traceback: numpy's bool is no JSON."""
    env = SimEnv("place")
    env.reset(seed=0)
    env._episode.task = SimpleNamespace(is_success=lambda truth: np.bool_(True), progress=lambda truth: np.float32(1))
    assert env.is_success() is True
    assert type(env.progress()) is float
    env.close()
