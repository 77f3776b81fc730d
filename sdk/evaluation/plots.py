"""Plots for the report as PNG bytes: training curves from metrics files, and success rates with their intervals.

matplotlib is imported when the first plot is drawn, and never opens a window.
"""

from __future__ import annotations

import io
import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from roboalign.sdk.errors import DataError, missing_extra
from roboalign.sdk.evaluation.results import EvalReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "Panel", "draw_curves", "draw_success", "panels", "read_metrics"]

# Okabe-Ito: told apart by colour-blind readers; line styles differ as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MAX_CURVES = 6
_STEP_KEYS = ("step", "update", "global_step")

_PANELS = (
    ("Closed-loop success (share)", r"success|closed_loop"),
    ("Reward variance within groups (share of prompts)", r"zero_(std|var)|informative"),
    ("KL to the start of the stage (nats)", r"(^|[/_.])kl($|[/_.])"),
    ("Entropy (nats)", r"entropy"),
    ("Well-formed and decodable replies (share)", r"well_formed|decodable"),
    ("Agreement with the demonstrated tokens (share)", r"prefix|first_token"),
    ("Reward", r"reward"),
    ("Action error", r"error"),
    ("Accuracy (share)", r"accuracy"),
    ("Loss", r"loss"),
)
"""Title and the metric names it takes; the first match wins. Other metrics stay in the file and are not drawn."""

_NOT_DRAWN = r"(^|[/_])std$|clip"


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One metric over training."""

    name: str
    """Name in the metrics file."""
    steps: tuple[float, ...]
    """Training step of each value."""
    values: tuple[float, ...]
    """Finite values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Curves that share a vertical axis."""

    title: str
    """What is drawn, with its unit."""
    curves: tuple[Curve, ...]
    """At most `_MAX_CURVES`."""

    @property
    def description(self) -> str:
        """What the picture shows, in words, for readers who cannot see it."""
        parts = [f"{c.name} from {c.values[0]:.3g} to {c.values[-1]:.3g}" for c in self.curves]
        return (
            f"{self.title}, {len(self.curves[0].steps)} points up to step {self.curves[0].steps[-1]:g}: "
            + "; ".join(parts)
        )


def read_metrics(path: Path) -> Mapping[str, Curve]:
    """Reads a metrics JSONL: one object a line, numbers by name, nested objects joined with `/`, a `step` in each.

    Lines may hold different names. A last line that was cut off is left out; any other broken line is an error.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as err:
        raise DataError(
            f"the metrics file {path} cannot be read ({err.strerror}); run the stage that writes it"
        ) from err
    points: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = _flatten(json.loads(line))
        except (json.JSONDecodeError, TypeError) as err:
            if number == len(lines) - 1:
                break
            raise DataError(f"line {number + 1} of {path} is not a JSON object; the metrics file is damaged") from err
        step = next((row[key] for key in _STEP_KEYS if key in row), float(number))
        for name, value in row.items():
            if name not in _STEP_KEYS:
                points.setdefault(name, []).append((step, value))
    return {
        name: Curve(name=name, steps=tuple(x for x, _ in pairs), values=tuple(y for _, y in pairs))
        for name, pairs in points.items()
    }


def panels(metrics: Mapping[str, Curve]) -> tuple[Panel, ...]:
    """Sorts the metrics that are worth drawing into panels; a metric with a single point is left out."""
    found: dict[str, list[Curve]] = {}
    for name, curve in metrics.items():
        if len(curve.values) < 2:
            continue
        title = next((title for title, pattern in _PANELS if re.search(pattern, name)), None)
        if title is not None and ("zero_std" in name or not re.search(_NOT_DRAWN, name)):
            found.setdefault(title, []).append(curve)
    order = [title for title, _ in reversed(_PANELS)]
    return tuple(Panel(title=title, curves=tuple(found[title][:_MAX_CURVES])) for title in order if title in found)


def draw_curves(panel: Panel) -> bytes:
    """Returns a PNG of one panel."""
    figure = _figure(5.0, 3.1)
    axes: Axes = figure.add_subplot()
    for index, curve in enumerate(panel.curves):
        colour, style = _COLOURS[index % len(_COLOURS)], _STYLES[(index // 2) % len(_STYLES)]
        is_dense = len(curve.values) > 60
        if is_dense:
            axes.plot(curve.steps, curve.values, color=colour, alpha=0.2, linewidth=0.8)
        smooth = _smooth(curve.values, max(1, len(curve.values) // 30)) if is_dense else curve.values
        axes.plot(
            curve.steps, smooth, style, color=colour, label=curve.name, linewidth=1.6, marker=None if is_dense else "."
        )
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="best", framealpha=0.8)
    return _png(figure)


def draw_success(reports: Sequence[tuple[str, EvalReport]]) -> bytes:
    """Returns a PNG of success rates with their intervals, one line a policy, one marker a task."""
    figure = _figure(5.4, 0.9 + 0.62 * len(reports))
    axes: Axes = figure.add_subplot()
    names = list(dict.fromkeys(["all", *(result.task for _, report in reports for result in report.tasks)]))
    for row, (_, report) in enumerate(reports):
        for result in (report.total, *report.tasks):
            index = names.index(result.task)
            y = row + (index - (len(names) - 1) / 2) * 0.2
            span = [[100 * (result.rate - result.interval.low)], [100 * (result.interval.high - result.rate)]]
            axes.errorbar(
                [100 * result.rate],
                [y],
                xerr=span,
                fmt="oDs^"[index % 4],
                color=_COLOURS[index % len(_COLOURS)],
                markersize=6 if index == 0 else 4,
                linewidth=2.0 if index == 0 else 1.2,
                capsize=3,
                label=result.task if row == 0 else None,
            )
    axes.set_yticks(range(len(reports)), [textwrap.fill(label, 20) for label, _ in reports], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.set_xlabel("success (%), 95 % interval", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncol=4, frameon=False)
    return _png(figure)


def _flatten(row: object, prefix: str = "") -> dict[str, float]:
    """Returns the finite numbers of a JSON object by name."""
    if not isinstance(row, dict):
        raise TypeError("not an object")
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def _smooth(values: Sequence[float], width: int) -> list[float]:
    """Returns the running mean over the last `width` values: it never looks ahead."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / (i + 1 - max(0, i + 1 - width)) for i in range(len(values))]


def _figure(width_in: float, height_in: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as err:
        raise missing_extra("matplotlib", "sim", "drawing a plot") from err
    figure = Figure(figsize=(width_in, height_in), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No date and no version in the file: the same numbers give the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
