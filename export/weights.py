"""Weights of a bundle: each tensor stored once, as safetensors, and shared by every graph as ONNX external data.

ONNX external data is a file name, an offset and a length; a safetensors file is a header and raw tensors at known
offsets, so the graphs point straight into it. A tensor stored as float16 gets a Cast to float32 behind it, which
runtimes fold when they load. The bytes that onnxruntime maps are thus the bytes that PyTorch reads: parity is about
one set of weights.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from roboalign.sdk.errors import CheckFailed, ConfigError

__all__ = ["PRECISIONS", "StoredTensor", "share_weights", "write_weights"]

PRECISIONS = {"fp16": torch.float16, "fp32": torch.float32}

_ONNX_DTYPES = {"F16": TensorProto.FLOAT16, "F32": TensorProto.FLOAT}

MAX_INLINE_BYTES = 65536
"""Constants that are no weights (masks, positions, shapes) stay inside a graph; more is a weight in disguise."""


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


def write_weights(module: torch.nn.Module, path: Path, precision: str) -> dict[str, StoredTensor]:
    """Writes a module's weights as `fp16` or `fp32`; returns where each lies, tied tensors under all of their names.

    Raises:
        CheckFailed: a value overflows fp16.
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
        stored = tensor.detach().to("cpu", PRECISIONS[precision]).contiguous()
        if not torch.isfinite(stored).all():
            raise CheckFailed(
                f"weight {name} does not fit {precision} (largest value {tensor.abs().max():.3g}); use --precision fp32"
            )
        tensors[name] = stored
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes for the owner only; a bundle is meant to be copied and served
    table = _tensor_table(path)
    return {name: table[stored] for name, stored in stored_as.items()}


def _tensor_table(path: Path) -> dict[str, StoredTensor]:
    """Returns where each tensor of a safetensors file lies."""
    with path.open("rb") as stream:
        (header_length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(header_length))
    table = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        table[name] = StoredTensor(
            file=path.name,
            offset=8 + header_length + begin,
            num_bytes=end - begin,
            dtype=_ONNX_DTYPES[entry["dtype"]],
            shape=tuple(entry["shape"]),
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
    casts = []
    inline_bytes = 0
    for tensor in graph.graph.initializer:
        stored = table.get(tensor.name.removeprefix(prefix)) if tensor.name.startswith(prefix) else None
        if stored is None:
            inline_bytes += len(tensor.raw_data)
            continue
        if tuple(tensor.dims) != stored.shape:
            raise CheckFailed(
                f"weight {tensor.name} is {list(tensor.dims)} in the graph and {list(stored.shape)} in {stored.file}"
            )
        used.add(f"{stored.file}:{stored.offset}")
        if stored.dtype == TensorProto.FLOAT16:
            casts.append(_cast_to_float(tensor))
        _point_at(tensor, stored)
    if inline_bytes > MAX_INLINE_BYTES:
        raise CheckFailed(
            f"graph holds {inline_bytes} bytes of constants outside the shared weights, expected <= {MAX_INLINE_BYTES}"
        )
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    # Value infos of the initialisers state the old type, and nothing needs the others.
    del graph.graph.value_info[:]
    return used


def _cast_to_float(tensor: TensorProto) -> onnx.NodeProto:
    wide = tensor.name
    tensor.name = f"{wide}.fp16"
    return helper.make_node("Cast", [tensor.name], [wide], name=f"{wide}.cast", to=TensorProto.FLOAT)


def _point_at(tensor: TensorProto, stored: StoredTensor) -> None:
    tensor.data_type = stored.dtype
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", stored.file), ("offset", stored.offset), ("length", stored.num_bytes)):
        tensor.external_data.add(key=key, value=str(value))
