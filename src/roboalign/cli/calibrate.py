"""`roboalign calibrate`: from the arm's own movements to a calibration and a robot file."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import parse_pairs, print_note, print_result

__all__ = ["calibrate"]


def calibrate(
    port: Annotated[str, typer.Option("--port", help="Serial port of the arm; see: roboalign doctor")],
    arm: Annotated[str, typer.Option("--arm", help="Arm by name: so101, so100, koch, widowx ...")] = "so101",
    out: Annotated[Path, typer.Option("--out", help="Robot file to write.")] = Path("robot.toml"),
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="LeRobot's file to write.", show_default="ARM.json beside --out"),
    ] = None,
    take: Annotated[
        Path | None, typer.Option("--from", help="Take over this calibration file of LeRobot instead of sweeping.")
    ] = None,
    camera: Annotated[
        list[str] | None, typer.Option("--camera", help="NAME=DEVICE of a camera, for the robot file; can be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Sweep an arm by hand, check it, and write its calibration and robot.toml; the arm goes limp."""
    from roboalign.drivers.arm.models import find_arm
    from roboalign.drivers.setup import calibrate as procedure
    from roboalign.drivers.setup.dialogue import Terminal
    from roboalign.drivers.setup.machine import Machine, list_found_ports
    from roboalign.drivers.setup.servos import open_servos

    model = find_arm(arm)
    adapters = {
        name: found.serial for found in list_found_ports(Machine()) for name in (found.device, found.stable_name)
    }
    config = procedure.CalibrateConfig(
        model=model,
        port=port,
        calibration=calibration or out.with_name(f"{arm}.json"),
        robot_file=out,
        adapter_serial=adapters.get(port) or None,
        cameras=parse_pairs(camera or ()),
    )
    with open_servos(port, model.protocol, model.baud) as servos:
        if take is None:
            robot = procedure.calibrate(servos, config, Terminal(print_note))
        else:
            robot = procedure.import_calibration(servos, config, take, Terminal(print_note))
    print_result(out, as_json=as_json, robot=robot)
