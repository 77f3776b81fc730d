"""The HTML page of a ledger: what held and what did not, arms and differences with intervals, curves, commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from roboalign.reproduce.analysis import ArmRow, Contrast, arm_rows, contrasts, say
from roboalign.reproduce.ledger import Ledger, MadeBy
from roboalign.reproduce.table import Rows, arm_table, contrast_table, cost_table, points, seed_table
from roboalign.sdk.evaluation.page import (
    Bar,
    data_uri,
    escape,
    interval_plot,
    notes,
    percent,
    span,
    table,
    write_page,
)
from roboalign.sdk.evaluation.plots import Curve, draw_curves, panels

__all__ = ["write_page_of"]


def write_page_of(ledger: Ledger, path: Path) -> Path:
    """Writes the page; an older one is replaced only by a complete one."""
    found, arms = contrasts(ledger), arm_rows(ledger)
    body = [
        f"<h1>{escape(ledger.header.title)}</h1>",
        f"<p class=lead><strong>Primary.</strong> {escape(say(found[0], ledger))}.</p>",
        notes(ledger.header.notes),
        _held(found[1:], ledger),
        _missing(arms),
        "<h2>Success of each arm</h2>" + _arm_plot(arms),
        _table(arm_table(ledger), "The interval is over scenes: of these trained models. n counts all seeds."),
        "<h2>Differences on the same scenes</h2>" + _difference_plot(found, ledger),
        _table(contrast_table(ledger), "Success of the first arm minus that of the second, in points."),
        "<h2>By training seed</h2>" + _table(seed_table(ledger), "Solved scenes of each seed."),
        "<h2>Data and compute</h2>" + _table(cost_table(ledger), "As the stages measured it, mean over seeds."),
        _curves(ledger),
        _commands(ledger),
        _provenance(ledger),
        _READING,
    ]
    return write_page(path, title=ledger.header.title, body=body)


def _held(found: Sequence[Contrast], ledger: Ledger) -> str:
    if not found:
        return ""
    items = "".join(f"<li>{escape(say(contrast, ledger))}</li>" for contrast in found)
    return f"<h2>What held and what did not</h2><ul>{items}</ul>"


def _missing(arms: Sequence[ArmRow]) -> str:
    items = "".join(f"<li>{escape(row.label)}: {escape(reason)}</li>" for row in arms for reason in row.gaps)
    return f"<h2>Without a result</h2><ul>{items}</ul>" if items else ""


def _arm_plot(arms: Sequence[ArmRow]) -> str:
    bars = [
        Bar(
            label=row.label,
            value=row.rate,
            interval=row.interval,
            text=f"{percent(row.rate)} ({span(row.interval)})",
            dots=row.seed_rates,
        )
        for row in arms
        if row.results
    ]
    if not bars:
        return "<p>No arm has a result yet.</p>"
    alt = "Success: " + "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    words = "<p>The short marks above a bar are its training seeds.</p>"
    return words + interval_plot(bars, marks=("0", "25", "50", "75", "100 %"), alt=alt)


def _difference_plot(found: Sequence[Contrast], ledger: Ledger) -> str:
    labels = ledger.header.labels
    bars = []
    for contrast in found:
        difference = contrast.found
        if difference is None:
            continue
        interval = difference.interval or difference.scene_interval
        bars.append(
            Bar(
                label=f"{labels[contrast.first]} minus {labels[contrast.second]}",
                value=difference.difference,
                interval=interval,
                text=f"{100 * difference.difference:+.1f} ({points(interval)})",
                dots=tuple(seed.difference for seed in difference.seeds),
                is_strong=contrast.is_primary,
            )
        )
    if not bars:
        return "<p>No comparison has both arms yet.</p>"
    alt = "Differences: " + "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    return interval_plot(bars, low=-1.0, high=1.0, marks=("-100", "-50", "0", "+50", "+100 points"), alt=alt)


def _curves(ledger: Ledger) -> str:
    """Curves of every rewarded stage, one for each arm and seed; a stage that two arms share is shown once."""
    stages: dict[str, MadeBy] = {}
    for result in ledger.results:
        stages |= {step.id: step for step in result.made_by if step.facts.curves}
    parts = []
    for id_, step in stages.items():
        curves = {
            name: Curve(name=name, steps=tuple(x for x, _ in rows), values=tuple(y for _, y in rows))
            for name, rows in (step.facts.curves or {}).items()
        }
        pictures = "".join(
            f"<figure><img src='{data_uri(draw_curves(panel))}' alt='{escape(panel.description)}'></figure>"
            for panel in panels(curves)
        )
        parts.append(f"<h3>{escape(id_)}</h3><div class=grid>{pictures}</div>" if pictures else "")
    return "<h2>Training by reward</h2>" + "".join(parts) if any(parts) else ""


def _commands(ledger: Ledger) -> str:
    steps = {step.id: step for result in ledger.results for step in result.made_by}
    if not steps:
        return ""
    lines = "\n".join(
        f"{escape(step.id)}  {step.cpu_s / 60:.1f} CPU min, {escape(step.content[:12])}\n  $ {escape(step.line)}"
        for step in steps.values()
    )
    text = "A name in braces is the result of that step; behind the time stands the hash of what the step wrote."
    return f"<h2>Every step</h2><p>{text}</p><pre>{lines}</pre>"


def _provenance(ledger: Ledger) -> str:
    versions: dict[str, str] = {"plan": ledger.header.plan_sha256}
    for result in ledger.results:
        for name, text in result.versions.items():
            known = versions.get(name)
            versions[name] = text if known in (None, text) else f"{known}; {text}" if text not in known else known
    sources = sorted({step.source for result in ledger.results for step in result.made_by})
    versions["source"] = ", ".join(sources)
    return "<h2>Provenance</h2>" + _table((("what", "value"), list(versions.items())), "")


def _table(rows: Rows, caption: str) -> str:
    return table(rows[0], rows[1], caption)


_READING = """<h2>How to read this</h2>
<p>Both arms of a comparison ran on the same scenes from the same physical state, and every training seed has scenes of
its own. The interval over <strong>seeds and scenes</strong> is a t interval of the differences of the seeds, with an
error that is never smaller than what the scenes alone explain; it speaks of new training runs, and with three seeds it
is wide. The interval of <strong>these models</strong> (Tango's, over the pooled scenes) and McNemar's exact test say
whether the trained models at hand differ; another seed may turn out otherwise. A difference that is not separated is
not shown to be absent.</p>"""
