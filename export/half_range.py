"""Does a float16 graph stay inside float16 on real observations? No graph tells how large its values get.

The policy answers observations as on a robot, while every float16 value of every graph is looked at. onnxruntime
computes in float32 on a CPU and rounds what is looked at, so a value that a board would lose shows as infinite here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.backends.onnx_graph import OnnxGraph
from roboalign.sdk.bundle import Bundle, GraphSpec, read_bundle
from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import FloatArray, Observation

__all__ = ["LARGEST", "ValueRange", "measure_range"]

LARGEST = 65504 / 2
"""Largest value that is accepted: half of what float16 holds, since a scene of tomorrow may go further."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueRange:
    """The largest value that was seen."""

    largest: float
    """Its magnitude."""
    where: str
    """Graph and node."""


def measure_range(bundle: Path, observations: Sequence[Observation], *, threads: int = 1) -> ValueRange:
    """Returns the largest float16 value that observations lead to.

    Raises:
        CheckFailed: a value leaves float16, or comes near; the message names it.
    """
    watched: list[_WatchedGraph] = []

    def watch(bundle: Bundle, spec: GraphSpec, threads: int) -> OnnxGraph:
        watched.append(_WatchedGraph(bundle, spec, threads))
        return watched[-1]

    with Policy(OnnxBackend(read_bundle(bundle), threads=threads, open_graph=watch)) as policy:
        for observation in observations:
            policy.act(observation)
    found = max(watched, key=lambda graph: graph.largest)
    return ValueRange(largest=found.largest, where=found.where)


class _WatchedGraph(OnnxGraph):
    """A graph that answers as it is, and looks at each of its float16 values."""

    def __init__(self, bundle: Bundle, spec: GraphSpec, threads: int) -> None:
        super().__init__(bundle, spec, threads)
        model = onnx.load(bundle.file(spec.file), load_external_data=False)
        self._nodes = _watched_nodes(model)
        self._names = [output.name for output in spec.outputs]
        self._names += [name for name in self._nodes if name not in self._names]
        added = self._names[len(spec.outputs) :]
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in added)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # fp8 has no fused kernels to look for
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
        content = model.SerializeToString()
        self._watching = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.largest, self.where = 0.0, "nothing"

    def run(self, feed: Mapping[str, NDArray[np.generic]]) -> list[FloatArray]:
        values = dict(zip(self._names, self._watching.run(self._names, feed), strict=True))
        for name, node in self._nodes.items():
            largest = float(np.abs(values[name].astype(np.float32)).max(initial=0.0))
            where = f"{node.op_type} {name!r} of {self.spec.file}"
            if not largest <= LARGEST:  # not a number neither
                raise CheckFailed(
                    f"float16 holds values up to 65504, and {where} reaches {largest:.3g} on an observation of the "
                    f"check, expected at most {LARGEST:g}; use --precision fp32"
                )
            if largest > self.largest:
                self.largest, self.where = largest, where
        return [values[output.name] for output in self.spec.outputs]


def _watched_nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Returns the node behind each float16 value, but for what a mask filled with the lowest number on purpose."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*typed.value_info, *typed.output)}
    constants = [tensor for tensor in model.graph.initializer if tensor.data_location != TensorProto.EXTERNAL]
    constant_names = {tensor.name for tensor in constants}
    masked = {tensor.name for tensor in constants if _is_lowest(tensor)}
    found = {}
    for node in model.graph.node:
        if node.op_type != "Softmax" and masked.intersection(node.input):
            masked.update(node.output)
        if node.op_type == "Where" and constant_names.intersection(node.input):
            continue  # filled with a number that was written down, and not computed
        found.update({name: node for name in node.output if kinds.get(name) == TensorProto.FLOAT16})
    return {name: node for name, node in found.items() if name not in masked}


def _is_lowest(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT16 and bool((numpy_helper.to_array(tensor) <= -65504).any())
