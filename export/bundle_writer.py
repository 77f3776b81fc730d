"""Writes a bundle: picks the run, traces the graphs, stores the weights once, checks parity, then names the folder.

Everything is made in a hidden folder beside the destination. It gets its final name when parity has passed; whatever
goes wrong before, nothing is left behind and an older bundle of that name stays as it was.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import onnx
from tokenizers import Tokenizer

from roboalign import __version__
from roboalign.export.calibration import Inputs, given_inputs
from roboalign.export.data_reference import reference_advice, write_data_reference
from roboalign.export.export_config import ExportConfig
from roboalign.export.graph_check import check_graph, rules_of
from roboalign.export.graph_set import graph_maker, is_one_line, write_graphs
from roboalign.export.half_range import measure_range
from roboalign.export.info import parity_words
from roboalign.export.modelopt import modelopt_version
from roboalign.export.parity import check_parity, record_vectors
from roboalign.export.plan import ExportPlan, find_place, plan_export, written_precisions
from roboalign.export.plan_table import plan_lines
from roboalign.export.planner import WRITTEN_PRODUCTS
from roboalign.export.products import Products
from roboalign.export.quantize import find_inputs, narrow_products, open_narrow, round_weights
from roboalign.export.read_graphs import ActionRows
from roboalign.export.rounding import QUANTIZED_BITS
from roboalign.export.rtx import compile_graph, compiler_version, stand_ins
from roboalign.export.runs import newest_run
from roboalign.export.shapes import run_size
from roboalign.export.source import Source, open_source
from roboalign.export.targets import find_jetpack, find_target
from roboalign.export.vectors import VECTORS_NAME
from roboalign.export.window_parity import check_portable, check_windows
from roboalign.sdk.bundle import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    ParityRecord,
    PolicySpec,
    RobotIdentity,
    checkpoint_stage,
    file_record,
    find_bundle,
    read_bundle,
    write_manifest,
)
from roboalign.sdk.bundle_check import statistics_digest
from roboalign.sdk.errors import CheckFailed, ConfigError
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.types import Observation
from roboalign.trainer.backend import TorchBackend
from roboalign.trainer.folders import move_into_place, temporary_dir

__all__ = ["PLAN_NAME", "export"]

PLAN_NAME = "plan.json"
"""Which part is meant to go where, in which type, and what was found in the graphs."""

_COPIED = (
    "config.json",
    "preprocessor_config.json",
    "prompt_format.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "fast.json",
    "head.json",
)
"""Files that go into the bundle as they are; the last ones let PyTorch read the same folder."""


_WATCHED_OBSERVATIONS = 16
"""On so many observations every float16 value is looked at."""


def export(
    config: ExportConfig,
    *,
    observations: Sequence[Observation] | None = None,
    say: Callable[[str], None] | None = None,
    root: Path = Path("/"),
) -> Path:
    """Writes a bundle and returns its folder.

    Args:
        config: what to do.
        observations: inputs of every check, and every second one of them of calibration too; None takes what `config`
            says.
        say: takes each line of progress; None prints on stderr.
        root: where the files that describe a board are looked for.

    Raises:
        ConfigError: the plan refuses the machine, the type or the memory.
        BundleError: the run is missing, altered, or of a stage without an action head.
        CheckFailed: the graphs differ from PyTorch, or the comparison proves nothing. Nothing is written then.
    """
    say = say or _print_progress
    run, plan = _find_run(config, root, say)
    source = open_source(run)
    few = f"-{config.precision}" if config.precision in QUANTIZED_BITS or config.has_products else ""
    out = config.out or config.runs_dir / f"bundle-{source.name.removeprefix('head-')}-{plan.target}{few}"
    if out.resolve() == run.resolve():
        raise ConfigError(f"{out} is what is exported; name another folder to write to")
    if not out.name or (out.exists() and not (out / MANIFEST_NAME).is_file()):
        raise ConfigError(f"{out} exists and is no bundle, so it is left alone; name another folder to write to")
    work = temporary_dir(out)
    try:
        backend = TorchBackend.open(source.path, threads=config.threads)
        _check_ranges(backend.spec, source.path)
        _check_kind(str(backend.backbone.model.config.model_type), config, source.path)
        if observations is not None:
            inputs = given_inputs(observations)
        else:
            inputs = find_inputs(config, source.robot, backend.spec, say)
        manifest, narrowed = _write_parts(work, (source, backend), config, plan, inputs, say)
        manifest = replace(manifest, parity=_measure_parity(work, config, inputs, narrowed, say))
        (work / "README.md").write_text(_card(manifest, source), encoding="utf-8")
        _write_manifest(work, manifest)
        has_reference = write_data_reference(work, config.data, manifest, say)
        move_into_place(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not has_reference:
        for line in reference_advice(out):
            say(line)
    if not manifest.built:
        say("built: false; this bundle is portable, and until engines are built, onnxruntime acts from it")
    if manifest.next_command:
        say(f"copy it to the {manifest.target}, and type in its folder:")
        say(f"  {manifest.next_command}")
    return out


def _check_ranges(spec: PolicySpec, where: Path) -> None:
    """Refuses a field without a range: errors are shares of it, and normalised actions are divided by it."""
    for name, low, high in zip(spec.action_names, spec.action_low, spec.action_high, strict=True):
        if not low < high:
            raise ConfigError(
                f"{where} was trained on data in which {name} is always {low:g}, so it has no range to measure errors "
                "by; train on data in which every action field varies"
            )


def _check_kind(kind: str, config: ExportConfig, where: Path) -> None:
    """Refuses what this version does not write for a model, before anything is measured."""
    graph_maker(kind)  # says what it has none for
    if not is_one_line(kind) and config.precision in QUANTIZED_BITS and config.rounding == "awq":
        raise ConfigError(
            f"awq knows the decoders of nano and smol models, and {where} holds a {kind} model; use --rounding gptq"
        )


def _find_run(config: ExportConfig, root: Path, say: Callable[[str], None]) -> tuple[Path, ExportPlan]:
    """Returns the run and its plan; a plan that is refused stops here, before anything is loaded."""
    run = config.run
    if run is None:
        run = newest_run(config.runs_dir)
        say(f"newest finished run: {run}")
    run = find_bundle(run)  # a shipped bundle by its name
    if checkpoint_stage(run) != "head":
        open_source(run)  # says what is wrong with it
    place = find_place(config.target, board=config.board, jetpack=config.jetpack, root=root)
    plan = plan_export(run_size(run), place, config.precision)
    if place.is_board:
        for line in plan_lines(plan):
            say(line)
    if config.precision not in written_precisions(place):
        raise ConfigError(
            f"this version writes {' or '.join(written_precisions(place))} weights for {plan.target}, found "
            f"{config.precision!r}; --dry-run plans it, and --target cpu or boards whose JetPack reads operator set 21 "
            "take int8 and int4; boards multiply int8-w8a8, and Thor fp8 too"
        )
    if plan.refusals:
        raise ConfigError(f"the plan is refused: {'; '.join(plan.refusals)}")
    if config.has_products:
        modelopt_version(config.modelopt_python)
    if config.check == "rtx":
        say(f"graphs will be compiled for {', '.join(stand_ins(plan))} with TensorRT-RTX {compiler_version()}")
    return run, plan


def _measure_parity(
    work: Path, config: ExportConfig, inputs: Inputs, narrowed: Products | None, say: Callable[[str], None]
) -> ParityRecord:
    say(f"comparing with PyTorch on {len(inputs.checks)} observations")
    arithmetic = read_bundle(work).manifest.arithmetic
    bar = config.bar(arithmetic)
    reference = None if narrowed is None else partial(open_narrow, work, narrowed, config.threads)
    record = check_parity(
        work, inputs.checks, bar=bar, inputs=inputs.source, threads=config.threads, open_reference=reference
    )
    say(f"parity: {parity_words(record)}")
    limits = config.thresholds(arithmetic)
    errors = record_vectors(work, inputs.checks, limits, threads=config.threads, open_reference=reference)
    say(f"parity of parts: at most {max(errors.parts.values()):.1e} of their largest values; {VECTORS_NAME} keeps it")
    windows = check_windows(work, bar.part_tolerance, threads=config.threads)
    for role, error in windows.items():
        say(f"parity of {role} with steps: {error:.1e} of the largest values")
    portable: dict[str, float] = {}
    if read_bundle(work).manifest.reads_in_place:
        portable["portable"] = check_portable(work, bar.part_tolerance, threads=config.threads)
        say(f"parity of the portable graphs with those that read in place: {portable['portable']:.1e}")
    record = replace(record, field_errors=errors.fields, part_errors={**errors.parts, **windows, **portable})
    if arithmetic == "float32":
        return record
    found = measure_range(work, inputs.checks[:_WATCHED_OBSERVATIONS], threads=config.threads)
    say(f"largest float16 value: {found.largest:.3g} of 65504 ({found.where})")
    return replace(record, largest_half=found.largest)


def _write_parts(
    work: Path,
    origin: tuple[Source, TorchBackend],
    config: ExportConfig,
    plan: ExportPlan,
    inputs: Inputs,
    say: Callable[[str], None],
) -> tuple[Manifest, Products | None]:
    """Writes everything but the card; returns the manifest, without parity, and which products are narrow."""
    source, backend = origin
    for part in _COPIED:
        if part in source.files:
            shutil.copyfile(source.path / part, work / part)
    model = backend.backbone.model
    kind = str(model.config.model_type)
    codes = round_weights(work, backend, config, plan, inputs, say).codes if config.precision in QUANTIZED_BITS else {}
    products = narrow_products(work, backend, config, plan, inputs, say) if config.has_products else None
    stored = config.precision if products is None else "fp16"
    say(f"tracing the graphs of {source.path} ({stored} weights, {plan.arithmetic} arithmetic)")
    assert backend.head is not None
    in_half = plan.arithmetic != "float32"
    reads_in_place = plan.target == "cpu" and is_one_line(kind)
    graphs = write_graphs(
        model,
        backend.head,
        backend.spec,
        work,
        stored,
        codes=codes,
        in_half=in_half,
        products=products,
        reads_in_place=reads_in_place,
        action_rows=_action_rows(work) if reads_in_place else None,
    )
    for constraints in _constraints(plan):
        shutil.copyfile(constraints, work / constraints.name)
    _write_plan(work, plan, [spec.file for spec in graphs.values()], config.check, say)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        roboalign_version=__version__,
        source_commit=_source_commit(),
        name=source.name,
        model=f"{kind.removeprefix('roboalign_')}-{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M",
        tokenizer_sha256=file_record(work / "tokenizer.json").sha256,
        codec_hash=str(json.loads((work / "fast.json").read_text(encoding="utf-8"))["sha256"]),
        target=plan.target,
        built=plan.built,
        next_command=plan.next_command,
        precision=config.precision,
        stage=source.stage,
        parents=source.parents,
        policy=backend.spec,
        graphs=graphs,
        files={},
        robot=RobotIdentity(name=source.robot, statistics_sha256=statistics_digest(work / "head.json", backend.spec)),
        thresholds=config.thresholds(plan.arithmetic),
        arithmetic=plan.arithmetic,
    )
    _write_manifest(work, manifest)
    return manifest, products


def _action_rows(work: Path) -> ActionRows | None:
    """Returns which rows of the output layer are action tokens."""
    first = Tokenizer.from_file(str(work / "tokenizer.json")).token_to_id("<ACTION_0>")
    return None if first is None else (int(first), FastCodec.load(work).vocab_size)


def _constraints(plan: ExportPlan) -> list[Path]:
    """The versions that pip is to install on the boards of a plan: one file for each of their JetPacks."""
    found = {
        find_jetpack(find_target(board.target), board.jetpack).constraints_path
        for board in plan.boards
        if board.jetpack is not None
    }
    return sorted(found)


def _write_plan(work: Path, plan: ExportPlan, graphs: Sequence[str], check: str, say: Callable[[str], None]) -> None:
    """Checks the graphs against what the plan's machines take, and writes plan and findings; errors stop the export."""
    rules = rules_of(plan)
    findings = {
        name: check_graph(onnx.load(work / name, load_external_data=False), rules, folder=work) for name in graphs
    }
    errors = [
        f"{name}: {one.where}: {one.message}" for name, found in findings.items() for one in found if one.is_error
    ]
    if errors:
        raise CheckFailed(f"{len(errors)} findings stand against the graphs on {plan.target}, first {errors[0]}")
    num_notes = sum(map(len, findings.values()))
    say(f"graphs checked for {plan.target}: nothing known stands against them, {num_notes} notes")
    content: dict[str, object] = {
        "plan": asdict(plan),
        "findings": {name: [asdict(one) for one in found] for name, found in findings.items()},
    }
    if check == "rtx":
        content["compiled"] = {
            "compiler": f"tensorrt-rtx {compiler_version()}",
            "capabilities": {name: _compile(work / name, plan, say) for name in graphs},
        }
    (work / PLAN_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _compile(graph: Path, plan: ExportPlan, say: Callable[[str], None]) -> list[str]:
    """Returns the stand-ins that a graph was compiled for, which are all; a refusal is a CheckFailed."""
    taken = []
    for capability in stand_ins(plan):
        verdict = compile_graph(graph, capability)
        if not verdict.is_taken:
            raise CheckFailed(f"TensorRT-RTX refuses {graph.name} for {capability}: {verdict.message}")
        say(f"TensorRT-RTX compiles {graph.name} for {capability}")
        taken.append(capability)
    return taken


def _write_manifest(work: Path, manifest: Manifest) -> None:
    files = {path.name: file_record(path) for path in sorted(work.iterdir()) if path.name != MANIFEST_NAME}
    write_manifest(work, replace(manifest, files=files))


def _card(manifest: Manifest, source: Source) -> str:
    policy, parity = manifest.policy, manifest.parity
    assert parity is not None
    state = "ready to run" if manifest.built else f"not built; on the target type: `{manifest.next_command}`"
    has_products = manifest.arithmetic in WRITTEN_PRODUCTS.values()
    weights = f"fp16 weights, multiplied in {manifest.arithmetic}" if has_products else f"{manifest.precision} weights"
    lines = [
        f"# {manifest.name} for {manifest.target}",
        "",
        f"A roboalign policy bundle (format {manifest.format_version}): {manifest.model}, stage {manifest.stage}, "
        f"{weights}, {state}.",
        "",
        f"It takes camera {', '.join(policy.camera_names)} at {policy.image_size_px} x {policy.image_size_px}, "
        f"the state ({', '.join(policy.state_names)}) and a sentence, and answers {policy.horizon} actions "
        f"({', '.join(policy.action_names)}) for {policy.rate_hz:g} Hz.",
        "",
        f"Parity with PyTorch (float32) on the same weight bytes: {parity_words(parity)}, "
        f"{parity.num_observations} observations, {parity.inputs}. The graphs compute in {manifest.arithmetic}.",
        "",
        "By action field: " + ", ".join(f"{name} {error:.1e}" for name, error in parity.field_errors.items()) + ".",
        "",
        *source.history,
        "",
    ]
    return "\n".join(lines)


def _source_commit() -> str:
    """Returns the commit of the tree that this module is tracked in, `-dirty` if it was edited; else `unknown`."""
    module = Path(__file__).resolve()
    git = ("git", "-C", str(module.parent))
    try:
        # An installed copy may lie inside somebody else's repository, whose commit would say nothing.
        subprocess.run([*git, "ls-files", "--error-unmatch", module.name], capture_output=True, timeout=10, check=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
