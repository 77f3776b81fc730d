"""`roboalign export`: from a trained checkpoint to a bundle that a robot can load."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["export"]


def export(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Checkpoint of stage head.", show_default="the newest finished one below runs/"
        ),
    ] = None,
    target: Annotated[str, typer.Option("--target", help="Machine to export for: cpu or jetson.")] = "cpu",
    precision: Annotated[
        str, typer.Option("--precision", help="How weights are stored: fp16, fp32, int8 or int4.")
    ] = "fp16",
    out: Annotated[
        Path | None, typer.Option("--out", help="Bundle folder to write.", show_default="runs/bundle-RUN-TARGET")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write ONNX graphs and a self-describing bundle; parity with torch is checked on its exact bytes."""
    from roboalign.export import ExportConfig
    from roboalign.export import export as write_bundle
    from roboalign.sdk.bundle import read_bundle

    folder = write_bundle(ExportConfig(run=run, target=target, precision=precision, out=out), say=print_note)
    print_result(folder, as_json=as_json, manifest=read_bundle(folder).manifest)
