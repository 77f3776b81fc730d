"""Names, schema and features of a LeRobotDataset v3.0 as roboalign writes it.

Follows lerobot 0.6.1 (`lerobot/datasets/{utils,io_utils,feature_utils,dataset_metadata,language}.py`): one row per
frame in `data/chunk-000/file-000.parquet`, images inline as `struct<bytes, path>` (dtype "image"), metadata under
`meta/`. The language columns are the ones of `lerobot/datasets/language.py`: `language_persistent` holds rows that stay
true from their `timestamp` on and is the same list on every frame of an episode; `language_events` holds the rows of
that very frame. Rows of style `vqa` and `trace` name a camera; all others must not.

Departures from lerobot:
    - `tool_calls` is `list<string>` with one JSON text each (lerobot's own fallback for a pyarrow without a JSON type).
    - `roboalign.truth` (string): the simulator's `SceneTruth` of the frame as JSON, from which questions, answers and
      thoughts are derived at training time. Absent in data of a real robot.
    - With `image_every` > 1 (and in "scenes" data) frames in between hold a null image. Such a frame cannot be a query
      frame, but its action counts. lerobot itself can only collate data without nulls (`image_every = 1`).
"""

from __future__ import annotations

from collections.abc import Sequence
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
    "JOINTS_KEY",
    "LANGUAGE_EVENTS_KEY",
    "LANGUAGE_PERSISTENT_KEY",
    "REQUIRED_COLUMNS",
    "STATE_KEY",
    "TRUTH_KEY",
    "Feature",
    "data_schema",
    "dataset_features",
]

CODEBASE_VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
CHUNKS_SIZE = 1000
"""Largest number of files in one `chunk-*` folder."""
DATA_FILE_SIZE_MB = 100
"""A data file is closed before it grows beyond this."""

IMAGE_KEY = "observation.images.front"
STATE_KEY = "observation.state"
JOINTS_KEY = "observation.joint_pos"
ACTION_KEY = "action"
TRUTH_KEY = "roboalign.truth"
LANGUAGE_PERSISTENT_KEY = "language_persistent"
LANGUAGE_EVENTS_KEY = "language_events"

REQUIRED_COLUMNS = (
    IMAGE_KEY,
    STATE_KEY,
    ACTION_KEY,
    "timestamp",
    "frame_index",
    "episode_index",
    "index",
    "task_index",
)
"""Columns without which roboalign cannot train on a dataset."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """One entry of `features` in `meta/info.json`."""

    dtype: str
    """numpy dtype name, or `image`, `video`, `string`, `language`."""
    shape: tuple[int, ...]
    """Shape of the value of one frame; `(1,)` means a plain scalar column."""
    names: tuple[str, ...] | None = None
    """Names of the entries, or of the axes of an image."""


def dataset_features(*, image_size_px: int, num_joints: int) -> dict[str, Feature]:
    """Returns the features of a dataset of this project, in column order."""
    image_shape = (image_size_px, image_size_px, 3)
    features = {
        IMAGE_KEY: Feature(dtype="image", shape=image_shape, names=("height", "width", "channels")),
        STATE_KEY: Feature(dtype="float32", shape=(len(STATE_NAMES),), names=STATE_NAMES),
    }
    if num_joints:
        joint_names = tuple(f"joint_{number}_rad" for number in range(1, num_joints + 1))
        features[JOINTS_KEY] = Feature(dtype="float32", shape=(num_joints,), names=joint_names)
    features[ACTION_KEY] = Feature(dtype="float32", shape=(len(ACTION_NAMES),), names=ACTION_NAMES)
    features["timestamp"] = Feature(dtype="float32", shape=(1,))
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = Feature(dtype="int64", shape=(1,))
    features[TRUTH_KEY] = Feature(dtype="string", shape=(1,))
    for key in (LANGUAGE_PERSISTENT_KEY, LANGUAGE_EVENTS_KEY):
        features[key] = Feature(dtype="language", shape=(1,))
    return features


def data_schema(pa: ModuleType, features: dict[str, Feature]) -> Any:
    """Returns the arrow schema of a data file with these features; `pa` is the module `pyarrow`."""
    return pa.schema([pa.field(key, _arrow_type(pa, key, feature)) for key, feature in features.items()])


def _arrow_type(pa: ModuleType, key: str, feature: Feature) -> Any:
    if feature.dtype == "image":
        return pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    if feature.dtype == "language":
        return pa.list_(pa.struct(_language_fields(pa, has_timestamp=key == LANGUAGE_PERSISTENT_KEY)))
    value_type = getattr(pa, feature.dtype)()
    return value_type if feature.shape == (1,) else pa.list_(value_type, feature.shape[0])


def _language_fields(pa: ModuleType, *, has_timestamp: bool) -> Sequence[Any]:
    fields = [pa.field("role", pa.string()), pa.field("content", pa.string()), pa.field("style", pa.string())]
    if has_timestamp:
        fields.append(pa.field("timestamp", pa.float32()))
    return [*fields, pa.field("camera", pa.string()), pa.field("tool_calls", pa.list_(pa.string()))]
