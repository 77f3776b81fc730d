"""`roboalign run`: one sentence, one simulated scene, with the thought printed as it acts."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import POLICY_HELP, policy_ref, print_note, print_result

__all__ = ["run"]


def run(
    policy: Annotated[
        str | None,
        typer.Argument(help=POLICY_HELP, show_default="the shipped bundle"),
    ] = None,
    task: Annotated[str, typer.Option("--task", help="What to do.")] = "put the red block in the blue bowl",
    seed: Annotated[int, typer.Option("--seed", help="Chooses among the unseen scenes that fit the sentence.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Film to write (gif).")] = Path("runs/run.gif"),
    actions: Annotated[
        str, typer.Option("--actions", help="Who acts: flow (the head) or fast (action tokens).")
    ] = "flow",
    think: Annotated[bool, typer.Option("--think/--no-think", help="Write a thought before each chunk.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Act on a sentence in simulation; prints each thought and writes a film."""
    from roboalign.sdk.evaluation import PlayConfig, run_task

    ref = policy_ref(policy, actions=actions, think=think)
    result = run_task(PlayConfig(task=task, seed=seed, out=out, policy=ref), say=print_note)
    episode = result.episode
    print_result(
        out,
        as_json=as_json,
        success=episode.success,
        steps=episode.steps,
        scene_seed=result.scene_seed,
        acted=episode.sources,
        thoughts=episode.thoughts,
    )
