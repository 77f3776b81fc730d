"""`roboalign check-robot`: the public conformance check, on a simulated arm by name or on a robot file's."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["check_robot"]


def check_robot(
    arm: Annotated[str, typer.Argument(help="Simulated arm: panda, so101, or sim (the panda).")] = "sim",
    robot: Annotated[
        Path | None, typer.Option("--robot", help="Robot file; moves a real arm.", show_default="simulation")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --robot: do not ask before it moves.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check that a robot keeps the promises of the Robot protocol; moves it in small steps."""
    from roboalign import drivers
    from roboalign.sdk.errors import ConfigError
    from roboalign.sdk.sim.robot import SimRobot

    if robot is not None and arm != "sim":
        raise ConfigError(f"give a simulated arm or --robot, not both: found {arm} and {robot}")
    if robot is None:
        report = drivers.check_robot(SimRobot(robot="panda" if arm == "sim" else arm))
    else:
        from roboalign.drivers.setup.dialogue import Terminal
        from roboalign.drivers.setup.run import ask_before_moving, interrupted_once

        loaded, dialogue = drivers.load_robot(robot), Terminal(print_note)
        ask_before_moving(loaded.spec, dialogue, is_sure=yes or isinstance(loaded, SimRobot))
        with interrupted_once(dialogue):
            report = drivers.check_robot(loaded)
    print_note(str(report))
    report.raise_if_failed()
    print_result("ok", as_json=as_json, report=report)
