"""Evaluation: paired held-out seeds, one JSON line for each finished episode, resumable, in one or several processes.

Task and seed depend on the episode's number only, so every policy is judged on the same scenes. A worker process loads
its own policy and scene; episodes are independent of one another, so neither their order nor the number of processes
changes a result. Latency is measured while the other workers run; use `workers=1` when latency matters. The episodes
that are shown are played once more with pictures when all have ended, so that filming costs little and what is shown
can be chosen by rule: the first that succeeded and the first that failed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from roboalign import __version__
from roboalign.sdk.data.storage import one_writer
from roboalign.sdk.errors import BackendError, ConfigError, unknown_name
from roboalign.sdk.evaluation.episodes import EpisodeEnv, EpisodePolicy, EpisodeResult, run_episode
from roboalign.sdk.evaluation.films import write_films
from roboalign.sdk.evaluation.intervals import success_interval
from roboalign.sdk.evaluation.journal import Journal
from roboalign.sdk.evaluation.progress import Progress
from roboalign.sdk.evaluation.provenance import machine_facts
from roboalign.sdk.evaluation.results import EvalReport, JsonValue, summarize_episodes, write_report_json
from roboalign.sdk.evaluation.scenes import SceneRef
from roboalign.sdk.libero.suites import LIBERO_SUITES, find_task
from roboalign.sdk.randomization import find_randomization
from roboalign.sdk.sim.seeds import eval_seed
from roboalign.sdk.sim.tasks import fitting_task
from roboalign.sdk.suites import Suite, find_suite

__all__ = ["TRIALS", "EvalConfig", "PolicySetup", "SceneSetup", "evaluate"]

TRIALS = 10
"""Trials of each task of a suite, unless told otherwise: enough for a suite of ten tasks, not for one task."""
EPISODES = 60
"""Episodes of single tasks together, unless told otherwise."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_NOT_BINDING = ("episodes", "trials", "workers", "films", "videos")
"""Settings that may change when an evaluation goes on: they change no episode."""


class PolicySetup(Protocol):
    """Opens the policy to evaluate; must survive pickling. `PolicyRef` is the one the command line uses."""

    def open(self, env: EpisodeEnv, *, split: str) -> EpisodePolicy:
        """Returns the policy for a scene."""

    def describe(self) -> Mapping[str, JsonValue]:
        """Says who is evaluated, including a fingerprint of its files; the same text means the same policy."""


class SceneSetup(Protocol):
    """Opens the scene; must survive pickling. `SceneRef` is the one the command line uses."""

    def open(self) -> EpisodeEnv:
        """Returns the environment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """What to evaluate on, and where to write it."""

    out: Path
    """Folder of the result; an interrupted evaluation in it is continued."""
    suite: str | None = None
    """Name of a suite; None evaluates on `tasks` of the simulator."""
    tasks: tuple[str, ...] = ()
    """Tasks, taken in turn; empty means all of the suite, or place and push."""
    trials: int | None = None
    """Episodes of each task of a suite, at most its frozen initial states; None means `TRIALS`."""
    episodes: int | None = None
    """Episodes in all, of single tasks; 60 separate 0 % from 20 %, 300 separate 60 % from 72 %; None means 60."""
    first_episode: int = 0
    """Number of the first held-out scene; of a suite, of each task."""
    split: str = "train"
    """What differs from training; the scenes are unseen either way."""
    robot: str | None = None
    """Name of the arm; None means the suite's, or panda."""
    randomization: str = "off"
    """Preset of the domain randomisation."""
    image_size_px: int = 96
    """Height and width of the pictures that the policy gets."""
    replan_every: int | None = None
    """Actions of a chunk that are applied before the policy is asked again; None applies all."""
    workers: int = 1
    """Processes; each loads the policy and runs single-threaded."""
    films: int = 1
    """Film strips to show: of so many successes and so many failures, the first of each."""
    videos: int = 0
    """Videos to write: of the first episodes, whatever became of them."""

    def __post_init__(self) -> None:
        for name in ("workers", "episodes", "trials", "replan_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"EvalConfig.{name} is {getattr(self, name)}, expected at least 1")
        for name in ("films", "videos", "first_episode"):
            if getattr(self, name) < 0:
                raise ConfigError(f"EvalConfig.{name} is {getattr(self, name)}, expected 0 or more")
        if self.suite is None:
            self._settle_tasks()
        else:
            self._settle_suite(find_suite(self.suite))
        if len(set(self.tasks)) != len(self.tasks):
            raise ConfigError(f"EvalConfig.tasks names a task twice: {', '.join(self.tasks)}")
        _ = self.scene  # names that are wrong are reported before anything is written

    def _settle_tasks(self) -> None:
        if self.trials is not None:
            raise ConfigError("EvalConfig.trials counts episodes of a suite's tasks; without a suite give episodes")
        self._set("tasks", self.tasks or ("place", "push"))
        self._set("robot", self.robot or "panda")
        self._set("episodes", self.episodes or EPISODES)
        for name in self.tasks:
            fitting_task(name, robot=str(self.robot), split=self.split)

    def _settle_suite(self, suite: Suite) -> None:
        if self.episodes is not None:
            raise ConfigError(f"EvalConfig.episodes counts single tasks; with the suite {suite.name} give trials")
        if self.robot not in (None, suite.robot):
            raise ConfigError(f"the suite {suite.name} is laid out for the arm {suite.robot}, asked for {self.robot}")
        if self.split not in suite.splits:
            raise ConfigError(f"suite {suite.name}: {unknown_name('split', self.split, suite.splits)}")
        last = self.first_episode + (self.trials or min(TRIALS, suite.num_states))
        if last > suite.num_states:
            raise ConfigError(
                f"the tasks of {suite.name} have {suite.num_states} frozen initial states each, asked for state"
                f" {last - 1}; give at most {suite.num_states - self.first_episode} trials"
            )
        self._set("robot", suite.robot)
        self._set("tasks", tuple(_task_of(suite, name) for name in self.tasks) or suite.tasks)
        self._set("trials", self.trials or min(TRIALS, suite.num_states))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def scene(self) -> SceneRef:
        """Where the evaluation takes place."""
        return SceneRef(
            suite=self.suite,
            task=self.tasks[0],
            robot=self.robot or "panda",
            split=self.split,
            randomization=self.randomization,
            image_size_px=self.image_size_px,
        )

    @property
    def num_episodes(self) -> int:
        """Episodes in all."""
        return (self.trials or 0) * len(self.tasks) if self.suite is not None else (self.episodes or 0)

    def task(self, index: int) -> str:
        """Returns the task of episode `index`; the number alone decides, so runs of any length are paired."""
        offset = 0 if self.suite is not None else self.first_episode
        return self.tasks[(offset + index) % len(self.tasks)]

    def seed(self, index: int) -> int:
        """Returns the scene seed of episode `index`: of a suite, the frozen states in order; else a seed of its own."""
        step = index // len(self.tasks) if self.suite is not None else index
        return eval_seed(self.first_episode + step)

    def key(self, index: int) -> tuple[str, int]:
        """Returns task and seed of episode `index`, which name it in the journal."""
        return self.task(index), self.seed(index)


def evaluate(config: EvalConfig, policy: PolicySetup, scene: SceneSetup | None = None) -> EvalReport:
    """Runs every episode that `config.out` does not hold yet, and writes `report.json` and `report.html` there.

    Args:
        config: What to run.
        policy: Who is evaluated.
        scene: Where; None is the one that the settings name.

    Raises:
        ConfigError: The folder holds an evaluation of another policy or of other settings, or another process is
            writing it.
    """
    with one_writer(config.out):
        return _evaluate(config, policy, scene)


def _evaluate(config: EvalConfig, policy: PolicySetup, scene: SceneSetup | None) -> EvalReport:
    start_s = time.perf_counter()
    described = dict(policy.describe())
    settings = {key: value for key, value in _config_json(config).items() if key not in _NOT_BINDING}
    journal = Journal(config.out, policy=described, settings=settings)
    todo = _in_order(config, [i for i in range(config.num_episodes) if config.key(i) not in journal.episodes])
    crew = _Crew(config=config, policy=policy, scene=scene or config.scene)
    try:
        _play(crew, todo, journal)
    finally:
        journal.add_time(time.perf_counter() - start_s)
    episodes = [journal.episodes[config.key(index)] for index in range(config.num_episodes)]
    shown = write_films(
        config.out,
        episodes,
        num_films=config.films,
        num_videos=config.videos,
        play=lambda chosen: _run_all(crew, _in_order(config, chosen), record_frames=True),
    )
    report = summarize_episodes(
        episodes,
        policy=described,
        config=_config_json(config),
        films=shown.films,
        videos=shown.videos,
        provenance=machine_facts(),
        wall_s=journal.wall_s,
    )
    write_report_json(report, config.out / "report.json")
    from roboalign.sdk.evaluation.eval_page import write_eval_page

    write_eval_page(config.out)
    return report


def _play(crew: _Crew, todo: Sequence[int], journal: Journal) -> None:
    """Runs the missing episodes and books each; shows the running rate and its interval."""
    config = crew.config
    wanted = {config.key(index) for index in range(config.num_episodes)}
    wins = sum(episode.success for key, episode in journal.episodes.items() if key in wanted)
    done = config.num_episodes - len(todo)
    with Progress("eval", total=config.num_episodes, done=done) as progress:
        for _, episode in _run_all(crew, todo):
            journal.append(episode)
            wins, done = wins + episode.success, done + 1
            interval = success_interval(wins, done)
            progress.advance(f"{100 * wins / done:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})")


def _in_order(config: EvalConfig, indices: Sequence[int]) -> list[int]:
    """Returns the order to run episodes in: task by task where loading a task takes long; no result depends on it."""
    if config.scene.kind == "libero":
        return sorted(indices, key=lambda index: (index % len(config.tasks), index))
    return sorted(indices)


def _task_of(suite: Suite, name: str) -> str:
    """Returns the full name of a task of a suite, given that or what follows the suite's name.

    Tasks of LIBERO are also known by their numbers and by any word that only one has, as to `roboalign libero collect`.
    """
    if suite.name in LIBERO_SUITES:
        return suite.tasks[find_task(suite.name, name)]
    for task in suite.tasks:
        if name in (task, task.removeprefix(f"{suite.name}/")):
            return task
    short = [task.removeprefix(f"{suite.name}/") for task in suite.tasks]
    raise ConfigError(f"suite {suite.name}: {unknown_name('task', name, short)}")


def _config_json(config: EvalConfig) -> dict[str, JsonValue]:
    """Returns the settings that a result depends on, and those that say how it was made."""
    row: dict[str, JsonValue] = {**asdict(config), "roboalign_version": __version__}
    del row["out"]
    row["randomization_fingerprint"] = find_randomization(config.randomization).fingerprint
    row["tasks"] = list(config.tasks)
    return row


@dataclass(frozen=True, kw_only=True, slots=True)
class _Crew:
    """What a worker process needs."""

    config: EvalConfig
    policy: PolicySetup
    scene: SceneSetup


def _run_all(crew: _Crew, todo: Sequence[int], *, record_frames: bool = False) -> Iterator[tuple[int, EpisodeResult]]:
    """Yields every episode as it finishes."""
    workers = crew.config.workers
    if workers == 1 or len(todo) < 2:
        _start_worker(crew)
        try:
            for index in todo:
                yield index, _run_one(index, record_frames)
        finally:
            _stop_worker()
        return
    with _single_threaded_children():
        pool = ProcessPoolExecutor(
            max_workers=min(workers, len(todo)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_child,
            initargs=(crew,),
        )
        try:
            futures: dict[Future[EpisodeResult], int] = {
                pool.submit(_run_one, index, record_frames): index for index in todo
            }
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

    def __init__(self, crew: _Crew) -> None:
        self._crew = crew
        self._opened: tuple[EpisodeEnv, EpisodePolicy] | None = None

    def run(self, index: int, record_frames: bool) -> EpisodeResult:
        """Runs one episode."""
        config = self._crew.config
        if self._opened is None:
            env = self._crew.scene.open()
            try:
                policy = self._crew.policy.open(env, split=config.split)
            except BaseException:
                env.close()
                raise
            self._opened = env, policy
        env, policy = self._opened
        task, seed = config.key(index)
        return run_episode(
            env, policy, seed=seed, task=task, replan_every=config.replan_every, record_frames=record_frames
        )

    def close(self) -> None:
        """Frees both."""
        if self._opened is not None:
            env, policy = self._opened
            try:
                policy.close()
            finally:
                env.close()
        self._opened = None


_worker: _Worker | None = None
"""One for each process."""


def _start_child(crew: _Crew) -> None:
    """Prepares a worker process: Ctrl-C is the parent's business, and a dead parent ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    _start_worker(crew)


def _start_worker(crew: _Crew) -> None:
    global _worker
    _worker = _Worker(crew)


def _stop_worker() -> None:
    global _worker
    if _worker is not None:
        _worker.close()
    _worker = None


def _run_one(index: int, record_frames: bool) -> EpisodeResult:
    """Runs one episode in the process's own scene."""
    assert _worker is not None, "the worker process was not started"
    return _worker.run(index, record_frames)
