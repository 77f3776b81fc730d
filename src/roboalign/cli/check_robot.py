"""`roboalign check-robot`: the public conformance check, on a robot by name."""

from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["check_robot"]


def check_robot(
    robot: Annotated[str, typer.Argument(help="Simulated arm: panda, so101, or sim (the panda).")] = "sim",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check that a robot keeps the promises of the Robot protocol; moves it in small steps."""
    from roboalign import drivers
    from roboalign.sdk.sim.robot import SimRobot

    report = drivers.check_robot(SimRobot(robot="panda" if robot == "sim" else robot))
    print_note(str(report))
    report.raise_if_failed()
    print_result("ok", as_json=as_json, report=report)
