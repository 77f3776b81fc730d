"""`roboalign train`: the four stages, each from a recipe, a dataset and (after the first) the checkpoint before it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_result

__all__ = ["act", "align", "app", "base", "head", "sft"]

app = typer.Typer(
    no_args_is_help=True,
    help="Train a stage: base, sft, align, head; or a baseline: act. "
    "An interrupted stage goes on when the same command is given again.",
)

Data = Annotated[Path, typer.Option("--data", help="Dataset folder, from roboalign collect.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Checkpoint folder to write.", show_default="runs/STAGE-RECIPE")
]
RecipeName = Annotated[str, typer.Option("--recipe", help="Settings by name: nano, nano-demo or nano-debug.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is drawn.")]
Threads = Annotated[int, typer.Option("--threads", help="CPU threads.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("base")
def base(
    data: Data,
    out: Out = None,
    recipe: RecipeName = "nano",
    seed: Seed = 0,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Grounding: a nano model learns to answer questions about what it sees."""
    from roboalign.trainer.base import train_base
    from roboalign.trainer.recipes import recipe as find_recipe

    config = find_recipe(recipe).base_config(
        data=data, out=out or _default_out("base", recipe), threads=threads, seed=seed
    )
    _finish(train_base(config), as_json=as_json)


@app.command("sft")
def sft(
    data: Data,
    parent: Annotated[
        Path | None, typer.Argument(metavar="BASE", help="Checkpoint of stage base.", show_default="the shipped base")
    ] = None,
    out: Out = None,
    recipe: RecipeName = "nano",
    pairing: Annotated[
        str | None,
        typer.Option(
            "--pairing",
            help="zero-shot (the paper: thoughts and actions apart) or paired.",
            show_default="the recipe's",
        ),
    ] = None,
    seed: Seed = 0,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Supervised fine-tuning: reason in words, and answer with action tokens."""
    from roboalign.trainer.recipes import recipe as find_recipe
    from roboalign.trainer.sft import train_sft

    config = find_recipe(recipe).sft_config(
        data=data,
        base=parent or _shipped_base(),
        out=out or _default_out("sft", recipe),
        pairing=pairing,
        threads=threads,
        seed=seed,
    )
    _finish(train_sft(config), as_json=as_json)


@app.command("align")
def align(
    parent: Annotated[Path, typer.Argument(metavar="SFT", help="Checkpoint of stage sft.")],
    data: Data,
    out: Out = None,
    recipe: RecipeName = "nano",
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward", help="soft (distance of the actions) or prefix (the paper's).", show_default="the recipe's"
        ),
    ] = None,
    rollouts: Annotated[
        int, typer.Option("--rollouts", help="Simulated episodes at every measurement; 0 measures tokens only.")
    ] = 4,
    force: Annotated[bool, typer.Option("--force", help="Go on although there is nothing to explore.")] = False,
    seed: Seed = 0,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Alignment: GRPO rewards thoughts that lead to better actions."""
    from roboalign.trainer.align import align as run_align
    from roboalign.trainer.recipes import recipe as find_recipe

    changes: dict[str, bool | str] = {"force": True} if force else {}
    if reward is not None:
        changes["reward"] = reward
    config = find_recipe(recipe).align_config(
        data=data, sft=parent, out=out or _default_out("align", recipe), threads=threads, seed=seed, **changes
    )
    closed_loop = None
    if rollouts != 0:
        from roboalign.trainer.closed_loop import token_rollouts

        closed_loop = token_rollouts(parent, episodes=rollouts)
    _finish(run_align(config, closed_loop=closed_loop), as_json=as_json)


@app.command("head")
def head(
    parent: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint of stage sft or align.")],
    data: Data,
    out: Out = None,
    recipe: RecipeName = "nano",
    features: Annotated[
        Path | None,
        typer.Option(
            "--features", help="Folder that keeps the thoughts for other heads.", show_default="dropped at the end"
        ),
    ] = None,
    seed: Seed = 0,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Action head: flow matching on the frozen model's hidden states."""
    from roboalign.trainer.head import train_head
    from roboalign.trainer.recipes import recipe as find_recipe

    config = find_recipe(recipe).head_config(
        data=data, backbone=parent, out=out or _default_out("head", recipe), threads=threads, seed=seed
    )
    _finish(train_head(replace(config, features=features)), as_json=as_json)


@app.command("act")
def act(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("runs/act"),
    steps: Annotated[int | None, typer.Option("--steps", help="Updates.", show_default="1600")] = None,
    seed: Seed = 0,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Baseline: an ACT-like policy without a language model, on the same demonstrations."""
    from roboalign.trainer.act import ActConfig, train_act

    changes = {} if steps is None else {"steps": steps}
    folder = train_act(ActConfig(data=data, out=out, seed=seed, threads=threads, **changes))
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    print_result(folder, as_json=as_json, training=training)


def _default_out(stage: str, recipe: str) -> Path:
    return Path("runs") / f"{stage}-{recipe}"


def _shipped_base() -> Path:
    from roboalign.sdk.bundle import shipped_bundle_path

    return shipped_bundle_path().parent / "nano-base"


def _finish(checkpoint: Path, *, as_json: bool) -> None:
    from roboalign.trainer.checkpoint import load_checkpoint

    print_result(checkpoint, as_json=as_json, checkpoint=load_checkpoint(checkpoint, verify=False).meta)
