"""What only looks as if a drawer, a door, a button or a light had been dealt with does not count."""

from collections.abc import Iterator

import numpy as np
import pytest
from fixture_scenes import CLOSE, LEFT, LIGHT_OFF, LIGHT_ON, OPEN, PRESS, RIGHT, go, hand, load, wait

from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.goals import is_success, progress
from roboalign.sdk.sim.scene import Goal
from roboalign.sdk.sim.truth import FixtureTruth, SceneTruth

REST = {"drawer": 0.5, "door": 0.5, "button": 0.0, "light": 0.0}


def fixture(kind: str, opening: float, **changes: object) -> FixtureTruth:
    fields = {"position_m": np.zeros(3, np.float32), "speed_m_s": 0.0, "num_presses": 0, "is_touched": False}
    return FixtureTruth(**{"name": kind, "opening": opening, **fields, **changes})


def standing(goal: Goal, **fixtures: FixtureTruth) -> SceneTruth:
    """The truth of a scene; what is not given stands at rest between its ends."""
    return SceneTruth(
        family=goal.kind,
        objects=(),
        target=goal.target,
        goal=goal.goal,
        instruction="",
        state=np.array([0.5, 0, 0.2, 0, 0.08], np.float32),
        start_position_m=np.zeros(3, np.float32),
        stage="reach",
        fixtures=tuple(fixtures.get(kind, fixture(kind, share)) for kind, share in REST.items()),
    )


def near_misses() -> Iterator[tuple[str, SceneTruth]]:
    for share in (0.0, 0.1, 0.25, 0.5, 0.7, 0.79, 0.8):
        yield f"drawer open by {share}", standing(OPEN, drawer=fixture("drawer", share))
        yield f"drawer held open by {share}", standing(OPEN, drawer=fixture("drawer", share, is_touched=True))
        yield f"door {share} of the way right", standing(RIGHT, door=fixture("door", share))
        yield f"door {1 - share:.2f} of the way left", standing(LEFT, door=fixture("door", 1.0 - share + 0.001))
    for share in (0.1, 0.12, 0.3, 0.5, 0.8, 1.0):
        yield f"drawer not closed by {share}", standing(CLOSE, drawer=fixture("drawer", share))
    for speed in (0.021, 0.1, 0.5):
        yield f"drawer opening at {speed}", standing(OPEN, drawer=fixture("drawer", 0.9, speed_m_s=speed))
        yield f"drawer closing at {speed}", standing(CLOSE, drawer=fixture("drawer", 0.05, speed_m_s=speed))
        yield f"door moving left at {speed}", standing(LEFT, door=fixture("door", 0.1, speed_m_s=speed))
        yield f"door moving right at {speed}", standing(RIGHT, door=fixture("door", 0.9, speed_m_s=speed))
    for share in (0.0, 0.2, 0.5, 0.74, 1.0):
        touched = fixture("button", share, is_touched=True)
        yield f"button touched, {share} down, never counted", standing(PRESS, button=touched)
        yield f"button {share} down, light still off", standing(LIGHT_ON, button=touched)
    for presses in (2, 4):
        button = fixture("button", 0.0, num_presses=presses)
        yield f"switched {presses} times, off again", standing(LIGHT_ON, button=button)
        lit = fixture("light", 1.0)
        yield f"switched {presses} times, on again", standing(LIGHT_OFF, button=button, light=lit)
    yield "light switched on without a press of the button", standing(PRESS, light=fixture("light", 1.0))
    for goal, other in ((OPEN, "door"), (RIGHT, "drawer"), (PRESS, "drawer"), (LIGHT_ON, "door")):
        yield f"{other} moved instead of {goal.target}", standing(goal, **{other: fixture(other, 1.0)})
    for goal, other in ((CLOSE, "door"), (LEFT, "drawer")):
        yield f"{other} moved instead of {goal.target}", standing(goal, **{other: fixture(other, 0.0)})
    yield "lamp touched, not lit", standing(LIGHT_ON, light=fixture("light", 0.0, is_touched=True))


CASES = dict(near_misses())


def test_there_are_enough_near_misses() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("what", CASES)
def test_a_near_miss_does_not_count(what: str) -> None:
    assert not is_success(CASES[what])
    assert progress(CASES[what]) < 1.0


@pytest.mark.parametrize(
    "truth",
    [
        standing(OPEN, drawer=fixture("drawer", 0.85)),
        standing(CLOSE, drawer=fixture("drawer", 0.05)),
        standing(LEFT, door=fixture("door", 0.15)),
        standing(RIGHT, door=fixture("door", 0.85)),
        standing(PRESS, button=fixture("button", 0.0, num_presses=1)),
        standing(LIGHT_ON, light=fixture("light", 1.0)),
        standing(LIGHT_OFF),
    ],
    ids=lambda truth: f"{truth.family}-{truth.goal}",
)
def test_the_real_thing_counts(truth: SceneTruth) -> None:
    assert is_success(truth)
    assert progress(truth) == 1.0


@pytest.mark.parametrize(("goal", "share", "expected"), [(OPEN, 0.3, 0.3), (CLOSE, 0.3, 0.7), (LEFT, 0.5, 0.5)])
def test_progress_is_the_share_of_the_way(goal: Goal, share: float, expected: float) -> None:
    assert progress(standing(goal, **{goal.target: fixture(goal.target, share)})) == pytest.approx(expected)


def grasp_handle(env: SimEnv) -> None:
    x, y, top = hand(env, "drawer")
    go(env, (x, y, 0.12), (x, y, top - 0.012), is_open=True)
    wait(env, 4)


def push_handle(env: SimEnv, kind: str, axis: int, sign: float, way_m: float) -> None:
    """Comes down beside a handle and moves it, then leaves."""
    side = np.zeros(3)
    side[axis] = sign
    beside = hand(env, kind) - 0.042 * side
    up = np.array([0.0, 0.0, 0.05])
    low = beside - 0.24 * up
    end = low + (way_m + 0.042 - 0.022) * side
    go(env, beside + up, low, end, end + up, steps=15)
    wait(env, 1)


def opening(env: SimEnv, kind: str) -> float:
    return env.truth().fixture(kind).opening


def test_a_handle_that_is_grasped_but_not_pulled_does_not_count(env: SimEnv) -> None:
    load(env, OPEN, drawer=0.0)
    grasp_handle(env)
    assert env.truth().fixture("drawer").is_touched
    assert env.truth().state[4] > 0.02
    assert not env.is_success()


def test_a_drawer_pulled_half_open_does_not_count(env: SimEnv) -> None:
    load(env, OPEN, drawer=0.0)
    grasp_handle(env)
    x, y, top = hand(env, "drawer")
    go(env, (x + 0.045, y, top - 0.012))
    assert 0.3 < opening(env, "drawer") < 0.75
    assert not env.is_success()


def test_a_drawer_pushed_half_shut_does_not_count(env: SimEnv) -> None:
    load(env, CLOSE)
    push_handle(env, "drawer", 0, -1.0, 0.045)
    assert 0.2 < opening(env, "drawer") < 0.7
    assert not env.is_success()


def test_a_drawer_that_is_closed_instead_of_opened_does_not_count(env: SimEnv) -> None:
    load(env, OPEN, drawer=0.5)
    push_handle(env, "drawer", 0, -1.0, 0.05)
    assert opening(env, "drawer") < 0.1
    assert not env.is_success()


@pytest.mark.parametrize(("goal", "sign"), [(LEFT, -1.0), (RIGHT, 1.0)], ids=["left", "right"])
def test_a_door_that_is_pushed_to_the_middle_does_not_count(env: SimEnv, goal: Goal, sign: float) -> None:
    load(env, goal)
    push_handle(env, "door", 1, sign, 0.05)
    assert 0.3 < opening(env, "door") < 0.7
    assert not env.is_success()


def test_a_door_that_is_pushed_to_the_other_side_does_not_count(env: SimEnv) -> None:
    load(env, LEFT, door=0.5)
    push_handle(env, "door", 1, 1.0, 0.05)
    assert opening(env, "door") > 0.8
    assert not env.is_success()


@pytest.mark.parametrize(("height_m", "least", "most"), [(0.007, 0.0, 0.2), (0.003, 0.2, 0.7)])
def test_a_button_that_is_touched_or_half_pressed_does_not_count(
    env: SimEnv, height_m: float, least: float, most: float
) -> None:
    load(env, PRESS)
    x, y, top = hand(env, "button")
    go(env, (x, y, 0.09), (x, y, top + height_m + 0.015), (x, y, top + height_m))
    assert least <= opening(env, "button") < most, opening(env, "button")
    assert env.truth().fixture("button").is_touched
    assert not env.is_success()


def test_pressing_the_table_beside_the_button_does_not_count(env: SimEnv) -> None:
    load(env, PRESS)
    x, y, _ = hand(env, "button")
    go(env, (x + 0.06, y, 0.09), (x + 0.06, y, 0.012))
    assert not env.is_success()


def test_pressing_the_lamp_switches_nothing(env: SimEnv) -> None:
    load(env, LIGHT_ON)
    x, y, top = hand(env, "light")
    go(env, (x, y, 0.12), (x, y, top - 0.005), steps=12)
    assert env.truth().fixture("light").is_touched
    assert not env.is_success()


def test_a_light_that_is_switched_twice_does_not_count(env: SimEnv) -> None:
    load(env, LIGHT_ON)
    x, y, top = hand(env, "button")
    seen = []
    for _ in range(2):
        go(env, (x, y, 0.08), (x, y, top - 0.003), (x, y, 0.08), steps=10)
        seen.append(env.is_success())
    assert seen == [True, False]


def test_the_door_instead_of_the_drawer_does_not_count(env: SimEnv) -> None:
    load(env, OPEN, door=0.0)
    push_handle(env, "door", 1, 1.0, 0.09)
    assert opening(env, "door") > 0.8
    assert not env.is_success()
