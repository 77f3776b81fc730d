"""`roboalign libero`: the outside benchmark, installed by one command, and demonstrations made in it."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import parse_names, print_note, print_result

__all__ = ["app", "collect", "replay", "setup", "tasks"]

app = typer.Typer(no_args_is_help=True, help="LIBERO and LIBERO-PRO: set up, record demonstrations, replay them.")

_FOLDER_HELP = "Folder of the benchmark."
_FOLDER_DEFAULT = "ROBOALIGN_LIBERO or runs/libero"


@app.command("setup")
def setup(
    folder: Annotated[Path | None, typer.Option("--folder", help=_FOLDER_HELP, show_default=_FOLDER_DEFAULT)] = None,
    python: Annotated[
        str | None, typer.Option("--python", help="Python 3.11 or 3.10.", show_default="python3.11, python3.10")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Install the benchmark in an environment of its own (2 GB) and check that it draws; again, it does nothing."""
    from rich.console import Console
    from rich.markup import escape

    from roboalign.sdk.libero.setup import set_up

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("LIBERO") as status:
            found = set_up(folder, python=python, say=lambda line: status.update(escape(line[: console.width - 4])))
    else:
        found = set_up(folder, python=python, say=print_note)
    print_result(found.folder, as_json=as_json, renderer=found.renderer, versions=dict(found.versions))


@app.command("tasks")
def tasks(
    suite: Annotated[str, typer.Option("--suite", help="One of the suites.")] = "libero_object",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """List the tasks of a suite; needs no benchmark."""
    from roboalign.sdk.libero import LIBERO_SUITES, task_ids

    names = task_ids(suite)
    print_result("\n".join(names), as_json=as_json, tasks=names, suites=tuple(LIBERO_SUITES))


@app.command("collect")
def collect(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the dataset.", show_default="runs/demos-SUITE")
    ] = None,
    suite: Annotated[
        str, typer.Option("--suite", help="libero_object, libero_spatial or a variant.")
    ] = "libero_object",
    chosen: Annotated[
        str | None, typer.Option("--tasks", help="Numbers or names, separated by commas.", show_default="all ten")
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", help="Successful episodes of each task.")] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Chooses a block of scenes, 0 to 99.")] = 0,
    image_every: Annotated[
        int, typer.Option("--image-every", help="Draw every so many frames; 0 records states only.")
    ] = 1,
    cameras: Annotated[str, typer.Option("--cameras", help="front, or front,wrist.")] = "front,wrist",
    image_size: Annotated[int, typer.Option("--image-size", help="Pixels a side.")] = 96,
    is_video: Annotated[bool, typer.Option("--video", help="Store pictures as video.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Record demonstrations of the scripted expert as a LeRobotDataset v3.0; an interrupted recording goes on."""
    from roboalign.sdk.libero.demonstrations import LiberoCollectConfig, collect_libero

    config = LiberoCollectConfig(
        out=out or Path("runs") / f"demos-{suite}",
        suite=suite,
        tasks=() if chosen is None else parse_names(chosen),
        episodes=episodes,
        seed=seed,
        image_every=image_every,
        image_size_px=image_size,
        cameras=parse_names(cameras),
        is_video=is_video,
    )
    print_result(collect_libero(config), as_json=as_json, config=config.settings())


@app.command("replay")
def replay(
    dataset: Annotated[Path, typer.Argument(help="Dataset of 'roboalign libero collect'.")],
    every: Annotated[int, typer.Option("--every", min=1, help="Play every so many episodes.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Apply the recorded actions again; exit code 1 when fewer than 95 % of the episodes are solved again."""
    from roboalign.sdk.libero.replay import replay_dataset

    report = replay_dataset(dataset, every=every)
    print_result(str(report), as_json=as_json, report=report, share=report.share)
    report.raise_if_failed()
