"""Reads the metadata of a LeRobotDataset: v3.0, or v2.1 with its one file an episode."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roboalign.sdk.data import layout
from roboalign.sdk.data.arrow import import_pyarrow, open_parquet_error
from roboalign.sdk.errors import DataError
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, STATES

__all__ = ["DatasetInfo", "Span", "VideoSpan", "read_info", "read_spans", "read_stats", "read_task_names"]

VERSIONS = (layout.CODEBASE_VERSION, "v2.1")
"""Layouts that are read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What `meta/info.json` says."""

    codebase_version: str
    """Version of the layout, `v3.0` or `v2.1`."""
    robot_type: str | None
    """Name of the robot."""
    rate_hz: float
    """Frames per second."""
    total_episodes: int
    """Number of episodes."""
    total_frames: int
    """Number of frames, with and without image."""
    features: Mapping[str, layout.Feature]
    """Columns of the data files, and videos."""
    data_path: str
    """Where data files lie, with names to fill in."""
    video_path: str | None
    """The same for videos."""
    chunks_size: int
    """Files (v2.1: episodes) in one `chunk-*` folder."""

    @property
    def cameras(self) -> Mapping[str, str]:
        """The image feature of each camera; the first is the one that policies see."""
        return layout.cameras(self.features)

    @property
    def image_size_px(self) -> int:
        """Height of the first camera's image.

        Raises:
            DataError: the dataset has no camera.
        """
        if not self.cameras:
            raise DataError(f"the dataset has no camera; found {', '.join(self.features)}")
        return self.features[next(iter(self.cameras.values()))].image_size_px[0]

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the entries of `observation.state`."""
        return _entry_names(self.features[layout.STATE_KEY])

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the entries of `action`."""
        return _entry_names(self.features[layout.ACTION_KEY])

    def require_trainable(self, path: Path) -> None:
        """Raises DataError unless states and actions are the five numbers that roboalign learns."""
        states = self.state_names if self.state_names in STATES.values() else STATE_NAMES
        for key, found, expected in (
            (layout.STATE_KEY, self.state_names, states),
            (layout.ACTION_KEY, self.action_names, ACTION_NAMES),
        ):
            if found != expected:
                raise DataError(
                    f"{path}: {key} has shape [{len(found)}] ({', '.join(found)}), expected [{len(expected)}] "
                    f"({', '.join(expected)}); it can be looked at, but to train on it convert it first"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSpan:
    """Where the pictures of one camera lie."""

    path: Path
    """The video."""
    start_s: float
    """Time in the video at which the episode begins."""
    stop_s: float
    """Time at which it ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Where an episode lies."""

    path: Path
    """Its data file."""
    start: int
    """Its first global frame."""
    stop: int
    """The first global frame after it."""
    tasks: tuple[str, ...]
    """Its instructions: one, or several when they change on the way."""
    videos: Mapping[str, VideoSpan] = field(default_factory=dict)
    """By feature."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What roboalign wrote about it, by name without `roboalign/`."""
    stats: Mapping[str, Any] | None = None
    """Its statistics by feature, where the layout keeps them apart (v2.1)."""


def read_info(path: Path) -> DatasetInfo:
    """Returns what `meta/info.json` says.

    Raises:
        DataError: there is no such dataset, it is of another version, or it lacks a column.
    """
    if not path.is_dir():
        raise DataError(f"there is no dataset folder {path}; make one with: roboalign collect --out {path}")
    info_path = path / "meta" / "info.json"
    try:
        raw = json.loads(info_path.read_text(encoding="utf-8"))
        version = raw["codebase_version"]
        if version not in VERSIONS:
            raise DataError(f"{path} is LeRobotDataset {version}, expected {' or '.join(VERSIONS)}; convert it first")
        info = DatasetInfo(
            codebase_version=version,
            robot_type=raw.get("robot_type"),
            rate_hz=float(raw["fps"]),
            total_episodes=int(raw["total_episodes"]),
            total_frames=int(raw["total_frames"]),
            features={key: _feature(item) for key, item in raw["features"].items()},
            data_path=raw.get("data_path") or layout.DATA_PATH,
            video_path=raw.get("video_path"),
            chunks_size=int(raw.get("chunks_size", layout.CHUNKS_SIZE)),
        )
    except FileNotFoundError as err:
        raise DataError(f"{path} has no meta/info.json, so it is not a LeRobotDataset folder") from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        if isinstance(err, DataError):
            raise
        raise DataError(f"{info_path} is damaged or incomplete ({type(err).__name__}: {err})") from err
    missing = [name for name in layout.REQUIRED_COLUMNS if name not in info.features]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; found {', '.join(info.features)}")
    return info


def read_spans(path: Path, info: DatasetInfo) -> list[Span]:
    """Returns where each episode lies, in order.

    Raises:
        DataError: the lists of episodes are damaged or do not fit together.
    """
    try:
        spans = _spans_v3(path, info) if info.codebase_version == layout.CODEBASE_VERSION else _spans_v21(path, info)
    except (KeyError, TypeError) as err:
        raise DataError(f"{path}: the list of episodes is damaged ({type(err).__name__}: {err})") from err
    if len(spans) != info.total_episodes or not spans:
        raise DataError(
            f"{path}: meta/episodes lists {len(spans)} episodes, meta/info.json says {info.total_episodes}; "
            "collect or copy the dataset again"
        )
    expected = 0
    for index, span in enumerate(spans):
        if span.start != expected or span.stop <= span.start:
            raise DataError(
                f"{path}: episode {index} is listed as frames {span.start} to {span.stop}, expected it to begin at "
                f"{expected}; frames would be counted twice or left out: collect or copy the dataset again"
            )
        expected = span.stop
    return spans


def read_task_names(path: Path) -> dict[int, str]:
    """Returns the sentence of each `task_index`, from `meta/tasks.parquet` or (older writers) `meta/tasks.jsonl`."""
    table_path = path / "meta" / "tasks.parquet"
    if not table_path.exists():
        return {int(row["task_index"]): str(row["task"]) for row in _read_lines(path / "meta" / "tasks.jsonl")}
    pa, parquet = import_pyarrow()
    try:
        rows = parquet.read_table(table_path).to_pylist()
    except (OSError, pa.ArrowException) as err:
        raise open_parquet_error(table_path, err) from err
    return {int(row["task_index"]): str(row.get("task", row.get("__index_level_0__"))) for row in rows}


def read_stats(path: Path) -> dict[str, Any] | None:
    """Returns `meta/stats.json`, or None when there is none.

    Raises:
        DataError: the file is damaged.
    """
    stats_path = path / "meta" / "stats.json"
    try:
        stats: dict[str, Any] = json.loads(stats_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as err:
        raise DataError(f"{stats_path} is damaged ({err})") from err
    return stats


def _feature(item: Mapping[str, Any]) -> layout.Feature:
    names = item.get("names")
    if isinstance(names, dict):
        # Some writers group the names, e.g. {"motors": [...]}.
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    has_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return layout.Feature(
        dtype=item["dtype"],
        shape=tuple(int(size) for size in item["shape"]),
        names=tuple(names or ()) if has_names else None,
        info=item.get("info"),
    )


def _entry_names(feature: layout.Feature) -> tuple[str, ...]:
    size = 1
    for length in feature.shape:
        size *= length
    if feature.names is not None and len(feature.names) == size:
        return feature.names
    return tuple(f"entry_{number}" for number in range(size))


def _spans_v3(path: Path, info: DatasetInfo) -> list[Span]:
    pa, parquet = import_pyarrow()
    video_keys = [key for key, feature in info.features.items() if feature.dtype == "video"]
    wanted = ["episode_index", "tasks", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"]
    for key in video_keys:
        wanted += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    rows: list[dict[str, Any]] = []
    for file_path in sorted((path / "meta" / "episodes").glob("*/*.parquet")):
        try:
            file = parquet.ParquetFile(file_path)
            names = file.schema_arrow.names
            missing = [name for name in wanted if name not in names]
            if missing:
                raise DataError(f"{file_path} lacks the columns {', '.join(missing)}; it is not LeRobotDataset v3.0")
            ours = [name for name in names if name.startswith("roboalign/")]
            rows += file.read(columns=[*wanted, *ours], use_threads=False).to_pylist()
        except (OSError, pa.ArrowException) as err:
            raise open_parquet_error(file_path, err) from err
    rows.sort(key=lambda row: int(row["episode_index"]))
    return [_span_v3(path, info, row, video_keys) for row in rows]


def _span_v3(path: Path, info: DatasetInfo, row: Mapping[str, Any], video_keys: list[str]) -> Span:
    videos = {}
    for key in video_keys:
        place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
        videos[key] = VideoSpan(
            path=path / (info.video_path or layout.VIDEO_PATH).format(video_key=key, **place),
            start_s=float(row[f"videos/{key}/from_timestamp"]),
            stop_s=float(row[f"videos/{key}/to_timestamp"]),
        )
    place = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
    return Span(
        path=path / info.data_path.format(**place),
        start=int(row["dataset_from_index"]),
        stop=int(row["dataset_to_index"]),
        tasks=tuple(row["tasks"] or ()) or ("",),
        videos=videos,
        extra={name.removeprefix("roboalign/"): row[name] for name in row if name.startswith("roboalign/")},
    )


def _spans_v21(path: Path, info: DatasetInfo) -> list[Span]:
    stats = {}
    if (path / "meta" / "episodes_stats.jsonl").exists():
        stats = {row["episode_index"]: row["stats"] for row in _read_lines(path / "meta" / "episodes_stats.jsonl")}
    video_keys = [key for key, feature in info.features.items() if feature.dtype == "video"]
    spans: list[Span] = []
    start = 0
    rows = sorted(_read_lines(path / "meta" / "episodes.jsonl"), key=lambda row: int(row["episode_index"]))
    for row in rows:
        index, length = int(row["episode_index"]), int(row["length"])
        place = {"episode_index": index, "episode_chunk": index // info.chunks_size}
        videos = {
            key: VideoSpan(
                path=path / str(info.video_path).format(video_key=key, **place),
                start_s=0.0,
                stop_s=length / info.rate_hz,
            )
            for key in video_keys
        }
        spans.append(
            Span(
                path=path / info.data_path.format(**place),
                start=start,
                stop=start + length,
                tasks=tuple(row["tasks"]) or ("",),
                videos=videos,
                stats=stats.get(index),
            )
        )
        start += length
    return spans


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as err:
        raise DataError(f"{path} is missing; copy the dataset again") from err
    except ValueError as err:
        raise DataError(f"{path} is damaged ({err}); copy the dataset again") from err
