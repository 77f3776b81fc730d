"""`report.html` of one evaluation: the rates with their intervals, what to doubt, and what the episodes looked like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from roboalign.sdk.evaluation.caveats import caveats
from roboalign.sdk.evaluation.page import (
    Bar,
    escape,
    film_section,
    interval_plot,
    notes,
    percent,
    span,
    table,
    write_page,
)
from roboalign.sdk.evaluation.pictures import read_film
from roboalign.sdk.evaluation.results import EvalReport, GoalsResult, TaskResult, read_report

__all__ = ["READING", "write_eval_page"]

_PERCENT_MARKS = ("0", "25", "50", "75", "100 %")


def write_eval_page(folder: Path) -> Path:
    """Writes `report.html` into the folder of an evaluation, from the files there."""
    report = read_report(folder)
    where = _where(report)
    title = f"{report.policy.get('name', 'policy')} on {where}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _summary(report),
        notes(caveats(report)),
        _success(report),
        _goals(report.goals) if report.goals is not None else "",
        _films(folder, report),
        _latency(report),
        _settings(report),
        READING if report.world == "simulation" else _ROBOT_READING,
    ]
    return write_page(folder / "report.html", title=title, body=body)


def _where(report: EvalReport) -> str:
    suite = report.config.get("suite")
    return f"the suite {suite}" if suite else ", ".join(result.task for result in report.tasks)


def _summary(report: EvalReport) -> str:
    total, config = report.total, report.config
    what = "unseen scenes" if report.world == "simulation" else "runs on the robot"
    parts = [f"split {config.get('split')}", f"arm {config.get('robot')}"]
    if config.get("randomization") != "off":
        parts.append(f"randomisation {config.get('randomization')}")
    parts.append(f"acting: {report.who_acted}")
    return (
        f"<p class=big>{percent(total.rate)} <small>{total.num_successes} of {total.num_episodes} {what};"
        f" 95 % interval {span(total.interval)}</small></p><p class=sub>{escape('; '.join(parts))}</p>"
    )


def _success(report: EvalReport) -> str:
    results = [report.total, *report.tasks] if len(report.tasks) > 1 else [report.total]
    bars = [
        Bar(
            label="all tasks" if result is report.total and len(report.tasks) > 1 else _name(result, report),
            value=result.rate,
            interval=result.interval,
            text=f"{percent(result.rate)} ({span(result.interval)})",
            tick=result.mean_progress,
            is_strong=result is report.total,
        )
        for result in results
    ]
    alt = "Success with intervals: " + "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    rows = [
        [
            _name(result, report),
            f"{result.num_successes}/{result.num_episodes}",
            percent(result.rate),
            span(result.interval),
            f"{100 * result.mean_progress:.0f} %",
            f"{result.mean_steps:.1f}",
            str(result.num_holds),
        ]
        for result in (*report.tasks, report.total)
    ]
    head = ["task", "solved", "success", "95 % interval", "stage progress", "mean steps", "holds"]
    return "\n".join(
        [
            "<h2>Success</h2>",
            "<p>Line: success rate; bar: its 95 % interval; dashed mark: mean stage progress.</p>",
            interval_plot(bars, marks=_PERCENT_MARKS, alt=alt),
            table(head, rows, "", is_numbers=True),
        ]
    )


def _name(result: TaskResult, report: EvalReport) -> str:
    if result.task == "all":
        return report.tasks[0].task if len(report.tasks) == 1 else "all"
    return result.task.removeprefix(f"{report.config.get('suite')}/")


def _goals(goals: GoalsResult) -> str:
    rows = zip(goals.rates, goals.intervals, goals.nums, strict=True)
    bars = [
        Bar(
            label=f"at least {number} goal{'s' if number > 1 else ''} ({num} episodes)",
            value=rate,
            interval=interval,
            text=f"{percent(rate)} ({span(interval)})",
        )
        for number, (rate, interval, num) in enumerate(rows, start=1)
    ]
    low, high = goals.mean_length_interval.low, goals.mean_length_interval.high
    alt = "Goals reached: " + "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    return "\n".join(
        [
            "<h2>Goals reached</h2>",
            f"<p>Average length <strong>{goals.mean_length:.2f}</strong> of {goals.num_goals}"
            f" (95 % bootstrap interval {low:.2f} to {high:.2f}).</p>",
            interval_plot(bars, marks=_PERCENT_MARKS, alt=alt),
        ]
    )


def _films(folder: Path, report: EvalReport) -> str:
    strips = [film_section("", read_film(folder / name)) for name in report.films]
    links = ", ".join(f"<a href='{escape(name)}'>{escape(Path(name).name)}</a>" for name in report.videos)
    parts = []
    if strips:
        text = "The first successes and the first failures, in the order of the scenes, played again for the pictures."
        parts += [f"<h2>Film strips</h2><p>{text}</p>", *strips]
    if links:
        parts.append(f"<h2>Videos</h2><p>The first scenes, whatever became of them: {links}.</p>")
    return "\n".join(parts)


def _latency(report: EvalReport) -> str:
    if report.policy.get("kind") in ("expert", "random") or not report.latency_s:
        return ""
    rows = [
        [part, str(value.num), *(f"{1000 * s:.1f}" for s in (value.mean, value.p50, value.p95, value.p99, value.max))]
        for part, value in report.latency_s.items()
    ]
    text = "Milliseconds of one answer, measured during the evaluation itself: other work on the machine is included."
    return "<h2>Latency</h2>" + table(
        ["part", "calls", "mean ms", "p50", "p95", "p99", "max"], rows, text, is_numbers=True
    )


def _settings(report: EvalReport) -> str:
    rows = [[f"policy {key}", _words(value)] for key, value in report.policy.items()]
    rows += [[key.replace("_", " "), _words(value)] for key, value in report.config.items() if value is not None]
    rows.append(["seeds", f"{min(report.seeds)} to {max(report.seeds)}"])
    rows.append(["wall time", f"{report.wall_s:.1f} s"])
    made = [[key, value] for key, value in report.provenance.items()]
    return "<h2>Settings and provenance</h2>" + table(["what", "value"], rows + made, "")


def _words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


READING = """<h2>How to read this</h2>
<p>Success is judged by the task's own predicate on the simulated scene, never by the policy or the expert. An interval
is the Wilson score interval, widened near 0 and 100 % so that its exact coverage is nowhere below 92 %: on average over
rates it holds the true rate in 95 of 100 repetitions. <i>Stage progress</i> is the largest share of the task's stages
that an episode reached. <i>flow</i> is the action head, <i>fast</i> the action tokens of the language model; a
<i>hold</i> is an answer that could not be used: the arm stays where it is. <i>Shuffled</i> is the same policy told the
sentence of another task; <i>random</i> moves without looking; the <i>expert</i> knows where everything is.</p>"""

_ROBOT_READING = """<h2>How to read this</h2>
<p>A person at the robot judged success and progress. An interval is the Wilson score interval, widened near 0 and 100 %
so that its exact coverage is nowhere below 92 %: on average over rates it holds the true rate in 95 of 100 repetitions.
Each line of <i>trials.jsonl</i> is one run, with its note.</p>"""
