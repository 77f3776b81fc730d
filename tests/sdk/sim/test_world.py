"""Physics is repeatable to the bit, and pictures show what they should."""

import subprocess
import sys

import numpy as np
import pytest

from roboalign.sdk.control import tool_pose
from roboalign.sdk.errors import RobotError
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.expert import expert_action
from roboalign.sdk.sim.layout import COLOURS
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.tasks import FAMILIES
from roboalign.sdk.sim.world import SimWorld

HASH_CODE = """
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.expert import expert_action
import hashlib
env = SimEnv()
for seed in {order}:
    env.reset(seed=seed, options={{"task": "place"}})
    for _ in range(12):
        env.advance(expert_action(env.truth()))
    image = hashlib.sha256(env.observe().images["front"].tobytes()).hexdigest()
    print(seed, env.state_hash(), image)
"""


def final_hashes(order: list[int]) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", HASH_CODE.format(order=order)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def test_a_seed_gives_the_same_bits_in_any_order_and_process() -> None:
    one, two = final_hashes([0, 1, 2]), final_hashes([2, 0, 1])
    assert one == two
    assert len(set(one.values())) == 3


@pytest.mark.parametrize(
    ("task", "target_m", "tool_m", "brightness"),
    [
        ("place", (0.52470, -0.02344, 0.09960), (0.52443, -0.02347, 0.10047), 167.257),
        ("push", (0.53422, 0.08704, 0.02415), (0.53525, 0.03862, 0.02200), 177.155),
        ("stack", (0.42171, -0.02247, 0.09989), (0.42191, -0.02248, 0.10078), 172.297),
    ],
)
def test_the_panda_does_what_the_shipped_policies_were_trained_on(
    env: SimEnv, task: str, target_m: tuple[float, ...], tool_m: tuple[float, ...], brightness: float
) -> None:
    """Recorded before arms and tables could be chosen: scene, expert, physics and picture after twelve steps."""
    env.reset(seed=3, options={"task": task})
    for _ in range(12):
        env.advance(expert_action(env.truth()))
    np.testing.assert_allclose(env.truth().target_object.position_m, target_m, atol=2e-4)
    np.testing.assert_allclose(env.truth().state[:3], tool_m, atol=2e-4)
    assert env.observe().images["front"].mean() == pytest.approx(brightness, abs=0.1)


def test_the_state_hash_sees_a_single_small_step(env: SimEnv) -> None:
    env.reset(seed=0, options={"task": "place"})
    before = env.state_hash()
    env.advance(np.array([1e-4, 0, 0, 0, 1], np.float32))
    assert env.state_hash() != before


@pytest.mark.parametrize("family", FAMILIES)
def test_every_graspable_object_is_at_least_ten_pixels_wide(env: SimEnv, family: str) -> None:
    for seed in range(25):
        env.reset(seed=seed, options={"task": family})
        masks = env.robot.world.render_mask()
        for item in env.scene.objects:
            columns = np.flatnonzero(masks[item.name].any(axis=0))
            rows = np.flatnonzero(masks[item.name].any(axis=1))
            assert len(columns) >= 10, f"{item.name} of seed {seed} is {len(columns)} px wide"
            assert len(rows) >= 10


def test_the_gripper_is_in_the_picture_from_the_start(env: SimEnv) -> None:
    for seed in range(10):
        env.reset(seed=seed, options={"task": "place"})
        assert env.robot.world.render_mask()["robot"].sum() > 15


def test_pictures_show_the_colours_that_the_scene_names(env: SimEnv) -> None:
    """A blank or wrongly ordered picture must not pass: the mean colour over an object is nearest to its own name."""
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names])
    for seed in range(12):
        env.reset(seed=seed, options={"task": FAMILIES[seed % 3]})
        image, masks = env.robot.world.render(), env.robot.world.render_mask()
        assert image.std() > 10
        for item in env.scene.objects:
            mean = image[masks[item.name]].mean(axis=0) / 255
            scaled = palette * (mean @ palette.T / (palette**2).sum(axis=1))[:, None]
            assert names[int(np.abs(scaled - mean).sum(axis=1).argmin())] == item.colour


@pytest.mark.parametrize(("direction", "sign"), [("left", -1), ("right", 1)])
def test_left_and_right_are_those_of_the_picture(env: SimEnv, direction: str, sign: int) -> None:
    seed = next(s for s in range(50) if _push_goal(env, s) == direction)
    env.reset(seed=seed, options={"task": "push"})
    before = _column(env)
    while not env.is_success():
        assert not env.advance(expert_action(env.truth()))
    for _ in range(4):
        env.advance(expert_action(env.truth()))
    assert sign * (_column(env) - before) > 10


def _push_goal(env: SimEnv, seed: int) -> str:
    env.reset(seed=seed, options={"task": "push"})
    return env.scene.goal


def _column(env: SimEnv) -> float:
    mask = env.robot.world.render_mask()[env.scene.target]
    return float(np.flatnonzero(mask.any(axis=0)).mean())


def test_rendering_does_not_change_the_scene(env: SimEnv) -> None:
    env.reset(seed=3, options={"task": "stack"})
    before = env.state_hash()
    assert env.render(64).shape == (64, 64, 3)
    env.observe()
    assert env.state_hash() == before


def test_kinematics_agree_with_the_physics(env: SimEnv) -> None:
    env.reset(seed=0, options={"task": "place"})
    for _ in range(8):
        env.advance(expert_action(env.truth()))
        position, _ = env.robot.world.tool_pose()
        np.testing.assert_allclose(env.truth().state[:3], position, atol=1e-5)


def test_inverse_kinematics_agree_with_the_converged_solution_of_the_physics(env: SimEnv) -> None:
    env.reset(seed=0, options={"task": "place"})
    kinematics, rng = find_robot("panda").kinematics(), np.random.default_rng(0)
    for _ in range(20):
        target = rng.uniform((0.40, -0.18, 0.02), (0.62, 0.18, 0.25))
        ours = kinematics.inverse(tool_pose(target, 0.0), env.robot.spec.home_joint_pos_rad)
        theirs = env.robot.world.inverse_kinematics(target, (1.0, 0.0, 0.0, 0.0))
        reached = kinematics.forward(theirs)
        assert ours.is_reached
        assert np.linalg.norm(kinematics.forward(ours.joint_pos_rad)[:3, 3] - reached[:3, 3]) < 1e-3


def test_a_closed_world_says_what_to_do() -> None:
    world = SimWorld()
    with pytest.raises(RobotError, match="connect"):
        world.render()
    world.connect()
    world.close()
    world.close()
    with pytest.raises(RobotError, match="connect"):
        world.state_hash()
