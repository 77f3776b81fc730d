"""`roboalign export`: from a trained checkpoint to a bundle that a robot can load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["export"]


def export(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Checkpoint of stage head.", show_default="the newest finished one below runs/"
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            "--target", help="Machine: cpu, host, a board such as agx-orin-64gb, or jetson (this board, else any)."
        ),
    ] = "cpu",
    board: Annotated[
        str | None, typer.Option("--board", help="Which board jetson means.", show_default="this one, else all")
    ] = None,
    jetpack: Annotated[
        str | None, typer.Option("--jetpack", help="JetPack on the board.", show_default="the board's, else the newest")
    ] = None,
    tensorrt: Annotated[
        str | None, typer.Option("--tensorrt", help="TensorRT to plan for.", show_default="the JetPack's")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="fp16, fp32; int8, int4 weights for cpu and JetPack 7; int8-w8a8, fp8 products for boards; with "
            "--dry-run also bf16, nvfp4.",
        ),
    ] = "fp16",
    model: Annotated[
        str | None, typer.Option("--model", help="Plan for a published model instead, e.g. qwen3-vl-2b: --dry-run.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the plan: what goes where, memory, predicted speed, refusals.")
    ] = False,
    build: Annotated[
        bool, typer.Option("--build", help="Build engines too, which only a Jetson can; see 'roboalign build'.")
    ] = False,
    edge_llm_python: Annotated[
        Path | None,
        typer.Option(
            "--edge-llm-python", help="Prepare a Qwen model for TensorRT Edge-LLM, with this Python that has its tools."
        ),
    ] = None,
    modelopt_python: Annotated[
        Path | None,
        typer.Option("--modelopt-python", help="Python that has nvidia-modelopt, for int8-w8a8 and fp8."),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            help="Check of graphs: static, or rtx: NVIDIA's compiler too, for boards.",
            show_default="static",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="LeRobotDataset to calibrate and check on.", show_default="held-out simulated scenes"
        ),
    ] = None,
    rounding: Annotated[
        str | None,
        typer.Option(
            "--rounding",
            help="How weights become int8 or int4: gptq, awq (calibrated) or nearest.",
            show_default="gptq",
        ),
    ] = None,
    max_part_error: Annotated[
        float | None,
        typer.Option(
            "--max-part-error",
            help="Loss a part may take by narrow numbers, as a share of the action's range.",
            show_default="0.02",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Bundle folder to write.", show_default="runs/bundle-RUN-TARGET")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write ONNX graphs and a self-describing bundle; parity with torch is checked on its exact bytes."""
    from roboalign.sdk.errors import ConfigError

    if dry_run:
        _show_plan(run, model, (target, board, jetpack, tensorrt), precision, as_json=as_json)
        return
    if model is not None or tensorrt is not None:
        raise ConfigError("--model and --tensorrt are for plans only; add --dry-run")
    chosen = {"--check": check, "--data": data, "--build": build or None}
    rounded = {"--rounding": rounding, "--max-part-error": max_part_error}
    tool = {"--modelopt-python": modelopt_python}
    if edge_llm_python is not None:
        _refuse_unused({**chosen, **rounded, **tool}, "TensorRT Edge-LLM's own tools check, calibrate and build")
        _prepare_edge_llm(run, out, edge_llm_python, (target, board, jetpack), precision, as_json=as_json)
        return
    if precision in ("fp16", "fp32"):
        _refuse_unused(rounded, f"{precision} rounds no weights to codes; add --precision int8 or int4")
    if precision in ("int8-w8a8", "fp8"):
        _refuse_unused({"--rounding": rounding}, f"nvidia-modelopt finds the scales of {precision}")
    else:
        _refuse_unused(tool, f"{precision} needs no nvidia-modelopt; add --precision int8-w8a8 or fp8")
    from roboalign.export import ExportConfig
    from roboalign.export import export as write_bundle
    from roboalign.sdk.board import detect_board
    from roboalign.sdk.bundle import read_bundle

    # On a Jetson, `jetson` is this board, and its engines are built too.
    builds = build or (target == "jetson" and board is None and detect_board() is not None)
    if builds:
        from roboalign.export.build import build as build_engines
        from roboalign.export.build import find_builder

        find_builder()
    config = ExportConfig(
        run=run,
        target=target,
        board=board,
        jetpack=jetpack,
        precision=precision,
        check=check or "static",
        data=data,
        rounding=rounding or "gptq",
        max_part_error=0.02 if max_part_error is None else max_part_error,
        modelopt_python=modelopt_python,
        out=out,
    )
    folder = write_bundle(config, say=print_note)
    if builds:
        build_engines(folder, say=print_note)
    manifest = read_bundle(folder).manifest
    print_result(
        folder,
        as_json=as_json,
        built=manifest.built or builds,
        next_command="" if builds else manifest.next_command,
        manifest=manifest,
    )


def _refuse_unused(options: Mapping[str, object], why: str) -> None:
    """Raises ConfigError when one of the options was given, which nothing here would use."""
    from roboalign.sdk.errors import ConfigError

    if given := [name for name, value in options.items() if value is not None]:
        raise ConfigError(f"{', '.join(given)} would not be used: {why}; leave out what is not used")


def _prepare_edge_llm(
    run: Path | None,
    out: Path | None,
    python: Path,
    place: tuple[str, str | None, str | None],
    precision: str,
    *,
    as_json: bool,
) -> None:
    from roboalign.export import newest_run
    from roboalign.export.edge_llm import EdgeLlmConfig, prepare

    found = run or newest_run(Path("runs"))
    target, board, jetpack = place
    config = EdgeLlmConfig(
        run=found,
        out=out or Path("runs") / f"edge-llm-{found.name}",
        python=python,
        precision=precision,
        target=target,
        board=board,
        jetpack=jetpack,
    )
    print_result(prepare(config, say=print_note), as_json=as_json)


def _show_plan(
    run: Path | None,
    model: str | None,
    place: tuple[str, str | None, str | None, str | None],
    precision: str,
    *,
    as_json: bool,
) -> None:
    """Prints a plan; one that would be refused is a failed check."""
    from roboalign.export import find_place, model_size, newest_run, plan_export, plan_lines, run_size
    from roboalign.sdk.bundle import find_bundle
    from roboalign.sdk.errors import CheckFailed, ConfigError

    if run is not None and model is not None:
        raise ConfigError(f"give a run or --model, not both: found {run} and {model}")
    target, board, jetpack, tensorrt = place
    found = find_place(target, board=board, jetpack=jetpack, tensorrt=tensorrt)
    size = model_size(model) if model is not None else run_size(find_bundle(run or newest_run(Path("runs"))))
    plan = plan_export(size, found, precision)
    print_result(plan if as_json else "\n".join(plan_lines(plan)), as_json=as_json)
    if plan.refusals:
        raise CheckFailed(f"the export would be refused: {'; '.join(plan.refusals)}")
