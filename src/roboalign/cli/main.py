"""The edge of the command line: which verbs there are, and what an error looks like.

Exit codes: 0 done; 1 a check ran and failed; 2 wrong usage or input; 70 a bug in roboalign (its traceback is printed);
130 interrupted; 141 whoever read our output went away.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from roboalign import __version__
from roboalign.cli import (
    bench,
    build,
    calibrate,
    check_robot,
    collect,
    compare,
    data,
    demo,
    doctor,
    evaluate,
    export,
    gap,
    info,
    libero,
    probe,
    record,
    replay,
    reproduce,
    run,
    serve,
    setup_motors,
    sim_bus,
    sysid,
    tasks,
    teleop,
    train,
    verify,
)

__all__ = ["app", "main"]

EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

EXTRA_OF = {
    "pybullet": "sim",
    "gymnasium": "sim",
    "onnxruntime": "cpu",
    "pyarrow": "data",
    "av": "data",
    "torch": "train",
    "transformers": "train",
    "trl": "train",
    "datasets": "train",
    "peft": "train",
    "accelerate": "train",
    "matplotlib": "train",
    "onnx": "export",
    "onnxscript": "export",
    "serial": "serial",
    "cv2": "camera",
}
"""The extra that brings an optional package, for a room that was imported without it."""

LEARN, SHIP, RUN, ROBOT = "Learn", "Ship", "Run", "Robot"

app = typer.Typer(
    name="roboalign",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a vision-language model to a robot that reasons before it acts.",
    epilog="Result paths go to stdout, progress to stderr. Exit codes: 0 done, 1 a check failed, 2 usage or input.",
)
app.command("collect", rich_help_panel=LEARN)(collect.collect)
app.add_typer(data.app, name="data", rich_help_panel=LEARN)
app.add_typer(libero.app, name="libero", rich_help_panel=LEARN)
app.add_typer(train.app, name="train", rich_help_panel=LEARN)
app.command("probe", rich_help_panel=LEARN)(probe.probe)
app.command("export", rich_help_panel=SHIP)(export.export)
app.command("build", rich_help_panel=SHIP)(build.build)
app.command("info", rich_help_panel=SHIP)(info.info)
app.command("verify", rich_help_panel=SHIP)(verify.verify)
app.command("run", rich_help_panel=RUN)(run.run)
app.command("replay", rich_help_panel=RUN)(replay.replay)
app.command("eval", rich_help_panel=RUN)(evaluate.evaluate)
app.command("tasks", rich_help_panel=RUN)(tasks.tasks)
app.command("compare", rich_help_panel=RUN)(compare.compare)
app.command("gap", rich_help_panel=RUN)(gap.gap)
app.add_typer(bench.app, name="bench", rich_help_panel=RUN)
app.command("serve", rich_help_panel=RUN)(serve.serve)
app.command("demo", rich_help_panel=RUN)(demo.demo)
app.command("reproduce", rich_help_panel=RUN)(reproduce.reproduce)
app.command("doctor", rich_help_panel=ROBOT)(doctor.doctor)
app.command("setup-motors", rich_help_panel=ROBOT)(setup_motors.setup_motors)
app.command("calibrate", rich_help_panel=ROBOT)(calibrate.calibrate)
app.command("teleop", rich_help_panel=ROBOT)(teleop.teleop)
app.command("record", rich_help_panel=ROBOT)(record.record)
app.command("check-robot", rich_help_panel=ROBOT)(check_robot.check_robot)
app.command("sysid", rich_help_panel=ROBOT)(sysid.sysid)
app.command("sim-bus", rich_help_panel=ROBOT)(sim_bus.sim_bus)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"roboalign {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every verb; `--debug` is read in `main`, before the verbs see it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; `argv` leaves out the program's name."""
    args = list(sys.argv[1:] if argv is None else argv)
    is_debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        code = _invoke(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would raise again when the interpreter flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:  # the edge: what users see is one line
        if is_debug:
            raise
        return _explain(error)
    if code == EXIT_INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code


def _invoke(args: list[str]) -> int:
    try:
        code = app(args, standalone_mode=False, prog_name="roboalign")
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None
        raise
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    """Prints one line about an error that the user can mend, the traceback of any other; returns the exit code."""
    from roboalign.sdk.errors import CheckFailed, RoboalignError, missing_extra

    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in EXTRA_OF:
            error = missing_extra(package, EXTRA_OF[package], "this command")
    if isinstance(error, typer.TyperException):
        return _explain_usage(error)
    if isinstance(error, RoboalignError):
        _print_error(str(error))
        return EXIT_CHECK_FAILED if isinstance(error, CheckFailed) else EXIT_USAGE
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        if isinstance(error, FileExistsError | NotADirectoryError):
            _print_error(f"{where}there is a file where a folder is expected; choose another place")
            return EXIT_USAGE
        _print_error(f"{where}{error.strerror or error}")
        return EXIT_USAGE
    import traceback

    traceback.print_exception(error)
    _print_error("this is a bug in roboalign; please report the lines above")
    return EXIT_BUG


def _explain_usage(error: typer.TyperException) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(str(error), file=sys.stderr)
        return EXIT_USAGE
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "roboalign"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    end = "" if message.endswith(("?", ".", "!")) else "."
    _print_error(f"{message}{end} See: {path} --help")
    return EXIT_USAGE


def _print_error(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
