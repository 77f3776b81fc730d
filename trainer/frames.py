"""Recorded frames in memory: the table that every training stage draws its samples from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from roboalign.sdk.data import layout
from roboalign.sdk.data.episode import Episode
from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.errors import DataError
from roboalign.sdk.sim.truth import SceneTruth
from roboalign.sdk.types import STATE_NAMES, FloatArray, ImageArray
from roboalign.trainer.data.words import FrameWords, read_words

__all__ = ["FrameTable", "load_frames"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameTable:
    """N frames that have a picture, with what is known about each."""

    images: ImageArray
    """uint8[N, H, W, 3]."""
    states: FloatArray
    """float32[N, S] in the order of `state_names`."""
    chunks: FloatArray
    """float32[N, T, A]: the actions that the demonstrator chose from this frame on, padded by standing still."""
    truths: tuple[SceneTruth, ...] | None
    """What the simulator knows about each frame; None for data of a real robot."""
    episodes: np.ndarray
    """int64[N]: the episode of each frame."""
    data_hash: str
    """Hash of the dataset that the frames came from."""
    words: tuple[FrameWords, ...] = ()
    """What the dataset itself says about each frame; empty where `truths` says all."""
    robot: str | None = None
    """Robot that was recorded; None where the dataset does not say."""
    rate_hz: float = 10.0
    """Rate of the recorded actions."""
    state_names: tuple[str, ...] = STATE_NAMES
    """Entries of a state."""
    name: str = "frames"
    """Where the frames are from, for errors."""
    columns: tuple[str, ...] = ()
    """Columns of that dataset, for errors."""

    def __len__(self) -> int:
        return len(self.images)

    def instruction(self, index: int) -> str:
        """Returns the sentence that the robot was given at a frame."""
        return self.words[index].instruction if self.truths is None else self.truths[index].instruction

    def require_truths(self, what: str) -> tuple[SceneTruth, ...]:
        """Returns the truths; raises DataError that names `what` needs them when there are none."""
        if self.truths is None:
            raise DataError(
                f"{self.name} has no simulator truth (column roboalign.truth), which {what} needs; found the columns "
                f"{', '.join(self.columns)}; take data of roboalign collect"
            )
        return self.truths

    def split(self, share: float) -> tuple[FrameTable, FrameTable]:
        """Returns (training, held-out) tables; the last `share` of the episodes is held out, at least one of them."""
        names = np.unique(self.episodes)
        if len(names) < 2:
            raise DataError(
                f"the frames are of {len(names)} episode, expected at least 2: one is held out; collect more"
            )
        first_held = names[len(names) - max(1, round(share * len(names)))]
        return self.take(np.nonzero(self.episodes < first_held)[0]), self.take(
            np.nonzero(self.episodes >= first_held)[0]
        )

    def take(self, index: np.ndarray) -> FrameTable:
        """Returns the table of the frames in `index`."""
        return replace(
            self,
            images=self.images[index],
            states=self.states[index],
            chunks=self.chunks[index],
            truths=None if self.truths is None else tuple(self.truths[int(i)] for i in index),
            episodes=self.episodes[index],
            words=tuple(self.words[int(i)] for i in index) if self.words else (),
        )


def load_frames(
    folder: Path,
    *,
    horizon: int,
    image_size_px: int,
    max_frames: int | None = None,
    rate_hz: float | None = None,
    robot: str | None = None,
    state_names: tuple[str, ...] | None = None,
    thought: str | None = None,
    only_human: bool = False,
) -> FrameTable:
    """Reads every frame with a picture from a dataset folder.

    Args:
        folder: A LeRobotDataset.
        horizon: Actions in a chunk.
        image_size_px: Height and width that the pictures must have.
        max_frames: Frames to read at most; None reads all.
        rate_hz: Rate that the dataset must have, e.g. of the codec; None takes any.
        robot: Robot that it must be of, e.g. of the checkpoint; None takes any, and so does a dataset that says none.
        state_names: States that it must have, e.g. those of the checkpoint; None takes any.
        thought: Text column that holds thoughts; None looks for the usual names.
        only_human: Of a recording with corrections, the frames alone in which the person acted.

    Raises:
        DataError: the dataset has no pictures, pictures of another size, or is of another robot, rate, state or action
            space.
    """
    dataset = LeRobotDataset(folder)
    _check_origin(dataset, rate_hz, robot, state_names)
    rows = _chosen_rows(dataset, only_human=only_human)[:max_frames]
    if len(rows) == 0:
        raise DataError(f"{folder}: no frame has a picture; collect with --image-every 1 or 2")
    images = dataset.images(rows)
    if images.shape[1:3] != (image_size_px, image_size_px):
        raise DataError(
            f"{folder}: the pictures are {images.shape[2]} x {images.shape[1]} px, expected {image_size_px} x "
            f"{image_size_px}; collect it again or choose a model of that size"
        )
    episodes = dataset.episode_of_frame()[rows]
    loaded = {int(number): dataset.episode(int(number)) for number in np.unique(episodes)}
    return FrameTable(
        images=images,
        states=dataset.states()[rows],
        chunks=dataset.action_chunks(horizon)[rows],
        truths=_truths(dataset, rows, loaded),
        episodes=episodes,
        data_hash=dataset.data_hash(),
        words=read_words(dataset, rows, loaded, thought=thought),
        robot=dataset.info.robot_type,
        rate_hz=dataset.info.rate_hz,
        state_names=dataset.info.state_names,
        name=str(folder),
        columns=tuple(dataset.info.features),
    )


def _chosen_rows(dataset: LeRobotDataset, *, only_human: bool) -> np.ndarray:
    rows = dataset.frames_with_images()
    if not only_human:
        return rows
    is_human = dataset.column(layout.INTERVENTION_KEY)[:, 0].astype(bool)
    if not is_human[rows].any():
        raise DataError(f"{dataset.path}: a person acted in none of its frames; train on all of them")
    return rows[is_human[rows]]


def _check_origin(
    dataset: LeRobotDataset, rate_hz: float | None, robot: str | None, state_names: tuple[str, ...] | None
) -> None:
    info = dataset.info
    if rate_hz is not None and abs(info.rate_hz - rate_hz) > 1e-6:
        raise DataError(
            f"{dataset.path} was recorded at {info.rate_hz:g} Hz, expected {rate_hz:g} Hz, the rate of the actions to "
            "learn; record it again, or train a model for that rate"
        )
    if robot is not None and info.robot_type not in (None, robot):
        raise DataError(
            f"{dataset.path} is of the robot {info.robot_type}, expected {robot}, the robot of the model; take data of "
            "that robot, or train a model for this one"
        )
    if state_names is not None and info.state_names != state_names:
        raise DataError(
            f"{dataset.path} has the state {', '.join(info.state_names)}, expected {', '.join(state_names)}, which the "
            "model learnt from; take data recorded with the same --state"
        )


def _truths(dataset: LeRobotDataset, rows: np.ndarray, episodes: dict[int, Episode]) -> tuple[SceneTruth, ...] | None:
    """The truth of every row, or None when no row has one; some with and some without would be learnt as one."""
    places = [
        (int(number), int(row - dataset.episode_starts[number]))
        for row, number in zip(rows, dataset.episode_of_frame()[rows], strict=True)
    ]
    known = sum(episodes[number].truth_json[within] is not None for number, within in places)
    if known == 0:
        return None
    if known < len(places):
        raise DataError(
            f"{dataset.path} has simulator truth on {known} of {len(places)} frames, expected all or none; split it"
        )
    return tuple(episodes[number].truth(within) for number, within in places)
