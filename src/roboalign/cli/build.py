"""`roboalign build`: compile a portable bundle on the board it is for."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["build"]


def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that 'roboalign export' printed.")],
) -> None:
    """On a Jetson: check bundle, board and TensorRT. This version says what is missing; it compiles nothing yet."""
    from roboalign.export.build import build as build_engines

    build_engines(bundle)
