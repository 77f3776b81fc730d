"""The whole of it in the simulator: off is the plain simulation, and no concern touches what is not its own."""

import dataclasses
import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pybullet")
pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.randomization import CONCERNS, DomainRandomization, DomainSample, preset
from roboalign.sdk.randomization.values import (
    BacklashValues,
    ColourValues,
    DampingValues,
    DelayValues,
    DropoutValues,
    FrameAgeValues,
    FrictionValues,
    MassValues,
    ObservationNoiseValues,
    RateLimitValues,
    TextureValues,
)
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.expert import expert_action

PHYSICAL = {"mass", "friction", "damping", "gain", "delay", "dead_band", "backlash", "rate_limit"}
"""Concerns that change how things move."""
UNSEEN = {*PHYSICAL, "observation_noise"}
"""Concerns that leave the first picture of an episode as it is."""
MOVE = np.array([0.03, 0.02, -0.03, 0.1, 0.0], np.float32)


@pytest.fixture(scope="module")
def env() -> Iterator[SimEnv]:
    made = SimEnv()
    yield made
    made.close()


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def play(env: SimEnv, steps: int = 4, seed: int = 5, **options: object) -> tuple[list[str], list[str], list[str]]:
    """Returns the hashes of all states, pictures and readings of a few steps towards the table."""
    env.reset(seed=seed, options={"task": "place", **options})
    states, pictures, readings = [], [], []
    for step in range(steps + 1):
        observation = env.observe()
        states.append(env.state_hash())
        pictures.append(digest(observation.images["front"]))
        readings.append(digest(observation.state))
        if step < steps:
            env.advance(MOVE)
    return states, pictures, readings


def only(seed: int = 5, **concerns: object) -> DomainSample:
    return dataclasses.replace(DomainSample(seed=seed), **concerns)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain(env: SimEnv) -> tuple[list[str], list[str], list[str]]:
    return play(env)


@pytest.mark.parametrize("task", ["place", "push", "stack"])
def test_off_is_the_plain_simulation_over_a_whole_episode(env: SimEnv, task: str) -> None:
    runs = []
    for domain in (None, DomainSample.off(), DomainRandomization().sample(9)):
        env.reset(seed=2, options={"task": task, "domain": domain})
        hashes, is_over = [], False
        while not is_over:
            hashes += [env.state_hash(), digest(env.observe().images["front"])]
            is_over = env.advance(env.expert_action()) or env.is_success()
        runs.append(hashes)
    assert len(runs[0]) > 10
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("concern", CONCERNS)
def test_a_concern_changes_its_own_and_nothing_else(
    env: SimEnv, plain: tuple[list[str], list[str], list[str]], concern: str
) -> None:
    domain = only(**{concern: getattr(preset("strong").sample(3), concern)})
    if concern == "textures":
        domain = only(textures=TextureValues(table="checker", contrast=0.3))
    elif concern == "frame_age":
        domain = only(frame_age=FrameAgeValues(steps=1))
    elif concern == "rate_limit":
        domain = only(rate_limit=RateLimitValues(speed_scale=(0.1,) * 8))
    elif concern == "dropouts":
        domain = only(dropouts=DropoutValues(frame_share=0.9, state_share=0.9))
    states, pictures, readings = play(env, domain=domain)
    assert states[0] == plain[0][0]
    assert (states == plain[0]) is (concern not in PHYSICAL)
    assert (pictures[0] == plain[1][0]) is (concern in {*UNSEEN, "frame_age", "dropouts"})
    assert pictures != plain[1] or concern in ("observation_noise", "mass", "friction", "damping")
    if concern not in {*PHYSICAL, "observation_noise", "dropouts"}:
        assert readings == plain[2]
    elif concern in ("observation_noise", "dropouts"):
        assert readings != plain[2]


def test_noise_does_not_depend_on_who_looks_when(env: SimEnv) -> None:
    domain = preset("strong").sample(21)
    _, every, readings = play(env, steps=3, domain=domain)
    env.reset(seed=5, options={"task": "place", "domain": domain})
    for _ in range(3):
        env.advance(MOVE)
    assert digest(env.observe().images["front"]) == every[-1] == digest(env.observe().images["front"])
    assert digest(env.observe(with_image=False).state) == readings[-1]


def test_the_seed_alone_decides(env: SimEnv) -> None:
    """Another episode in between leaves nothing behind."""
    strong = SimEnv(randomization="strong")
    first = play(strong, steps=2)
    play(strong, steps=2, seed=6)
    assert play(strong, steps=2) == first
    drawn = preset("strong").sample(5)
    assert play(env, steps=2, domain=drawn) == first
    strong.close()


def test_the_record_gives_the_episode_again(env: SimEnv) -> None:
    mild = SimEnv(randomization="mild")
    before = play(mild, steps=2)
    record = json.loads(json.dumps(mild.domain()))
    _, info = mild.reset(seed=5)
    assert info["domain"] == mild.domain() == record
    assert play(env, steps=2, domain=DomainSample.from_json(record)) == before
    mild.close()


def test_nothing_is_recorded_when_off(env: SimEnv) -> None:
    _, info = env.reset(seed=0)
    assert env.domain() == info["domain"] == {}


def test_randomising_moves_no_object(env: SimEnv) -> None:
    env.reset(seed=8)
    scene = env.scene
    env.reset(seed=8, options={"domain": preset("strong").sample(8)})
    assert env.scene == scene


@pytest.mark.parametrize(("split", "concern"), [("camera", "camera_pose"), ("lighting", "light")])
def test_a_heldout_split_shows_the_training_scene_under_its_preset(env: SimEnv, split: str, concern: str) -> None:
    held = SimEnv("place", split=split)
    held.reset(seed=3)
    env.reset(seed=3, options={"task": "place"})
    assert held.scene == env.scene
    assert held.state_hash() == env.state_hash()
    assert held.randomization.concerns == (concern,)
    assert digest(held.observe().images["front"]) != digest(env.observe().images["front"])
    held.close()


def test_a_wrong_domain_is_refused(env: SimEnv) -> None:
    with pytest.raises(ConfigError, match="DomainSample"):
        env.reset(seed=0, options={"domain": {"mass": 1}})
    with pytest.raises(ConfigError, match="strong"):
        SimEnv(randomization="stron")


def test_mass_and_friction_are_scaled(env: SimEnv) -> None:
    env.reset(seed=5, options={"task": "place"})
    plain_mass, plain_friction, plain_table = dynamics(env)
    eighth = (2.0,) * 8
    domain = only(
        mass=MassValues(object_scale=eighth),
        friction=FrictionValues(object_scale=eighth, table_scale=0.5),
    )
    env.reset(seed=5, options={"task": "place", "domain": domain})
    mass, friction, table = dynamics(env)
    assert (mass, friction, table) == pytest.approx((2 * plain_mass, 2 * plain_friction, plain_table / 2))


def dynamics(env: SimEnv) -> tuple[float, float, float]:
    """Returns mass and friction of the first object, and the friction of the table."""
    world = env.robot.world
    p, client = world._api()
    body = next(iter(world._objects.values()))
    info = p.getDynamicsInfo(body, -1, physicsClientId=client)
    table = p.getDynamicsInfo(world._table, -1, physicsClientId=client)
    return info[0], info[1], table[1]


@pytest.mark.parametrize("values", [DampingValues(joint_nm_s_rad=(0.5,) * 8), DampingValues(object_scale=(20.0,) * 8)])
def test_either_damping_changes_the_motion(
    env: SimEnv, plain: tuple[list[str], list[str], list[str]], values: DampingValues
) -> None:
    """PyBullet does not tell damping, so only its effect can be seen; objects settle by a hair at the start."""
    states, _, _ = play(env, domain=only(damping=values))
    assert states[0] == plain[0][0]
    assert states[1:] != plain[0][1:]


def test_paint_reaches_every_part_of_a_bowl(env: SimEnv) -> None:
    env.reset(seed=5, options={"task": "place"})
    plain = colours(env)
    domain = only(colours=ColourValues(object_brightness=(0.5,) * 8))
    env.reset(seed=5, options={"task": "place", "domain": domain})
    assert colours(env) == pytest.approx(plain * 0.5, abs=0.01)


def colours(env: SimEnv) -> np.ndarray:
    world = env.robot.world
    p, client = world._api()
    shapes = [shape for body in world._objects.values() for shape in p.getVisualShapeData(body, physicsClientId=client)]
    assert len(shapes) > 10  # a bowl has ten parts
    return np.array([shape[7][:3] for shape in shapes])


def test_a_texture_leaves_no_file_behind(env: SimEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    domain = only(textures=TextureValues(table="checker", contrast=0.5))
    env.reset(seed=5, options={"task": "place", "domain": domain})
    assert env.observe().images["front"][60:, 30:60].std() > 10
    assert not list(tmp_path.iterdir())


def test_the_client_is_replaced_before_textures_fill_the_memory(env: SimEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyBullet keeps every texture file it has read, and forgets them only with the client."""
    monkeypatch.setattr("roboalign.sdk.sim.world._MAX_TEXTURES", 3)
    domain = only(textures=TextureValues(table="noise", contrast=0.3))
    counts, runs = [], []
    for _ in range(5):
        runs.append(play(env, steps=1, domain=domain))
        counts.append(env.robot.world._num_textures)
    assert counts == [counts[0], *[(counts[0] + k - 1) % 3 + 1 for k in range(1, 5)]]
    assert all(run == runs[0] for run in runs)


def test_a_texture_is_not_that_of_the_episode_before(env: SimEnv) -> None:
    """PyBullet remembers textures by the names of their files."""
    seen = []
    for cell_m in (0.05, 0.1):
        domain = only(textures=TextureValues(table="checker", contrast=0.5, cell_m=cell_m))
        env.reset(seed=5, options={"task": "place", "domain": domain})
        seen.append(digest(env.observe().images["front"]))
    assert seen[0] != seen[1]


def test_a_delay_holds_the_arm_back(env: SimEnv) -> None:
    reached = []
    for delay_ms in (0.0, 100.0):
        env.reset(seed=5, options={"task": "place", "domain": only(delay=DelayValues(bus_ms=delay_ms))})
        start = env.truth().state[0]
        for _ in range(2):
            env.advance(np.array([0.03, 0, 0, 0, 1], np.float32))
        reached.append(env.truth().state[0] - start)
    assert reached[1] == pytest.approx(reached[0] / 2, abs=0.01)


def test_a_delayed_gripper_closes_later(env: SimEnv) -> None:
    widths = []
    for delay_ms in (0.0, 100.0):
        env.reset(seed=5, options={"task": "place", "domain": only(delay=DelayValues(bus_ms=delay_ms))})
        env.advance(np.array([0, 0, 0, 0, 0], np.float32))
        widths.append(float(env.truth().state[4]))
    assert widths[0] < widths[1] - 0.01
    assert widths[1] == pytest.approx(0.08, abs=0.002)


def test_play_is_lost_on_reversing(env: SimEnv) -> None:
    """The tool comes back to where it was without play, and not quite with it."""
    left = []
    for play_rad in (0.0, 0.02):
        env.reset(seed=5, options={"task": "place", "domain": only(backlash=BacklashValues(play_rad=(play_rad,) * 8))})
        for dy_m in (0.03, 0.03, -0.03, -0.03, 0.0, 0.0, 0.0):
            env.advance(np.array([0, dy_m, 0, 0, 1], np.float32))
        left.append(float(np.abs(env.truth().state[1] - env.robot.controller.tool_target[1])))
    assert left[0] < 0.001
    assert 0.003 < left[1] < 0.02


def test_readings_are_wrong_where_the_truth_is_not(env: SimEnv) -> None:
    noise = ObservationNoiseValues(joint_bias_rad=(0.02,) * 8)
    env.reset(seed=5, options={"task": "place", "domain": only(observation_noise=noise)})
    observation, true = env.observe(with_image=False), env.robot.world.joint_pos_rad()
    assert observation.joint_pos_rad - true == pytest.approx(np.full(7, 0.02), abs=1e-6)
    assert np.abs(observation.state[:3] - env.truth().state[:3]).max() > 0.002


def test_pictures_for_people_stay_where_they_are(env: SimEnv) -> None:
    env.reset(seed=5, options={"task": "place"})
    plain = env.render(64)
    env.reset(seed=5, options={"task": "place", "domain": only(camera_pose=preset("strong").sample(1).camera_pose)})
    assert np.array_equal(env.render(64), plain)
    assert not np.array_equal(env.render(64, view="front"), plain)


LATE = {"delay": DelayValues(bus_ms=80.0, joint_ms=(5.0,) * 8), "rate_limit": RateLimitValues(speed_scale=(0.5,) * 8)}
"""An arm that is still on its way when the next action is due."""


def test_the_expert_foresees_where_a_late_arm_comes_to_rest(env: SimEnv) -> None:
    env.reset(seed=5, options={"task": "place", "domain": only(**LATE)})
    for _ in range(3):
        env.advance(env.expert_action())
    seen, foreseen = env.truth().state, env.foreseen(env.truth()).state
    for _ in range(8):
        env.robot.hold()
    rest = env.truth().state
    assert np.abs(seen[:3] - rest[:3]).max() > 0.02
    np.testing.assert_allclose(foreseen[:4], rest[:4], atol=4e-3)  # motors lag a little too, and that is not foreseen
    assert foreseen[4] == seen[4]


def test_on_a_plain_arm_the_expert_foresees_what_is(env: SimEnv) -> None:
    env.reset(seed=5, options={"task": "place"})
    env.advance(MOVE)
    assert env.foreseen(env.truth()) is env.truth()


def test_what_is_held_is_foreseen_to_move_along(env: SimEnv) -> None:
    env.reset(seed=5, options={"task": "place", "domain": only(**LATE)})
    while not env.truth().target_object.is_held:
        assert not env.advance(env.expert_action())
    env.advance(np.array([0.02, 0.0, 0.03, 0.1, 0.0], np.float32))
    truth, foreseen = env.truth(), env.foreseen(env.truth())
    moved = foreseen.state - truth.state
    assert moved[2] > 0.01
    np.testing.assert_allclose(foreseen.target_object.position_m - truth.target_object.position_m, moved[:3], atol=1e-6)
    others = [item.name for item in truth.objects if item.name != truth.target]
    assert others
    assert all(np.array_equal(foreseen.find(name).position_m, truth.find(name).position_m) for name in others)


def test_on_a_late_arm_the_expert_does_not_ask_for_the_same_way_twice() -> None:
    made = SimEnv("push", robot="so101")
    steps = {}
    for knows in (True, False):
        made.reset(seed=3, options={"domain": only(**LATE)})
        count = 0
        while not made.is_success():
            action = made.expert_action() if knows else expert_action(made.truth())
            assert not made.advance(action), f"cut off, knows: {knows}"
            count += 1
        steps[knows] = count
    made.close()
    assert steps[True] < steps[False], steps


def test_a_randomised_environment_passes_gymnasiums_own_check() -> None:
    made = SimEnv("push", randomization="strong", image_in_obs=True, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not symmetric and normalized.*")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        check_env(made, skip_render_check=True)
    made.close()


def successes(name: str, task: str, seeds: range, robot: str = "panda") -> int:
    """Returns how many episodes the expert solves; pictures play no part and are not aged or lost."""
    randomization = preset(name, {"frame_age": False, "dropouts": False})
    made, solved = SimEnv(task, robot=robot, randomization=randomization), 0
    for seed in seeds:
        made.reset(seed=seed)
        while not (made.is_success() or made.advance(made.expert_action())):
            pass
        solved += made.is_success()
    made.close()
    return solved


@pytest.mark.parametrize("robot", ["panda", "so101"])
def test_the_expert_copes_with_mild(robot: str) -> None:
    assert successes("mild", "place", range(3), robot) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("mild", 0.95), ("strong", 0.85)])
@pytest.mark.parametrize(
    ("robot", "task"),
    [("panda", "place"), ("panda", "push"), ("panda", "stack"), ("so101", "place"), ("so101", "push")],
)
def test_the_tasks_stay_solvable(name: str, share: float, robot: str, task: str) -> None:
    assert successes(name, task, range(1_000_000_000, 1_000_000_060), robot) >= share * 60
