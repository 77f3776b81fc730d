"""Records expert demonstrations in parallel processes as one LeRobotDataset.

Episode k depends on k, on how many attempts it took and on the configuration, never on the number of workers or on the
order in which they finish. Finished episodes lie as shards in `<out>.partial/`, so that a killed run goes on where it
was; `out` appears, complete, at the end.

A script that calls `collect` with several workers needs the usual `if __name__ == "__main__":` guard, because they are
spawned processes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roboalign.sdk.data import layout
from roboalign.sdk.data.collect_config import MAX_ATTEMPTS, SEED_STRIDE, CollectConfig, with_defaults
from roboalign.sdk.data.episode import Episode
from roboalign.sdk.data.progress import RecordingProgress
from roboalign.sdk.data.recording import (
    DemonstrationEnv,
    Expert,
    record_demonstration,
    record_scene,
)
from roboalign.sdk.data.shards import remove_shard, shard_notes, write_shard
from roboalign.sdk.data.storage import one_writer, told_when_full
from roboalign.sdk.data.video import video_info
from roboalign.sdk.data.writer import DatasetWriter
from roboalign.sdk.errors import BackendError, ConfigError, DataError, RoboalignError
from roboalign.sdk.types import STATES

if TYPE_CHECKING:
    from roboalign.sdk.sim.env import SimEnv

__all__ = ["CollectConfig", "collect"]

CONTROL_RATE_HZ = 10.0
FULL_DISK = "free some, and the same command goes on where it stopped"
SETTINGS_FILE = "collect.json"
REPORT_FILE = "roboalign.json"
"""Name of the report under `meta/`: the configuration and how many attempts were needed."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def collect(config: CollectConfig, *, show_progress: bool = True) -> Path:
    """Records the dataset and returns its folder; blocks until it is complete.

    Started again after it was killed, it goes on with the episodes that are missing. When the folder already holds
    exactly this dataset, nothing is done.

    Args:
        config: What to record.
        show_progress: Draws a progress bar and a summary on stderr.

    Raises:
        ConfigError: the folder exists with something else in it, another process records it, or the simulator has no
            such task, robot or split.
        DataError: the expert cannot do an episode, a worker failed (its error is quoted), or the disk is full.
        BackendError: a worker process died, or an optional package is missing.
    """
    config = config.resolved()
    _check_scenes(config)
    partial = config.out.with_name(config.out.name + ".partial")
    with one_writer(partial), told_when_full(config.out, FULL_DISK):
        if config.out.exists():
            _require_same(config.settings(), config.out / "meta" / REPORT_FILE, config.out)
            return config.out
        _prepare(config, partial)
        _record_all(config, partial, show_progress=show_progress)
    return config.out


def _record_all(config: CollectConfig, partial: Path, *, show_progress: bool) -> None:
    with RecordingProgress(title=f"collect {config.mode}", total=config.episodes, is_shown=show_progress) as progress:
        jobs = [_Job(config=config, episode=episode, folder=partial) for episode in range(config.episodes)]
        missing = [job for job in jobs if not _is_recorded(job.shard)]
        progress.skip(len(jobs) - len(missing))
        for attempts in map(_record, missing) if config.workers == 1 else _run_in_pool(missing, config.workers):
            progress.advance(attempts)
        report = _assemble(config, [job.shard for job in jobs])
        progress.say(_summary(report))
    shutil.rmtree(partial)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    config: CollectConfig
    episode: int
    folder: Path

    @property
    def shard(self) -> Path:
        return self.folder / f"episode-{self.episode:06d}.parquet"

    @property
    def task(self) -> str:
        return self.config.tasks[self.episode % len(self.config.tasks)]


def _check_scenes(config: CollectConfig) -> None:
    """Checks what only the simulator knows, before any process is started."""
    from roboalign.sdk.sim.env import SimEnv

    for task in config.tasks:
        SimEnv(task=task, **_env_settings(config))


def _require_same(settings: dict[str, object], path: Path, folder: Path) -> None:
    """Raises unless the folder was started with the same settings."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = with_defaults(content.get("config", content))
    except (OSError, ValueError, AttributeError):
        raise ConfigError(f"{folder} exists and is no recording of roboalign; choose another folder") from None
    changed = [f"{key} {found.get(key)!r} -> {value!r}" for key, value in settings.items() if found.get(key) != value]
    if changed:
        raise ConfigError(f"{folder} was recorded differently ({'; '.join(changed)}); delete it or choose another")


def _prepare(config: CollectConfig, partial: Path) -> None:
    """Makes the folder of the shards, or checks that the one of a killed run belongs to the same recording."""
    settings = config.settings()
    del settings["episodes"]
    path = partial / SETTINGS_FILE
    if partial.exists() and path.exists():
        _require_same(settings, path, partial)
    else:
        if partial.exists() and any(partial.iterdir()):
            raise ConfigError(
                f"{partial} holds something, but no {SETTINGS_FILE} of a recording; delete it, or choose another folder"
            )
        partial.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for leftover in partial.glob("*.tmp-*"):
        leftover.unlink()


def _is_recorded(shard: Path) -> bool:
    """True when the shard is complete; one that a crash of the machine cut is removed, to be recorded again."""
    if not shard.exists():
        return False
    try:
        shard_notes(shard)
    except DataError:
        remove_shard(shard)
        return False
    return True


def _run_in_pool(jobs: list[_Job], workers: int) -> Iterator[int]:
    if not jobs:
        return
    context = get_context("spawn")
    with _single_threaded(), ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_with_parent) as pool:
        futures = [pool.submit(_record, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenExecutor as err:
            raise BackendError(
                "a recording process died without an error of its own (killed, or out of memory); "
                "nothing is lost: the same command goes on where it stopped"
            ) from err
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Makes the processes started meanwhile use one thread each."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _leave_with_parent() -> None:
    """Ends this worker when the process that started it is gone; a killed parent would leave it waiting for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_simulators: dict[str, SimEnv] = {}
"""One simulator for each set of settings, kept by each process."""


def _env_settings(config: CollectConfig) -> dict[str, Any]:
    settings = {"robot": config.robot, "image_size_px": config.image_size_px, "split": config.split}
    return settings if config.randomization == "off" else {**settings, "randomization": config.randomization}


def _simulator(config: CollectConfig) -> tuple[DemonstrationEnv, Expert]:
    from roboalign.sdk.sim.env import SimEnv
    from roboalign.sdk.sim.tasks import find_task

    settings = _env_settings(config)
    key = json.dumps(settings)
    if key not in _simulators:
        _simulators[key] = SimEnv(task=config.tasks[0], **settings)
    env = _simulators[key]
    return env, lambda truth: find_task(truth.task_name).expert(env.foreseen(truth))


def _record(job: _Job) -> int:
    """Records one episode, writes its shard and returns the number of attempts; runs in a worker."""
    from roboalign.sdk.sim.seeds import train_seed

    first = job.config.seed * SEED_STRIDE + job.episode * MAX_ATTEMPTS
    seed = first
    try:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            seed = train_seed(first + attempt - 1)
            episode = _record_attempt(job, seed)
            if episode is not None:
                _keep(job, episode, seed=seed, attempts=attempt)
                return attempt
    except RoboalignError:
        raise
    except Exception as err:
        where = f"episode {job.episode} ({job.task}, seed {seed})"
        raise DataError(f"recording {where} failed with {type(err).__name__}: {err}") from err
    raise DataError(
        f"the expert did not finish episode {job.episode} ({job.task}) in {MAX_ATTEMPTS} scenes, "
        f"seeds {first} to {seed}; lower noise_share or noise_m"
    )


def _keep(job: _Job, episode: Episode, *, seed: int, attempts: int) -> None:
    """Writes the shard of an episode, and in its notes what is needed to put the dataset together."""
    config = job.config
    cameras, num_joints = ("front", *episode.other_images), episode.joint_pos_rad.shape[1]
    notes = {
        "family": episode.truth(0).family,
        "task": job.task,
        "robot": config.robot,
        "split": config.split,
        "seed": seed,
        "attempts": attempts,
        "cameras": list(cameras),
        "num_joints": num_joints,
    }
    features = layout.dataset_features(
        image_size_px=config.image_size_px,
        num_joints=num_joints,
        cameras=cameras,
        video_info=video_info(CONTROL_RATE_HZ) if config.is_video else None,
        state_names=STATES[config.state],
    )
    with told_when_full(job.folder, FULL_DISK):
        try:
            write_shard(job.shard, episode, features=features, notes=notes)
        except BaseException:
            remove_shard(job.shard)
            raise


def _record_attempt(job: _Job, seed: int) -> Episode | None:
    config = job.config
    env, expert = _simulator(config)
    scene = {"task": job.task}
    if config.mode == "scenes":
        return record_scene(
            env,
            expert,
            scene=scene,
            seed=seed,
            noise=config.noise,
            num_images=config.images_per_episode,
            rate_hz=CONTROL_RATE_HZ,
            state=config.state,
        )
    return record_demonstration(
        env,
        expert,
        scene=scene,
        seed=seed,
        noise=config.noise,
        image_every=config.image_every,
        rate_hz=CONTROL_RATE_HZ,
        state=config.state,
    )


def _assemble(config: CollectConfig, shards: list[Path]) -> dict[str, object]:
    """Joins the shards, in order, into the dataset; returns the report that is stored with it."""
    attempts: Counter[str] = Counter()
    episodes: Counter[str] = Counter()
    first = shard_notes(shards[0])
    with DatasetWriter(
        config.out,
        image_size_px=config.image_size_px,
        num_joints=first["num_joints"],
        rate_hz=CONTROL_RATE_HZ,
        robot_type=config.robot,
        cameras=first["cameras"],
        is_video=config.is_video,
        state_names=STATES[config.state],
    ) as writer:
        for shard in shards:
            notes = writer.add_shard(shard)
            attempts[str(notes["task"])] += int(str(notes["attempts"]))
            episodes[str(notes["task"])] += 1
        report: dict[str, object] = {
            "config": config.settings(),
            "episodes": dict(episodes),
            "attempts": dict(attempts),
            "frames": writer.num_frames,
            "images": writer.num_images,
            "versions": _versions(),
        }
        writer.write_extra(REPORT_FILE, report)
    return report


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for name in ("roboalign", "pybullet"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _summary(report: dict[str, object]) -> str:
    attempts, episodes = report["attempts"], report["episodes"]
    assert isinstance(attempts, dict)
    assert isinstance(episodes, dict)
    parts = ", ".join(f"{task} {count}/{attempts[task]}" for task, count in episodes.items())
    kept = sum(episodes.values())
    return f"{kept} episodes (kept/attempted: {parts}), {report['frames']} frames, {report['images']} images"
