"""Products of int8 or fp8 numbers: which layers get them, with which scales, and how a graph says so.

A layer's product is computed in a narrow type when both of its inputs, activations and weight, pass a `QuantizeLinear`
and a `DequantizeLinear` in front of it: an engine builder then multiplies the codes, and whoever only simulates it
gets the same numbers. Everything else stays as `export/half.py` has it, float16, and weights are stored in float16: a
builder rounds them once. Symmetric throughout; one scale for the activations of a layer, one for each output of its
weight in int8, and one for the whole weight in fp8, as NVIDIA documents it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.utils.hooks import RemovableHandle

from roboalign.export.half import MATRIX_OPERATORS
from roboalign.export.rounding import Layer
from roboalign.sdk.errors import CheckFailed

__all__ = ["ProductScales", "Products", "computing", "narrow", "product_nodes", "quantize_products", "read_scales"]

_CODE_TYPES = {"int8": int(TensorProto.INT8), "fp8": int(TensorProto.FLOAT8E4M3FN)}
"""ONNX type of the numbers that are multiplied, by the names of targets.toml."""

_Hook = Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]

_LARGEST_FP8 = 448.0
"""Of float8 e4m3fn."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProductScales:
    """What one layer's numbers are divided by before they are rounded."""

    activation: np.float16
    """Of all that goes in."""
    weight: NDArray[np.float16]
    """float16[outputs], or float16[1] for the whole weight."""


Products = tuple[str, Mapping[str, ProductScales]]
"""Type of the products that are narrow, and their scales by weight."""


def product_nodes(graph: onnx.GraphProto, prefix: str) -> dict[str, tuple[onnx.NodeProto, str]]:
    """Returns the nodes that multiply by a weight, by name, with the weight's name without the prefix."""
    behind = {tensor.name: tensor.name for tensor in graph.initializer if tensor.name.startswith(prefix)}
    behind |= {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose" and node.input[0] in behind
    }
    return {
        node.name: (node, behind[node.input[1]].removeprefix(prefix))
        for node in graph.node
        if node.op_type in MATRIX_OPERATORS and node.input[1] in behind
    }


def read_scales(model: onnx.ModelProto, weight_of: Mapping[str, str], kind: str) -> dict[str, ProductScales]:
    """Returns the scales by weight that a quantiser wrote into a graph; a node that it left alone has none.

    Args:
        model: with `QuantizeLinear` and `DequantizeLinear`.
        weight_of: by name of a product's node, the name of its weight.
        kind: `int8` or `fp8`, which the codes have to be.

    Raises:
        CheckFailed: the scales are not of the form that this project writes.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, ProductScales] = {}
    for node in model.graph.node:
        weight = weight_of.get(node.name)
        if weight is None or node.op_type not in MATRIX_OPERATORS:
            continue
        decoders = [made_by.get(name) for name in node.input[:2]]
        if any(one is None or one.op_type != "DequantizeLinear" for one in decoders):
            continue
        activation, of_weight = (_scale(one, constants, made_by, kind) for one in decoders if one is not None)
        if activation.size != 1:
            raise CheckFailed(f"activations of {weight} have {activation.size} scales, expected 1")
        found[weight] = ProductScales(activation=activation[0], weight=of_weight)
    return found


def _scale(
    decoder: onnx.NodeProto,
    constants: Mapping[str, TensorProto],
    made_by: Mapping[str, onnx.NodeProto],
    kind: str,
) -> NDArray[np.float16]:
    tensor, zero = (constants.get(name) for name in decoder.input[1:3])
    if tensor is None or zero is None or zero.data_type != _CODE_TYPES[kind]:
        raise CheckFailed(f"{decoder.name} has no constant scale with a zero point of {kind}")
    if np.any(numpy_helper.to_array(zero).astype(np.float32) != 0):
        raise CheckFailed(f"{decoder.name} has a zero point other than zero, which TensorRT refuses")
    with np.errstate(over="ignore"):
        scale = numpy_helper.to_array(tensor).astype(np.float16).reshape(-1)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise CheckFailed(f"{decoder.name} has a scale that float16 cannot hold, or zero")
    if scale.size > 1:
        encoder = made_by.get(decoder.input[0])
        source = made_by.get(encoder.input[0]) if encoder is not None else None
        axis = next((int(entry.i) for entry in decoder.attribute if entry.name == "axis"), 1)
        if axis != (1 if source is not None and source.op_type == "Transpose" else 0):
            raise CheckFailed(f"{decoder.name} has scales along axis {axis}, which is not that of the outputs")
    return cast(NDArray[np.float16], scale)


def quantize_products(graph: onnx.GraphProto, scales: Mapping[str, ProductScales], kind: str, prefix: str) -> set[str]:
    """Puts the quantisation in front of products in place, and returns the weights that it was put in front of.

    Args:
        graph: computes in float16 on weights as they are stored.
        scales: by weight, those that are to be multiplied in the narrow type.
        kind: `int8` or `fp8`.
        prefix: what precedes a weight's name.
    """
    writer = _Writer(graph, kind)
    chosen = {name: pair for name, pair in product_nodes(graph, prefix).items() if pair[1] in scales}
    for node, weight in chosen.values():
        given = scales[weight]
        node.input[0] = writer.quantized(node.input[0], np.asarray(given.activation), axis=None)
    for weight in sorted({weight for _, weight in chosen.values()}):
        values = scales[weight].weight
        whole = values.size == 1
        name = f"{prefix}{weight}"
        decoded = writer.quantized(name, values.reshape(()) if whole else values, axis=None if whole else 0)
        for node in graph.node:
            node.input[:] = [decoded if one == name else one for one in node.input]
    writer.finish()
    return {weight for _, weight in chosen.values()}


class _Writer:
    """Adds pairs of nodes to a graph, each once, in front of the first node that needs them."""

    def __init__(self, graph: onnx.GraphProto, kind: str) -> None:
        self._graph = graph
        self._kind = kind
        self._made: dict[tuple[str, bytes], str] = {}
        self._nodes_of: dict[str, list[onnx.NodeProto]] = {}
        self._zeros: set[int] = set()

    def quantized(self, name: str, scale: NDArray[np.float16], axis: int | None) -> str:
        """Returns the name under which a value is found as its rounded self."""
        key = (name, scale.tobytes())
        if key not in self._made:
            label = f"{name}.{self._kind}" + (f".{len(self._nodes_of[name]) // 2}" if name in self._nodes_of else "")
            scale_name, codes, decoded = f"{label}.scale", f"{label}.codes", f"{label}.decoded"
            self._graph.initializer.append(numpy_helper.from_array(scale, scale_name))
            inputs, how = [scale_name, self._zero(scale.size if axis is not None else 0)], {}
            if axis is not None:
                how = {"axis": axis}
            self._nodes_of.setdefault(name, []).extend(
                [
                    helper.make_node("QuantizeLinear", [name, *inputs], [codes], name=f"{label}.encode", **how),
                    helper.make_node("DequantizeLinear", [codes, *inputs], [decoded], name=f"{label}.decode", **how),
                ]
            )
            self._made[key] = decoded
        return self._made[key]

    def _zero(self, size: int) -> str:
        """The name of a zero point: a single one (0), or one for each of so many outputs."""
        name = f"{self._kind}.zero.{size}"
        if size not in self._zeros:
            self._zeros.add(size)
            shape = [size] if size else []
            zeros = TensorProto(name=name, dims=shape, data_type=_CODE_TYPES[self._kind], raw_data=bytes(size or 1))
            self._graph.initializer.append(zeros)
        return name

    def finish(self) -> None:
        """Puts the pairs where what they read is there already."""
        nodes: list[onnx.NodeProto] = []
        left = dict(self._nodes_of)
        for name in [tensor.name for tensor in self._graph.initializer] + [v.name for v in self._graph.input]:
            nodes += left.pop(name, [])
        for node in self._graph.node:
            nodes.append(node)
            for name in node.output:
                nodes += left.pop(name, [])
        assert not left
        del self._graph.node[:]
        self._graph.node.extend(nodes)


def narrow(layers: Mapping[str, Layer], scales: Mapping[str, ProductScales], kind: str) -> list[RemovableHandle]:
    """Lets layers multiply rounded numbers: PyTorch computes what the graphs will; returns what undoes the inputs'."""
    handles = []
    with torch.no_grad():
        for name, given in scales.items():
            layer = layers[name]
            weight = torch.from_numpy(given.weight.astype(np.float32))
            shape = (-1, *(1,) * (layer.weight.dim() - 1))
            layer.weight.copy_(_rounded(layer.weight, weight.reshape(shape), kind))
            handles.append(layer.register_forward_pre_hook(_rounder(float(given.activation), kind)))
    return handles


@contextmanager
def computing(layers: Mapping[str, Layer], scales: Mapping[str, ProductScales], kind: str) -> Iterator[None]:
    """Lets layers multiply rounded numbers, for a while."""
    kept = {name: layers[name].weight.detach().clone() for name in scales}
    handles: list[RemovableHandle] = []
    try:
        handles = narrow(layers, scales, kind)
        yield
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, value in kept.items():
                layers[name].weight.copy_(value)


def _rounder(scale: float, kind: str) -> _Hook:
    def round_input(_layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (_rounded(inputs[0], torch.tensor(scale), kind), *inputs[1:])

    return round_input


def _rounded(values: torch.Tensor, scale: torch.Tensor, kind: str) -> torch.Tensor:
    codes = values / scale
    if kind == "int8":
        return codes.round().clamp(-128, 127) * scale
    return codes.clamp(-_LARGEST_FP8, _LARGEST_FP8).to(torch.float8_e4m3fn).to(values.dtype) * scale
