"""`roboalign demo`: the whole path in one go, by the same commands that you can type."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_result

__all__ = ["demo"]


def demo(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of everything the demo makes; one in it goes on.", show_default="runs/demo"),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="Size of the run: demo, or debug (seconds a stage).")
    ] = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Collect, sft, align, head, export and evaluation from the shipped base, then one HTML report."""
    from roboalign import demo as room

    folder = out or Path("runs") / (recipe if recipe == "demo" else f"demo-{recipe}")
    print_result(room.run_demo(out=folder, recipe=recipe), as_json=as_json)
