"""The HTML page of `roboalign gap`: success in simulation against success in reality, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from roboalign.sdk.data.svg import PALETTE
from roboalign.sdk.evaluation.page import Bar, escape, interval_plot, notes, percent, span, table, write_page
from roboalign.sdk.evaluation.reality_gap import Estimate, GapPoint, GapReport, Rate

__all__ = ["estimate_words", "write_gap_page"]

_SIZE_PX, _LEFT_PX, _TOP_PX = 420, 52, 12
_PLOT_PX = 340


def write_gap_page(path: Path, report: GapReport) -> Path:
    """Writes the page and returns its path."""
    title = f"{len(report.policies)} policies in simulation and on {_reality(report)}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=lead>Pearson r <strong>{escape(estimate_words(report.pearson))}</strong>; mean maximum rank"
        f" violation <strong>{escape(estimate_words(report.mmrv))}</strong>.</p>",
        f"<p class=sub>Simulation minus reality, mean: {escape(estimate_words(report.offset, signed=True))}."
        f" {report.num_shared} layouts were played in both worlds.</p>",
        notes(report.warnings),
        "<h2>Each policy</h2>",
        _scatter(report),
        *(_world(report, label, rate) for label, rate in _WORLDS),
        _table(report),
        _READING,
    ]
    return write_page(path, title=title, body=body)


def estimate_words(estimate: Estimate, *, signed: bool = False) -> str:
    """Returns a figure with its interval in words."""
    if estimate.value is None or estimate.interval is None:
        return "not defined"
    form = "{:+.3f}" if signed else "{:.3f}"
    value, low, high = (form.format(x) for x in (estimate.value, estimate.interval.low, estimate.interval.high))
    return f"{value} ({low} to {high})"


def _reality(report: GapReport) -> str:
    return "a simulated arm that stands for the real one" if report.is_stand_in else "a robot"


def _sim(point: GapPoint) -> Rate:
    return point.sim


def _real(point: GapPoint) -> Rate:
    return point.real


_WORLDS: tuple[tuple[str, Callable[[GapPoint], Rate]], ...] = (("Simulation", _sim), ("Reality", _real))


def _scatter(report: GapReport) -> str:
    """Simulation to the right, reality upwards, each with its interval; on the thin line both are alike."""

    def x(share: float) -> float:
        return _LEFT_PX + _PLOT_PX * share

    def y(share: float) -> float:
        return _TOP_PX + _PLOT_PX * (1.0 - share)

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        mark = f"{100 * share:.0f}"
        parts.append(f"<line x1={x(share):.1f} y1={y(0):.1f} x2={x(share):.1f} y2={y(1):.1f} stroke='#e2e2e2' />")
        parts.append(f"<line x1={x(0):.1f} y1={y(share):.1f} x2={x(1):.1f} y2={y(share):.1f} stroke='#e2e2e2' />")
        parts.append(f"<text x={x(share):.1f} y={y(0) + 16:.1f} text-anchor=middle>{mark}</text>")
        parts.append(f"<text x={x(0) - 6:.1f} y={y(share) + 4:.1f} text-anchor=end>{mark}</text>")
    parts.append(
        f"<line x1={x(0):.1f} y1={y(0):.1f} x2={x(1):.1f} y2={y(1):.1f} stroke='#888' stroke-dasharray='4 4' />"
    )
    for number, point in enumerate(report.policies):
        colour, sim, real = PALETTE[number % len(PALETTE)], point.sim, point.real
        for (x1, y1), (x2, y2) in (
            ((sim.interval.low, real.rate), (sim.interval.high, real.rate)),
            ((sim.rate, real.interval.low), (sim.rate, real.interval.high)),
        ):
            ends = f"x1={x(x1):.1f} y1={y(y1):.1f} x2={x(x2):.1f} y2={y(y2):.1f}"
            parts.append(f"<line class=interval {ends} stroke='{colour}' stroke-width=1.5 />")
        spot = f"cx={x(sim.rate):.1f} cy={y(real.rate):.1f} r=4.5 fill='{colour}'"
        parts.append(f"<circle {spot}><title>{escape(_words(point))}</title></circle>")
        anchor, shift = ("end", -8) if sim.rate > 0.7 else ("start", 8)
        place = f"x={x(sim.rate) + shift:.1f} y={y(real.rate) - 7:.1f} text-anchor={anchor}"
        parts.append(f"<text {place}>{escape(point.name)}</text>")
    middle = _LEFT_PX + _PLOT_PX / 2
    parts.append(f"<text x={middle} y={_SIZE_PX - 24} text-anchor=middle>success in simulation, %</text>")
    turned = f"x={-(_TOP_PX + _PLOT_PX / 2)} y=14 text-anchor=middle transform='rotate(-90)'"
    parts.append(f"<text {turned}>success in reality, %</text>")
    alt = "Success in simulation and reality: " + "; ".join(_words(point) for point in report.policies)
    shape = f"viewBox='0 0 {_SIZE_PX} {_SIZE_PX - 16}' style='max-width:32rem;width:100%;font-size:12px'"
    return f"<svg {shape} role=img aria-label='{escape(alt)}'>{''.join(parts)}</svg>"


def _words(point: GapPoint) -> str:
    return f"{point.name} {percent(point.sim.rate)} and {percent(point.real.rate)}"


def _world(report: GapReport, label: str, rate_of: Callable[[GapPoint], Rate]) -> str:
    bars = [
        Bar(
            label=point.name,
            value=rate_of(point).rate,
            interval=rate_of(point).interval,
            text=f"{percent(rate_of(point).rate)} ({span(rate_of(point).interval)})",
        )
        for point in report.policies
    ]
    alt = f"{label}: " + "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    return f"<h3>{label}</h3>" + interval_plot(bars, marks=("0", "25", "50", "75", "100 %"), alt=alt)


def _table(report: GapReport) -> str:
    rows = [
        [
            point.name,
            f"{point.sim.num_successes}/{point.sim.num_episodes}",
            f"{point.real.num_successes}/{point.real.num_episodes}",
            f"{100 * (point.sim.rate - point.real.rate):+.1f}",
            ", ".join(point.sources),
        ]
        for point in report.policies
    ]
    return table(["policy", "simulation", "reality", "points", "read from"], rows, "Episodes solved, simulation first.")


_READING = """<h2>How to read this</h2>
<p><i>Pearson r</i> is the correlation of the policies' success rates. The <i>mean maximum rank violation</i> takes for
each policy the largest difference of <strong>real</strong> success to a policy that simulation orders the other way
round, and averages: 0 is the same order, 0.1 means that going by simulation costs up to 10 points of real success. Both
as in SIMPLER (arXiv 2405.05941). The intervals (95 %) weigh the episodes anew and keep the policies: they say nothing
about other policies. Few episodes alone make violations, so a small MMRV above 0 can be chance.</p>"""
