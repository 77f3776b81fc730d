"""Names, schema and features of a LeRobotDataset v3.0 as roboalign writes it.

Follows lerobot 0.6.1 (`lerobot/datasets/{utils,io_utils,feature_utils,dataset_metadata,language}.py`): one row per
frame in `data/chunk-000/file-000.parquet`, metadata under `meta/`. A camera is a feature `observation.images.<name>`:
inline as `struct<bytes, path>` (dtype "image"), or absent from the rows and in `videos/<feature>/` (dtype "video"),
where one mp4 holds many episodes and `meta/episodes` says from which second to which. The language columns are the ones
of `lerobot/datasets/language.py`: `language_persistent` holds rows that stay true from their `timestamp` on and is the
same list on every frame of an episode; `language_events` holds the rows of that very frame. Rows of style `vqa` and
`trace` name a camera; all others must not.

Departures from lerobot:
    - `tool_calls` is `list<string>` with one JSON text each (lerobot's own fallback for a pyarrow without a JSON type).
    - `roboalign.truth` (string): the simulator's `SceneTruth` of the frame as JSON, from which questions, answers and
      thoughts are derived at training time. Absent in data of a real robot.
    - With `image_every` > 1 (and in "scenes" data) frames in between hold a null image. Such a frame cannot be a query
      frame, but its action counts. lerobot itself can only collate data without nulls (`image_every = 1`). A video has
      no such gaps.
    - In `meta/episodes`, columns `roboalign/...` say where an episode came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES

__all__ = [
    "ACTION_KEY",
    "CODEBASE_VERSION",
    "DATA_PATH",
    "EPISODES_PATH",
    "IMAGE_KEY",
    "IMAGE_PREFIX",
    "INTERVENTION_KEY",
    "JOINTS_KEY",
    "LANGUAGE_EVENTS_KEY",
    "LANGUAGE_PERSISTENT_KEY",
    "REQUIRED_COLUMNS",
    "STATE_KEY",
    "TRUTH_KEY",
    "VIDEO_PATH",
    "Feature",
    "camera_name",
    "cameras",
    "data_schema",
    "dataset_features",
]

CODEBASE_VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNKS_SIZE = 1000
"""Largest number of files in one `chunk-*` folder."""
DATA_FILE_SIZE_MB = 100
"""A data file is closed before it grows beyond this."""
VIDEO_FILE_SIZE_MB = 200
"""The same for a video."""

IMAGE_PREFIX = "observation.images."
IMAGE_KEY = f"{IMAGE_PREFIX}front"
STATE_KEY = "observation.state"
JOINTS_KEY = "observation.joint_pos"
ACTION_KEY = "action"
TRUTH_KEY = "roboalign.truth"
INTERVENTION_KEY = "intervention"
"""Whether a person acted in a policy's place; only in datasets with corrections. LeRobot's own name for it."""
LANGUAGE_PERSISTENT_KEY = "language_persistent"
LANGUAGE_EVENTS_KEY = "language_events"

REQUIRED_COLUMNS = (STATE_KEY, ACTION_KEY, "timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns without which a dataset is not read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """One entry of `features` in `meta/info.json`."""

    dtype: str
    """numpy dtype name, or `image`, `video`, `string`, `language`."""
    shape: tuple[int, ...]
    """Shape of the value of one frame; `(1,)` means a plain scalar column."""
    names: tuple[str, ...] | None = None
    """Names of the entries, or of the axes of an image."""
    info: Mapping[str, object] | None = None
    """How a video is encoded."""

    @property
    def image_size_px(self) -> tuple[int, int]:
        """Height and width of an image or a video, whichever axis holds the channels."""
        is_channel_first = (self.names or ("height",))[0].startswith("channel")
        height, width = self.shape[1:] if is_channel_first else self.shape[:2]
        return height, width


def camera_name(key: str) -> str:
    """Returns the camera of an image feature: `front` of `observation.images.front`."""
    return key.removeprefix(IMAGE_PREFIX)


def cameras(features: Mapping[str, Feature]) -> dict[str, str]:
    """Returns the image feature of each camera; the first is the one that policies see (`front` where there is one)."""
    keys = [key for key, feature in features.items() if feature.dtype in ("image", "video")]
    return {camera_name(key): key for key in sorted(keys, key=lambda key: key != IMAGE_KEY)}


def dataset_features(
    *,
    image_size_px: int | tuple[int, int],
    num_joints: int,
    cameras: Sequence[str] = ("front",),
    video_info: Mapping[str, object] | None = None,
    state_names: tuple[str, ...] = STATE_NAMES,
    action_names: tuple[str, ...] = ACTION_NAMES,
    has_intervention: bool = False,
) -> dict[str, Feature]:
    """Returns the features of a dataset of this project, in column order.

    Args:
        image_size_px: Height and width of the pictures; one number for square ones.
        num_joints: Entries of `observation.joint_pos`; 0 leaves it out.
        cameras: Names of the cameras.
        video_info: How videos are encoded; None stores pictures in the rows.
        state_names: Entries of `observation.state`.
        action_names: Entries of `action`.
        has_intervention: Whether frames say who acted.
    """
    height_px, width_px = (image_size_px, image_size_px) if isinstance(image_size_px, int) else image_size_px
    camera = Feature(
        dtype="image" if video_info is None else "video",
        shape=(height_px, width_px, 3),
        names=("height", "width", "channels"),
        info=None if video_info is None else {"video.height": height_px, "video.width": width_px, **video_info},
    )
    features = {f"{IMAGE_PREFIX}{name}": camera for name in cameras}
    features[STATE_KEY] = Feature(dtype="float32", shape=(len(state_names),), names=state_names)
    if num_joints:
        joint_names = tuple(f"joint_{number}_rad" for number in range(1, num_joints + 1))
        features[JOINTS_KEY] = Feature(dtype="float32", shape=(num_joints,), names=joint_names)
    features[ACTION_KEY] = Feature(dtype="float32", shape=(len(action_names),), names=action_names)
    if has_intervention:
        features[INTERVENTION_KEY] = Feature(dtype="bool", shape=(1,))
    features["timestamp"] = Feature(dtype="float32", shape=(1,))
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = Feature(dtype="int64", shape=(1,))
    features[TRUTH_KEY] = Feature(dtype="string", shape=(1,))
    for key in (LANGUAGE_PERSISTENT_KEY, LANGUAGE_EVENTS_KEY):
        features[key] = Feature(dtype="language", shape=(1,))
    return features


def data_schema(pa: ModuleType, features: dict[str, Feature]) -> Any:
    """Returns the arrow schema of a data file with these features; `pa` is the module `pyarrow`."""
    columns = {key: feature for key, feature in features.items() if feature.dtype != "video"}
    return pa.schema([pa.field(key, _arrow_type(pa, key, feature)) for key, feature in columns.items()])


def _arrow_type(pa: ModuleType, key: str, feature: Feature) -> Any:
    if feature.dtype == "image":
        return pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    if feature.dtype == "language":
        return pa.list_(pa.struct(_language_fields(pa, has_timestamp=key == LANGUAGE_PERSISTENT_KEY)))
    value_type = getattr(pa, "bool_" if feature.dtype == "bool" else feature.dtype)()
    return value_type if feature.shape == (1,) else pa.list_(value_type, feature.shape[0])


def _language_fields(pa: ModuleType, *, has_timestamp: bool) -> Sequence[Any]:
    fields = [pa.field("role", pa.string()), pa.field("content", pa.string()), pa.field("style", pa.string())]
    if has_timestamp:
        fields.append(pa.field("timestamp", pa.float32()))
    return [*fields, pa.field("camera", pa.string()), pa.field("tool_calls", pa.list_(pa.string()))]
