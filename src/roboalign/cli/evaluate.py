"""`roboalign eval`: success of a policy, or of a control, over paired held-out scenes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roboalign.cli.output import parse_names, policy_ref, print_note, print_result

if TYPE_CHECKING:
    from roboalign.sdk.evaluation import EvalReport

__all__ = ["evaluate"]


def evaluate(
    policy: Annotated[
        str | None,
        typer.Argument(help="Bundle or checkpoint folder, or: expert, random.", show_default="the shipped bundle"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder of the result; an interrupted evaluation in it goes on.", show_default="runs/eval-..."
        ),
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", help="Held-out scenes; the same ones for every policy.")] = 60,
    families: Annotated[
        str, typer.Option("--families", help="Task families, taken in turn, separated by commas.")
    ] = "place,push",
    actions: Annotated[
        str, typer.Option("--actions", help="Who acts: flow (the head) or fast (action tokens).")
    ] = "flow",
    think: Annotated[bool, typer.Option("--think/--no-think", help="Write a thought before each chunk.")] = True,
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="Control: tell the policy the sentence of another task.")
    ] = False,
    split: Annotated[str, typer.Option("--split", help="Sentences: train or heldout (unseen wording).")] = "train",
    workers: Annotated[int, typer.Option("--workers", help="Processes; use 1 when latency matters.")] = 1,
    films: Annotated[int, typer.Option("--films", help="Film strips to keep of each family.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure closed-loop success with Wilson intervals, against the controls if you ask for them."""
    from roboalign.sdk.evaluation import EvalConfig
    from roboalign.sdk.evaluation import evaluate as run_evaluation

    ref = policy_ref(policy, actions=actions, think=think, is_shuffled=shuffled)
    config = EvalConfig(
        out=out or Path("runs") / f"eval-{_label(policy, shuffled)}",
        episodes=episodes,
        families=parse_names(families),
        split=split,
        workers=workers,
        films=films,
    )
    report = run_evaluation(config, ref)
    _print_table(report)
    print_result(config.out / "report.json", as_json=as_json, report=report)


def _label(policy: str | None, is_shuffled: bool) -> str:
    name = "shipped" if policy is None else Path(policy).resolve().name
    return f"{name}-shuffled" if is_shuffled else name


def _print_table(report: "EvalReport") -> None:
    print_note(f"{report.policy['name']}; who acted: {report.who_acted}")
    for row in (*report.families, report.total):
        low, high = row.interval.low, row.interval.high
        print_note(
            f"{row.family:>8}  {row.num_successes:4d}/{row.num_episodes:<4d} {100 * row.rate:5.1f} %"
            f"  (95 %: {100 * low:.1f} to {100 * high:.1f})"
        )
