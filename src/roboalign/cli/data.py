"""`roboalign data`: looking at data, checking it, and making more of it."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result, print_wrapped, require_file_target

__all__ = ["app", "check", "distill", "preview", "show", "sources"]

app = typer.Typer(no_args_is_help=True, help="Look at datasets and mixtures, and check them before training.")

Root = Annotated[
    Path | None,
    typer.Option("--root", help="Folder that relative paths of a mixture start from.", show_default="its own"),
]


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
    print_wrapped(f"looked at {looked} for: {', '.join(report.checks)}")
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
    source: Annotated[
        str, typer.Argument(help="Dataset folder, chat file (.jsonl, .parquet), mixture (.toml, .json), or: paper.")
    ],
    count: Annotated[int, typer.Option("--count", help="Samples to show.")] = 12,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="Model that reads them: writes the prompts, counts the tokens."),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option("--style", help="Reasoning: default, spatial, procedural, choice or recorded."),
    ] = None,
    as_text: Annotated[bool, typer.Option("--text", help="Print the samples instead of writing a page.")] = False,
    episode: Annotated[
        int | None, typer.Option("--episode", help="Write this episode of a dataset as a gif instead.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Page (or gif) to write.", show_default="runs/preview-....html")
    ] = None,
    root: Root = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of order and wording.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show what a model learns from a dataset or a mixture: pictures, prompts, and the replies that carry the loss."""
    if episode is not None:
        _preview_episode(Path(source), episode, out, as_json=as_json)
        return
    from roboalign.trainer.data.preview import preview_page, preview_samples, preview_text

    target = out or Path("runs") / f"preview-{Path(source).resolve().name}.html"
    if not as_text:
        require_file_target(target, ".html")
    found = preview_samples(source, count=count, checkpoint=checkpoint, style=style, root=root, seed=seed)
    if as_text:
        print_result(preview_text(found), as_json=as_json)
        return
    for note in found.notes:
        print_note(note)
    print_result(preview_page(found, target), as_json=as_json, notes=found.notes)


def _preview_episode(dataset: Path, episode: int, out: Path | None, *, as_json: bool) -> None:
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


@app.command("sources")
def sources(
    mixture: Annotated[str, typer.Argument(help="Mixture file (.toml or .json), or: paper.")],
    decode: Annotated[bool, typer.Option("--decode", help="Decode every picture of the chat files, too.")] = False,
    root: Root = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Look whether every source of a mixture is there, and say what to get; exit code 1 if one cannot be used."""
    from roboalign.trainer.data.check import check_sources, raise_if_failed, sources_table
    from roboalign.trainer.data.mixture import load_mixture

    reports = check_sources(load_mixture(mixture, root=root), decode=decode)
    print_result(sources_table(reports), as_json=as_json, sources=reports)
    raise_if_failed(reports)


@app.command("distill")
def distill(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of stage sft or align.")],
    data: Annotated[Path, typer.Option("--data", help="Dataset whose frames are asked about.")],
    out: Annotated[Path, typer.Option("--out", help="Chat file to write, .jsonl or .parquet.")],
    accept: Annotated[
        str,
        typer.Option(
            "--accept", help="Keep a thought by the action after it (action) or by the step it names (words)."
        ),
    ] = "action",
    samples: Annotated[int, typer.Option("--samples", help="Replies to each frame.")] = 4,
    max_error: Annotated[
        float, typer.Option("--max-error", help="Largest mean error of an action, in half ranges of the codec.")
    ] = 0.1,
    frames: Annotated[
        int | None, typer.Option("--frames", help="Frames to ask about, drawn at random.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of frames and sampling.")] = 0,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write thoughts of a trained model that led to something right as a chat file, for a mixture to read."""
    from roboalign.trainer.data.distill import DistillConfig
    from roboalign.trainer.data.distill import distill as run_distill

    require_file_target(out)
    config = DistillConfig(
        checkpoint=checkpoint,
        data=data,
        out=out,
        accept=accept,
        samples=samples,
        max_error=max_error,
        frames=frames,
        seed=seed,
        threads=threads,
    )
    report = run_distill(config)
    reasons = ", ".join(f"{name} {count}" for name, count in sorted(report.rejected.items())) or "none"
    print_note(f"kept {report.kept} of {report.asked} frames; replies rejected: {reasons}")
    print_result(report.path, as_json=as_json, report=report)
