"""Writes a LeRobotDataset v3.0 (see `layout`) episode by episode, under a temporary name until it is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.data import layout
from roboalign.sdk.data.arrow import decode_png, import_pyarrow, open_parquet_error
from roboalign.sdk.data.episode import Episode, LanguageRow
from roboalign.sdk.data.stats import Statistics, describe, describe_histogram, image_histogram
from roboalign.sdk.errors import ConfigError, DataError

__all__ = ["DatasetWriter", "episode_table", "write_shard"]

NOTES_KEY = b"roboalign"
"""Key of our JSON notes in the schema metadata of a shard."""

NUMERIC_KEYS = (layout.STATE_KEY, layout.JOINTS_KEY, layout.ACTION_KEY, "timestamp", "frame_index", "episode_index")
"""Columns described in `stats.json`; `index` and `task_index` are added when they are known."""


def episode_table(episode: Episode, features: Mapping[str, layout.Feature]) -> Any:
    """Returns the arrow table of one episode; `index` and `task_index` are filled in when it joins a dataset."""
    pa, _ = import_pyarrow()
    schema = layout.data_schema(pa, dict(features))
    length = len(episode)
    frames = np.arange(length, dtype=np.int64)
    events = episode.language_events or ((),) * length
    persistent = [_language_record(row, has_timestamp=True) for row in episode.language_persistent]
    values: dict[str, object] = {
        layout.IMAGE_KEY: [None if png is None else {"bytes": png, "path": None} for png in episode.images],
        layout.STATE_KEY: episode.states.tolist(),
        layout.JOINTS_KEY: episode.joint_pos_rad.tolist(),
        layout.ACTION_KEY: episode.actions.tolist(),
        "timestamp": (frames / episode.rate_hz).astype(np.float32),
        "frame_index": frames,
        "episode_index": np.full(length, episode.index, np.int64),
        "index": frames,
        "task_index": np.zeros(length, np.int64),
        layout.TRUTH_KEY: list(episode.truth_json),
        layout.LANGUAGE_PERSISTENT_KEY: [persistent] * length,
        layout.LANGUAGE_EVENTS_KEY: [[_language_record(row, has_timestamp=False) for row in rows] for rows in events],
    }
    return pa.table([pa.array(values[key], type=schema.field(key).type) for key in features], schema=schema)


def _language_record(row: LanguageRow, *, has_timestamp: bool) -> dict[str, object]:
    record: dict[str, object] = {"role": row.role, "content": row.content, "style": row.style}
    if has_timestamp:
        record["timestamp"] = row.timestamp_s or 0.0
    calls = None if row.tool_calls is None else list(row.tool_calls)
    return {**record, "camera": row.camera, "tool_calls": calls}


def write_shard(path: Path, episode: Episode, *, image_size_px: int, notes: Mapping[str, object]) -> None:
    """Writes one episode to a file of its own that appears under `path` only when it is complete."""
    parquet = import_pyarrow()[1]
    features = layout.dataset_features(image_size_px=image_size_px, num_joints=episode.joint_pos_rad.shape[1])
    pictures = [decode_png(png) for png in episode.images if png is not None]
    full_notes = {**notes, "task": episode.task, "image_histogram": image_histogram(pictures).tolist()}
    table = episode_table(episode, features).replace_schema_metadata({NOTES_KEY: json.dumps(full_notes).encode()})
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    parquet.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def _read_shard(path: Path) -> Any:
    pa, parquet = import_pyarrow()
    try:
        return parquet.read_table(path)
    except (OSError, pa.ArrowException) as err:
        raise open_parquet_error(path, err) from err


def _shard_notes(table: Any, path: Path) -> dict[str, object]:
    text = (table.schema.metadata or {}).get(NOTES_KEY)
    if text is None:
        raise DataError(f"{path} holds no notes of roboalign; it is not a shard of a recording")
    notes: dict[str, object] = json.loads(text)
    return notes


@dataclass(kw_only=True, slots=True)
class _Totals:
    """What the metadata files need to know about everything written so far."""

    tasks: dict[str, int] = field(default_factory=dict)
    episodes: list[dict[str, object]] = field(default_factory=list)
    columns: dict[str, list[NDArray[np.generic]]] = field(default_factory=dict)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    num_images: int = 0
    num_frames: int = 0


class DatasetWriter:
    """Appends episodes to a new dataset; the folder gets its name when `close` has written the last byte.

    Use as a context manager: after an exception nothing stays behind. Not safe for use from several threads.
    """

    def __init__(
        self, path: Path, *, image_size_px: int, num_joints: int, rate_hz: float = 10.0, robot_type: str = "panda"
    ) -> None:
        self._path = Path(path)
        self._writing = self._path.with_name(f".{self._path.name}.writing")
        self._rate_hz = rate_hz
        self._robot_type = robot_type
        self._features = layout.dataset_features(image_size_px=image_size_px, num_joints=num_joints)
        self._totals = _Totals()
        self._file: Any = None
        self._file_number = -1
        self._file_bytes = 0

    def __enter__(self) -> DatasetWriter:
        if self._path.exists():
            raise ConfigError(f"{self._path} exists already; delete it or choose another name")
        shutil.rmtree(self._writing, ignore_errors=True)
        self._writing.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self._close_file()
            shutil.rmtree(self._writing, ignore_errors=True)

    def add(self, episode: Episode) -> None:
        """Appends an episode; its index becomes the number of episodes before it."""
        pictures = [decode_png(png) for png in episode.images if png is not None]
        self._append(episode_table(episode, self._features), episode.task, image_histogram(pictures), {})

    def add_shard(self, path: Path) -> dict[str, object]:
        """Appends the episode of a file made by `write_shard`; returns its notes.

        Raises:
            DataError: the file is truncated or is no shard.
        """
        table = _read_shard(path)
        notes = _shard_notes(table, path)
        extra = {f"roboalign/{key}": notes[key] for key in ("family", "seed", "attempts") if key in notes}
        histogram = np.asarray(notes["image_histogram"], dtype=np.int64)
        self._append(table.replace_schema_metadata(None), str(notes["task"]), histogram, extra)
        return notes

    def close(self) -> Path:
        """Writes the metadata and gives the dataset its final name, which is returned."""
        if not self._totals.episodes:
            raise DataError(f"{self._path}: a dataset needs at least one episode")
        self._close_file()
        self._write_meta()
        self._writing.rename(self._path)
        return self._path

    @property
    def num_frames(self) -> int:
        """Frames written so far."""
        return self._totals.num_frames

    @property
    def num_images(self) -> int:
        """Images written so far."""
        return self._totals.num_images

    def write_extra(self, name: str, content: Mapping[str, object]) -> None:
        """Writes `meta/<name>` as JSON beside lerobot's own files."""
        _write_json(self._writing / "meta" / name, content)

    def _append(self, table: Any, task: str, histogram: NDArray[np.int64], extra: Mapping[str, object]) -> None:
        pa, _ = import_pyarrow()
        totals = self._totals
        episode_index, start, length = len(totals.episodes), totals.num_frames, table.num_rows
        task_index = totals.tasks.setdefault(task, len(totals.tasks))
        numbers = {
            "episode_index": np.full(length, episode_index, np.int64),
            "index": np.arange(start, start + length, dtype=np.int64),
            "task_index": np.full(length, task_index, np.int64),
        }
        for key, column in numbers.items():
            table = table.set_column(table.schema.get_field_index(key), key, pa.array(column))
        self._roll_file(table)
        self._file.write_table(table)
        num_images = length - table.column(layout.IMAGE_KEY).null_count
        stats = self._describe(table, numbers)
        if num_images:
            stats[layout.IMAGE_KEY] = describe_histogram(histogram, num_images=num_images)
        totals.histogram += histogram
        totals.num_images += num_images
        totals.num_frames += length
        chunk_index, file_index = divmod(self._file_number, layout.CHUNKS_SIZE)
        totals.episodes.append(
            {
                "episode_index": episode_index,
                "tasks": [task],
                "length": length,
                "data/chunk_index": chunk_index,
                "data/file_index": file_index,
                "dataset_from_index": start,
                "dataset_to_index": start + length,
                **{f"stats/{key}/{name}": value for key, group in stats.items() for name, value in group.items()},
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **extra,
            }
        )

    def _describe(self, table: Any, numbers: Mapping[str, NDArray[np.int64]]) -> dict[str, Statistics]:
        stats = {}
        for key in [key for key in (*NUMERIC_KEYS, "index", "task_index") if key in self._features]:
            values = numbers[key] if key in numbers else _numeric_column(table, key)
            self._totals.columns.setdefault(key, []).append(values)
            stats[key] = describe(values)
        return stats

    def _roll_file(self, table: Any) -> None:
        """Opens the next data file when there is none or the table would make the present one too large."""
        _, parquet = import_pyarrow()
        too_large = self._file_bytes + table.nbytes > layout.DATA_FILE_SIZE_MB * 2**20
        if self._file is None or too_large:
            self._close_file()
            self._file_number += 1
            self._file_bytes = 0
            chunk_index, file_index = divmod(self._file_number, layout.CHUNKS_SIZE)
            path = self._writing / layout.DATA_PATH.format(chunk_index=chunk_index, file_index=file_index)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = parquet.ParquetWriter(path, table.schema, compression="zstd")
        self._file_bytes += table.nbytes

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_meta(self) -> None:
        pa, parquet = import_pyarrow()
        totals, meta = self._totals, self._writing / "meta"
        _write_json(meta / "info.json", self._info())
        stats = {key: describe(np.concatenate(columns)) for key, columns in totals.columns.items()}
        if totals.num_images:
            stats[layout.IMAGE_KEY] = describe_histogram(totals.histogram, num_images=totals.num_images)
        _write_json(meta / "stats.json", stats)
        parquet.write_table(_tasks_table(pa, list(totals.tasks)), meta / "tasks.parquet")
        path = self._writing / layout.EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(totals.episodes), path, compression="zstd")

    def _info(self) -> dict[str, object]:
        totals = self._totals
        return {
            "codebase_version": layout.CODEBASE_VERSION,
            "robot_type": self._robot_type,
            "total_episodes": len(totals.episodes),
            "total_frames": totals.num_frames,
            "total_tasks": len(totals.tasks),
            "chunks_size": layout.CHUNKS_SIZE,
            "data_files_size_in_mb": layout.DATA_FILE_SIZE_MB,
            "video_files_size_in_mb": 200,
            "fps": int(self._rate_hz) if float(self._rate_hz).is_integer() else self._rate_hz,
            "splits": {"train": f"0:{len(totals.episodes)}"},
            "data_path": layout.DATA_PATH,
            "video_path": None,
            "features": {
                key: {
                    "dtype": feature.dtype,
                    "shape": list(feature.shape),
                    "names": None if feature.names is None else list(feature.names),
                }
                for key, feature in self._features.items()
            },
        }


def _numeric_column(table: Any, key: str) -> NDArray[np.generic]:
    column = table.column(key).combine_chunks()
    values: NDArray[np.generic]
    if hasattr(column, "flatten") and hasattr(column.type, "value_type"):
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
    else:
        values = column.to_numpy(zero_copy_only=False)
    return values


def _tasks_table(pa: Any, tasks: Sequence[str]) -> Any:
    """Returns the tasks as pandas would store a frame with the column `task_index` and the index `task`."""
    types = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    columns = [
        {"name": name, "field_name": name, "pandas_type": pandas, "numpy_type": numpy, "metadata": None}
        for name, (pandas, numpy) in types.items()
    ]
    frame = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({b"pandas": json.dumps(frame).encode()})


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
