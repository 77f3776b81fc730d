"""The look of every HTML page that an evaluation writes, and the parts that they share.

Pages are self-contained: pictures are inside, there is no script and nothing is loaded from elsewhere, so that a page
can be mailed and opened on a phone.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roboalign.sdk.evaluation.intervals import Interval
from roboalign.sdk.evaluation.pictures import FilmStrip

__all__ = [
    "Bar",
    "data_uri",
    "escape",
    "film_section",
    "interval_plot",
    "notes",
    "percent",
    "span",
    "table",
    "write_page",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One row of an interval plot."""

    label: str
    """What is measured."""
    value: float
    """Where the dot goes."""
    interval: Interval
    """The line through it."""
    text: str
    """The same in words."""
    tick: float | None = None
    """Where a thin mark goes, e.g. mean progress."""
    is_strong: bool = False
    """Whether it sums up the others."""
    dots: tuple[float, ...] = ()
    """Where short thin marks go, e.g. one for each training seed."""


def write_page(path: Path, *, title: str, body: Sequence[str]) -> Path:
    """Writes a page; an older one is replaced only by a complete one."""
    page = _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(part for part in body if part))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def interval_plot(bars: Sequence[Bar], *, low: float = 0.0, high: float = 1.0, marks: Sequence[str], alt: str) -> str:
    """Returns a plot of intervals: a drawing for each row, and words that keep their size on a phone.

    Args:
        bars: Rows from top to bottom.
        low: Left end of the axis.
        high: Right end of the axis.
        marks: Words under the axis at equal distances, from its left to its right end.
        alt: What the plot shows, for readers who cannot see it.
    """
    rows = "".join(_bar(bar, low, high, len(marks)) for bar in bars)
    axis = "".join(f"<span>{escape(mark)}</span>" for mark in marks)
    return f"<div class=plot role=img aria-label='{escape(alt)}'>{rows}<div class=axis><div>{axis}</div></div></div>"


def _bar(bar: Bar, low: float, high: float, num_marks: int) -> str:
    def at(value: float) -> float:
        return 100.0 * (min(max(value, low), high) - low) / (high - low)

    grid = "".join(
        f"<line class=g x1={100 * i / (num_marks - 1):.2f} x2={100 * i / (num_marks - 1):.2f} y1=0 y2=20 />"
        for i in range(num_marks)
    )
    left, right, middle = at(bar.interval.low), at(bar.interval.high), at(bar.value)
    tick = f"<line class=t x1={at(bar.tick):.2f} x2={at(bar.tick):.2f} y1=3 y2=17 />" if bar.tick is not None else ""
    dots = "".join(f"<line class=s x1={at(dot):.2f} x2={at(dot):.2f} y1=0 y2=6 />" for dot in bar.dots)
    shape = (
        f"<rect x={left:.2f} y=6 width={max(right - left, 0.4):.2f} height=8 rx=1 />{tick}"
        f"<line class=d x1={middle:.2f} x2={middle:.2f} y1=2 y2=18 />{dots}"
    )
    kind = " strong" if bar.is_strong else ""
    label = escape(bar.label).replace("_", "_<wbr>")
    return (
        f"<div class='row{kind}'><div class=label>{label}</div>"
        f"<svg viewBox='0 0 100 20' preserveAspectRatio=none aria-hidden=true>{grid}{shape}</svg>"
        f"<div class=value>{escape(bar.text)}</div></div>"
    )


def film_section(label: str, strip: FilmStrip) -> str:
    """Returns a film strip: what was asked, what came of it, and the thought in force under each picture."""
    cells, told = [], strip.instruction
    for frame in strip.frames:
        alt = f"{frame.instruction}: the scene at step {frame.step}"
        thought = f"<q>{escape(frame.thought)}</q>" if frame.thought else "<i>no thought</i>"
        new = f"<b>&ldquo;{escape(frame.instruction)}&rdquo;</b><br>" if frame.instruction != told else ""
        told = frame.instruction
        cells.append(f"<figure><img src='{data_uri(frame.png)}' alt='{escape(alt)}'>")
        cells.append(f"<figcaption>{new}step {frame.step}<br>{thought}</figcaption></figure>")
    outcome = "success" if strip.success else "no success"
    facts = [f"{strip.task}, seed {strip.seed}", f"acting: {', '.join(strip.sources)}"]
    facts.append(f"{outcome} after {strip.steps} steps")
    if not strip.success:
        facts.append(f"{100 * strip.progress:.0f} % of the stages reached")
    if strip.num_goals > 1:
        facts.append(f"{strip.goals_done} of {strip.num_goals} goals")
    facts.append(f"{1000 * strip.mean_act_s:.0f} ms an answer")
    if not strip.is_repeated:
        facts.append("when it was played again for the pictures it went differently from the episode that counted")
    who = f"{escape(label)}; " if label else ""
    badge = f"<span class='badge {'ok' if strip.success else 'no'}'>{outcome}</span>"
    return (
        f"<section class=film><h3>&ldquo;{escape(strip.instruction)}&rdquo; {badge}</h3>"
        f"<p class=facts>{who}{escape('; '.join(facts))}</p><div class=strip>{''.join(cells)}</div></section>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, is_numbers: bool = False) -> str:
    """Returns a table that scrolls by itself on a small screen; the first cell of a row is its heading.

    A table of numbers keeps every cell in one line.
    """
    top = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in head)
    lines = []
    for row in rows:
        rest = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        lines.append(f"<tr><th scope=row>{escape(row[0])}</th>{rest}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    kind = " class=numbers" if is_numbers else ""
    inner = f"<table{kind}>{title}<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<div class=scroll tabindex=0>{inner}</div>"


def notes(lines: Sequence[str]) -> str:
    """Returns warnings that stand out."""
    return "".join(f'<p class="note" role="note">{escape(line)}</p>' for line in lines)


def data_uri(png: bytes) -> str:
    """Returns a PNG as an address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def escape(value: object) -> str:
    """Returns text that is safe inside the page."""
    return html.escape(str(value), quote=True)


def percent(rate: float) -> str:
    """Returns a share as per cent."""
    return f"{100 * rate:.1f} %"


def span(interval: Interval) -> str:
    """Returns an interval of shares as per cent."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem; margin: 0 auto;
  padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .6rem 0; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ccc; font-size: 1.25rem; }
h3 { margin: 1.4rem 0 .2rem; font-size: 1.02rem; }
.lead { font-size: 1.15rem; } .note { border-left: 4px solid #a04000; background: #fdf3ea; padding: .5rem .8rem;
  margin: .5rem 0; }
.sub { color: #444; margin: .2rem 0 1rem; overflow-wrap: anywhere; }
.big { font-size: 2.6rem; font-weight: 650; line-height: 1.1; } .big small { font-size: 1.05rem; font-weight: 400;
  color: #333; }
ul.plain { list-style: none; padding: 0; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #444; padding-bottom: .3rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #888; }
tbody th { font-weight: 500; }
.numbers th, .numbers td { white-space: nowrap; }
figure { margin: 0; } img { max-width: 100%; height: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: .8rem; }
.plot { margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: .9rem; }
.plot .row, .plot .axis { display: grid; grid-template-columns: 15rem 1fr 13.5rem; column-gap: .8rem;
  align-items: center; }
.plot .label { overflow-wrap: anywhere; line-height: 1.25; padding: .2rem 0; }
.plot .value { color: #333; }
.plot svg { width: 100%; height: 1.6rem; display: block; overflow: visible; }
.plot svg line, .plot svg rect { vector-effect: non-scaling-stroke; }
.plot .g { stroke: #e2e2e2; stroke-width: 1; } .plot .t { stroke: #b35900; stroke-width: 2; stroke-dasharray: 3 2; }
.plot .s { stroke: #7a3b00; stroke-width: 2; }
.plot .d { stroke: #00395c; stroke-width: 3; } .plot rect { fill: #8dbfe0; }
.plot .strong { font-weight: 650; border-bottom: 1px solid #bbb; margin-bottom: .3rem; padding-bottom: .3rem; }
.plot .strong rect { fill: #0072b2; }
.plot .axis > div { grid-column: 2; display: flex; justify-content: space-between; color: #555; font-size: .78rem; }
.plot .axis span { width: 0; display: flex; justify-content: center; white-space: nowrap; }
.plot .axis span:last-child { justify-content: flex-end; } .plot .axis span:first-child { justify-content: flex-start; }
.strip { display: grid; grid-template-columns: repeat(6, 1fr); gap: .6rem; }
.strip img { width: 100%; border: 1px solid #ccc; display: block; }
.facts { margin: .1rem 0 .5rem; color: #444; font-size: .86rem; }
.badge { display: inline-block; font-size: .74rem; font-weight: 600; padding: .05rem .5rem; border-radius: 1rem;
  vertical-align: middle; border: 1px solid; }
.badge.ok { background: #e3f4ea; color: #125c33; } .badge.no { background: #fbe7e3; color: #8c1d0b; }
figcaption { font-size: .78rem; line-height: 1.3; overflow-wrap: anywhere; padding-top: .2rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .8rem; font-size: .8rem; }
@media (max-width: 44rem) {
  .strip { grid-template-columns: repeat(2, 1fr); }
  .big small { display: block; margin-top: .4rem; }
  .plot .row { grid-template-columns: minmax(0, 1fr) auto; }
  .plot .row svg { grid-column: 1 / 3; grid-row: 2; } .plot .row { margin-bottom: .5rem; }
  .plot .axis { grid-template-columns: 1fr; } .plot .axis > div { grid-column: 1; }
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
