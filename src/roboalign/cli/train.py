"""`roboalign train`: the four stages, each from a recipe, a dataset and (after the first) the checkpoint before it."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roboalign.cli.output import print_result

if TYPE_CHECKING:
    from roboalign.trainer.run import RunOptions

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
RecipeName = Annotated[str, typer.Option("--recipe", help="Settings by name; an unknown name lists all.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is drawn.")]
Threads = Annotated[int, typer.Option("--threads", help="CPU threads.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run; an error when there is none.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what the stage would need, and whether it would be refused.")
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Also write event files to OUT.tensorboard.")]
Lora = Annotated[
    int | None, typer.Option("--lora", help="Rank of low-rank additions; 0 trains all.", show_default="the recipe's")
]
Processes = Annotated[
    int, typer.Option("--processes", help="Processes that share the weights (FSDP2): one for each GPU, or on the CPU.")
]


@app.command("base")
def base(
    data: Data,
    out: Out = None,
    recipe: RecipeName = "nano",
    seed: Seed = 0,
    threads: Threads = 1,
    resume: Resume = False,
    dry_run: DryRun = False,
    tensorboard: TensorBoard = False,
    processes: Processes = 1,
    as_json: AsJson = False,
) -> None:
    """Grounding: a nano or smol model learns to answer questions about what it sees."""
    from roboalign.trainer.base import train_base
    from roboalign.trainer.recipes import recipe as find_recipe

    config = find_recipe(recipe).base_config(
        data=data, out=out or _default_out("base", recipe), threads=threads, seed=seed
    )
    if dry_run:
        _show_plan("base", config, as_json=as_json)
        return
    _start_processes(processes)
    _finish(train_base(config, run=_options(resume, tensorboard)), as_json=as_json)


@app.command("sft")
def sft(
    data: Data,
    parent: Annotated[
        Path | None,
        typer.Argument(
            metavar="BASE",
            help="Checkpoint of stage base, a Hugging Face folder, or a hub id.",
            show_default="the shipped base of nano",
        ),
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
    shares: Annotated[
        str | None,
        typer.Option(
            "--shares",
            metavar="KIND=SHARE,...",
            help="Kinds of sample by share: vqa, reason, action, paired; e.g. vqa=0.3,reason=0.7.",
            show_default="the pairing's",
        ),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            "--style",
            help="How thoughts are worded; motion makes them of what the hand did (docs/data-engine.md).",
            show_default="the recipe's",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Updates.", show_default="the recipe's")] = None,
    lora: Lora = None,
    micro_batch: Annotated[
        int | None,
        typer.Option("--micro-batch", help="Samples in memory at once.", show_default="the recipe's"),
    ] = None,
    mixture: Annotated[
        Path | None,
        typer.Option(
            "--mixture", help="Mixture file (.toml or .json) to draw from; --data gives codec and held-out frames."
        ),
    ] = None,
    only_human: Annotated[
        bool, typer.Option("--only-human", help="Of a recording with corrections: the person's frames alone.")
    ] = False,
    seed: Seed = 0,
    threads: Threads = 1,
    resume: Resume = False,
    dry_run: DryRun = False,
    tensorboard: TensorBoard = False,
    processes: Processes = 1,
    as_json: AsJson = False,
) -> None:
    """Supervised fine-tuning: reason in words, and answer with action tokens."""
    from roboalign.trainer.recipes import recipe as find_recipe
    from roboalign.trainer.sft import train_sft

    asked = {"micro_batch": micro_batch, "steps": steps}
    changes = {name: value for name, value in asked.items() if value is not None} | _lora(lora)
    config = find_recipe(recipe).sft_config(
        data=data,
        base=parent or _shipped_base(recipe),
        out=out or _default_out("sft", recipe),
        pairing=pairing,
        threads=threads,
        seed=seed,
        **changes,
    )
    own = _parse_shares(shares) if shares else config.weights
    worded = style or (None if mixture else config.style)  # each source of a mixture has a style of its own
    config = replace(config, mixture=mixture, weights=own, style=worded, only_human=only_human)
    if dry_run:
        _show_plan("sft", config, as_json=as_json)
        return
    _start_processes(processes)
    _finish(train_sft(config, run=_options(resume, tensorboard)), as_json=as_json)


@app.command("align")
def align(
    parent: Annotated[Path, typer.Argument(metavar="SFT", help="Checkpoint of stage sft.")],
    data: Data,
    out: Out = None,
    recipe: RecipeName = "nano",
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward",
            help="prefix (the paper's), gate, soft, energy, language, visual, success or multi:NAME (docs/rewards.md).",
            show_default="the recipe's",
        ),
    ] = None,
    constraint: Annotated[
        str | None,
        typer.Option(
            "--constraint",
            help="Length constraint while sampling: on, off, or auto (the reward's).",
            show_default="the recipe's",
        ),
    ] = None,
    credit: Annotated[
        str | None,
        typer.Option(
            "--credit",
            help="Who is paid: reply (the paper's) or token, each action token by what it earned (reward energy).",
            show_default="the recipe's",
        ),
    ] = None,
    rollout: Annotated[
        str | None,
        typer.Option(
            "--rollout",
            help="Who samples: own (fastest), trl (transformers' generate) or vllm (on a GPU; unverified).",
            show_default="the recipe's",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            help="Weights that become the checkpoint: best (smallest held-out error) or last (the paper's).",
            show_default="the recipe's",
        ),
    ] = None,
    lora: Lora = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Processes that simulate for the reward success.", show_default="the recipe's"),
    ] = None,
    emit: Annotated[
        str | None,
        typer.Option("--emit", help="Train nothing: write prompts and a reward file for verl and EasyR1 (verl)."),
    ] = None,
    rollouts: Annotated[
        int, typer.Option("--rollouts", help="Simulated episodes at every measurement; 0 measures tokens only.")
    ] = 4,
    force: Annotated[bool, typer.Option("--force", help="Go on although there is nothing to explore.")] = False,
    seed: Seed = 0,
    threads: Threads = 1,
    resume: Resume = False,
    dry_run: DryRun = False,
    tensorboard: TensorBoard = False,
    as_json: AsJson = False,
) -> None:
    """Alignment: GRPO rewards thoughts that lead to better actions."""
    from roboalign.trainer.align import align as run_align
    from roboalign.trainer.recipes import recipe as find_recipe

    asked = {"reward": reward, "constraint": constraint, "credit": credit, "rollout": rollout, "keep": keep}
    given = {name: value for name, value in {**asked, "workers": workers}.items() if value is not None}
    changes: dict[str, Any] = given | _lora(lora)
    changes |= {"force": True} if force else {}
    config = find_recipe(recipe).align_config(
        data=data, sft=parent, out=out or _default_out("align", recipe), threads=threads, seed=seed, **changes
    )
    if emit is not None:
        from roboalign.trainer.verl import emit_prompts

        print_result(emit_prompts(config, emit), as_json=as_json)
        return
    if dry_run:
        _show_plan("align", config, as_json=as_json)
        return
    closed_loop = None
    if rollouts != 0:
        from roboalign.trainer.closed_loop import token_rollouts

        closed_loop = token_rollouts(parent, episodes=rollouts)
    _finish(run_align(config, closed_loop=closed_loop, run=_options(resume, tensorboard)), as_json=as_json)


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
    resume: Resume = False,
    dry_run: DryRun = False,
    tensorboard: TensorBoard = False,
    as_json: AsJson = False,
) -> None:
    """Action head: flow matching on the frozen model's hidden states."""
    from roboalign.trainer.head import train_head
    from roboalign.trainer.recipes import recipe as find_recipe

    config = find_recipe(recipe).head_config(
        data=data, backbone=parent, out=out or _default_out("head", recipe), threads=threads, seed=seed
    )
    config = replace(config, features=features)
    if dry_run:
        _show_plan("head", config, as_json=as_json)
        return
    _finish(train_head(config, run=_options(resume, tensorboard)), as_json=as_json)


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


def _parse_shares(text: str) -> dict[str, float]:
    from roboalign.sdk.errors import ConfigError

    try:
        pairs = [item.split("=") for item in text.split(",")]
        return {name.strip(): float(share) for name, share in pairs}
    except ValueError:
        raise ConfigError(f"--shares is {text!r}, expected KIND=SHARE,..., e.g. vqa=0.3,reason=0.7") from None


def _lora(rank: int | None) -> dict[str, Any]:
    """Returns the change of a recipe's settings that `--lora` asks for."""
    from roboalign.trainer.lora import LoraSettings

    return {} if rank is None else {"lora": LoraSettings(rank=rank) if rank else None}


def _default_out(stage: str, recipe: str) -> Path:
    return Path("runs") / f"{stage}-{recipe}"


def _shipped_base(recipe: str) -> Path:
    from roboalign.sdk.bundle import shipped_base_path
    from roboalign.sdk.errors import ConfigError
    from roboalign.trainer.recipes import recipe as find_recipe

    if (family := find_recipe(recipe).family) != "nano":
        raise ConfigError(f"no {family} base is shipped; name what recipe {recipe!r} is to start from, as BASE")
    return shipped_base_path()


def _options(resume: bool, tensorboard: bool) -> "RunOptions":
    from roboalign.trainer.run import RunOptions

    return RunOptions(must_resume=resume, tensorboard=tensorboard)


def _show_plan(stage: str, config: Any, *, as_json: bool) -> None:
    from roboalign.sdk.errors import CheckFailed
    from roboalign.trainer.plan import plan_stage

    plan = plan_stage(stage, config)
    print_result(plan if as_json else "\n".join(plan.lines()), as_json=as_json)
    if plan.refusals:
        raise CheckFailed(f"the stage would be refused: {'; '.join(plan.refusals)}")


def _start_processes(processes: int) -> None:
    """Becomes `accelerate launch` of the same command when several processes are asked for."""
    from roboalign.trainer.launch import launch_command

    if processes == 1 or "WORLD_SIZE" in os.environ:
        return
    import torch

    command = launch_command(["-m", "roboalign", *sys.argv[1:]], processes=processes, is_gpu=torch.cuda.is_available())
    os.execv(command[0], command)


def _finish(checkpoint: Path, *, as_json: bool) -> None:
    from roboalign.trainer.checkpoint import load_checkpoint
    from roboalign.trainer.folders import is_main_process

    if not is_main_process():
        return
    print_result(checkpoint, as_json=as_json, checkpoint=load_checkpoint(checkpoint, verify=False).meta)
