"""Small datasets on disk, as another project may have recorded them: no simulator truth, words in several places."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.sdk.data import DatasetWriter, Episode, LanguageRow, encode_png
from roboalign.sdk.types import ACTION_NAMES

SIZE_PX = 16


def episode(seed: int = 0, *, length: int = 6, rate_hz: float = 10.0, **changes: object) -> Episode:
    """Returns an episode of a real robot: pictures, states and actions, and one sentence."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (length, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    whole = Episode(
        task=f"do task {seed}",
        states=rng.uniform(0.3, 0.5, (length, 5)).astype(np.float32),
        joint_pos_rad=np.zeros((length, 0), np.float32),
        actions=0.01 * rng.standard_normal((length, len(ACTION_NAMES))).astype(np.float32),
        images=tuple(encode_png(picture) for picture in pictures),
        truth_json=(None,) * length,
        rate_hz=rate_hz,
    )
    return replace(whole, **changes)


def said(style: str, content: str, time_s: float | None = None, role: str = "assistant") -> LanguageRow:
    """Returns one row of a language column."""
    return LanguageRow(role=role, content=content, style=style, timestamp_s=time_s)


def write(
    folder: Path,
    episodes: Sequence[Episode] | None = None,
    *,
    robot: str = "panda",
    rate_hz: float = 10.0,
    columns: Mapping[str, Sequence[str | None]] | None = None,
) -> Path:
    """Writes a dataset of two episodes, or of the given ones; `columns` are text columns to add, one text a frame."""
    path = folder / "demos"
    episodes = episodes or [episode(0, rate_hz=rate_hz), episode(1, rate_hz=rate_hz)]
    settings = {"image_size_px": SIZE_PX, "num_joints": 0, "robot_type": robot, "rate_hz": rate_hz}
    with DatasetWriter(path, **settings, has_intervention=bool(episodes[0].interventions)) as writer:
        for item in episodes:
            writer.add(item)
    data, info_path = path / "data/chunk-000/file-000.parquet", path / "meta/info.json"
    table, info = pq.read_table(data), json.loads(info_path.read_text())
    for key, texts in (columns or {}).items():
        table = table.append_column(key, pa.array(list(texts), pa.string()))
        info["features"][key] = {"dtype": "string", "shape": [1], "names": None}
    pq.write_table(table, data)
    info_path.write_text(json.dumps(info))
    return path
