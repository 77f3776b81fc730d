"""The page about a run: curves, numbers, settings, surroundings and samples of replies, in one self-contained file.

Everything is read from the files of the folder, so that the page of an older checkpoint can be written again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.sdk.data.svg import lines
from roboalign.sdk.evaluation.page import escape, notes, table, write_page
from roboalign.sdk.evaluation.plots import Panel, panels, read_metrics
from roboalign.sdk.evaluation.provenance import checkpoint_facts, machine_facts
from roboalign.trainer.replies import REPLIES_FILE

__all__ = ["REPORT_FILE", "write_report"]

REPORT_FILE = "report.html"

_MAX_POINTS = 300
"""Points of a curve in the page; more cannot be seen."""
_STYLE = """<style>
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 12px 18px; }
.plots svg { width: 100%; height: auto; font: 10px system-ui, sans-serif; }
.plots .grid { stroke: #e2e2e2; } .plots .zero { stroke: #999; stroke-dasharray: 3 3; }
.plots .curve { fill: none; stroke-width: 1.5; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: .78rem; color: #444; padding-left: 11%; }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 5px; vertical-align: middle; }
.replies { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 14px; }
.replies img { width: 100%; image-rendering: pixelated; }
</style>"""


def write_report(folder: Path, *, replies_from: Path | None = None) -> Path:
    """Writes `report.html` into a run folder or checkpoint and returns its path.

    Args:
        folder: what the page is about.
        replies_from: where `replies.json` lies, if not in `folder`.
    """
    status, settings, meta = (_read(folder / name) for name in ("status.json", "settings.json", "roboalign.json"))
    stage = status.get("stage") or meta.get("stage") or "run"
    recipe = settings.get("recipe") or meta.get("recipe") or ""
    facts = checkpoint_facts(folder) if meta else {}
    surroundings = machine_facts()
    if meta.get("versions"):
        surroundings["packages"] = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    body = [
        _STYLE,
        f"<h1>{escape(stage)} {escape(recipe)}: {escape(folder.name)}</h1>",
        f"<p class=lead>{escape(_state(status))}</p>",
        notes(_warnings(status, meta)),
        _curves(folder / "metrics.jsonl"),
        _replies(_read((replies_from or folder) / REPLIES_FILE).get("replies", [])),
        _facts("What came out", facts),
        _facts("Settings", _flat(settings)),
        _facts("Surroundings", surroundings),
    ]
    return write_page(folder / REPORT_FILE, title=f"{stage} {recipe}", body=body)


def _state(status: Mapping[str, Any]) -> str:
    if not status:
        return "This folder has no status."
    step = "no step yet" if status["step"] is None else f"last step {status['step']}"
    return f"{status['state']}, {step}; started {status['started_utc']}, this page {status['updated_utc']}"


def _warnings(status: Mapping[str, Any], meta: Mapping[str, Any]) -> list[str]:
    stopped = meta.get("metrics", {}).get("stopped")
    return [str(reason) for reason in (status.get("reason"), stopped) if reason]


def _curves(file: Path) -> str:
    if not file.is_file():
        return ""
    plots = "".join(f"<div>{_plot(panel)}</div>" for panel in panels(read_metrics(file)))
    return f"<h2>Curves</h2><div class=plots>{plots}</div>" if plots else ""


def _plot(panel: Panel) -> str:
    steps = np.unique(np.concatenate([curve.steps for curve in panel.curves]))
    shown = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MAX_POINTS)).astype(int))]
    # Between its own points a curve is straight, as it would be drawn; beyond them it has no value.
    curves = {
        curve.name: np.interp(shown, curve.steps, curve.values, left=np.nan, right=np.nan) for curve in panel.curves
    }
    return lines(panel.title, shown, curves, unit="steps")


def _replies(replies: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for reply in replies:
        error = "does not decode" if reply["error"] is None else f"action error {reply['error']:.3f}"
        thought = f"<q>{escape(reply['thought'])}</q>" if reply["thought"] else "<i>no thought</i>"
        cells.append(
            f"<figure><img src='data:image/png;base64,{reply['png']}' alt='{escape(reply['instruction'])}'>"
            f"<figcaption><b>{escape(reply['instruction'])}</b><br>{thought}<br>{error}</figcaption></figure>"
        )
    if not cells:
        return ""
    return f"<h2>Replies to held-out pictures, greedy</h2><div class=replies>{''.join(cells)}</div>"


def _facts(title: str, facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    return f"<h2>{escape(title)}</h2>" + table(("name", "value"), [(name, value) for name, value in facts.items()], "")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a page is written beside whatever is there
        return {}
    return found if isinstance(found, dict) else {}
