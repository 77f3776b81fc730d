"""Folders that appear at once or not at all, and what a kill may leave of them.

A folder is written beside its final name as `.<name>.<pid>.tmp`. While one replaces another, the older one is called
`.<name>.<pid>.old` for a moment; a kill in that moment leaves no folder under the final name, and `recover` finishes
what was begun. Nothing here needs torch.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

__all__ = ["is_main_process", "move_into_place", "partial_dir", "recover", "remove_folder", "temporary_dir"]


def partial_dir(output: Path) -> Path:
    """Returns the folder in which a stage works before its result gets the name `output`; it may not exist yet."""
    return output.with_name(output.name + ".partial")


def temporary_dir(output: Path) -> Path:
    """Returns a new empty folder beside `output`, for `move_into_place`."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def move_into_place(temporary: Path, output: Path) -> None:
    """Renames a finished folder to its final name and removes what was there: never a half-written folder there."""
    old = _old(output)
    if output.exists():
        output.rename(old)
    temporary.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder so that its name is gone at once: a kill in the middle leaves no half of it there."""
    old = _old(folder)
    folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def recover(output: Path) -> None:
    """Clears up after a process that was killed while it wrote, replaced or removed the folder `output`.

    The caller must be the only writer. A finished folder that was just taking the place of another one does so now.
    """
    if not output.parent.is_dir():
        return
    leftover = re.compile(rf"\.{re.escape(output.name)}\.\d+\.(tmp|old)")
    found = sorted(path for path in output.parent.iterdir() if leftover.fullmatch(path.name))
    for path in found:
        # The old folder steps aside only when the new one is complete; an old one alone was being removed.
        if path.suffix == ".tmp" and path.with_suffix(".old") in found and not output.exists():
            path.rename(output)
        else:
            shutil.rmtree(path, ignore_errors=True)


def is_main_process() -> bool:
    """Whether this process writes the files of a run: the only one, or the first of those that `accelerate` started."""
    return os.environ.get("RANK", "0") == "0"


def _old(output: Path) -> Path:
    return output.with_name(f".{output.name}.{os.getpid()}.old")
