"""`roboalign compare`: two or more evaluations, scene by scene."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roboalign.cli.output import print_note, print_result, require_file_target

if TYPE_CHECKING:
    from roboalign.sdk.evaluation import Comparison, Interval

__all__ = ["compare", "print_comparison"]


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of `roboalign eval`; the first against each other.")],
    out: Annotated[Path | None, typer.Option("--out", help="HTML page to write.", show_default="none")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the differences as JSON.")] = False,
) -> None:
    """Compare policies on the same scenes: difference, interval, exact McNemar.

    Refuses evaluations that are not of the same scenes, and says what differs.
    """
    from roboalign.sdk.errors import ConfigError
    from roboalign.sdk.evaluation import compare as compare_reports
    from roboalign.sdk.evaluation import read_report
    from roboalign.sdk.evaluation.compare_page import write_compare_page

    if len(folders) < 2:
        raise ConfigError(f"found {len(folders)} evaluation to compare, expected at least two folders")
    if out is not None:
        require_file_target(out)
    reports = [read_report(folder) for folder in folders]
    names = _names([str(report.policy.get("name")) for report in reports], folders)
    comparisons = [
        compare_reports(reports[0], report, first_name=names[0], second_name=name)
        for report, name in zip(reports[1:], names[1:], strict=True)
    ]
    for comparison, folder in zip(comparisons, folders[1:], strict=True):
        print_comparison(comparison, folders[0], folder)
    result: object = "; ".join(comparison.verdict for comparison in comparisons)
    if out is not None:
        result = write_compare_page(out, list(zip(names, reports, strict=True)), comparisons)
    print_result(result, as_json=as_json, first=str(folders[0]), comparisons=comparisons)


def _names(names: list[str], folders: list[Path]) -> list[str]:
    """Returns names that are told apart: the policies' own, or with their folder where two are alike."""
    return [
        name if names.count(name) == 1 else f"{name} ({folder})" for name, folder in zip(names, folders, strict=True)
    ]


def print_comparison(comparison: "Comparison", first: Path, second: Path) -> None:
    """Prints two policies task by task for the reader; the folders tell apart policies of one name."""
    total = comparison.total
    print_note(f"A = {comparison.first} ({first})" if str(first) not in comparison.first else f"A = {comparison.first}")
    print_note(
        f"B = {comparison.second} ({second})" if str(second) not in comparison.second else f"B = {comparison.second}"
    )
    print_note(f"{'A minus B, in points':<31}{'A':>5}{'B':>5}{'of':>5}{'diff':>8}  {'95 % interval':<16}{'p':>8}")
    rows = [(row.task, row.num_first, row.num_second, row.paired) for row in comparison.tasks]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows), total))
    for task, wins, losses, pair in rows:
        name = task if len(task) <= 30 else task[:27] + "..."
        numbers = f"{wins:5d}{losses:5d}{pair.num_pairs:5d}{100 * pair.difference:+8.1f}"
        print_note(f"{name:<31}{numbers}  {_points(pair.interval):<16}{pair.p_value:8.2g}")
    print_note(
        f"paired bootstrap {_points(total.bootstrap)}; only A {total.num_only_first}, only B {total.num_only_second}"
    )
    progress = comparison.progress
    print_note(f"stage progress {100 * progress.difference:+.1f} ({_points(progress.interval)})")
    if comparison.length is not None:
        length = comparison.length
        low, high = length.interval.low, length.interval.high
        bounds = f"{low:+.2f} to {high:+.2f}" if high > low else "no interval: all alike"
        print_note(f"average length {length.difference:+.2f} ({bounds})")


def _points(interval: "Interval") -> str:
    if interval.width == 0.0:
        return "no interval: all alike"
    return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"
