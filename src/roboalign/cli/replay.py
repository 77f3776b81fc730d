"""`roboalign replay`: a trace of `roboalign run` played again in simulation, and compared."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["replay"]


def replay(
    trace: Annotated[Path, typer.Argument(help="Trace that 'roboalign run --trace' wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Send the requests of a trace through limiter and kinematics again; fails where anything else comes out."""
    from roboalign.sdk.control.replay import replay as play
    from roboalign.sdk.errors import CheckFailed

    found = play(trace)
    for line in found.differences:
        print_note(line)
    print_result(f"{found.equal} of {found.ticks} periods are equal bit by bit", as_json=as_json, replay=found)
    if not found.is_equal:
        raise CheckFailed(
            f"{found.ticks - found.equal} of {found.ticks} periods differ, by up to {found.max_action_error:.3g} in an "
            f"action and {found.max_target_error_rad:.3g} rad in a joint"
        )
