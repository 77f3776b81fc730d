"""`roboalign collect`: demonstrations of the scripted expert, as a LeRobotDataset."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import parse_names, print_result

__all__ = ["collect"]


def collect(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the dataset.", show_default="runs/collect-MODE")
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", help="Episodes to keep.")] = 300,
    tasks: Annotated[
        str, typer.Option("--tasks", help="Tasks, taken in turn, separated by commas.")
    ] = "place,push,stack",
    suite: Annotated[
        str | None, typer.Option("--suite", help="All tasks of a suite, in turn, on its robot; instead of --tasks.")
    ] = None,
    robot: Annotated[str, typer.Option("--robot", help="Arm by name.")] = "panda",
    split: Annotated[str, typer.Option("--split", help="Scenes and sentences: train, or a held-out split.")] = "train",
    randomize: Annotated[
        str, typer.Option("--randomize", help="Domain randomisation: off, mild, strong, or a file.")
    ] = "off",
    state: Annotated[
        str, typer.Option("--state", help="measured, or commanded: where the tool was sent, for arms that are late.")
    ] = "measured",
    mode: Annotated[
        str, typer.Option("--mode", help="demonstrations, or scenes (random moments, for pictures and questions).")
    ] = "demonstrations",
    workers: Annotated[int, typer.Option("--workers", help="Processes; does not change the data.")] = 2,
    seed: Annotated[int, typer.Option("--seed", help="Chooses a block of scenes, 0 to 99.")] = 0,
    image_every: Annotated[
        int | None,
        typer.Option("--image-every", help="Demonstrations: store a picture every so many frames.", show_default="2"),
    ] = None,
    video: Annotated[bool, typer.Option("--video", help="Store pictures as video, one at every frame.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Record expert demonstrations as a LeRobotDataset v3.0; an interrupted recording goes on."""
    from roboalign.sdk.data import CollectConfig
    from roboalign.sdk.data import collect as record

    config = CollectConfig(
        out=out or Path("runs") / f"collect-{mode}",
        episodes=episodes,
        tasks=parse_names(tasks),
        suite=suite,
        robot=robot,
        split=split,
        randomization=randomize,
        state=state,
        mode=mode,
        workers=workers,
        seed=seed,
        image_every=(1 if video else 2) if image_every is None else image_every,
        is_video=video,
    )
    print_result(record(config), as_json=as_json, config=config.resolved().settings())
