"""Plays recorded demonstrations back in the benchmark: does the data still say what happened?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.data.progress import RecordingProgress
from roboalign.sdk.errors import CheckFailed, DataError
from roboalign.sdk.libero.env import LiberoEnv, open_env
from roboalign.sdk.types import FloatArray

__all__ = ["MIN_SHARE", "ReplayReport", "ReplayedEpisode", "replay_dataset"]

MIN_SHARE = 0.95
"""Smallest share of episodes that must succeed again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayedEpisode:
    """What became of one episode."""

    index: int
    """Position in the dataset."""
    task: str
    """Its task."""
    seed: int
    """Its seed."""
    success: bool
    """Whether the benchmark calls it solved again."""
    error_m: float
    """Largest distance between the recorded and the replayed tool."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayReport:
    """What became of all of them."""

    dataset: str
    """Folder."""
    episodes: tuple[ReplayedEpisode, ...]
    """One entry for each that was played."""

    @property
    def num_solved(self) -> int:
        """Episodes that succeeded again."""
        return sum(episode.success for episode in self.episodes)

    @property
    def share(self) -> float:
        """Share of the episodes that succeeded again."""
        return self.num_solved / len(self.episodes)

    @property
    def error_m(self) -> float:
        """Largest distance between a recorded and a replayed tool."""
        return max(episode.error_m for episode in self.episodes)

    def __str__(self) -> str:
        lost = [
            f"{episode.index} ({episode.task}, seed {episode.seed})" for episode in self.episodes if not episode.success
        ]
        text = (
            f"{self.num_solved} of {len(self.episodes)} episodes solved again ({100 * self.share:.1f} %); "
            f"largest distance from the recorded path {1000 * self.error_m:.3g} mm"
        )
        return text + (f"; not solved: {', '.join(lost)}" if lost else "")

    def raise_if_failed(self) -> None:
        """Raises CheckFailed when fewer than 95 % were solved again."""
        if self.share < MIN_SHARE:
            raise CheckFailed(f"{self.dataset}: {self}; expected at least {100 * MIN_SHARE:.0f} %")


def replay_dataset(
    path: Path, *, every: int = 1, env: LiberoEnv | None = None, show_progress: bool = True
) -> ReplayReport:
    """Applies the recorded actions of every k-th episode to the scene it was recorded in.

    Args:
        path: A dataset of `collect_libero`.
        every: k.
        env: Where; None opens the suite that the dataset names.
        show_progress: Draws a progress bar on stderr.

    Raises:
        DataError: the dataset does not say from which suite, task and seed its episodes are.
    """
    dataset = LeRobotDataset(path)
    numbers = range(0, dataset.num_episodes, every)
    places = [_place(dataset, number) for number in numbers]
    suites = {(suite, split) for suite, split, _, _ in places}
    if len(suites) > 1:
        raise DataError(f"{path} mixes suites or splits ({suites}); replay takes one at a time")
    suite, split = suites.pop()
    own = open_env(suite, split) if env is None else env
    episodes = []
    try:
        with RecordingProgress(title="replay", total=len(places), is_shown=show_progress) as progress:
            for number, (_, _, task, seed) in zip(numbers, places, strict=True):
                states, actions = _path(dataset, number)
                episodes.append(_replay(own, number, task, seed, states, actions))
                progress.step()
    finally:
        if env is None:
            own.close()
    return ReplayReport(dataset=str(path), episodes=tuple(episodes))


def _replay(
    env: LiberoEnv, index: int, task: str, seed: int, states: FloatArray, actions: FloatArray
) -> ReplayedEpisode:
    env.reset(seed=seed, options={"task": task})
    error_m = 0.0
    for state, action in zip(states, actions, strict=True):
        error_m = max(error_m, float(np.linalg.norm(env.truth().state[:3] - state[:3])))
        env.advance(action)
    return ReplayedEpisode(index=index, task=task, seed=seed, success=env.is_success(), error_m=error_m)


def _place(dataset: LeRobotDataset, number: int) -> tuple[str, str, str, int]:
    extra = dataset.spans[number].extra
    try:
        return str(extra["family"]), str(extra["split"]), str(extra["task"]), int(extra["seed"])
    except (KeyError, TypeError, ValueError) as err:
        raise DataError(
            f"{dataset.path} episode {number} does not name its suite, split, task and seed ({err}); "
            "only datasets of 'roboalign libero collect' can be replayed"
        ) from err


def _path(dataset: LeRobotDataset, number: int) -> tuple[FloatArray, FloatArray]:
    start, stop = dataset.episode_starts[number], dataset.episode_starts[number + 1]
    return dataset.states()[start:stop], dataset.actions()[start:stop]
