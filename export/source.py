"""What an export starts from: a checkpoint of stage head, or a bundle whose weights are stored in full."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from roboalign.export.rounding import QUANTIZED_BITS
from roboalign.sdk.bundle import MANIFEST_NAME, file_digest, read_bundle
from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.trainer.checkpoint import load_checkpoint

__all__ = ["Source", "open_source"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A folder whose files were found complete and unaltered."""

    path: Path
    """The folder."""
    name: str
    """Name of the run."""
    files: frozenset[str]
    """Names of its files."""
    stage: str
    """Training stage of the model under the head."""
    parents: tuple[str, ...]
    """Digests of what the bundle will descend from, nearest first."""
    robot: str
    """Robot of the data that it was trained on; empty where they did not say."""
    history: tuple[str, ...]
    """How the model was made, as lines of Markdown for the card."""


def open_source(path: Path) -> Source:
    """Returns the checkpoint or bundle in a folder.

    Raises:
        BundleError: it is missing, altered, or a checkpoint without an action head.
        ConfigError: a bundle whose weights are codes already.
    """
    return _from_bundle(path) if (path / MANIFEST_NAME).is_file() else _from_checkpoint(path)


def _from_checkpoint(path: Path) -> Source:
    checkpoint = load_checkpoint(path)
    meta = checkpoint.meta
    if "head.safetensors" not in meta.files:
        raise BundleError(
            f"{path} is a checkpoint of stage {meta.stage!r} without an action head; "
            "train one on it with 'roboalign train head', then export that"
        )
    seeds = ", ".join(f"{key} {value}" for key, value in sorted(meta.seeds.items()))
    history = [
        f"Made by recipe {meta.recipe}; seeds: {seeds}; data {meta.data_hash}; head training {meta.cpu_s:.0f} CPU s."
    ]
    origin = json.loads((path / "config.json").read_text(encoding="utf-8")).get("origin")
    if origin is not None:
        history += ["", f"Its first weights: {origin}."]
    measured = [
        f"| {key} | {value:.4g} |" for key, value in sorted(meta.metrics.items()) if isinstance(value, float | int)
    ]
    if measured:
        history += ["", "| measured by the head's training | |", "|---|---|", *measured]
    return Source(
        path=path,
        name=path.resolve().name,
        files=frozenset(meta.files),
        stage=str(meta.notes.get("backbone_stage", meta.stage)),
        parents=tuple(digest for digest in (checkpoint.sha256, meta.parent_sha256) if digest),
        robot=meta.robot or "",
        history=tuple(history),
    )


def _from_bundle(path: Path) -> Source:
    manifest = read_bundle(path).manifest
    if manifest.precision in QUANTIZED_BITS:
        raise ConfigError(
            f"the bundle {path} holds {manifest.precision} weights, which cannot be rounded again; "
            "export from its checkpoint, or from a bundle in fp16 or fp32"
        )
    digest = file_digest(path / MANIFEST_NAME)
    return Source(
        path=path,
        name=manifest.name,
        files=frozenset(manifest.files),
        stage=manifest.stage,
        parents=(digest, *manifest.parents),
        robot="" if manifest.robot is None else manifest.robot.name,
        history=(f"Made from the weights of a bundle in {manifest.precision}, manifest {digest[:12]}; see its card.",),
    )
