"""`roboalign reproduce`: the evidence, run again by anyone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roboalign.cli.output import parse_names, print_note, print_result

if TYPE_CHECKING:
    from roboalign.reproduce import Forecast

__all__ = ["reproduce"]


def reproduce(
    plan: Annotated[str, typer.Argument(help="Plan by name (nano, debug), or a .toml or .json file.")] = "nano",
    out: Annotated[Path, typer.Option("--out", help="Folder of all results; what it holds is not run again.")] = Path(
        "runs/reproduce"
    ),
    arms: Annotated[
        str | None, typer.Option("--arms", help="Arms to run, separated by commas.", show_default="all")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Training seeds to run, separated by commas.", show_default="all")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Commands at a time, single-threaded.")] = 1,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Name that stands for the source: results with it are kept when the source changes.",
            show_default="a hash of the source",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the steps and their minutes, run nothing.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="Only write table and page beside this results.jsonl.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a plan of arms and training seeds, each step a public command, and report paired differences.

    The folder gets results.jsonl (one line for each evaluation), results.md and results.html. Give the same command
    again to go on after any interruption.
    """
    from roboalign import reproduce as room

    if report is not None:
        print_result(room.report_ledger(report), as_json=as_json)
        return
    config = room.StudyConfig(
        plan=plan,
        out=out,
        arms=() if arms is None else parse_names(arms),
        seeds=() if seeds is None else _numbers(seeds),
        workers=workers,
        source=source,
    )
    if not dry_run:
        print_result(room.run_study(config), as_json=as_json)
        return
    steps = room.forecast(config)
    if not as_json:
        for step in steps:
            _print_step(step)
    minutes = sum(step.minutes for step in steps)
    hours = f"about {minutes / 60:.1f} h of one worker, {minutes / 60 / workers:.1f} h of {workers}"
    print_result(f"{sum(step.minutes > 0 for step in steps)} steps to run, {hours}", as_json=as_json, steps=steps)


def _numbers(text: str) -> tuple[int, ...]:
    from roboalign.sdk.errors import ConfigError

    names = parse_names(text)
    if odd := [name for name in names if not name.isdecimal()]:
        raise ConfigError(f"found {odd[0]!r} among the seeds, expected whole numbers separated by commas")
    return tuple(int(name) for name in names)


def _print_step(step: "Forecast") -> None:
    time = "" if step.minutes == 0.0 else f"{_minutes(step.minutes)} {'measured' if step.is_measured else 'guessed'}"
    # What blocks a step is printed in full where it stands itself.
    reason = f"blocked by {step.reason.partition(':')[0]}" if step.status == "blocked" else step.reason
    print_note(f"{step.id:<36}{step.status:<10}{time}".rstrip())
    print_note(f"  $ {step.line}" + (f"\n  {reason}" if reason else ""))


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f} min" if minutes >= 1.0 else f"{60 * minutes:.0f} s"
