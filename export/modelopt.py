"""Asks nvidia-modelopt for the scales of int8 and fp8 products, in an environment of its own.

That package pins another onnx and another onnxruntime than this project, so it is never imported here: one process
reads a graph and a few inputs, and leaves the graph with its quantisation, of which the scales are read. The graph
reads whole sequences, prompt, thought and action tokens in one pass, so that every layer sees what it is given in
`prefill` and in `step`, and both compute with the same scales.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray

from roboalign.export.graph_set import nano_parts
from roboalign.export.onnx_files import WEIGHT_PREFIX, write_graph
from roboalign.export.products import ProductScales, product_nodes, read_scales
from roboalign.export.rounding import quantizable
from roboalign.export.weights import write_weights
from roboalign.sdk.backends import Decoding
from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.errors import BackendError, CheckFailed, ConfigError
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import FloatArray, Observation
from roboalign.trainer.backend import TorchBackend
from roboalign.trainer.nano import NanoForConditionalGeneration

__all__ = ["MODELOPT_VERSION", "find_scales", "modelopt_version"]

MODELOPT_VERSION = "0.47"
"""The releases that this was written against; `constraints/modelopt.txt` has the exact one, and what it needs."""

_METHODS = {"int8": "entropy", "fp8": "max"}
"""How the range of an activation is chosen, modelopt's own defaults: cutting off the rare ones, or none."""

_TIMEOUT_S = 3600
_INSTALL = (
    "python3.11 -m venv modelopt && modelopt/bin/pip install -c export/constraints/modelopt.txt "
    "'nvidia-modelopt[onnx]' requests"
)

_VERSION = "from importlib.metadata import version; print(version('nvidia-modelopt'))"

_QUANTIZE = """
import json, os, re, sys
import numpy as np
from modelopt.onnx.quantization import quantize
from onnxruntime.quantization import CalibrationDataReader
asked = json.load(open(sys.argv[1]))
class Rows(CalibrationDataReader):
    def __init__(self):
        self.data = dict(np.load(asked["data"], allow_pickle=False))
        self.rewind()
    def __len__(self):
        return len(next(iter(self.data.values())))
    def rewind(self):
        self.at = 0
    def row(self, index):
        return {name: rows[index] for name, rows in self.data.items()}
    def get_first(self):
        return self.row(0)
    def get_next(self):
        self.at += 1
        return self.row(self.at - 1) if self.at <= len(self) else None
quantize(
    asked["graph"],
    quantize_mode=asked["mode"],
    calibration_method=asked["method"],
    calibration_data_reader=Rows(),
    calibration_eps=["cpu"],
    op_types_to_quantize=["Conv", "Gemm", "MatMul"],
    nodes_to_quantize=["^" + re.escape(name) + "$" for name in asked["nodes"]],
    enable_gemv_detection_for_trt=False,
    disable_mha_qdq=True,
    high_precision_dtype="fp32",
    output_path=asked["out"] + ".tmp.onnx",
    log_level="WARNING",
)
os.replace(asked["out"] + ".tmp.onnx", asked["out"])
"""
"""`enable_gemv_detection_for_trt` would leave out the products of single rows, which are most of a step."""


def modelopt_version(python: Path | None) -> str:
    """Returns the version of nvidia-modelopt in an environment.

    Raises:
        ConfigError: no environment is named.
        BackendError: it cannot be started, or has another version than ours, or none.
    """
    if python is None:
        raise ConfigError(
            f"int8-w8a8 and fp8 take nvidia-modelopt {MODELOPT_VERSION} of an environment of its own: {_INSTALL}; "
            "then name it with --modelopt-python modelopt/bin/python"
        )
    try:
        done = subprocess.run([str(python), "-c", _VERSION], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise BackendError(f"--modelopt-python {python} cannot be started ({err}); make one: {_INSTALL}") from err
    found = done.stdout.strip()
    if done.returncode != 0 or not found.startswith(f"{MODELOPT_VERSION}."):
        raise BackendError(
            f"{python} has nvidia-modelopt {found or 'not at all'}, expected {MODELOPT_VERSION}; make one: {_INSTALL}"
        )
    return found


def find_scales(
    backend: TorchBackend, observations: Sequence[Observation], kind: str, python: Path
) -> dict[str, ProductScales]:
    """Returns the scales of the layers of vision and decoder, by weight, calibrated on observations.

    Raises:
        BackendError: nvidia-modelopt failed.
        CheckFailed: it quantised nothing, or in a form that TensorRT does not take.
    """
    model = backend.backbone.model
    assert isinstance(model, NanoForConditionalGeneration)
    assert backend.head is not None
    wanted = quantizable(model)
    with tempfile.TemporaryDirectory(prefix="roboalign-modelopt-") as folder:
        path, out = Path(folder) / "sequence.onnx", Path(folder) / "quantized.onnx"
        table = write_weights(model, Path(folder) / "model.safetensors", "fp32")
        whole = replace(backend.spec, max_prompt_tokens=backend.spec.max_tokens)
        part = nano_parts(model, whole, backend.head.config.layer)["prefill"]
        write_graph(part.module, part.inputs, part.outputs, path, table)
        graph = onnx.load(path, load_external_data=False).graph
        nodes = {name: weight for name, (_, weight) in product_nodes(graph, WEIGHT_PREFIX).items() if weight in wanted}
        data = Path(folder) / "inputs.npz"
        np.savez(data, allow_pickle=False, **_sequences(backend, observations))
        asked = {
            "graph": str(path),
            "data": str(data),
            "mode": kind,
            "method": _METHODS[kind],
            "nodes": sorted(nodes),
            "out": str(out),
        }
        _run(python, Path(folder), asked)
        scales = read_scales(onnx.load(out), nodes, kind)
    if not scales:
        raise CheckFailed(f"nvidia-modelopt is done and quantised none of {len(nodes)} products to {kind}")
    return scales


def _run(python: Path, folder: Path, asked: Mapping[str, object]) -> None:
    """Runs the tool; its failure is one line with its last words."""
    order = folder / "asked.json"
    order.write_text(json.dumps(asked), encoding="utf-8")
    command = [str(python), "-c", _QUANTIZE, str(order)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise BackendError(f"nvidia-modelopt of {python} did not run: {err}") from err
    if done.returncode < 0:
        raise BackendError(
            f"nvidia-modelopt was ended by signal {-done.returncode}; most often that is a lack of memory"
        )
    if done.returncode or not Path(str(asked["out"])).is_file():
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise BackendError(f"nvidia-modelopt failed: {(lines or ['it said nothing'])[-1][:300]}")


@dataclass(frozen=True, slots=True)
class _Sequence:
    ids: tuple[int, ...]
    pixel_values: FloatArray


class _Reader:
    """A backend that notes the sequence it reads."""

    def __init__(self, backend: TorchBackend) -> None:
        self._backend = backend
        self._ids: list[int] = []
        self._pixel_values: FloatArray = np.zeros(0, np.float32)

    @property
    def sequence(self) -> _Sequence:
        return _Sequence(tuple(self._ids), self._pixel_values)

    @property
    def spec(self) -> PolicySpec:
        return self._backend.spec

    @property
    def folder(self) -> Path:
        return self._backend.folder

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        self._ids, self._pixel_values = list(prompt_ids), pixel_values
        return self._backend.prefill(prompt_ids, pixel_values)

    def step(self, decoding: Decoding, token_id: int) -> None:
        self._ids.append(token_id)
        self._backend.step(decoding, token_id)

    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        return self._backend.flow(decoding, state, noise)

    def close(self) -> None:
        """The backend is the caller's."""


def _sequences(backend: TorchBackend, observations: Sequence[Observation]) -> dict[str, NDArray[np.generic]]:
    """Returns inputs of the graph, stacked: each observation with its thought, and once more with action tokens.

    Sequences are filled up with their last token: the padding of a prompt is never looked at, and would only widen
    the ranges.
    """
    reader = _Reader(backend)
    found = []
    for policy in (Policy(reader), Policy(reader, actions="fast", think=False)):
        for observation in observations:
            chunk = policy.act(observation)
            if chunk.source == "hold":
                raise CheckFailed(f"products cannot be calibrated: an answer is a hold: {chunk.reason}")
            found.append(reader.sequence)
    size = backend.spec.max_tokens
    ids = [(*one.ids, *(one.ids[-1],) * (size - len(one.ids))) for one in found]
    rows: dict[str, NDArray[np.generic]] = {
        "input_ids": np.array(ids, np.int64)[:, None],
        "length": np.array([[len(one.ids)] for one in found], np.int64),
        "pixel_values": np.stack([cast(NDArray[np.generic], one.pixel_values) for one in found])[:, None],
    }
    return rows
