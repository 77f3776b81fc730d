"""Writes a dataset as lerobot did up to version 2.1: a file an episode, lines of JSON, names grouped by motor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from roboalign.sdk.data.stats import describe_histogram, image_histogram
from roboalign.sdk.data.video import encode_video
from roboalign.sdk.types import ImageArray

FPS = 10
LENGTHS = (4, 6)
CAMERA = "observation.images.top"
STATISTICS = ("min", "max", "mean", "std")


def write_older(path: Path, picture: Callable[[int], ImageArray]) -> Path:
    """Two episodes of an arm with two joints; frame f of episode e shows `picture(e + f)`."""
    (path / "meta").mkdir(parents=True)
    rows: dict[str, list[object]] = {"episodes": [], "episodes_stats": [], "tasks": [{"task_index": 0, "task": "push"}]}
    for index, length in enumerate(LENGTHS):
        rows["episodes"].append({"episode_index": index, "tasks": ["push"], "length": length})
        rows["episodes_stats"].append({"episode_index": index, "stats": _write_episode(path, index, length, picture)})
    for name, lines in rows.items():
        (path / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "meta" / "info.json").write_text(json.dumps(_info(picture(0).shape[0])))
    return path


def _write_episode(path: Path, index: int, length: int, picture: Callable[[int], ImageArray]) -> dict[str, object]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = path / "data" / f"chunk-{index:03d}" / f"episode_{index:06d}.parquet"
    video = path / "videos" / f"chunk-{index:03d}" / CAMERA / f"episode_{index:06d}.mp4"
    for file in (data, video):
        file.parent.mkdir(parents=True)
    pictures = [picture(index + frame) for frame in range(length)]
    encode_video(video, pictures, rate_hz=FPS)
    frames = np.arange(length)
    values = np.stack([frames, 10.0 * index + frames], axis=1).astype(np.float32)
    numbers = {
        "timestamp": (frames / FPS).astype(np.float32),
        "frame_index": frames,
        "episode_index": frames * 0 + index,
        "index": frames + sum(LENGTHS[:index]),
        "task_index": frames * 0,
    }
    vector = pa.array(values.tolist(), pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"observation.state": vector, "action": vector, **numbers}), data)
    image = describe_histogram(image_histogram(pictures), num_images=length)
    columns = {"observation.state": values, "action": values}
    columns.update({key: column[:, None] for key, column in numbers.items()})
    stats: dict[str, object] = {CAMERA: {name: image[name] for name in (*STATISTICS, "count")}}
    for key, column in columns.items():
        stats[key] = {name: getattr(column, name)(axis=0).tolist() for name in STATISTICS} | {"count": [length]}
    return stats


def _info(size_px: int) -> dict[str, object]:
    column = {"dtype": "float32", "shape": [2], "names": {"motors": ["shoulder.pos", "elbow.pos"]}}
    scalar = {"dtype": "int64", "shape": [1], "names": None}
    place = "chunk-{episode_chunk:03d}"
    return {
        "codebase_version": "v2.1",
        "robot_type": "so100",
        "fps": FPS,
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": 1,
        "total_videos": len(LENGTHS),
        "total_chunks": len(LENGTHS),
        "chunks_size": 1,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": f"data/{place}/episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{place}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
        "features": {
            "observation.state": column,
            "action": column,
            CAMERA: {"dtype": "video", "shape": [3, size_px, size_px], "names": ["channels", "height", "width"]},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), scalar),
        },
    }
