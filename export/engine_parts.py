"""Compiles each graph of a bundle in a process of its own, and keeps what is finished when the rest is interrupted.

A part's name holds the digest of everything it was built from: graph, weights, TensorRT, compute capability, board and
power mode. So a part is built once, also when the bundle is copied over a newer export of which only the head changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, cast

from roboalign.export.targets import JetPack, Target
from roboalign.sdk.board import Board
from roboalign.sdk.bundle import Bundle, GraphSpec, file_digest
from roboalign.sdk.engines import EngineFile
from roboalign.sdk.errors import BackendError, BundleError, CheckFailed
from roboalign.sdk.typed_json import from_json

__all__ = ["Builder", "Place", "probe_builder", "weights_of"]

_SETTINGS = "1: strong typing, no TF32"
"""How a graph is compiled; part of the key."""

TIMEOUT_S = 7200
"""Of one graph; more than this is a hang."""

_PROGRESS_S = 10.0
_POLL_S = 0.2

_COMMAND = ("-m", "roboalign.export.compile_engine")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What engines are built for: this board, as it is now."""

    board: Board
    """As its files describe it."""
    target: Target
    """Which of the table it is."""
    jetpack: JetPack | None
    """Its JetPack, when its release is known."""
    tensorrt: str
    """Version that Python imports."""
    capability: str
    """Compute capability of the GPU."""

    @property
    def name(self) -> str:
        """Name of the folder of its engines."""
        mode = "".join(c if c.isalnum() else "-" for c in (self.board.power_mode or "unknown-mode").lower())
        return f"{self.target.name}-trt{self.tensorrt}-sm{self.capability}-{mode}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Builder:
    """Compiles the graphs of one bundle for one place."""

    bundle: Bundle
    """Verified."""
    place: Place
    """Where this is."""
    folder: Path
    """Where engines go."""
    workspace_bytes: int
    """Memory that TensorRT may use for trying kernels."""
    say: Callable[[str], None]
    """Takes each line of progress."""
    timeout_s: float = TIMEOUT_S
    """Of one graph."""

    def build(self) -> dict[str, EngineFile]:
        """Returns an engine for each graph, those of an earlier call included; stops at the first that fails."""
        graphs = self.bundle.manifest.graphs
        found: dict[str, EngineFile] = {}
        for index, (role, spec) in enumerate(graphs.items(), start=1):
            head = f"[{index}/{len(graphs)}] {spec.file}"
            name = f"{role}-{self.key(spec)[:16]}.engine"
            kept = self._kept(name)
            if kept is not None:
                self.say(f"{head}: kept, it was built before in {kept.build_s:.0f} s")
            found[role] = kept or self._compile(name, spec, head)
        return found

    def key(self, spec: GraphSpec) -> str:
        """Returns the digest of everything that a graph's engine is made from."""
        place = self.place
        parts = {
            "settings": _SETTINGS,
            "graph": self.bundle.manifest.files[spec.file].sha256,
            "weights": self._weights(spec),
            "tensorrt": place.tensorrt,
            "capability": place.capability,
            "board": [place.target.name, place.board.model, place.board.l4t],
            "power mode": place.board.power_mode,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _weights(self, spec: GraphSpec) -> dict[str, str]:
        return {name: self.bundle.manifest.files[name].sha256 for name in weights_of(self.bundle, spec)}

    def _kept(self, name: str) -> EngineFile | None:
        """Returns a part that was finished before and is what it was; anything else is built again."""
        path = self.folder / name
        try:
            data = json.loads(path.with_suffix(".engine.json").read_text(encoding="utf-8"))
            part = cast(EngineFile, from_json(EngineFile, data, name))
            is_whole = part.file == name and file_digest(path) == part.sha256
        except (OSError, ValueError, BundleError):
            return None
        return part if is_whole else None

    def _compile(self, name: str, spec: GraphSpec, head: str) -> EngineFile:
        path = self.folder / name
        work = self.folder / f".{name}.{os.getpid()}.tmp"
        self.say(f"{head}: building with TensorRT {self.place.tensorrt}")
        started = time.monotonic()
        arguments = ("compile", str(self.bundle.file(spec.file)), str(work), str(self.workspace_bytes))
        try:
            _ask_child(arguments, spec.file, self.timeout_s, lambda seconds: self.say(f"{head}: {seconds:.0f} s"))
            seconds = time.monotonic() - started
            part = EngineFile(
                file=name,
                sha256=file_digest(work),
                num_bytes=work.stat().st_size,
                graph_sha256=self.bundle.manifest.files[spec.file].sha256,
                weights_sha256=self._weights(spec),
                build_s=round(seconds, 1),
            )
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)
        record = path.with_suffix(".engine.json")
        record.with_suffix(".tmp").write_text(json.dumps(asdict(part)) + "\n", encoding="utf-8")
        record.with_suffix(".tmp").replace(record)
        self.say(f"{head}: built in {seconds:.0f} s, {part.num_bytes / 1e6:.1f} MB")
        return part


def weights_of(bundle: Bundle, spec: GraphSpec) -> list[str]:
    """Returns the weight files that a graph reads: an ONNX file spells the names of its external data."""
    content = bundle.file(spec.file).read_bytes()
    return [name for name in sorted(bundle.manifest.files) if _is_weights(name) and name.encode() in content]


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".data"))


def probe_builder(timeout_s: float = 120) -> tuple[str, str]:
    """Returns the version of TensorRT that Python imports and the GPU's compute capability.

    Raises:
        BackendError: one of them is missing, or the process died of asking.
    """
    found = _ask_child(("probe",), "its first call", timeout_s, lambda seconds: None)
    return str(found["tensorrt"]), str(found["capability"])


def _ask_child(
    arguments: tuple[str, ...], what: str, timeout_s: float, progress: Callable[[float], None]
) -> dict[str, object]:
    """Runs the compiler's process and returns its answer; whatever ends this function ends the process too."""
    with TemporaryFile() as out, TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, *_COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=log
        )
        try:
            _wait(child, what, timeout_s, progress)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        try:
            answer = json.loads(_lines(out)[-1])
        except (IndexError, ValueError) as err:
            last = (_lines(log) or ["it said nothing"])[-1]
            raise BackendError(f"TensorRT died of {what} (exit code {child.returncode}): {last[:300]}") from err
    if "error" in answer:
        failed = CheckFailed if arguments[0] == "compile" else BackendError
        raise failed(str(answer["error"]))
    return cast(dict[str, object], answer)


def _wait(child: subprocess.Popen[bytes], what: str, timeout_s: float, progress: Callable[[float], None]) -> None:
    started = time.monotonic()
    told = 0.0
    while child.poll() is None:
        time.sleep(_POLL_S)
        seconds = time.monotonic() - started
        if seconds > timeout_s:
            raise BackendError(f"TensorRT did not finish {what} within {timeout_s:g} s")
        if seconds - told >= _PROGRESS_S:
            told = seconds
            progress(seconds)


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
