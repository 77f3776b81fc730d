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
    families: Annotated[
        str, typer.Option("--families", help="Task families, taken in turn, separated by commas.")
    ] = "place,push,stack",
    mode: Annotated[
        str, typer.Option("--mode", help="demonstrations, or scenes (random moments, for pictures and questions).")
    ] = "demonstrations",
    workers: Annotated[int, typer.Option("--workers", help="Processes; does not change the data.")] = 2,
    seed: Annotated[int, typer.Option("--seed", help="Chooses a block of scenes, 0 to 99.")] = 0,
    image_every: Annotated[
        int, typer.Option("--image-every", help="Demonstrations: store a picture every so many frames.")
    ] = 2,
    split: Annotated[str, typer.Option("--split", help="Sentences: train or heldout.")] = "train",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Record expert demonstrations as a LeRobotDataset v3.0; an interrupted recording goes on."""
    from roboalign.sdk.data import CollectConfig
    from roboalign.sdk.data import collect as record

    config = CollectConfig(
        out=out or Path("runs") / f"collect-{mode}",
        episodes=episodes,
        families=parse_names(families),
        mode=mode,
        workers=workers,
        seed=seed,
        image_every=image_every,
        split=split,
    )
    print_result(record(config), as_json=as_json, config=config.settings())
