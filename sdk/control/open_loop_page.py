"""The HTML page of a trace that was played open loop: each joint as it was commanded, measured and simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from roboalign.sdk.control.open_loop import Curves, OpenLoop
from roboalign.sdk.data.svg import lines
from roboalign.sdk.evaluation.page import escape, table, write_page

__all__ = ["write_open_loop_page"]

_MAX_POINTS = 600


def write_open_loop_page(path: Path, found: OpenLoop, curves: Curves, *, source: Path) -> Path:
    """Writes the page and returns its path."""
    title = f"{source.name} on the simulated {found.robot}"
    lag = (
        "no joint moved enough for a lag" if found.lag_ms is None else f"later than simulated by {found.lag_ms:.0f} ms"
    )
    rows = [
        [
            joint.name,
            f"{joint.rms_deg:.2f}",
            f"{joint.max_deg:.2f}",
            f"{joint.moved_deg:.1f}",
            "-" if joint.lag_ms is None else f"{joint.lag_ms:.0f}",
            "-" if joint.rms_after_lag_deg is None else f"{joint.rms_after_lag_deg:.2f}",
        ]
        for joint in found.joints
    ]
    head = ["joint", "RMS, deg", "max, deg", "moved, deg", "lag, ms", "RMS after lag, deg"]
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=lead>Measured minus simulated: RMS <strong>{found.rms_deg:.2f} deg</strong>, at most"
        f" {found.max_deg:.2f} deg; {escape(lag)}.</p>",
        f"<p class=sub>{found.readings} readings in {found.duration_s:.1f} s; parameters: {escape(found.domain)}.</p>",
        table(head, rows, "", is_numbers=True),
        "<h2>Over time</h2><div class=grid>",
        *(_joint(curves, index) for index in range(len(curves.names))),
        "</div>",
        _READING,
    ]
    return write_page(path, title=title, body=body)


def _joint(curves: Curves, index: int) -> str:
    """One joint at the times of its readings, and below it the difference."""
    times_s = curves.measured_s[:: max(1, len(curves.measured_s) // _MAX_POINTS)]
    measured = np.interp(times_s, curves.measured_s, curves.measured_rad[:, index])
    simulated = curves.simulated_at(times_s)[:, index]
    newest = np.clip(np.searchsorted(curves.sent_s, times_s, side="right") - 1, 0, None)
    drawn = {"commanded": curves.target_rad[newest, index], "measured": measured, "simulated": simulated}
    shown_s = times_s - times_s[0]
    name = curves.names[index]
    return lines(f"{name}, deg", shown_s, {key: np.degrees(value) for key, value in drawn.items()}) + lines(
        f"{name}, measured minus simulated, deg", shown_s, {"gap": np.degrees(measured - simulated)}
    )


_READING = """<h2>How to read this</h2>
<p>The simulated arm was sent the joint targets of the trace at their times, and nothing corrected it. The <i>lag</i> is
the shift in time of the simulation that fits the readings best, an offset left out. A gap that a lag does not explain
is gain, friction, play, sag under weight, or something that the arm touched.</p>"""
