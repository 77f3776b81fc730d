"""Each kind of damage is made in a dataset that has none, and must be the only thing that is found."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from roboalign.cli.main import main
from roboalign.sdk.data import DatasetWriter, encode_png
from roboalign.sdk.data.check import check_dataset
from roboalign.sdk.errors import CheckFailed, DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
LENGTH = 8
HOME_RAD = (0.0, 0.1, 0.0, -2.4, 0.0, 2.5, 0.8)
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def picture(colour, frame):
    image = np.full((16, 16, 3), colour, np.uint8)
    image[frame : frame + 4, 4:10] = 255 - np.asarray(colour)
    return encode_png(image)


def episode(toy, seed, *, front=(200, 30, 30), wrist=(30, 30, 200)):
    plain = toy.episode(seed, length=LENGTH)
    drift = np.random.default_rng(seed).uniform(-0.1, 0.1, (LENGTH, 7))
    return dataclasses.replace(
        plain,
        joint_pos_rad=(np.asarray(HOME_RAD) + drift).astype(np.float32),
        images=tuple(picture(front, frame) for frame in range(LENGTH)),
        other_images={"wrist": tuple(picture(wrist, frame + 2) for frame in range(LENGTH))},
    )


def write(path, episodes, *, is_video=False):
    with DatasetWriter(path, image_size_px=16, num_joints=7, cameras=("front", "wrist"), is_video=is_video) as writer:
        for item in episodes:
            writer.add(item)
    return path


@pytest.fixture
def clean(tmp_path, toy):
    return write(tmp_path / "clean", [episode(toy, seed) for seed in range(4)])


def found(path):
    return [(finding.kind, finding.where) for finding in check_dataset(path).findings]


def change_rows(path, key, change):
    """Gives the values of a column as a numpy array `[N, ...]` to `change`, and writes what it made of them."""
    table = pq.read_table(path / DATA)
    place, field = table.schema.get_field_index(key), table.schema.field(key)
    values = np.array(table.column(key).to_pylist())
    change(values)
    pq.write_table(table.set_column(place, field, pa.array(values.tolist(), field.type)), path / DATA)


def change_json(path, name, change):
    content = json.loads((path / "meta" / name).read_text())
    change(content)
    (path / "meta" / name).write_text(json.dumps(content))


@pytest.mark.parametrize("is_video", [False, True])
def test_nothing_is_found_where_nothing_is_wrong(tmp_path, toy, is_video):
    path = write(tmp_path / "clean", [episode(toy, seed) for seed in range(4)], is_video=is_video)
    report = check_dataset(path)
    assert report.findings == ()
    assert (report.num_episodes, report.num_frames, report.num_images) == (4, 32, 64)
    report.raise_if_failed()


def test_a_wrong_rate_is_found(clean):
    change_json(clean, "info.json", lambda info: info.update(fps=20))
    (finding,) = check_dataset(clean).findings
    assert finding.kind == "frame rate"
    assert finding.found == "meta/info.json says 20 frames a second, the timestamps say 10"


def shift_later(values):
    values[LENGTH + 5 : 2 * LENGTH] += 0.3


def test_a_gap_is_found(clean):
    change_rows(clean, "timestamp", shift_later)
    assert ("time gap", "episode 1 frame 4, timestamp") in found(clean)


def test_time_that_runs_backward_is_found(clean):
    change_rows(clean, "timestamp", lambda values: values.__setitem__(3, 0.0))
    assert ("time gap", "episode 0 frame 2, timestamp") in found(clean)


def test_rows_that_do_not_count_through_are_found(clean):
    change_rows(clean, "frame_index", lambda values: values.__setitem__(LENGTH + 2, 7))
    assert found(clean) == [("numbering", "episode 1, frame_index")]


def test_nan_is_found_and_not_blamed_on_the_statistics(clean):
    change_rows(clean, "action", lambda values: values.__setitem__((LENGTH + 2, 1), math.nan))
    assert found(clean) == [("not finite", "episode 1 frame 2, action")]


def test_saturated_actions_are_found(tmp_path, toy):
    episodes = []
    for seed in range(4):
        plain = episode(toy, seed)
        episodes.append(dataclasses.replace(plain, actions=np.clip(plain.actions, -0.2, 0.2)))
    kinds = found(write(tmp_path / "d", episodes))
    assert kinds[0] == ("saturated action", "action, dx_m")
    assert {kind for kind, _ in kinds} == {"saturated action"}


def test_a_gripper_that_is_open_or_closed_is_not_saturated(tmp_path, toy):
    def switch(plain):
        return np.concatenate([plain.actions[:, :4], plain.actions[:, 4:] > 0], axis=1)

    episodes = [dataclasses.replace(plain, actions=switch(plain)) for plain in (episode(toy, 0), episode(toy, 1))]
    assert found(write(tmp_path / "d", episodes)) == []


def test_statistics_of_other_data_are_found(clean):
    change_json(clean, "stats.json", lambda stats: stats["action"]["mean"].__setitem__(2, 1.0))
    assert found(clean) == [("statistics", "meta/stats.json, action")]


def test_missing_statistics_are_found(clean):
    (clean / "meta" / "stats.json").unlink()
    assert found(clean) == [("statistics", "meta/stats.json")]


def test_statistics_that_say_nothing_are_found(clean):
    """An empty `stats.json` used to pass: only what it said was compared."""
    (clean / "meta" / "stats.json").write_text("{}")
    (finding,) = check_dataset(clean).findings
    assert (finding.kind, finding.where) == ("statistics", "meta/stats.json")
    assert "action" in finding.found


def test_a_damaged_or_missing_list_of_sentences_is_found(clean):
    """`meta/tasks.parquet` used not to be read when the episodes name their sentences themselves."""
    path = clean / "meta" / "tasks.parquet"
    path.write_bytes(path.read_bytes()[:100])
    assert [kind for kind, _ in found(clean)] == ["unreadable"]
    path.unlink()
    assert [kind for kind, _ in found(clean)] != []


def test_a_frame_whose_sentence_is_not_listed_is_found(clean):
    pq.write_table(pq.read_table(clean / "meta" / "tasks.parquet").slice(1), clean / "meta" / "tasks.parquet")
    assert ("task list", "meta/tasks.parquet") in found(clean)


def test_degrees_are_found(tmp_path, toy):
    def in_degrees(plain):
        return dataclasses.replace(plain, joint_pos_rad=np.rad2deg(plain.joint_pos_rad))

    path = write(tmp_path / "d", [in_degrees(episode(toy, seed)) for seed in range(2)])
    (finding,) = check_dataset(path).findings
    assert finding.kind == "joint zero"
    assert "degrees" in finding.found


@pytest.mark.parametrize(("joint", "offset", "word"), [(0, math.pi, "half a turn"), (1, 1.9, "limits of panda")])
def test_another_zero_of_a_joint_is_found(tmp_path, toy, joint, offset, word):
    def turned(plain):
        joints = plain.joint_pos_rad.copy()
        joints[:, joint] += offset
        return dataclasses.replace(plain, joint_pos_rad=joints)

    (finding,) = check_dataset(write(tmp_path / "d", [turned(episode(toy, seed)) for seed in range(2)])).findings
    assert finding.kind == "joint zero"
    assert finding.where == f"observation.joint_pos, joint_{joint + 1}_rad"
    assert word in finding.found


def test_a_missing_sentence_is_found(tmp_path, toy):
    episodes = [episode(toy, 0), dataclasses.replace(episode(toy, 1), task=" ")]
    assert found(write(tmp_path / "d", episodes)) == [("language missing", "episode 1")]


def test_missing_subtasks_are_found_where_others_have_them(tmp_path, toy):
    from roboalign.sdk.data import LanguageRow

    row = LanguageRow(role="assistant", content="go", style="subtask", timestamp_s=0.0)
    episodes = [episode(toy, 0), dataclasses.replace(episode(toy, 1), language_persistent=(row,))]
    assert found(write(tmp_path / "d", episodes)) == [("language missing", "episode 0, language_persistent")]


def test_the_same_recording_twice_is_found(tmp_path, toy):
    path = write(tmp_path / "d", [episode(toy, 0), episode(toy, 1), episode(toy, 0)])
    assert found(path) == [("doubled episode", "episode 2")]


@pytest.mark.parametrize("is_video", [False, True])
def test_a_frozen_camera_is_found(tmp_path, toy, is_video):
    moving = episode(toy, 1)
    frozen = dataclasses.replace(moving, images=moving.images[:3] + (moving.images[3],) * 5)
    path = write(tmp_path / "d", [episode(toy, 0), frozen], is_video=is_video)
    (finding,) = check_dataset(path).findings
    assert (finding.kind, finding.where) == ("frozen camera", "episode 1 frame 3, observation.images.front")
    assert "up to 5 equal pictures" in finding.found


def test_a_camera_before_which_nothing_moves_is_not_frozen(tmp_path, toy):
    still = episode(toy, 1)
    still = dataclasses.replace(still, images=(still.images[0],) * LENGTH, states=np.zeros((LENGTH, 5)))
    still = dataclasses.replace(still, other_images={"wrist": still.other_images["wrist"]})
    assert found(write(tmp_path / "d", [episode(toy, 0), still])) == []


def test_cameras_that_were_exchanged_are_found(tmp_path, toy):
    episodes = [episode(toy, seed) for seed in range(3)]
    exchanged = episode(toy, 3, front=(30, 30, 200), wrist=(200, 30, 30))
    path = write(tmp_path / "d", [exchanged, *episodes])
    assert found(path) == [("swapped cameras", "episode 0, observation.images.front and observation.images.wrist")]


def test_an_episode_without_pictures_is_found(tmp_path, toy):
    blind = dataclasses.replace(episode(toy, 1), images=(None,) * LENGTH)
    path = write(tmp_path / "d", [episode(toy, 0), blind])
    assert found(path) == [("picture count", "episode 1, observation.images.front")]


def test_a_video_that_is_too_short_is_found(tmp_path, toy):
    path = write(tmp_path / "d", [episode(toy, seed) for seed in range(2)], is_video=True)
    table = pq.read_table(path / EPISODES)
    key = "videos/observation.images.wrist/to_timestamp"
    place = table.schema.get_field_index(key)
    pq.write_table(table.set_column(place, key, pa.array([0.8, 1.4])), path / EPISODES)
    assert found(path) == [("picture count", "episode 1, observation.images.wrist")]


def test_picture_statistics_that_were_not_scaled_are_found(clean):
    def scale(stats):
        image = stats["observation.images.front"]
        image["mean"] = (255 * np.asarray(image["mean"])).tolist()

    change_json(clean, "stats.json", scale)
    assert found(clean) == [("picture statistics", "meta/stats.json, observation.images.front")]


@pytest.mark.parametrize("file", [DATA, EPISODES])
def test_a_truncated_file_is_found(clean, file):
    (clean / file).write_bytes((clean / file).read_bytes()[:-50])
    (finding,) = check_dataset(clean).findings
    assert finding.kind == "unreadable"
    assert "not a complete parquet file" in finding.found


def test_a_folder_that_does_not_exist_is_an_error_and_no_finding(tmp_path):
    with pytest.raises(DataError, match="no dataset folder"):
        check_dataset(tmp_path / "nowhere")


def test_a_finding_fails_the_check_and_says_what_to_do(clean):
    change_rows(clean, "frame_index", lambda values: values.__setitem__(2, 7))
    report = check_dataset(clean)
    assert str(report).splitlines()[2].startswith("    fix: ")
    with pytest.raises(CheckFailed, match="1 errors and 0 warnings were found"):
        report.raise_if_failed()


def test_the_command_line_says_what_to_do_and_exits_with_one(clean, capsys):
    assert main(["data", "check", str(clean)]) == 0
    assert capsys.readouterr().out == "ok\n"
    change_rows(clean, "frame_index", lambda values: values.__setitem__(2, 7))
    assert main(["data", "check", str(clean)]) == 1
    assert "    fix: write the dataset again" in capsys.readouterr().out


def test_the_command_line_gives_findings_as_json(clean, capsys):
    (clean / "meta" / "stats.json").unlink()
    assert main(["data", "check", str(clean), "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["report"]["findings"]
    assert (finding["kind"], finding["severity"]) == ("statistics", "error")


def test_the_command_line_shows_a_dataset(clean, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["data", "show", str(clean), "--out", str(page), "--episodes", "1"]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.stat().st_size > 10_000
