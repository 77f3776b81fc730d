"""`roboalign sysid`: how an arm really follows its commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roboalign.cli.output import print_note, print_result, print_wrapped

if TYPE_CHECKING:
    from roboalign.sdk.sim.robot import SimRobot
    from roboalign.sdk.sysid import Identification, Recording, SysidConfig

__all__ = ["sysid"]


def sysid(
    out: Annotated[Path, typer.Option("--out", help="Folder to write: result, recording, randomisation, report.")],
    robot: Annotated[Path | None, typer.Option("--robot", help="Robot file; moves a real arm.")] = None,
    hidden: Annotated[
        str | None,
        typer.Option("--hidden", help="Simulated arm with these dynamics: a drawn sample, a preset, or a file of one."),
    ] = None,
    hidden_seed: Annotated[
        int | None, typer.Option("--hidden-seed", help="Draws the hidden arm, when --hidden is a randomisation.")
    ] = None,
    arm: Annotated[str, typer.Option("--arm", help="Simulated arm: so101 or panda.")] = "so101",
    recording: Annotated[
        Path | None, typer.Option("--from", help="Fit this recording (file or folder) and move nothing.")
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", help="Randomisation of what is not identified, such as light and camera.")
    ] = "mild",
    seconds: Annotated[float, typer.Option("--seconds", help="How long the arm is moved.")] = 180.0,
    amplitude: Annotated[float, typer.Option("--amplitude", help="How far each joint goes, in rad.")] = 0.3,
    yes: Annotated[bool, typer.Option("--yes", help="With --robot: do not ask before it moves.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Find out an arm's delay, gain, top speed, play, dead band and noise by moving it safely, and write them down.

    The folder holds sysid.json, recording.json, randomization.toml (for --randomize) and report.html.
    """
    from roboalign.sdk.errors import ConfigError
    from roboalign.sdk.randomization import preset as find_preset
    from roboalign.sdk.sysid import Recording, SysidConfig, WiggleConfig, fit_recording, keep_recording, write_outputs

    if sum(item is not None for item in (robot, hidden, recording)) != 1:
        raise ConfigError("give exactly one of --robot FILE, --hidden FILE and --from RECORDING")
    find_preset(preset)
    config = SysidConfig(wiggle=WiggleConfig(duration_s=seconds, amplitude_rad=amplitude))
    if recording is not None:
        loaded = Recording.load(recording)
        keep_recording(out, loaded)
        found = fit_recording(loaded, progress=print_note)
    elif robot is not None:
        found = _on_robot(robot, config, out, is_sure=yes)
    else:
        found = _on_hidden(str(hidden), hidden_seed, arm, config, out)
    write_outputs(out, found, base=preset)
    for line in _lines(found):
        print_wrapped(line)
    print_result(out, as_json=as_json, sysid=found.result.to_json())


def _on_hidden(hidden: str, seed: int | None, arm: str, config: "SysidConfig", out: Path) -> "Identification":
    from roboalign.sdk.randomization import read_hidden
    from roboalign.sdk.sim.robot import SimRobot

    domain = read_hidden(hidden, seed)
    simulated = SimRobot(robot=arm)
    simulated.load_empty(domain)
    return _on_simulated(simulated, config, out)


def _on_simulated(robot: "SimRobot", config: "SysidConfig", out: Path) -> "Identification":
    """Identifies an arm whose time passes by itself, and closes it."""
    from roboalign.sdk.sysid import identify

    try:
        return identify(robot, config, progress=print_note, keep=lambda kept: _keep(out, kept))
    finally:
        robot.disconnect()


def _on_robot(robot: Path, config: "SysidConfig", out: Path, *, is_sure: bool) -> "Identification":
    from roboalign import drivers
    from roboalign.drivers.setup.dialogue import Terminal
    from roboalign.drivers.setup.run import ask_before_moving, in_use
    from roboalign.sdk.control.clock import MonotonicClock
    from roboalign.sdk.sim.robot import SimRobot
    from roboalign.sdk.sysid import identify, plan_for

    loaded, dialogue = drivers.load_robot(robot), Terminal(print_note)
    plan_for(loaded, config)
    if isinstance(loaded, SimRobot):  # without a question: nothing can be hurt
        loaded.connect()
        return _on_simulated(loaded, config, out)
    ask_before_moving(loaded.spec, dialogue, is_sure=is_sure)
    with in_use(loaded, dialogue):
        return identify(loaded, config, clock=MonotonicClock(), progress=print_note, keep=lambda kept: _keep(out, kept))


def _keep(out: Path, recording: "Recording") -> None:
    from roboalign.sdk.sysid import keep_recording

    path = keep_recording(out, recording)
    print_note(f"recorded {len(recording.sent_s)} targets and readings in {path}")
    if recording.end != "complete":
        print_note(f"it ended early ({recording.end}); fit what there is: roboalign sysid --from {path} --out FOLDER")


def _lines(found: "Identification") -> list[str]:
    """Returns a line a joint for a person."""
    import math

    result = found.result
    lines = []
    for index, name in enumerate(result.joint_names):
        picked = {key: many[index] for key, many in result.joints.items()}
        parts = [
            f"delay {picked['delay_ms'].value:.1f} ms",
            f"gain {picked['gain'].value:.2f}",
            f"top speed {picked['speed_scale'].value:.3f}",
            f"play {math.degrees(picked['play_rad'].value):.3f} deg",
            f"dead band {math.degrees(picked['dead_band_rad'].value):.3f} deg",
            f"noise {math.degrees(picked['noise_std_rad'].value):.3f} deg",
            f"residual {result.residual_deg[index]:.3f} deg, {result.residual_ms[index]:.2f} ms",
        ]
        unsure = [key for key, item in picked.items() if not item.is_identified]
        lines.append(f"{name}: {', '.join(parts)}" + (f"; not told by the data: {', '.join(unsure)}" if unsure else ""))
    return lines
