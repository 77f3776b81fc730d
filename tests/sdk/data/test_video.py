"""Cameras and videos: what is written comes back, from v3.0 and from the older v2.1."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from tests.sdk.data.older import write_older

from roboalign.sdk.data import DatasetWriter, LeRobotDataset, decode_png, encode_png
from roboalign.sdk.data.video import VideoJoiner, count_frames, decode_frames, encode_video
from roboalign.sdk.errors import BackendError, DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("av")
SIZE_PX = 32


def scene(number):
    """A smooth picture with a coloured block, as a renderer makes it."""
    image = np.full((SIZE_PX, SIZE_PX, 3), (90, 90, 120), np.uint8)
    image[8:20, number : number + 10] = (200, 40, 40)
    return image


def episode(toy, seed, *, length=6):
    plain = toy.episode(seed, length=length)
    front = tuple(encode_png(scene(seed + frame)) for frame in range(length))
    wrist = tuple(encode_png(scene(seed + frame)[::-1]) for frame in range(length))
    return dataclasses.replace(plain, images=front, other_images={"wrist": wrist})


def write(path, episodes, *, is_video=True, **settings):
    cameras = ("front", "wrist")
    with DatasetWriter(
        path, image_size_px=SIZE_PX, num_joints=7, cameras=cameras, is_video=is_video, **settings
    ) as writer:
        for item in episodes:
            writer.add(item)
    return LeRobotDataset(path)


def psnr_db(first, second):
    return 10 * np.log10(255**2 / max(np.mean((first.astype(float) - second) ** 2), 1e-9))


@pytest.mark.parametrize("is_video", [False, True])
def test_two_cameras_come_back_apart(tmp_path, toy, is_video):
    dataset = write(tmp_path / "d", [episode(toy, 0), episode(toy, 3)], is_video=is_video)
    assert dataset.cameras == ("front", "wrist")
    for camera, expected in (("front", scene(3 + 2)), ("wrist", scene(3 + 2)[::-1])):
        (picture,) = dataset.images(np.array([8]), camera)
        assert psnr_db(picture, expected) > 35


def test_pictures_of_an_episode_are_png_files_whatever_the_dataset_stores(tmp_path, toy):
    dataset = write(tmp_path / "d", [episode(toy, 0), episode(toy, 3)])
    read = dataset.episode(1)
    np.testing.assert_array_equal(decode_png(read.images[4]), dataset.images(np.array([10]))[0])
    np.testing.assert_array_equal(decode_png(read.other_images["wrist"][4]), dataset.images(np.array([10]), "wrist")[0])


def test_a_video_holds_many_episodes_and_the_metadata_says_where(tmp_path, toy):
    dataset = write(tmp_path / "d", [episode(toy, seed, length=4 + seed) for seed in range(3)])
    places = [span.videos["observation.images.front"] for span in dataset.spans]
    assert len({place.path for place in places}) == 1
    assert [(place.start_s, place.stop_s) for place in places] == [(0.0, 0.4), (0.4, 0.9), (0.9, 1.5)]
    assert count_frames(places[0].path) == (15, 10.0)


def test_a_video_file_is_closed_before_it_is_too_large(tmp_path, toy, monkeypatch):
    episodes = [episode(toy, seed) for seed in range(4)]
    whole = write(tmp_path / "one", episodes)
    monkeypatch.setattr("roboalign.sdk.data.layout.VIDEO_FILE_SIZE_MB", 0.004)
    split = write(tmp_path / "many", episodes)
    assert len({span.videos["observation.images.front"].path for span in split.spans}) > 1
    assert split.data_hash() == whole.data_hash()


def test_pixels_of_an_episode_do_not_depend_on_what_was_recorded_before(tmp_path, toy):
    alone = write(tmp_path / "a", [episode(toy, 5)])
    last = write(tmp_path / "b", [episode(toy, 1), episode(toy, 5)])
    assert alone.episode(0).images == last.episode(1).images


def test_frames_can_be_asked_for_in_any_order(tmp_path):
    encode_video(tmp_path / "v.mp4", [scene(number) for number in range(12)], rate_hz=10)
    found = decode_frames(tmp_path / "v.mp4", [7, 2, 7], start_s=0.3, rate_hz=10)
    for picture, number in zip(found, (10, 5, 10), strict=True):
        assert psnr_db(picture, scene(number)) > 35


def test_a_rate_that_is_no_whole_number_is_kept(tmp_path):
    joiner = VideoJoiner(tmp_path / "joined.mp4", rate_hz=29.97)
    for part in range(2):
        encode_video(tmp_path / "part.mp4", [scene(part * 5 + number) for number in range(5)], rate_hz=29.97)
        start_s, _ = joiner.add(tmp_path / "part.mp4")
    joiner.close()
    (picture,) = decode_frames(tmp_path / "joined.mp4", [3], start_s=start_s, rate_hz=29.97)
    assert psnr_db(picture, scene(8)) > 35


def test_statistics_of_a_video_are_those_of_its_pictures(tmp_path, toy):
    dataset = write(tmp_path / "d", [episode(toy, 0)])
    stats = json.loads((dataset.path / "meta" / "stats.json").read_text())["observation.images.front"]
    pixels = np.stack([scene(number) for number in range(6)]) / 255
    np.testing.assert_allclose(np.ravel(stats["mean"]), pixels.mean(axis=(0, 1, 2)))
    assert stats["count"] == [6]


def test_a_video_needs_a_picture_at_every_frame(tmp_path, toy):
    blind = dataclasses.replace(episode(toy, 0), images=(None,) * 6)
    with pytest.raises(DataError, match="0 pictures for 6 frames, and a video needs one for each"):
        write(tmp_path / "d", [blind])
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_another_size_is_refused(tmp_path, toy):
    with pytest.raises(DataError, match=r"is \[16, 16, 3\], expected \[32, 32, 3\]"):
        write(tmp_path / "d", [dataclasses.replace(episode(toy, 0), images=toy.episode(0, length=6).images)])


def test_a_missing_camera_is_named(tmp_path, toy):
    blind = dataclasses.replace(episode(toy, 0), other_images={})
    with pytest.raises(DataError, match="no camera wrist"):
        write(tmp_path / "d", [blind])


def test_a_camera_that_is_not_there_is_named(tmp_path, toy):
    dataset = write(tmp_path / "d", [episode(toy, 0)])
    with pytest.raises(DataError, match="has no camera side; found front, wrist"):
        dataset.images(np.array([0]), "side")


def test_a_dataset_without_cameras_is_read(tmp_path, toy):
    bare = dataclasses.replace(toy.episode(0), images=(None,) * 7)
    with DatasetWriter(tmp_path / "d", image_size_px=16, num_joints=7, cameras=()) as writer:
        writer.add(bare)
    dataset = LeRobotDataset(tmp_path / "d")
    assert dataset.cameras == ()
    assert dataset.frames_with_images().tolist() == []
    assert dataset.episode(0).images == (None,) * 7


def test_a_truncated_video_is_found_when_the_dataset_is_opened(tmp_path, toy):
    dataset = write(tmp_path / "d", [episode(toy, 0)])
    video = dataset.spans[0].videos["observation.images.wrist"].path
    video.write_bytes(video.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"wrist/chunk-000/file-000\.mp4 is not a complete video"):
        LeRobotDataset(tmp_path / "d")


def test_a_video_that_is_damaged_in_the_middle_is_not_made_up(tmp_path):
    """The decoder used to hide overwritten bytes behind the pictures before them."""
    noise = np.random.default_rng(0).integers(0, 256, (6, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    encode_video(tmp_path / "v.mp4", noise, rate_hz=10)
    content = bytearray((tmp_path / "v.mp4").read_bytes())
    middle = len(content) // 3
    content[middle : middle + 400] = bytes(400)
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"v\.mp4 is not a complete video"):
        decode_frames(tmp_path / "v.mp4", range(6), start_s=0.0, rate_hz=10)


def test_a_video_with_too_few_pictures_says_which_is_missing(tmp_path):
    encode_video(tmp_path / "v.mp4", [scene(number) for number in range(4)], rate_hz=10)
    with pytest.raises(DataError, match=r"no picture at 0\.600 s \(frame 4 of the episode that begins at 0\.200 s\)"):
        decode_frames(tmp_path / "v.mp4", [1, 4], start_s=0.2, rate_hz=10)


def test_videos_without_pyav_name_the_extra(tmp_path, toy, monkeypatch):
    dataset = write(tmp_path / "d", [episode(toy, 0)])
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(BackendError, match=r"pip install 'roboalign\[data\]'"):
        dataset.images(np.array([0]))


def test_instructions_that_change_on_the_way_come_back(tmp_path, toy):
    sentences = ("open it",) * 3 + ("close it",) * 4
    written = dataclasses.replace(toy.episode(0), task="open it", instructions=sentences)
    with DatasetWriter(tmp_path / "d", image_size_px=16, num_joints=7) as writer:
        writer.add(toy.episode(1))
        writer.add(written)
    read = LeRobotDataset(tmp_path / "d").episode(1)
    assert (read.task, read.instructions) == ("open it", sentences)


def test_what_the_randomisation_drew_comes_back(tmp_path, toy):
    drawn = {"camera": {"fov_deg": 47.5}, "light": [0.1, 0.2]}
    with DatasetWriter(tmp_path / "d", image_size_px=16, num_joints=7) as writer:
        writer.add(dataclasses.replace(toy.episode(0), domain=drawn))
        writer.add(toy.episode(1))
    dataset = LeRobotDataset(tmp_path / "d")
    assert [item.domain for item in dataset] == [drawn, {}]


@pytest.fixture
def older(tmp_path):
    return write_older(tmp_path / "older", scene)


def test_version_2_1_is_read(older):
    dataset = LeRobotDataset(older)
    assert dataset.info.action_names == ("shoulder.pos", "elbow.pos")
    assert dataset.tasks == ("push", "push")
    assert dataset.episode_starts.tolist() == [0, 4, 10]
    assert dataset.actions()[6].tolist() == [2.0, 12.0]
    assert dataset.episode(1).states[:, 1].tolist() == [10, 11, 12, 13, 14, 15]
    assert psnr_db(dataset.images(np.array([7]))[0], scene(1 + 3)) > 35


def test_version_2_1_is_checked_against_its_own_statistics(older):
    from roboalign.sdk.data import check_dataset

    assert check_dataset(older).findings == ()
    path = older / "meta" / "episodes_stats.jsonl"
    path.write_text(path.read_text().replace('"mean": [1.5', '"mean": [2.5'))
    where = [finding.where for finding in check_dataset(older).findings]
    assert where == [f"meta/episodes_stats.jsonl, episode 0, {key}" for key in ("observation.state", "action")]


def test_a_missing_file_of_version_2_1_is_named(older):
    (older / "data" / "chunk-001" / "episode_000001.parquet").unlink()
    with pytest.raises(DataError, match=r"episode_000001\.parquet is missing"):
        LeRobotDataset(older)


def test_damaged_lines_of_version_2_1_are_named(older):
    (older / "meta" / "episodes.jsonl").write_text('{"episode_index": 0')
    with pytest.raises(DataError, match=r"episodes\.jsonl is damaged"):
        LeRobotDataset(older)
