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
from dataclasses import dataclass, replace
from pathlib import Path

from roboalign import __version__
from roboalign.export.graph_set import write_graphs
from roboalign.export.parity import check_parity, simulated_observations
from roboalign.export.targets import find_target
from roboalign.export.weights import PRECISIONS
from roboalign.sdk.bundle import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    ParityRecord,
    file_record,
    write_manifest,
)
from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.types import Observation
from roboalign.trainer.backend import TorchBackend
from roboalign.trainer.checkpoint import META_FILE, Checkpoint, load_checkpoint
from roboalign.trainer.nano import NanoForConditionalGeneration

__all__ = ["ExportConfig", "export", "newest_run"]

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
    """Checkpoint of stage head; None takes the newest one below `runs_dir`."""
    target: str = "cpu"
    """`cpu` or `jetson`."""
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
    threads: int = 1
    """CPU threads."""

    def __post_init__(self) -> None:
        find_target(self.target)
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision is {self.precision!r}, expected one of {', '.join(sorted(PRECISIONS))}")
        if self.num_observations < 2 or self.tolerance <= 0 or self.threads < 1:
            raise ConfigError(
                f"export needs 2 or more observations, a positive tolerance and 1 or more threads, found "
                f"{self.num_observations}, {self.tolerance} and {self.threads}"
            )


def newest_run(runs_dir: Path) -> Path:
    """Returns the newest finished checkpoint with an action head below a folder; BundleError when there is none."""
    found = [path for path in Path(runs_dir).rglob(META_FILE) if _is_head(path)]
    if not found:
        raise BundleError(
            f"no finished run with an action head below {runs_dir}; "
            "train one with 'roboalign train head', or name a checkpoint"
        )
    return max(found, key=lambda path: (path.stat().st_mtime_ns, str(path))).parent


def export(
    config: ExportConfig,
    *,
    observations: Sequence[Observation] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Writes a bundle and returns its folder.

    Args:
        config: what to do.
        observations: inputs of the parity check; None renders held-out simulated scenes.
        say: takes each line of progress; None prints on stderr.

    Raises:
        BundleError: the run is missing, altered, or of a stage without an action head.
        CheckFailed: the graphs differ from PyTorch, or the comparison proves nothing. Nothing is written then.
    """
    say = say or _print_progress
    checkpoint = _find_checkpoint(config, say)
    name = checkpoint.path.resolve().name
    out = config.out or config.runs_dir / f"bundle-{name.removeprefix('head-')}-{config.target}"
    if not out.name or (out.exists() and not (out / MANIFEST_NAME).is_file()):
        raise ConfigError(f"{out} exists and is no bundle, so it is left alone; name another folder to write to")
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        manifest = _write_parts(work, checkpoint, config, name, say)
        manifest = replace(manifest, parity=_measure_parity(work, config, observations, say))
        (work / "README.md").write_text(_card(manifest, checkpoint), encoding="utf-8")
        _write_manifest(work, manifest)
        _move_into_place(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if manifest.next_command:
        say(f"this bundle is portable and not built; on the {manifest.target}, type in its folder:")
        say(f"  {manifest.next_command}")
    return out


def _find_checkpoint(config: ExportConfig, say: Callable[[str], None]) -> Checkpoint:
    run = config.run
    if run is None:
        run = newest_run(config.runs_dir)
        say(f"newest finished run: {run}")
    checkpoint = load_checkpoint(run)
    if "head.safetensors" not in checkpoint.meta.files:
        raise BundleError(
            f"{run} is a checkpoint of stage {checkpoint.meta.stage!r} without an action head; "
            "train one on it with 'roboalign train head', then export that"
        )
    return checkpoint


def _measure_parity(
    work: Path, config: ExportConfig, observations: Sequence[Observation] | None, say: Callable[[str], None]
) -> ParityRecord:
    if observations is None:
        say(f"rendering {config.num_observations} observations in held-out scenes")
        observations, inputs = simulated_observations(config.num_observations), "held-out simulated scenes"
    else:
        inputs = "given by the caller"
    say(f"comparing with PyTorch on {len(observations)} observations")
    record = check_parity(work, observations, tolerance=config.tolerance, inputs=inputs, threads=config.threads)
    say(
        f"parity: actions within {record.max_action_error:.1e} of their range, {record.num_tokens} tokens identical "
        f"({record.num_distinct_tokens} different ones, {record.num_distinct_sequences} different answers)"
    )
    return record


def _write_parts(
    work: Path, checkpoint: Checkpoint, config: ExportConfig, name: str, say: Callable[[str], None]
) -> Manifest:
    """Writes everything but the card and returns the manifest, without parity, that is written beside it."""
    for part in _COPIED:
        if part in checkpoint.meta.files:
            shutil.copyfile(checkpoint.path / part, work / part)
    backend = TorchBackend.open(checkpoint.path, threads=config.threads)
    model = backend.backbone.model
    kind = str(model.config.model_type)
    if not isinstance(model, NanoForConditionalGeneration):
        raise ConfigError(
            f"{checkpoint.path} holds a {kind} model; graphs are written for nano and smol models, which "
            "have one axis of positions and pictures of one size; run it with sdk.Policy.load(..., backend='torch')"
        )
    say(f"tracing the graphs of {checkpoint.path} ({config.precision} weights)")
    assert backend.head is not None
    graphs = write_graphs(model, backend.head, backend.spec, work, config.precision)
    target = find_target(config.target)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        roboalign_version=__version__,
        source_commit=_source_commit(),
        name=name,
        model=f"{kind.removeprefix('roboalign_')}-{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M",
        tokenizer_sha256=file_record(work / "tokenizer.json").sha256,
        codec_hash=str(json.loads((work / "fast.json").read_text(encoding="utf-8"))["sha256"]),
        target=target.name,
        built=target.is_built_here,
        next_command=target.next_command(tuple(graphs)),
        precision=config.precision,
        stage=str(checkpoint.meta.notes.get("backbone_stage", checkpoint.meta.stage)),
        parents=tuple(digest for digest in (checkpoint.sha256, checkpoint.meta.parent_sha256) if digest),
        policy=backend.spec,
        graphs=graphs,
        files={},
    )
    _write_manifest(work, manifest)
    return manifest


def _write_manifest(work: Path, manifest: Manifest) -> None:
    files = {path.name: file_record(path) for path in sorted(work.iterdir()) if path.name != MANIFEST_NAME}
    write_manifest(work, replace(manifest, files=files))


def _card(manifest: Manifest, checkpoint: Checkpoint) -> str:
    policy, meta, parity = manifest.policy, checkpoint.meta, manifest.parity
    assert parity is not None
    origin = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8")).get("origin")
    state = "ready to run" if manifest.built else f"not built; on the target type: `{manifest.next_command}`"
    seeds = ", ".join(f"{key} {value}" for key, value in sorted(meta.seeds.items()))
    measured = [
        f"| {key} | {value:.4g} |" for key, value in sorted(meta.metrics.items()) if isinstance(value, float | int)
    ]
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
        f"Made by recipe {meta.recipe}; seeds: {seeds}; data {meta.data_hash}; head training {meta.cpu_s:.0f} CPU s.",
    ]
    if origin is not None:
        lines += ["", f"Its first weights: {origin}."]
    if measured:
        lines += ["", "| measured by the head's training | |", "|---|---|", *measured]
    return "\n".join([*lines, ""])


def _is_head(meta_path: Path) -> bool:
    try:
        is_head = json.loads(meta_path.read_text(encoding="utf-8")).get("stage") == "head"
    except (OSError, ValueError, AttributeError):
        return False
    # Folders in the making are hidden or end in .partial.
    return is_head and not any(p.startswith(".") or p.endswith(".partial") for p in meta_path.parent.parts[-2:])


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
