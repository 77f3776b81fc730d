"""One page that shows a dataset: what it holds, a strip of pictures an episode, and its states, joints and actions."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.data import layout
from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.data.svg import bars, lines
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.types import ImageArray

__all__ = ["show_dataset"]

STRIP_PICTURES = 8
"""Pictures of one camera in one episode."""
MAX_PICTURE_PX = 160
"""Larger pictures are made smaller, and are stored as JPEG."""
MAX_CURVES = 8
"""Curves in one plot."""
HISTOGRAM_BINS = 48

_STYLE = """
:root { --ink: #1e293b; --soft: #64748b; --line: #e2e8f0; --page: #f8fafc; --card: #ffffff; --accent: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 12px; }
h3 { font-size: 16px; margin: 0; }
.path, .soft { color: var(--soft); overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0 0; padding: 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 8px 16px; }
.facts dt { color: var(--soft); font-size: 12px; } .facts dd { margin: 0; font-size: 18px; font-weight: 600; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px;
  margin: 0 0 18px; }
.head { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline; }
.chip { background: #eff6ff; color: var(--accent); border-radius: 99px; padding: 1px 10px; font-size: 13px; }
.quote { margin: 4px 0 10px; }
.strip { display: flex; gap: 6px; overflow-x: auto; margin: 8px 0; }
.strip figure { margin: 0; flex: 1 1 0; min-width: 96px; max-width: 170px; }
.strip img { width: 100%; border-radius: 6px; display: block; image-rendering: pixelated; }
.strip figcaption { font-size: 11px; color: var(--soft); text-align: center; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 12px 18px; }
svg { width: 100%; height: auto; font: 10px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg .title { fill: var(--ink); font-size: 12px; font-weight: 600; }
svg .grid { stroke: var(--line); } svg .zero { stroke: #94a3b8; stroke-dasharray: 3 3; }
svg .curve { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
svg .mark { stroke: #cbd5e1; } svg .bar { fill: #93c5fd; } svg .quantile { stroke: #dc2626; stroke-dasharray: 4 3; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 12px; color: var(--soft);
  padding-left: 11%; }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 5px; vertical-align: middle; }
ol.steps { display: flex; flex-wrap: wrap; gap: 4px 8px; list-style: none; margin: 0 0 10px; padding: 0;
  font-size: 13px; color: var(--soft); }
ol.steps li { border: 1px solid var(--line); border-radius: 6px; padding: 0 8px; } ol.steps b { color: var(--ink); }
table { border-collapse: collapse; } td, th { padding: 3px 18px 3px 0; text-align: left; font-size: 14px; }
th { color: var(--soft); font-weight: 500; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


def show_dataset(path: Path | str, *, out: Path, episodes: int = 12) -> Path:
    """Writes the page at `out` and returns it; pictures and plots are inside, so the file can be sent as it is.

    Args:
        path: The dataset.
        out: The page to write.
        episodes: Episodes to show, spread over the dataset; the overview counts all.

    Raises:
        ConfigError: the number of episodes is not positive.
        DataError: the dataset cannot be read.
    """
    if episodes < 1:
        raise ConfigError(f"the number of episodes to show is {episodes}, expected 1 or more")
    dataset = LeRobotDataset(path)
    shown = np.unique(np.linspace(0, dataset.num_episodes - 1, min(episodes, dataset.num_episodes)).round().astype(int))
    name = html.escape(dataset.path.resolve().name)
    body = [
        f"<h1>{name}</h1><div class='path'>LeRobotDataset {dataset.info.codebase_version}</div>",
        _facts(dataset),
        "<h2>Instructions</h2>",
        _task_table(dataset),
        "<h2>Actions of all frames</h2>",
        f"<div class='card'><div class='plots'>{''.join(_histograms(dataset))}</div></div>",
        f"<h2>Episodes <span class='soft'>({len(shown)} of {dataset.num_episodes})</span></h2>",
        *(_episode_card(dataset, int(index)) for index in shown),
    ]
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{name}</title>"
    page = f"<!doctype html><html lang='en'><head>{head}<style>{_STYLE}</style></head><body><main>"
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    temporary.write_text(page + "\n".join(body) + "</main></body></html>\n", encoding="utf-8")
    temporary.replace(out)
    return out


def _facts(dataset: LeRobotDataset) -> str:
    info = dataset.info
    size_mb = sum(file.stat().st_size for file in dataset.path.rglob("*") if file.is_file()) / 1e6
    facts = {
        "episodes": str(dataset.num_episodes),
        "frames": str(dataset.num_frames),
        "minutes": f"{dataset.num_frames / info.rate_hz / 60.0:.1f}",
        "frames a second": f"{info.rate_hz:g}",
        "robot": info.robot_type or "unknown",
        "size on disk": f"{size_mb:.1f} MB",
    }
    for camera, key in info.cameras.items():
        height_px, width_px = info.features[key].image_size_px
        facts[f"camera {camera}"] = f"{width_px} x {height_px} {info.features[key].dtype}"
    items = [f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts.items()]
    return f"<dl class='facts'>{''.join(items)}</dl>"


def _task_table(dataset: LeRobotDataset) -> str:
    lengths = np.diff(dataset.episode_starts)
    by_task: dict[tuple[str, str], list[int]] = {}
    for task_id, task, length in zip(dataset.task_ids, dataset.tasks, lengths, strict=True):
        by_task.setdefault((task_id or "", task if task_id is None else ""), []).append(int(length))
    examples = dict(zip(reversed(dataset.task_ids), reversed(dataset.tasks), strict=True))
    rows = []
    for (task_id, sentence), found in sorted(by_task.items(), key=lambda item: -len(item[1]))[:24]:
        example = sentence or examples.get(task_id or None, "")
        rows.append(
            f"<tr><td>{html.escape(task_id or '-')}</td><td class='number'>{len(found)}</td>"
            f"<td class='number'>{np.mean(found) / dataset.info.rate_hz:.1f} s</td><td>{html.escape(example)}</td></tr>"
        )
    if len(by_task) > len(rows):
        rows.append(f"<tr><td colspan='4' class='soft'>and {len(by_task) - len(rows)} more</td></tr>")
    head = "<tr><th>task</th><th>episodes</th><th>mean length</th><th>sentence, e.g.</th></tr>"
    return f"<div class='card'><table>{head}{''.join(rows)}</table></div>"


def _histograms(dataset: LeRobotDataset) -> list[str]:
    actions = dataset.actions()
    plots = []
    for number, name in enumerate(dataset.info.action_names):
        values = actions[:, number].astype(np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            counts, edges = np.histogram(values, bins=HISTOGRAM_BINS)
            marks = {quantile: float(np.quantile(values, float(quantile[1:]) / 100)) for quantile in ("q01", "q99")}
            plots.append(f"<div>{bars(name, counts, edges, marks=marks)}</div>")
    return plots


def _episode_card(dataset: LeRobotDataset, index: int) -> str:
    start, stop = (int(frame) for frame in dataset.episode_starts[index : index + 2])
    rate_hz = dataset.info.rate_hz
    row = dataset.first_row(index)
    subtasks = row.get(layout.LANGUAGE_PERSISTENT_KEY) or []
    marks_s = [float(item["timestamp"] or 0.0) for item in subtasks]
    steps = [
        f"<li>{float(item['timestamp'] or 0.0):.1f} s <b>{html.escape(str(item['content'] or item['style']))}</b></li>"
        for item in subtasks
    ]
    task_id = dataset.task_ids[index]
    chip = f"<span class='chip'>{html.escape(task_id)}</span>" if task_id else ""
    keys = [key for key in (layout.ACTION_KEY, layout.STATE_KEY, layout.JOINTS_KEY) if key in dataset.info.features]
    plots = [plot for key in keys for plot in _plots(dataset, key, start, stop, marks_s)]
    return (
        f"<section class='card'><div class='head'><h3>Episode {index}</h3>{chip}"
        f"<span class='soft'>{stop - start} frames, {(stop - start) / rate_hz:.1f} s</span></div>"
        f"<div class='quote'>{html.escape(dataset.tasks[index]) or '<span class=soft>no instruction</span>'}</div>"
        + (f"<ol class='steps'>{''.join(steps)}</ol>" if steps else "")
        + "".join(_strip(dataset, camera, start, stop) for camera in dataset.cameras)
        + f"<div class='plots'>{''.join(plots)}</div></section>"
    )


def _plots(dataset: LeRobotDataset, key: str, start: int, stop: int, marks_s: Sequence[float]) -> list[str]:
    """One plot for the entries of each unit, since metres and radians share no axis."""
    values = dataset.column(key)[start:stop].astype(np.float64)
    times_s = np.arange(stop - start) / dataset.info.rate_hz
    names = {layout.STATE_KEY: dataset.info.state_names, layout.ACTION_KEY: dataset.info.action_names}
    columns = names.get(key) or dataset.info.features[key].names or tuple(str(n) for n in range(values.shape[1]))
    groups: dict[str, dict[str, NDArray[np.float64]]] = {}
    for number, name in enumerate(columns):
        groups.setdefault(_unit(name), {})[name] = values[:, number]
    plots = []
    for unit, curves in groups.items():
        for first in range(0, len(curves), MAX_CURVES):
            part = dict(list(curves.items())[first : first + MAX_CURVES])
            title = f"{key} ({unit})" if unit else key
            plots.append(f"<div>{lines(title, times_s, part, marks_s=marks_s)}</div>")
    return plots


def _unit(name: str) -> str:
    """The unit in a name such as `tool_x_m` or `joint_1_rad`; empty when it names none."""
    unit = name.rpartition("_")[2]
    return unit if unit in ("m", "rad", "deg", "s") else ""


def _strip(dataset: LeRobotDataset, camera: str, start: int, stop: int) -> str:
    frames = dataset.frames_with_images(camera)
    frames = frames[(frames >= start) & (frames < stop)]
    if not len(frames):
        return f"<p class='soft'>camera {html.escape(camera)}: no pictures</p>"
    places = np.unique(np.linspace(0, len(frames) - 1, min(STRIP_PICTURES, len(frames))).round().astype(int))
    chosen = frames[places]
    figures = [
        f"<figure><img src='{_data_uri(picture)}' alt='frame {frame - start}'><figcaption>{html.escape(camera)} "
        f"{(frame - start) / dataset.info.rate_hz:.1f} s</figcaption></figure>"
        for frame, picture in zip(chosen, dataset.images(chosen, camera), strict=True)
    ]
    return f"<div class='strip'>{''.join(figures)}</div>"


def _data_uri(picture: ImageArray) -> str:
    from PIL import Image

    image, kind = Image.fromarray(picture), "PNG"
    if max(image.size) > MAX_PICTURE_PX:
        image.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX))
        kind = "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
