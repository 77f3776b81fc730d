"""The tables of a ledger as Markdown, for a page of docs/; the HTML page shows the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from roboalign.reproduce.analysis import Contrast, Cost, arm_rows, contrasts, costs, say
from roboalign.reproduce.ledger import Ledger
from roboalign.sdk.evaluation.intervals import Interval
from roboalign.sdk.evaluation.page import percent, span

__all__ = ["Rows", "arm_table", "contrast_table", "cost_table", "markdown", "points", "seed_table"]

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Heads of the columns, and the cells of every row."""


def markdown(ledger: Ledger) -> str:
    """Returns everything that a ledger shows, as a piece of a Markdown page."""
    lines = [f"Primary: {say(contrasts(ledger)[0], ledger)}.", ""]
    for title, (head, rows) in (
        ("Success of each arm", arm_table(ledger)),
        ("Differences", contrast_table(ledger)),
        ("Success by training seed", seed_table(ledger)),
        ("What each arm took, mean over seeds", cost_table(ledger)),
    ):
        lines += [f"**{title}**", "", *_pipe(head, rows), ""]
    missing = [(row.label, reason) for row in arm_rows(ledger) for reason in row.gaps]
    if missing:
        lines += ["**Without a result**", "", *(f"- {label}: {reason}" for label, reason in missing), ""]
    return "\n".join(lines)


def arm_table(ledger: Ledger) -> Rows:
    """Returns a row for each arm: success, interval over the scenes, who acted."""
    tasks = list(dict.fromkeys(task for result in ledger.results for task in result.by_task))
    head = ("arm", "seeds", "n", "success", "95 % interval (scenes)", *tasks, "progress", "with a thought", "who acted")
    rows = []
    for row in arm_rows(ledger):
        if not row.results:
            rows.append((row.label, "0", "0", "no result", *["-"] * (len(head) - 4)))
            continue
        by_task = []
        for task in tasks:
            counts = [result.by_task.get(task, (0, 0)) for result in row.results]
            wins, n = sum(c[0] for c in counts), sum(c[1] for c in counts)
            by_task.append(percent(wins / n) if n else "-")
        rows.append(
            (
                row.label,
                str(len(row.results)),
                str(row.n),
                percent(row.rate),
                span(row.interval),
                *by_task,
                f"{sum(result.mean_progress for result in row.results) / len(row.results):.2f}",
                percent(sum(result.thought_share for result in row.results) / len(row.results)),
                "; ".join(dict.fromkeys(result.who_acted for result in row.results)),
            )
        )
    return head, rows


def contrast_table(ledger: Ledger) -> Rows:
    """Returns a row for each comparison, the primary one first."""
    head = (
        "first minus second",
        "difference",
        "95 % interval, seeds and scenes",
        "t p",
        "95 % interval, these models",
        "McNemar p",
        "after Holm",
        "relative",
        "pairs",
        "verdict",
    )
    return head, [_contrast_row(contrast, ledger) for contrast in contrasts(ledger)]


def seed_table(ledger: Ledger) -> Rows:
    """Returns the success of each arm for each seed."""
    head = ("arm", *(f"seed {seed}" for seed in ledger.header.seeds))
    rows = []
    for row in arm_rows(ledger):
        found = ledger.of(row.arm)
        cells = [f"{found[seed].successes}/{found[seed].n}" if seed in found else "-" for seed in ledger.header.seeds]
        rows.append((row.label, *cells))
    return head, rows


def cost_table(ledger: Ledger) -> Rows:
    """Returns data, updates, samples, tokens and CPU time of each arm: matched where they should be?"""
    head = ("arm", "frames", "updates", "samples", "tokens", "CPU min: model", "CPU min: head")
    rows = []
    for row in arm_rows(ledger):
        found = costs(row)
        if not found:
            rows.append((row.label, *["-"] * (len(head) - 1)))
            continue
        model = sum(cost.cpu_s for cost in found if cost.is_backbone)
        other = sum(cost.cpu_s for cost in found if not cost.is_backbone)
        rows.append(
            (
                row.label,
                _joined(dict.fromkeys(str(cost.frames) for cost in found if cost.frames is not None)),
                _joined(f"{cost.stage} {_number(cost.updates)}" for cost in found),
                _joined(f"{cost.stage} {_number(cost.samples)}" for cost in found),
                _tokens(found),
                f"{model / 60:.1f}",
                f"{other / 60:.1f}",
            )
        )
    return head, rows


def points(interval: Interval) -> str:
    """Returns an interval of differences in points."""
    return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"


def _contrast_row(contrast: Contrast, ledger: Ledger) -> tuple[str, ...]:
    labels = ledger.header.labels
    name = f"{labels[contrast.first]} minus {labels[contrast.second]}" + (" (primary)" if contrast.is_primary else "")
    found = contrast.found
    if found is None:
        return (name, *["-"] * 8, "no seed has both")
    return (
        name,
        f"{100 * found.difference:+.1f}",
        points(found.interval) if found.interval is not None else "one seed only",
        f"{found.p_value:.2g}" if found.p_value is not None else "-",
        points(found.scene_interval),
        f"{found.scene_p_value:.2g}",
        f"{contrast.adjusted_p:.2g}" if contrast.adjusted_p is not None else "-",
        f"{100 * found.relative:+.0f} %" if math.isfinite(found.relative) else "-",
        str(found.num_pairs),
        found.verdict,
    )


def _tokens(found: Sequence[Cost]) -> str:
    if all(cost.tokens is None for cost in found):
        return "not counted"
    return _joined(f"{cost.stage} {_number(cost.tokens)}" for cost in found)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(parts)


def _pipe(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "/") for cell in row] for row in rows]
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in escaped),
    ]
