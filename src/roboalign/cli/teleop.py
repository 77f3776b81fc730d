"""`roboalign teleop`: steer an arm by keyboard, gamepad or a leader arm; a simulated one unless a robot is named."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["PILOT_HELP", "teleop"]

PILOT_HELP = "Who steers: keyboard, gamepad or leader."


def teleop(
    pilot: Annotated[str, typer.Option("--pilot", help=PILOT_HELP)] = "keyboard",
    robot: Annotated[Path | None, typer.Option("--robot", help="Robot file.", show_default="a simulated arm")] = None,
    leader: Annotated[Path | None, typer.Option("--leader", help="Robot file of the leader arm.")] = None,
    gamepad: Annotated[Path, typer.Option("--gamepad", help="Device of the gamepad.")] = Path("/dev/input/js0"),
    arm: Annotated[str, typer.Option("--arm", help="Simulated arm: so101 or panda.")] = "so101",
    scene: Annotated[str, typer.Option("--scene", help="Task whose scene is simulated.")] = "place",
    seed: Annotated[int, typer.Option("--seed", help="Chooses the simulated scene.")] = 0,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Stop after so long.")] = None,
    view: Annotated[bool, typer.Option("--view/--no-view", help="Draw the camera in the terminal.")] = True,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a real arm moves.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Steer an arm; it parks at the end, also after Ctrl-C."""
    from roboalign.drivers.setup.dialogue import Terminal
    from roboalign.drivers.setup.pilots import KEY_HELP
    from roboalign.drivers.setup.station import StationConfig, make_pilot, steer_at_station

    config = StationConfig(robot_file=robot, arm=arm, scene=scene, seed=seed, is_sure=yes)
    steering = make_pilot(pilot, leader=leader, gamepad=gamepad)
    if pilot == "keyboard":
        print_note(KEY_HELP)
    report = steer_at_station(
        config,
        steering,
        Terminal(print_note),
        seconds=seconds,
        view=print_note if view and sys.stderr.isatty() else None,
    )
    print_result(f"{report.ticks} actions at {report.rate_hz:.1f} Hz", as_json=as_json, report=report)
