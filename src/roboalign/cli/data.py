"""`roboalign data`: looking at datasets, and checking them."""

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result, require_file_target

__all__ = ["app", "check", "preview", "show"]

app = typer.Typer(no_args_is_help=True, help="Look at datasets, and check them before training.")


@app.command("check")
def check(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder (LeRobotDataset v3.0 or v2.1).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Look for what a policy must not learn: gaps, frozen or swapped cameras, degrees, ...; exit code 1 if found."""
    from roboalign.sdk.data.check import check_dataset

    report = check_dataset(dataset, show_progress=True)
    looked = f"{report.num_episodes} episodes, {report.num_frames} frames, {report.num_images} pictures"
    if report.findings:
        print_result(str(report), as_json=as_json, report=report)
    else:
        print_result("ok", as_json=as_json, report=report)
    print_note(textwrap.fill(f"looked at {looked} for: {', '.join(report.checks)}", 80, subsequent_indent="  "))
    report.raise_if_failed()


@app.command("show")
def show(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder (LeRobotDataset v3.0 or v2.1).")],
    out: Annotated[Path | None, typer.Option("--out", help="Page to write.", show_default="runs/show-....html")] = None,
    episodes: Annotated[int, typer.Option("--episodes", help="Episodes to show, spread over the dataset.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write one HTML page: what a dataset holds, pictures of its episodes, plots of states, joints and actions."""
    from roboalign.sdk.data.show import show_dataset

    target = out or Path("runs") / f"show-{dataset.resolve().name}.html"
    require_file_target(target)
    print_result(show_dataset(dataset, out=target, episodes=episodes), as_json=as_json)


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
    require_file_target(target, ".gif")
    found = preview_dataset(dataset, episode=episode, out=target)
    families = ", ".join(f"{count} {family}" for family, count in sorted(found.families.items()))
    print_note(f"{found.num_episodes} episodes ({families}), {found.num_frames} frames, {found.num_images} pictures")
    print_note(f"episode {episode}: {found.task}")
    for sentence in found.sentences:
        print_note(f"  {sentence}")
    print_result(found.path, as_json=as_json, preview=found)
