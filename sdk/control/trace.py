"""The trace of a run: one line of JSON for each control period and each chunk, in a file that may be full or torn.

A trace is written by the recorder's process, so that a disk that is slow or full costs the arm nothing. It is complete
lines under a temporary name until the run is over; what a killed run leaves under that name can be read too.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from roboalign.sdk.control.records import LATENCIES, SOURCES, STAGES, Reason, read_text
from roboalign.sdk.control.rings import Records
from roboalign.sdk.errors import DataError
from roboalign.sdk.typed_json import from_json
from roboalign.sdk.types import RobotSpec

__all__ = ["PARTIAL", "Trace", "TraceFile", "chunk_line", "header_line", "read_trace", "tick_line"]

VERSION = 1
PARTIAL = ".partial"
"""What is added to the name of a trace that is still being written."""
_DIGITS = 6


class TraceFile:
    """Lines under a temporary name; a write that fails leaves whole lines and is counted."""

    def __init__(self, path: Path) -> None:
        """Opens the file. Raises OSError."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(path.name + PARTIAL)
        self._fd = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._size = 0
        self.problem = ""
        """Why the last write failed; stays."""

    def write(self, lines: list[str]) -> bool:
        """Appends lines; returns False, and keeps none of them, where they do not fit."""
        data = "".join(line + "\n" for line in lines).encode()
        try:
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as err:
            self.problem = f"{self._partial}: {err.strerror}"
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
                os.lseek(self._fd, self._size, os.SEEK_SET)
            return False
        self._size += written
        return True

    def close(self) -> None:
        """Gives the file its name."""
        os.close(self._fd)
        self._partial.replace(self.path)


def header_line(config: Mapping[str, object]) -> str:
    """Returns the first line: what the recorder was told of the run."""
    names = ("robot", "instruction", "policy", "rate_hz", "scene")
    return json.dumps({"roboalign_trace": VERSION, **{name: config[name] for name in names}})


def tick_line(record: Records) -> str:
    """Returns the line of a control period."""
    row = record[0]
    stages = {name: _number(value) for name, value in zip(STAGES[:-1], row["stages_s"], strict=False)}
    line: dict[str, object] = {
        "tick": int(row["index"]),
        "due": int(row["due"]),
        "time_s": float(row["time_s"]),
        "lateness_s": _number(row["lateness_s"]),
        "chunk": int(row["chunk"]),
        "step": int(row["step"]),
        "reason": Reason.of(int(row["reason"])).value,
        "interrupts": int(row["interrupts"]),
        "age_s": _number(row["age_s"]),
        "thought_age_s": _number(row["thought_age_s"]),
        "requested": _exact(row["requested"]),
        "sent": _exact(row["sent"]),
        "targets": _exact(row["targets"]),
        "measured": _exact(row["measured"]),
        "measured_s": None if math.isnan(row["measured_s"]) else float(row["measured_s"]),
        "stages_s": stages,
        "note": read_text(record, "note"),
    }
    return json.dumps(line)


def chunk_line(record: Records, sequence: int) -> str:
    """Returns the line of a chunk that the policy answered."""
    row, steps = record[0], int(record["steps"][0])
    line: dict[str, object] = {
        "answer": sequence,
        "observation": int(row["observation"]),
        "observed_s": float(row["observed_s"]),
        "computed_s": float(row["computed_s"]),
        "thought_s": _number(row["thought_s"]),
        "source": SOURCES[min(int(row["source"]), len(SOURCES) - 1)],
        "actions": [_exact(action) for action in row["actions"][:steps]],
        "latency_s": {name: _number(value) for name, value in zip(LATENCIES, row["latency_s"], strict=True)},
        "reason": read_text(record, "reason"),
        "thought": read_text(record, "thought"),
    }
    return json.dumps(line)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), _DIGITS)


def _exact(values: np.ndarray[Any, Any]) -> list[float | None]:
    """Returns float32 numbers as they are: JSON keeps every digit that Python prints."""
    return [float(value) if math.isfinite(value) else None for value in values.tolist()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """A trace that was read."""

    spec: RobotSpec
    """The robot."""
    instruction: str
    """What it was told."""
    policy: str
    """Who acted."""
    rate_hz: float
    """Commands a second."""
    scene: Mapping[str, Any] | None = None
    """Of a simulated run, the scene: `robot`, `task` and `seed`."""
    ticks: list[dict[str, Any]] = field(default_factory=list)
    """Control periods, see `tick_line`."""
    chunks: list[dict[str, Any]] = field(default_factory=list)
    """Answers, see `chunk_line`."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """The loop's report; empty when the run did not end by itself."""
    lost: int = 0
    """Control periods that are missing between the first and the last."""


def read_trace(path: str | Path) -> Trace:
    """Reads a trace; an unfinished last line is left out.

    Raises:
        DataError: It is none, or of a newer version; the message says which line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path} cannot be read as a trace: {err}") from err
    rows = [_row(path, number, line, is_last=number == len(lines)) for number, line in enumerate(lines, 1)]
    head = rows[0] if rows else {}
    if head.get("roboalign_trace") != VERSION:
        found = head.get("roboalign_trace", "no version")
        raise DataError(f"{path} is no trace of version {VERSION}, found {found}; 'roboalign run --trace' writes one")
    robot = head["robot"]
    spec = cast(RobotSpec, from_json(RobotSpec, robot, f"{path}: robot"))
    ticks = [row for row in rows if "tick" in row]
    return Trace(
        spec=spec,
        instruction=str(head["instruction"]),
        policy=str(head["policy"]),
        rate_hz=float(head["rate_hz"]),
        scene=head["scene"],
        ticks=ticks,
        chunks=[row for row in rows if "answer" in row],
        report=next((row["report"] for row in reversed(rows) if "report" in row), {}),
        lost=ticks[-1]["tick"] + 1 - len(ticks) if ticks else 0,
    )


def _row(path: Path, number: int, line: str, *, is_last: bool) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as err:
        if is_last:
            return {}
        raise DataError(f"{path}, line {number}: {err}; the trace was altered") from err
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number} is {type(row).__name__}, expected an object")
    return row
