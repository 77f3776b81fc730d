"""The real benchmark: `pytest --also peers`, with `ROBOALIGN_LIBERO` or `runs/libero` set up. A few CPU minutes."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from roboalign.sdk.errors import BackendError
from roboalign.sdk.libero import server
from roboalign.sdk.libero.env import LiberoEnv, libero_robot_spec, open_env
from roboalign.sdk.libero.installation import find_installation, private_folders
from roboalign.sdk.libero.setup import is_blank
from roboalign.sdk.libero.suites import LIBERO_SUITES
from roboalign.sdk.sim.seeds import eval_seed

pytestmark = pytest.mark.peers

COMPARE = Path(__file__).with_name("compare_resets.py")


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    try:
        find_installation()
    except BackendError as error:
        pytest.skip(str(error))
    with open_env("libero_object", image_size_px=96) as opened:
        yield opened


def test_the_static_tables_are_those_of_the_package(env: LiberoEnv) -> None:
    env.reset(seed=0, options={"task": "0"})
    header, _ = env._ask("suites", {"names": list(LIBERO_SUITES)})
    assert {name: tuple(tasks) for name, tasks in header["suites"].items()} == dict(LIBERO_SUITES)


def test_the_spec_is_that_of_the_package(env: LiberoEnv) -> None:
    env.reset(seed=eval_seed(0), options={"task": "0"})
    spec = libero_robot_spec()
    assert env.task.joint_names == spec.joint_names
    assert env.task.joint_range_rad[:, 0] == pytest.approx(spec.joint_lower_rad, abs=1e-4)
    assert env.task.joint_range_rad[:, 1] == pytest.approx(spec.joint_upper_rad, abs=1e-4)


def test_episodes_do_not_depend_on_those_before(env: LiberoEnv) -> None:
    hashes: dict[int, set[str]] = {}
    for number in (0, 1, 0, 2, 1, 0):
        env.reset(seed=eval_seed(number), options={"task": "0"})
        rng = np.random.default_rng(number)
        for _ in range(10):
            env.advance(np.array([*rng.uniform(-0.05, 0.05, 4), number % 2], np.float32))
        hashes.setdefault(number, set()).add(env.state_hash() + str(env.observe().images["front"].sum()))
    assert all(len(found) == 1 for found in hashes.values())


def test_pictures_are_the_right_way_up(env: LiberoEnv) -> None:
    """The arm comes down from the top of the front picture: what changes when it moves lies there, not below."""
    env.reset(seed=eval_seed(0), options={"task": "0"})
    before = env.observe().images["front"].astype(int)
    for _ in range(12):
        env.advance(np.array([-0.05, 0, 0.05, 0, 1], np.float32))
    after = env.observe().images["front"].astype(int)
    rows = np.abs(after - before).sum(axis=(1, 2))
    assert (rows * np.arange(len(rows))).sum() / rows.sum() < 40
    assert not is_blank(after.astype(np.uint8))


def test_left_is_left(env: LiberoEnv) -> None:
    """The camera looks back at the robot: the basket at +y is on the right of the picture, and so is a move to +y."""
    env.reset(seed=eval_seed(0), options={"task": "0"})
    assert env.truth().find("basket_1").position_m[1] > 0.2
    before = env.observe().images["front"].astype(int)
    for _ in range(15):
        env.advance(np.array([0, 0.05, 0, 0, 1], np.float32))
    moved = np.abs(env.observe().images["front"].astype(int) - before).sum(axis=2)
    newly = moved[:48].sum(axis=0)
    assert (newly * np.arange(96)).sum() / newly.sum() > 48


def test_an_action_moves_the_tool_along_its_axis(env: LiberoEnv) -> None:
    for axis in range(3):
        env.reset(seed=eval_seed(0), options={"task": "0"})
        start = env.truth().state.copy()
        action = np.array([0, 0, 0, 0, 1], np.float32)
        action[axis] = 0.03
        for _ in range(10):
            env.advance(action)
        moved = env.truth().state[:3] - start[:3]
        assert int(np.argmax(np.abs(moved))) == axis
        assert moved[axis] > 0.03


def test_a_training_scene_is_none_of_the_evaluation_scenes(env: LiberoEnv) -> None:
    env.reset(seed=7, options={"task": "0"})
    drawn = [item.position_m for item in env.truth().objects]
    for number in range(10):
        env.reset(seed=eval_seed(number), options={"task": "0"})
        frozen = [item.position_m for item in env.truth().objects]
        assert max(float(np.abs(a - b).max()) for a, b in zip(drawn, frozen, strict=True)) > 1e-4


@pytest.mark.parametrize(("suite", "number"), [("libero_object", 3), ("libero_spatial", 8)])
def test_soft_resets_equal_the_benchmarks_own(env: LiberoEnv, suite: str, number: int) -> None:
    """State and pictures, bit by bit, against `OffScreenRenderEnv` as LIBERO's own scripts use it."""
    found = find_installation()
    command = [str(found.python), "-I", str(COMPARE), str(Path(server.__file__).parent), suite, str(number)]
    environment = {"MUJOCO_GL": found.renderer, "OMP_NUM_THREADS": "1", **private_folders(found.folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.stdout.split()[-1:] == ["equal"], done.stdout[-800:] + done.stderr[-800:]


def test_the_expert_solves_a_box_and_a_bowl() -> None:
    for suite, number in (("libero_object", 1), ("libero_spatial", 2)):
        with open_env(suite) as scene:
            scene.reset(seed=eval_seed(0), options={"task": str(number)})
            expert, is_over = scene.expert_policy(), False
            while not is_over and not scene.is_success():
                is_over = scene.advance(expert.action(scene.truth()))
            assert scene.is_success()
