"""`roboalign check-robot`: the public conformance check, on a robot by name."""

from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["check_robot"]


def check_robot(
    robot: Annotated[str, typer.Argument(help="Robot by name; today only the simulated arm: sim.")] = "sim",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check that a robot keeps the promises of the Robot protocol; moves it in small steps."""
    from roboalign import drivers
    from roboalign.sdk.errors import ConfigError
    from roboalign.sdk.sim.robot import SimRobot

    if robot != "sim":
        raise ConfigError(f"there is no robot {robot!r}; choose one of sim")
    report = drivers.check_robot(SimRobot())
    print_note(str(report))
    report.raise_if_failed()
    print_result("ok", as_json=as_json, report=report)
