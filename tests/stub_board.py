"""A board for tests: its files, and TensorRT's and CUDA's stubs where the real ones would be."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
from tests.boards import AGX_ORIN, THOR, write_board

from roboalign.export.engine_parts import Place
from roboalign.export.targets import find_target
from roboalign.export.vectors import VECTORS_NAME, Vectors
from roboalign.sdk.backends.cuda_runtime import Cuda
from roboalign.sdk.backends.tensorrt_engine import load_tensorrt
from roboalign.sdk.board import detect_board
from roboalign.sdk.bundle import MANIFEST_NAME, file_record, read_bundle, shipped_bundle_path, write_manifest
from roboalign.sdk.engines import EngineParity, release
from roboalign.sdk.types import Observation

__all__ = [
    "BOARDS",
    "SOME_PARITY",
    "STUB",
    "StubBoard",
    "copy_portable",
    "make_portable",
    "noise_observations",
    "real_place",
    "stub_board",
]

STUB = Path(__file__).with_name("tensorrt_stub")

_MODULES = ("tensorrt", "cudart_stub")


@dataclass(frozen=True, kw_only=True)
class StubBoard:
    """What a board is: one row for each TensorRT that the code has to run on."""

    model: str
    release: str | None
    tensorrt: str
    capability: str
    target: str

    def write(self, root: Path) -> Path:
        memory = 61.4 if self.model == AGX_ORIN else 122.8
        return write_board(root, model=self.model, release=self.release, tensorrt=self.tensorrt, memory_gib=memory)


_ORIN = {"model": AGX_ORIN, "capability": "8.7", "target": "agx-orin-64gb"}

BOARDS = {
    board.tensorrt: board
    for board in (
        StubBoard(release="# R36 (release), REVISION: 4.3", tensorrt="10.3.0", **_ORIN),
        StubBoard(
            model=THOR,
            release="# R38 (release), REVISION: 4.0",
            tensorrt="10.13.3",
            capability="11.0",
            target="agx-thor",
        ),
        StubBoard(release="# R39 (release), REVISION: 2.1", tensorrt="10.16.2", **_ORIN),
        StubBoard(release=None, tensorrt="11.4.1", **_ORIN),
    )
}


SOME_PARITY = EngineParity(
    num_observations=2,
    num_tokens=9,
    equal_tokens=1.0,
    num_distinct_tokens=8,
    num_distinct_sequences=2,
    max_action_error=0.0,
    tolerance=0.01,
    action_errors={},
    action_unit="",
    median_act_s={},
)
"""Where a test is not about the comparison."""


@contextmanager
def stub_board(monkeypatch: pytest.MonkeyPatch, tensorrt: str = "10.3.0", **settings: str) -> Iterator[StubBoard]:
    """Puts the stubs where TensorRT and libcudart are looked for, in this process and in those that it starts."""
    board = BOARDS[tensorrt]
    found = {"VERSION": board.tensorrt, "CAPABILITY": board.capability, **settings}
    for name, value in found.items():
        monkeypatch.setenv(f"TENSORRT_STUB_{name}", value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STUB), *sys.path]))
    monkeypatch.syspath_prepend(STUB)
    monkeypatch.setattr(ctypes, "CDLL", ctypes.CDLL)  # the stub replaces it
    _forget_modules()
    try:
        yield board
    finally:
        _forget_modules()


def _forget_modules() -> None:
    for name in _MODULES:
        sys.modules.pop(name, None)


def noise_observations(count: int) -> list[Observation]:
    """Noise pictures and states near the home pose."""
    rng = np.random.default_rng(0)
    return [
        Observation(
            images={"front": rng.integers(0, 256, (96, 96, 3)).astype(np.uint8)},
            state=np.array([0.5, 0.0, 0.2, 0.1, 0.05], np.float32) + 0.05 * rng.standard_normal(5).astype(np.float32),
            joint_pos_rad=np.zeros(7, np.float32),
            instruction=("put the red block in the blue bowl", "push the green cylinder to the left")[index % 2],
            time_s=0.0,
        )
        for index in range(count)
    ]


def write_few_vectors(folder: Path, count: int) -> None:
    """Leaves only the first of a bundle's vectors in its folder: each costs a test seconds."""
    path = folder / VECTORS_NAME
    found = Vectors.load(path)
    few = {field.name: getattr(found, field.name)[:count] for field in fields(Vectors) if field.name != "parts"}
    Vectors(**few, parts={name: value[:count] for name, value in found.parts.items()}).save(path)


def make_portable(folder: Path, *, target: str = "jetson", num_observations: int = 3) -> Path:
    """Copies the shipped bundle and makes it one that is not built yet, with observations to compare engines on.

    No framework is needed for it, so that the tests run on a board too.
    """
    manifest = read_bundle(copy_portable(folder)).manifest
    write_few_vectors(folder, num_observations)
    files = {**manifest.files, VECTORS_NAME: file_record(folder / VECTORS_NAME)}
    write_manifest(folder, replace(manifest, target=target, built=False, next_command="roboalign build .", files=files))
    return folder


def copy_portable(folder: Path) -> Path:
    """Copies the shipped bundle without the graphs that only onnxruntime can run: as bundles of old versions are."""
    bundle = shipped_bundle_path()
    manifest = read_bundle(bundle).manifest
    dropped = {spec.file for role, spec in manifest.graphs.items() if role not in ("prefill", "step", "flow")}
    files = {name: record for name, record in manifest.files.items() if name not in dropped}
    folder.mkdir(parents=True)
    for name in (*files, MANIFEST_NAME):
        (folder / name).write_bytes((bundle / name).read_bytes())
    graphs = {role: spec for role, spec in manifest.graphs.items() if spec.file not in dropped}
    write_manifest(folder, replace(manifest, graphs=graphs, files=files))
    return folder


def real_place(root: Path) -> Place:
    """The GPU and TensorRT of this machine, under the files of a board; what has neither fails."""
    version = str(load_tensorrt().__version__)
    cuda = Cuda.open()
    capability = cuda.capability()
    cuda.close()
    board = replace(BOARDS["10.3.0"], tensorrt=release(version), release=None)
    detected = detect_board(board.write(root))
    assert detected is not None
    return Place(
        board=detected,
        target=find_target(board.target),
        jetpack=None,
        tensorrt=version,
        capability=capability,
    )
