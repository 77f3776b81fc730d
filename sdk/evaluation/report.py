"""One self-contained HTML page about a run: what was measured, by whom the arm was moved, and how to repeat it.

Every number is read from the files that the commands of the run wrote. Pictures are inside the page, there is no script
and nothing is loaded from elsewhere, so the file can be mailed and opened on a phone.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.pictures import FilmStrip, read_film
from roboalign.sdk.evaluation.plots import draw_curves, draw_success, panels, read_metrics
from roboalign.sdk.evaluation.results import EvalReport, FamilyResult, compare, read_report
from roboalign.sdk.evaluation.statistics import Interval

__all__ = ["CommandRecord", "Contender", "ReportSources", "Stage", "verdicts", "write_report"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandRecord:
    """One command of the run, as a reader would type it."""

    line: str
    """The command line."""
    wall_s: float
    """How long it took."""
    outcome: str
    """`done`, or what else came of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One evaluated policy."""

    label: str
    """What the table calls it."""
    folder: Path
    """Folder that `roboalign eval` wrote."""
    role: str = "policy"
    """`main` (the subject of the page), `policy`, `control` (the subject must beat it), or `reference`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One training stage."""

    title: str
    """Heading of its curves."""
    metrics: Path
    """Metrics JSONL file."""
    facts: Mapping[str, str]
    """What its checkpoint says about itself, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSources:
    """What a report is made of."""

    title: str
    """Heading of the page."""
    contenders: tuple[Contender, ...]
    """Evaluations on the same seeds."""
    stages: tuple[Stage, ...] = ()
    """Training stages in order."""
    commands: tuple[CommandRecord, ...] = ()
    """Every command that made a number on the page, in order."""
    notes: tuple[str, ...] = ()
    """What a reader must know first, e.g. that a stage refused."""
    provenance: Mapping[str, str] | None = None
    """Versions, seeds, machine, date."""


def write_report(sources: ReportSources, path: Path) -> Path:
    """Writes the page; an older one is replaced only by a complete one."""
    if not sources.contenders:
        raise ConfigError("a report needs at least one evaluation")
    reports = [(contender, read_report(contender.folder)) for contender in sources.contenders]
    body = [
        f"<h1>{_text(sources.title)}</h1>",
        _summary(sources, reports),
        _success(reports),
        _films(reports),
        _curves(sources.stages),
        _latency(reports),
        _commands(sources.commands),
        _provenance(sources),
        _READING,
    ]
    page = _PAGE.format(title=_text(sources.title), style=_STYLE, body="\n".join(part for part in body if part))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def verdicts(reports: Sequence[tuple[Contender, EvalReport]]) -> tuple[tuple[str, bool], ...]:
    """Says for each control whether the main policy's interval lies above the control's, and with which numbers."""
    mains = [report for contender, report in reports if contender.role == "main"]
    lines = []
    for main in mains:
        low = main.total.interval.low
        for contender, report in reports:
            if contender.role == "control":
                high = report.total.interval.high
                text = (
                    f"lower bound {_percent(low)} against the upper bound {_percent(high)} of {contender.label}:"
                    f" {'clearly better' if low > high else 'not separated'}"
                )
                lines.append((text, low > high))
    return tuple(lines)


def _summary(sources: ReportSources, reports: Sequence[tuple[Contender, EvalReport]]) -> str:
    """The first paragraph: the result, whether it beats the controls, and what went differently."""
    parts = []
    for contender, report in reports:
        if contender.role == "main":
            total = report.total
            parts.append(
                f"<p class=lead><strong>{_text(contender.label)}</strong> solved {total.num_successes} of"
                f" {total.num_episodes} unseen scenes: {_percent(total.rate)} ({_range(total.interval)}).</p>"
            )
    parts.extend(f'<p class="note" role="note">{_text(note)}</p>' for note in sources.notes)
    lines = verdicts(reports)
    if lines:
        items = "".join(f"<li>{'&#10003;' if ok else '&#10007;'} {_text(text)}</li>" for text, ok in lines)
        parts.append(f"<ul class=plain>{items}</ul>")
    return "\n".join(parts)


def _success(reports: Sequence[tuple[Contender, EvalReport]]) -> str:
    """Table and plot of success rates, and the comparisons on paired seeds."""
    names = list(dict.fromkeys(family.family for _, report in reports for family in report.families))
    rows = []
    for contender, report in reports:
        by_name = {family.family: family for family in report.families}
        cells = [contender.label, report.who_acted, str(report.total.num_episodes), _rate(report.total)]
        cells += [_rate(by_name[name]) if name in by_name else "-" for name in names]
        cells += [
            f"{report.total.mean_steps:.1f}",
            f"{report.total.mean_progress:.2f}",
            str(report.total.num_holds),
            _percent(report.thought_share) if report.policy.get("think") else "-",
        ]
        rows.append(cells)
    head = ["policy", "who acted", "n", "all", *names, "mean steps", "progress", "holds", "with a thought"]
    labelled = [(contender.label, report) for contender, report in reports]
    words = "; ".join(f"{label} {_percent(report.total.rate)}" for label, report in labelled)
    return "\n".join(
        [
            "<h2>Closed-loop success</h2>",
            _table(head, rows, "Success rate with 95 % Wilson interval. Every policy ran on the same held-out scenes."),
            _figure(draw_success(labelled), f"Success rates with intervals: {words}", "wide"),
            _comparisons(reports),
        ]
    )


def _comparisons(reports: Sequence[tuple[Contender, EvalReport]]) -> str:
    """The main policy against every other one, seed by seed."""
    rows = []
    for main, first in reports:
        if main.role != "main":
            continue
        for other, second in reports:
            if other is main:
                continue
            pair = compare(first, second)
            rows.append(
                [
                    f"{main.label} minus {other.label}",
                    f"{100 * pair.difference:+.1f} points",
                    f"{100 * pair.interval.low:+.1f} to {100 * pair.interval.high:+.1f}",
                    str(pair.num_pairs),
                    f"{pair.num_only_first} / {pair.num_only_second}",
                    f"{pair.p_value:.2g}",
                ]
            )
    head = ["paired on seeds", "difference", "95 % interval", "pairs", "only first / only second", "exact McNemar p"]
    return _table(head, rows, "Differences on the same scenes, with a paired bootstrap interval.") if rows else ""


def _films(reports: Sequence[tuple[Contender, EvalReport]]) -> str:
    """Film strips with the thought under each picture."""
    parts: list[str] = []
    for contender, report in reports:
        parts.extend(_strip(contender.label, read_film(contender.folder / name)) for name in report.films)
    if not parts:
        return ""
    text = "The first scenes of each family, not chosen by their outcome. Under each picture: the thought in force."
    return f"<h2>Film strips</h2><p>{text}</p>" + "\n".join(parts)


def _strip(label: str, strip: FilmStrip) -> str:
    outcome = "success" if strip.success else "no success"
    cells = []
    for frame in strip.frames:
        alt = f"{strip.instruction}: the scene at step {frame.step}"
        thought = f"<q>{_text(frame.thought)}</q>" if frame.thought else "<i>no thought</i>"
        cells.append(f"<figure><img src='{_data(frame.png)}' alt='{_text(alt)}'>")
        cells.append(f"<figcaption>step {frame.step}<br>{thought}</figcaption></figure>")
    who = f"{_text(label)}, acting: {_text(', '.join(strip.sources))}"
    head = (
        f"<h3>&ldquo;{_text(strip.instruction)}&rdquo;</h3>"
        f"<p>{who}; seed {strip.seed}; {outcome} after {strip.steps} steps</p>"
    )
    return f"<section>{head}<div class=strip>{''.join(cells)}</div></section>"


def _curves(stages: Sequence[Stage]) -> str:
    """Training curves and what each checkpoint says about itself."""
    parts = []
    for stage in stages:
        drawn = panels(read_metrics(stage.metrics))
        pictures = "".join(_figure(draw_curves(panel), panel.description, "") for panel in drawn)
        facts = _table(["of this stage", ""], [[k, v] for k, v in stage.facts.items()], "") if stage.facts else ""
        if pictures or facts:
            parts.append(f"<h3>{_text(stage.title)}</h3>{facts}<div class=grid>{pictures}</div>")
    return "<h2>Training</h2>" + "\n".join(parts) if parts else ""


def _latency(reports: Sequence[tuple[Contender, EvalReport]]) -> str:
    rows = []
    for contender, report in reports:
        if contender.role in ("control", "reference"):
            continue
        for part, value in report.latency_s.items():
            numbers = [f"{1000 * seconds:.1f}" for seconds in (value.mean, value.p50, value.p95, value.p99, value.max)]
            rows.append(
                [contender.label, report.who_acted, part, str(value.num), str(report.config["workers"]), *numbers]
            )
    if not rows:
        return ""
    head = ["policy", "who acted", "part", "calls", "processes", "mean ms", "p50", "p95", "p99", "max"]
    text = "Milliseconds of one answer, measured during the evaluation itself: other work on the machine is included."
    return "<h2>Latency</h2>" + _table(head, rows, text)


def _commands(commands: Sequence[CommandRecord]) -> str:
    if not commands:
        return ""
    rows = "\n".join(f"$ {_text(c.line)}\n  {_duration(c.wall_s)}, {_text(c.outcome)}" for c in commands)
    total = sum(command.wall_s for command in commands)
    return f"<h2>The commands that made it</h2><pre>{rows}</pre><p>Together {_duration(total)}.</p>"


def _provenance(sources: ReportSources) -> str:
    if not sources.provenance:
        return ""
    return "<h2>Provenance</h2>" + _table(["what", "value"], [[k, v] for k, v in sources.provenance.items()], "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Returns an HTML table; the first cell of a row is its heading."""
    top = "".join(f"<th scope=col>{_text(cell)}</th>" for cell in head)
    lines = []
    for row in rows:
        rest = "".join(f"<td>{_text(cell)}</td>" for cell in row[1:])
        lines.append(f"<tr><th scope=row>{_text(row[0])}</th>{rest}</tr>")
    title = f"<caption>{_text(caption)}</caption>" if caption else ""
    table = f"<table>{title}<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<div class=scroll tabindex=0>{table}</div>"


def _figure(png: bytes, alt: str, kind: str) -> str:
    return f"<figure class='plot {kind}'><img src='{_data(png)}' alt='{_text(alt)}'></figure>"


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _range(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


def _rate(result: FamilyResult) -> str:
    # Unbreakable spaces leave one place to break the line: between the rate and its interval.
    rate, interval = (text.replace(" ", "\u00a0") for text in (_percent(result.rate), _range(result.interval)))
    return f"{rate} ({interval})"


def _duration(seconds: float) -> str:
    return f"{int(seconds // 60)} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.1f} s"


_READING = """<h2>How to read this</h2>
<p>Success is judged by the task's own predicate on the simulated scene, never by the policy or the expert. A Wilson
interval holds the true rate in 95 of 100 repetitions. <i>flow</i> is the action head, <i>fast</i> the action tokens of
the language model; a <i>hold</i> is an answer that could not be used: the arm stays where it is. <i>Shuffled</i> is the
same policy told the sentence of another task in the same scene; <i>random</i> moves without looking; the <i>expert</i>
knows where everything is.</p>"""

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 80ch; margin: 0 auto;
  padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { margin: 1.4rem 0 .2rem; }
.lead { font-size: 1.15rem; } .note { border-left: 4px solid #a04000; background: #fdf3ea; padding: .5rem .8rem; }
ul.plain { list-style: none; padding: 0; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #444; padding-bottom: .3rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #888; }
figure { margin: 0; } img { max-width: 100%; height: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: .8rem; }
.strip { display: grid; grid-template-columns: repeat(3, 1fr); gap: .8rem; }
@media (max-width: 34rem) { .strip { grid-template-columns: repeat(2, 1fr); } }
.strip img { width: 100%; border: 1px solid #ccc; }
figcaption { font-size: .78rem; line-height: 1.3; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .8rem; font-size: .8rem; }
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
