from collections.abc import Callable

import numpy as np
import pytest

from roboalign.sdk.errors import ConfigError, LimitViolation, RobotError
from roboalign.sdk.evaluation.controls import RandomPolicy
from roboalign.sdk.evaluation.episodes import run_episode
from roboalign.sdk.libero.client import LiberoClient
from roboalign.sdk.libero.env import LiberoEnv, libero_robot_spec, open_env
from roboalign.sdk.sim.seeds import eval_seed

TASK = "libero_object/7_pick_up_the_milk_and_place_it_in_the_basket"
STAY = np.array([0, 0, 0, 0, 1], np.float32)


def test_nothing_is_started_before_the_first_reset() -> None:
    env = open_env("libero_object", "swap", 64)
    assert env.native_suite == "libero_object_swap"
    assert env.robot_spec.image_size_px == 64
    assert env.versions == {}
    env.close()


def test_the_same_seed_gives_the_same_episode(env: LiberoEnv) -> None:
    hashes = []
    for _ in range(2):
        env.reset(seed=5, options={"task": TASK})
        env.step(np.array([0.03, 0.0, -0.02, 0.1, 0.0], np.float32))
        hashes.append(env.state_hash())
    assert hashes[0] == hashes[1]


def test_the_tool_is_given_in_the_frame_of_the_base(env: LiberoEnv) -> None:
    env.reset(seed=5, options={"task": TASK})
    assert env.observe(with_image=False).state == pytest.approx([0.45, 0.0, 0.25, 0.0, 0.08], abs=1e-6)


def test_a_turn_to_the_left_is_a_positive_yaw(env: LiberoEnv) -> None:
    env.reset(seed=5, options={"task": TASK})
    env.step(np.array([0, 0, 0, 0.4, 1], np.float32))
    assert 0.1 < env.truth().state[3] < 0.4


def test_cameras_have_our_names_and_the_size_that_was_asked_for(env: LiberoEnv) -> None:
    env.reset(seed=5, options={"task": TASK})
    images = env.observe().images
    assert {name: image.shape for name, image in images.items()} == {"front": (24, 24, 3), "wrist": (24, 24, 3)}
    assert env.render(size_px=40).shape == (40, 40, 3)


def test_a_variant_is_told_the_sentence_of_its_file(make_client: Callable[..., LiberoClient]) -> None:
    with LiberoEnv("libero_object", split="language", make_client=make_client) as env:
        env.reset(seed=5, options={"task": "7"})
        assert env.instruction == "the sentence of the file"


def test_the_suite_itself_is_told_the_file_name(env: LiberoEnv) -> None:
    env.reset(seed=5, options={"task": TASK})
    assert env.instruction == "pick up the milk and place it in the basket"


def test_an_action_beyond_the_controller_is_clipped_and_counted(env: LiberoEnv) -> None:
    env.reset(seed=5, options={"task": TASK})
    info = env.step(np.array([0.2, 0, 0, 0, 1], np.float32))[4]
    assert info["limited"] == ("dx_m",)
    assert env.num_limited == 1


@pytest.mark.parametrize("action", [np.full(5, np.nan, np.float32), np.zeros(7, np.float32)])
def test_a_bad_action_is_refused_and_moves_nothing(env: LiberoEnv, action: np.ndarray) -> None:
    env.reset(seed=5, options={"task": TASK})
    before = env.state_hash()
    with pytest.raises(LimitViolation):
        env.step(action)
    assert env.state_hash() == before


def test_stepping_after_the_end_is_an_error(make_client: Callable[..., LiberoClient]) -> None:
    with LiberoEnv("libero_object", max_steps=2, make_client=make_client) as env:
        env.reset(seed=5, options={"task": TASK})
        assert [env.step(STAY)[3] for _ in range(2)] == [False, True]
        with pytest.raises(RobotError, match="over after 2 steps"):
            env.step(STAY)


@pytest.mark.parametrize(
    ("seed", "options", "message"),
    [
        (eval_seed(50), {"task": TASK}, "initial state 50"),
        (-1, {"task": TASK}, "expected 0 or more"),
        (0, {"family": "place"}, "'task'"),
        (0, {"task": "libero_object/pick_up_the_mlik"}, "nearest: .*milk"),
        (0, {"task": "sauce"}, "fits several"),
    ],
)
def test_a_bad_reset_says_what_is_wrong(env: LiberoEnv, seed: int, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        env.reset(seed=seed, options=options)


def test_a_first_reset_needs_a_task() -> None:
    with pytest.raises(ConfigError, match="at the first reset"):
        open_env("libero_object").reset(seed=0)


def test_bad_settings_are_refused() -> None:
    for settings in ({"cameras": ("rear",)}, {"image_size_px": 4}, {"max_steps": 0}):
        with pytest.raises(ConfigError):
            LiberoEnv("libero_object", **settings)  # type: ignore[arg-type] # one wrong value each


def test_the_expert_solves_the_made_up_world(env: LiberoEnv) -> None:
    for number in range(3):
        result = run_episode(env, env.expert_policy(), seed=eval_seed(number), task=TASK)
        assert result.success
        assert result.progress == 1.0
        assert result.rate_hz == 20.0


def test_progress_has_stages_and_only_success_is_one(env: LiberoEnv) -> None:
    env.reset(seed=3, options={"task": TASK})
    expert, seen = env.expert_policy(), []
    while not env.is_success():
        seen.append(env.progress())
        env.advance(expert.act(env.observe(with_image=False)).actions[0])
    assert set(seen) == {0.0, 0.25, 0.5, 0.75}
    assert (env.progress(), env.goals_done(), env.num_goals) == (1.0, 1, 1)


def test_chance_does_not_solve_it(env: LiberoEnv) -> None:
    result = run_episode(env, RandomPolicy(env.robot_spec), seed=eval_seed(0), task=TASK)
    assert not result.success
    assert result.steps == env.max_steps == 280


def test_a_closed_environment_opens_again(make_client: Callable[..., LiberoClient]) -> None:
    env = LiberoEnv("libero_object", make_client=make_client)
    for _ in range(2):
        env.reset(seed=1, options={"task": TASK})
        env.close()
        env.close()
    with pytest.raises(RobotError, match="call reset"):
        env.truth()


def test_the_spec_is_consistent() -> None:
    spec = libero_robot_spec()
    assert spec.num_joints == 7
    assert all(
        low < home < high
        for low, home, high in zip(spec.joint_lower_rad, spec.home_joint_pos_rad, spec.joint_upper_rad, strict=True)
    )
