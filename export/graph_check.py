"""Does a graph hold only what an engine takes? Operators, operator set, data types, quantisation, mixed types.

Every rule is a row of what TensorRT-RTX 1.7.1, NVIDIA's parser and compiler on a CPU, was seen to accept or refuse
(tests/export/test_graph_check.py has a graph and a verdict for each). What the compiler was not asked is a note, not an
error. A pass says that nothing known stands against the graph; whether a board builds it is for the board to say.
`OnnxParser.supports_operator` is not used: it answers by name, and says yes to plug-ins that then cannot be loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from roboalign.export.plan import ExportPlan
from roboalign.export.planner import ORT_CPU
from roboalign.export.targets import oldest_runtime

__all__ = ["Finding", "GraphRules", "check_graph", "rules_of"]

REFUSED_OPERATORS = frozenset(
    {
        "AffineGrid",
        "Bernoulli",
        "BitwiseAnd",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "DFT",
        "DeformConv",
        "Det",
        "DynamicQuantizeLinear",
        "FusedMatMul",
        "MatMulInteger",
        "MaxUnpool",
        "Multinomial",
        "NonZero",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SkipLayerNormalization",
        "SplitToSequence",
        "Unique",
    }
)
"""Operators that the parser does not know (`supports_operator`, whose no can be believed), and NonZero, to which it
says yes and then finds no plug-in."""

COSTLY_OPERATORS = frozenset({"If", "Loop", "Scan", "ScatterND", "ScatterElements"})
"""Operators that compile, but keep an engine from being captured as one graph, or write in place."""

TRT_OPERATORS = frozenset({"TRT_FP4DynamicQuantize"})
"""Operators of TensorRT's own domain that were seen to compile."""

SAME_TYPE_OPERATORS = frozenset({"Add", "Concat", "Conv", "Div", "Gemm", "MatMul", "Max", "Min", "Mul", "Sub"})
"""Operators whose floating-point inputs must be of one type; strong typing inserts no cast."""

MEASURED_BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes of INT4 weights that were seen to compile; TensorRT Edge-LLM takes 128 only."""

_NAME_OF = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.INT4: "int4",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT4E2M1: "nvfp4",
}
"""Types by the names of targets.toml."""

_OPSET_OF_TYPE = {"int4": 21, "nvfp4": 23}
_OPSET_OF_BLOCKS = 21
"""Oldest operator set with a type, and with `block_size`."""

_FLOATS = ("fp32", "fp16", "bf16")
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphRules:
    """What a graph may hold."""

    name: str
    """Machine, for the messages."""
    dtypes: tuple[str, ...]
    """Types that it computes with or stores."""
    max_opset: int
    """Newest ai.onnx operator set."""
    max_ir: int = field(default_factory=lambda: oldest_runtime().ir)
    """Newest version of the file format itself."""
    is_tensorrt: bool = True
    """False for onnxruntime, which takes its own operators and asymmetric quantisation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that stands against a graph, or that is worth knowing."""

    rule: str
    """Which rule: graph, IR, opset, domain, operator, type, mixed types, zero point, shape, block, activation, data."""
    where: str
    """The node, with its operator, or the tensor."""
    message: str
    """What was found and what would do."""
    is_error: bool
    """False for a note."""


def rules_of(plan: ExportPlan) -> GraphRules:
    """Returns what the graphs of a plan may hold: what every machine that it can turn out to be takes."""
    dtypes = tuple(name for name in plan.boards[0].dtypes if all(name in board.dtypes for board in plan.boards))
    limits = [board.max_opset for board in plan.boards if board.max_opset is not None]
    return GraphRules(
        name=plan.target,
        dtypes=dtypes,
        max_opset=min(limits, default=plan.opset),
        is_tensorrt=any(part.engine != ORT_CPU for board in plan.boards for part in board.parts),
    )


def check_graph(model: onnx.ModelProto, rules: GraphRules, *, folder: Path | None = None) -> list[Finding]:
    """Returns what was found in a graph; none of them an error means that nothing known stands against it.

    Args:
        model: the graph; its external data need not be loaded.
        rules: of the machine.
        folder: where its external data lie; None does not look for them.
    """
    graph = _Graph(model)
    found = [finding for rule in _RULES for finding in rule(graph, rules)]
    if rules.is_tensorrt:
        found += [finding for rule in _TENSORRT_RULES for finding in rule(graph, rules)]
    if folder is not None:
        found += _missing_data(graph, folder)
    return found


class _Graph:
    """A model with the types of its values, as far as they can be inferred."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.fault = ""
        try:
            # Not strict: an operator of another domain has no rule, and what follows it stays unknown.
            graph = onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False).graph
        except onnx.shape_inference.InferenceError as err:
            self.fault, graph = str(err), model.graph
        self.nodes = list(graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        # A weight may be rounded in the graph, which a builder does once.
        self.weights = set(self.constants) | {
            node.output[0]
            for node in self.nodes
            if node.op_type == "QuantizeLinear" and node.input[0] in self.constants
        }
        self.types: dict[str, int] = {
            value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)
        }
        self.types |= {name: tensor.data_type for name, tensor in self.constants.items()}
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)

    def type_name(self, value: str) -> str | None:
        """The name of a value's type; None where it is unknown or none of ours."""
        return _NAME_OF.get(self.types.get(value, 0))


def _where(node: onnx.NodeProto) -> str:
    name = node.name or (node.output[0] if node.output else "")
    return f"{node.op_type} {name!r}"


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _error(rule: str, where: str, message: str) -> Finding:
    return Finding(rule=rule, where=where, message=message, is_error=True)


def _note(rule: str, where: str, message: str) -> Finding:
    return Finding(rule=rule, where=where, message=message, is_error=False)


def _check_opset(graph: _Graph, rules: GraphRules) -> Iterator[Finding]:
    if graph.fault:
        yield _error("graph", "the graph", f"its types cannot be inferred: {graph.fault}")
    if graph.model.ir_version > rules.max_ir:
        oldest = f"onnxruntime {oldest_runtime().version}, the last for Python 3.10, reads up to {rules.max_ir}"
        yield _error("IR", "the graph", f"ONNX IR version {graph.model.ir_version}, and {oldest}")
    if graph.opset > rules.max_opset:
        yield _error("opset", "the graph", f"opset {graph.opset}, and {rules.name} reads up to {rules.max_opset}")
    for name, needed in _OPSET_OF_TYPE.items():
        tensors = [tensor.name for tensor in graph.constants.values() if _NAME_OF.get(tensor.data_type) == name]
        if tensors and graph.opset < needed:
            yield _error("opset", tensors[0], f"{name} weights need opset {needed}, found {graph.opset}")
    if graph.opset < _OPSET_OF_BLOCKS:
        for node in graph.nodes:
            if node.op_type in _QUANTIZERS and _attribute(node, "block_size", 0):
                yield _error("opset", _where(node), f"blocks need opset {_OPSET_OF_BLOCKS}, found {graph.opset}")


def _check_domains(graph: _Graph, rules: GraphRules) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.domain in ("", "ai.onnx"):
            continue
        if rules.is_tensorrt and node.domain == "trt" and node.op_type in TRT_OPERATORS:
            continue
        if not rules.is_tensorrt and node.domain == "com.microsoft":
            continue
        yield _error("domain", _where(node), f"operator of domain {node.domain}, for which {rules.name} has no plug-in")


def _check_operators(graph: _Graph, rules: GraphRules) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type in REFUSED_OPERATORS:
            yield _error("operator", _where(node), "the parser of TensorRT has no such operator")
        elif node.op_type in COSTLY_OPERATORS:
            yield _note("operator", _where(node), "taken, but it keeps an engine from being captured as one graph")


def _check_types(graph: _Graph, rules: GraphRules) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for value in graph.types:
        name = graph.type_name(value)
        if name is not None and name not in rules.dtypes:
            seen.setdefault(name, value)
    for name, value in seen.items():
        yield _error("type", value, f"{name}, and {rules.name} has {', '.join(rules.dtypes)}")


def _check_wide_types(graph: _Graph, rules: GraphRules) -> Iterator[Finding]:
    doubles = [value for value, kind in graph.types.items() if kind == TensorProto.DOUBLE]
    if doubles:
        yield _note("type", doubles[0], "float64, which is computed in float32")
    for name, tensor in graph.constants.items():
        if tensor.data_type == TensorProto.UINT8:
            yield _error("type", name, "a constant of uint8, which the parser does not take; quantise to int8")


def _check_shapes(graph: _Graph, rules: GraphRules) -> Iterator[Finding]:
    for value in graph.model.graph.input:
        if any(not dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim):
            yield _error("shape", value.name, "an input whose shape is not fixed, which needs a profile to build")


def _check_mixed_types(graph: _Graph, rules: GraphRules) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type not in SAME_TYPE_OPERATORS or node.domain not in ("", "ai.onnx"):
            continue
        names = {name for value in node.input if (name := graph.type_name(value)) in _FLOATS}
        if len(names) > 1:
            found = " and ".join(sorted(str(name) for name in names))
            yield _error("mixed types", _where(node), f"inputs of {found}; strong typing needs one, cast before it")


def _check_zero_points(graph: _Graph, rules: GraphRules) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type not in _QUANTIZERS or len(node.input) < 3 or not node.input[2]:
            continue
        tensor = graph.constants.get(node.input[2])
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            yield _error("zero point", _where(node), "a zero point that is no constant in the graph; it must be zero")
        elif np.any(numpy_helper.to_array(tensor).astype(np.float32) != 0):
            yield _error("zero point", _where(node), "a zero point other than zero; quantise symmetrically")


def _check_quantizers(graph: _Graph, rules: GraphRules) -> Iterator[Finding]:
    """What the compiler for a stand-in takes, and TensorRT's documents on quantised types do not promise."""
    for node in graph.nodes:
        if node.op_type not in _QUANTIZERS:
            continue
        yield from _check_last_block(graph, node)
        name, is_weight = _NAME_OF.get(_quantized_type(graph, node)), node.input[0] in graph.weights
        if name == "int4" and is_weight and node.op_type == "DequantizeLinear":
            size = _attribute(node, "block_size", 0)
            if size not in MEASURED_BLOCKS:
                known = ", ".join(map(str, MEASURED_BLOCKS))
                yield _note("block", _where(node), f"INT4 in blocks of {size or 'a row'}; seen to compile were {known}")
        elif name == "int4":
            yield _note("activation", _where(node), "INT4 is documented for weights only; this is of what is computed")
        elif name == "int8" and not is_weight and _num_scales(graph, node) != 1:
            yield _note("activation", _where(node), "INT8 of what is computed is documented with a single scale only")


def _check_last_block(graph: _Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    """ONNX lets the last block be shorter; the parser of TensorRT does not."""
    size, tensor = _attribute(node, "block_size", 0), graph.constants.get(node.input[0])
    if not size or tensor is None:
        return
    length = tensor.dims[_attribute(node, "axis", 1)]
    if length % size:
        yield _error(
            "block", _where(node), f"{length} values in blocks of {size}: the last block is shorter; fill it up"
        )


def _num_scales(graph: _Graph, node: onnx.NodeProto) -> int:
    scale = graph.constants.get(node.input[1])
    return 1 if scale is None else int(np.prod(scale.dims))


def _quantized_type(graph: _Graph, node: onnx.NodeProto) -> int:
    value = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
    return graph.types.get(str(value), 0)


def _missing_data(graph: _Graph, folder: Path) -> Iterator[Finding]:
    files = {
        entry.value
        for tensor in graph.constants.values()
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in sorted(files):
        if not (folder / name).is_file():
            yield _error("data", name, f"weights that the graph points at are not in {folder.name}")


_Rule = Callable[[_Graph, GraphRules], Iterator[Finding]]

_RULES: Sequence[_Rule] = (_check_opset, _check_domains, _check_types)

_TENSORRT_RULES: Sequence[_Rule] = (
    _check_operators,
    _check_wide_types,
    _check_shapes,
    _check_mixed_types,
    _check_zero_points,
    _check_quantizers,
)
