"""One episode as files of its own, from which a dataset is put together: a parquet file, and a video for each camera.

The parquet file gets its name last, so an episode that was cut has none and is recorded again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.data import layout
from roboalign.sdk.data.arrow import decode_png, import_pyarrow, open_parquet_error
from roboalign.sdk.data.episode import Episode, LanguageRow
from roboalign.sdk.data.stats import image_histogram
from roboalign.sdk.data.video import encode_video
from roboalign.sdk.errors import DataError
from roboalign.sdk.types import ImageArray

__all__ = ["Shard", "read_shard", "remove_shard", "shard_notes", "write_shard"]

NOTES_KEY = b"roboalign"
"""Key of our JSON notes in the schema metadata of a shard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """An episode on its way into a dataset."""

    table: Any
    """Its rows, as an arrow table; `index` and `task_index` are filled in when it joins a dataset."""
    instructions: tuple[str, ...]
    """The sentence of each frame."""
    histograms: Mapping[str, NDArray[np.int64]]
    """By image feature: how often each value occurs in each colour channel."""
    videos: Mapping[str, Path]
    """By feature."""
    notes: Mapping[str, object]
    """What the recorder wrote down."""


def write_shard(
    path: Path, episode: Episode, *, features: Mapping[str, layout.Feature], notes: Mapping[str, object]
) -> None:
    """Writes one episode; the file appears under `path` only when everything that belongs to it is there.

    Raises:
        DataError: the episode lacks a camera, or has pictures of another size or (for a video) frames without one.
        OSError: the disk is full.
    """
    parquet = import_pyarrow()[1]
    histograms = {}
    for key, images in _images_by_key(episode, features).items():
        pictures = [decode_png(png) for png in images if png is not None]
        _check_pictures(pictures, key, features[key], episode)
        histograms[key] = image_histogram(pictures).tolist()
        if features[key].dtype == "video":
            video = _video_path(path, key)
            temporary = video.with_name(f"{video.name}.tmp-{os.getpid()}")
            encode_video(temporary, pictures, rate_hz=episode.rate_hz)
            temporary.replace(video)
    full_notes = {
        **notes,
        "instructions": list(episode.instructions or (episode.task,) * len(episode)),
        "image_histograms": histograms,
        "domain": dict(episode.domain),
        "state_names": list(episode.state_names),
    }
    table = _table(episode, features).replace_schema_metadata({NOTES_KEY: json.dumps(full_notes).encode()})
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    parquet.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def read_shard(path: Path, features: Mapping[str, layout.Feature]) -> Shard:
    """Returns an episode that `write_shard` wrote with these features.

    Raises:
        DataError: the file is truncated, is no shard, or was written with other features.
    """
    pa, parquet = import_pyarrow()
    notes = shard_notes(path)
    try:
        table = parquet.read_table(path).replace_schema_metadata(None)
    except (OSError, pa.ArrowException) as err:
        raise open_parquet_error(path, err) from err
    if not table.schema.equals(layout.data_schema(pa, dict(features))):
        raise DataError(
            f"{path} has the columns {', '.join(table.column_names)}, not those of this recording "
            f"({', '.join(layout.data_schema(pa, dict(features)).names)}), or of other sizes; delete it to start anew"
        )
    wanted = features[layout.STATE_KEY].names or ()
    found = tuple(notes.pop("state_names", wanted))
    if found != wanted:
        raise DataError(
            f"{path} has the state {', '.join(found)}, this recording {', '.join(wanted)}; go on with the same "
            "--state, or delete it to start anew"
        )
    videos = {key: _video_path(path, key) for key, feature in features.items() if feature.dtype == "video"}
    for video in videos.values():
        if not video.is_file():
            raise DataError(f"{video} is missing beside {path.name}; delete that file to record the episode again")
    return Shard(
        table=table,
        instructions=tuple(notes.pop("instructions")),
        histograms={key: np.asarray(item, np.int64) for key, item in notes.pop("image_histograms").items()},
        videos=videos,
        notes=notes,
    )


def shard_notes(path: Path) -> dict[str, Any]:
    """Returns the notes of a shard without reading its rows.

    Raises:
        DataError: the file is truncated or is no shard.
    """
    pa, parquet = import_pyarrow()
    try:
        metadata = parquet.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as err:
        raise open_parquet_error(path, err) from err
    if NOTES_KEY not in metadata:
        raise DataError(f"{path} holds no notes of roboalign; it is not a shard of a recording")
    notes: dict[str, Any] = json.loads(metadata[NOTES_KEY])
    return notes


def remove_shard(path: Path) -> None:
    """Removes a shard and what belongs to it, also what is left of one that was cut."""
    for part in path.parent.glob(f"{path.stem}.*"):
        part.unlink(missing_ok=True)


def _video_path(path: Path, key: str) -> Path:
    return path.with_name(f"{path.stem}.{layout.camera_name(key)}.mp4")


def _images_by_key(episode: Episode, features: Mapping[str, layout.Feature]) -> dict[str, tuple[bytes | None, ...]]:
    """The pictures of each image feature; the first camera's are in `Episode.images`, whatever it is called."""
    found: dict[str, tuple[bytes | None, ...]] = {}
    for number, (camera, key) in enumerate(layout.cameras(features).items()):
        if number and camera not in episode.other_images:
            raise DataError(
                f"episode {episode.index} has no camera {camera}, which the dataset has; found "
                f"{', '.join(episode.other_images) or 'none besides the first'}"
            )
        found[key] = episode.other_images[camera] if number else episode.images
    return found


def _check_pictures(pictures: list[ImageArray], key: str, feature: layout.Feature, episode: Episode) -> None:
    expected = (*feature.image_size_px, 3)
    for picture in pictures:
        if picture.shape != expected:
            raise DataError(
                f"episode {episode.index}: a picture of {key} is {list(picture.shape)}, expected {list(expected)}"
            )
    if feature.dtype == "video" and len(pictures) != len(episode):
        raise DataError(
            f"episode {episode.index}: {key} has {len(pictures)} pictures for {len(episode)} frames, and a video needs "
            "one for each; record with image_every=1, or without videos"
        )


def _table(episode: Episode, features: Mapping[str, layout.Feature]) -> Any:
    pa, _ = import_pyarrow()
    schema = layout.data_schema(pa, dict(features))
    length = len(episode)
    if (layout.INTERVENTION_KEY in features) != bool(episode.interventions):
        has = "says" if episode.interventions else "does not say"
        raise DataError(f"episode {episode.index} {has} in which frames a person acted, unlike its dataset")
    frames = np.arange(length, dtype=np.int64)
    events = episode.language_events or ((),) * length
    persistent = [_language_record(row, has_timestamp=True) for row in episode.language_persistent]
    values: dict[str, object] = {
        layout.STATE_KEY: episode.states.tolist(),
        layout.JOINTS_KEY: episode.joint_pos_rad.tolist(),
        layout.ACTION_KEY: episode.actions.tolist(),
        layout.INTERVENTION_KEY: list(episode.interventions),
        "timestamp": (frames / episode.rate_hz).astype(np.float32),
        "frame_index": frames,
        "episode_index": np.full(length, episode.index, np.int64),
        "index": frames,
        "task_index": np.zeros(length, np.int64),
        layout.TRUTH_KEY: list(episode.truth_json),
        layout.LANGUAGE_PERSISTENT_KEY: [persistent] * length,
        layout.LANGUAGE_EVENTS_KEY: [[_language_record(row, has_timestamp=False) for row in rows] for rows in events],
    }
    for key, images in _images_by_key(episode, features).items():
        values[key] = [None if png is None else {"bytes": png, "path": None} for png in images]
    try:
        return pa.table([pa.array(values[name], type=schema.field(name).type) for name in schema.names], schema=schema)
    except pa.ArrowException as err:
        raise DataError(f"episode {episode.index} does not fit the dataset's features: {err}") from err


def _language_record(row: LanguageRow, *, has_timestamp: bool) -> dict[str, object]:
    record: dict[str, object] = {"role": row.role, "content": row.content, "style": row.style}
    if has_timestamp:
        record["timestamp"] = row.timestamp_s or 0.0
    calls = None if row.tool_calls is None else list(row.tool_calls)
    return {**record, "camera": row.camera, "tool_calls": calls}
