"""One self-contained HTML page about a run: what was measured, by whom the arm was moved, and how to repeat it.

Every number is read from the files that the commands of the run wrote. Pictures are inside the page, there is no script
and nothing is loaded from elsewhere, so the file can be mailed and opened on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.comparison import compare
from roboalign.sdk.evaluation.eval_page import READING
from roboalign.sdk.evaluation.page import data_uri, escape, film_section, percent, span, table, write_page
from roboalign.sdk.evaluation.pictures import read_film
from roboalign.sdk.evaluation.plots import draw_curves, draw_success, panels, read_metrics
from roboalign.sdk.evaluation.results import EvalReport, TaskResult, read_report

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
        f"<h1>{escape(sources.title)}</h1>",
        _summary(sources, reports),
        _success(reports),
        _films(reports),
        _curves(sources.stages),
        _latency(reports),
        _commands(sources.commands),
        _provenance(sources),
        READING,
    ]
    return write_page(path, title=sources.title, body=body)


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
                    f"lower bound {percent(low)} against the upper bound {percent(high)} of {contender.label}:"
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
                f"<p class=lead><strong>{escape(contender.label)}</strong> solved {total.num_successes} of"
                f" {total.num_episodes} unseen scenes: {percent(total.rate)} ({span(total.interval)}).</p>"
            )
    parts.extend(f'<p class="note" role="note">{escape(note)}</p>' for note in sources.notes)
    lines = verdicts(reports)
    if lines:
        items = "".join(f"<li>{'&#10003;' if ok else '&#10007;'} {escape(text)}</li>" for text, ok in lines)
        parts.append(f"<ul class=plain>{items}</ul>")
    return "\n".join(parts)


def _success(reports: Sequence[tuple[Contender, EvalReport]]) -> str:
    """Table and plot of success rates, and the comparisons on paired seeds."""
    names = list(dict.fromkeys(result.task for _, report in reports for result in report.tasks))
    rows = []
    for contender, report in reports:
        by_name = {result.task: result for result in report.tasks}
        cells = [contender.label, report.who_acted, str(report.total.num_episodes), _rate(report.total)]
        cells += [_rate(by_name[name]) if name in by_name else "-" for name in names]
        cells += [
            f"{report.total.mean_steps:.1f}",
            f"{report.total.mean_progress:.2f}",
            str(report.total.num_holds),
            percent(report.thought_share) if report.policy.get("think") else "-",
        ]
        rows.append(cells)
    head = ["policy", "who acted", "n", "all", *names, "mean steps", "progress", "holds", "with a thought"]
    labelled = [(contender.label, report) for contender, report in reports]
    words = "; ".join(f"{label} {percent(report.total.rate)}" for label, report in labelled)
    return "\n".join(
        [
            "<h2>Closed-loop success</h2>",
            table(head, rows, "Success rate with 95 % interval. Every policy ran on the same held-out scenes."),
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
            pair = compare(first, second).total
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
    head = ["paired on scenes", "difference", "95 % interval", "pairs", "only first / only second", "exact McNemar p"]
    return table(head, rows, "Differences on the same scenes, with Tango's score interval.") if rows else ""


def _films(reports: Sequence[tuple[Contender, EvalReport]]) -> str:
    """Film strips with the thought under each picture."""
    parts: list[str] = []
    for contender, report in reports:
        parts.extend(film_section(contender.label, read_film(contender.folder / name)) for name in report.films)
    if not parts:
        return ""
    text = "The first successes and the first failures of each policy. Under each picture: the thought in force."
    return f"<h2>Film strips</h2><p>{text}</p>" + "\n".join(parts)


def _curves(stages: Sequence[Stage]) -> str:
    """Training curves and what each checkpoint says about itself."""
    parts = []
    for stage in stages:
        drawn = panels(read_metrics(stage.metrics))
        pictures = "".join(_figure(draw_curves(panel), panel.description, "") for panel in drawn)
        facts = table(["of this stage", ""], [[k, v] for k, v in stage.facts.items()], "") if stage.facts else ""
        if pictures or facts:
            parts.append(f"<h3>{escape(stage.title)}</h3>{facts}<div class=grid>{pictures}</div>")
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
    return "<h2>Latency</h2>" + table(head, rows, text)


def _commands(commands: Sequence[CommandRecord]) -> str:
    if not commands:
        return ""
    rows = "\n".join(f"$ {escape(c.line)}\n  {_duration(c.wall_s)}, {escape(c.outcome)}" for c in commands)
    total = sum(command.wall_s for command in commands)
    return f"<h2>The commands that made it</h2><pre>{rows}</pre><p>Together {_duration(total)}.</p>"


def _provenance(sources: ReportSources) -> str:
    if not sources.provenance:
        return ""
    return "<h2>Provenance</h2>" + table(["what", "value"], [[k, v] for k, v in sources.provenance.items()], "")


def _figure(png: bytes, alt: str, kind: str) -> str:
    return f"<figure class='plot {kind}'><img src='{data_uri(png)}' alt='{escape(alt)}'></figure>"


def _rate(result: TaskResult) -> str:
    # Unbreakable spaces leave one place to break the line: between the rate and its interval.
    rate, interval = (text.replace(" ", "\u00a0") for text in (percent(result.rate), span(result.interval)))
    return f"{rate} ({interval})"


def _duration(seconds: float) -> str:
    return f"{int(seconds // 60)} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.1f} s"
