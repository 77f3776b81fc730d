"""`roboalign doctor`: what keeps a robot, or a policy on it, from working, and what to do about it."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["doctor"]


def doctor(
    what: Annotated[
        Path | None,
        typer.Argument(
            metavar="[ROBOT|BUNDLE]",
            help="Robot file (robot.toml), or a bundle: its folder, or nano-so101; none looks at this machine only.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[str | None, typer.Option("--port", help="Serial port to look at, instead of the file's.")] = None,
    arm: Annotated[str | None, typer.Option("--arm", help="Arm behind the port: so101, koch ...")] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Folder for one picture of each camera, to see which is which.")
    ] = None,
    robot: Annotated[
        str | None,
        typer.Option("--robot", help="Of a bundle: robot file, which MOVES it, or sim.", show_default="none"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --robot: do not ask before it moves.")] = False,
    task: Annotated[
        str | None,
        typer.Option("--task", help="Of a bundle: a sentence that fits the scene.", show_default="the bundle's"),
    ] = None,
    backend: Annotated[str, typer.Option("--backend", help="Of a bundle: what should run it.")] = "auto",
    traces: Annotated[Path, typer.Option("--traces", help="Of a bundle: folder for traces.")] = Path("runs"),
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Of a bundle: how its pair looks in order.", show_default="beside the bundle"),
    ] = None,
    make_reference: Annotated[
        Path | None,
        typer.Option("--make-reference", help="Of a bundle that works: reference to write (json)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Look at ports, servos and cameras, or at a policy and what it moves; every failed check says what to do.

    Of a robot file it moves nothing. A bundle with --robot asks before it moves the arm by a few centimetres.
    """
    from roboalign.drivers.setup.checks import DoctorReport
    from roboalign.sdk.errors import ConfigError

    is_bundle = what is not None and (robot is not None or what.suffix not in (".toml", ".json"))
    of_bundle: dict[str, object] = {"--robot": robot, "--task": task, "--yes": yes or None}
    of_bundle |= {"--reference": reference, "--make-reference": make_reference}
    of_bundle |= {"--backend": None if backend == "auto" else backend}
    of_bundle |= {"--traces": None if traces == Path("runs") else traces}
    of_robot: dict[str, object] = {"--port": port, "--arm": arm, "--pictures": pictures}
    odd = [name for name, value in (of_robot if is_bundle else of_bundle).items() if value is not None]
    if odd:
        raise ConfigError(f"{', '.join(odd)} is of {'a robot file' if is_bundle else 'a bundle'}, and this is none")
    report: DoctorReport
    if is_bundle:
        from roboalign.drivers.pair.examine import PairConfig, examine_pair
        from roboalign.drivers.setup.dialogue import Terminal

        assert what is not None
        config = PairConfig(
            bundle=what,
            robot=robot,
            task=task,
            backend=backend,
            traces=traces,
            reference=reference,
            make_reference=make_reference,
            is_sure=yes,
        )
        report = examine_pair(config, Terminal(print_note))
    else:
        from roboalign.drivers.doctor import examine

        report = examine(what, port=port, arm=arm, pictures=pictures)
    if as_json:
        print_result(report.is_ok, as_json=True, checks=report.checks)
    elif is_bundle:
        print(report.wrapped())
    else:
        print(report)
    report.raise_if_failed()
    print_note("nothing keeps it from working" if what or port else "the machine is ready; name a --port to go on")
