"""Writes a bundle: picks the run, traces the graphs, stores the weights once, checks parity, then names the folder.

Everything is made in a hidden folder beside the destination. It gets its final name when parity has passed; whatever
goes wrong before, nothing is left behind and an older bundle of that name stays as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx

from roboalign import __version__
from roboalign.export.graph_check import check_graph, rules_of
from roboalign.export.graph_set import write_graphs
from roboalign.export.parity import check_parity, simulated_observations
from roboalign.export.parity_inputs import write_observations
from roboalign.export.plan import ExportPlan, find_place, plan_export, written_precisions
from roboalign.export.plan_table import plan_lines
from roboalign.export.rtx import compile_graph, compiler_version, stand_ins
from roboalign.export.runs import newest_run
from roboalign.export.sensitivity import PARTS, measure_parts
from roboalign.export.shapes import run_size
from roboalign.export.source import Source, open_source
from roboalign.export.targets import target_names
from roboalign.export.weights import PRECISIONS, QUANTIZED_BITS
from roboalign.sdk.bundle import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    ParityRecord,
    checkpoint_stage,
    file_record,
    find_bundle,
    write_manifest,
)
from roboalign.sdk.errors import CheckFailed, ConfigError, unknown_name
from roboalign.sdk.types import Observation
from roboalign.trainer.backend import TorchBackend
from roboalign.trainer.nano import NanoForConditionalGeneration

__all__ = ["PLAN_NAME", "QUANTIZATION_NAME", "ExportConfig", "export"]

QUANTIZATION_NAME = "quantization.json"
"""What `int8` or `int4` costs each part, and which stayed in fp16."""

PLAN_NAME = "plan.json"
"""Which part is meant to go where, in which type, and what was found in the graphs."""

CHECKS = ("static", "rtx")
"""Ways to check graphs; parity is always checked."""

_COPIED = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "fast.json",
    "head.json",
)
"""Files that go into the bundle as they are; the last ones let PyTorch read the same folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """What to export, and for which machine."""

    run: Path | None = None
    """Checkpoint of stage head, or a bundle in fp16 or fp32; None takes the newest one below `runs_dir`."""
    target: str = "cpu"
    """Machine: a name of `targets.toml`, or `jetson` for this board, or for all where this is none."""
    board: str | None = None
    """Which board `jetson` means; None takes this one, or all."""
    jetpack: str | None = None
    """JetPack on the board; None takes this board's, or the newest that is known."""
    check: str = "static"
    """How graphs are checked for a board: `static` by rules, or `rtx` also by NVIDIA's compiler for its stand-in."""
    precision: str = "fp16"
    """How weights are stored: `fp16`, `fp32`, or as codes: `int8`, `int4`."""
    out: Path | None = None
    """Folder to write; None makes one below `runs_dir`, named after the run and the target."""
    runs_dir: Path = Path("runs")
    """Where runs are looked for and bundles are put."""
    num_observations: int = 64
    """Observations that both sides answer in the parity check."""
    tolerance: float = 1e-4
    """Largest accepted action difference, as a share of the action's range."""
    max_part_error: float = 0.02
    """Largest accepted loss of a part by `int8` or `int4`, as a share of the action's range; one that loses more stays
    in fp16."""
    threads: int = 1
    """CPU threads."""

    def __post_init__(self) -> None:
        if self.target not in target_names():
            raise ConfigError(unknown_name("target", self.target, target_names()))
        if self.check not in CHECKS:
            raise ConfigError(f"check is {self.check!r}, expected one of {', '.join(CHECKS)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision is {self.precision!r}, expected one of {', '.join(sorted(PRECISIONS))}")
        if self.num_observations < 2 or self.tolerance <= 0 or self.threads < 1:
            raise ConfigError(
                f"export needs 2 or more observations, a positive tolerance and 1 or more threads, found "
                f"{self.num_observations}, {self.tolerance} and {self.threads}"
            )


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
        observations: inputs of the parity check; None renders held-out simulated scenes.
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
    few = f"-{config.precision}" if config.precision in QUANTIZED_BITS else ""
    out = config.out or config.runs_dir / f"bundle-{source.name.removeprefix('head-')}-{plan.target}{few}"
    if out.resolve() == run.resolve():
        raise ConfigError(f"{out} is what is exported; name another folder to write to")
    if not out.name or (out.exists() and not (out / MANIFEST_NAME).is_file()):
        raise ConfigError(f"{out} exists and is no bundle, so it is left alone; name another folder to write to")
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        inputs = "given by the caller"
        if observations is None:
            say(f"rendering {config.num_observations} observations in held-out scenes")
            observations, inputs = simulated_observations(config.num_observations), "held-out simulated scenes"
        if not plan.built:
            write_observations(work, observations)
        manifest = _write_parts(work, source, config, plan, observations, say)
        manifest = replace(manifest, parity=_measure_parity(work, config, observations, inputs, say))
        (work / "README.md").write_text(_card(manifest, source), encoding="utf-8")
        _write_manifest(work, manifest)
        _move_into_place(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not manifest.built:
        say("built: false; this bundle is portable, and until engines are built, onnxruntime acts from it")
    if manifest.next_command:
        say(f"copy it to the {manifest.target}, and type in its folder:")
        say(f"  {manifest.next_command}")
    return out


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
            f"{config.precision!r}; --dry-run plans it, --target cpu writes int8 and int4"
        )
    if plan.refusals:
        raise ConfigError(f"the plan is refused: {'; '.join(plan.refusals)}")
    if config.check == "rtx":
        say(f"graphs will be compiled with TensorRT-RTX {compiler_version()} for {', '.join(stand_ins(plan))}")
    return run, plan


def _measure_parity(
    work: Path, config: ExportConfig, observations: Sequence[Observation], inputs: str, say: Callable[[str], None]
) -> ParityRecord:
    say(f"comparing with PyTorch on {len(observations)} observations")
    record = check_parity(work, observations, tolerance=config.tolerance, inputs=inputs, threads=config.threads)
    say(
        f"parity: actions within {record.max_action_error:.1e} of their range, {record.num_tokens} tokens identical "
        f"({record.num_distinct_tokens} different ones, {record.num_distinct_sequences} different answers)"
    )
    return record


def _write_parts(
    work: Path,
    source: Source,
    config: ExportConfig,
    plan: ExportPlan,
    observations: Sequence[Observation],
    say: Callable[[str], None],
) -> Manifest:
    """Writes everything but the card and returns the manifest, without parity, that is written beside it."""
    for part in _COPIED:
        if part in source.files:
            shutil.copyfile(source.path / part, work / part)
    backend = TorchBackend.open(source.path, threads=config.threads)
    model = backend.backbone.model
    kind = str(model.config.model_type)
    if not isinstance(model, NanoForConditionalGeneration):
        raise ConfigError(
            f"{source.path} holds a {kind} model; graphs are written for nano and smol models, which "
            "have one axis of positions and pictures of one size; run it with sdk.Policy.load(..., backend='torch')"
        )
    keep = _kept_parts(work, backend, config, observations, say) if config.precision in QUANTIZED_BITS else {}
    say(f"tracing the graphs of {source.path} ({config.precision} weights)")
    assert backend.head is not None
    graphs = write_graphs(model, backend.head, backend.spec, work, config.precision, keep=keep)
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
    )
    _write_manifest(work, manifest)
    return manifest


def _kept_parts(
    work: Path,
    backend: TorchBackend,
    config: ExportConfig,
    observations: Sequence[Observation],
    say: Callable[[str], None],
) -> dict[str, list[str]]:
    """Measures what rounding costs each part, writes it down, and returns what stays in fp16, by weight file."""
    say(f"measuring what {config.precision} costs each part on {len(observations)} observations")
    losses = measure_parts(backend, observations, config.precision)
    kept = [loss.part for loss in losses if not loss.action_error <= config.max_part_error]
    for loss in losses:
        state = f"stays fp16, more than {config.max_part_error:.1%}" if loss.part in kept else config.precision
        say(
            f"  {loss.part:<8} actions off by {loss.action_error:6.2%} of their range (95th percentile), "
            f"{loss.same_thoughts:.0%} of thoughts alike: {state}"
        )
    if len(kept) == len(losses):
        raise CheckFailed(
            f"every part loses more than {config.max_part_error:.1%} of the action's range in {config.precision}; "
            "use --precision int8 or fp16"
        )
    record = {
        "precision": config.precision,
        "max_part_error": config.max_part_error,
        "num_observations": len(observations),
        "parts": [{**asdict(loss), "is_kept_in_fp16": loss.part in kept} for loss in losses],
    }
    (work / QUANTIZATION_NAME).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    found: dict[str, list[str]] = {}
    for part in kept:
        file, prefix = PARTS[part]
        found.setdefault(file, []).append(prefix)
    return found


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
    lines = [
        f"# {manifest.name} for {manifest.target}",
        "",
        f"A roboalign policy bundle (format {manifest.format_version}): {manifest.model}, stage {manifest.stage}, "
        f"{manifest.precision} weights, {state}.",
        "",
        f"It takes camera {', '.join(policy.camera_names)} at {policy.image_size_px} x {policy.image_size_px}, "
        f"the state ({', '.join(policy.state_names)}) and a sentence, and answers {policy.horizon} actions "
        f"({', '.join(policy.action_names)}) for {policy.rate_hz:g} Hz.",
        "",
        f"Parity with PyTorch on the same weight bytes: actions within {parity.max_action_error:.1e} of their range, "
        f"{parity.num_tokens} greedy tokens identical ({parity.num_distinct_tokens} different ones), "
        f"{parity.num_observations} observations, {parity.inputs}.",
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


def _move_into_place(work: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
