"""`roboalign replay`: a trace of `roboalign run` played again in simulation, and compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roboalign.cli.output import print_note, print_result, require_file_target

if TYPE_CHECKING:
    from roboalign.sdk.control.open_loop import OpenLoop

__all__ = ["replay"]


def replay(
    trace: Annotated[Path, typer.Argument(help="Trace that 'roboalign run --trace' wrote.")],
    open_loop: Annotated[
        bool,
        typer.Option("--open-loop", help="Of a robot: send its joint targets to a simulated arm and compare joints."),
    ] = False,
    randomize: Annotated[
        str | None,
        typer.Option(
            "--randomize", help="Open loop: preset or file, the middle of each range.", show_default="as simulated"
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Open loop: page with plots to write (html).", show_default="none")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Play a trace again and compare: limiter and kinematics bit by bit, or joints.

    Without --open-loop it fails where anything else is sent than then.
    """
    if open_loop:
        _play_open_loop(trace, randomize or "off", report, as_json=as_json)
        return
    from roboalign.sdk.control.replay import replay as play
    from roboalign.sdk.errors import CheckFailed, ConfigError

    if randomize is not None or report is not None:
        raise ConfigError("--randomize and --report are of a trace that is played open loop; add --open-loop")
    found = play(trace)
    for line in found.differences:
        print_note(line)
    print_result(f"{found.equal} of {found.ticks} periods are equal bit by bit", as_json=as_json, replay=found)
    if not found.is_equal:
        raise CheckFailed(
            f"{found.ticks - found.equal} of {found.ticks} periods differ, by up to {found.max_action_error:.3g} in an "
            f"action and {found.max_target_error_rad:.3g} rad in a joint"
        )


def _play_open_loop(trace: Path, randomize: str, report: Path | None, *, as_json: bool) -> None:
    from roboalign.sdk.control.open_loop import open_loop
    from roboalign.sdk.control.open_loop_page import write_open_loop_page

    if report is not None:
        require_file_target(report)
    found, curves = open_loop(trace, randomization=randomize)
    _print(found)
    result: object = f"RMS {found.rms_deg:.2f} deg, lag {_lag(found.lag_ms)}"
    if report is not None:
        result = write_open_loop_page(report, found, curves, source=trace)
    print_result(result, as_json=as_json, open_loop=found)


def _print(found: "OpenLoop") -> None:
    print_note(f"{found.readings} readings in {found.duration_s:.1f} s on the simulated {found.robot}, {found.domain}")
    print_note(f"{'measured minus simulated':<26}{'RMS deg':>9}{'max deg':>9}{'lag':>12}{'RMS after':>11}")
    for joint in found.joints:
        after = "-" if joint.rms_after_lag_deg is None else f"{joint.rms_after_lag_deg:.2f}"
        print_note(f"{joint.name:<26}{joint.rms_deg:9.2f}{joint.max_deg:9.2f}{_lag(joint.lag_ms):>12}{after:>11}")


def _lag(lag_ms: float | None) -> str:
    return "not moved" if lag_ms is None else f"{lag_ms:.0f} ms"
