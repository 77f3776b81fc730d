"""The frozen initial states: stored as drawn, checked when read, and never met in training."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.sim.scene import scene_from_json, scene_to_json
from roboalign.sdk.sim.seeds import eval_seed, train_seed
from roboalign.sdk.sim.tasks import find_task, scene_for
from roboalign.sdk.suites import find_suite, frozen_scene, suite_tasks
from roboalign.sdk.suites.splits import rounded
from roboalign.sdk.suites.states import check_store, draw_state, main, scene_hash, write_store
from roboalign.sdk.suites.store import FOLDER, MANIFEST, read_lines, read_manifest

TASKS = [task.name for task in suite_tasks()]
every_task = pytest.mark.parametrize("task", TASKS)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "store"))


@every_task
def test_a_stored_state_is_the_one_that_is_drawn(task: str) -> None:
    for index in (0, 17, 49):
        assert frozen_scene(task, eval_seed(index)) == draw_state(task, index)


@every_task
def test_there_are_fifty_states_all_different(task: str) -> None:
    states = {frozen_scene(task, eval_seed(index)) for index in range(50)}
    assert len(states) == 50
    assert None not in states
    assert frozen_scene(task, eval_seed(50)) is None


@every_task
def test_the_environments_scene_of_an_evaluation_seed_is_the_frozen_one(task: str) -> None:
    assert scene_for(eval_seed(3), task) == frozen_scene(task, eval_seed(3))
    assert scene_for(eval_seed(50), task) == draw_state(task, 50)
    assert scene_for(eval_seed(3), task, "swap") == draw_state(task, 3, split="swap")


@every_task
def test_no_training_seed_gives_a_frozen_state(task: str) -> None:
    frozen = {frozen_scene(task, eval_seed(index)) for index in range(50)}
    for index in range(50):
        assert frozen_scene(task, train_seed(index)) is None
        assert scene_for(train_seed(index), task) not in frozen


def test_only_the_training_split_is_stored_and_only_for_suites() -> None:
    assert frozen_scene(TASKS[0], eval_seed(0), "swap") is None
    assert frozen_scene("place", eval_seed(0)) is None
    assert frozen_scene("theirs/task", eval_seed(0)) is None


def test_the_store_is_small_and_its_numbers_are_rounded() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000
    for task in TASKS:
        scene = frozen_scene(task, eval_seed(0))
        assert scene is not None
        assert rounded(scene) == scene


def test_a_scene_survives_the_store() -> None:
    for task in TASKS:
        scene = draw_state(task, 1)
        assert scene_from_json(scene_to_json(scene)) == scene


@pytest.mark.parametrize("suite", ["spatial", "object", "goal", "long", "chain", "so101"])
def test_one_task_of_each_suite_draws_the_published_scenes_in_every_split(suite: str) -> None:
    """The others are compared by the slow test."""
    published = read_manifest(FOLDER)["scenes"]
    task, robot = find_suite(suite).tasks[0], find_suite(suite).robot
    for split in find_task(task).splits:
        drawn = scene_hash(task, robot=robot, split=split, num_states=50)
        assert drawn == published[f"{robot}|{task}|{split}"]


@pytest.mark.slow
def test_every_task_draws_the_published_scenes_in_every_split() -> None:
    assert check_store(FOLDER) == []


def test_the_splits_that_change_a_scene_have_hashes_of_their_own() -> None:
    published = read_manifest(FOLDER)["scenes"]
    for task in TASKS:
        of = {split: published[f"panda|{task}|{split}"] for split in find_task(task).splits}
        assert of["camera"] == of["lighting"] == of["train"]
        assert len(set(of.values())) == 4


def test_an_altered_file_is_found_out(copy: Path) -> None:
    path = copy / "spatial.jsonl.gz"
    text = gzip.decompress(path.read_bytes()).replace(b"red", b"tan", 1)
    path.write_bytes(gzip.compress(text))
    with pytest.raises(DataError, match=r"spatial\.jsonl\.gz are not the published ones: SHA-256 .* expected"):
        read_lines(copy, path.name)


def test_a_missing_file_is_a_clear_error(copy: Path) -> None:
    (copy / "long.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"long\.jsonl\.gz cannot be read .* reinstall roboalign"):
        read_lines(copy, "long.jsonl.gz")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1}'])
def test_a_broken_manifest_is_a_clear_error(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest(copy)


def test_a_manifest_of_another_version_is_refused(copy: Path) -> None:
    (copy / MANIFEST).write_text(json.dumps({"format": 2}), encoding="utf-8")
    with pytest.raises(DataError, match="has format 2, this version reads 1"):
        read_manifest(copy)


@pytest.fixture
def altered(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that differs, and a generator that is quick: the long way is the slow test's."""
    monkeypatch.setattr("roboalign.sdk.suites.states.scene_hashes", lambda: {"panda|place|train": "0"})
    monkeypatch.setattr("roboalign.sdk.suites.states.state_lines", lambda: {"object.jsonl.gz": ('{"task":"x"}',)})
    return copy


def test_a_store_that_differs_is_not_replaced_unasked(altered: Path) -> None:
    before = (altered / MANIFEST).read_bytes()
    with pytest.raises(ConfigError, match=r"holds other states .* --force"):
        write_store(altered)
    assert (altered / MANIFEST).read_bytes() == before


def test_force_replaces_a_store(altered: Path) -> None:
    assert main(["--write", "--force", "--folder", str(altered)]) == 0
    assert read_lines(altered, "object.jsonl.gz") == {"x": ('{"task":"x"}',)}


def test_the_command_tells_a_difference_by_its_exit_status(altered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(altered)]) == 1
    assert "scenes of panda|place|train differ" in capsys.readouterr().out


def test_the_command_needs_a_store_to_compare_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path)]) == 2
    assert "error: the manifest" in capsys.readouterr().err
