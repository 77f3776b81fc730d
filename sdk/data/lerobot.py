"""Reads a LeRobotDataset v3.0 whose images are stored in the data files (dtype "image"), without torch or lerobot.

Everything is checked when the dataset is opened: version, columns, row counts, and that no file is truncated. Datasets
whose images are videos are refused (not supported yet). The format and our departures from it: `layout`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.data import layout
from roboalign.sdk.data.arrow import decode_png, import_pyarrow, open_parquet_error
from roboalign.sdk.data.episode import Episode, LanguageRow, action_chunks
from roboalign.sdk.errors import DataError
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, FloatArray, ImageArray

__all__ = ["DatasetInfo", "LeRobotDataset"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What `meta/info.json` says."""

    codebase_version: str
    """Version of the layout, `v3.0`."""
    robot_type: str | None
    """Name of the robot."""
    rate_hz: float
    """Frames per second."""
    total_episodes: int
    """Number of episodes."""
    total_frames: int
    """Number of frames, with and without image."""
    features: Mapping[str, layout.Feature]
    """Columns of the data files."""

    @property
    def image_size_px(self) -> int:
        """Height of the front camera's image."""
        return self.features[layout.IMAGE_KEY].shape[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Span:
    """Where an episode lies."""

    file: tuple[int, int]
    start: int
    stop: int
    task: str
    family: str | None


class _DataFile:
    """One open parquet file and the first global frame in it."""

    def __init__(self, path: Path, first_frame: int) -> None:
        pa, parquet = import_pyarrow()
        self.path = path
        self.first_frame = first_frame
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, pa.ArrowException) as err:
            raise open_parquet_error(path, err) from err
        meta = self._file.metadata
        rows = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        self._row_starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)
        self.num_rows = int(self._row_starts[-1])
        self.column_names: tuple[str, ...] = tuple(self._file.schema_arrow.names)

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Any:
        """Returns the rows of the global frames start..stop-1 as an arrow table."""
        pa, _ = import_pyarrow()
        first, last = start - self.first_frame, stop - self.first_frame
        begin = int(np.searchsorted(self._row_starts, first, side="right")) - 1
        end = int(np.searchsorted(self._row_starts, last, side="left"))
        try:
            table = self._file.read_row_groups(list(range(begin, end)), columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as err:
            raise open_parquet_error(self.path, err) from err
        return table.slice(first - int(self._row_starts[begin]), last - first)


class LeRobotDataset:
    """A recorded dataset on disk. Frames are numbered through all episodes, in order ("global frame").

    Args:
        path: The folder that holds `meta/` and `data/`.

    Raises:
        DataError: the folder is missing, of another version, lacks a column, or holds a truncated file.
        BackendError: pyarrow is not installed.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.info = _read_info(self.path)
        self._spans = self._read_spans()
        self._files = self._open_files()

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self._spans)

    @property
    def num_frames(self) -> int:
        """Number of frames, with and without image."""
        return self._spans[-1].stop

    @property
    def tasks(self) -> tuple[str, ...]:
        """The instruction of each episode."""
        return tuple(span.task for span in self._spans)

    @property
    def families(self) -> tuple[str | None, ...]:
        """The task family of each episode; None where it was not recorded."""
        return tuple(span.family for span in self._spans)

    @property
    def episode_starts(self) -> NDArray[np.int64]:
        """int64[E + 1]: the first global frame of each episode, then the number of frames."""
        return np.array([span.start for span in self._spans] + [self.num_frames], dtype=np.int64)

    def __len__(self) -> int:
        return self.num_episodes

    def __iter__(self) -> Iterator[Episode]:
        return self.episodes()

    def episodes(self) -> Iterator[Episode]:
        """Yields every episode in order; only one is in memory at a time."""
        for index in range(self.num_episodes):
            yield self.episode(index)

    def episode(self, index: int) -> Episode:
        """Returns one episode with its images (still compressed).

        Raises:
            DataError: there is no such episode, or its rows cannot be read.
        """
        span = self._span(index)
        table = self._files[span.file].read(span.start, span.stop)
        length = span.stop - span.start
        names = table.column_names
        nothing: list[None] = [None] * length
        joints = _matrix(table, layout.JOINTS_KEY) if layout.JOINTS_KEY in names else np.zeros((length, 0), np.float32)
        persistent, events = _language(table)
        return Episode(
            index=index,
            task=span.task,
            states=_matrix(table, layout.STATE_KEY),
            joint_pos_rad=joints,
            actions=_matrix(table, layout.ACTION_KEY),
            images=tuple(item and item["bytes"] for item in table.column(layout.IMAGE_KEY).to_pylist()),
            truth_json=tuple(table.column(layout.TRUTH_KEY).to_pylist() if layout.TRUTH_KEY in names else nothing),
            rate_hz=self.info.rate_hz,
            language_persistent=persistent,
            language_events=events,
        )

    def states(self) -> FloatArray:
        """Returns float32[N, 5], the states of all frames."""
        return self._all_rows(layout.STATE_KEY)

    def actions(self) -> FloatArray:
        """Returns float32[N, 5], the actions of all frames."""
        return self._all_rows(layout.ACTION_KEY)

    def action_chunks(self, horizon: int) -> FloatArray:
        """Returns float32[N, horizon, 5]: the actions from each frame on, then staying still."""
        actions = self.actions()
        return np.concatenate([action_chunks(actions[span.start : span.stop], horizon) for span in self._spans])

    def episode_of_frame(self) -> NDArray[np.int64]:
        """Returns int64[N]: the episode of each frame."""
        return np.repeat(np.arange(self.num_episodes, dtype=np.int64), np.diff(self.episode_starts))

    def frames_with_images(self) -> NDArray[np.int64]:
        """Returns int64[M]: the global frames that hold an image, in order; the pixels are not read."""
        found = []
        for file in self._files.values():
            stop = file.first_frame + file.num_rows
            column = file.read(file.first_frame, stop, [f"{layout.IMAGE_KEY}.path"]).column(layout.IMAGE_KEY)
            is_present = column.is_valid().to_numpy()
            found.append(np.flatnonzero(is_present) + file.first_frame)
        return np.concatenate(found).astype(np.int64)

    def images(self, frames: NDArray[np.int64]) -> ImageArray:
        """Returns uint8[len(frames), H, W, 3], decoded.

        Raises:
            DataError: a frame has no image.
        """
        size_px = self.info.image_size_px
        pictures = np.zeros((len(frames), size_px, size_px, 3), np.uint8)
        episodes = np.searchsorted(self.episode_starts, frames, side="right") - 1
        for index in np.unique(episodes):
            span = self._span(int(index))
            column = self._files[span.file].read(span.start, span.stop, [layout.IMAGE_KEY]).column(layout.IMAGE_KEY)
            for position in np.flatnonzero(episodes == index):
                item = column[int(frames[position]) - span.start].as_py()
                if item is None:
                    raise DataError(f"{self.path}: frame {frames[position]} has no image; see frames_with_images()")
                pictures[position] = decode_png(item["bytes"])
        return pictures

    def data_hash(self) -> str:
        """Returns the sha256 of the content (not of the files): tasks, states, actions, truths and images."""
        digest = hashlib.sha256()
        for episode in self.episodes():
            digest.update(json.dumps([episode.task, *episode.truth_json]).encode())
            digest.update(episode.states.tobytes())
            digest.update(episode.joint_pos_rad.tobytes())
            digest.update(episode.actions.tobytes())
            for image in episode.images:
                digest.update(b"-" if image is None else hashlib.sha256(image).digest())
        return digest.hexdigest()

    def _span(self, index: int) -> _Span:
        if not 0 <= index < self.num_episodes:
            raise DataError(f"{self.path} has episodes 0..{self.num_episodes - 1}, there is no episode {index}")
        return self._spans[index]

    def _all_rows(self, key: str) -> FloatArray:
        tables = [file.read(file.first_frame, file.first_frame + file.num_rows, [key]) for file in self._files.values()]
        return np.concatenate([_matrix(table, key) for table in tables])

    def _read_spans(self) -> list[_Span]:
        pa, parquet = import_pyarrow()
        paths = sorted((self.path / "meta" / "episodes").glob("*/*.parquet"))
        data_file = ("data/chunk_index", "data/file_index")
        wanted = ("episode_index", "tasks", *data_file, "dataset_from_index", "dataset_to_index")
        rows: list[dict[str, Any]] = []
        for path in paths:
            try:
                file = parquet.ParquetFile(path)
                missing = [name for name in wanted if name not in file.schema_arrow.names]
                if missing:
                    raise DataError(f"{path} lacks the columns {', '.join(missing)}; it is not LeRobotDataset v3.0")
                optional = [name for name in ("roboalign/family",) if name in file.schema_arrow.names]
                rows += file.read(columns=[*wanted, *optional], use_threads=False).to_pylist()
            except (OSError, pa.ArrowException) as err:
                raise open_parquet_error(path, err) from err
        if len(rows) != self.info.total_episodes or not rows:
            raise DataError(
                f"{self.path}: meta/episodes lists {len(rows)} episodes, meta/info.json says "
                f"{self.info.total_episodes}; collect or copy the dataset again"
            )
        rows.sort(key=lambda row: int(row["episode_index"]))
        return [
            _Span(
                file=(row["data/chunk_index"], row["data/file_index"]),
                start=row["dataset_from_index"],
                stop=row["dataset_to_index"],
                task=row["tasks"][0],
                family=row.get("roboalign/family"),
            )
            for row in rows
        ]

    def _open_files(self) -> dict[tuple[int, int], _DataFile]:
        files: dict[tuple[int, int], _DataFile] = {}
        for span in self._spans:
            if span.file not in files:
                chunk_index, file_index = span.file
                path = self.path / layout.DATA_PATH.format(chunk_index=chunk_index, file_index=file_index)
                files[span.file] = _DataFile(path, span.start)
        for file in files.values():
            missing = [name for name in layout.REQUIRED_COLUMNS if name not in file.column_names]
            if missing:
                raise DataError(
                    f"{file.path} lacks the columns {', '.join(missing)}; found {', '.join(file.column_names)}"
                )
        num_rows = sum(file.num_rows for file in files.values())
        if num_rows != self.info.total_frames or num_rows != self.num_frames:
            raise DataError(
                f"{self.path}: the data files hold {num_rows} frames, meta/info.json says {self.info.total_frames}; "
                "collect or copy the dataset again"
            )
        return files


def _read_info(path: Path) -> DatasetInfo:
    if not path.is_dir():
        raise DataError(f"there is no dataset folder {path}; make one with: roboalign collect --out {path}")
    info_path = path / "meta" / "info.json"
    try:
        raw = json.loads(info_path.read_text(encoding="utf-8"))
        version = raw["codebase_version"]
        if version != layout.CODEBASE_VERSION:
            raise DataError(f"{path} is LeRobotDataset {version}, expected {layout.CODEBASE_VERSION}; convert it first")
        features = {
            key: layout.Feature(
                dtype=item["dtype"],
                shape=tuple(item["shape"]),
                names=tuple(item["names"]) if isinstance(item.get("names"), list) else None,
            )
            for key, item in raw["features"].items()
        }
        info = DatasetInfo(
            codebase_version=version,
            robot_type=raw.get("robot_type"),
            rate_hz=float(raw["fps"]),
            total_episodes=int(raw["total_episodes"]),
            total_frames=int(raw["total_frames"]),
            features=features,
        )
    except FileNotFoundError as err:
        raise DataError(f"{path} has no meta/info.json, so it is not a LeRobotDataset v3.0 folder") from err
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as err:
        raise DataError(f"{info_path} is damaged or incomplete ({type(err).__name__}: {err})") from err
    _check_features(path, features)
    return info


def _check_features(path: Path, features: Mapping[str, layout.Feature]) -> None:
    missing = [name for name in layout.REQUIRED_COLUMNS if name not in features]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; found {', '.join(features)}")
    if features[layout.IMAGE_KEY].dtype != "image":
        raise DataError(f"{path}: {layout.IMAGE_KEY} has dtype {features[layout.IMAGE_KEY].dtype}, expected image")
    for key, names in ((layout.STATE_KEY, STATE_NAMES), (layout.ACTION_KEY, ACTION_NAMES)):
        shape = features[key].shape
        if shape != (len(names),):
            raise DataError(f"{path}: {key} has shape {list(shape)}, expected [{len(names)}]: {', '.join(names)}")


def _matrix(table: Any, key: str) -> FloatArray:
    column = table.column(key).combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float32).reshape(table.num_rows, -1)


def _language(table: Any) -> tuple[tuple[LanguageRow, ...], tuple[tuple[LanguageRow, ...], ...]]:
    def rows(records: list[dict[str, Any]] | None) -> tuple[LanguageRow, ...]:
        return tuple(
            LanguageRow(
                role=record["role"],
                content=record["content"],
                style=record["style"],
                timestamp_s=record.get("timestamp"),
                camera=record.get("camera"),
                tool_calls=None if record.get("tool_calls") is None else tuple(record["tool_calls"]),
            )
            for record in records or ()
        )

    persistent: tuple[LanguageRow, ...] = ()
    if layout.LANGUAGE_PERSISTENT_KEY in table.column_names:
        persistent = rows(table.column(layout.LANGUAGE_PERSISTENT_KEY)[0].as_py())
    if layout.LANGUAGE_EVENTS_KEY not in table.column_names:
        return persistent, ()
    events = tuple(rows(records) for records in table.column(layout.LANGUAGE_EVENTS_KEY).to_pylist())
    return persistent, events if any(events) else ()
