"""Evaluation: paired held-out seeds, one JSON line for each finished episode, resumable, in one or several processes.

The seeds depend on the episode's number only, so every policy is judged on the same scenes. A worker process loads its
own policy and scene; episodes are independent of one another, so neither their order nor the number of processes
changes a result. Latency is measured while the other workers run; use `workers=1` when latency matters.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from roboalign import __version__
from roboalign.sdk.errors import BackendError, ConfigError, DataError
from roboalign.sdk.evaluation.episodes import EpisodeEnv, EpisodePolicy, EpisodeResult, run_episode
from roboalign.sdk.evaluation.pictures import write_film
from roboalign.sdk.evaluation.progress import Progress
from roboalign.sdk.evaluation.results import (
    EvalReport,
    JsonValue,
    episode_from_json,
    episode_to_json,
    summarize_episodes,
    write_report_json,
)
from roboalign.sdk.sim.language import SPLITS
from roboalign.sdk.sim.seeds import eval_seed
from roboalign.sdk.sim.tasks import FAMILIES

__all__ = ["EvalConfig", "EvalSetup", "evaluate"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class EvalSetup(Protocol):
    """Builds what a worker process needs; must survive pickling. `PolicyRef` is the one the command line uses."""

    def open(self, split: str) -> tuple[EpisodeEnv, EpisodePolicy]:
        """Returns a scene whose sentences come from `split`, and the policy to evaluate in it."""

    def describe(self) -> Mapping[str, JsonValue]:
        """Says who is evaluated, including a fingerprint of its files; the same text means the same policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """What to evaluate on, and where to write it."""

    out: Path
    """Folder of the result; an interrupted evaluation in it is continued."""
    episodes: int = 60
    """Number of scenes; 60 separate 0 % from 20 %, 300 separate 60 % from 72 %."""
    families: tuple[str, ...] = ("place", "push")
    """Task families, taken in turn."""
    first_episode: int = 0
    """Number of the first held-out scene."""
    split: str = "train"
    """Sentences: `train` has the paraphrases of training, `heldout` others; the scenes are unseen either way."""
    replan_every: int | None = None
    """Actions of a chunk that are applied before the policy is asked again; None applies all."""
    workers: int = 1
    """Processes; each loads the policy and runs single-threaded."""
    films: int = 1
    """Film strips of each family: the first episodes, not chosen by outcome."""

    def __post_init__(self) -> None:
        for name in ("episodes", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"EvalConfig.{name} is {getattr(self, name)}, expected at least 1")
        if self.films < 0 or self.first_episode < 0:
            raise ConfigError("EvalConfig.films and EvalConfig.first_episode must not be negative")
        unknown = [name for name in self.families if name not in FAMILIES]
        if unknown or not self.families:
            raise ConfigError(
                f"unknown task family {', '.join(unknown) or '(none)'}; choose from {', '.join(FAMILIES)}"
            )
        if self.split not in SPLITS:
            raise ConfigError(f"unknown split {self.split!r}; choose one of {', '.join(SPLITS)}")

    def family(self, index: int) -> str:
        """Returns the task family of episode `index`; the seed alone decides, so runs of any length are paired."""
        return self.families[(self.first_episode + index) % len(self.families)]

    def seed(self, index: int) -> int:
        """Returns the scene seed of episode `index`."""
        return eval_seed(self.first_episode + index)

    def is_filmed(self, index: int) -> bool:
        """Whether episode `index` is among the first of its family."""
        return index < self.films * len(self.families)


def evaluate(config: EvalConfig, setup: EvalSetup) -> EvalReport:
    """Runs every episode that `config.out` does not hold yet, and writes `report.json` there.

    Raises:
        ConfigError: The folder holds an evaluation of another policy or of other settings.
    """
    start_s = time.perf_counter()
    policy = dict(setup.describe())
    journal = _Journal(config, policy)
    todo = [index for index in range(config.episodes) if config.seed(index) not in journal.episodes]
    with Progress("eval", total=config.episodes, done=len(journal.episodes)) as progress:
        num_wins = sum(episode.success for episode in journal.episodes.values())
        for index, episode in _run_all(config, setup, todo):
            if episode.frames:
                write_film(journal.film_folder(index), episode)
            journal.append(episode)
            num_wins += episode.success
            progress.advance(f"{num_wins} of {len(journal.episodes)} succeeded")
    journal.add_time(time.perf_counter() - start_s)
    episodes = [journal.episodes[config.seed(index)] for index in range(config.episodes)]
    films = [journal.film_folder(index) for index in range(config.episodes) if config.is_filmed(index)]
    report = summarize_episodes(
        episodes,
        policy=policy,
        config=_config_json(config),
        films=[str(folder.relative_to(config.out)) for folder in films if folder.is_dir()],
        wall_s=journal.wall_s,
    )
    write_report_json(report, config.out / "report.json")
    return report


def _config_json(config: EvalConfig) -> dict[str, JsonValue]:
    """Returns the settings that a result depends on, and those that say how it was made."""
    row: dict[str, JsonValue] = {**asdict(config), "roboalign_version": __version__}
    del row["out"]
    row["families"] = list(config.families)
    return row


class _Journal:
    """`episodes.jsonl`: a header line that names policy and settings, then a line for each finished episode."""

    def __init__(self, config: EvalConfig, policy: Mapping[str, JsonValue]) -> None:
        self._config, self._path = config, config.out / "episodes.jsonl"
        # The number of episodes may grow; the number of processes changes nothing.
        settings = {k: v for k, v in _config_json(config).items() if k not in ("episodes", "workers", "films")}
        self._header = json.loads(json.dumps({"policy": policy, "config": settings}))
        self.episodes: dict[int, EpisodeResult] = {}
        self.wall_s = 0.0
        config.out.mkdir(parents=True, exist_ok=True)
        lines = self._complete_lines()
        if not lines:
            self._replace([json.dumps(self._header)])
            return
        self._check_header(lines[0])
        for line in lines[1:]:
            if line.startswith('{"wall_s"'):
                self.wall_s += float(json.loads(line)["wall_s"])
                continue
            episode = episode_from_json(line)
            self.episodes[episode.seed] = episode
        # What a kill cut off in the middle of a line is dropped here, and its episode is run again.
        self._replace(lines)

    def film_folder(self, index: int) -> Path:
        """Returns the folder of the film strip of one episode."""
        return self._config.out / "films" / f"{self._config.family(index)}-{self._config.seed(index)}"

    def append(self, episode: EpisodeResult) -> None:
        """Writes one finished episode."""
        self.episodes[episode.seed] = episode
        self._write(episode_to_json(episode))

    def add_time(self, wall_s: float) -> None:
        """Books the wall time of this run."""
        self.wall_s += wall_s
        self._write(json.dumps({"wall_s": wall_s}))

    def _write(self, line: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _replace(self, lines: list[str]) -> None:
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        partial.replace(self._path)

    def _complete_lines(self) -> list[str]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return text.split("\n")[:-1]

    def _check_header(self, line: str) -> None:
        try:
            found = json.loads(line)
        except json.JSONDecodeError as err:
            raise DataError(f"{self._path} does not start with an evaluation header; give another --out") from err
        for part, wanted in self._header.items():
            for key in wanted if isinstance(found.get(part), dict) else ():
                if found[part].get(key) != wanted[key]:
                    raise ConfigError(
                        f"{self._config.out} holds an evaluation with {part} {key} = {found[part].get(key)!r},"
                        f" asked for {wanted[key]!r}; give another --out, or delete that folder"
                    )


def _run_all(config: EvalConfig, setup: EvalSetup, todo: list[int]) -> Iterator[tuple[int, EpisodeResult]]:
    """Yields every missing episode as it finishes."""
    if config.workers == 1 or len(todo) < 2:
        _start_worker(config, setup)
        try:
            for index in todo:
                yield index, _run_one(index)
        finally:
            _stop_worker()
        return
    with _single_threaded_children():
        pool = ProcessPoolExecutor(
            max_workers=min(config.workers, len(todo)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_child,
            initargs=(config, setup),
        )
        try:
            futures: dict[Future[EpisodeResult], int] = {pool.submit(_run_one, index): index for index in todo}
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BrokenExecutor as err:
            raise BackendError(
                "a worker process died, perhaps for lack of memory; run the evaluation again with 1 worker to go on"
            ) from err
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Makes processes that are started inside use one thread each: the variables are read when numpy is imported."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Worker:
    """Scene and policy of one process, opened at the first episode: an error then reaches the caller as it is."""

    def __init__(self, config: EvalConfig, setup: EvalSetup) -> None:
        self._config, self._setup = config, setup
        self._opened: tuple[EpisodeEnv, EpisodePolicy] | None = None

    def run(self, index: int) -> EpisodeResult:
        """Runs one episode."""
        if self._opened is None:
            self._opened = self._setup.open(self._config.split)
        env, policy = self._opened
        return run_episode(
            env,
            policy,
            seed=self._config.seed(index),
            family=self._config.family(index),
            replan_every=self._config.replan_every,
            record_frames=self._config.is_filmed(index),
        )

    def close(self) -> None:
        """Frees both."""
        if self._opened is not None:
            env, policy = self._opened
            policy.close()
            env.close()
        self._opened = None


_worker: _Worker | None = None
"""One for each process."""


def _start_child(config: EvalConfig, setup: EvalSetup) -> None:
    """Prepares a worker process: Ctrl-C is the parent's business, and a dead parent ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    _start_worker(config, setup)


def _start_worker(config: EvalConfig, setup: EvalSetup) -> None:
    global _worker
    _worker = _Worker(config, setup)


def _stop_worker() -> None:
    global _worker
    if _worker is not None:
        _worker.close()
    _worker = None


def _run_one(index: int) -> EpisodeResult:
    """Runs one episode in the process's own scene."""
    assert _worker is not None, "the worker process was not started"
    return _worker.run(index)
