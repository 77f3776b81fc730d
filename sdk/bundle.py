"""The bundle: a folder that holds everything a robot needs to act, described by its `manifest.json`.

    manifest.json       what this file describes: graphs, names, units, statistics, hashes, parity
    prefill.onnx, step.onnx, flow.onnx    plain ONNX operators; their weights lie in the two files below
    model.safetensors, head.safetensors   each weight once, shared by the graphs
    tokenizer.json, fast.json, config.json, head.json, README.md

Reading needs the folder only. Every file is hashed before it is used. Nothing here executes what it reads.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Union, cast, get_args, get_origin, get_type_hints

from roboalign import __version__
from roboalign.sdk.errors import BundleError, RoboalignError
from roboalign.sdk.prompt import PromptFormat

__all__ = [
    "CHECKPOINT_NAME",
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "SHIPPED_BUNDLES",
    "Bundle",
    "FileRecord",
    "GraphSpec",
    "Manifest",
    "ParityRecord",
    "PolicySpec",
    "TensorSpec",
    "checkpoint_stage",
    "file_record",
    "find_bundle",
    "read_bundle",
    "record_from_json",
    "shipped_bundle_path",
    "write_manifest",
]

FORMAT_VERSION = 1
"""Version of the folder's layout. A reader refuses a newer one by name."""

MANIFEST_NAME = "manifest.json"

CHECKPOINT_NAME = "roboalign.json"
"""What a checkpoint describes itself in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    """Name in the ONNX file."""
    shape: tuple[int, ...]
    """Every dimension is fixed, so that an engine builder needs no profile."""
    dtype: str
    """`float32`, `float16` or `int64`."""
    unit: str
    """Unit of the values, or what they count."""
    fields: tuple[str, ...] = ()
    """Names along the last dimension, in order; empty when they have none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphSpec:
    """One ONNX file."""

    file: str
    """File name inside the bundle."""
    opset: int
    """Version of the ai.onnx operator set, the only one that is used."""
    inputs: tuple[TensorSpec, ...]
    """In the order of the file."""
    outputs: tuple[TensorSpec, ...]
    """In the order of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """What a file must be to be believed."""

    sha256: str
    """Hexadecimal digest of the content."""
    num_bytes: int
    """Length of the content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityRecord:
    """The comparison of this bundle's graphs with PyTorch on the same weight bytes, made when it was exported."""

    num_observations: int
    """How many observations both sides answered."""
    max_action_error: float
    """Largest difference of any action field, as a share of that field's range."""
    tolerance: float
    """Largest difference that was accepted."""
    action_spread: float
    """Largest variation of any action field over the observations, as a share of its range."""
    num_tokens: int
    """Tokens that both sides chose by greedy decoding, all identical."""
    num_distinct_tokens: int
    """Different tokens among them; a comparison of one repeated token would prove nothing."""
    num_distinct_sequences: int
    """Different answers among the observations."""
    inputs: str
    """Where the observations came from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySpec:
    """What a policy needs from the robot and promises to it, with everything that prepares and reads its tensors."""

    horizon: int
    """Actions in a chunk."""
    rate_hz: float
    """Rate at which they are meant to be applied."""
    camera_names: tuple[str, ...]
    """Cameras that an observation must hold."""
    image_size_px: int
    """Height and width of each picture."""
    state_names: tuple[str, ...]
    """Fields of `Observation.state`, in order."""
    action_names: tuple[str, ...]
    """Fields of an action, in order."""
    action_low: tuple[float, ...]
    """1st percentile of each action field, in its unit: -1 in normalised actions."""
    action_high: tuple[float, ...]
    """99th percentile of each action field, in its unit: +1 in normalised actions."""
    prompt: PromptFormat
    """How observations become prompts."""
    max_prompt_tokens: int
    """Longest prompt, image tokens included."""
    max_thought_tokens: int
    """Thought budget; a longer thought is closed there."""
    max_tokens: int
    """Longest sequence in all: prompt, thought and answer."""
    hidden_size: int
    """Width of the hidden states that condition the action head."""
    has_head: bool
    """False for a policy that can only write action tokens."""
    has_actions: bool = True
    """False for a model that never learnt action tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The content of `manifest.json`."""

    format_version: int
    """Layout of the folder, see `FORMAT_VERSION`."""
    roboalign_version: str
    """Version that wrote the bundle."""
    source_commit: str
    """Commit of the exporter's source tree, or `unknown`."""
    name: str
    """Name of the bundle, from its run."""
    model: str
    """Architecture of the vision-language model."""
    tokenizer_sha256: str
    """Which tokenizer wrote the training texts."""
    codec_hash: str
    """Which action codec."""
    target: str
    """Machine the bundle is meant for: `cpu`, `host`, a board such as `agx-thor`, or `jetson` for any board."""
    built: bool
    """True when the folder can run on its target as it is; False when the target still has to compile it."""
    next_command: str
    """What to type on the target when `built` is False, otherwise empty."""
    precision: str
    """How weights are stored: `fp16` or `fp32`. Arithmetic is float32 either way."""
    stage: str
    """Training stage of the model under the head: `sft` or `align`."""
    parents: tuple[str, ...]
    """Digests of the checkpoints it descends from, nearest first."""
    policy: PolicySpec
    """How to act with it."""
    graphs: Mapping[str, GraphSpec]
    """By role: `prefill`, `step`, `flow`."""
    files: Mapping[str, FileRecord]
    """Every file except the manifest."""
    parity: ParityRecord | None = field(default=None)
    """How far the graphs are from PyTorch."""


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
    path = Path(str(resources.files("roboalign.sdk"))) / "models" / name
    if not (path / MANIFEST_NAME).is_file():
        raise BundleError(
            f"this installation has no shipped bundle at {path}; "
            "name one, e.g. the folder that 'roboalign export' printed"
        )
    return path


def checkpoint_stage(path: Path) -> str | None:
    """Returns the training stage of a checkpoint directory, or None when `path` is no checkpoint."""
    try:
        stage = json.loads((path / CHECKPOINT_NAME).read_text(encoding="utf-8")).get("stage")
    except (OSError, ValueError, AttributeError):
        return None
    return stage if isinstance(stage, str) else "unknown"


def file_record(path: Path) -> FileRecord:
    """Returns digest and length of a file."""
    content = path.read_bytes()
    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))


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
    for name, record in manifest.files.items():
        _verify(folder, name, record)
    return Bundle(path=folder, manifest=manifest)


def record_from_json(kind: type, data: object, where: str) -> object:
    """Builds a dataclass from JSON by its annotations; what does not fit is a BundleError that names the field."""
    return _from_json(kind, data, where)


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Writes `manifest.json` into a folder and returns its path."""
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


def _not_a_bundle(path: Path) -> str:
    if not path.is_dir():
        return f"{path} is a file, expected a bundle, which is a folder with a {MANIFEST_NAME}"
    stage = checkpoint_stage(path)
    if stage is None:
        return f"{path} is not a bundle: it has no {MANIFEST_NAME}; 'roboalign export' writes one and prints its path"
    if stage == "head":
        return f"{path} is a checkpoint of stage 'head', not a bundle; make one of it with: roboalign export {path}"
    steps = "train it on with 'roboalign train', up to 'roboalign train head', then 'roboalign export'"
    return f"{path} is a checkpoint of stage {stage!r}, not a bundle, and has no action head; {steps}"


def _read_manifest(path: Path) -> Manifest:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise BundleError(
            f"{path} is not readable JSON ({err}); the bundle is truncated, copy or export it again"
        ) from err
    version = data.get("format_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{path} states no format_version; it is not a roboalign bundle, or it was edited")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"bundle {path.parent} has format version {version} (by roboalign {data.get('roboalign_version')}), "
            f"roboalign {__version__} reads up to version {FORMAT_VERSION}; upgrade roboalign, or export with this one"
        )
    try:
        return cast(Manifest, _from_json(Manifest, data, "manifest"))
    except RoboalignError as err:
        raise BundleError(
            f"{path}: {err}; the bundle was edited or written by another version, export it again"
        ) from err


def _verify(folder: Path, name: str, record: FileRecord) -> None:
    if Path(name).name != name:
        raise BundleError(f"bundle {folder} lists the file {name!r}, which lies outside it; do not use this bundle")
    path = folder / name
    if not path.is_file():
        raise BundleError(f"bundle {folder} is incomplete: {name} is missing; copy or export it again")
    found = file_record(path)
    if found.num_bytes != record.num_bytes:
        raise BundleError(
            f"bundle {folder} is damaged: {name} has {found.num_bytes} bytes, expected {record.num_bytes}; "
            "copy or export it again"
        )
    if found.sha256 != record.sha256:
        raise BundleError(
            f"bundle {folder} is altered: {name} has sha256 {found.sha256[:12]}..., expected {record.sha256[:12]}...; "
            "copy or export it again"
        )


def _from_json(kind: object, value: object, where: str) -> object:
    """Builds a value of an annotated type from JSON; what does not fit is a BundleError that names the field."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _from_json(args[0], value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple and isinstance(value, list):
        return tuple(_from_json(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {str(key): _from_json(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is PromptFormat and isinstance(value, dict):
        return PromptFormat.from_json(value)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return _dataclass_from_json(kind, value, where)
    if isinstance(kind, type) and origin is None and type(value) is kind:
        return value
    raise BundleError(f"{where} is {value!r:.40}, expected {getattr(kind, '__name__', kind)}")


def _dataclass_from_json(kind: type, value: Mapping[str, object], where: str) -> object:
    names = {f.name for f in fields(kind)}
    if set(value) != names:
        raise BundleError(f"{where} has missing or unknown fields {sorted(set(value) ^ names)}")
    hints = get_type_hints(kind)
    return cast(
        object, kind(**{name: _from_json(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    )
