"""Recording with real processes and the real simulator."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from roboalign.sdk.data import CollectConfig, LeRobotDataset, collect
from roboalign.sdk.errors import BackendError, DataError

pytest.importorskip("pyarrow")
pytest.importorskip("pybullet")
collect_module = sys.modules[collect.__module__]

RECORD = """
import sys
from roboalign.sdk.data import CollectConfig, collect
if __name__ == "__main__":
    collect(CollectConfig(out=sys.argv[1], episodes=int(sys.argv[2]), workers=2), show_progress=False)
"""


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Five demonstrations, recorded without other processes."""
    out = tmp_path_factory.mktemp("one") / "demos"
    return LeRobotDataset(collect(CollectConfig(out=out, episodes=5, workers=1), show_progress=False))


def test_demonstrations_show_distinct_pictures(one_process):
    images = one_process.images(one_process.frames_with_images())
    assert images.shape[1:] == (96, 96, 3)
    assert images.std(axis=(1, 2, 3)).min() > 5
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_labels_stay_inside_the_limits_of_an_action(one_process):
    actions = one_process.actions()
    assert np.abs(actions[:, :3]).max() <= 0.04 + 1e-6
    assert np.abs(actions[:, 3]).max() <= 0.2 + 1e-6
    assert set(np.unique(actions[:, 4])) <= {0.0, 1.0}


def test_truth_and_state_belong_to_the_same_moment(one_process):
    for episode in one_process:
        truth = episode.truth(3)
        np.testing.assert_allclose(truth.state, episode.states[3], atol=2e-6)
        assert truth.instruction == episode.task
        assert truth.family == one_process.families[episode.index]


def test_a_killed_recording_ends_as_if_it_had_not_been_killed(tmp_path, one_process):
    """Two workers, killed after the first shards, then two others: the same data as one process records at once."""
    script = tmp_path / "record.py"
    script.write_text(textwrap.dedent(RECORD))
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "demos"), "5"])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("demos.partial/episode-*.parquet")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "demos").exists()
    path = collect(CollectConfig(out=tmp_path / "demos", episodes=5, workers=2), show_progress=False)
    assert LeRobotDataset(path).data_hash() == one_process.data_hash()
    assert not (tmp_path / "demos.partial").exists()


def test_an_error_in_another_process_is_told(tmp_path):
    config = CollectConfig(out=tmp_path / "d", episodes=1, workers=2)
    job = collect_module._Job(config=config, episode=0, folder=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"episode 0 \(place, seed 0\) failed with FileNotFoundError"):
        list(collect_module._run_in_pool([job], 1))


def test_a_killed_worker_is_told(monkeypatch):
    monkeypatch.setattr(collect_module, "_record", os._exit)
    with pytest.raises(BackendError, match="a recording process died"):
        list(collect_module._run_in_pool([3], 1))
