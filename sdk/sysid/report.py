"""The page of an identification: what was found, how sure it is, and how the simulated arm follows the measured one."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from roboalign.sdk.data.svg import bars, lines
from roboalign.sdk.sysid.identify import Identification
from roboalign.sdk.sysid.result import UNITS, Estimate

__all__ = ["report_page"]

_STYLE = """
:root { --ink: #1e293b; --soft: #64748b; --line: #e2e8f0; --page: #f8fafc; --card: #ffffff; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 12px; }
.soft { color: var(--soft); } .unsure { color: #b45309; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
  overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: 4px 10px; text-align: right;
  border-bottom: 1px solid var(--line); white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 12px 18px; }
svg { width: 100%; height: auto; font: 10px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg .title { fill: var(--ink); font-size: 12px; font-weight: 600; }
svg .grid { stroke: var(--line); } svg .zero { stroke: #94a3b8; stroke-dasharray: 3 3; }
svg .curve { fill: none; stroke-width: 1.4; stroke-linejoin: round; }
svg .mark { stroke: #cbd5e1; } svg .bar { fill: #93c5fd; } svg .quantile { stroke: #dc2626; stroke-dasharray: 4 3; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 12px; color: var(--soft); padding-left: 11%; }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 5px; vertical-align: middle; }
"""
_SHOWN = {
    "delay_ms": ("delay, ms", 1.0),
    "gain": ("gain, share of nominal", 1.0),
    "speed_scale": ("top speed, share of the limit", 1.0),
    "play_rad": ("play, deg", 180 / math.pi),
    "dead_band_rad": ("dead band, deg", 180 / math.pi),
    "damping_nm_s_rad": ("damping, N m s/rad", 1.0),
    "friction_nm": ("dry friction, N m", 1.0),
    "bias_rad": ("zero error, deg", 180 / math.pi),
    "noise_std_rad": ("noise, deg", 180 / math.pi),
}
_WINDOW_S = 1.6
_MAX_POINTS = 400
_BINS = 40


def report_page(found: Identification) -> str:
    """Returns the page; it needs nothing beside it."""
    result = found.result
    facts = ", ".join(f"{name} {value}" for name, value in result.provenance.items() if not isinstance(value, list))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>sysid of {html.escape(result.robot)}</title>'
        f"<style>{_STYLE}</style><main><h1>{html.escape(result.robot)}</h1>"
        f'<p class="soft">{html.escape(facts)}</p>{_table(found)}{_whole(found)}{_plots(found)}</main></html>\n'
    )


def _table(found: Identification) -> str:
    result = found.result
    head = "".join(f"<th>{html.escape(name)}</th>" for name in result.joint_names)
    rows = []
    for name, many in result.joints.items():
        title, factor = _SHOWN[name]
        rows.append(f"<tr><td>{html.escape(title)}</td>{''.join(_cell(item, factor) for item in many)}</tr>")
    for title, values in (
        ("residual, deg", result.residual_deg),
        ("residual, ms", result.residual_ms),
    ):
        rows.append(f"<tr><td>{title}</td>{''.join(f'<td>{value:.3g}</td>' for value in values)}</tr>")
    return (
        "<h2>What was found</h2>"
        '<p class="soft">Most likely value and 95 % interval; what the data do not tell is marked.</p>'
        f'<div class="card"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _cell(item: Estimate, factor: float) -> str:
    text = f"{item.value * factor:.3g} ({item.low * factor:.3g} to {item.high * factor:.3g})"
    return f"<td>{text}</td>" if item.is_identified else f'<td class="unsure">not told: {text}</td>'


def _whole(found: Identification) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}, {UNITS[name]}</td>{_cell(item, 1.0)}</tr>"
        for name, item in found.result.whole.items()
    )
    return f'<h2>Of the whole arm</h2><div class="card"><table>{rows}</table></div>'


def _plots(found: Identification) -> str:
    recording, fit = found.recording, found.fit
    speed = np.abs(np.diff(recording.target_rad, axis=0, prepend=recording.target_rad[:1]))
    width = max(2, min(int(_WINDOW_S * recording.rate_hz), len(speed) - 1))
    parts = []
    for joint, name in enumerate(recording.joint_names):
        moving = np.convolve(speed[:, joint], np.ones(width), "valid")
        resting = np.where(moving > 1e-3, moving, np.inf)
        pictures = []
        for title, begin in (("fast", int(moving.argmax())), ("slow", int(resting.argmin()))):
            shown = slice(begin, begin + width)
            times = recording.read_s[shown] - recording.read_s[begin]
            curves = {
                "commanded": recording.target_rad[shown, joint],
                "measured": recording.position_rad[shown, joint],
                "simulated": fit.predicted_rad[shown, joint],
            }
            pictures.append(lines(f"{name}, {title}, deg", times, {k: np.degrees(v) for k, v in curves.items()}))
        pictures.append(_residual(name, np.degrees(fit.residual_rad[fit.weight[:, joint] > 0, joint])))
        parts.append(f'<div class="card plots">{"".join(f"<div>{item}</div>" for item in pictures)}</div>')
    return "<h2>Commanded, measured, simulated</h2>" + "".join(parts)


def _residual(name: str, residual: Sequence[float] | np.ndarray) -> str:
    values = np.asarray(residual, np.float64)
    reach = float(np.quantile(np.abs(values), 0.995)) or 1e-6
    counts, edges = np.histogram(np.clip(values, -reach, reach), _BINS, (-reach, reach))
    return bars(f"{name}, measured - simulated, deg", counts.astype(np.int64), edges, marks={})
