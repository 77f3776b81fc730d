"""Recorded frames in memory: the table that every training stage draws its samples from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.errors import DataError
from roboalign.sdk.sim.truth import SceneTruth
from roboalign.sdk.types import FloatArray, ImageArray

__all__ = ["FrameTable", "load_frames"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameTable:
    """N frames that have a picture, with what is known about each."""

    images: ImageArray
    """uint8[N, H, W, 3]."""
    states: FloatArray
    """float32[N, S] in the order of `STATE_NAMES`."""
    chunks: FloatArray
    """float32[N, T, A]: the actions that the demonstrator chose from this frame on, padded by standing still."""
    truths: tuple[SceneTruth, ...]
    """What the simulator knows about each frame."""
    episodes: np.ndarray
    """int64[N]: the episode of each frame."""
    data_hash: str
    """Hash of the dataset that the frames came from."""

    def __len__(self) -> int:
        return len(self.images)

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
        return FrameTable(
            images=self.images[index],
            states=self.states[index],
            chunks=self.chunks[index],
            truths=tuple(self.truths[int(i)] for i in index),
            episodes=self.episodes[index],
            data_hash=self.data_hash,
        )


def load_frames(folder: Path, *, horizon: int, image_size_px: int, max_frames: int | None = None) -> FrameTable:
    """Reads every frame with a picture from a dataset folder.

    Raises DataError when the dataset has no pictures, no truth column, or pictures of another size.
    """
    dataset = LeRobotDataset(folder)
    rows = dataset.frames_with_images()[:max_frames]
    if len(rows) == 0:
        raise DataError(f"{folder}: no frame has a picture; collect with --image-every 1 or 2")
    images = dataset.images(rows)
    if images.shape[1:3] != (image_size_px, image_size_px):
        raise DataError(
            f"{folder}: the pictures are {images.shape[2]} x {images.shape[1]} px, expected {image_size_px} x "
            f"{image_size_px}; collect it again or choose a model of that size"
        )
    episodes = dataset.episode_of_frame()[rows]
    within = rows - dataset.episode_starts[episodes]
    loaded = {int(number): dataset.episode(int(number)) for number in np.unique(episodes)}
    return FrameTable(
        images=images,
        states=dataset.states()[rows],
        chunks=dataset.action_chunks(horizon)[rows],
        truths=tuple(loaded[int(e)].truth(int(t)) for e, t in zip(episodes, within, strict=True)),
        episodes=episodes,
        data_hash=dataset.data_hash(),
    )
