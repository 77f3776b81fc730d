"""`roboalign sim-bus`: a virtual arm behind a serial port."""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["sim_bus"]


def sim_bus(
    link: Annotated[Path, typer.Option("--link", help="Name of the port to make, a link to a pseudo-terminal.")],
    robot: Annotated[str, typer.Option("--robot", help="Arm: so101, so100, koch, widowx, ...")] = "so101",
    proto: Annotated[
        str | None,
        typer.Option("--proto", help="Servos: feetech or dynamixel.", show_default="the arm's own"),
    ] = None,
    lockstep: Annotated[
        bool,
        typer.Option("--lockstep/--real-time", help="Time passes by sync reads of the position, or by the clock."),
    ] = False,
    rate_hz: Annotated[float, typer.Option("--rate-hz", help="Lockstep: control steps per second.")] = 50.0,
    faults: Annotated[Path | None, typer.Option("--faults", help="What goes wrong: a .toml or .json file.")] = None,
    baud_time: Annotated[bool, typer.Option("--baud-time", help="Bytes take their time on the wire.")] = False,
    physics: Annotated[
        bool, typer.Option("--physics/--no-physics", help="Gravity, contacts and pictures, by PyBullet.")
    ] = True,
    task: Annotated[str | None, typer.Option("--task", help="Put the scene of a task on the table.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the scene.")] = 0,
    hidden: Annotated[
        str | None, typer.Option("--hidden", help="Hidden dynamics: a drawn sample, a preset, or a file of one.")
    ] = None,
    hidden_seed: Annotated[
        int | None, typer.Option("--hidden-seed", help="Draws them, when --hidden is a randomisation.")
    ] = None,
    horn_seed: Annotated[
        int | None, typer.Option("--horn-seed", help="Mount the horns at random, as before a calibration.")
    ] = None,
    log: Annotated[Path | None, typer.Option("--log", help="File that gets every packet.")] = None,
    until_eof: Annotated[bool, typer.Option("--until-eof", help="Stop when standard input is closed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the port as JSON.")] = False,
) -> None:
    """Serve a virtual arm on a serial port until Ctrl-C; it prints the port when it is ready.

    LINK.ctl is its control socket: faults, true state, pictures (docs/virtual-arm.md).
    """
    from roboalign.drivers.virtual.config import VirtualBusConfig, build_line
    from roboalign.drivers.virtual.server import VirtualBusServer

    config = VirtualBusConfig(
        robot=robot,
        protocol=proto,
        is_lockstep=lockstep,
        rate_hz=rate_hz,
        has_byte_time=baud_time,
        has_physics=physics,
        faults=faults,
        task=task,
        seed=seed,
        hidden=hidden,
        hidden_seed=hidden_seed,
        horn_seed=horn_seed,
    )
    # SIGINT too: a shell makes a background job ignore it, and then nothing but a kill would stop the server.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with VirtualBusServer(build_line(config), link, log=log) as server:
            if until_eof:
                server.watch(sys.stdin.fileno())
            print_result(link, as_json=as_json, port=server.port_name, robot=robot, protocol=config.chosen_protocol)
            sys.stdout.flush()
            time_of = "lockstep" if lockstep else "real time"
            print_note(
                f"{robot} with {config.chosen_protocol} servos in {time_of} at {server.port_name}; Ctrl-C stops it"
            )
            server.serve()
    except KeyboardInterrupt:
        print_note("stopped")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
