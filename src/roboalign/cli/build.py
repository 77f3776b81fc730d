"""`roboalign build`: compile a portable bundle on the board it is for, or on one that ssh reaches."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["build"]


def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that 'roboalign export' printed.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to copy the bundle to first.", show_default="its own folder"),
    ] = None,
    on: Annotated[
        str | None, typer.Option("--on", metavar="ADDRESS", help="Build on user@board by ssh, and bring engines back.")
    ] = None,
    board_command: Annotated[
        str, typer.Option("--board-command", help="With --on: how roboalign is called there, e.g. ~/env/bin/roboalign.")
    ] = "roboalign",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    attached: Annotated[bool, typer.Option("--attached", help="Stop when the input ends.", hidden=True)] = False,
) -> None:
    """On a Jetson: compile each graph with its TensorRT, compare with onnxruntime, write engines and their receipt.

    Never run on a board yet. What is finished is kept when it is interrupted.
    """
    from roboalign.sdk.bundle import find_bundle
    from roboalign.sdk.engines import read_engines

    bundle = find_bundle(bundle)
    if attached:
        _stop_with_the_input()
    if on is not None:
        from roboalign.export.remote_build import RemoteBoard, build_on

        board = RemoteBoard(address=on, command=board_command)
        receipt = build_on(board, bundle, out=out, say=print_note)
    else:
        from roboalign.export.build import build as build_engines

        receipt = build_engines(bundle, out=out, say=print_note)
    print_result(receipt, as_json=as_json, engines=read_engines(receipt.parent))


def _stop_with_the_input() -> None:
    """Interrupts this process when its input ends: whoever started it over ssh went away."""
    import os
    import signal
    import threading

    def watch() -> None:
        # Not through sys.stdin, whose lock a waiting thread would hold when the interpreter ends.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()
