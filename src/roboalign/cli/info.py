"""`roboalign info`: what a bundle is, in the terminal or as a page."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["info"]


def info(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="Folder, or a shipped name.", show_default="nano-policy")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Page to write.", show_default="none")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Describe a bundle: robot, cameras, actions, weights, parity, plan, files. Verifies its files first."""
    from roboalign.cli.output import require_file_target
    from roboalign.export.info import info_lines, read_info, write_info_page

    if html is not None:
        require_file_target(html, ".html")
    found = read_info(bundle)
    if html is not None:
        print_note(f"page: {write_info_page(found, html)}")
    print_result(found if as_json else "\n".join(info_lines(found)), as_json=as_json)
