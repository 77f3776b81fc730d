"""Records expert demonstrations in parallel processes as one LeRobotDataset.

Episode k depends on k, on how many attempts it took and on the configuration, never on the number of workers or on the
order in which they finish. Finished episodes lie as shards in `<out>.partial/`, so that a killed run goes on where it
was; `out` appears, complete, at the end.

A script that calls `collect` with several workers needs the usual `if __name__ == "__main__":` guard, because they are
spawned processes.
"""

from __future__ import annotations

import dataclasses
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

import numpy as np

from roboalign.sdk.data.episode import Episode
from roboalign.sdk.data.progress import RecordingProgress
from roboalign.sdk.data.recording import (
    SCENE_STEPS,
    ActionNoise,
    DemonstrationEnv,
    Expert,
    record_demonstration,
    record_scene,
)
from roboalign.sdk.data.writer import DatasetWriter, write_shard
from roboalign.sdk.errors import BackendError, ConfigError, DataError, RoboalignError

__all__ = ["CollectConfig", "collect"]

MODES = ("demonstrations", "scenes")
MAX_ATTEMPTS = 16
"""Scenes tried for one episode before giving up; the expert fails in a few per cent of them."""
SEED_STRIDE = 10_000_000
"""Training seeds reserved for each value of `CollectConfig.seed`."""
CONTROL_RATE_HZ = 10.0
SETTINGS_FILE = "collect.json"
REPORT_FILE = "roboalign.json"
"""Name of the report under `meta/`: the configuration and how many attempts were needed."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig:
    """What to record, and where to."""

    out: Path
    """Folder of the dataset; it must not exist yet."""
    episodes: int
    """Number of episodes to keep."""
    families: tuple[str, ...] = ("place", "push", "stack")
    """Task families, taken in turn."""
    workers: int = 2
    """Processes; 1 records in the calling process. Does not change the data."""
    seed: int = 0
    """Chooses one of 100 disjoint blocks of training seeds."""
    mode: str = "demonstrations"
    """`demonstrations` (whole successful episodes) or `scenes` (random moments, for pictures and questions)."""
    image_every: int = 2
    """Demonstrations: frames 0, k, 2k ... get an image; 1 makes a dataset that lerobot itself can train on."""
    images_per_episode: int = 3
    """Scenes: number of random moments to render."""
    noise_share: float = 0.3
    """Probability that a step executes a disturbed action; the clean one is recorded."""
    noise_m: float = 0.01
    """Standard deviation of that disturbance, per axis."""
    noise_rad: float = 0.05
    """Standard deviation of the disturbance of the yaw."""
    image_size_px: int = 96
    """Height and width of the images."""
    split: str = "train"
    """Which colours, shapes and sentences occur: `train` or `heldout`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        object.__setattr__(self, "families", tuple(self.families))
        _require("mode", self.mode, self.mode in MODES, f"one of {', '.join(MODES)}")
        _require("families", self.families, len(self.families) > 0, "at least one family")
        _require("episodes", self.episodes, 1 <= self.episodes <= SEED_STRIDE // MAX_ATTEMPTS, "1 to 625000")
        _require("seed", self.seed, 0 <= self.seed < 100, "0 to 99")
        _require("workers", self.workers, self.workers >= 1, "1 or more")
        _require("image_size_px", self.image_size_px, 16 <= self.image_size_px <= 1024, "16 to 1024")
        _require("image_every", self.image_every, self.image_every >= 1, "1 or more")
        is_fine = 1 <= self.images_per_episode <= SCENE_STEPS
        _require("images_per_episode", self.images_per_episode, is_fine, f"1 to {SCENE_STEPS}")
        _require("noise_share", self.noise_share, 0.0 <= self.noise_share <= 1.0, "0 to 1")
        for name in ("noise_m", "noise_rad"):
            _require(name, getattr(self, name), getattr(self, name) >= 0.0, "0 or more")

    @property
    def noise(self) -> ActionNoise:
        """The disturbance of the executed actions."""
        return ActionNoise(share=self.noise_share, std_m=self.noise_m, std_rad=self.noise_rad)

    def settings(self) -> dict[str, object]:
        """Returns all that decides the content of the dataset, ready for JSON."""
        fields = dataclasses.asdict(self)
        del fields["out"], fields["workers"]
        return {**fields, "families": list(self.families)}


def collect(config: CollectConfig, *, show_progress: bool = True) -> Path:
    """Records the dataset and returns its folder; blocks until it is complete.

    Started again after it was killed, it goes on with the episodes that are missing. When the folder already holds
    exactly this dataset, nothing is done.

    Args:
        config: What to record.
        show_progress: Draws a progress bar and a summary on stderr.

    Raises:
        ConfigError: the folder exists with something else in it, or the simulator has no such family or split.
        DataError: the expert cannot do an episode, or a worker failed (its error is quoted).
        BackendError: a worker process died, or an optional package is missing.
    """
    _check_scenes(config)
    if config.out.exists():
        _require_same(config.settings(), config.out / "meta" / REPORT_FILE, config.out)
        return config.out
    partial = config.out.with_name(config.out.name + ".partial")
    _prepare(config, partial)
    with RecordingProgress(title=f"collect {config.mode}", total=config.episodes, is_shown=show_progress) as progress:
        jobs = [_Job(config=config, episode=episode, folder=partial) for episode in range(config.episodes)]
        missing = [job for job in jobs if not job.shard.exists()]
        progress.skip(len(jobs) - len(missing))
        for attempts in map(_record, missing) if config.workers == 1 else _run_in_pool(missing, config.workers):
            progress.advance(attempts)
        report = _assemble(config, [job.shard for job in jobs])
        progress.say(_summary(report))
    shutil.rmtree(partial)
    return config.out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    config: CollectConfig
    episode: int
    folder: Path

    @property
    def shard(self) -> Path:
        return self.folder / f"episode-{self.episode:06d}.parquet"

    @property
    def family(self) -> str:
        return self.config.families[self.episode % len(self.config.families)]


def _require(name: str, value: object, is_fine: bool, expected: str) -> None:
    if not is_fine:
        raise ConfigError(f"CollectConfig.{name} is {value!r}, expected {expected}")


def _check_scenes(config: CollectConfig) -> None:
    """Checks what only the simulator knows, before any process is started."""
    from roboalign.sdk.sim.language import SPLITS
    from roboalign.sdk.sim.tasks import FAMILIES

    unknown = [family for family in config.families if family not in FAMILIES]
    if unknown:
        raise ConfigError(f"CollectConfig.families names {', '.join(unknown)}, expected any of {', '.join(FAMILIES)}")
    _require("split", config.split, config.split in SPLITS, f"one of {', '.join(SPLITS)}")


def _require_same(settings: dict[str, object], path: Path, folder: Path) -> None:
    """Raises unless the folder was started with the same settings."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.get("config", content)
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
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for leftover in partial.glob("*.tmp-*"):
        leftover.unlink()


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


_simulators: dict[tuple[int, str], DemonstrationEnv] = {}
"""One simulator for each image size and split, kept by each process."""


def _simulator(config: CollectConfig) -> tuple[DemonstrationEnv, Expert]:
    from roboalign.sdk.sim.env import SimEnv
    from roboalign.sdk.sim.expert import expert_action

    key = (config.image_size_px, config.split)
    if key not in _simulators:
        _simulators[key] = SimEnv(family="mix", image_size_px=config.image_size_px, split=config.split)
    return _simulators[key], expert_action


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
                notes = {"family": job.family, "seed": seed, "attempts": attempt, "mode": job.config.mode}
                write_shard(job.shard, episode, image_size_px=job.config.image_size_px, notes=notes)
                return attempt
    except RoboalignError:
        raise
    except Exception as err:
        where = f"episode {job.episode} ({job.family}, seed {seed})"
        raise DataError(f"recording {where} failed with {type(err).__name__}: {err}") from err
    raise DataError(
        f"the expert did not finish episode {job.episode} ({job.family}) in {MAX_ATTEMPTS} scenes, "
        f"seeds {first} to {seed}; lower noise_share or noise_m"
    )


def _record_attempt(job: _Job, seed: int) -> Episode | None:
    config = job.config
    env, expert = _simulator(config)
    scene = {"family": job.family}
    if config.mode == "scenes":
        return record_scene(
            env,
            expert,
            scene=scene,
            seed=seed,
            noise=config.noise,
            num_images=config.images_per_episode,
            rate_hz=CONTROL_RATE_HZ,
        )
    return record_demonstration(
        env, expert, scene=scene, seed=seed, noise=config.noise, image_every=config.image_every, rate_hz=CONTROL_RATE_HZ
    )


def _assemble(config: CollectConfig, shards: list[Path]) -> dict[str, object]:
    """Joins the shards, in order, into the dataset; returns the report that is stored with it."""
    attempts: Counter[str] = Counter()
    episodes: Counter[str] = Counter()
    with DatasetWriter(config.out, image_size_px=config.image_size_px, num_joints=7, rate_hz=CONTROL_RATE_HZ) as writer:
        for shard in shards:
            notes = writer.add_shard(shard)
            attempts[str(notes["family"])] += int(str(notes["attempts"]))
            episodes[str(notes["family"])] += 1
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
    parts = ", ".join(f"{family} {count}/{attempts[family]}" for family, count in episodes.items())
    kept = sum(episodes.values())
    return f"{kept} episodes (kept/attempted: {parts}), {report['frames']} frames, {report['images']} images"
