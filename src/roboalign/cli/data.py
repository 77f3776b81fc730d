"""`roboalign data`: looking at datasets."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["app", "preview"]

app = typer.Typer(no_args_is_help=True, help="Look at datasets.")


@app.callback()
def _group() -> None:
    """Keeps `preview` a subcommand while it is the only one."""


@app.command("preview")
def preview(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder.")],
    episode: Annotated[int, typer.Option("--episode", help="Episode to show.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Gif to write.", show_default="runs/preview-....gif")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what a dataset holds, and write one episode as a gif."""
    from roboalign.sdk.data.preview import preview_dataset

    target = out or Path("runs") / f"preview-{dataset.resolve().name}-{episode}.gif"
    found = preview_dataset(dataset, episode=episode, out=target)
    families = ", ".join(f"{count} {family}" for family, count in sorted(found.families.items()))
    print_note(f"{found.num_episodes} episodes ({families}), {found.num_frames} frames, {found.num_images} pictures")
    print_note(f"episode {episode}: {found.task}")
    for sentence in found.sentences:
        print_note(f"  {sentence}")
    print_result(found.path, as_json=as_json, preview=found)
