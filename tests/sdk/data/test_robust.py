"""Full disks, kills and two writers at once: nothing that was complete is lost or counted twice."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from roboalign.sdk.data import DatasetWriter, LeRobotDataset
from roboalign.sdk.data.storage import one_writer
from roboalign.sdk.errors import ConfigError, DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def writer_for(path, **settings):
    return DatasetWriter(path, image_size_px=16, num_joints=7, **settings)


@pytest.fixture
def small_disk():
    """Lets no file grow beyond some bytes while it is entered, as a full disk or a quota does."""

    class Limit:
        def __enter__(self):
            self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, self.before[1]))

        def __exit__(self, *_):
            resource.setrlimit(resource.RLIMIT_FSIZE, self.before)

    return Limit()


def record(path, episodes, limit=None, *, full_from=99, **settings):
    """Adds the episodes; from the one of this number on (or at the end) the disk is full."""
    with writer_for(path, **settings) as writer, ExitStack() as stack:
        for number, episode in enumerate(episodes):
            if number == full_from:
                stack.enter_context(limit)
            writer.add(episode)
        if full_from == len(episodes):
            with limit:
                writer.close()


def cut(path, toy):
    with writer_for(path) as writer:
        writer.add(toy.episode(0))
        raise RuntimeError


@pytest.mark.parametrize("is_video", [False, True])
def test_a_full_disk_keeps_the_episodes_before_it(tmp_path, toy, small_disk, is_video):
    episodes = [toy.episode(0), toy.episode(1, length=60)]
    with pytest.raises(DataError, match=r"could not be written: File too large .*resume=True"):
        record(tmp_path / "d", episodes, small_disk, full_from=1, is_video=is_video)
    record(tmp_path / "d", episodes[1:], is_video=is_video, resume=True)
    record(tmp_path / "whole", episodes, is_video=is_video)
    assert LeRobotDataset(tmp_path / "d").data_hash() == LeRobotDataset(tmp_path / "whole").data_hash()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "whole"]


def test_a_full_disk_at_the_end_of_a_recording_loses_nothing(tmp_path, toy, small_disk):
    with pytest.raises(DataError, match="could not be written"):
        record(tmp_path / "d", [toy.episode(seed) for seed in range(3)], small_disk, full_from=3)
    assert not (tmp_path / "d").exists()
    record(tmp_path / "d", [], resume=True)
    assert LeRobotDataset(tmp_path / "d").num_episodes == 3


def test_a_cut_recording_is_not_thrown_away_in_silence(tmp_path, toy):
    with pytest.raises(RuntimeError):
        cut(tmp_path / "d", toy)
    with pytest.raises(ConfigError, match="holds 1 complete episodes of a recording that was cut"):
        record(tmp_path / "d", [toy.episode(1)])


def test_a_cut_recording_with_other_columns_is_not_mixed_in(tmp_path, toy):
    with pytest.raises(RuntimeError):
        cut(tmp_path / "d", toy)
    with pytest.raises(DataError, match="not those of this recording"):
        record(tmp_path / "d", [], resume=True, cameras=())
    assert list((tmp_path / ".d.writing" / "shards").iterdir())


def test_a_writer_may_be_closed_before_its_block_ends(tmp_path, toy):
    """The block closed it again, and failed at what the first call had moved to its final name."""
    with writer_for(tmp_path / "d") as writer:
        writer.add(toy.episode(0))
        assert writer.close() == tmp_path / "d"
    assert LeRobotDataset(tmp_path / "d").num_episodes == 1
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_the_second_of_two_writers_is_told_who_the_first_is(tmp_path, toy):
    with writer_for(tmp_path / "d") as writer:
        writer.add(toy.episode(0))
        with pytest.raises(ConfigError, match=rf"d is being written by another process \(pid {os.getpid()}\)"):
            record(tmp_path / "d", [toy.episode(1)])
    assert LeRobotDataset(tmp_path / "d").num_episodes == 1


DIE_WITH_THE_LOCK = """
import os
from pathlib import Path
from roboalign.sdk.data.storage import one_writer
with one_writer(Path({path!r})):
    os._exit(0)
"""


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    code = DIE_WITH_THE_LOCK.format(path=str(tmp_path / "d"))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (tmp_path / ".d.lock").exists()
    with one_writer(tmp_path / "d"):
        assert (tmp_path / ".d.lock").read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / ".d.lock").exists()


def test_two_collections_into_one_folder_are_refused(tmp_path):
    from roboalign.sdk.data import CollectConfig, collect

    pytest.importorskip("pybullet")
    with one_writer(tmp_path / "d.partial"), pytest.raises(ConfigError, match="being written by another process"):
        collect(CollectConfig(out=tmp_path / "d", episodes=1, workers=1), show_progress=False)


RECORD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.sdk.data.conftest import make_episode
from roboalign.sdk.data import DatasetWriter
with DatasetWriter(Path(sys.argv[1]), image_size_px=16, num_joints=7, is_video=True) as writer:
    for seed in range(1000):
        writer.add(make_episode(seed))
        print(seed, flush=True)
"""


def test_a_killed_recording_keeps_what_was_complete(tmp_path, toy):
    root = str(Path(__file__).resolve().parents[3])
    script = tmp_path / "record.py"
    script.write_text(RECORD.format(root=root))
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "d")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with writer_for(tmp_path / "d", is_video=True, resume=True) as writer:
        kept = writer.num_episodes
        assert kept >= 3
    dataset = LeRobotDataset(tmp_path / "d")
    assert dataset.num_episodes == kept
    for index in range(kept):
        np.testing.assert_array_equal(dataset.episode(index).actions, toy.episode(index).actions)


def test_episodes_that_overlap_are_not_counted_twice(dataset_path):
    path = dataset_path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("dataset_from_index")
    pq.write_table(table.set_column(place, "dataset_from_index", pa.array([0, 4, 11])), path)
    with pytest.raises(DataError, match="episode 1 is listed as frames 4 to 11, expected it to begin at 5"):
        LeRobotDataset(dataset_path)
