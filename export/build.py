"""`roboalign build`: compiles a portable bundle on the board it is for, and compares the engines before they count.

Everything that can be wrong is looked at first: bundle, board, JetPack, TensorRT, GPU, memory, disk. Each graph is then
compiled in a process of its own; what is finished is kept when the rest is interrupted. The receipt is written last,
when the engines have answered the bundle's observations as onnxruntime does: without it the loader takes none of them.

No board has run this yet. What TensorRT does was tried on a stub of its API only.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from roboalign import __version__
from roboalign.export.engine_parity import compare_engines
from roboalign.export.engine_parts import Builder, Place, probe_builder, weights_of
from roboalign.export.planner import BoardPlan, plan_board
from roboalign.export.shapes import run_size
from roboalign.export.targets import PORTABLE, JetPack, Target, target_of_board
from roboalign.export.vectors import VECTORS_NAME, Vectors
from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.backends.tensorrt import TensorRtBackend
from roboalign.sdk.backends.tensorrt_engine import load_tensorrt
from roboalign.sdk.board import Board, detect_board
from roboalign.sdk.bundle import MANIFEST_NAME, Bundle, file_digest, read_bundle
from roboalign.sdk.engines import (
    ENGINES_FOLDER,
    FORMAT_VERSION,
    EngineSet,
    release,
    write_engines,
)
from roboalign.sdk.errors import BackendError, BundleError, ConfigError, missing_extra
from roboalign.sdk.types import Observation
from roboalign.sdk.views.reference import REFERENCE_NAME, find_reference

__all__ = ["build", "build_engines", "copy_bundle", "find_builder"]

_SPARE_BYTES = 200_000_000
"""Disk to leave beside the engines."""

_ENGINE_COPIES = 5
"""TensorRT-RTX made engines of 2.4 to 4.4 times the stored weights, which are of 16 bits, and computed with 32."""

_WORKSPACE_SHARE = 0.5
"""Share of the free memory for trying kernels; CPU and GPU of a board share it, and all of it would stop the board."""


def find_builder(root: Path = Path("/")) -> tuple[Board, Target, JetPack | None]:
    """Returns the board that this is, when engines can be built on it.

    Raises:
        BackendError: this is no Jetson, or it has no TensorRT of its JetPack.
        ConfigError: this is a Jetson that is none of the table.
    """
    board = detect_board(root)
    if board is None:
        raise BackendError(
            "engines are built on the Jetson itself, and this machine is none (no such name in the device tree, no "
            "/etc/nv_tegra_release); copy the bundle to the board and type there: roboalign build BUNDLE, or from "
            "here: roboalign build BUNDLE --on user@board"
        )
    target, jetpack = target_of_board(board)
    if board.tensorrt is None:
        raise BackendError(
            f"this is {target.title}, and no libnvinfer of JetPack is on it; install it with: sudo apt install tensorrt"
        )
    if jetpack is not None and not jetpack.has_tensorrt(board.tensorrt):
        low, high = jetpack.tensorrt
        raise BackendError(
            f"this board has TensorRT {board.tensorrt}, and JetPack {jetpack.name} is known with {low} to {high}; "
            "install the TensorRT of its JetPack"
        )
    return board, target, jetpack


def build(
    bundle: Path, *, out: Path | None = None, say: Callable[[str], None] | None = None, root: Path = Path("/")
) -> Path:
    """Builds and compares the engines of a bundle on this board, and returns their receipt.

    Args:
        bundle: a folder that the export wrote for this board or for any.
        out: folder to copy the bundle to first; None builds in its own folder.
        say: takes each line of progress; None prints on stderr.
        root: where the files that describe the board are looked for.

    Raises:
        BundleError: the bundle is missing or altered, has nothing to build, or is for another board.
        BackendError: this is no Jetson, or TensorRT, CUDA or onnxruntime is missing or another one.
        ConfigError: it does not fit into the board's memory or disk.
        CheckFailed: TensorRT refuses a graph, or the engines do not answer as onnxruntime does. No receipt is written.
    """
    say = say or _print_progress
    found = read_bundle(bundle)
    manifest = found.manifest
    if manifest.built:
        raise BundleError(f"bundle {bundle} is for {manifest.target} and runs as it is; there is nothing to build")
    board, target, jetpack = find_builder(root)
    if manifest.target not in (PORTABLE, target.name):
        raise BundleError(
            f"bundle {bundle} is for {manifest.target}, and this is {target.name}; export it for {target.name}, or "
            f"for any board with --target {PORTABLE}"
        )
    place = _find_place(board, target, jetpack)
    free_bytes = _available_bytes(root)
    say(
        f"{target.title}, JetPack {jetpack.name if jetpack else 'unknown'}, TensorRT {place.tensorrt}, power mode "
        f"{board.power_mode or 'unknown'}, memory free: {_in_gb(free_bytes)}"
    )
    plan = plan_board(run_size(bundle), target, manifest.precision, jetpack=jetpack)
    _check_room(found, plan, free_bytes, (out or bundle).absolute())
    if out is not None:
        found = copy_bundle(found, out)
    elif not os.access(bundle, os.W_OK):
        raise ConfigError(f"{bundle} cannot be written to; name a folder to copy it to with --out")
    return build_engines(found, place, say=say, free_bytes=free_bytes)


def _read_observations(bundle: Bundle) -> tuple[Observation, ...]:
    """Returns what the bundle carries for comparisons; one without them is a BundleError."""
    if VECTORS_NAME not in bundle.manifest.files:
        raise BundleError(
            f"bundle {bundle.path} has no {VECTORS_NAME} to compare engines on; export it again with this version"
        )
    return Vectors.load(bundle.file(VECTORS_NAME)).observations


def build_engines(bundle: Bundle, place: Place, *, say: Callable[[str], None], free_bytes: int | None = None) -> Path:
    """Compiles, compares and writes the receipt, for a place that was looked at before; returns the receipt."""
    observations = _read_observations(bundle)
    folder = bundle.path / ENGINES_FOLDER / place.name
    folder.mkdir(parents=True, exist_ok=True)
    workspace = int(_WORKSPACE_SHARE * (free_bytes or place.board.memory_bytes or 2**32))
    parts = Builder(bundle=bundle, place=place, folder=folder, workspace_bytes=workspace, say=say).build()
    engines = EngineSet(
        format_version=FORMAT_VERSION,
        roboalign_version=__version__,
        bundle_sha256=file_digest(bundle.path / MANIFEST_NAME),
        target=place.target.name,
        model=place.board.model,
        memory_bytes=place.board.memory_bytes,
        l4t=place.board.l4t,
        jetpack=place.jetpack.name if place.jetpack else None,
        tensorrt=place.tensorrt,
        capability=place.capability,
        power_mode=place.board.power_mode,
        engines=parts,
    )
    say(f"comparing with onnxruntime on {len(observations)} observations")
    trt = load_tensorrt()
    parity = compare_engines(
        bundle,
        observations,
        lambda: TensorRtBackend(bundle, engines, folder, trt),
        lambda: OnnxBackend(bundle),
    )
    say(
        f"compared: {parity.equal_tokens:.2%} of {parity.num_tokens} tokens identical; largest differences of actions "
        f"({parity.action_unit}):"
    )
    for name, error in parity.action_errors.items():
        say(f"  {name:<12} {error:.2e}")
    receipt = write_engines(folder, replace(engines, parity=parity))
    _remove_older(folder, {name for part in parts.values() for name in (part.file, f"{part.file}.json")})
    return receipt


def copy_bundle(bundle: Bundle, out: Path) -> Bundle:
    """Copies what a manifest lists into a folder, the manifest last, and returns the copy.

    The doctor's reference of the bundle, which no manifest lists, comes along.

    A folder that already holds this bundle is taken as it is; one that holds something else is a ConfigError.
    """
    if out.exists():
        if (out / MANIFEST_NAME).is_file() and _is_same(out, bundle.path):
            return read_bundle(out)
        raise ConfigError(f"{out} exists and is not this bundle, so it is left alone; name another folder")
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        for name in (*bundle.manifest.files, MANIFEST_NAME):
            shutil.copyfile(bundle.path / name, work / name)
        reference = find_reference(bundle.path)
        if reference is not None:
            shutil.copyfile(reference, work / REFERENCE_NAME)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return read_bundle(out)


def _find_place(board: Board, target: Target, jetpack: JetPack | None) -> Place:
    """Asks TensorRT and CUDA what they are; both have to be those of the board."""
    for package in ("onnxruntime", "tokenizers"):
        if find_spec(package) is None:
            raise missing_extra(package, "cpu", "comparing engines")
    version, capability = probe_builder()
    assert board.tensorrt is not None
    if release(version) != release(board.tensorrt):
        raise BackendError(
            f"Python imports TensorRT {version}, and JetPack's libnvinfer is {board.tensorrt}; a tensorrt from a "
            "package index hides JetPack's: pip uninstall tensorrt, and use --system-site-packages"
        )
    if target.capability != capability:
        raise BackendError(
            f"this is {target.title}, whose GPU has compute capability {target.capability}, and CUDA finds {capability}"
        )
    return Place(board=board, target=target, jetpack=jetpack, tensorrt=version, capability=capability)


def _check_room(bundle: Bundle, plan: BoardPlan, free_bytes: int | None, folder: Path) -> None:
    if plan.refusals:
        raise ConfigError(f"the plan is refused: {'; '.join(refusal.reason for refusal in plan.refusals)}")
    if free_bytes is not None and plan.build_gb * 1e9 > free_bytes:
        raise ConfigError(
            f"building needs about {plan.build_gb:.1f} GB of memory and {_in_gb(free_bytes)} is free; stop other "
            "programs, or the desktop with: sudo systemctl isolate multi-user.target"
        )
    files = bundle.manifest.files
    weights = [files[name].num_bytes for spec in bundle.manifest.graphs.values() for name in weights_of(bundle, spec)]
    needed = _ENGINE_COPIES * sum(weights) + _SPARE_BYTES
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ConfigError(f"engines need up to {_in_gb(needed)} of disk, and {_in_gb(free)} is free at {there}")


def _available_bytes(root: Path) -> int | None:
    """Returns the memory that programs can still get; None when the kernel does not say."""
    try:
        text = (root / "proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _is_same(one: Path, other: Path) -> bool:
    return (one / MANIFEST_NAME).read_bytes() == (other / MANIFEST_NAME).read_bytes()


def _remove_older(folder: Path, keep: set[str]) -> None:
    """Removes parts of an earlier export, which nothing names any more."""
    for path in folder.glob("*.engine*"):
        if path.name not in keep:
            path.unlink()


def _in_gb(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / 1e9:.1f} GB"


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
