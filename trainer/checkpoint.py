"""Checkpoint directories: one Hugging Face style folder for each finished stage, written at once or not at all.

A checkpoint holds `config.json`, `model.safetensors`, the processor files, `fast.json` (from `sft` on),
`head.safetensors` and `head.json` (from `head` on) and `roboalign.json`: the stage, its parent, seeds, metrics,
versions and the sha256 of every other file. A stage works in `partial_dir(output)`; only its finished result gets the
final name.

The state needed to resume a stage is not part of a checkpoint (see `trainer/resume.py`). Nothing here is a pickle.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.types import STATE_NAMES
from roboalign.trainer.folders import is_main_process, move_into_place, partial_dir, temporary_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from roboalign.sdk.fast import FastCodec

__all__ = [
    "FORMAT_VERSION",
    "META_FILE",
    "STAGES",
    "Checkpoint",
    "CheckpointMeta",
    "SavesInto",
    "load_checkpoint",
    "partial_dir",
    "save_checkpoint",
    "sha256_of_file",
    "trained_for",
]

FORMAT_VERSION = 1
META_FILE = "roboalign.json"
STAGES = ("base", "sft", "align", "head")

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_VERSIONED_PACKAGES = ("torch", "transformers", "trl", "accelerate", "tokenizers", "safetensors", "numpy")


_ROBOT: ContextVar[str | None] = ContextVar("robot", default=None)
_CAMERA: ContextVar[str | None] = ContextVar("camera", default=None)
_STATE: ContextVar[tuple[str, ...]] = ContextVar("state", default=STATE_NAMES)


@contextmanager
def trained_for(
    robot: str | None, camera: str | None = None, state_names: tuple[str, ...] = STATE_NAMES
) -> Iterator[None]:
    """Names the robot, camera and state that are written into every checkpoint made in this context."""
    given: tuple[tuple[ContextVar[Any], object], ...] = ((_ROBOT, robot), (_CAMERA, camera), (_STATE, state_names))
    before = [(variable, variable.set(value)) for variable, value in given]
    try:
        yield
    finally:
        for variable, token in before:
            variable.reset(token)


class SavesInto(Protocol):
    """Anything that can write its files into a checkpoint directory (the action codec, the action head)."""

    def save(self, directory: Path, /) -> object:
        """Writes its files into `directory`, which exists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointMeta:
    """What `roboalign.json` says about a checkpoint."""

    stage: str
    """The stage that made it, one of `STAGES`."""
    recipe: str
    """Name of the recipe, e.g. `nano-debug`."""
    parent: str | None = None
    """Directory name of the checkpoint that it started from; None for a model made from nothing."""
    parent_sha256: str | None = None
    """`Checkpoint.sha256` of the parent."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    """Every seed that entered the run."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Numbers measured by the run (JSON values)."""
    data_hash: str | None = None
    """Hash of the dataset that it was trained on."""
    robot: str | None = None
    """Robot of that dataset; filled in when the checkpoint is written, None where the data did not say."""
    camera: str | None = None
    """Camera whose pictures it saw there; filled in as well, None means `front`."""
    state_names: tuple[str, ...] | None = None
    """Entries of the state there; filled in as well, None means `STATE_NAMES`."""
    wall_s: float = 0.0
    """Wall-clock seconds of the run."""
    cpu_s: float = 0.0
    """CPU seconds of the run, all threads."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that a reader needs (JSON values), e.g. `{"pairing": "zero-shot"}`."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package versions; filled in when the checkpoint is written."""
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of every other file; filled in when the checkpoint is written."""
    format_version: int = FORMAT_VERSION
    """Layout of the directory."""

    @property
    def states(self) -> tuple[str, ...] | None:
        """Entries of the state that the model learnt from; None for a base, which any state fits."""
        return None if self.stage == "base" else tuple(self.state_names or STATE_NAMES)

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ConfigError(f"CheckpointMeta.stage is {self.stage!r}, expected one of {', '.join(STAGES)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint directory whose files were found complete and unaltered."""

    path: Path
    """The directory."""
    meta: CheckpointMeta
    """What its `roboalign.json` says."""

    @property
    def sha256(self) -> str:
        """One hash for the whole checkpoint: over the names and hashes of its files."""
        lines = "".join(f"{name} {digest}\n" for name, digest in sorted(self.meta.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def load_model(self, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Returns the model in evaluation mode, read from this directory alone."""
        from roboalign.trainer.backbone import load_model

        return load_model(self.path, dtype=dtype)

    def load_processor(self) -> ProcessorMixin:
        """Returns the processor (tokenizer and image processor) of the model."""
        from roboalign.trainer.backbone import load_processor

        return load_processor(self.path)

    def load_codec(self) -> FastCodec:
        """Returns the action codec; raises BundleError when the stage had none yet."""
        from roboalign.sdk.fast import FastCodec

        if "fast.json" not in self.meta.files:
            raise BundleError(
                f"{self.path} is a {self.meta.stage} checkpoint without an action codec (fast.json); "
                "give a checkpoint of stage sft or later"
            )
        return FastCodec.load(self.path)


def sha256_of_file(path: Path) -> str:
    """Returns the hex sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_checkpoint(
    output: Path,
    *,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    meta: CheckpointMeta,
    codec: SavesInto | None = None,
    head: SavesInto | None = None,
    dtype: str = "fp32",
    extra_files: Mapping[str, Path] | None = None,
) -> Checkpoint:
    """Writes a checkpoint under a temporary name, then renames it to `output`, replacing what was there.

    Of several processes of one run, only the first writes.

    Args:
        output: final directory.
        model: weights are cast to `dtype` in a copy; the model itself is unchanged.
        processor: tokenizer and image processor.
        meta: `versions`, `files`, `robot` and `camera` are filled in here.
        codec: writes `fast.json`.
        head: writes `head.safetensors` and `head.json`.
        dtype: `fp32`, `fp16` or `bf16`.
        extra_files: files to copy in, by their name in the checkpoint (metrics, plots, the resolved configuration).
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"checkpoint dtype is {dtype!r}, expected one of {', '.join(_DTYPES)}")
    output = Path(output)
    if not is_main_process():
        return Checkpoint(path=output, meta=meta)
    temporary = temporary_dir(output)
    try:
        _write_model(temporary, model, _DTYPES[dtype])
        processor.save_pretrained(temporary)
        for part in (codec, head):
            if part is not None:
                part.save(temporary)
        for name, source in (extra_files or {}).items():
            (temporary / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, temporary / name)
        files = {
            str(path.relative_to(temporary)): sha256_of_file(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        robot, camera = meta.robot or _ROBOT.get(), meta.camera or _CAMERA.get()
        state = meta.state_names or _STATE.get()
        meta = replace(meta, versions=_package_versions(), files=files, robot=robot, camera=camera, state_names=state)
        (temporary / META_FILE).write_text(json.dumps(asdict(meta), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        move_into_place(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Checkpoint(path=output, meta=meta)


def load_checkpoint(
    path: Path, *, expect_stage: str | tuple[str, ...] | None = None, verify: bool = True
) -> Checkpoint:
    """Returns the checkpoint in `path` after checking its stage and every file.

    Args:
        path: the directory.
        expect_stage: the stage or stages that the caller can use; None accepts all.
        verify: also compare the sha256 of every file.

    Raises:
        BundleError: nothing there, no checkpoint, a newer format, another stage, or a damaged file.
    """
    path = Path(path)
    if not path.is_dir():
        hint = " (a partial run is there; let it finish)" if partial_dir(path).is_dir() else ""
        raise BundleError(f"no checkpoint folder at {path}{hint}; give the folder that a training stage wrote")
    meta = _read_meta(path)
    expected = (expect_stage,) if isinstance(expect_stage, str) else expect_stage
    if expected is not None and meta.stage not in expected:
        raise BundleError(
            f"{path} is a {meta.stage} checkpoint, expected {' or '.join(expected)}; give the folder of that stage"
        )
    for name, digest in meta.files.items():
        file = path / name
        if not file.is_file():
            raise BundleError(
                f"{path} lacks {name}, which its {META_FILE} lists; copy the folder again or rerun the stage"
            )
        if verify and sha256_of_file(file) != digest:
            raise BundleError(
                f"{file} is truncated or altered (sha256 differs from {META_FILE}); copy it again or rerun the stage"
            )
    return Checkpoint(path=path, meta=meta)


def _read_meta(path: Path) -> CheckpointMeta:
    file = path / META_FILE
    if not file.is_file():
        raise BundleError(
            f"{path} has no {META_FILE}, so it is no roboalign checkpoint; give the folder that a training stage wrote"
        )
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        version = int(raw["format_version"])
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{file} has format {version}, this version reads up to {FORMAT_VERSION}; install a newer one"
            )
        known = {item.name for item in fields(CheckpointMeta)}
        return CheckpointMeta(**{name: value for name, value in raw.items() if name in known})
    except (KeyError, TypeError, ValueError) as err:
        if isinstance(err, BundleError):
            raise
        raise BundleError(
            f"{file} is truncated or altered ({err}); copy the checkpoint again or rerun the stage"
        ) from err


def _write_model(directory: Path, model: PreTrainedModel, dtype: torch.dtype) -> None:
    # A copy, not a cast state dict: save_pretrained finds tied weights by storage and records the dtype of the model.
    if any(p.dtype != dtype for p in model.parameters()):
        model = copy.deepcopy(model).to(dtype)
    from roboalign.trainer.backbone import quiet_transformers

    with quiet_transformers():
        model.save_pretrained(directory)


def _package_versions() -> dict[str, str]:
    from roboalign import __version__

    versions = {"roboalign": __version__, "python": platform.python_version()}
    for name in _VERSIONED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
