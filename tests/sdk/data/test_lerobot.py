from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from roboalign.sdk.data import DatasetWriter, LanguageRow, LeRobotDataset, action_chunks, decode_png, truth_from_json
from roboalign.sdk.errors import ConfigError, DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path, toy, episodes, **settings):
    with DatasetWriter(path, image_size_px=toy.image_size_px, num_joints=7, **settings) as writer:
        for episode in episodes:
            writer.add(episode)
    return LeRobotDataset(path)


def test_an_episode_comes_back_as_it_was_written(tmp_path, toy):
    written = toy.episode(1, image_every=3)
    read = write(tmp_path / "d", toy, [toy.episode(0), written]).episode(1)
    assert read.index == 1
    assert read.task == written.task
    assert read.images == written.images
    assert read.truth_json == written.truth_json
    for name in ("states", "actions", "joint_pos_rad"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))


def test_a_truth_survives_json(toy):
    episode = toy.episode(0)
    truth, expected = episode.truths[0], toy.truth(instruction=episode.task)
    assert truth.target_object.name == "red block"
    assert truth.target_object.is_touched is True
    assert truth.state.dtype == np.float32
    np.testing.assert_allclose(truth.state, expected.state, atol=1e-6)
    np.testing.assert_allclose(truth.objects[1].position_m, expected.objects[1].position_m, atol=1e-6)


def test_a_truth_of_another_version_is_a_data_error():
    with pytest.raises(DataError, match="does not fit this version"):
        truth_from_json('{"objects": [], "colour": "red"}')


def test_language_rows_come_back(tmp_path, toy):
    import dataclasses

    subtask = LanguageRow(role="assistant", content="go down", style="subtask", timestamp_s=0.5)
    question = LanguageRow(role="user", content="where?", style="vqa", camera="observation.images.front")
    call = LanguageRow(role="assistant", content=None, style=None, tool_calls=('{"type":"function"}',))
    events = ((question, call),) + ((),) * 6
    episode = dataclasses.replace(toy.episode(0), language_persistent=(subtask,), language_events=events)
    read = write(tmp_path / "d", toy, [episode]).episode(0)
    assert read.language_persistent == (subtask,)
    assert read.language_events == events


def test_frames_are_numbered_through_all_episodes(dataset_path):
    dataset = LeRobotDataset(dataset_path)
    assert dataset.episode_starts.tolist() == [0, 5, 11, 18]
    assert dataset.num_frames == 18
    assert dataset.num_episodes == 3
    assert dataset.episode_of_frame().tolist() == [0] * 5 + [1] * 6 + [2] * 7
    assert dataset.tasks == ("task 0", "task 1", "task 0")


def test_only_rendered_frames_are_query_frames(dataset_path):
    expected = [0, 2, 4, 5, 7, 9, 11, 13, 15, 17]
    assert LeRobotDataset(dataset_path).frames_with_images().tolist() == expected


def test_images_are_lossless(dataset_path, toy):
    images = LeRobotDataset(dataset_path).images(np.array([13, 0, 7]))
    np.testing.assert_array_equal(images, [toy.image(202), toy.image(0), toy.image(102)])


def test_a_frame_without_image_is_refused(dataset_path):
    with pytest.raises(DataError, match="frame 1 has no image"):
        LeRobotDataset(dataset_path).images(np.array([1]))


def test_a_chunk_holds_the_labels_of_the_following_frames(dataset_path):
    dataset = LeRobotDataset(dataset_path)
    chunks, actions = dataset.action_chunks(4), dataset.actions()
    assert chunks.shape == (18, 4, 5)
    np.testing.assert_array_equal(chunks[5], actions[5:9])
    np.testing.assert_array_equal(chunks[5:11], dataset.episode(1).action_chunks(4))


def test_after_the_end_the_arm_stays_and_the_gripper_keeps_its_command():
    actions = np.array([[0.01, 0, 0, 0, 0], [0.02, 0.03, 0.01, 0.1, 1]], np.float32)
    chunks = action_chunks(actions, 3)
    np.testing.assert_array_equal(chunks[1], [actions[1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(chunks[0], [actions[0], actions[1], [0, 0, 0, 0, 1]])


def test_the_hash_is_of_the_content(tmp_path, toy, dataset_path):
    first = write(tmp_path / "a", toy, [toy.episode(0), toy.episode(1)])
    again = write(tmp_path / "b", toy, [toy.episode(0), toy.episode(1)])
    other = write(tmp_path / "c", toy, [toy.episode(0), toy.episode(2)])
    assert first.data_hash() == again.data_hash() != other.data_hash()


def test_episodes_can_span_several_files(tmp_path, toy, monkeypatch):
    whole = write(tmp_path / "one", toy, [toy.episode(seed) for seed in range(4)])
    monkeypatch.setattr("roboalign.sdk.data.layout.DATA_FILE_SIZE_MB", 0.01)
    split = write(tmp_path / "many", toy, [toy.episode(seed) for seed in range(4)])
    assert len(list((tmp_path / "many" / "data").rglob("*.parquet"))) > 1
    assert split.data_hash() == whole.data_hash()
    np.testing.assert_array_equal(split.frames_with_images(), whole.frames_with_images())


def test_the_metadata_is_that_of_version_3(dataset_path):
    info = json.loads((dataset_path / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["total_tasks"] == 2
    assert info["splits"] == {"train": "0:3"}
    assert info["features"]["action"]["names"][0] == "dx_m"
    assert info["features"]["observation.images.front"]["dtype"] == "image"
    table = pq.read_table(dataset_path / "data" / "chunk-000" / "file-000.parquet")
    assert table.column("index").to_pylist() == list(range(18))
    assert table.column("task_index").to_pylist() == [0] * 5 + [1] * 6 + [0] * 7
    np.testing.assert_allclose(table.column("timestamp").to_pylist()[:3], [0, 0.1, 0.2], rtol=1e-6)
    assert list(info["features"]) == table.column_names


def test_statistics_describe_all_frames(dataset_path):
    stats = json.loads((dataset_path / "meta" / "stats.json").read_text())
    dataset = LeRobotDataset(dataset_path)
    actions = dataset.actions().astype(np.float64)
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(axis=0))
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    assert stats["action"]["count"] == [18]
    pixels = dataset.images(dataset.frames_with_images()).astype(np.float64) / 255
    image = stats["observation.images.front"]
    np.testing.assert_allclose(np.ravel(image["mean"]), pixels.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(np.ravel(image["std"]), pixels.std(axis=(0, 1, 2)))
    np.testing.assert_allclose(np.ravel(image["q10"]), np.quantile(pixels, 0.1, axis=(0, 1, 2)), atol=1 / 255)
    assert np.shape(image["mean"]) == (3, 1, 1)


def test_pandas_reads_the_tasks_with_the_sentence_as_index(dataset_path):
    pandas = pytest.importorskip("pandas")
    tasks = pandas.read_parquet(dataset_path / "meta" / "tasks.parquet")
    assert tasks.index.name == "task"
    assert tasks.loc["task 1", "task_index"] == 1


def test_the_reader_of_lerobot_would_accept_the_data_file(tmp_path, toy):
    """lerobot 0.6.1 reads with `Dataset.from_parquet(paths, features=...)` and these feature types."""
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "d", toy, [toy.episode(0)])
    row = {key: datasets.Value("string") for key in ("role", "content", "style")}
    tail = {"camera": datasets.Value("string"), "tool_calls": datasets.List(datasets.Json())}
    numbers = {"timestamp": datasets.Value("float32")}
    features = datasets.Features(
        {
            "observation.images.front": datasets.Image(),
            "observation.state": datasets.Sequence(datasets.Value("float32"), length=5),
            "observation.joint_pos": datasets.Sequence(datasets.Value("float32"), length=7),
            "action": datasets.Sequence(datasets.Value("float32"), length=5),
            **numbers,
            **{key: datasets.Value("int64") for key in ("frame_index", "episode_index", "index", "task_index")},
            "roboalign.truth": datasets.Value("string"),
            "language_persistent": datasets.List({**row, **numbers, **tail}),
            "language_events": datasets.List({**row, **tail}),
        }
    )
    files = [str(path) for path in (tmp_path / "d" / "data").rglob("*.parquet")]
    loaded = datasets.Dataset.from_parquet(files, features=features, cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 7
    np.testing.assert_array_equal(np.asarray(loaded[3]["observation.images.front"]), toy.image(3))
    episodes = datasets.Dataset.from_parquet(
        [str(path) for path in (tmp_path / "d" / "meta" / "episodes").rglob("*.parquet")],
        cache_dir=str(tmp_path / "cache"),
    )
    assert episodes[0]["dataset_to_index"] == 7


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no dataset folder .*nowhere"):
        LeRobotDataset(tmp_path / "nowhere")


def test_a_folder_without_metadata_is_no_dataset(tmp_path):
    with pytest.raises(DataError, match=r"no meta/info.json"):
        LeRobotDataset(tmp_path)


def edit_info(path, change):
    info = json.loads((path / "meta" / "info.json").read_text())
    change(info)
    (path / "meta" / "info.json").write_text(json.dumps(info))


def test_another_version_is_refused_with_both_versions(dataset_path):
    edit_info(dataset_path, lambda info: info.update(codebase_version="v2.0"))
    with pytest.raises(DataError, match=r"v2\.0, expected v3\.0 or v2\.1"):
        LeRobotDataset(dataset_path)


def test_a_missing_feature_is_named(dataset_path):
    edit_info(dataset_path, lambda info: info["features"].pop("observation.state"))
    with pytest.raises(DataError, match=r"lacks the columns observation\.state"):
        LeRobotDataset(dataset_path)


def test_the_action_of_another_robot_is_read_and_not_trained_on(tmp_path, toy):
    names = tuple(f"joint_{number}.pos" for number in range(6))
    dataset = write(tmp_path / "d", toy, [toy.arm_episode(names)], state_names=names, action_names=names)
    assert dataset.info.action_names == names
    assert dataset.episode(0).actions.shape == (7, 6)
    with pytest.raises(DataError, match=r"observation\.state has shape \[6\] \(joint_0\.pos, .* expected \[5\]"):
        dataset.action_chunks(2)
    with pytest.raises(DataError, match=r"the actions are joint_0\.pos"):
        dataset.episode(0).action_chunks(2)


def test_damaged_metadata_is_a_data_error(dataset_path):
    (dataset_path / "meta" / "info.json").write_text('{"codebase_version": "v3.0"')
    with pytest.raises(DataError, match="damaged"):
        LeRobotDataset(dataset_path)


def test_a_missing_column_in_the_file_is_named(dataset_path):
    path = dataset_path / "data" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)
    with pytest.raises(DataError, match="lacks the columns action"):
        LeRobotDataset(dataset_path)


@pytest.mark.parametrize("file", ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"])
def test_a_truncated_file_is_found_when_the_dataset_is_opened(dataset_path, file):
    path = dataset_path / file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"file-000\.parquet is not a complete parquet file"):
        LeRobotDataset(dataset_path)


def test_a_missing_data_file_is_named(dataset_path):
    shutil.rmtree(dataset_path / "data")
    with pytest.raises(DataError, match=r"file-000\.parquet"):
        LeRobotDataset(dataset_path)


def test_a_wrong_frame_count_is_found(dataset_path):
    edit_info(dataset_path, lambda info: info.update(total_frames=19))
    with pytest.raises(DataError, match=r"18 frames, .* says 19"):
        LeRobotDataset(dataset_path)


def test_an_unknown_episode_is_a_data_error(dataset_path):
    with pytest.raises(DataError, match="there is no episode 3"):
        LeRobotDataset(dataset_path).episode(3)


def test_bytes_that_are_no_picture_are_a_data_error():
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_png(b"not a picture")


def test_an_exception_before_the_first_episode_leaves_nothing_behind(tmp_path, toy):
    def episodes():
        raise RuntimeError
        yield

    with pytest.raises(RuntimeError):
        write(tmp_path / "d", toy, episodes())
    assert list(tmp_path.iterdir()) == []


def test_an_empty_dataset_is_refused(tmp_path):
    with (
        pytest.raises(DataError, match="at least one episode"),
        DatasetWriter(tmp_path / "d", image_size_px=16, num_joints=7),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_is_never_overwritten(dataset_path):
    with (
        pytest.raises(ConfigError, match="exists already"),
        DatasetWriter(dataset_path, image_size_px=16, num_joints=7),
    ):
        pass


def test_an_episode_with_nan_is_refused(toy):
    import dataclasses

    bad = np.full((7, 5), np.nan, np.float32)
    with pytest.raises(DataError, match="states hold values that are not finite"):
        dataclasses.replace(toy.episode(0), states=bad)
