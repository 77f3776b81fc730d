from __future__ import annotations

import json

import numpy as np
import pytest

from roboalign.sdk.data import CollectConfig, LeRobotDataset, collect
from roboalign.sdk.data import collect as collect_function
from roboalign.sdk.data.recording import ActionNoise, record_demonstration, record_scene
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.suites import find_suite
from roboalign.sdk.types import STATES

pytest.importorskip("pyarrow")
QUIET = ActionNoise(share=0.0, std_m=0.01, std_rad=0.05)
LOUD = ActionNoise(share=1.0, std_m=0.002, std_rad=0.05)


def play(toy, env, *, seed=0, noise=QUIET, image_every=3):
    return record_demonstration(
        env, toy.expert, scene={"task": "place"}, seed=seed, noise=noise, image_every=image_every, rate_hz=10.0
    )


def look(toy, env, *, seed=0, num_images=3):
    return record_scene(
        env, toy.expert, scene={"task": "place"}, seed=seed, noise=QUIET, num_images=num_images, rate_hz=10.0
    )


@pytest.fixture
def toy_simulator(monkeypatch, toy):
    """Puts the toy environment in the place of the simulator; returns it."""
    import sys

    env = toy.env()
    module = sys.modules[collect_function.__module__]
    monkeypatch.setattr(module, "_simulator", lambda config: (env, toy.expert))
    return env


def config_for(path, **changes):
    fields = {"out": path, "episodes": 4, "tasks": ("place", "push"), "workers": 1, "image_size_px": 16}
    return CollectConfig(**{**fields, **changes})


def test_a_demonstration_ends_with_success(toy):
    episode = play(toy, toy.env())
    assert len(episode) == 10
    assert episode.task == "place it"
    assert episode.frames_with_images.tolist() == [0, 3, 6, 9]


def test_state_and_image_are_those_before_the_action(toy):
    from roboalign.sdk.data import decode_png

    episode = play(toy, toy.env())
    np.testing.assert_allclose(episode.states[:2, 0], [0.4, 0.42], atol=1e-6)
    np.testing.assert_array_equal(decode_png(episode.images[3]), toy.image(3))


def test_a_failed_demonstration_is_dropped(toy):
    assert play(toy, toy.env(), seed=16) is None


def test_noise_is_executed_and_not_recorded(toy):
    env = toy.env()
    episode = play(toy, env, noise=LOUD)
    executed = np.stack(env.executed)
    np.testing.assert_array_equal(
        episode.actions, np.broadcast_to([[0.02, 0, 0, 0, 1]], episode.actions.shape).astype(np.float32)
    )
    assert np.abs(executed[:, :4] - episode.actions[:, :4]).min() > 0
    np.testing.assert_array_equal(executed[:, 4], 1.0)


def test_the_asked_share_of_steps_is_disturbed():
    rng = np.random.default_rng(0)
    noise = ActionNoise(share=0.3, std_m=0.01, std_rad=0.05)
    action = np.zeros(5, np.float32)
    disturbed = [np.any(noise.disturb(action, rng)) for _ in range(4000)]
    assert abs(np.mean(disturbed) - 0.3) < 0.03


def test_a_subtask_row_marks_each_new_stage(toy):
    rows = play(toy, toy.env()).language_persistent
    assert [row.content for row in rows] == ["move above the red block", "carry the red block to the blue bowl"]
    assert [row.timestamp_s for row in rows] == [0.0, 0.5]
    assert {row.style for row in rows} == {"subtask"}


def test_a_scene_has_the_asked_number_of_images_or_ends_with_success(toy):
    for seed in range(20):
        env = toy.env()
        episode = look(toy, env, seed=seed)
        assert env.num_renders == len(episode.frames_with_images)
        assert 1 <= env.num_renders <= 3
        assert episode.images[-1] is not None


def test_scenes_show_all_moments_of_an_episode(toy):
    seen = np.concatenate([look(toy, toy.env(), seed=seed, num_images=4).frames_with_images for seed in range(80)])
    assert set(range(10)) <= set(seen.tolist())


def test_collect_keeps_the_asked_number_of_episodes(tmp_path, toy_simulator):
    path = collect(config_for(tmp_path / "d"), show_progress=False)
    dataset = LeRobotDataset(path)
    assert dataset.num_episodes == 4
    assert dataset.families == ("place", "push", "place", "push")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_failed_attempts_are_counted_and_replaced(tmp_path, toy_simulator):
    path = collect(config_for(tmp_path / "d"), show_progress=False)
    report = json.loads((path / "meta" / "roboalign.json").read_text())
    assert report["episodes"] == {"place": 2, "push": 2}
    assert report["attempts"] == {"place": 2, "push": 4}


def test_the_summary_goes_to_stderr(tmp_path, toy_simulator, capfd):
    collect(config_for(tmp_path / "d"))
    out, err = capfd.readouterr()
    assert out == ""
    assert "4 episodes" in err
    assert "push 2/4" in err


def test_an_interrupted_recording_goes_on_where_it_was(tmp_path, toy_simulator, toy, monkeypatch):
    import sys

    whole = collect(config_for(tmp_path / "whole"), show_progress=False)
    module = sys.modules[collect_function.__module__]
    record, done = module._record, []

    def record_two(job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job.episode)
        return record(job)

    monkeypatch.setattr(module, "_record", record_two)
    with pytest.raises(KeyboardInterrupt):
        collect(config_for(tmp_path / "d"), show_progress=False)
    assert not (tmp_path / "d").exists()
    recorded = []
    monkeypatch.setattr(module, "_record", lambda job: (recorded.append(job.episode), record(job))[1])
    path = collect(config_for(tmp_path / "d"), show_progress=False)
    assert recorded == [2, 3]
    assert LeRobotDataset(path).data_hash() == LeRobotDataset(whole).data_hash()


def test_the_same_recording_again_does_nothing(tmp_path, toy_simulator):
    path = collect(config_for(tmp_path / "d"), show_progress=False)
    toy_simulator.num_renders = 0
    assert collect(config_for(tmp_path / "d"), show_progress=False) == path
    assert toy_simulator.num_renders == 0


def test_another_recording_never_replaces_one(tmp_path, toy_simulator):
    collect(config_for(tmp_path / "d"), show_progress=False)
    with pytest.raises(ConfigError, match=r"recorded differently \(seed 0 -> 1\)"):
        collect(config_for(tmp_path / "d", seed=1), show_progress=False)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, toy_simulator):
    (tmp_path / "d").mkdir()
    with pytest.raises(ConfigError, match="no recording of roboalign"):
        collect(config_for(tmp_path / "d"), show_progress=False)


def test_what_lies_where_the_shards_go_is_not_deleted(tmp_path, toy_simulator):
    """A folder `<out>.partial` without settings used to be removed without a word."""
    note = tmp_path / "d.partial" / "note.txt"
    note.parent.mkdir()
    note.write_text("mine")
    with pytest.raises(ConfigError, match=r"holds something, but no collect\.json"):
        collect(config_for(tmp_path / "d"), show_progress=False)
    assert note.read_text() == "mine"


def test_a_hopeless_episode_says_so(tmp_path, toy_simulator, monkeypatch):
    monkeypatch.setattr(toy_simulator, "is_success", lambda: False)
    with pytest.raises(DataError, match=r"did not finish episode 0 \(place\) in 16 scenes, seeds 0 to 15"):
        collect(config_for(tmp_path / "d"), show_progress=False)


def test_an_error_in_a_worker_names_the_episode(tmp_path, toy_simulator, monkeypatch):
    def fail():
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(toy_simulator, "truth", fail)
    with pytest.raises(DataError, match=r"episode 0 \(place, seed 0\) failed with ZeroDivisionError: by zero"):
        collect(config_for(tmp_path / "d"), show_progress=False)


def test_each_seed_has_scenes_of_its_own(tmp_path, toy_simulator):
    hashes = set()
    for seed in range(3):
        path = collect(config_for(tmp_path / str(seed), seed=seed), show_progress=False)
        hashes.add(LeRobotDataset(path).data_hash())
    assert len(hashes) == 3


def test_scenes_are_collected_without_success(tmp_path, toy_simulator, monkeypatch):
    monkeypatch.setattr(toy_simulator, "is_success", lambda: False)
    config = config_for(tmp_path / "d", mode="scenes", images_per_episode=2)
    dataset = LeRobotDataset(collect(config, show_progress=False))
    assert all(len(episode.frames_with_images) >= 1 for episode in dataset)


@pytest.mark.parametrize(
    ("field", "value"),
    [("mode", "dreams"), ("episodes", 0), ("workers", 0), ("noise_share", 1.5), ("image_every", 0), ("seed", 100)],
)
def test_a_wrong_setting_is_named(tmp_path, field, value):
    with pytest.raises(ConfigError, match=rf"CollectConfig\.{field} is {value!r}, expected"):
        config_for(tmp_path / "d", **{field: value})


def test_an_unknown_task_is_named_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="unknown task 'plaze'; did you mean place"):
        collect(config_for(tmp_path / "d", tasks=("place", "plaze")), show_progress=False)


def test_an_unknown_split_is_named(tmp_path):
    with pytest.raises(ConfigError, match="unknown split 'test'"):
        collect(config_for(tmp_path / "d", split="test"), show_progress=False)


def test_what_the_randomisation_drew_is_recorded_with_the_episode(tmp_path, toy_simulator):
    toy_simulator.drawn = {"camera": {"pan_rad": 0.01}}
    dataset = LeRobotDataset(collect(config_for(tmp_path / "d"), show_progress=False))
    assert dataset.episode(2).domain == {"camera": {"pan_rad": 0.01}}


def test_sentences_that_change_on_the_way_are_recorded(toy):
    env = toy.env()
    env.instructions = ["go there"] * 5 + ["come back"] * 60
    episode = play(toy, env)
    assert episode.task == "go there"
    assert set(episode.instructions) == {"go there", "come back"}


def test_every_camera_of_the_robot_is_recorded(toy):
    env = toy.env()
    env.cameras = ("wrist", "front")
    episode = play(toy, env)
    assert list(episode.other_images) == ["wrist"]
    assert [image is not None for image in episode.other_images["wrist"][:4]] == [True, False, False, True]


def test_a_suite_brings_its_tasks_and_its_robot(tmp_path):
    config = config_for(tmp_path / "d", suite="so101").resolved()
    assert config.robot == "so101"
    assert set(config.tasks) == set(find_suite("so101").tasks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"robot": "so101"}, "laid out for the arm panda, asked for so101"), ({"tasks": ("place",)}, "its own tasks")],
)
def test_what_a_suite_would_leave_out_in_silence_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        CollectConfig(out=tmp_path / "d", episodes=1, suite="spatial", **changes).resolved()


def test_a_randomisation_that_changed_in_its_file_is_another_recording(tmp_path, toy_simulator):
    """Only the name of the file was compared, so a recording went on with other ranges than it began with."""
    ranges = tmp_path / "dim.json"
    ranges.write_text(json.dumps({"light": {"ambient_scale": {"uniform": [0.5, 0.7]}}}))
    config = config_for(tmp_path / "d", randomization=str(ranges))
    collect(config, show_progress=False)
    ranges.write_text(json.dumps({"light": {"ambient_scale": {"uniform": [0.2, 0.3]}}}))
    with pytest.raises(ConfigError, match="randomization_fingerprint"):
        collect(config, show_progress=False)


def test_an_unknown_suite_is_named_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean spatial"):
        collect(config_for(tmp_path / "d", suite="spacial"), show_progress=False)


def test_videos_need_an_image_at_every_frame(tmp_path):
    with pytest.raises(ConfigError, match=r"CollectConfig\.is_video is True, expected False unless image_every is 1"):
        config_for(tmp_path / "d", is_video=True, image_every=2)


def test_demonstrations_can_be_stored_as_video(tmp_path, toy_simulator):
    path = collect(config_for(tmp_path / "d", is_video=True, image_every=1), show_progress=False)
    dataset = LeRobotDataset(path)
    assert [file.name for file in path.rglob("*.mp4")] == ["file-000.mp4"]
    assert len(dataset.frames_with_images()) == dataset.num_frames


def test_a_recording_of_an_older_version_is_recognised(tmp_path, toy_simulator):
    path = collect(config_for(tmp_path / "d"), show_progress=False)
    report = json.loads((path / "meta" / "roboalign.json").read_text())
    settings = report["config"]
    settings["families"] = settings.pop("tasks")
    for name in ("suite", "robot", "randomization", "randomization_fingerprint", "is_video"):
        del settings[name]
    (path / "meta" / "roboalign.json").write_text(json.dumps(report))
    assert collect(config_for(tmp_path / "d"), show_progress=False) == path


def test_a_shard_that_a_crash_cut_is_recorded_again(tmp_path, toy_simulator, monkeypatch):
    import sys

    whole = collect(config_for(tmp_path / "whole"), show_progress=False)
    module = sys.modules[collect_function.__module__]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_assemble", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            collect(config_for(tmp_path / "d"), show_progress=False)
    (tmp_path / "d.partial" / "episode-000001.parquet").write_bytes(b"PAR1")
    path = collect(config_for(tmp_path / "d"), show_progress=False)
    assert LeRobotDataset(path).data_hash() == LeRobotDataset(whole).data_hash()


def test_a_full_disk_says_that_the_recording_can_go_on(tmp_path, toy_simulator):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"File too large .* the same command goes on where it stopped"):
            collect(config_for(tmp_path / "d"), show_progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert LeRobotDataset(collect(config_for(tmp_path / "d"), show_progress=False)).num_episodes == 4


def test_what_is_recorded_of_a_late_arm_is_what_the_actions_displace(tmp_path):
    pytest.importorskip("pybullet")
    late = tmp_path / "late.toml"
    late.write_text(
        'preset = "off"\n[delay]\nbus_ms = 70\n[rate_limit]\nspeed_scale = 0.5\n[observation_noise]\n'
        "joint_std_rad = 0.003\n"
    )
    found = {}
    for state in ("measured", "commanded"):
        config = CollectConfig(
            out=tmp_path / state,
            episodes=1,
            tasks=("place",),
            robot="so101",
            randomization=str(late),
            noise_share=0.0,
            image_every=50,
            workers=1,
            state=state,
        )
        dataset = LeRobotDataset(collect(config, show_progress=False))
        dataset.info.require_trainable(dataset.path)
        assert dataset.info.state_names == STATES[state]
        episode = dataset.episode(0)
        moved = np.diff(episode.states[:, :3], axis=0)
        found[state] = np.abs(moved - episode.actions[:-1, :3]).max()
    assert found["commanded"] < 1e-5  # of the limiter's rounding
    assert found["measured"] > 5e-3


def test_a_state_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="state is 'wished', expected one of measured, commanded"):
        config_for(tmp_path / "d", state="wished")
