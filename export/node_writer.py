"""Puts a graph together node by node, where what onnxruntime is to run is not what tracing PyTorch gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from transformers import PreTrainedModel

from roboalign.export.onnx_files import CODES_OPSET, OPSET, WEIGHT_PREFIX, shorten_names
from roboalign.export.weights import StoredTensor, share_weights
from roboalign.sdk.bundle import GraphSpec, TensorSpec

__all__ = ["NodeWriter", "tensor_spec"]

_IR_VERSION = 10
_TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
_OPEN = "count_"
"""How dimensions are named that are not fixed."""


class NodeWriter:
    """Puts nodes, weights and constants of one graph after the other together."""

    def __init__(self, model: PreTrainedModel, table: Mapping[str, StoredTensor], folder: Path) -> None:
        self.table = table
        self.opset = CODES_OPSET if any(stored.layout is not None for stored in table.values()) else OPSET
        self._folder = folder
        self._weights = dict(model.state_dict())
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._parts: dict[str, StoredTensor] = {}

    def node(self, kind: str, inputs: list[str], outputs: str | list[str], **how: Any) -> None:
        """Adds a node, named as its first output."""
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **how))

    def has_weight(self, name: str) -> bool:
        """Returns whether the model has it."""
        return name in self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a weight of the model."""
        return tuple(self._weights[name].shape)

    def weight(self, name: str) -> str:
        """Returns the name of a weight of the model, for which its place in the weight file is written."""
        full = f"{WEIGHT_PREFIX}{name}"
        tensor = TensorProto(name=full, data_type=TensorProto.FLOAT)
        tensor.dims[:] = self._weights[name].shape
        self._constants[full] = tensor
        return full

    def part(self, name: str, stored: StoredTensor) -> str:
        """Names bytes of the weight files that are no weight of the model by themselves."""
        full = f"{WEIGHT_PREFIX}{name}"
        self._constants[full] = TensorProto(name=full, dims=stored.shape, data_type=TensorProto.FLOAT)
        self._parts[name] = stored
        return full

    def side_by_side(self, names: list[str], axis: int) -> str:
        """Returns several constants as one, put together by a node that is run once."""
        if len(names) == 1:
            return names[0]
        self.node("Concat", names, f"{names[0]}.joined", axis=axis)
        return f"{names[0]}.joined"

    def byte(self, value: int) -> str:
        """Returns a byte."""
        return self.constant(f"byte.{value}", np.array(value, np.uint8))

    def whole(self, shape: list[int]) -> str:
        """Returns whole numbers, as a shape is."""
        return self.constant(f"shape.{'x'.join(map(str, shape))}", np.array(shape, np.int64))

    def constant(self, name: str, values: NDArray[np.generic]) -> str:
        """Returns values that are written into the graph."""
        self._constants[name] = numpy_helper.from_array(values, name)
        return name

    def save(
        self, role: str, inputs: list[TensorSpec], outputs: list[TensorSpec], *open_ended: tuple[str, ...]
    ) -> GraphSpec:
        """Writes what was put together, and begins anew.

        Args:
            role: names the file.
            inputs: of the graph.
            outputs: of the graph.
            open_ended: names of tensors whose second dimension is not fixed, but at most that of their description;
                in those of one tuple it is the same.
        """
        names = {name: f"{_OPEN}{index}" for index, group in enumerate(open_ended) for name in group}
        sides = [[_value(tensor, names.get(tensor.name)) for tensor in side] for side in (inputs, outputs)]
        graph = helper.make_graph(self._nodes, role, sides[0], sides[1], list(self._constants.values()))
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        written = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        share_weights(written, {**self.table, **self._parts}, WEIGHT_PREFIX)
        shorten_names(written.graph)
        path = self._folder / f"{role}.onnx"
        onnx.save(written, path)
        onnx.checker.check_model(path)
        self._nodes, self._constants, self._parts = [], {}, {}
        return GraphSpec(file=path.name, opset=self.opset, inputs=tuple(inputs), outputs=tuple(outputs))


def _value(tensor: TensorSpec, open_name: str | None) -> onnx.ValueInfoProto:
    shape: list[int | str] = list(tensor.shape)
    if open_name is not None:
        shape[1] = open_name
    return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.dtype], shape)


def tensor_spec(name: str, shape: tuple[int, ...], dtype: str, unit: str) -> TensorSpec:
    """Returns the description of an input or output."""
    return TensorSpec(name=name, shape=shape, dtype=dtype, unit=unit)
