"""`roboalign record`: steered episodes as a LeRobotDataset; of a simulated arm unless a robot is named."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result
from roboalign.cli.teleop import PILOT_HELP

__all__ = ["record"]


def record(
    out: Annotated[Path, typer.Option("--out", help="Folder of the dataset.")] = Path("runs/recorded"),
    task: Annotated[
        str, typer.Option("--task", help="Sentence of the episodes; a simulated scene has its own.")
    ] = "put the red block in the blue bowl",
    episodes: Annotated[int, typer.Option("--episodes", help="Episodes to have at the end.")] = 10,
    seconds: Annotated[float, typer.Option("--seconds", help="Longest episode.")] = 60.0,
    pilot: Annotated[str, typer.Option("--pilot", help=PILOT_HELP)] = "keyboard",
    robot: Annotated[Path | None, typer.Option("--robot", help="Robot file.", show_default="a simulated arm")] = None,
    leader: Annotated[Path | None, typer.Option("--leader", help="Robot file of the leader arm.")] = None,
    gamepad: Annotated[Path, typer.Option("--gamepad", help="Device of the gamepad.")] = Path("/dev/input/js0"),
    arm: Annotated[str, typer.Option("--arm", help="Simulated arm: so101 or panda.")] = "so101",
    scene: Annotated[str, typer.Option("--scene", help="Task whose scenes are simulated.")] = "place",
    state: Annotated[
        str, typer.Option("--state", help="measured, or commanded: where the tool was sent, for arms that are late.")
    ] = "measured",
    seed: Annotated[int, typer.Option("--seed", help="First simulated scene.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a real arm moves.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Record steered episodes as a LeRobotDataset v3.0; an interrupted recording goes on."""
    from roboalign.drivers.setup.dialogue import Terminal
    from roboalign.drivers.setup.pilots import KEY_HELP
    from roboalign.drivers.setup.station import StationConfig, make_pilot, record_at_station

    config = StationConfig(robot_file=robot, arm=arm, scene=scene, seed=seed, is_sure=yes)
    steering = make_pilot(pilot, leader=leader, gamepad=gamepad)
    print_note(KEY_HELP if pilot == "keyboard" else "Enter keep; x discard; Esc quit")
    report = record_at_station(
        config, steering, Terminal(print_note), out=out, task=task, episodes=episodes, seconds=seconds, state=state
    )
    if not report.is_complete:
        print_note(f"{report.kept} episodes are safe; the same command goes on with them")
    print_result(out, as_json=as_json, report=report)
