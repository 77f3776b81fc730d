"""Records demonstrations of the scripted expert on LIBERO as a LeRobotDataset, and plays them back.

Scenes are placements that the benchmark draws for a training seed, never its 50 frozen evaluation states. Finished
episodes lie as shards in `<out>.partial/`: a killed recording goes on where it was, and `out` appears complete.

The column `roboalign.truth` is null, as in data of a real robot; what the expert does is in `language_persistent` as
rows of style `subtask`.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.sdk.data import layout
from roboalign.sdk.data.arrow import encode_png
from roboalign.sdk.data.episode import Episode, LanguageRow
from roboalign.sdk.data.progress import RecordingProgress
from roboalign.sdk.data.shards import remove_shard, shard_notes, write_shard
from roboalign.sdk.data.storage import one_writer, told_when_full
from roboalign.sdk.data.video import video_info
from roboalign.sdk.data.writer import DatasetWriter
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.libero.env import CAMERAS, CONTROL_RATE_HZ, LiberoEnv, open_env
from roboalign.sdk.libero.expert import LiberoExpert
from roboalign.sdk.libero.suites import LIBERO_SPLITS, find_task, suite_of_split, task_ids
from roboalign.sdk.sim.seeds import train_seed
from roboalign.sdk.types import FloatArray, Observation

__all__ = ["LiberoCollectConfig", "collect_libero", "record_episode"]

MAX_ATTEMPTS = 16
"""Scenes tried for one episode before giving up."""
MAX_EPISODES = 1000
"""Largest number of episodes of a task; decides the seeds."""
SEED_STRIDE = 1_000_000
"""Training seeds reserved for each value of `LiberoCollectConfig.seed`; each task has a share of them."""
REPORT_FILE = "roboalign.json"
"""Name of the report under `meta/`, as in recordings of our own simulator."""
SETTINGS_FILE = "collect.json"
FULL_DISK = "free some, then run the same command again: complete episodes are kept"

_WORDS = {
    "reach": "move to {item}",
    "descend": "lower the gripper to {item}",
    "grasp": "grasp {item}",
    "lift": "lift {item}",
    "carry": "carry {item} to {place}",
    "lower": "lower {item} to {place}",
    "release": "let go of {item}",
    "retreat": "move up",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LiberoCollectConfig:
    """What to record, and where to."""

    out: Path
    """Folder of the dataset; it must not exist yet."""
    suite: str
    """`libero_object`, `libero_spatial`, or a LIBERO-PRO suite."""
    episodes: int = 20
    """Successful episodes of each task."""
    tasks: tuple[str, ...] = ()
    """Ids or what identifies them; empty for all ten."""
    split: str = "train"
    """`train`, or a LIBERO-PRO variant of the suite."""
    seed: int = 0
    """Chooses one of 100 disjoint blocks of training seeds."""
    image_every: int = 1
    """Frames 0, k, 2k ... get images; 0 records states only."""
    image_size_px: int = 96
    """Height and width of the images."""
    cameras: tuple[str, ...] = ("front", "wrist")
    """Cameras to record, `front` first."""
    is_video: bool = False
    """Stores pictures as video; needs images in every frame."""

    def __post_init__(self) -> None:
        suite_of_split(self.suite, self.split)
        numbers = [find_task(self.suite, task) for task in self.tasks] or range(len(task_ids(self.suite)))
        object.__setattr__(self, "tasks", tuple(task_ids(self.suite)[number] for number in numbers))
        object.__setattr__(self, "out", Path(self.out))
        checks = {
            "tasks": (len(set(self.tasks)) == len(self.tasks), "each task once"),
            "episodes": (1 <= self.episodes <= MAX_EPISODES, f"1 to {MAX_EPISODES}"),
            "seed": (0 <= self.seed < 100, "0 to 99"),
            "image_every": (self.image_every >= 0, "0 or more"),
            "image_size_px": (16 <= self.image_size_px <= 1024, "16 to 1024"),
            "cameras": (self.cameras[:1] == ("front",) and set(self.cameras) <= set(CAMERAS), "front, then wrist"),
            "is_video": (not self.is_video or self.image_every == 1, "false, or image_every 1"),
            "split": (self.split in LIBERO_SPLITS, f"one of {', '.join(LIBERO_SPLITS)}"),
        }
        for name, (is_fine, expected) in checks.items():
            if not is_fine:
                raise ConfigError(f"LiberoCollectConfig.{name} is {getattr(self, name)!r}, expected {expected}")

    def settings(self) -> dict[str, Any]:
        """Returns all that decides the content of the dataset, ready for JSON."""
        fields = asdict(self)
        del fields["out"]
        return {**fields, "tasks": list(self.tasks), "cameras": list(self.cameras)}

    def seed_of(self, task: str, episode: int, attempt: int) -> int:
        """Returns the seed of one attempt; it does not depend on what else is recorded."""
        number = find_task(self.suite, task)
        share = SEED_STRIDE // len(task_ids(self.suite))
        return train_seed(self.seed * SEED_STRIDE + number * share + episode * MAX_ATTEMPTS + attempt)


def collect_libero(config: LiberoCollectConfig, *, env: LiberoEnv | None = None, show_progress: bool = True) -> Path:
    """Records the dataset and returns its folder; blocks until it is complete.

    Started again after it was killed, it goes on with the episodes that are missing. When the folder already holds
    exactly this dataset, nothing is done.

    Args:
        config: What to record.
        env: Where; None opens what `roboalign libero setup` installed.
        show_progress: Draws a progress bar on stderr.

    Raises:
        ConfigError: the folder exists with something else in it, or another process records it.
        DataError: the expert cannot do an episode, or the disk is full.
        BackendError: the benchmark is missing or failed.
    """
    partial = config.out.with_name(config.out.name + ".partial")
    with one_writer(partial), told_when_full(config.out, FULL_DISK):
        if config.out.exists():
            _require_same(config.settings(), config.out / "meta" / REPORT_FILE, config.out)
            return config.out
        _prepare(config, partial)
        own = open_env(config.suite, config.split, config.image_size_px, cameras=config.cameras) if env is None else env
        try:
            versions = _record_all(config, partial, own, show_progress)
        finally:
            if env is None:
                own.close()
        _assemble(config, partial, versions)
        shutil.rmtree(partial)
    return config.out


def record_episode(env: LiberoEnv, expert: LiberoExpert, *, task: str, seed: int, image_every: int) -> Episode | None:
    """Returns one successful demonstration, or None when the expert did not finish in time."""
    env.reset(seed=seed, options={"task": task})
    expert.reset()
    observations: list[Observation] = []
    actions: list[FloatArray] = []
    subtasks: list[LanguageRow] = []
    is_over = False
    while not is_over:
        step = len(actions)
        observations.append(env.observe(with_image=image_every > 0 and step % image_every == 0))
        actions.append(expert.action(env.truth()))
        words = _words(expert.stage, env)
        if not subtasks or subtasks[-1].content != words:
            time_s = step / CONTROL_RATE_HZ
            subtasks.append(LanguageRow(role="assistant", content=words, style="subtask", timestamp_s=time_s))
        is_over = env.advance(actions[-1])
        if env.is_success():
            return _episode(observations, actions, subtasks, env.robot_spec.camera_names)
    return None


def _episode(
    observations: list[Observation], actions: list[FloatArray], subtasks: list[LanguageRow], cameras: tuple[str, ...]
) -> Episode:
    pictures = {
        camera: tuple(encode_png(seen.images[camera]) if camera in seen.images else None for seen in observations)
        for camera in cameras
    }
    return Episode(
        task=observations[0].instruction,
        states=np.stack([seen.state for seen in observations]),
        joint_pos_rad=np.stack([seen.joint_pos_rad for seen in observations]),
        actions=np.stack(actions),
        images=pictures.pop(cameras[0]),
        other_images=pictures,
        truth_json=(None,) * len(actions),
        rate_hz=CONTROL_RATE_HZ,
        language_persistent=tuple(subtasks),
    )


def _words(stage: str, env: LiberoEnv) -> str:
    goal = env.task.goals[0]
    names = [f"the {env.truth().find(name).name.rpartition('_')[0].replace('_', ' ')}" for name in goal[1:3]]
    return _WORDS[stage].format(item=names[0], place=names[-1])


def _prepare(config: LiberoCollectConfig, partial: Path) -> None:
    """Makes the folder of the shards, or checks that the one of a killed run belongs to the same recording."""
    settings = config.settings()
    del settings["episodes"], settings["tasks"]
    path = partial / SETTINGS_FILE
    if path.exists():
        _require_same(settings, path, partial)
    else:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for leftover in partial.glob("*.tmp-*"):
        leftover.unlink()


def _require_same(settings: dict[str, Any], path: Path, folder: Path) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.get("config", content)
    except (OSError, ValueError, AttributeError):
        raise ConfigError(f"{folder} exists and is no recording of roboalign; choose another folder") from None
    changed = [f"{key} {found.get(key)!r} -> {value!r}" for key, value in settings.items() if found.get(key) != value]
    if changed:
        raise ConfigError(f"{folder} was recorded differently ({'; '.join(changed)}); delete it or choose another")


def _shards(config: LiberoCollectConfig, partial: Path) -> list[tuple[str, int, Path]]:
    """Task, number within the task, and file of every episode, in the order of the dataset."""
    numbers = [(task, episode) for task in config.tasks for episode in range(config.episodes)]
    return [
        (task, episode, partial / f"task-{find_task(config.suite, task)}-episode-{episode:04d}.parquet")
        for task, episode in numbers
    ]


def _record_all(config: LiberoCollectConfig, partial: Path, env: LiberoEnv, show_progress: bool) -> dict[str, str]:
    """Records what is missing; returns the packages of the benchmark."""
    jobs = _shards(config, partial)
    missing = [job for job in jobs if not _is_recorded(job[2])]
    expert = LiberoExpert(env)
    title = f"collect {config.suite}"
    with RecordingProgress(title=title, total=len(jobs), is_shown=show_progress) as progress:
        progress.skip(len(jobs) - len(missing))
        for task, number, shard in missing:
            progress.advance(_record(config, env, expert, task, number, shard))
    return dict(env.versions)


def _record(
    config: LiberoCollectConfig, env: LiberoEnv, expert: LiberoExpert, task: str, number: int, shard: Path
) -> int:
    """Records one episode and writes its shard; returns the attempts it took."""
    for attempt in range(MAX_ATTEMPTS):
        seed = config.seed_of(task, number, attempt)
        episode = record_episode(env, expert, task=task, seed=seed, image_every=config.image_every)
        if episode is None:
            continue
        notes = {
            "family": config.suite,
            "task": task,
            "robot": env.robot_spec.name,
            "split": config.split,
            "seed": seed,
            "attempts": attempt + 1,
            "versions": dict(env.versions),
        }
        features = layout.dataset_features(
            image_size_px=config.image_size_px,
            num_joints=episode.joint_pos_rad.shape[1],
            cameras=config.cameras,
            video_info=video_info(CONTROL_RATE_HZ) if config.is_video else None,
        )
        try:
            write_shard(shard, episode, features=features, notes=notes)
        except BaseException:
            remove_shard(shard)
            raise
        return attempt + 1
    raise DataError(
        f"the expert did not finish episode {number} of {task} in {MAX_ATTEMPTS} scenes, seeds "
        f"{config.seed_of(task, number, 0)} to {config.seed_of(task, number, MAX_ATTEMPTS - 1)}; leave this task out"
    )


def _is_recorded(shard: Path) -> bool:
    if not shard.exists():
        return False
    try:
        shard_notes(shard)
    except DataError:  # cut by a crash of the machine: it is recorded again
        remove_shard(shard)
        return False
    return True


def _assemble(config: LiberoCollectConfig, partial: Path, versions: dict[str, str]) -> None:
    attempts: Counter[str] = Counter()
    episodes: Counter[str] = Counter()
    with DatasetWriter(
        config.out,
        image_size_px=config.image_size_px,
        num_joints=7,
        rate_hz=CONTROL_RATE_HZ,
        robot_type="libero-panda",
        cameras=config.cameras,
        is_video=config.is_video,
    ) as writer:
        for task, _, shard in _shards(config, partial):
            notes = writer.add_shard(shard)
            attempts[task] += int(str(notes["attempts"]))
            episodes[task] += 1
            found = notes.get("versions")
            versions = versions or (dict(found) if isinstance(found, dict) else {})
        report = {
            "config": config.settings(),
            "episodes": dict(episodes),
            "attempts": dict(attempts),
            "frames": writer.num_frames,
            "images": writer.num_images,
            "versions": versions,
        }
        writer.write_extra(REPORT_FILE, report)
