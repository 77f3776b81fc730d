"""What a dataset holds, in a few lines, and one of its episodes as a moving picture."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.errors import DataError

__all__ = ["DatasetPreview", "preview_dataset"]

GIF_SCALE = 4
"""Pixels of the gif for each pixel of the camera."""
LAST_FRAME_S = 1.0
"""How long the last frame stays before the gif starts again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetPreview:
    """What `preview_dataset` found."""

    path: Path
    """The gif."""
    num_episodes: int
    """Episodes in the dataset."""
    num_frames: int
    """Frames in the dataset."""
    num_images: int
    """Frames with an image."""
    families: Mapping[str, int]
    """Number of episodes of each task family; `unknown` where it was not recorded."""
    task: str
    """Instruction of the episode shown."""
    sentences: tuple[str, ...]
    """What the demonstrator did in that episode, with the time it began."""


def preview_dataset(path: Path | str, *, episode: int = 0, out: Path) -> DatasetPreview:
    """Writes the images of one episode as a gif at `out`, in the speed of the recording.

    Raises:
        DataError: there is no such dataset or episode, or the episode has no images.
    """
    from PIL import Image

    dataset = LeRobotDataset(path)
    shown = dataset.episode(episode)
    frames = shown.frames_with_images
    if not len(frames):
        raise DataError(f"{path}: episode {episode} has no images")
    start = int(dataset.episode_starts[episode])
    pictures = dataset.images(frames + start).repeat(GIF_SCALE, axis=1).repeat(GIF_SCALE, axis=2)
    durations_ms = [round(1000 * float(step) / shown.rate_hz) for step in np.diff(frames)] + [
        round(1000 * LAST_FRAME_S)
    ]
    first, *rest = (Image.fromarray(picture) for picture in pictures)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=durations_ms, loop=0)
    temporary.replace(out)
    families = Counter(family or "unknown" for family in dataset.families)
    return DatasetPreview(
        path=out,
        num_episodes=dataset.num_episodes,
        num_frames=dataset.num_frames,
        num_images=len(dataset.frames_with_images()),
        families=dict(families),
        task=shown.task,
        sentences=tuple(f"{row.timestamp_s or 0.0:.1f} s  {row.content}" for row in shown.language_persistent),
    )
