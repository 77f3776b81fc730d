"""Makes a graph compute in float16: explicit casts, no builder flag, and nothing left to a runtime.

TensorRT is strongly typed: a graph says the type of every value, and operands of two types are refused. So the graph
that was traced in float32 is rewritten node by node. Products (`MATRIX_OPERATORS`) take and return float16, and weights
stay as they are stored. What float16 would spoil is computed in float32 (`WIDE_OPERATORS`). Every other operator takes
the widest of its inputs: what was widened stays wide until the next product, so that the sum of a flow's Euler steps,
the scaling of a robot's state and that of its actions are float32, since they start from float32 inputs and end in
float32 outputs. Integers and Booleans stay what they are.

A constant that float16 cannot hold is an error with its name. What is computed is watched on real observations
(`export/half_range.py`), because a graph does not tell how large its values get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from roboalign.sdk.bundle import TensorSpec
from roboalign.sdk.errors import CheckFailed

__all__ = ["MATRIX_OPERATORS", "WIDE_OPERATORS", "compute_in_half"]

_HALF, _FLOAT, _BOOL = int(TensorProto.FLOAT16), int(TensorProto.FLOAT), int(TensorProto.BOOL)
_NAMES = {_HALF: "fp16", _FLOAT: "fp32"}

MATRIX_OPERATORS = frozenset({"Conv", "Gemm", "MatMul"})
"""Take float16 and return it; kernels add up in float32 inside."""

WIDE_OPERATORS: Mapping[str, str] = {
    "Cos": "float16 holds an angle of 173 to an eighth",
    "Sin": "likewise",
    "InstanceNormalization": "mean and variance are sums over thousands of values",
    "Pow": "the square of 256 overflows",
    "ReduceMean": "a mean of squares",
    "Reciprocal": "of the root of a variance",
    "ReduceSum": "a sum over many values",
    "Sqrt": "of a variance, with a constant of 1e-6 added",
}
"""Computed in float32, and why. Softmax and LayerNormalization need no row: both are defined on float16 with sums in
float32 (`stash_type`), and a cast around them would hide the pattern of attention from an engine builder."""

_NARROWED_AT_ONCE = frozenset({"Cos", "InstanceNormalization", "Sin"})
"""Results in -1..1, or normalised, which go on in float16."""

_FOLLOWING = frozenset(
    {
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "Div",
        "Equal",
        "Erf",
        "Expand",
        "Gather",
        "GatherElements",
        "Gelu",
        "IsNaN",
        "LayerNormalization",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "ReduceMax",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
"""Take the widest type of their inputs."""

_LOWEST = {_FLOAT: float(np.finfo(np.float32).min), _HALF: float(np.finfo(np.float16).min)}
"""What a mask puts in place of a score; it means "lower than any" in each type."""


def compute_in_half(
    graph: onnx.GraphProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, weights: frozenset[str]
) -> None:
    """Rewrites a float32 graph in place; shapes and names stay.

    Args:
        graph: with the types of its values, as shape inference writes them.
        inputs: types of what goes in: `float16` or `float32` where the graph has floating point.
        outputs: types of what comes out, likewise.
        weights: initialisers that are stored in float16.

    Raises:
        CheckFailed: an operator whose type is not settled here, or a constant that float16 cannot hold.
    """
    _Rewriter(graph, weights).run(inputs, outputs)


class _Rewriter:
    """The graph while it is rewritten: what type each value has by now, and which casts exist already."""

    def __init__(self, graph: onnx.GraphProto, weights: frozenset[str]) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in weights}
        values = (*graph.input, *graph.output, *graph.value_info)
        self.declared: dict[str, int] = {value.name: value.type.tensor_type.elem_type for value in values}
        self.declared |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.types: dict[str, int] = {}
        for tensor in graph.initializer:
            if tensor.name in weights:
                tensor.data_type = self.types[tensor.name] = _HALF
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[tuple[str, int], str] = {}

    def run(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        for spec, value in zip(inputs, self.graph.input, strict=True):
            if self._is_float(value.name):
                self.types[value.name] = _set_type(value, spec.dtype)
        for node in self.graph.node:
            self._rewrite(node)
        for spec, value in zip(outputs, self.graph.output, strict=True):
            if self._is_float(value.name):
                self._finish(value, spec.dtype)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        del self.graph.value_info[:]  # they state the old types

    def _is_float(self, value: str) -> bool:
        return self.declared.get(value, 0) == _FLOAT

    def _rewrite(self, node: onnx.NodeProto) -> None:
        operator = node.op_type
        floats = [name for name in node.input if self._is_float(name)]
        if not floats and not any(self._is_float(name) for name in node.output):
            self.nodes.append(node)
        elif operator == "Cast":
            self._rewrite_cast(node)
        elif operator == "CastLike":
            self._settle(node, self._wanted(node.input[1:]))
        elif operator in MATRIX_OPERATORS:
            self._settle(node, _HALF)
        elif operator in WIDE_OPERATORS:
            self._settle(node, _FLOAT)
            if operator in _NARROWED_AT_ONCE:
                self._narrow_result(node)
        elif operator in _FOLLOWING:
            self._settle(node, self._wanted(floats))
        else:
            raise CheckFailed(
                f"no type is settled for {operator} {node.name!r} in half precision; add it to export/half.py, or "
                "use --precision fp32"
            )

    def _wanted(self, names: Sequence[str]) -> int:
        """The widest type; constants take whichever is asked for."""
        return _FLOAT if any(self.types.get(name) == _FLOAT for name in names) else _HALF

    def _rewrite_cast(self, node: onnx.NodeProto) -> None:
        """A truth value becomes float16, which holds 0 and 1; a count may be above 2048, and becomes float32."""
        if self._is_float(node.output[0]):
            kind = _HALF if self.declared.get(node.input[0]) == _BOOL else _FLOAT
            node.attribute[0].i = self.types[node.output[0]] = kind
        self.nodes.append(node)

    def _settle(self, node: onnx.NodeProto, kind: int) -> None:
        """Casts what a node takes, and notes what it gives."""
        node.input[:] = [self._as(name, kind) if self._is_float(name) else name for name in node.input]
        for name in node.output:
            if self._is_float(name):
                self.types[name] = kind
        self.nodes.append(node)

    def _narrow_result(self, node: onnx.NodeProto) -> None:
        name = node.output[0]
        node.output[0] = f"{name}.wide"
        self.nodes.append(_cast(node.output[0], name, _HALF))
        self.types[name] = _HALF

    def _as(self, name: str, kind: int) -> str:
        """The name under which a value has a type."""
        if name in self.constants:
            return self._constant_as(name, kind)
        if self.types[name] == kind:
            return name
        found = self.made.get((name, kind))
        if found is None:
            found = self.made[name, kind] = f"{name}.{_NAMES[kind]}"
            self.nodes.append(_cast(name, found, kind))
        return found

    def _constant_as(self, name: str, kind: int) -> str:
        if kind == _FLOAT:
            return name
        found = self.made.get((name, kind))
        if found is None:
            found = self.made[name, kind] = f"{name}.{_NAMES[kind]}"
            values = _in_half(name, numpy_helper.to_array(self.constants[name]))
            self.graph.initializer.append(numpy_helper.from_array(values, found))
        return found

    def _finish(self, value: onnx.ValueInfoProto, dtype: str) -> None:
        """Gives an output its type under its own name."""
        kind, name = _set_type(value, dtype), value.name
        if self.types[name] == kind:
            return
        inner = f"{name}.{_NAMES[self.types[name]]}"
        for node in self.nodes:
            node.input[:] = [inner if one == name else one for one in node.input]
            node.output[:] = [inner if one == name else one for one in node.output]
        self.nodes.append(_cast(inner, name, kind))


def _set_type(value: onnx.ValueInfoProto, dtype: str) -> int:
    kind: int = {"float16": _HALF, "float32": _FLOAT}[dtype]
    value.type.tensor_type.elem_type = kind
    return kind


def _cast(name: str, wanted: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [wanted], name=f"{wanted}.cast", to=kind)


def _in_half(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rounds a constant; one that overflows, or a single number that becomes zero, is a CheckFailed."""
    values = np.where(values == np.float32(_LOWEST[_FLOAT]), np.float32(_LOWEST[_HALF]), values)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    lost = np.isfinite(values) & ~np.isfinite(half)
    if lost.any() or (values.size == 1 and values.any() and not half.any()):
        worst = float(np.abs(values[lost]).max() if lost.any() else values.reshape(-1)[0])
        raise CheckFailed(
            f"constant {name} is {worst:.3g}, which float16 cannot hold (6e-8 to 65504); use --precision fp32"
        )
    return half
