"""Image-chat files in LLaVA's format: JSON lines, a JSON list, or Parquet.

A row has `conversations` (turns with `from`: `human` or `gpt`, and `value`) or `messages` (turns with `role` and
`content`), and mostly `image`: a path, the bytes of a picture file, or a `data:` address. `<image>` marks in a turn are
taken out, since the prompt has a place of its own for the picture. Every answer of a conversation is one sample; with
`joined` its prompt holds all turns before it, with `split` only the question right before it.

An answer may be a whole reply, `<think>...</think><answer>...</answer>`. A row may also have `state` (the numbers of
the robot's state) and `action` (float[T][A], raw, one answer); the answer is then `<think>...</think>` or empty, and
what follows it are the action's tokens. `roboalign data distill` writes such rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from roboalign.sdk.data.arrow import import_pyarrow, open_parquet_error
from roboalign.sdk.errors import DataError
from roboalign.sdk.reply import parse_reply, write_reply
from roboalign.sdk.types import FloatArray

__all__ = ["ChatFile", "ChatSample"]

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_PICTURE_MARK = "<image>"
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatSample:
    """One answer of a conversation."""

    row: int
    """Row of the file, counted from 1."""
    text: str
    """What is asked."""
    thought: str | None
    """Reasoning before the answer."""
    answer: str | None
    """The answer in words; None where the answer is `action`."""
    image: str | bytes | None
    """Path, `data:` address or file bytes of the picture; None for text alone."""
    state: FloatArray | None = None
    """float32[S]; None when no robot took the picture."""
    action: FloatArray | None = None
    """float32[T, A], raw; None for an answer in words."""


class ChatFile:
    """A chat file on disk. Rows are read when they are asked for; opening it reads all turns once and checks them.

    Args:
        path: `.jsonl`, `.json` or `.parquet`.
        turns: `joined` or `split`.

    Raises:
        DataError: the file is missing, of another kind, empty, or has a row that is no conversation.
    """

    def __init__(self, path: Path, *, turns: str = "joined") -> None:
        self.path = path
        self._turns = turns
        if not path.is_file():
            raise DataError(f"there is no chat file {path}; check the path of the source")
        readers: dict[str, Callable[[Path], _Rows]] = {".jsonl": _JsonLines, ".json": _JsonList, ".parquet": _Parquet}
        if path.suffix not in readers:
            raise DataError(f"{path} ends in {path.suffix!r}, expected one of {', '.join(readers)}")
        self._rows: _Rows = readers[path.suffix](path)
        with closing(self._rows.without_pictures()) as rows:
            counts = [len(_samples(path, number, row, turns)) for number, row in enumerate(rows, 1)]
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        if len(self) == 0:
            raise DataError(f"{path} holds no answer, expected at least one conversation; fill it or leave it out")

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def num_rows(self) -> int:
        """Conversations, each of one answer or more."""
        return len(self._first) - 1

    def at(self, index: int) -> ChatSample:
        """Returns one sample."""
        row = int(np.searchsorted(self._first, index, side="right")) - 1
        return _samples(self.path, row + 1, self._rows.row(row), self._turns)[index - int(self._first[row])]


class _Rows(Protocol):
    def without_pictures(self) -> Generator[Mapping[str, Any], None, None]:
        """Yields all rows; pictures may be left out."""

    def row(self, index: int) -> Mapping[str, Any]:
        """Returns one row, whole."""


class _JsonLines:
    """Keeps where each line begins, so that a file of millions of rows needs little memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts: list[int] = []

    def without_pictures(self) -> Generator[Mapping[str, Any], None, None]:
        with self._path.open("rb") as stream:
            start = 0
            for number, line in enumerate(stream, 1):
                if line.strip():
                    self._starts.append(start)
                    yield _parse(self._path, f"line {number}", line)
                start += len(line)

    def row(self, index: int) -> Mapping[str, Any]:
        with self._path.open("rb") as stream:
            stream.seek(self._starts[index])
            return _parse(self._path, f"row {index + 1}", stream.readline())


class _JsonList:
    def __init__(self, path: Path) -> None:
        content = _parse(path, "the file", path.read_bytes())
        if not isinstance(content, list):
            raise DataError(f"{path} holds a {type(content).__name__}, expected a list of conversations")
        self._content: list[Mapping[str, Any]] = content

    def without_pictures(self) -> Generator[Mapping[str, Any], None, None]:
        yield from self._content

    def row(self, index: int) -> Mapping[str, Any]:
        return self._content[index]


class _Parquet:
    """Reads a row group at a time and keeps the last one: files with small groups are quicker to draw from."""

    def __init__(self, path: Path) -> None:
        pa, parquet = import_pyarrow()
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, pa.ArrowException) as err:
            raise open_parquet_error(path, err) from err
        meta = self._file.metadata
        sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        self._first = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._group = lru_cache(maxsize=1)(self._file.read_row_group)

    def without_pictures(self) -> Generator[Mapping[str, Any], None, None]:
        names = [name for name in self._file.schema_arrow.names if name not in ("image", "images")]
        for batch in self._file.iter_batches(columns=names):
            yield from batch.to_pylist()

    def row(self, index: int) -> Mapping[str, Any]:
        group = int(np.searchsorted(self._first, index, side="right")) - 1
        found: Mapping[str, Any] = self._group(group).slice(index - int(self._first[group]), 1).to_pylist()[0]
        return found


def _parse(path: Path, where: str, text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as err:
        raise DataError(f"{path}: {where} is no JSON ({err})") from err


def _samples(path: Path, number: int, row: Mapping[str, Any], turns: str) -> list[ChatSample]:
    """The answers of one row; one line says what is wrong with it."""
    try:
        return _answers(number, row, turns)
    except DataError as err:
        raise DataError(f"{path}: row {number}: {err}") from err


def _answers(number: int, row: Mapping[str, Any], turns: str) -> list[ChatSample]:
    if not isinstance(row, Mapping):
        raise DataError(f"found a {type(row).__name__}, expected a conversation")
    said = _turns(row)
    image, state, action = _picture(row), _numbers(row, "state", 1), _numbers(row, "action", 2)
    if action is not None and [role for role, _ in said] != ["user", "assistant"]:
        raise DataError(f"an action answers one question, found {len(said)} turns")
    found: list[ChatSample] = []
    before: list[str] = []
    for role, text in said:
        if role == "assistant":
            thought, answer = _reply(text, has_action=action is not None)
            found.append(
                ChatSample(
                    row=number,
                    text="\n".join(before),
                    thought=thought,
                    answer=answer,
                    image=image,
                    state=state,
                    action=action,
                )
            )
            before = [*before, answer or ""] if turns == "joined" else []
        else:
            before.append(text)
    return found


def _turns(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Role and text of each turn; they must take turns, and begin with a question."""
    listed, role_key, text_key = row.get("conversations"), "from", "value"
    if listed is None:
        listed, role_key, text_key = row.get("messages"), "role", "content"
    if not isinstance(listed, list | tuple) or not listed:
        raise DataError(f"no conversations and no messages; found {', '.join(map(str, row)) or 'nothing'}")
    said: list[tuple[str, str]] = []
    for turn in listed:
        role = _ROLES.get(str(turn.get(role_key))) if isinstance(turn, Mapping) else None
        if role is None:
            raise DataError(
                f"a turn is {str(turn)[:60]!r}, expected {role_key} (one of {', '.join(_ROLES)}) and {text_key}"
            )
        text = _plain(turn.get(text_key))
        if role == "user" and not text:
            raise DataError("a question is empty")
        said.append((role, text))
    roles = [role for role, _ in said if role != "system"]
    if roles[::2].count("user") != (len(roles) + 1) // 2 or roles[1::2].count("assistant") != len(roles) // 2:
        raise DataError(f"the turns are {', '.join(roles)}, expected question and answer in turn")
    if len(roles) % 2:
        raise DataError("the last question has no answer")
    return said


def _plain(content: object) -> str:
    """The words of a turn, which some writers put into parts."""
    if isinstance(content, list | tuple):
        content = " ".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content).replace(_PICTURE_MARK, " ").strip()


def _reply(text: str, *, has_action: bool) -> tuple[str | None, str | None]:
    """Thought and answer of a turn."""
    if has_action:
        # An answer is put behind the thought, so that one parser checks the form of both.
        reply = parse_reply(f"{text}<answer>action</answer>")
        if not reply.is_well_formed:
            raise DataError(f"the answer beside an action is {text[:60]!r}, expected <think>...</think> or nothing")
        return reply.thought, None
    reply = parse_reply(text if any(tag in text for tag in _TAGS) else f"<answer>{text}</answer>")
    if not reply.is_well_formed:
        raise DataError(f"the answer {text[:60]!r} cannot be learnt: {reply.problem}")
    write_reply(reply.thought, reply.answer or "")
    return reply.thought, reply.answer


def _picture(row: Mapping[str, Any]) -> str | bytes | None:
    found = row.get("image", row.get("images"))
    if isinstance(found, list | tuple):
        if len(found) > 1:
            raise DataError(f"{len(found)} pictures, expected one; join them into one picture")
        found = found[0] if found else None
    if isinstance(found, Mapping):  # how Parquet files store a picture
        found = found.get("bytes") or found.get("path")
    if found is not None and not isinstance(found, str | bytes):
        raise DataError(f"the picture is a {type(found).__name__}, expected a path or bytes")
    return found or None


def _numbers(row: Mapping[str, Any], key: str, ndim: int) -> FloatArray | None:
    if row.get(key) is None:
        return None
    try:
        values = np.asarray(row[key], np.float32)
    except (TypeError, ValueError) as err:
        raise DataError(f"{key} is no array of numbers ({err})") from err
    if values.ndim != ndim or not values.size or not np.isfinite(values).all():
        raise DataError(f"{key} has shape {list(values.shape)}, expected {ndim} dimensions of finite numbers")
    return values
