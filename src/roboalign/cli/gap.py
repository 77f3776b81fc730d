"""`roboalign gap`: policies in simulation and in reality, and whether the one ranks them as the other does."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roboalign.cli.output import print_note, print_result, print_wrapped, require_file_target

if TYPE_CHECKING:
    from roboalign.sdk.evaluation import GapReport

__all__ = ["gap"]


def gap(
    sim: Annotated[
        list[str] | None,
        typer.Option("--sim", help="NAME=FOLDER of an evaluation in simulation, for each policy; or a folder of them."),
    ] = None,
    real: Annotated[
        list[str] | None,
        typer.Option("--real", help="NAME=FOLDER of an evaluation on a robot, under the same names; or a folder."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--table", help="Instead: CSV with the columns policy, world (sim or real), scene, success."),
    ] = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="What is given as --real was measured on a simulated arm in its place.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="HTML page to write.", show_default="none")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Compare outcomes of policies in simulation and reality: Pearson and rank violation.

    A name given several times puts its evaluations together. Swapped worlds and
    outcomes entered twice are refused.
    """
    from roboalign.sdk.errors import ConfigError
    from roboalign.sdk.evaluation import gap as compare_worlds
    from roboalign.sdk.evaluation.gap_inputs import read_policies, read_table
    from roboalign.sdk.evaluation.gap_page import write_gap_page

    if (table is None) == (not sim and not real):
        raise ConfigError("found nothing to compare, or a table and folders; give --sim and --real, or --table alone")
    if out is not None:
        require_file_target(out)
    if table is not None:
        policies = read_table(table)
    else:
        policies = read_policies(sim=_evaluations("--sim", sim or []), real=_evaluations("--real", real or []))
    report = compare_worlds(policies, is_stand_in=stand_in)
    _print(report)
    result: object = out
    if out is None:
        value = report.pearson.value
        r = "not defined" if value is None else f"{value:.3f}"
        result = f"Pearson r {r}, MMRV {report.mmrv.value:.3f}"
    else:
        write_gap_page(out, report)
    print_result(result, as_json=as_json, gap=report)


def _evaluations(option: str, texts: Sequence[str]) -> dict[str, list[Path]]:
    """Returns the folders of each policy by its name."""
    from roboalign.sdk.errors import ConfigError
    from roboalign.sdk.evaluation.gap_inputs import evaluations_in

    found: dict[str, list[Path]] = {}
    for text in texts:
        name, has_name, folder = text.partition("=")
        if has_name and not (name.strip() and folder.strip()):
            raise ConfigError(f"found {option} {text!r}, expected NAME=FOLDER, or a folder of evaluations")
        inside = {name.strip(): [Path(folder.strip())]} if has_name else evaluations_in(Path(text))
        for each, paths in inside.items():
            found.setdefault(each, []).extend(paths)
    return found


def _print(report: "GapReport") -> None:
    from roboalign.sdk.evaluation.gap_page import estimate_words

    print_note(f"{'policy':<31}{'simulation':>12}{'%':>7}{'reality':>12}{'%':>7}{'points':>9}")
    for point in report.policies:
        name = point.name if len(point.name) <= 30 else point.name[:27] + "..."
        cells = [f"{f'{r.num_successes}/{r.num_episodes}':>12}{100 * r.rate:7.1f}" for r in (point.sim, point.real)]
        print_note(f"{name:<31}{''.join(cells)}{100 * (point.sim.rate - point.real.rate):+9.1f}")
    print_note(f"Pearson r {estimate_words(report.pearson)}")
    print_note(f"mean maximum rank violation {estimate_words(report.mmrv)}")
    print_note(f"simulation minus reality {estimate_words(report.offset, signed=True)}")
    for line in report.warnings:
        print_wrapped(f"note: {line}")
