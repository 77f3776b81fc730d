"""A run's report as a page that stands alone: figures, plots from the trace, and every reason to hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from roboalign.sdk.control.loop_report import RunReport, Spread
from roboalign.sdk.control.records import Reason
from roboalign.sdk.control.trace import Trace, read_trace
from roboalign.sdk.data.svg import lines
from roboalign.sdk.errors import DataError
from roboalign.sdk.evaluation.page import escape, notes, table, write_page

__all__ = ["write_run_page"]

_MAX_POINTS = 600
_MAX_THOUGHTS = 40


def write_run_page(path: Path, report: RunReport, policy: str, *, trace: Path | None = None) -> Path:
    """Writes the page and returns its path; what a trace adds is left out, and named, where it cannot be read."""
    body = [f"<h1>Run of {escape(policy)}</h1>", f"<p class=sub>{escape(report.lines()[0])}</p>"]
    problems = [report.trace_problem] if report.trace_problem else []
    found: Trace | None = None
    if trace is not None:
        try:
            found = read_trace(trace)
        except DataError as err:
            problems.append(str(err))
    body.append(notes([f"The trace is not complete: {problem}" for problem in problems]))
    body += _figures(report)
    if found is not None and len(found.ticks) > 1:
        body += _plots(found)
    return write_page(path, title=f"run of {policy}", body=body)


def _figures(report: RunReport) -> list[str]:
    stages = [_row(name, spread) for name, spread in report.stages_s.items()]
    times = [
        _row("command after its deadline", report.lateness_s),
        _row("answer of the policy", report.answer_s),
        _row("age of an action's observation", report.age_s),
        _row("age of the thought's observation", report.thought_age_s),
    ]
    jumps = [_row("between chunks", report.joints, 1.0), _row("inside a chunk", report.within, 1.0)]
    head = ("", "p50", "p99", "p99.9", "max", "count")
    counts = [
        ("control periods", str(report.ticks)),
        ("with motion", str(report.moved)),
        ("deadlines missed", str(report.misses)),
        ("holds between deadlines", str(report.interrupted)),
        ("chunks", str(report.chunks)),
        ("actions skipped in new chunks", str(report.skipped)),
        ("leaps of the clock", str(report.clock_jumps)),
        ("rate", f"{report.rate_hz:.2f} Hz"),
        ("granted", report.granted or "nothing was asked for"),
        ("stopped by", report.stopped_by),
    ]
    return [
        "<h2>Counts</h2>",
        table(("", ""), counts, ""),
        "<h2>Why the arm did not move</h2>",
        _counts(report.reasons, "reason"),
        _counts(report.notes, "in words"),
        "<h2>What the limiter changed</h2>",
        _counts(report.changes, "reason"),
        _counts(report.chunks_refused, "chunks that were refused"),
        "<h2>Times, ms</h2>",
        table(head, times, "", is_numbers=True),
        table(head, stages, "parts of a control period", is_numbers=True),
        "<h2>Change of the tool's step</h2>",
        table(head, jumps, "as a share of the largest step", is_numbers=True),
    ]


def _row(name: str, spread: Spread, scale: float = 1e3) -> tuple[str, ...]:
    if spread.count == 0:
        return (name, "-", "-", "-", "-", "0")
    values = (spread.p50, spread.p99, spread.p999, spread.max)
    return (name, *(f"{scale * value:.3g}" for value in values), str(spread.count))


def _counts(counts: Mapping[str, int], what: str) -> str:
    if not counts:
        return f"<p>{escape(what)}: none</p>"
    rows = [(text, str(number)) for text, number in sorted(counts.items(), key=lambda item: -item[1])]
    return table((what, "periods"), rows, "")


def _plots(trace: Trace) -> list[str]:
    ticks = trace.ticks[:: max(1, len(trace.ticks) // _MAX_POINTS)]
    times_s = np.array([tick["time_s"] for tick in ticks], np.float64)
    times_s -= times_s[0]
    measured = np.array([tick["measured"] for tick in ticks], np.float64)
    curves = {name: measured[:, index] for index, name in enumerate(trace.spec.joint_names)}
    late_ms = np.array([1e3 * (tick["lateness_s"] or 0.0) for tick in ticks], np.float64)
    moves = np.array([tick["reason"] == Reason.MOVING.value for tick in ticks], np.float64)
    thoughts = [(f"{chunk['observed_s']:.2f}", chunk["thought"]) for chunk in trace.chunks if chunk["thought"]]
    told = [line for before, line in zip([("", ""), *thoughts], thoughts, strict=False) if line[1] != before[1]]
    return [
        "<h2>Over time</h2><div class=grid>",
        lines("joints, rad", times_s, curves),
        lines("command after its deadline, ms", times_s, {"late": late_ms}),
        lines("moving", times_s, {"moving": moves}),
        "</div>",
        "<h2>Thoughts</h2>" if told else "",
        table(("observed at, s", "thought"), told[:_MAX_THOUGHTS], "") if told else "",
    ]
