"""Small plots as SVG text, for pages that must stand alone."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["PALETTE", "bars", "lines"]

PALETTE = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
"""Colours of the curves, told apart also by people who see red and green alike by their lightness and the legend."""
WIDTH_PX = 420
HEIGHT_PX = 150
LEFT_PX = 46
RIGHT_PX = 10
TOP_PX = 24
BOTTOM_PX = 22
TEXT_PX = 10


def lines(
    title: str,
    times_s: NDArray[np.float64],
    curves: Mapping[str, NDArray[np.float64]],
    *,
    marks_s: Sequence[float] = (),
    unit: str = "s",
) -> str:
    """Returns a plot of curves over time, with a legend and thin upright lines at the marks.

    Another axis than time is named by its unit, and everything in seconds is in that unit then.
    """
    values = np.concatenate([np.asarray(curve, np.float64) for curve in curves.values()])
    low, high = _axis(values)
    end_s = float(times_s[-1]) if len(times_s) > 1 else 1.0
    end = f"{end_s:.1f}" if unit == "s" else f"{end_s:g}"
    parts = [_frame(title, low, high, f"{end} {unit}", left=f"0 {unit}")]
    for mark_s in marks_s:
        x = _x(mark_s / end_s)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP_PX}" x2="{x:.1f}" y2="{HEIGHT_PX - BOTTOM_PX}" class="mark"/>')
    for number, curve in enumerate(curves.values()):
        shown = [
            f"{_x(time_s / end_s):.1f},{_y((value - low) / (high - low)):.1f}"
            for time_s, value in zip(times_s, curve, strict=True)
            if np.isfinite(value)
        ]
        parts.append(f'<polyline points="{" ".join(shown)}" stroke="{_colour(number)}" class="curve"/>')
    return _svg(parts, title) + _legend(list(curves))


def bars(title: str, counts: NDArray[np.int64], edges: NDArray[np.float64], *, marks: Mapping[str, float]) -> str:
    """Returns a histogram with named upright lines, such as quantiles."""
    low, high = float(edges[0]), float(edges[-1])
    span = high - low or 1.0
    top = max(int(counts.max()), 1)
    parts = [_frame(title, 0.0, float(top), f"{high:.3g}", left=f"{low:.3g}", is_count=True)]
    for count, start, stop in zip(counts, edges[:-1], edges[1:], strict=True):
        x, right = _x((start - low) / span), _x((stop - low) / span)
        y = _y(count / top)
        height = HEIGHT_PX - BOTTOM_PX - y
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(right - x - 0.6, 0.6):.1f}" height="{height:.1f}" class="bar"/>'
        )
    for name, value in marks.items():
        x = _x((value - low) / span)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP_PX}" x2="{x:.1f}" y2="{HEIGHT_PX - BOTTOM_PX}" class="quantile"/>')
        anchor = "end" if x > WIDTH_PX / 2 else "start"
        shift = -3 if x > WIDTH_PX / 2 else 3
        parts.append(f'<text x="{x + shift:.1f}" y="{TOP_PX + 9}" text-anchor="{anchor}">{html.escape(name)}</text>')
    return _svg(parts, title)


def _svg(parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" aria-label="{html.escape(title, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )


def _frame(title: str, low: float, high: float, right: str, *, left: str = "0 s", is_count: bool = False) -> str:
    bottom = HEIGHT_PX - BOTTOM_PX
    shown = [low, high] if is_count or low * high >= 0.0 else [low, 0.0, high]
    parts = [f'<text x="{LEFT_PX}" y="14" class="title">{html.escape(title)}</text>']
    for value in shown:
        y = _y((value - low) / (high - low))
        kind = "zero" if value == 0.0 else "grid"
        parts.append(f'<line x1="{LEFT_PX}" y1="{y:.1f}" x2="{WIDTH_PX - RIGHT_PX}" y2="{y:.1f}" class="{kind}"/>')
        is_free = value in (low, high) or min(abs(y - _y(0.0)), abs(y - _y(1.0))) > TEXT_PX
        shown_value = value if abs(value) > 1e-3 * (high - low) else 0.0
        if is_free:
            parts.append(f'<text x="{LEFT_PX - 5}" y="{y + 3.5:.1f}" text-anchor="end">{shown_value:.3g}</text>')
    parts.append(f'<text x="{LEFT_PX}" y="{bottom + 15}">{html.escape(left)}</text>')
    parts.append(f'<text x="{WIDTH_PX - RIGHT_PX}" y="{bottom + 15}" text-anchor="end">{html.escape(right)}</text>')
    return "".join(parts)


def _legend(names: Sequence[str]) -> str:
    items = [
        f'<span><i style="background:{_colour(number)}"></i>{html.escape(name)}</span>'
        for number, name in enumerate(names)
    ]
    return f'<div class="legend">{"".join(items)}</div>'


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _axis(values: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the value axis: what is shown, and never empty."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    margin = 0.0 if high > low else 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _x(share: float) -> float:
    return LEFT_PX + share * (WIDTH_PX - LEFT_PX - RIGHT_PX)


def _y(share: float) -> float:
    return HEIGHT_PX - BOTTOM_PX - share * (HEIGHT_PX - TOP_PX - BOTTOM_PX)
