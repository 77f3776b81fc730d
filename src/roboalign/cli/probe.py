"""`roboalign probe`: what a checkpoint's hidden states know, what it answers, and whether its thoughts are true."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roboalign.cli.output import print_note, print_result

if TYPE_CHECKING:
    from roboalign.trainer.probes import ProbeReport

__all__ = ["probe"]


def probe(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint of any stage.")],
    data: Annotated[Path, typer.Option("--data", help="Dataset folder; its last episodes are asked about.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file to write.", show_default="runs/probe-NAME.json")
    ] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Decoder layer to read.", show_default="at the paper's depth")
    ] = None,
    questions: Annotated[int, typer.Option("--questions", help="Frames, and questions of each kind, at most.")] = 500,
    references: Annotated[int, typer.Option("--references", help="Frames that neighbours are looked for in.")] = 4000,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the frames.")] = 0,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Probe a checkpoint on held-out frames: neighbours, answers, thoughts.

    Run it on the checkpoints of several stages with the same data and seed to compare them.
    """
    from roboalign.trainer.probes import ProbeConfig, run_probes

    config = ProbeConfig(
        checkpoint=checkpoint,
        data=data,
        out=out or Path("runs") / f"probe-{checkpoint.name}.json",
        layer=layer,
        references=references,
        questions=questions,
        threads=threads,
        seed=seed,
    )
    report = run_probes(config)
    _print_table(report)
    print_result(config.out, as_json=as_json, report=report)


def _print_table(report: "ProbeReport") -> None:
    print_note(f"{report.checkpoint} ({report.stage}), hidden states after layer {report.layer}")
    print_note(f"{'probe':<11}{'what':<20}{'task':<16}{'right':>10}{'share':>9}  95 % interval")
    for row in report.rows:
        right, share = f"{row.right}/{row.count}", f"{100 * row.rate:.1f} %"
        chance = "" if row.chance is None else f"   (chance {100 * row.chance:.0f} %)"
        line = f"{row.probe:<11}{row.what:<20}{row.task:<16}{right:>10}{share:>9}  "
        print_note(line + f"{100 * row.low:.1f} to {100 * row.high:.1f}{chance}")
