"""The frozen initial states: compact JSON lines beside this module, checked against a manifest when they are read.

`python -m roboalign.sdk.suites.states` writes them.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from roboalign.sdk.errors import DataError
from roboalign.sdk.sim.scene import SceneSpec, scene_from_json
from roboalign.sdk.sim.seeds import EVAL_OFFSET

__all__ = ["FOLDER", "FORMAT", "MANIFEST", "frozen_scene", "read_lines", "read_manifest"]

FOLDER = Path(__file__).parent / "initial_states"
"""Where the package keeps the states."""
MANIFEST = "manifest.json"
"""Names the files with their SHA-256, and a SHA-256 of the scenes of every task, split and arm."""
FORMAT = 1
"""Version of the manifest."""
_ADVICE = "reinstall roboalign, or rebuild the store with: python -m roboalign.sdk.suites.states --write --force"


def frozen_scene(task: str, seed: int, split: str = "train") -> SceneSpec | None:
    """Returns the frozen initial state that an evaluation seed stands for; None when there is none.

    There is one for each of the first 50 evaluation seeds of a suite's task in the split `train`; the other splits are
    drawn from the same seeds.

    Raises:
        DataError: A file of the store is missing or altered.
    """
    suite, is_suite, _ = task.partition("/")
    index = seed - EVAL_OFFSET
    if not is_suite or split != "train" or index < 0:
        return None
    lines = _lines_of(suite).get(task, ())
    return scene_from_json(lines[index]) if index < len(lines) else None


@functools.cache
def _lines_of(suite: str) -> Mapping[str, tuple[str, ...]]:
    file = f"{suite}.jsonl.gz"
    return read_lines(FOLDER, file) if file in _files() else {}


@functools.cache
def _files() -> frozenset[str]:
    return frozenset(read_manifest(FOLDER)["files"])


def read_manifest(folder: Path) -> dict[str, dict[str, str]]:
    """Returns the manifest: `files` (name to SHA-256) and `scenes` (arm, task and split to SHA-256).

    Raises:
        DataError: It is missing, not JSON, or of another version.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise DataError(f"{path} has format {found['format']}, this version reads {FORMAT}; {_ADVICE}")
        return {"files": dict(found["files"]), "scenes": dict(found["scenes"])}
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as err:
        raise DataError(
            f"the manifest of the frozen initial states {path} cannot be read ({err!r}); {_ADVICE}"
        ) from err


def read_lines(folder: Path, file: str) -> dict[str, tuple[str, ...]]:
    """Returns the states of one file by task, as JSON lines, after comparing its SHA-256 with the manifest.

    Raises:
        DataError: The file is missing or is not the one that the manifest names.
    """
    path = folder / file
    expected = read_manifest(folder)["files"].get(file)
    try:
        data = path.read_bytes()
    except OSError as err:
        raise DataError(f"the frozen initial states {path} cannot be read ({err}); {_ADVICE}") from err
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise DataError(
            f"the frozen initial states {path} are not the published ones: SHA-256 {found}, expected {expected};"
            f" scores would not compare; {_ADVICE}"
        )
    lines: dict[str, list[str]] = {}
    for line in gzip.decompress(data).decode("utf-8").splitlines():
        lines.setdefault(str(json.loads(line)["task"]), []).append(line)
    return {task: tuple(of_task) for task, of_task in lines.items()}
