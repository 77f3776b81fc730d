"""`roboalign bench`: what the runtime costs, against others on the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roboalign.cli.output import parse_names, print_note, print_result

if TYPE_CHECKING:
    from roboalign.bench import BenchConfig, BenchResult

__all__ = ["app", "decode", "draft", "head", "prefix", "rivals"]

app = typer.Typer(
    no_args_is_help=True,
    help="Measure the runtime against others on the same weights: ratios with their spread, in one run.",
)

_Sizes = Annotated[str, typer.Option("--sizes", help="Models of random weights: 8M, 52M.")]
_Precisions = Annotated[str, typer.Option("--precisions", help="Weights as: fp32, fp16, int8, int4.")]
_Rounds = Annotated[int, typer.Option("--rounds", help="How often every contender runs, in turn.")]
_Tokens = Annotated[int, typer.Option("--tokens", help="Tokens that are written in each round.")]
_Threads = Annotated[int, typer.Option("--threads", help="CPU threads of every contender.")]
_Work = Annotated[
    Path | None, typer.Option("--work", help="Folder that keeps the models.", show_default="one that is removed")
]
_Out = Annotated[Path | None, typer.Option("--out", help="JSON file for rows, machine and date.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("decode")
def decode(
    sizes: _Sizes = "8M,52M",
    precisions: _Precisions = "fp32,int4",
    rounds: _Rounds = 9,
    tokens: _Tokens = 64,
    threads: _Threads = 1,
    work: _Work = None,
    out: _Out = None,
    as_json: _Json = False,
) -> None:
    """Write token after token, and the same with transformers.generate; compare the tokens and the times."""
    from roboalign import bench

    config = bench.BenchConfig(
        sizes=parse_names(sizes),
        precisions=parse_names(precisions),
        rounds=rounds,
        tokens=tokens,
        threads=threads,
        work=work,
    )
    _print(bench.run_decode, config, out, as_json=as_json)


@app.command("draft")
def draft(
    sizes: _Sizes = "8M,52M",
    precisions: _Precisions = "fp32,int4",
    rounds: _Rounds = 9,
    tokens: _Tokens = 64,
    threads: _Threads = 1,
    work: _Work = None,
    out: _Out = None,
    as_json: _Json = False,
) -> None:
    """Write a thought with the one before as its draft, and anew; the tokens have to be equal."""
    from roboalign import bench

    config = bench.BenchConfig(
        sizes=parse_names(sizes),
        precisions=parse_names(precisions),
        rounds=rounds,
        tokens=tokens,
        threads=threads,
        work=work,
    )
    _print(bench.run_draft, config, out, as_json=as_json)


@app.command("head")
def head(
    rounds: _Rounds = 9,
    threads: _Threads = 1,
    work: _Work = None,
    out: _Out = None,
    as_json: _Json = False,
) -> None:
    """Score action tokens alone, and every token of a large vocabulary; the best one has to be the same."""
    from roboalign import bench

    config = bench.BenchConfig(rounds=rounds, threads=threads, work=work)
    _print(bench.run_head, config, out, as_json=as_json)


@app.command("prefix")
def prefix(
    sizes: _Sizes = "52M",
    precisions: _Precisions = "fp32",
    rounds: _Rounds = 9,
    threads: _Threads = 1,
    work: _Work = None,
    out: _Out = None,
    as_json: _Json = False,
) -> None:
    """Read a prompt of which a fifth is new, with what the last one left and without."""
    from roboalign import bench

    config = bench.BenchConfig(
        sizes=parse_names(sizes), precisions=parse_names(precisions), rounds=rounds, threads=threads, work=work
    )
    _print(bench.run_prefix, config, out, as_json=as_json)


@app.command("rivals")
def rivals(
    sizes: _Sizes = "52M",
    rounds: _Rounds = 9,
    tokens: _Tokens = 64,
    threads: _Threads = 1,
    rival_python: Annotated[
        Path | None,
        typer.Option("--rival-python", help="Python that has onnxruntime-genai, optimum-intel, llama-cpp-python."),
    ] = None,
    work: _Work = None,
    out: _Out = None,
    as_json: _Json = False,
) -> None:
    """Write token after token at int4, and the same with the engines of kept libraries."""
    from roboalign import bench

    config = bench.BenchConfig(
        sizes=parse_names(sizes), rounds=rounds, tokens=tokens, threads=threads, work=work, rival_python=rival_python
    )
    _print(bench.run_rivals, config, out, as_json=as_json)


def _print(
    run: "Callable[[BenchConfig, Callable[[str], None]], BenchResult]",
    config: "BenchConfig",
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from roboalign import bench

    result = run(config, print_note)
    if out is not None:
        bench.write_result(result, out)
    print_result("\n".join(bench.table_lines(result)), as_json=as_json, **(asdict(result) if as_json else {}))
