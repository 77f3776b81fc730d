"""Fixtures move, stay and count as they should, everything can be seen, and the expert works on all of them."""

import dataclasses

import numpy as np
import pytest
from fixture_scenes import (
    AWAY,
    CLOSE,
    GOALS,
    LIGHT_OFF,
    LIGHT_ON,
    OPEN,
    PRESS,
    RIGHT,
    fixture_scene,
    go,
    hand,
    load,
    wait,
)

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.expert import expert_action, expert_stage
from roboalign.sdk.sim.fixtures import FIXTURE_SIZES
from roboalign.sdk.sim.language import TEMPLATES
from roboalign.sdk.sim.scene import FIXTURE_KINDS, FixtureSpec, Goal
from roboalign.sdk.sim.truth import STAGES


def name(goal: Goal) -> str:
    return f"{goal.kind}-{goal.goal}"


def press(env: SimEnv) -> None:
    x, y, top = hand(env, "button")
    go(env, (x, y, 0.08), (x, y, top), (x, y, 0.08), steps=12)


def solve(env: SimEnv, noise_m: float = 0.0, seed: int = 0) -> list[str]:
    rng, stages = np.random.default_rng(seed), []
    for _ in range(70):
        truth = env.truth()
        stages.append(truth.stage)
        noise = np.array([*(rng.normal(0, 1, 3) * noise_m), 0, 0], np.float32)
        env.advance(expert_action(truth) + noise)
        if env.is_success():
            break
    return stages


@pytest.mark.parametrize("goal", GOALS, ids=name)
def test_the_expert_reaches_every_goal_from_the_far_end(env: SimEnv, goal: Goal) -> None:
    for seed in range(2):
        load(env, goal, seed)
        assert not env.is_success()
        assert set(solve(env)) <= set(STAGES)
        assert env.is_success(), f"seed {seed}"


@pytest.mark.parametrize("goal", GOALS, ids=name)
def test_the_expert_recovers_from_noise(env: SimEnv, goal: Goal) -> None:
    load(env, goal, 3)
    solve(env, noise_m=0.008, seed=1)
    assert env.is_success()


@pytest.mark.parametrize("goal", [OPEN, RIGHT, PRESS], ids=name)
def test_after_success_the_expert_leaves_and_the_goal_stays_reached(env: SimEnv, goal: Goal) -> None:
    load(env, goal, 1)
    solve(env)
    for _ in range(8):
        env.advance(expert_action(env.truth()))
    assert env.truth().stage == "done"
    assert env.truth().state[2] > 0.1
    assert env.is_success()


def test_a_button_that_is_down_for_the_wrong_light_is_let_up_first(env: SimEnv) -> None:
    load(env, LIGHT_ON)
    truth = env.truth()
    down = tuple(dataclasses.replace(item, opening=float(item.name == "button")) for item in truth.fixtures)
    truth = dataclasses.replace(truth, fixtures=down)
    assert expert_stage(truth) == "retreat"
    assert expert_action(truth)[2] > 0.02


def test_the_expert_does_not_carry_along_what_the_fingers_still_hold(env: SimEnv) -> None:
    """After a placement the gripper closed at once for the drawer and took the block with it."""
    load(env, OPEN)
    state = env.truth().state.copy()
    for height_m, is_open in ((0.03, 1.0), (0.2, 0.0)):
        state[2] = height_m
        assert expert_action(dataclasses.replace(env.truth(), state=state))[4] == is_open


@pytest.mark.parametrize("opening", [0.0, 0.3, 0.7, 1.0])
def test_what_nobody_touches_stays_where_it_is(env: SimEnv, opening: float) -> None:
    load(env, OPEN, drawer=opening, door=opening)
    wait(env, 10)
    for kind in ("drawer", "door"):
        fixture = env.truth().fixture(kind)
        assert fixture.opening == pytest.approx(opening, abs=1e-3)
        assert fixture.speed_m_s < 1e-3


def test_a_pushed_drawer_stays_between_its_stops(env: SimEnv) -> None:
    load(env, CLOSE, drawer=0.2)
    x, y, top = hand(env, "drawer")
    go(env, (x + 0.04, y, 0.1), (x + 0.04, y, top - 0.012), (x - 0.03, y, top - 0.012))
    assert -0.002 <= hand(env, "drawer")[0] - x + 0.2 * FIXTURE_SIZES.drawer_travel_m < 0.004


def test_the_button_comes_up_again(env: SimEnv) -> None:
    load(env, PRESS)
    press(env)
    wait(env, 2)
    assert env.truth().fixture("button").opening < 0.05


def test_a_button_that_is_held_down_counts_once(env: SimEnv) -> None:
    load(env, PRESS)
    x, y, top = hand(env, "button")
    go(env, (x, y, 0.08), (x, y, top - 0.003), steps=12)
    wait(env, 10)
    assert env.truth().fixture("button").opening > 0.75
    assert env.truth().fixture("button").is_touched
    assert env.truth().fixture("button").num_presses == 1


def test_every_press_switches_the_light(env: SimEnv) -> None:
    load(env, LIGHT_ON)
    lit = []
    for _ in range(3):
        press(env)
        lit.append(env.truth().fixture("light").opening)
    assert lit == [1.0, 0.0, 1.0]
    assert env.truth().fixture("button").num_presses == 3


def test_a_light_that_is_on_can_be_seen(env: SimEnv) -> None:
    looks = []
    for goal in (LIGHT_ON, LIGHT_OFF):
        load(env, goal)
        image, mask = env.robot.world.render(), env.robot.world.render_mask()["light"]
        looks.append(np.percentile(image[mask].mean(axis=1), 75))
    assert looks[1] > looks[0] + 70


@pytest.mark.parametrize("seed", range(4))
def test_every_fixture_and_its_moving_part_is_in_the_picture(env: SimEnv, seed: int) -> None:
    pictures = {}
    for opening in (0.0, 1.0):
        load(env, OPEN, seed, drawer=opening, door=opening)
        masks = env.robot.world.render_mask()
        pictures[opening] = env.robot.world.render().astype(int)
        assert all(masks[kind].sum() > 90 for kind in FIXTURE_KINDS)
        assert not any(masks[kind][:, [0, -1]].any() for kind in FIXTURE_KINDS)
    changed = np.abs(pictures[0.0] - pictures[1.0]).sum(axis=2) > 60
    assert changed[:, :48].sum() > 80  # the drawer
    assert changed[:, 28:75].sum() > 80  # the door


def test_a_scene_with_fixtures_gives_the_same_bits_again(env: SimEnv) -> None:
    hashes = []
    for before in (OPEN, LIGHT_ON):
        load(env, before, 7)
        solve(env)
        load(env, RIGHT, 1)
        solve(env)
        hashes.append((env.state_hash(), env.observe().images["front"].tobytes()))
    assert hashes[0] == hashes[1]


def test_objects_and_fixtures_do_not_touch_at_the_start(env: SimEnv) -> None:
    for seed in range(6):
        load(env, OPEN, seed, drawer=1.0)
        before = [item.position_m for item in env.truth().objects]
        wait(env, 3)
        np.testing.assert_allclose([item.position_m for item in env.truth().objects], before, atol=1e-3)


def test_a_scene_without_fixtures_has_none(env: SimEnv) -> None:
    env.reset(seed=0, options={"task": "place"})
    assert env.truth().fixtures == ()
    with pytest.raises(ConfigError, match="it has: none"):
        env.truth().fixture("drawer")


def test_a_button_cannot_start_pressed(env: SimEnv) -> None:
    with pytest.raises(ConfigError, match="springs back"):
        load(env, OPEN, button=1.0)


def test_two_fixtures_of_one_kind_are_refused() -> None:
    scene = fixture_scene(OPEN)
    twin = FixtureSpec(kind="drawer", x_m=0.5, y_m=0.1)
    with pytest.raises(ConfigError, match="same name"):
        dataclasses.replace(scene, fixtures=(*scene.fixtures, twin))


@pytest.mark.parametrize("kind", ["open", "close", "slide", "press", "light"])
def test_heldout_sentences_are_new_but_made_of_words_that_training_uses(kind: str) -> None:
    train, heldout = TEMPLATES[kind]["train"], TEMPLATES[kind]["language"]
    assert len(train) >= 5
    assert len(heldout) == 2
    assert not set(train) & set(heldout)
    assert {word for text in heldout for word in text.split()} <= {word for text in train for word in text.split()}


def test_no_sentence_belongs_to_two_goals() -> None:
    said = [
        text.format(target=goal.target, goal=goal.goal)
        for goal in GOALS
        for texts in TEMPLATES[goal.kind].values()
        for text in texts
    ]
    assert len(set(said)) == len(said)


@pytest.mark.slow
@pytest.mark.parametrize(("noise_m", "least"), [(0.0, 48), (0.008, 43)])
@pytest.mark.parametrize("goal", GOALS, ids=name)
def test_the_expert_succeeds_on_50_seeds(env: SimEnv, goal: Goal, noise_m: float, least: int) -> None:
    solved = 0
    for seed in range(50):
        load(env, goal, seed, **{goal.target: AWAY[goal]})
        solve(env, noise_m, seed)
        solved += env.is_success()
    assert solved >= least
