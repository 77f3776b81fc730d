"""Engines beside a bundle: `engines/<place>/engines.json` says what they were built from, where, and how they passed.

    engines/agx-orin-64gb-trt10.3.0-sm8.7-maxn/
        engines.json                     the receipt, written last: without it a folder holds parts only
        prefill-<key>.engine, ...        one for each graph; the key is that of everything it was built from
        prefill-<key>.engine.json        what a part is, so that an interrupted build goes on where it was

The manifest lists none of them, so a bundle stays what its hashes say wherever it goes. A receipt names the manifest it
belongs to. Everything here is compared before an engine is read: an engine is code for one GPU and one TensorRT.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from roboalign.sdk.board import Board
from roboalign.sdk.bundle import MANIFEST_NAME, file_digest
from roboalign.sdk.errors import BackendError, BundleError, RoboalignError
from roboalign.sdk.typed_json import from_json

__all__ = [
    "ENGINES_FOLDER",
    "FORMAT_VERSION",
    "RECEIPT_NAME",
    "EngineFile",
    "EngineParity",
    "EngineSet",
    "find_engines",
    "read_engine",
    "read_engines",
    "release",
    "write_engines",
]

ENGINES_FOLDER = "engines"

RECEIPT_NAME = "engines.json"

FORMAT_VERSION = 1
"""Layout of the receipt."""

_MEMORY_TOLERANCE = 0.05
"""Kernels of one board report a little more or less; modules of one name differ by a factor of two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFile:
    """One engine."""

    file: str
    """Name in the folder of the receipt."""
    sha256: str
    """Digest of the engine."""
    num_bytes: int
    """Length of the engine."""
    graph_sha256: str
    """Digest of the graph it was built from."""
    weights_sha256: Mapping[str, str]
    """Digest of each weight file that the graph reads."""
    build_s: float
    """Seconds that building took."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineParity:
    """The comparison of engines with onnxruntime on the same graphs, made on the board after they were built."""

    num_observations: int
    """How many observations both sides answered."""
    num_tokens: int
    """Tokens that onnxruntime chose."""
    equal_tokens: float
    """Share of them that the engines chose too, each answer read up to its first difference."""
    num_distinct_tokens: int
    """Different tokens among them."""
    num_distinct_sequences: int
    """Different answers among the observations."""
    max_action_error: float
    """Largest difference of any action field, as a share of that field's range."""
    tolerance: float
    """Largest difference that was accepted: of all actions, or of 95 % of each field's where products are narrow."""
    action_errors: Mapping[str, float]
    """Largest difference of each action field, in the field's own unit."""
    action_unit: str
    """Units of these fields, in the manifest's words."""
    median_act_s: Mapping[str, float]
    """Median seconds of a whole answer, by backend, as it happened while comparing; no benchmark."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSet:
    """The content of `engines.json`: engines of one bundle for one board."""

    format_version: int
    """Layout of this file."""
    roboalign_version: str
    """Version that built them."""
    bundle_sha256: str
    """Digest of the bundle's manifest."""
    target: str
    """Board, by its name in the table of targets."""
    model: str
    """Board, by its name in the device tree."""
    memory_bytes: int | None
    """Memory that the kernel managed."""
    l4t: str | None
    """Release of Jetson Linux."""
    jetpack: str | None
    """JetPack, when its release is known."""
    tensorrt: str
    """Version of the TensorRT that built them, as Python sees it."""
    capability: str
    """Compute capability of the GPU."""
    power_mode: str | None
    """Power mode while building, which picks kernels by their speed; None when the board does not say."""
    engines: Mapping[str, EngineFile]
    """By role of the graph."""
    parity: EngineParity | None = None
    """How they passed; None while they are being built."""

    def refusal(self, board: Board | None, bundle_sha256: str) -> str | None:
        """Returns why these engines may not run on a board for a bundle, or None when nothing stands against it."""
        if self.bundle_sha256 != bundle_sha256:
            return "they were built from another bundle"
        if self.parity is None:
            return "they were never compared with onnxruntime"
        if board is None:
            return f"they are for {self.model}, and this machine is no Jetson"
        for what, ours, here in (
            ("board", self.model, board.model),
            ("Jetson Linux", self.l4t, board.l4t),
            ("TensorRT", release(self.tensorrt), board.tensorrt and release(board.tensorrt)),
            ("power mode", self.power_mode, board.power_mode),
        ):
            if ours != here:
                return f"they are for {what} {ours}, and this is {here}"
        if not _is_near(self.memory_bytes, board.memory_bytes):
            ours, here = _gigabytes(self.memory_bytes), _gigabytes(board.memory_bytes)
            return f"they are for a board with {ours}, and this has {here}"
        return None


def release(version: str) -> str:
    """Returns the three numbers of a version that name a TensorRT release."""
    return ".".join(version.split(".")[:3])


def find_engines(bundle: Path, board: Board | None) -> tuple[EngineSet, Path]:
    """Returns the engines of a bundle that are for a board, and their folder; nothing of them is read yet.

    Raises:
        BackendError: there are none; the message says what stands against each that is there.
    """
    manifest_sha256 = file_digest(bundle / MANIFEST_NAME)
    reasons = []
    for receipt in sorted((bundle / ENGINES_FOLDER).glob(f"[!.]*/{RECEIPT_NAME}")):  # hidden: being brought here
        try:
            found = read_engines(receipt.parent)
        except BundleError as err:
            reasons.append(str(err))
            continue
        reason = found.refusal(board, manifest_sha256)
        if reason is None:
            return found, receipt.parent
        reasons.append(f"those in {receipt.parent.name}: {reason}")
    stands = "; ".join(reasons) or "it has none at all"
    where = "on the Jetson itself" if board is None else "here"
    raise BackendError(
        f"bundle {bundle} has no engines for this machine ({stands}); build them {where}: roboalign build {bundle}"
    )


def read_engines(folder: Path) -> EngineSet:
    """Reads a receipt; one that cannot be read, or of a newer layout, is a BundleError."""
    path = folder / RECEIPT_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise BundleError(f"{path} is not readable JSON ({err}); build the engines again") from err
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(f"{path} has format version {version}, this version reads {FORMAT_VERSION}; build them again")
    try:
        found = cast(EngineSet, from_json(EngineSet, data, "engines"))
    except RoboalignError as err:
        raise BundleError(f"{path}: {err}; it was edited, build the engines again") from err
    for engine in found.engines.values():
        if Path(engine.file).name != engine.file:
            raise BundleError(f"{path} lists the file {engine.file!r}, which lies outside it; do not use it")
    return found


def read_engine(folder: Path, engine: EngineFile) -> bytes:
    """Returns the content of an engine that is what its receipt says; anything else is a BundleError."""
    path = folder / engine.file
    if not path.is_file() or path.is_symlink():
        raise BundleError(f"engine {path} is missing; build it again with: roboalign build")
    content = path.read_bytes()
    if len(content) != engine.num_bytes:
        raise BundleError(
            f"engine {path} is damaged: {len(content)} bytes, expected {engine.num_bytes}; build it again"
        )
    found = hashlib.sha256(content).hexdigest()
    if found != engine.sha256:
        raise BundleError(
            f"engine {path} is altered: sha256 {found[:12]}..., expected {engine.sha256[:12]}...; build it again"
        )
    return content


def write_engines(folder: Path, engines: EngineSet) -> Path:
    """Writes a receipt under a temporary name, then gives it its own; returns its path."""
    path = folder / RECEIPT_NAME
    work = path.with_suffix(".tmp")
    work.write_text(json.dumps(asdict(engines), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    work.replace(path)
    return path


def _is_near(ours: int | None, here: int | None) -> bool:
    if ours is None or here is None:
        return ours is here
    return abs(ours - here) <= _MEMORY_TOLERANCE * ours


def _gigabytes(num_bytes: int | None) -> str:
    return "unknown memory" if num_bytes is None else f"{num_bytes / 1e9:.1f} GB"
