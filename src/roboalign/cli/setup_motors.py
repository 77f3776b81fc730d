"""`roboalign setup-motors`: ids for the servos of a new arm."""

from typing import Annotated

import typer

from roboalign.cli.output import parse_names, print_note, print_result

__all__ = ["setup_motors"]


def setup_motors(
    port: Annotated[str, typer.Option("--port", help="Serial port of the servo board; see: roboalign doctor")],
    arm: Annotated[str, typer.Option("--arm", help="What the servos become: so101, so100, koch, widowx ...")] = "so101",
    only: Annotated[
        str | None, typer.Option("--only", help="Motors by name, separated by commas.", show_default="all")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Give each servo its id and rate, one connected at a time; can be repeated."""
    from roboalign.drivers.arm.models import find_arm
    from roboalign.drivers.setup import motors
    from roboalign.drivers.setup.dialogue import Terminal
    from roboalign.drivers.setup.servos import open_servos

    model = find_arm(arm)
    with open_servos(port, model.protocol, model.baud) as servos:
        done = motors.setup_motors(servos, model, Terminal(print_note), only=parse_names(only) if only else ())
    print_result(f"{len(done)} motors of {arm} have their ids", as_json=as_json, motors=done)
