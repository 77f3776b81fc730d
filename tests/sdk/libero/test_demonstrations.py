from pathlib import Path

import numpy as np
import pytest

from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.errors import CheckFailed, ConfigError, DataError
from roboalign.sdk.libero.demonstrations import LiberoCollectConfig, collect_libero
from roboalign.sdk.libero.env import LiberoEnv
from roboalign.sdk.libero.replay import ReplayedEpisode, ReplayReport, replay_dataset
from roboalign.sdk.sim.seeds import is_eval_seed


def config(out: Path, **changes: object) -> LiberoCollectConfig:
    settings: dict[str, object] = {"tasks": ("milk", "2"), "episodes": 2, "image_every": 3, "image_size_px": 24}
    return LiberoCollectConfig(out=out, suite="libero_object", **{**settings, **changes})  # type: ignore[arg-type] # any


@pytest.fixture(scope="module")
def dataset(env: LiberoEnv, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect_libero(config(tmp_path_factory.mktemp("libero") / "demos"), env=env, show_progress=False)


def test_episodes_lie_task_by_task(dataset: Path) -> None:
    found = LeRobotDataset(dataset)
    assert [str(task).partition("_")[2].partition("_")[0] for task in found.task_ids] == ["object/7"] * 2 + [
        "object/2"
    ] * 2
    assert found.info.rate_hz == 20.0
    assert found.cameras == ("front", "wrist")


def test_pictures_are_where_they_were_asked_for(dataset: Path) -> None:
    episode = LeRobotDataset(dataset).episode(0)
    assert list(episode.frames_with_images) == list(range(0, len(episode), 3))
    assert episode.other_images["wrist"][3] is not None


def test_what_the_expert_did_is_said_in_words(dataset: Path) -> None:
    words = [row.content for row in LeRobotDataset(dataset).episode(0).language_persistent]
    assert words[0] == "move to the milk"
    assert "carry the milk to the basket" in words


def test_no_seed_is_an_evaluation_seed_and_none_is_used_twice(dataset: Path) -> None:
    seeds = [int(span.extra["seed"]) for span in LeRobotDataset(dataset).spans]
    assert len(set(seeds)) == 4
    assert not any(is_eval_seed(seed) for seed in seeds)


def test_the_same_recording_again_does_nothing(dataset: Path, env: LiberoEnv) -> None:
    before = (dataset / "meta" / "info.json").stat().st_mtime_ns
    assert collect_libero(config(dataset), env=env, show_progress=False) == dataset
    assert (dataset / "meta" / "info.json").stat().st_mtime_ns == before


def test_another_recording_under_the_same_name_is_refused(dataset: Path, env: LiberoEnv) -> None:
    with pytest.raises(ConfigError, match=r"recorded differently .*episodes 2 -> 3"):
        collect_libero(config(dataset, episodes=3), env=env, show_progress=False)


def test_an_interrupted_recording_goes_on_and_gives_the_same(dataset: Path, env: LiberoEnv, tmp_path: Path) -> None:
    out = tmp_path / "demos"
    steps, advance = iter(range(150)), env.advance

    def interrupted(action: np.ndarray) -> bool:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return advance(action)

    env.advance = interrupted  # type: ignore[method-assign] # the key is pressed in the second episode
    try:
        with pytest.raises(KeyboardInterrupt):
            collect_libero(config(out), env=env, show_progress=False)
    finally:
        del env.advance  # type: ignore[attr-defined] # gives the method back
    kept = list((tmp_path / "demos.partial").glob("task-*.parquet"))
    assert 1 <= len(kept) < 4
    assert not out.exists()
    collect_libero(config(out), env=env, show_progress=False)
    assert np.array_equal(LeRobotDataset(out).actions(), LeRobotDataset(dataset).actions())


def test_a_task_that_the_expert_cannot_do_is_named(env: LiberoEnv, tmp_path: Path) -> None:
    env.max_steps = 5
    try:
        with pytest.raises(DataError, match="16 scenes"):
            collect_libero(config(tmp_path / "demos"), env=env, show_progress=False)
    finally:
        env.max_steps = 280


def test_replay_follows_the_recorded_path(dataset: Path, env: LiberoEnv) -> None:
    report = replay_dataset(dataset, env=env, show_progress=False)
    assert (report.num_solved, report.share) == (4, 1.0)
    assert report.error_m < 1e-6


def test_a_replay_below_the_bar_fails_and_names_the_episodes() -> None:
    good = [ReplayedEpisode(index=i, task="t", seed=i, success=True, error_m=0.0) for i in range(18)]
    bad = [ReplayedEpisode(index=i, task="milk", seed=i, success=False, error_m=0.1) for i in (18, 19)]
    with pytest.raises(CheckFailed, match=r"18 of 20 .* 18 \(milk, seed 18\)"):
        ReplayReport(dataset="d", episodes=(*good, *bad)).raise_if_failed()


@pytest.mark.parametrize(
    "change",
    [
        {"episodes": 0},
        {"tasks": ("7", "milk")},
        {"cameras": ("wrist",)},
        {"is_video": True},
        {"seed": 100},
        {"split": "x"},
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        config(tmp_path, **change)


def test_attempts_of_different_episodes_and_tasks_never_meet(tmp_path: Path) -> None:
    made = config(tmp_path, tasks=(), episodes=1000)
    seeds = {made.seed_of(task, episode, 15) for task in made.tasks for episode in (0, 1, 999)}
    assert len(seeds) == 30
    assert max(seeds) < 1_000_000
