"""Finds the run that is meant when none is named; reads what checkpoints say about themselves, loads none."""

from __future__ import annotations

from pathlib import Path

from roboalign.sdk.bundle import CHECKPOINT_NAME, checkpoint_stage
from roboalign.sdk.errors import BundleError

__all__ = ["newest_run"]


def newest_run(runs_dir: Path) -> Path:
    """Returns the newest finished checkpoint with an action head below a folder; BundleError when there is none."""
    found = [path for path in Path(runs_dir).rglob(CHECKPOINT_NAME) if _is_head(path)]
    if not found:
        raise BundleError(
            f"no finished run with an action head below {runs_dir}; "
            "train one with 'roboalign train head', or name a checkpoint"
        )
    return max(found, key=lambda path: (path.stat().st_mtime_ns, str(path))).parent


def _is_head(meta_path: Path) -> bool:
    # Folders in the making are hidden or end in .partial.
    parts = meta_path.parent.parts[-2:]
    return checkpoint_stage(meta_path.parent) == "head" and not any(
        part.startswith(".") or part.endswith(".partial") for part in parts
    )
