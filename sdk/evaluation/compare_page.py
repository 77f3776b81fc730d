"""The HTML page of `roboalign compare`: policies on the same scenes, and what the differences are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from roboalign.sdk.evaluation.comparison import Comparison, MeanDifference
from roboalign.sdk.evaluation.intervals import Interval
from roboalign.sdk.evaluation.page import Bar, escape, interval_plot, percent, span, table, write_page
from roboalign.sdk.evaluation.results import EvalReport

__all__ = ["write_compare_page"]

_MARKS = ("-100", "-50", "0", "+50", "+100 points")


def write_compare_page(
    path: Path, reports: Sequence[tuple[str, EvalReport]], comparisons: Sequence[Comparison]
) -> Path:
    """Writes the page of comparisons of the first report with each of the others."""
    first = reports[0][0]
    title = f"{first} against {', '.join(name for name, _ in reports[1:])}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=sub>Every difference is <strong>{escape(first)}</strong> minus the other one, on the same"
        f" {reports[0][1].total.num_episodes} scenes.</p>",
        "".join(f"<p class=lead>{escape(comparison.verdict)}.</p>" for comparison in comparisons),
        _rates(reports),
        *(_differences(comparison) for comparison in comparisons),
        _READING,
    ]
    return write_page(path, title=title, body=body)


def _rates(reports: Sequence[tuple[str, EvalReport]]) -> str:
    bars = [
        Bar(
            label=name,
            value=report.total.rate,
            interval=report.total.interval,
            text=f"{percent(report.total.rate)} ({span(report.total.interval)})",
            tick=report.total.mean_progress,
        )
        for name, report in reports
    ]
    alt = "Success: " + "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    return "<h2>Each alone</h2>" + interval_plot(bars, marks=("0", "25", "50", "75", "100 %"), alt=alt)


def _differences(comparison: Comparison) -> str:
    pairs = [("all tasks", comparison.total), *((row.task, row.paired) for row in comparison.tasks)]
    pairs = pairs if len(comparison.tasks) > 1 else pairs[:1]
    bars = [
        Bar(
            label=name,
            value=pair.difference,
            interval=pair.interval,
            text=f"{100 * pair.difference:+.1f} ({_points(pair.interval)})",
            is_strong=name == "all tasks",
        )
        for name, pair in pairs
    ]
    rows = [
        [
            row.task,
            f"{row.num_first}/{row.paired.num_pairs}",
            f"{row.num_second}/{row.paired.num_pairs}",
            f"{row.paired.num_only_first} / {row.paired.num_only_second}",
            f"{row.paired.p_value:.2g}",
            f"{row.adjusted_p:.2g}",
        ]
        for row in comparison.tasks
    ]
    total = comparison.total
    both = "only 1st / 2nd"
    head = ["task", comparison.first, comparison.second, both, "McNemar p", "after Holm"]
    alt = "Differences: " + "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    facts = [
        f"exact McNemar p = {total.p_value:.2g}: {total.num_only_first} scenes only the first solves,"
        f" {total.num_only_second} only the second",
        f"paired bootstrap {_points(total.bootstrap)}",
        _mean("stage progress", comparison.progress, 100.0, " points"),
    ]
    if comparison.length is not None:
        facts.append(_mean("average length", comparison.length, 1.0, ""))
    return "\n".join(
        [
            f"<h2>{escape(comparison.first)} minus {escape(comparison.second)}</h2>",
            interval_plot(bars, low=-1.0, high=1.0, marks=_MARKS, alt=alt),
            f"<p>{escape('; '.join(facts))}.</p>",
            table(head, rows, "", is_numbers=True),
        ]
    )


def _points(interval: Interval) -> str:
    return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"


def _mean(what: str, mean: MeanDifference, scale: float, unit: str) -> str:
    if mean.interval.width == 0.0:
        return f"{what} {scale * mean.difference:+.2f}{unit} (no interval: all differences are alike)"
    low, high = scale * mean.interval.low, scale * mean.interval.high
    return f"{what} {scale * mean.difference:+.2f}{unit} (bootstrap {low:+.2f} to {high:+.2f})"


_READING = """<h2>How to read this</h2>
<p>Both policies were run on the same scenes, from the same physical state, so each scene is compared with itself. The
interval of a difference is Tango's score interval for paired proportions: a percentile bootstrap is too short with few
scenes (with 20 it holds the difference in 90 of 100 repetitions on average, in 33 at worst), so it is given for the
total only. McNemar's exact test asks how surprising the split of the scenes on which they disagree would be if both
were equally good. With many tasks some p fall below 0.05 by chance; the last column is corrected for that.</p>"""
