"""Weights of a bundle: each tensor stored once, as safetensors, and shared by every graph as ONNX external data.

ONNX external data is a file name, an offset and a length; a safetensors file is a header and raw tensors at known
offsets, so the graphs point straight into it. In a graph that computes in float32, a tensor stored as float16 gets a
Cast behind it, which runtimes fold when they load. The bytes that onnxruntime maps are thus the bytes that PyTorch
reads: parity is about one set of weights.

With `int8` and `int4`, matrices of linear layers become codes in blocks and kernels of convolutions codes of 8 bits
(`sdk/quantized.py`), and the graph gets a `DequantizeLinear` in front of what uses them: a standard operator, which
our runtime has onnxruntime do once, when it loads. Everything else stays float16: the embedding, which is also the
output layer, biases, norms, and what is too small to matter.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from roboalign.export.rounding import QUANTIZED_BITS, QuantizedWeight
from roboalign.sdk.errors import CheckFailed, ConfigError
from roboalign.sdk.quantized import SCALE_SUFFIX, QuantizedLayout, layouts_to_metadata, pack_codes

__all__ = [
    "PRECISIONS",
    "StoredTensor",
    "share_weights",
    "stored_tensors",
    "write_weights",
]

PRECISIONS = {"fp16": torch.float16, "fp32": torch.float32} | dict.fromkeys(QUANTIZED_BITS, torch.float16)
"""What holds the weights that are no codes, by precision."""

_ONNX_DTYPES = {
    "F16": TensorProto.FLOAT16,
    "F32": TensorProto.FLOAT,
    "I8": TensorProto.INT8,
    "U8": TensorProto.INT4,  # two codes a byte
}

MAX_INLINE_BYTES = 65536
"""Constants that are no weights (positions, shapes) stay inside a graph; more is a weight in disguise. In a large model
they may take a hundredth of the weights: the angles of a thousand patches are 0.6 MB. Masks are not counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file."""

    file: str
    """File name, in the folder of the graphs."""
    offset: int
    """First byte."""
    num_bytes: int
    """Length."""
    dtype: int
    """`TensorProto` type of the stored values."""
    shape: tuple[int, ...]
    """Dimensions."""
    layout: QuantizedLayout | None = None
    """How to read the codes; None for plain numbers."""


def write_weights(
    module: torch.nn.Module,
    path: Path,
    precision: str,
    *,
    codes: Mapping[str, QuantizedWeight] = MappingProxyType({}),
) -> dict[str, StoredTensor]:
    """Writes a module's weights; returns where each lies, tied tensors under all of their names.

    Args:
        module: the weights.
        path: file to write.
        precision: one of `PRECISIONS`, of the weights that are no codes.
        codes: by name, the weights that are stored as codes.

    Raises:
        CheckFailed: a value overflows fp16, or there are codes of a weight that the module does not have.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}, expected one of {', '.join(sorted(PRECISIONS))}")
    tensors: dict[str, torch.Tensor] = {}
    first_name: dict[int, str] = {}
    stored_as: dict[str, str] = {}
    for name, tensor in module.state_dict().items():
        stored_as[name] = first_name.setdefault(tensor.data_ptr(), name)
        if stored_as[name] != name:
            continue
        if name in codes:
            tensors[name] = torch.from_numpy(pack_codes(codes[name].codes, codes[name].layout.bits))
            tensors[name + SCALE_SUFFIX] = torch.from_numpy(codes[name].scales)
            continue
        stored = tensor.detach().to("cpu", PRECISIONS[precision]).contiguous()
        if not torch.isfinite(stored).all():
            raise CheckFailed(
                f"weight {name} does not fit {precision} (largest value {tensor.abs().max():.3g}); use --precision fp32"
            )
        tensors[name] = stored
    if unknown := sorted(set(codes) - set(tensors)):
        raise CheckFailed(f"there are codes of {unknown[0]}, and {path.name} stores no such weight of its own")
    layouts = {name: code.layout for name, code in codes.items()}
    # One entry: safetensors writes several in an order of chance, and an export shall repeat byte by byte.
    save_file(tensors, path, metadata=layouts_to_metadata(layouts) or {"format": "pt"})
    path.chmod(0o644)  # safetensors writes for the owner only; a bundle is meant to be copied and served
    table = stored_tensors(path, layouts)
    scale_entries = {name: entry for name, entry in table.items() if name.endswith(SCALE_SUFFIX)}
    return {name: table[stored] for name, stored in stored_as.items()} | scale_entries


def stored_tensors(
    path: Path, layouts: Mapping[str, QuantizedLayout] = MappingProxyType({})
) -> dict[str, StoredTensor]:
    """Returns where each tensor of a safetensors file lies."""
    with path.open("rb") as stream:
        (header_length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(header_length))
    table = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        layout = layouts.get(name)
        table[name] = StoredTensor(
            file=path.name,
            offset=8 + header_length + begin,
            num_bytes=end - begin,
            dtype=_ONNX_DTYPES[entry["dtype"]],
            shape=tuple(entry["shape"]) if layout is None else layout.shape,
            layout=layout,
        )
    return table


def share_weights(graph: onnx.ModelProto, table: Mapping[str, StoredTensor], prefix: str) -> set[str]:
    """Replaces a graph's weights by references into safetensors files; returns which it uses, as `file:offset`.

    Args:
        graph: changed in place; its weights are called `prefix` + name, as `torch.onnx.export` writes them.
        table: from `write_weights`.
        prefix: what precedes a name, e.g. `model.`.
    """
    used: set[str] = set()
    casts: list[onnx.NodeProto] = []
    codes: list[tuple[TensorProto, StoredTensor, StoredTensor]] = []
    inline_bytes = 0
    for tensor in graph.graph.initializer:
        stored = table.get(tensor.name.removeprefix(prefix)) if tensor.name.startswith(prefix) else None
        if stored is None:
            is_mask = tensor.data_type == TensorProto.BOOL  # of a long prompt's tokens by themselves, and no weight
            inline_bytes += 0 if is_mask else len(tensor.raw_data)
            continue
        shape = stored.shape[::-1] if stored.layout is not None and stored.layout.block else stored.shape
        if tuple(tensor.dims) != shape:
            raise CheckFailed(
                f"weight {tensor.name} is {list(tensor.dims)} in the graph and {list(shape)} in {stored.file}"
            )
        used.add(f"{stored.file}:{stored.offset}")
        if stored.layout is not None:
            codes.append((tensor, stored, table[tensor.name.removeprefix(prefix) + SCALE_SUFFIX]))
            continue
        if stored.dtype == TensorProto.FLOAT16 and tensor.data_type == TensorProto.FLOAT:
            casts.append(_cast_to_float(tensor))
        _point_at(tensor, stored)
    limit = max(MAX_INLINE_BYTES, sum({stored.offset: stored.num_bytes for stored in table.values()}.values()) // 100)
    if inline_bytes > limit:
        raise CheckFailed(
            f"graph holds {inline_bytes} bytes of constants outside the shared weights, expected <= {limit}"
        )
    for tensor, stored, scale in codes:
        used.add(f"{scale.file}:{scale.offset}")
        casts += _read_codes(graph.graph, tensor, stored, scale)
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    # Value infos of the initialisers state the old type, and nothing needs the others.
    del graph.graph.value_info[:]
    return used


def _read_codes(
    graph: onnx.GraphProto, tensor: TensorProto, stored: StoredTensor, scale: StoredTensor
) -> list[onnx.NodeProto]:
    """Points a weight at its codes; returns the nodes that decode it, and makes what uses it take it as it comes.

    A matrix comes as [inputs, outputs]: `Transpose` in front of a product goes, and `Gemm` with a transposed weight
    becomes `MatMul` and `Add`, because runtimes fuse decoding with `MatMul` alone.
    """
    assert stored.layout is not None
    weight = tensor.name
    scale_name, decoded = f"{weight}{SCALE_SUFFIX}", f"{weight}.decoded"
    is_half = tensor.data_type == TensorProto.FLOAT16
    tensor.name = f"{weight}.codes"
    _point_at(tensor, stored)
    scales = graph.initializer.add(name=scale_name)
    _point_at(scales, scale)
    block = stored.layout.block
    how = {"axis": 0, "block_size": block} if block else {"axis": 0}
    decoding = [] if is_half else [_cast_to_float(scales)]
    decoding.append(
        helper.make_node("DequantizeLinear", [tensor.name, scale_name], [decoded], name=f"{weight}.decode", **how)
    )
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if weight not in node.input:
            nodes.append(node)
        elif not block:
            node.input[:] = [decoded if name == weight else name for name in node.input]
            nodes.append(node)
        elif node.op_type == "Transpose":
            _rename_input(graph, node.output[0], decoded)
        else:
            nodes += _as_product(node, weight, decoded)
    del graph.node[:]
    graph.node.extend(nodes)
    return decoding


def _rename_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _as_product(node: onnx.NodeProto, weight: str, decoded: str) -> list[onnx.NodeProto]:
    """Returns a `Gemm` by a transposed weight as a `MatMul`, and an `Add` if it has a bias."""
    how = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    is_plain = (how.get("transA", 0), how.get("alpha", 1.0), how.get("beta", 1.0)) == (0, 1.0, 1.0)
    if node.op_type != "Gemm" or node.input[1] != weight or not how.get("transB") or not is_plain:
        raise CheckFailed(
            f"weight {weight} is used by {node.op_type} {node.name}, where codes cannot be put; use --precision fp16"
        )
    if len(node.input) < 3:
        return [helper.make_node("MatMul", [node.input[0], decoded], list(node.output), name=node.name)]
    product = f"{node.output[0]}.product"
    return [
        helper.make_node("MatMul", [node.input[0], decoded], [product], name=f"{node.name}.product"),
        helper.make_node("Add", [product, node.input[2]], list(node.output), name=node.name),
    ]


def _cast_to_float(tensor: TensorProto) -> onnx.NodeProto:
    wide = tensor.name
    tensor.name = f"{wide}.fp16"
    return helper.make_node("Cast", [tensor.name], [wide], name=f"{wide}.cast", to=TensorProto.FLOAT)


def _point_at(tensor: TensorProto, stored: StoredTensor) -> None:
    tensor.data_type = stored.dtype
    tensor.dims[:] = stored.shape
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", stored.file), ("offset", stored.offset), ("length", stored.num_bytes)):
        tensor.external_data.add(key=key, value=str(value))
