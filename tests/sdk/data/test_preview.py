from __future__ import annotations

import pytest

from roboalign.sdk.data import DatasetWriter, preview_dataset
from roboalign.sdk.errors import DataError

pytest.importorskip("pyarrow")


def test_a_preview_counts_and_shows_one_episode(dataset_path, tmp_path):
    from PIL import Image

    found = preview_dataset(dataset_path, episode=1, out=tmp_path / "new" / "episode.gif")
    assert (found.num_episodes, found.num_frames, found.num_images) == (3, 18, 10)
    assert found.families == {"unknown": 3}
    assert found.task == "task 1"
    with Image.open(found.path) as gif:
        assert gif.n_frames == 3
        assert gif.size == (64, 64)
        assert gif.info["duration"] == 200


def test_an_episode_without_pictures_is_refused(tmp_path, toy):
    import dataclasses

    with DatasetWriter(tmp_path / "d", image_size_px=16, num_joints=7) as writer:
        writer.add(dataclasses.replace(toy.episode(0), images=(None,) * 7))
    with pytest.raises(DataError, match="episode 0 has no images"):
        preview_dataset(tmp_path / "d", out=tmp_path / "x.gif")
    assert not (tmp_path / "x.gif").exists()
