"""Looks for what is wrong with the pictures of a dataset: missing, frozen, swapped, or described wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.data.findings import Finding, episodes_text, frames_text
from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.data.meta import read_stats
from roboalign.sdk.data.stats import describe_histogram, image_histogram
from roboalign.sdk.data.video import count_frames
from roboalign.sdk.errors import DataError
from roboalign.sdk.types import ImageArray

__all__ = ["PICTURE_CHECKS", "PictureScan"]

PICTURE_CHECKS = ("picture count", "picture unreadable", "frozen camera", "swapped cameras", "picture statistics")
"""What is looked for in the pictures, by the kind of finding."""

FROZEN_PICTURES = 4
"""So many equal pictures in a row are a frozen camera, if the robot moved meanwhile."""
FROZEN_MOTION = 0.05
"""Motion that must be seen: share of the range that a state entry has in the dataset."""
FROZEN_LEVEL = 32
"""Change of a pixel, of 255, that an encoder makes rarely."""
FROZEN_SHARE = 0.003
"""Pixels of a video that may change so much in a picture that stays the same.

At 96 px a frozen picture has up to 0.2 %, and the smallest motion of the expert's arm has 0.55 %."""
THUMB_PX = 16
SWAPPED_SHARE = 0.5
"""An episode is swapped when crossing its cameras brings it so much nearer to the others."""
DISTINCT_LEVEL = 4.0
"""Mean difference, of 255, from which two views are different."""
STATS_LEVEL = 0.05
"""Allowed difference of the mean and deviation of pictures, of 1; lerobot describes a sample of them."""


@dataclass(kw_only=True, slots=True)
class _Camera:
    """What is remembered of one camera while its pictures go by."""

    name: str
    key: str
    is_video: bool
    thumbs: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    frozen: list[tuple[int, int]] = field(default_factory=list)
    longest: int = 0
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    num_images: int = 0


class PictureScan:
    """Looks at every picture once, episode by episode; `findings` says what was wrong."""

    def __init__(self, dataset: LeRobotDataset) -> None:
        self._dataset = dataset
        features = dataset.info.features
        self._cameras = [
            _Camera(name=name, key=key, is_video=features[key].dtype == "video")
            for name, key in dataset.info.cameras.items()
        ]
        self._frames = {camera.name: dataset.frames_with_images(camera.name) for camera in self._cameras}
        self._states = dataset.states().astype(np.float64)
        ranges = np.ptp(np.nan_to_num(self._states), axis=0)
        self._state_ranges = np.where(ranges > 0.0, ranges, np.inf)

    @property
    def num_images(self) -> int:
        """Pictures looked at so far."""
        return sum(camera.num_images for camera in self._cameras)

    def look(self, episode: int) -> None:
        """Looks at the pictures of one episode."""
        start, stop = self._dataset.episode_starts[episode : episode + 2]
        for camera in self._cameras:
            all_frames = self._frames[camera.name]
            frames = all_frames[(all_frames >= start) & (all_frames < stop)]
            if not len(frames):
                continue
            try:
                pictures = self._dataset.images(frames, camera.name)
            except DataError as err:
                camera.unreadable.append((episode, str(err)))
                continue
            camera.num_images += len(pictures)
            camera.histogram += image_histogram(list(pictures))
            camera.thumbs[episode] = _thumb(pictures[0])
            for first, last in _frozen_runs(pictures, is_video=camera.is_video):
                if self._moved(frames[first : last + 1]):
                    camera.frozen.append((episode, int(frames[first] - start)))
                    camera.longest = max(camera.longest, last - first + 1)

    def findings(self) -> Iterator[Finding]:
        """Yields what was wrong, after the last episode."""
        yield from self._counts()
        for camera in self._cameras:
            if camera.unreadable:
                yield Finding(
                    kind="picture unreadable",
                    severity="error",
                    where=f"{episodes_text([episode for episode, _ in camera.unreadable])}, {camera.key}",
                    found=camera.unreadable[0][1],
                    fix="copy the dataset again, or leave these episodes out",
                )
            if camera.frozen:
                yield Finding(
                    kind="frozen camera",
                    severity="error",
                    where=f"{frames_text(camera.frozen)}, {camera.key}",
                    found=f"up to {camera.longest} equal pictures in a row while the robot moved",
                    fix="leave these episodes out; check the cable, the USB bandwidth, and that every picture is new",
                )
        yield from self._swapped()
        yield from self._statistics()

    def _moved(self, frames: NDArray[np.int64]) -> bool:
        """True when the state changed between the first and the last of these pictures."""
        states = self._states[int(frames[0]) : int(frames[-1]) + 1]
        return bool((np.ptp(states, axis=0) / self._state_ranges).max() > FROZEN_MOTION)

    def _counts(self) -> Iterator[Finding]:
        dataset = self._dataset
        for camera in self._cameras:
            wrong = []
            if camera.is_video:
                wrong = self._short_videos(camera)
            else:
                episodes = np.unique(dataset.episode_of_frame()[self._frames[camera.name]])
                wrong = sorted({*range(dataset.num_episodes)} - {*episodes.tolist()})
            if wrong:
                yield Finding(
                    kind="picture count",
                    severity="error",
                    where=f"{episodes_text(wrong)}, {camera.key}",
                    found="the video and the rows differ in their number" if camera.is_video else "there is no picture",
                    fix="copy the dataset again, or leave these episodes out",
                )

    def _short_videos(self, camera: _Camera) -> list[int]:
        """Episodes in whose video the pictures do not count as many as the rows."""
        rate_hz = self._dataset.info.rate_hz
        wrong: list[int] = []
        rows: dict[Path, list[tuple[int, int]]] = {}
        for episode, span in enumerate(self._dataset.spans):
            video, length = span.videos[camera.key], span.stop - span.start
            if round((video.stop_s - video.start_s) * rate_hz) != length:
                wrong.append(episode)
            rows.setdefault(video.path, []).append((episode, length))
        for path, episodes in rows.items():
            try:
                count, _ = count_frames(path)
            except DataError:
                continue  # said when its pictures are read
            if count != sum(length for _, length in episodes):
                wrong += [episode for episode, _ in episodes]
        return sorted(set(wrong))

    def _swapped(self) -> Iterator[Finding]:
        for number, first in enumerate(self._cameras):
            for second in self._cameras[number + 1 :]:
                episodes = [episode for episode in first.thumbs if episode in second.thumbs]
                swapped = _swapped_episodes(
                    [first.thumbs[episode] for episode in episodes], [second.thumbs[episode] for episode in episodes]
                )
                if swapped:
                    yield Finding(
                        kind="swapped cameras",
                        severity="error",
                        where=f"{episodes_text([episodes[place] for place in swapped])}, {first.key} and {second.key}",
                        found="each shows what the other one shows in the rest of the dataset",
                        fix="exchange the two columns in these episodes; name cameras by serial number, not by port",
                    )

    def _statistics(self) -> Iterator[Finding]:
        stats = read_stats(self._dataset.path) or {}
        for camera in self._cameras:
            if camera.key not in stats or not camera.num_images or camera.unreadable:
                continue
            expected = describe_histogram(camera.histogram, num_images=camera.num_images)
            for name in ("mean", "std"):
                stored = np.ravel(stats[camera.key].get(name, [np.nan]))
                value = np.asarray(expected[name], np.float64).ravel()
                if stored.shape != value.shape or not (np.abs(stored - value) <= STATS_LEVEL).all():
                    yield Finding(
                        kind="picture statistics",
                        severity="error",
                        where=f"meta/stats.json, {camera.key}",
                        found=f"{name} is {np.round(stored, 3).tolist()}, of the pictures it is "
                        f"{np.round(value, 3).tolist()} (0 to 1)",
                        fix="compute the statistics again from the pictures, divided by 255",
                    )
                    break


def _thumb(picture: ImageArray) -> NDArray[np.float64]:
    from PIL import Image

    small = Image.fromarray(picture).resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX)
    return np.asarray(small, np.float64)


def _frozen_runs(pictures: ImageArray, *, is_video: bool) -> list[tuple[int, int]]:
    """First and last of every row of equal pictures that is long enough."""
    runs, first = [], 0
    for number in range(1, len(pictures) + 1):
        if number < len(pictures) and _is_same(pictures[number - 1], pictures[number], is_video=is_video):
            continue
        if number - first >= FROZEN_PICTURES:
            runs.append((first, number - 1))
        first = number
    return runs


def _is_same(first: ImageArray, second: ImageArray, *, is_video: bool) -> bool:
    if not is_video:
        return bool(np.array_equal(first, second))
    change = np.abs(first.astype(np.int16) - second).max(axis=2)
    return float(np.mean(change > FROZEN_LEVEL)) < FROZEN_SHARE


def _swapped_episodes(first: list[NDArray[np.float64]], second: list[NDArray[np.float64]]) -> list[int]:
    """Places of the episodes, the fewer of two groups, whose two views are exchanged."""
    if len(first) < 2:
        return []

    def apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.abs(a - b).mean())

    crossed = []
    for place in range(len(first)):
        straight = apart(first[place], first[0]) + apart(second[place], second[0])
        across = apart(first[place], second[0]) + apart(second[place], first[0])
        if straight > 2.0 * DISTINCT_LEVEL and across < SWAPPED_SHARE * straight:
            crossed.append(place)
    rest = [place for place in range(len(first)) if place not in crossed]
    return crossed if len(crossed) <= len(rest) else rest
