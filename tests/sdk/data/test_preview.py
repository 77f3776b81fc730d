from __future__ import annotations

import re

import pytest

from roboalign.sdk.data import DatasetWriter, preview_dataset
from roboalign.sdk.data.show import show_dataset
from roboalign.sdk.errors import ConfigError, DataError

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


def test_a_page_holds_pictures_plots_and_sentences_and_refers_to_nothing(dataset_path, tmp_path):
    page = show_dataset(dataset_path, out=tmp_path / "new" / "page.html", episodes=2).read_text()
    assert page.count("<section class='card'>") == 2
    assert page.count("data:image/png;base64,") == 3 + 4
    assert "task 0" in page
    assert "observation.joint_pos (rad)" in page
    assert not re.findall(r"(?:src|href)='(?!data:)", page)


def test_a_page_shows_text_as_text(tmp_path, toy):
    with DatasetWriter(tmp_path / "d", image_size_px=16, num_joints=7) as writer:
        writer.add(toy.episode(0, task="<script>alert(1)</script>"))
    page = show_dataset(tmp_path / "d", out=tmp_path / "page.html").read_text()
    assert "<script>" not in page


def test_a_page_of_another_robot_shows_its_own_names(tmp_path, toy):
    names = ("shoulder.pos", "elbow.pos")
    with DatasetWriter(tmp_path / "d", image_size_px=16, num_joints=7, state_names=names, action_names=names) as writer:
        writer.add(toy.arm_episode(names))
    assert "shoulder.pos" in show_dataset(tmp_path / "d", out=tmp_path / "page.html").read_text()


def test_no_episodes_to_show_is_a_wrong_setting(dataset_path, tmp_path):
    with pytest.raises(ConfigError, match="expected 1 or more"):
        show_dataset(dataset_path, out=tmp_path / "page.html", episodes=0)
