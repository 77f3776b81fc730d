"""`roboalign doctor`: what keeps a robot from working, and what to do about it."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["doctor"]


def doctor(
    robot: Annotated[
        Path | None, typer.Argument(help="Robot file (robot.toml); none looks at this machine only.")
    ] = None,
    port: Annotated[str | None, typer.Option("--port", help="Serial port to look at, instead of the file's.")] = None,
    arm: Annotated[str | None, typer.Option("--arm", help="Arm behind the port: so101, koch ...")] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Folder for one picture of each camera, to see which is which.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Look at ports, rights, servos, supply and cameras; every failed check says what to do. Moves nothing."""
    from roboalign.drivers.doctor import examine

    report = examine(robot, port=port, arm=arm, pictures=pictures)
    if as_json:
        print_result(report.is_ok, as_json=True, checks=report.checks)
    else:
        print(report)
    report.raise_if_failed()
    print_note("nothing keeps it from working" if robot or port else "the machine is ready; name a --port to go on")
