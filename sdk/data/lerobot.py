"""Reads LeRobotDatasets, v3.0 and v2.1, with pictures in the rows or in videos, without torch or lerobot.

What can be checked without reading the data is checked when the dataset is opened: version, columns, that the episodes
follow each other without gap or overlap, and (v3.0) row counts and that no file is truncated. The format and our
departures from it: `layout`. Whether the content makes sense is another question: `check`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.data import layout
from roboalign.sdk.data.arrow import decode_png, encode_png, import_pyarrow, numeric_column, open_parquet_error
from roboalign.sdk.data.episode import Episode, LanguageRow, action_chunks
from roboalign.sdk.data.meta import DatasetInfo, Span, read_info, read_spans, read_task_names
from roboalign.sdk.data.video import decode_frames, open_video
from roboalign.sdk.errors import DataError
from roboalign.sdk.types import FloatArray, ImageArray

__all__ = ["DatasetInfo", "LeRobotDataset"]

MAX_OPEN_FILES = 32
"""Data files kept open; v2.1 has one for each episode."""


class _DataFiles:
    """Opens data files when they are needed, and knows which row groups hold which rows."""

    def __init__(self) -> None:
        self._opened: dict[Path, tuple[Any, NDArray[np.int64]]] = {}

    def open(self, path: Path) -> tuple[Any, NDArray[np.int64]]:
        """Returns the parquet file and the first row of each of its row groups, then its number of rows."""
        if path not in self._opened:
            pa, parquet = import_pyarrow()
            try:
                file = parquet.ParquetFile(path)
            except (OSError, pa.ArrowException) as err:
                raise open_parquet_error(path, err) from err
            rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            if len(self._opened) >= MAX_OPEN_FILES:
                oldest, _ = self._opened.pop(next(iter(self._opened)))
                oldest.close()
            self._opened[path] = file, np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)
        return self._opened[path]

    def read(self, path: Path, first: int, last: int, columns: Sequence[str] | None = None) -> Any:
        """Returns the rows first..last-1 of a file as an arrow table."""
        pa, _ = import_pyarrow()
        file, row_starts = self.open(path)
        if last > row_starts[-1]:
            raise DataError(f"{path} has {row_starts[-1]} rows, expected {last}; collect or copy the dataset again")
        begin = int(np.searchsorted(row_starts, first, side="right")) - 1
        end = int(np.searchsorted(row_starts, last, side="left"))
        try:
            table = file.read_row_groups(list(range(begin, end)), columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as err:
            raise open_parquet_error(path, err) from err
        return table.slice(first - int(row_starts[begin]), last - first)


class LeRobotDataset:
    """A recorded dataset on disk. Frames are numbered through all episodes, in order ("global frame").

    Args:
        path: The folder that holds `meta/` and `data/`.

    Raises:
        DataError: the folder is missing, of another version, lacks a column, or holds a truncated file.
        BackendError: an optional package is not installed.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.info = read_info(self.path)
        self._spans = read_spans(self.path, self.info)
        self._files = _DataFiles()
        self._first_frames: dict[Path, int] = {}
        for span in self._spans:
            self._first_frames.setdefault(span.path, span.start)
        self._check_files()
        self._task_names: dict[int, str] | None = None

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self._spans)

    @property
    def num_frames(self) -> int:
        """Number of frames, with and without image."""
        return self._spans[-1].stop

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras; the first is the one that policies see."""
        return tuple(self.info.cameras)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Where each episode lies."""
        return tuple(self._spans)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The (first) instruction of each episode."""
        return tuple(span.tasks[0] for span in self._spans)

    @property
    def families(self) -> tuple[str | None, ...]:
        """The task family of each episode; None where it was not recorded."""
        return tuple(span.extra.get("family") for span in self._spans)

    @property
    def task_ids(self) -> tuple[str | None, ...]:
        """The task of each episode as `roboalign collect` names it; None where it was not recorded."""
        return tuple(span.extra.get("task", span.extra.get("family")) for span in self._spans)

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
        """Returns one episode with its images; those of a video are decoded, and given as PNG like all others.

        Raises:
            DataError: there is no such episode, or its rows or pictures cannot be read.
        """
        span = self._span(index)
        table = self._rows(span)
        length = span.stop - span.start
        names = table.column_names
        nothing: list[None] = [None] * length
        joints = _matrix(table, layout.JOINTS_KEY) if layout.JOINTS_KEY in names else np.zeros((length, 0), np.float32)
        persistent, events = _language(table)
        pictures = {camera: self._pngs(span, key, table) for camera, key in self.info.cameras.items()}
        first = next(iter(pictures), None)
        return Episode(
            index=index,
            task=span.tasks[0],
            instructions=self._instructions(span, table),
            states=_matrix(table, layout.STATE_KEY),
            joint_pos_rad=joints,
            actions=_matrix(table, layout.ACTION_KEY),
            images=tuple(nothing) if first is None else pictures.pop(first),
            other_images=pictures,
            truth_json=tuple(table.column(layout.TRUTH_KEY).to_pylist() if layout.TRUTH_KEY in names else nothing),
            rate_hz=self.info.rate_hz,
            language_persistent=persistent,
            language_events=events,
            state_names=self.info.state_names,
            action_names=self.info.action_names,
            domain=json.loads(span.extra.get("domain") or "{}"),
            interventions=tuple(map(bool, table.column(layout.INTERVENTION_KEY).to_pylist()))
            if layout.INTERVENTION_KEY in names
            else (),
        )

    def states(self) -> FloatArray:
        """Returns float32[N, S], the states of all frames in the order of `info.state_names`."""
        return self.column(layout.STATE_KEY).astype(np.float32)

    def actions(self) -> FloatArray:
        """Returns float32[N, A], the actions of all frames in the order of `info.action_names`."""
        return self.column(layout.ACTION_KEY).astype(np.float32)

    def column(self, key: str) -> NDArray[np.generic]:
        """Returns `[N, D]`, one numeric column of all frames, as it was stored.

        Raises:
            DataError: there is no such column.
        """
        if key not in self.info.features:
            raise DataError(f"{self.path} lacks the column {key}; found {', '.join(self.info.features)}")
        return np.concatenate([numeric_column(self._rows(span, [key]), key) for span in self._file_spans()])

    def text_column(self, key: str) -> list[str | None]:
        """Returns one text column of all frames.

        Raises:
            DataError: there is no such column, or it holds no text.
        """
        found = self.info.features.get(key)
        if found is None or found.dtype != "string":
            what = "lacks the column" if found is None else f"stores {found.dtype}, expected string, in the column"
            raise DataError(f"{self.path} {what} {key}; found {', '.join(self.info.features)}")
        return [text for span in self._file_spans() for text in self._rows(span, [key]).column(key).to_pylist()]

    def first_row(self, index: int) -> dict[str, Any]:
        """Returns the first row of an episode as it is stored, without pictures; persistent columns are all in it."""
        span = self._span(index)
        columns = [key for key, item in self.info.features.items() if item.dtype not in ("image", "video")]
        first = Span(path=span.path, start=span.start, stop=span.start + 1, tasks=())
        row: dict[str, Any] = self._rows(first, columns).to_pylist()[0]
        return row

    def action_chunks(self, horizon: int) -> FloatArray:
        """Returns float32[N, horizon, 5]: the actions from each frame on, then staying still.

        Raises:
            DataError: states or actions are not the five numbers that roboalign learns.
        """
        self.info.require_trainable(self.path)
        actions = self.actions()
        return np.concatenate([action_chunks(actions[span.start : span.stop], horizon) for span in self._spans])

    def episode_of_frame(self) -> NDArray[np.int64]:
        """Returns int64[N]: the episode of each frame."""
        return np.repeat(np.arange(self.num_episodes, dtype=np.int64), np.diff(self.episode_starts))

    def frames_with_images(self, camera: str | None = None) -> NDArray[np.int64]:
        """Returns int64[M]: the global frames that hold an image, in order; the pixels are not read."""
        if camera is None and not self.cameras:
            return np.zeros(0, np.int64)
        key = self._camera_key(camera)
        if self.info.features[key].dtype == "video":
            return np.arange(self.num_frames, dtype=np.int64)
        found = []
        for span in self._file_spans():
            is_present = self._rows(span, [f"{key}.path"]).column(key).is_valid().to_numpy()
            found.append(np.flatnonzero(is_present) + span.start)
        return np.concatenate(found).astype(np.int64)

    def images(self, frames: NDArray[np.int64], camera: str | None = None) -> ImageArray:
        """Returns uint8[len(frames), H, W, 3], decoded, of one camera (the first unless named).

        Raises:
            DataError: a frame has no image, there is no such camera, or its pictures cannot be read.
        """
        key = self._camera_key(camera)
        height_px, width_px = self.info.features[key].image_size_px
        pictures = np.zeros((len(frames), height_px, width_px, 3), np.uint8)
        episodes = np.searchsorted(self.episode_starts, frames, side="right") - 1
        for index in np.unique(episodes):
            span = self._span(int(index))
            positions = np.flatnonzero(episodes == index)
            numbers = [int(frames[position]) - span.start for position in positions]
            found = self._pictures(span, key, numbers)
            for position, number, picture in zip(positions, numbers, found, strict=True):
                if picture.shape != pictures.shape[1:]:
                    raise DataError(
                        f"{self.path}: frame {number} of episode {index} is {list(picture.shape)}, expected "
                        f"{list(pictures.shape[1:])} as meta/info.json says of {key}"
                    )
                pictures[position] = picture
        return pictures

    def data_hash(self) -> str:
        """Returns the sha256 of the content (not of the files): tasks, states, actions, truths and images.

        Of a picture in a row its PNG file enters, of one in a video its decoded pixels.
        """
        digest = hashlib.sha256()
        is_video = {camera: self.info.features[key].dtype == "video" for camera, key in self.info.cameras.items()}
        for episode in self.episodes():
            digest.update(json.dumps([episode.task, *episode.truth_json]).encode())
            digest.update(episode.states.tobytes())
            digest.update(episode.joint_pos_rad.tobytes())
            digest.update(episode.actions.tobytes())
            for camera, images in zip(is_video, (episode.images, *episode.other_images.values()), strict=False):
                for image in images:
                    content = decode_png(image).tobytes() if image is not None and is_video[camera] else image
                    digest.update(b"-" if content is None else hashlib.sha256(content).digest())
        return digest.hexdigest()

    def _span(self, index: int) -> Span:
        if not 0 <= index < self.num_episodes:
            raise DataError(f"{self.path} has episodes 0..{self.num_episodes - 1}, there is no episode {index}")
        return self._spans[index]

    def _camera_key(self, camera: str | None) -> str:
        cameras = self.info.cameras
        name = next(iter(cameras), None) if camera is None else camera
        if name is None or name not in cameras:
            raise DataError(f"{self.path} has no camera {name or 'at all'}; found {', '.join(cameras) or 'none'}")
        return cameras[name]

    def _file_spans(self) -> list[Span]:
        """One span for each data file, from its first frame to its last."""
        starts = [*self._first_frames.values(), self.num_frames]
        pairs = zip(self._first_frames, starts[:-1], starts[1:], strict=True)
        return [Span(path=path, start=start, stop=stop, tasks=()) for path, start, stop in pairs]

    def _rows(self, span: Span, columns: Sequence[str] | None = None) -> Any:
        first = self._first_frames[span.path]
        return self._files.read(span.path, span.start - first, span.stop - first, columns)

    def _pictures(self, span: Span, key: str, numbers: Sequence[int]) -> list[ImageArray]:
        if self.info.features[key].dtype == "video":
            video = span.videos[key]
            return decode_frames(video.path, numbers, start_s=video.start_s, rate_hz=self.info.rate_hz)
        column = self._rows(span, [key]).column(key)
        found = []
        for number in numbers:
            item = column[number].as_py()
            if item is None or item["bytes"] is None:
                raise DataError(f"{self.path}: frame {span.start + number} has no image; see frames_with_images()")
            found.append(decode_png(item["bytes"]))
        return found

    def _pngs(self, span: Span, key: str, table: Any) -> tuple[bytes | None, ...]:
        if self.info.features[key].dtype == "video":
            return tuple(encode_png(picture) for picture in self._pictures(span, key, range(span.stop - span.start)))
        return tuple(item and item["bytes"] for item in table.column(key).to_pylist())

    def _instructions(self, span: Span, table: Any) -> tuple[str, ...]:
        if len(span.tasks) == 1:
            return ()
        if self._task_names is None:
            self._task_names = read_task_names(self.path)
        return tuple(self._task_names[int(number)] for number in table.column("task_index").to_pylist())

    def _check_files(self) -> None:
        """Checks what can be seen without reading data; of v2.1, which has many files, only that they are there."""
        is_v3 = self.info.codebase_version == layout.CODEBASE_VERSION
        videos = dict.fromkeys(video.path for span in self._spans for video in span.videos.values())
        for path in (*self._first_frames, *videos):
            if not path.is_file():
                raise DataError(f"{path} is missing; collect or copy the dataset again")
        for path in videos if is_v3 else ():
            with open_video(path):
                pass
        num_rows = 0
        for path in self._first_frames if is_v3 else list(self._first_frames)[:1]:
            file, row_starts = self._files.open(path)
            num_rows += int(row_starts[-1])
            wanted = [*layout.REQUIRED_COLUMNS, *self.info.cameras.values()]
            missing = [name for name in wanted if name not in file.schema_arrow.names and not self._is_video(name)]
            if missing:
                found = ", ".join(file.schema_arrow.names)
                raise DataError(f"{path} lacks the columns {', '.join(missing)}; found {found}")
        if self.num_frames != self.info.total_frames or (is_v3 and num_rows != self.num_frames):
            raise DataError(
                f"{self.path}: the data files hold {num_rows if is_v3 else self.num_frames} frames, meta/info.json "
                f"says {self.info.total_frames}; collect or copy the dataset again"
            )

    def _is_video(self, key: str) -> bool:
        return self.info.features[key].dtype == "video"


def _matrix(table: Any, key: str) -> FloatArray:
    return np.asarray(numeric_column(table, key), dtype=np.float32)


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
