"""The receipt of a verification: what was measured, with what, on which machine, and what came of it, as JSON.

It names no host, no user and no path, so that it can be sent around. `receipt_table` makes the table of the docs.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import cast

from roboalign import __version__
from roboalign.export.vectors import VectorErrors
from roboalign.sdk.board import detect_board
from roboalign.sdk.bundle import Thresholds
from roboalign.sdk.errors import BundleError, DataError
from roboalign.sdk.typed_json import from_json

__all__ = [
    "RECEIPT_SUFFIX",
    "ClosedLoop",
    "Receipt",
    "describe_machine",
    "describe_versions",
    "format_errors",
    "read_receipt",
    "receipt_table",
    "write_receipt",
]

RECEIPT_SUFFIX = ".receipt.json"
"""A receipt lies beside its bundle, under the folder's name and this."""

FORMAT_VERSION = 1

VERDICTS = ("verified", "parity only", "incomplete", "failed")

_PACKAGES = ("numpy", "onnxruntime", "torch", "pybullet")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosedLoop:
    """Success in the simulator, of the bundle and of its reference, on the same scenes."""

    reference: str
    """What the bundle was compared with."""
    robot: str
    """Simulated arm."""
    tasks: tuple[str, ...]
    """Tasks, taken in turn."""
    num_episodes: int
    """Scenes."""
    num_successes: int
    """Scenes that the bundle solved."""
    num_reference_successes: int
    """Scenes that the reference solved."""
    num_only_bundle: int
    """Scenes that only the bundle solved."""
    num_only_reference: int
    """Scenes that only the reference solved."""
    difference: float
    """Success of the bundle minus that of the reference."""
    interval_low: float
    """Lower end of the paired 95 % interval of the difference (Tango)."""
    interval_high: float
    """Upper end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """One verification of one bundle on one machine."""

    format_version: int
    """Layout of the receipt."""
    verdict: str
    """One of `VERDICTS`."""
    faults: tuple[str, ...]
    """What failed."""
    missing: tuple[str, ...]
    """What could not be measured, and why."""
    bundle: Mapping[str, str]
    """Name, model, precision, target, robot, and the sha256 of the manifest, which holds that of every file."""
    backend: str
    """What ran the graphs."""
    machine: Mapping[str, str]
    """Model, processor, memory, system; on a Jetson also its release and TensorRT."""
    versions: Mapping[str, str]
    """Of roboalign, Python and packages."""
    thresholds: Thresholds | None
    """What was accepted."""
    parity: VectorErrors | None
    """Errors against PyTorch's answers; None when they were not measured."""
    closed_loop: ClosedLoop | None
    """Success in the simulator; None when it was not measured."""


def describe_machine(root: Path = Path("/")) -> dict[str, str]:
    """Returns what a reader must know of this machine, from the files below `root`; nothing that names it."""
    board = detect_board(root)
    found = {
        "model": board.model if board is not None else _line(root / "sys/class/dmi/id/product_name"),
        "processor": _match(root / "proc/cpuinfo", r"^(?:model name|Model)\s*:\s*(.+)$") or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": _memory(root),
        "system": _match(root / "etc/os-release", r'^PRETTY_NAME="?([^"\n]+)') or platform.system(),
        "architecture": platform.machine(),
    }
    if board is not None:
        found |= {"l4t": board.l4t or "", "tensorrt": board.tensorrt or ""}
    return {name: value for name, value in found.items() if value}


def describe_versions() -> dict[str, str]:
    """Returns the versions of roboalign, Python and the packages that matter, of those that are installed."""
    found = {"roboalign": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_receipt(receipt: Receipt, path: Path) -> Path:
    """Writes a receipt; an older one is replaced only by a complete one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(asdict(receipt), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def read_receipt(path: Path) -> Receipt:
    """Reads a receipt; DataError when the file is none, or claims more than its figures hold."""
    try:
        receipt = cast(Receipt, from_json(Receipt, json.loads(path.read_text(encoding="utf-8")), path.name))
    except (OSError, ValueError, BundleError) as err:
        raise DataError(f"{path} is no receipt of 'roboalign verify' ({err})") from err
    if receipt.verdict not in VERDICTS or receipt.format_version != FORMAT_VERSION:
        raise DataError(
            f"{path} says {receipt.verdict!r} in format {receipt.format_version}, expected one of {', '.join(VERDICTS)}"
            f" in format {FORMAT_VERSION}"
        )
    if unsaid := {"name", "precision"} - set(receipt.bundle):
        raise DataError(f"{path} does not say the bundle's {' and '.join(sorted(unsaid))}; verify the bundle again")
    is_whole = receipt.parity is not None and receipt.closed_loop is not None
    if receipt.verdict == "verified" and (receipt.faults or receipt.missing or not is_whole):
        raise DataError(f"{path} says 'verified' without every measurement; verify the bundle again")
    return receipt


def receipt_table(folder: Path) -> str:
    """Returns the receipts in a folder as a Markdown table, sorted by the name of their files.

    Raises:
        DataError: a file is no receipt.
    """
    lines = [
        "| machine | bundle | backend | actions off by at most | success (reference) | difference, 95 % interval "
        "| verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(folder.glob("*.json")):
        lines.append(_row(read_receipt(path)))
    return "\n".join(lines)


def _row(receipt: Receipt) -> str:
    parity, loop = receipt.parity, receipt.closed_loop
    machine = ", ".join(receipt.machine[name] for name in ("model", "processor") if name in receipt.machine)
    errors = "not measured" if parity is None else format_errors(parity.fields)
    success = difference = "not measured"
    if loop is not None:
        num = loop.num_episodes
        success = f"{loop.num_successes} of {num} ({loop.num_reference_successes}, {loop.reference})"
        low, high = 100 * loop.interval_low, 100 * loop.interval_high
        difference = f"{100 * loop.difference:+.1f} points, {low:+.1f} to {high:+.1f}"
    bundle = f"{receipt.bundle['name']}, {receipt.bundle['precision']}"
    runtime = receipt.machine.get("tensorrt") if receipt.backend == "tensorrt" else receipt.versions.get("onnxruntime")
    backend = f"{receipt.backend} {runtime or ''}".strip()
    return f"| {machine} | {bundle} | {backend} | {errors} | {success} | {difference} | {receipt.verdict} |"


def format_errors(errors: Mapping[str, float]) -> str:
    """Returns errors of action fields in words: by kind of unit, the largest of each."""
    units = {"m": "_m", "rad": "_rad"}
    largest: dict[str, float] = {}
    for name, error in errors.items():
        unit = next((unit for unit, ending in units.items() if name.endswith(ending)), "of the gripper's range")
        largest[unit] = max(error, largest.get(unit, 0.0))
    return ", ".join(f"{error:.1e} {unit}" for unit, error in largest.items())


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _match(path: Path, pattern: str) -> str:
    found = re.search(pattern, _line(path), re.MULTILINE)
    return found[1].strip() if found else ""


def _memory(root: Path) -> str:
    kilobytes = _match(root / "proc/meminfo", r"^MemTotal:\s*(\d+) kB")
    return f"{int(kilobytes) / 1024**2:.1f} GiB" if kilobytes else ""
