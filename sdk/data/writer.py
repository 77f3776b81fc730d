"""Writes a LeRobotDataset v3.0 (see `layout`) episode by episode, under a temporary name until it is complete.

Each episode lies as a shard beside the growing dataset until that is complete, so that a recording which was killed, or
stopped by a full disk, loses only the episode that was under way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.data import layout
from roboalign.sdk.data.arrow import import_pyarrow, numeric_column
from roboalign.sdk.data.episode import Episode
from roboalign.sdk.data.shards import Shard, read_shard, remove_shard, write_shard
from roboalign.sdk.data.stats import Statistics, describe, describe_histogram
from roboalign.sdk.data.storage import one_writer, told_when_full
from roboalign.sdk.data.video import VideoJoiner, video_info
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES

__all__ = ["DatasetWriter"]

NUMERIC_KEYS = (
    layout.STATE_KEY,
    layout.JOINTS_KEY,
    layout.ACTION_KEY,
    layout.INTERVENTION_KEY,
    "timestamp",
    "frame_index",
    "episode_index",
)
"""Columns described in `stats.json`; `index` and `task_index` are added when they are known."""
EXTRA_NOTES = ("family", "task", "seed", "attempts", "robot", "split", "domain")
"""Notes of a shard that become columns `roboalign/...` of `meta/episodes`."""


@dataclass(kw_only=True, slots=True)
class _Totals:
    """What the metadata files need to know about everything written so far."""

    tasks: dict[str, int] = field(default_factory=dict)
    episodes: list[dict[str, object]] = field(default_factory=list)
    columns: dict[str, list[NDArray[np.generic]]] = field(default_factory=dict)
    histograms: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    num_images: dict[str, int] = field(default_factory=dict)
    num_frames: int = 0


class _GrowingFiles:
    """Numbers the files of one kind; the next one is begun before the present one grows too large."""

    def __init__(self, folder: Path, template: str, max_mb: float) -> None:
        self._folder = folder
        self._template = template
        self._max_bytes = max_mb * 2**20
        self._number = -1
        self._bytes = 0

    @property
    def place(self) -> tuple[int, int]:
        """Chunk and file of the present file."""
        return divmod(self._number, layout.CHUNKS_SIZE)

    def grow(self, num_bytes: int) -> Path | None:
        """Counts bytes to come; returns the path of the file to begin, or None to go on with the present one."""
        is_full = self._bytes + num_bytes > self._max_bytes
        self._bytes = num_bytes if self._number < 0 or is_full else self._bytes + num_bytes
        if self._number >= 0 and not is_full:
            return None
        self._number += 1
        chunk_index, file_index = self.place
        path = self._folder / self._template.format(chunk_index=chunk_index, file_index=file_index)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class DatasetWriter:
    """Appends episodes to a new dataset; the folder gets its name when `close` has written the last byte.

    Use as a context manager. After an exception or a kill, the complete episodes that were given to `add` stay in
    `.<name>.writing`; `resume=True` goes on with them. Not safe for use from several threads.

    Args:
        path: Folder of the dataset; it must not exist yet.
        image_size_px: Height and width of all pictures; one number for square ones.
        num_joints: Entries of `Episode.joint_pos_rad`; 0 when joints are not recorded.
        rate_hz: Frames per second.
        robot_type: Name of the robot.
        cameras: Names of the cameras; `Episode.images` is of the first, `Episode.other_images` of the others.
        is_video: Stores pictures as video: about half the size, 40 dB instead of lossless.
        resume: Takes over the complete episodes of a recording that was cut.
        state_names: Entries of a state.
        action_names: Entries of an action.
        has_intervention: Whether frames say in which a person acted (`Episode.interventions`).
    """

    def __init__(
        self,
        path: Path,
        *,
        image_size_px: int | tuple[int, int],
        num_joints: int,
        rate_hz: float = 10.0,
        robot_type: str = "panda",
        cameras: Sequence[str] = ("front",),
        is_video: bool = False,
        resume: bool = False,
        state_names: tuple[str, ...] = STATE_NAMES,
        action_names: tuple[str, ...] = ACTION_NAMES,
        has_intervention: bool = False,
    ) -> None:
        self._path = Path(path)
        self._writing = self._path.with_name(f".{self._path.name}.writing")
        self._rate_hz = rate_hz
        self._robot_type = robot_type
        self._resume = resume
        self._features = layout.dataset_features(
            image_size_px=image_size_px,
            num_joints=num_joints,
            cameras=cameras,
            video_info=video_info(rate_hz) if is_video else None,
            state_names=state_names,
            action_names=action_names,
            has_intervention=has_intervention,
        )
        self._totals = _Totals()
        self._data_files = _GrowingFiles(self._writing, layout.DATA_PATH, layout.DATA_FILE_SIZE_MB)
        self._file: Any = None
        self._video_files: dict[str, _GrowingFiles] = {}
        self._joiners: dict[str, VideoJoiner] = {}
        self._lock = ExitStack()
        self._is_closed = False

    def __enter__(self) -> DatasetWriter:
        with ExitStack() as lock:
            lock.enter_context(one_writer(self._path))
            if self._path.exists():
                raise ConfigError(f"{self._path} exists already; delete it or choose another name")
            kept = sorted(self._shards.glob("episode-??????.parquet"))
            if kept and not self._resume:
                raise ConfigError(
                    f"{self._writing} holds {len(kept)} complete episodes of a recording that was cut; go on with it "
                    "(DatasetWriter(..., resume=True)), or delete that folder"
                )
            self._clear(kept)
            self._lock = lock.pop_all()
        try:
            for path in kept:
                self.add_shard(path)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            with suppress(OSError):
                self._close_files()
            if not any(self._shards.glob("episode-??????.parquet")):
                shutil.rmtree(self._writing, ignore_errors=True)
            self._lock.close()

    def add(self, episode: Episode) -> None:
        """Appends an episode; its index becomes the number of episodes before it.

        Raises:
            DataError: the episode does not fit the dataset, or the disk is full; the episodes before it are safe.
        """
        path = self._shards / f"episode-{self.num_episodes:06d}.parquet"
        with told_when_full(self._path, "free some, then go on with DatasetWriter(..., resume=True)"):
            try:
                write_shard(path, episode, features=self._features, notes={})
            except BaseException:
                remove_shard(path)
                raise
            self.add_shard(path)

    def add_shard(self, path: Path) -> Mapping[str, object]:
        """Appends the episode of a file made by `write_shard`; returns its notes.

        Raises:
            DataError: the file is truncated or is no shard.
        """
        shard = read_shard(path, self._features)
        self._append(shard)
        return shard.notes

    def close(self) -> Path:
        """Writes the metadata and gives the dataset its final name, which is returned; may be called again.

        Raises:
            DataError: there is no episode, or the disk is full; no episode is lost.
        """
        if self._is_closed:
            return self._path
        if not self._totals.episodes:
            raise DataError(f"{self._path}: a dataset needs at least one episode")
        with told_when_full(self._path, "free some, then go on with DatasetWriter(..., resume=True)"):
            self._close_files()
            self._write_meta()
        shutil.rmtree(self._shards)
        self._writing.rename(self._path)
        self._is_closed = True
        return self._path

    @property
    def num_episodes(self) -> int:
        """Episodes written so far, those that were taken over included."""
        return len(self._totals.episodes)

    @property
    def num_frames(self) -> int:
        """Frames written so far."""
        return self._totals.num_frames

    @property
    def num_images(self) -> int:
        """Images written so far, of all cameras."""
        return sum(self._totals.num_images.values())

    @property
    def features(self) -> Mapping[str, layout.Feature]:
        """Columns and videos of the dataset."""
        return self._features

    def write_extra(self, name: str, content: Mapping[str, object]) -> None:
        """Writes `meta/<name>` as JSON beside lerobot's own files."""
        _write_json(self._writing / "meta" / name, content)

    @property
    def _shards(self) -> Path:
        return self._writing / "shards"

    def _clear(self, kept: Sequence[Path]) -> None:
        """Removes all that a cut recording left but its complete episodes."""
        names = {path.stem for path in kept}
        self._shards.mkdir(parents=True, exist_ok=True)
        for path in self._writing.iterdir():
            if path != self._shards:
                shutil.rmtree(path)
        for path in self._shards.iterdir():
            if path.name.partition(".")[0] not in names or ".tmp-" in path.name:
                path.unlink()

    def _append(self, shard: Shard) -> None:
        pa, _ = import_pyarrow()
        totals, table = self._totals, shard.table
        episode_index, start, length = len(totals.episodes), totals.num_frames, table.num_rows
        task_index = [totals.tasks.setdefault(task, len(totals.tasks)) for task in shard.instructions]
        numbers = {
            "episode_index": np.full(length, episode_index, np.int64),
            "index": np.arange(start, start + length, dtype=np.int64),
            "task_index": np.asarray(task_index, np.int64),
        }
        for key, column in numbers.items():
            table = table.set_column(table.schema.get_field_index(key), key, pa.array(column))
        self._write_rows(table)
        videos = self._join_videos(shard.videos)
        stats = {**self._describe(table, numbers), **self._describe_images(shard, length)}
        totals.num_frames += length
        chunk_index, file_index = self._data_files.place
        totals.episodes.append(
            {
                "episode_index": episode_index,
                "tasks": list(dict.fromkeys(shard.instructions)),
                "length": length,
                "data/chunk_index": chunk_index,
                "data/file_index": file_index,
                "dataset_from_index": start,
                "dataset_to_index": start + length,
                **videos,
                **{f"stats/{key}/{name}": value for key, group in stats.items() for name, value in group.items()},
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **_extra_columns(shard.notes),
            }
        )

    def _describe(self, table: Any, numbers: Mapping[str, NDArray[np.int64]]) -> dict[str, Statistics]:
        stats = {}
        for key in [key for key in (*NUMERIC_KEYS, "index", "task_index") if key in self._features]:
            values = numbers[key] if key in numbers else numeric_column(table, key)
            self._totals.columns.setdefault(key, []).append(values)
            stats[key] = describe(values)
        return stats

    def _describe_images(self, shard: Shard, length: int) -> dict[str, Statistics]:
        totals, stats = self._totals, {}
        for key, histogram in shard.histograms.items():
            num_images = length if key in shard.videos else length - shard.table.column(key).null_count
            totals.histograms[key] = totals.histograms.get(key, 0) + histogram
            totals.num_images[key] = totals.num_images.get(key, 0) + num_images
            if num_images:
                stats[key] = describe_histogram(histogram, num_images=num_images)
        return stats

    def _write_rows(self, table: Any) -> None:
        _, parquet = import_pyarrow()
        path = self._data_files.grow(table.nbytes)
        if path is not None:
            self._close_data_file()
            self._file = parquet.ParquetWriter(path, table.schema, compression="zstd")
        self._file.write_table(table)

    def _join_videos(self, videos: Mapping[str, Path]) -> dict[str, object]:
        places: dict[str, object] = {}
        for key, video in videos.items():
            if key not in self._video_files:
                # Only the key is filled in here, the numbers when a file is begun.
                template = layout.VIDEO_PATH.replace("{video_key}", key)
                self._video_files[key] = _GrowingFiles(self._writing, template, layout.VIDEO_FILE_SIZE_MB)
            path = self._video_files[key].grow(video.stat().st_size)
            if path is not None:
                if key in self._joiners:
                    self._joiners[key].close()
                self._joiners[key] = VideoJoiner(path, rate_hz=self._rate_hz)
            start_s, stop_s = self._joiners[key].add(video)
            chunk_index, file_index = self._video_files[key].place
            place = {"chunk_index": chunk_index, "file_index": file_index}
            place_s = {"from_timestamp": start_s, "to_timestamp": stop_s}
            places.update({f"videos/{key}/{name}": value for name, value in {**place, **place_s}.items()})
        return places

    def _close_data_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _close_files(self) -> None:
        self._close_data_file()
        for joiner in self._joiners.values():
            joiner.close()

    def _write_meta(self) -> None:
        pa, parquet = import_pyarrow()
        totals, meta = self._totals, self._writing / "meta"
        _write_json(meta / "info.json", self._info())
        stats = {key: describe(np.concatenate(columns)) for key, columns in totals.columns.items()}
        for key, num_images in totals.num_images.items():
            if num_images:
                stats[key] = describe_histogram(totals.histograms[key], num_images=num_images)
        _write_json(meta / "stats.json", stats)
        parquet.write_table(_tasks_table(pa, list(totals.tasks)), meta / "tasks.parquet")
        path = self._writing / layout.EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(totals.episodes), path, compression="zstd")

    def _info(self) -> dict[str, object]:
        totals = self._totals
        features: dict[str, dict[str, object]] = {}
        for key, feature in self._features.items():
            names = None if feature.names is None else list(feature.names)
            features[key] = {"dtype": feature.dtype, "shape": list(feature.shape), "names": names}
            if feature.info is not None:
                features[key]["info"] = dict(feature.info)
        return {
            "codebase_version": layout.CODEBASE_VERSION,
            "robot_type": self._robot_type,
            "total_episodes": len(totals.episodes),
            "total_frames": totals.num_frames,
            "total_tasks": len(totals.tasks),
            "chunks_size": layout.CHUNKS_SIZE,
            "data_files_size_in_mb": layout.DATA_FILE_SIZE_MB,
            "video_files_size_in_mb": layout.VIDEO_FILE_SIZE_MB,
            "fps": int(self._rate_hz) if float(self._rate_hz).is_integer() else self._rate_hz,
            "splits": {"train": f"0:{len(totals.episodes)}"},
            "data_path": layout.DATA_PATH,
            "video_path": layout.VIDEO_PATH if self._video_files else None,
            "features": features,
        }


def _extra_columns(notes: Mapping[str, object]) -> dict[str, object]:
    columns = {f"roboalign/{name}": notes[name] for name in EXTRA_NOTES if name in notes}
    if not columns.pop("roboalign/domain", None):
        return columns
    return {**columns, "roboalign/domain": json.dumps(notes["domain"], separators=(",", ":"))}


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
