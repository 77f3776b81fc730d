"""From a graph module to an ONNX file: the dynamo exporter, folding of constants but not weights, shared weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch

from roboalign.export.half import compute_in_half
from roboalign.export.products import Products, quantize_products
from roboalign.export.weights import StoredTensor, share_weights
from roboalign.sdk.bundle import GraphSpec, TensorSpec
from roboalign.sdk.errors import CheckFailed

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["CODES_OPSET", "OPSET", "WEIGHT_PREFIX", "shorten_names", "write_graph"]

OPSET = 20
"""Newest ai.onnx version that TensorRT 10.3 (JetPack 6.2) reads in full and that the dynamo exporter writes."""

CODES_OPSET = 21
"""Version of graphs with quantised weights: the first whose `DequantizeLinear` knows blocks. The operators of `OPSET`
mean the same in it."""

WEIGHT_PREFIX = "model."
"""The graph modules hold their model under this name, so every weight of a graph starts with it."""


def write_graph(
    module: torch.nn.Module,
    inputs: Sequence[tuple[TensorSpec, torch.Tensor]],
    outputs: Sequence[TensorSpec],
    path: Path,
    table: Mapping[str, StoredTensor],
    *,
    in_half: bool = False,
    products: Products | None = None,
) -> tuple[GraphSpec, set[str]]:
    """Writes a module as ONNX and returns its description and the names of the weights that it refers to.

    Args:
        module: what is traced, in float32.
        inputs: with an example of each.
        outputs: what it returns.
        path: file to write.
        table: where its weights lie.
        in_half: compute in float16, as far as that is safe; inputs and outputs get the types of their descriptions.
        products: type and scales, by weight, of the layers that multiply narrow numbers in a graph `in_half`.
    """
    graph = _trace(module, inputs, outputs, table)
    foreign = sorted({node.domain for node in graph.graph.node} - {"", "ai.onnx"})
    if foreign or graph.functions:
        raise CheckFailed(
            f"{path.name} uses operators outside ai.onnx ({', '.join(foreign)}), which an engine builder will not know"
        )
    if in_half:
        named = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True)
        graph.graph.CopyFrom(named.graph)
        weights = {f"{WEIGHT_PREFIX}{name}" for name in table}
        found = frozenset(tensor.name for tensor in graph.graph.initializer if tensor.name in weights)
        compute_in_half(graph.graph, [spec for spec, _ in inputs], outputs, weights=found)
    used = share_weights(graph, table, WEIGHT_PREFIX)
    if products is not None:
        kind, scales = products
        there = {tensor.name.removeprefix(WEIGHT_PREFIX) for tensor in graph.graph.initializer}
        narrowed = quantize_products(graph.graph, scales, kind, WEIGHT_PREFIX)
        if left := sorted(scales.keys() & there - narrowed):
            raise CheckFailed(
                f"{path.name} multiplies {len(left)} of the weights that have scales for {kind} in float16, first "
                f"{left[0]}: no product of it was found; use --precision fp16"
            )
    opset = OPSET
    if any(stored.layout is not None for stored in table.values()):
        opset = CODES_OPSET
        graph.opset_import[0].version = opset
    onnx.save(graph, path)
    onnx.checker.check_model(path, full_check=True)
    spec = GraphSpec(file=path.name, opset=opset, inputs=tuple(spec for spec, _ in inputs), outputs=tuple(outputs))
    _check_interface(graph, spec)
    return spec, used


def shorten_names(graph: onnx.GraphProto) -> None:
    """Drops the names of nodes and numbers the values between them; inputs, outputs and constants keep theirs."""
    outputs = {value.name for value in graph.output}
    taken = outputs | {value.name for value in (*graph.input, *graph.initializer)}
    fresh = (name for name in map("v{}".format, count()) if name not in taken)
    short: dict[str, str] = {}
    for node in graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            return  # a branch may use any name of the graph around it
        node.ClearField("name")
        short |= {name: next(fresh) for name in node.output if name and name not in outputs}
    for node in graph.node:
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
    for value in graph.value_info:
        value.name = short.get(value.name, value.name)


def _trace(
    module: torch.nn.Module,
    inputs: Sequence[tuple[TensorSpec, torch.Tensor]],
    outputs: Sequence[TensorSpec],
    table: Mapping[str, StoredTensor],
) -> onnx.ModelProto:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(tensor for _, tensor in inputs),
            input_names=[spec.name for spec, _ in inputs],
            output_names=[spec.name for spec in outputs],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            optimize=False,
            verbose=False,
        )
        if program is None:
            raise CheckFailed("the ONNX exporter returned nothing")
        _tidy(program.model)
        _leave_out_weights(program.model, table)
    return program.model_proto


def _leave_out_weights(model: onnx_ir.Model, table: Mapping[str, StoredTensor]) -> None:
    """Replaces weights by references to where they lie: a graph with more than 2 GB inside cannot be written."""
    import onnx_ir

    for name, value in model.graph.initializers.items():
        stored = table.get(name.removeprefix(WEIGHT_PREFIX)) if name.startswith(WEIGHT_PREFIX) else None
        if stored is not None:
            assert value.const_value is not None
            value.const_value = onnx_ir.ExternalTensor(
                stored.file,
                stored.offset,
                stored.num_bytes,
                value.const_value.dtype,
                shape=onnx_ir.Shape(value.const_value.shape.numpy()),
                name=name,
            )


def _tidy(model: onnx_ir.Model) -> None:
    """Folds constants and drops what is unused, in place.

    The exporter's own optimiser also folds weights into others of another name and merges equal ones; then they could
    not be found in the safetensors file any more. Descriptions go too: they hold source paths of the machine that
    exported.
    """
    from onnx_ir import passes
    from onnx_ir.passes import common
    from onnxscript.optimizer import constant_folding

    constant_folding.fold_constants(model, should_fold=_folds_no_weight)
    passes.Sequential(
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        common.ClearMetadataAndDocStringPass(),
    )(model)


def _folds_no_weight(node: object) -> bool | None:
    names = [str(value.name) for value in getattr(node, "inputs", ()) if value is not None]
    return False if any(name.startswith(WEIGHT_PREFIX) for name in names) else None


def _check_interface(graph: onnx.ModelProto, spec: GraphSpec) -> None:
    for kind, declared, real in (
        ("input", spec.inputs, graph.graph.input),
        ("output", spec.outputs, graph.graph.output),
    ):
        found = [(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim), _dtype(v)) for v in real]
        expected = [(t.name, t.shape, t.dtype) for t in declared]
        if found != expected:
            raise CheckFailed(f"{spec.file} has {kind}s {found}, expected {expected}")


def _dtype(value: onnx.ValueInfoProto) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what the exporter says about absent optional packages and about its own deprecated calls."""
    log = logging.getLogger("torch.onnx._internal.exporter")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        log.setLevel(level)
