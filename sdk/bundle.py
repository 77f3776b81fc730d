"""The bundle: a folder that holds everything a robot needs to act, described by its `manifest.json`.

    manifest.json       what this file describes: graphs, names, units, statistics, hashes, parity
    prefill.onnx, step.onnx, flow.onnx    plain ONNX operators; their weights lie in the two files below
    vision.onnx         where the picture is cut into patches, what sees them; `prefill` sees the picture otherwise
    model.safetensors, head.safetensors   each weight once, shared by the graphs
    tokenizer.json, fast.json, config.json, head.json, README.md

Reading needs the folder only. Every file is hashed before it is used. Nothing here executes what it reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import cast

from roboalign import __version__
from roboalign.sdk.bundle_check import (
    SEAL_NAME,
    check_graph_references,
    check_manifest,
    check_safetensors,
    check_statistics,
    sealed_text,
)
from roboalign.sdk.errors import BundleError, RoboalignError
from roboalign.sdk.manifest import (
    EXTEND_ROLE,
    HEAR_ROLE,
    IN_PLACE_ROLES,
    LOOK_ROLE,
    LOWER_CODES_ROLE,
    LOWER_ROLE,
    READ_CODES_ROLE,
    READ_ROLE,
    SEE_ROLE,
    SINCE_VERSION_2,
    UPPER_CODES_ROLE,
    UPPER_ROLE,
    WRITE_ACTIONS_ROLE,
    WRITE_ROLE,
    FileRecord,
    GraphSpec,
    Manifest,
    ParityRecord,
    PolicySpec,
    RobotIdentity,
    TensorSpec,
    Thresholds,
)
from roboalign.sdk.typed_json import from_json

__all__ = [
    "CHECKPOINT_NAME",
    "EDGE_LLM_NAME",
    "EXTEND_ROLE",
    "FORMAT_VERSION",
    "HEAR_ROLE",
    "IN_PLACE_ROLES",
    "LOOK_ROLE",
    "LOWER_CODES_ROLE",
    "LOWER_ROLE",
    "MANIFEST_NAME",
    "READ_CODES_ROLE",
    "READ_ROLE",
    "SEE_ROLE",
    "SHIPPED_BUNDLES",
    "UPPER_CODES_ROLE",
    "UPPER_ROLE",
    "WRITE_ACTIONS_ROLE",
    "WRITE_ROLE",
    "Bundle",
    "FileRecord",
    "GraphSpec",
    "Manifest",
    "ParityRecord",
    "PolicySpec",
    "RobotIdentity",
    "TensorSpec",
    "Thresholds",
    "checkpoint_stage",
    "file_digest",
    "file_record",
    "find_bundle",
    "policy_spec_from_json",
    "read_bundle",
    "require_robot",
    "shipped_base_path",
    "shipped_bundle_path",
    "write_manifest",
]

FORMAT_VERSION = 3
"""Version of the folder's layout. A reader refuses a newer one by name. Version 2 seals the manifest with a digest of
its own, and says how far each part is from PyTorch, what verification accepts, and which robot the policy is for.
Version 3 knows graphs that multiply int8 or fp8 or read several tokens, patches, and parity vectors with PNG; what
version 2 had is read as before."""

MANIFEST_NAME = "manifest.json"

CHECKPOINT_NAME = "roboalign.json"
"""What a checkpoint describes itself in."""


EDGE_LLM_NAME = "edge_llm.json"
"""What a folder that was prepared for TensorRT Edge-LLM describes itself in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    """The folder."""
    manifest: Manifest
    """What it says about itself."""

    def file(self, name: str) -> Path:
        """Returns the path of a listed file; a file that the manifest does not list is a BundleError."""
        if name not in self.manifest.files:
            raise BundleError(
                f"bundle {self.path} has no file {name!r}; it lists {', '.join(sorted(self.manifest.files))}"
            )
        return self.path / name


SHIPPED_BUNDLES = ("nano-policy", "nano-so101")
"""Bundles that come with the package: for the Panda, which is meant where none is named, and for the SO-101."""


def find_bundle(path: str | Path | None) -> Path:
    """Returns the folder that a path means: that of a shipped bundle for None, and for its name unless it is a folder.

    Raises:
        BundleError: this installation lacks the shipped bundle.
    """
    if path is None:
        return shipped_bundle_path()
    if str(path) in SHIPPED_BUNDLES and not Path(path).exists():
        return shipped_bundle_path(str(path))
    return Path(path)


def shipped_bundle_path(name: str = SHIPPED_BUNDLES[0]) -> Path:
    """Returns the folder of a bundle that comes with the package; BundleError when this installation lacks it."""
    path = _models_folder() / name
    if not (path / MANIFEST_NAME).is_file():
        raise BundleError(
            f"this installation has no shipped bundle at {path}; "
            "name one, e.g. the folder that 'roboalign export' printed"
        )
    return path


def shipped_base_path() -> Path:
    """Returns the checkpoint that training starts from and that comes with the package, `nano-base`.

    Raises:
        BundleError: this installation lacks it.
    """
    path = _models_folder() / "nano-base"
    if not (path / CHECKPOINT_NAME).is_file():
        raise BundleError(f"the shipped model {path} is not there; install roboalign again, or clone it anew")
    return path


def _models_folder() -> Path:
    return Path(str(resources.files("roboalign.sdk"))) / "models"


def checkpoint_stage(path: Path) -> str | None:
    """Returns the training stage of a checkpoint directory, or None when `path` is no checkpoint."""
    try:
        stage = json.loads((path / CHECKPOINT_NAME).read_text(encoding="utf-8")).get("stage")
    except (OSError, ValueError, AttributeError):
        return None
    return stage if isinstance(stage, str) else "unknown"


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file, read in pieces: weights may be as large as what memory a board has left."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def file_record(path: Path) -> FileRecord:
    """Returns digest and length of a file."""
    return FileRecord(sha256=file_digest(path), num_bytes=path.stat().st_size)


def read_bundle(path: str | Path) -> Bundle:
    """Reads a bundle and verifies every file in it.

    Raises:
        BundleError: the folder is missing, is something else, was written by a newer version, or is altered.
    """
    folder = Path(path)
    if not folder.exists():
        raise BundleError(
            f"no bundle at {folder}: there is no such folder; 'roboalign export' writes one and prints its path"
        )
    if not (folder / MANIFEST_NAME).is_file():
        raise BundleError(_not_a_bundle(folder))
    manifest = _read_manifest(folder / MANIFEST_NAME)
    check_manifest(manifest, folder)
    for name, record in manifest.files.items():
        _verify(folder, name, record)
    sizes = {name: record.num_bytes for name, record in manifest.files.items()}
    for name in manifest.files:
        if name.endswith(".safetensors"):
            check_safetensors(folder / name)
    for graph in manifest.graphs.values():
        check_graph_references(folder / graph.file, sizes)
    check_statistics(manifest, folder)
    return Bundle(path=folder, manifest=manifest)


def require_robot(manifest: Manifest, names: Collection[str], where: str | Path) -> None:
    """Raises BundleError when a bundle was made for another robot; one that does not name its robot passes.

    Args:
        manifest: of the bundle.
        names: what the robot here is called: its kind, its simulated arm, its own name.
        where: the bundle, for the message.
    """
    if manifest.robot is not None and manifest.robot.name and manifest.robot.name not in names:
        here = next(iter(names), "unknown")
        raise BundleError(
            f"bundle {where} is for the robot {manifest.robot.name}, and this is {here}; "
            "name a bundle that was trained for this one, or, where it is the same kind of arm, give it that name"
        )


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Writes `manifest.json` into a folder, sealed with a digest of itself, and returns its path."""
    path = folder / MANIFEST_NAME
    content = asdict(manifest)
    if manifest.policy.prompt.patches is None:
        del content["policy"]["prompt"]["patches"]  # as in the files from before there were any
    path.write_text(sealed_text(content), encoding="utf-8")
    return path


def policy_spec_from_json(value: object, where: str) -> PolicySpec:
    """Returns the description of a policy that a JSON file holds; what does not fit is a BundleError naming `where`."""
    return cast(PolicySpec, from_json(PolicySpec, value, where))


def _not_a_bundle(path: Path) -> str:
    if not path.is_dir():
        return f"{path} is a file, expected a bundle, which is a folder with a {MANIFEST_NAME}"
    if (path / EDGE_LLM_NAME).is_file():
        return (
            f"{path} is not a bundle: it was prepared for TensorRT Edge-LLM; act from it with "
            "sdk.Policy.load(..., backend='edge-llm', actions='fast')"
        )
    stage = checkpoint_stage(path)
    if stage is None:
        return f"{path} is not a bundle: it has no {MANIFEST_NAME}; 'roboalign export' writes one and prints its path"
    if stage == "head":
        return f"{path} is a checkpoint of stage 'head', not a bundle; make one of it with: roboalign export {path}"
    steps = "train it on with 'roboalign train', up to 'roboalign train head', then 'roboalign export'"
    return f"{path} is a checkpoint of stage {stage!r}, not a bundle, and has no action head; {steps}"


def _read_manifest(path: Path) -> Manifest:
    if path.is_symlink():
        raise BundleError(f"{path} is a link; copy the bundle with its files (cp -rL), so that it holds them itself")
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except (OSError, ValueError, RecursionError) as err:
        raise BundleError(
            f"{path} is not readable JSON ({err}); the bundle is truncated, copy or export it again"
        ) from err
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is not int or version < 1:
        raise BundleError(f"{path} states no format_version; it is not a roboalign bundle, or it was edited")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"bundle {path.parent} has format version {version} (by roboalign {data.get('roboalign_version')}), "
            f"roboalign {__version__} reads up to version {FORMAT_VERSION}; upgrade roboalign, or export with this one"
        )
    if version > 1:
        _check_seal(path, text, data)
    try:
        return cast(Manifest, from_json(Manifest, data, "manifest", absent=SINCE_VERSION_2 if version < 2 else {}))
    except RoboalignError as err:
        raise BundleError(
            f"{path}: {err}; the bundle was edited or written by another version, export it again"
        ) from err


def _check_seal(path: Path, text: str, data: dict[str, object]) -> None:
    seal = data.pop(SEAL_NAME, None)
    try:
        written = sealed_text(data)
    except ValueError:  # not a number
        written = ""
    if text != written:
        raise BundleError(
            f"{path} is altered: its content does not have the digest {seal!r:.14}... that it states; copy or export "
            "the bundle again"
        )


def _verify(folder: Path, name: str, record: FileRecord) -> None:
    path = folder / name
    if path.is_symlink():
        raise BundleError(
            f"bundle {folder}: {name} is a link, which may lead outside; copy the bundle with its files (cp -rL)"
        )
    if not path.is_file():
        raise BundleError(f"bundle {folder} is incomplete: {name} is missing; copy or export it again")
    num_bytes = path.stat().st_size
    if num_bytes != record.num_bytes:
        raise BundleError(
            f"bundle {folder} is damaged: {name} has {num_bytes} bytes, expected {record.num_bytes}; "
            "copy or export it again"
        )
    found = file_digest(path)
    if found != record.sha256:
        raise BundleError(
            f"bundle {folder} is altered: {name} has sha256 {found[:12]}..., expected {record.sha256[:12]}...; "
            "copy or export it again"
        )
