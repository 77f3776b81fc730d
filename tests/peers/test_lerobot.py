"""Our datasets in the hands of lerobot 0.6.1, and lerobot's in ours; see `lerobot_env.sh` for its environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.sdk.data.older import write_older

from roboalign.sdk.data import CollectConfig, LeRobotDataset, check_dataset, collect
from roboalign.sdk.data.stats import describe

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("ROBOALIGN_LEROBOT_PYTHON", ROOT / ".venv-lerobot" / "bin" / "python"))
CAMERA = "observation.images.front"


def lerobot(*arguments: object) -> None:
    """Runs `lerobot_side.py` in the environment of lerobot."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is missing; make it with tests/peers/lerobot_env.sh")
    command = [str(PYTHON), str(Path(__file__).with_name("lerobot_side.py")), *map(str, arguments)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**env, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=[False, True], ids=["images", "videos"])
def both(request, tmp_path_factory):
    """A collected dataset as we read it, and what lerobot found in it."""
    folder = tmp_path_factory.mktemp("ours")
    config = CollectConfig(
        out=folder / "dataset", episodes=3, workers=1, image_every=1, image_size_px=64, is_video=request.param
    )
    dataset = LeRobotDataset(collect(config, show_progress=False))
    lerobot("read", dataset.path, folder / "found.npz")
    found = np.load(folder / "found.npz")
    return dataset, json.loads(str(found["facts"])), found


def test_lerobot_opens_our_dataset(both):
    dataset, facts, _ = both
    assert (facts["length"], facts["episodes"], facts["fps"]) == (dataset.num_frames, dataset.num_episodes, 10)
    assert facts["cameras"] == [CAMERA]
    assert facts["tasks"] == [dataset.tasks[episode] for episode in dataset.episode_of_frame()]


def test_lerobot_reads_our_numbers(both):
    dataset, facts, found = both
    np.testing.assert_array_equal(found["observation.state"], dataset.states())
    np.testing.assert_array_equal(found["action"], dataset.actions())
    np.testing.assert_array_equal(found["episode_index"], dataset.episode_of_frame())
    np.testing.assert_allclose(facts["q99"], np.quantile(dataset.actions(), 0.99, axis=0), atol=1e-6)


def test_lerobot_sees_our_pictures(both):
    dataset, _, found = both
    ours = dataset.images(np.arange(dataset.num_frames))
    np.testing.assert_array_equal(found[CAMERA], ours)


def test_lerobot_reads_our_language_columns(both):
    dataset, facts, _ = both
    expected = [
        [row.content for row in episode.language_persistent] for episode in dataset for _ in range(len(episode))
    ]
    assert facts["subtasks"] == expected


@pytest.fixture(scope="module", params=["image", "video"])
def theirs(request, tmp_path_factory):
    """A dataset that lerobot wrote, what it was given, and what it reads from it."""
    folder = tmp_path_factory.mktemp("theirs")
    frames = np.arange(12)
    images = np.full((2, 12, 64, 64, 3), 110, np.uint8)
    for episode in range(2):
        for frame in frames:
            images[episode, frame, 10 + 2 * frame : 30 + 2 * frame, 20:50] = (200, 60 * episode, 40)
    states = np.random.default_rng(0).standard_normal((2, 12, 6)).astype(np.float32)
    np.savez(folder / "given.npz", images=images, states=states)
    lerobot("write", folder / "dataset", folder / "given.npz", request.param)
    lerobot("read", folder / "dataset", folder / "found.npz")
    return LeRobotDataset(folder / "dataset"), images.reshape(-1, 64, 64, 3), states, np.load(folder / "found.npz")


def test_we_read_the_numbers_of_lerobot(theirs):
    dataset, _, states, _ = theirs
    assert dataset.info.action_names == tuple(f"j{number}.pos" for number in range(6))
    assert dataset.tasks == ("task 0", "task 1")
    np.testing.assert_array_equal(dataset.states(), states.reshape(-1, 6))
    np.testing.assert_array_equal(dataset.actions(), states.reshape(-1, 6) + 1.0)


def test_we_see_the_pictures_of_lerobot_as_it_does(theirs):
    dataset, images, _, found = theirs
    ours = dataset.images(np.arange(24))
    np.testing.assert_array_equal(ours, found[CAMERA])
    assert 10 * np.log10(255**2 / max(np.mean((ours.astype(float) - images) ** 2), 1e-9)) > 30


def test_a_dataset_of_lerobot_passes_our_check(theirs):
    assert check_dataset(theirs[0].path).findings == ()


def test_our_statistics_are_those_of_lerobot(tmp_path):
    """lerobot reads quantiles off a histogram of 5000 bins; ours are exact."""
    values = np.random.default_rng(1).normal(size=(4000, 3)) * (0.01, 1.0, 100.0)
    np.savez(tmp_path / "values.npz", values=values)
    lerobot("describe", tmp_path / "values.npz", tmp_path / "stats.npz")
    theirs, ours = np.load(tmp_path / "stats.npz"), describe(values)
    assert set(theirs) == set(ours)
    for name in ours:
        # Between two neighbouring values any quantile is right; in the tails they are up to 0.5 % of the range apart.
        apart = np.abs(np.asarray(theirs[name]) - np.asarray(ours[name]))
        assert (apart <= 0.005 * np.ptp(values, axis=0)).all(), name


def test_an_older_dataset_reads_the_same_before_and_after_lerobot_converts_it(tmp_path):
    def picture(number):
        image = np.full((64, 64, 3), 110, np.uint8)
        image[10 : 30 + 2 * number, 20:50] = (200, 60, 40)
        return image

    older = LeRobotDataset(write_older(tmp_path / "older", picture))
    shutil.copytree(older.path, tmp_path / "newer")
    lerobot("convert", tmp_path / "newer")
    newer = LeRobotDataset(tmp_path / "newer")
    assert (older.info.codebase_version, newer.info.codebase_version) == ("v2.1", "v3.0")
    assert newer.data_hash() == older.data_hash()
    assert check_dataset(newer.path).findings == ()
