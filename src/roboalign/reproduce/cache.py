"""What a step's result is filed under, and where: a hash of its command, the content of its inputs, and the source.

    <out>/steps/<step>/<key>/result          what the command wrote under `--out`
                             /step.json      written when it is done: command, hashes, time
                             /log.txt        what it printed
                             /lock           held by the command itself while it runs, even when whoever started it died

The source counts as what the Python files of the rooms that a command uses say, without comments and docstrings, plus
their other files; a name given by the user takes its place, for a run that must survive harmless changes of the source.
Package versions and the machine are not part of a key; results record them.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import roboalign
from roboalign.sdk.errors import ConfigError

__all__ = ["Record", "content_hash", "meaning", "read_record", "rooms_of", "source_hash", "step_key", "write_record"]

RECORD = "step.json"
"""File beside a result that says how it was made; only a finished (or refused) step has one."""
_ROOMS = {
    "collect": ("sdk",),
    "eval": ("sdk",),
    "train": ("sdk", "trainer"),
    "export": ("sdk", "trainer", "export"),
}
_ALL_ROOMS = ("sdk", "trainer", "export")
_NOT_SOURCE = ("__pycache__", "models")
"""Folders of a room that are not source: what is compiled, and shipped models, which count as inputs where used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """How a finished step was made."""

    id: str
    """Id of the step."""
    key: str
    """What it is filed under."""
    line: str
    """The command that ran."""
    outcome: str
    """`done` or `refused`."""
    reason: str
    """Why it refused."""
    content: str
    """Hash of the result; empty when it refused."""
    source: str
    """Name or hash of the source that its key holds."""
    source_sha256: str
    """Hash of the source that it ran with, whatever the key holds."""
    cpu_s: float
    """CPU seconds of the processes that made it; those of a runner that was killed are not in it."""
    wall_s: float
    """Wall seconds, likewise."""


def step_key(words: Sequence[str], inputs: Mapping[str, str], *, source: str) -> str:
    """Returns the key of a step.

    Args:
        words: Its command with the names of its inputs in braces.
        inputs: Hash of the content of each input, by its name.
        source: Name or hash of the source.
    """
    command = [_with_hashes(word, inputs) for word in words]
    return hashlib.sha256(json.dumps([command, source]).encode()).hexdigest()[:16]


def content_hash(path: Path) -> str:
    """Returns a hash of the names and bytes of all files of a folder (or of one file); hidden files do not count."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        name = str(file.relative_to(path))
        if any(part.startswith(".") for part in file.relative_to(path).parts):
            continue
        digest.update(f"{name}\n{_file_hash(file)}\n".encode())
    return digest.hexdigest()


def rooms_of(verb: str, inputs: Sequence[Path]) -> tuple[str, ...]:
    """Returns the rooms whose source decides what a command writes; a checkpoint that is evaluated runs on torch."""
    rooms = _ROOMS.get(verb, _ALL_ROOMS)
    is_checkpoint = any((path / name).is_file() for path in inputs for name in ("roboalign.json", "training.json"))
    return (*rooms, "trainer") if verb == "eval" and is_checkpoint else rooms


def source_hash(rooms: tuple[str, ...]) -> str:
    """Returns a hash of what the source of some rooms says; comments and docstrings say nothing."""
    return hashlib.sha256("".join(_room_hash(room) for room in rooms).encode()).hexdigest()[:16]


def meaning(source: str) -> str:
    """Returns Python source as its syntax tree, without comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    return ast.dump(tree)


def read_record(folder: Path) -> Record | None:
    """Returns how the step in a folder was made; None while it is not finished."""
    path = folder / RECORD
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        return Record(**json.loads(text))
    except (json.JSONDecodeError, TypeError) as err:
        raise ConfigError(f"{path} is damaged; delete {folder} to run the step again") from err


def write_record(folder: Path, record: Record) -> None:
    """Files a finished step; a half-written record never has the final name."""
    partial = folder / f"{RECORD}.partial"
    partial.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / RECORD)


def _with_hashes(word: str, inputs: Mapping[str, str]) -> str:
    for name, digest in inputs.items():
        word = word.replace(f"{{{name}}}", f"<{digest}>")
    return word


def _is_text(node: ast.stmt) -> bool:
    """Whether a statement is a string by itself: a docstring, or the words under a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@lru_cache
def _room_hash(room: str) -> str:
    folder = (Path(roboalign.__file__).parent / room).resolve()
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or path.suffix == ".md" or any(part in _NOT_SOURCE for part in name.parts):
            continue
        content = path.read_bytes()
        said = meaning(content.decode("utf-8")).encode() if path.suffix == ".py" else content
        digest.update(f"{room}/{name}\n{hashlib.sha256(said).hexdigest()}\n".encode())
    return digest.hexdigest()
