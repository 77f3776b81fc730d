"""Where a stage's first weights come from: a checkpoint of ours, a Hugging Face folder, or an id on the model hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from roboalign.sdk.errors import BundleError
from roboalign.trainer.backbone import HuggingFaceBackbone, load_backbone
from roboalign.trainer.checkpoint import META_FILE, load_checkpoint, partial_dir

__all__ = ["Source", "find_folder", "open_source"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")
"""What is fetched: weights as safetensors, never pickles, never code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A backbone to start from, and what is known about its origin."""

    backbone: HuggingFaceBackbone
    """The model and its processor."""
    parent: str
    """Name for the child's metadata: the checkpoint's folder, or the id or folder as it was given."""
    sha256: str | None
    """`Checkpoint.sha256`; None for weights that are no checkpoint of ours."""


def open_source(base: Path, *, expect_stage: str = "base", dtype: torch.dtype = torch.float32) -> Source:
    """Returns the backbone at `base`: a checkpoint folder, a Hugging Face folder, or a hub id such as `Qwen/NAME`.

    Raises:
        BundleError: there is nothing to read, the checkpoint is of another stage, or the hub cannot be reached.
    """
    base = Path(base)
    if (base / META_FILE).is_file():
        parent = load_checkpoint(base, expect_stage=expect_stage)
        return Source(backbone=load_backbone(base, dtype=dtype), parent=parent.path.name, sha256=parent.sha256)
    folder = find_folder(base)
    backbone = load_backbone(folder, dtype=dtype)
    backbone.model.config.origin = str(base) if folder == base else f"{base}, revision {folder.name}"
    return Source(backbone=backbone, parent=str(base), sha256=None)


def find_folder(base: Path) -> Path:
    """Returns the folder of a Hugging Face model; an id is looked up among the downloaded ones, then on the hub."""
    if base.is_dir():
        if not (base / "config.json").is_file():
            raise BundleError(
                f"{base} has neither {META_FILE} nor config.json; give a checkpoint of ours, a Hugging Face folder, "
                "or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct"
            )
        return base
    name = str(base)
    if _HUB_ID.fullmatch(name) is None or partial_dir(base).is_dir():
        load_checkpoint(base)  # says what is there instead of a folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES), local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (OSError, ValueError) as err:
        reason = " ".join(str(err).split()).split(". ")[0][:160]
        raise BundleError(
            f"no folder {name}, and the model hub does not give {name!r} ({type(err).__name__}: {reason}); "
            "check the name, or copy the model here and give its folder"
        ) from err
