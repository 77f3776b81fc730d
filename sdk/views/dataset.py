"""The reference of a robot from the data that its policy learns from: demonstrations show the arm where it should be.

Between two pictures of an episode what changes is the arm and what it carries. That one thing moves is not given here,
as it is in a session of the doctor; but many motions are seen, and a view that they do not agree on is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.types import STATE_NAMES, ImageArray
from roboalign.sdk.views.pictures import change_middle
from roboalign.sdk.views.reference import MIN_MOVE_M, REFERENCE_VERSION, Reference, ViewReference, fit_view

__all__ = ["dataset_reference"]

Float64Array = NDArray[np.float64]

_MAX_EPISODES, _MAX_MOTIONS, _MAX_SENTENCES = 60, 10, 8
_MIN_SPREAD_M = 0.006  # of the tool along every direction: demonstrations have 15 mm and more


def dataset_reference(
    dataset: LeRobotDataset, cameras: Sequence[str], *, robot: str, say: Callable[[str], None] = lambda line: None
) -> Reference | None:
    """Returns how the pictures of a dataset look; None where no camera of it shows the tool where it is.

    Args:
        dataset: of a robot in order, with the state of our policies.
        cameras: which are looked at.
        robot: name of the arm.
        say: told of each camera that cannot be used, and why.

    Raises:
        DataError: the dataset has other states, or cannot be read.
    """
    if dataset.info.state_names != STATE_NAMES:
        found = ", ".join(dataset.info.state_names)
        raise DataError(f"it records the state {found}, expected {', '.join(STATE_NAMES)}")
    tool_m = dataset.states()[:, :3].astype(np.float64)
    views: dict[str, ViewReference] = {}
    motions = 0
    for camera in cameras:
        frames = dataset.frames_with_images(camera)
        chosen = _motions(tool_m, frames, dataset.episode_of_frame()[frames])
        try:
            views[camera] = _fit(dataset, camera, chosen, tool_m)
        except ConfigError as err:
            say(f"no reference of camera {camera}: {err}")
        motions += sum(len(path) - 1 for path in chosen)
    if not views:
        return None
    episodes = _spread(dataset.num_episodes)
    sentences = tuple(dict.fromkeys(dataset.tasks[index] for index in episodes.tolist()))
    return Reference(
        version=REFERENCE_VERSION,
        robot=robot,
        source=f"{motions} motions in {len(episodes)} episodes of a dataset",
        scenes=len(episodes),
        sentences=sentences[:_MAX_SENTENCES],
        views=views,
    )


def _spread(num_episodes: int) -> NDArray[np.int64]:
    """Returns the episodes that are looked at, over the whole dataset."""
    count = min(num_episodes, _MAX_EPISODES)
    return np.linspace(0, num_episodes - 1, count).round().astype(np.int64)


def _motions(
    tool_m: Float64Array, frames: NDArray[np.int64], episodes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], ...]:
    """Returns of each episode the frames between which the tool moved far enough, in order."""
    found = []
    for episode in _spread(int(episodes[-1]) + 1 if len(episodes) else 0):
        path: list[int] = []
        for frame in frames[episodes == episode].tolist():
            if not path or np.abs(tool_m[frame] - tool_m[path[-1]]).max() >= MIN_MOVE_M:
                path.append(frame)
        found.append(np.array(path[: _MAX_MOTIONS + 1], np.int64))
    return tuple(found)


def _fit(
    dataset: LeRobotDataset, camera: str, paths: Sequence[NDArray[np.int64]], tool_m: Float64Array
) -> ViewReference:
    tools, middles = [], []
    scenes: list[ImageArray] = []
    for path in paths:
        if not len(path):
            continue
        pictures = dataset.images(path, camera)
        height, width = pictures.shape[1:3]
        if height != width:
            raise ConfigError(f"its pictures are {width} x {height}, and those of a robot are square")
        scenes.append(pictures[0])
        for index, (before, after) in enumerate(pairwise(path.tolist())):
            middle = change_middle(pictures[index], pictures[index + 1])
            if middle is not None:
                tools.append((tool_m[before] + tool_m[after]) / 2.0)
                middles.append(middle)
    places = np.reshape(tools, (-1, 3))
    view = fit_view(camera, places, np.reshape(middles, (-1, 2)), scenes)
    narrowest_m = float(np.linalg.svd(places - places.mean(axis=0), compute_uv=False)[-1]) / len(places) ** 0.5
    if narrowest_m < _MIN_SPREAD_M:
        raise ConfigError(
            f"the tool goes {1000 * narrowest_m:.0f} mm to and fro along one direction, which is too little to tell"
        )
    return view
