"""One small graph for each thing that TensorRT's parser and compiler were asked about, with their verdicts.

A verdict is about compute capability 8.6 (stands in for Orin), 8.9, and 12.0 (stands in for Thor): True where
TensorRT-RTX 1.7.1 compiles the graph, False where it refuses. `benchmarks/conformance.py` asks the compiler again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["CASES", "STAND_INS", "Case"]

STAND_INS = ("8.6", "8.9", "12.0")

_ROWS, _COLUMNS = 256, 512
_HALF = TensorProto.FLOAT16


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A graph, what the compiler says to it, and the rule that refuses it, or that has a note about it."""

    build: Callable[[], onnx.ModelProto]
    compiles: tuple[bool, bool, bool]
    rule: str = ""


def _weights() -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((_ROWS, _COLUMNS)) * 0.05).astype(np.float32)


def _model(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[TensorProto] = (),
    *,
    opset: int = 20,
    dtype: int = _HALF,
    domain: str = "",
    width: int = _COLUMNS,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "case",
        [helper.make_tensor_value_info("x", dtype, [1, _ROWS])],
        [helper.make_tensor_value_info("y", dtype, [1, width])],
        initializer=list(constants),
    )
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _tensor(name: str, array: np.ndarray, dtype: int) -> TensorProto:
    return helper.make_tensor(name, dtype, array.shape, array.flatten().tolist())


def _packed(name: str, shape: Sequence[int], dtype: int, values_per_byte: int = 1) -> TensorProto:
    """Bytes that are harmless in any narrow type: small positive numbers."""
    count = int(np.prod(shape)) // values_per_byte
    raw = np.full(count, 0x11 if values_per_byte == 2 else 0x38, np.uint8).tobytes()
    return TensorProto(name=name, dims=list(shape), data_type=dtype, raw_data=raw)


def _node(op: str, inputs: Sequence[str], outputs: Sequence[str], **more: object) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), name=f"{op}_{outputs[0]}", **more)


def _plain(dtype: int) -> onnx.ModelProto:
    return _model([_node("MatMul", ["x", "w"], ["y"])], [_tensor("w", _weights(), dtype)], dtype=dtype)


def _int8(*, with_activation: bool = True, zero_point: int = 0, dtype: int = TensorProto.INT8) -> onnx.ModelProto:
    scale = np.full(_COLUMNS, 0.001, np.float32)
    zeros = np.full(_COLUMNS, zero_point, np.int8 if dtype == TensorProto.INT8 else np.uint8)
    stored = np.clip(np.round(_weights() / 0.001), -127, 127).astype(np.int8)
    constants = [
        _tensor("wq", stored if dtype == TensorProto.INT8 else stored.astype(np.int16) + 128, dtype),
        _tensor("ws", scale, TensorProto.FLOAT),
        _tensor("wz", zeros, dtype),
    ]
    nodes = [_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=1)]
    if with_activation:
        constants += [
            _tensor("xs", np.array(0.02, np.float32), TensorProto.FLOAT),
            _tensor("xz", np.array(zero_point), dtype),
        ]
        nodes += [
            _node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            _node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        ]
    nodes.append(_node("MatMul", ["xd" if with_activation else "x", "w"], ["y"]))
    return _model(nodes, constants, dtype=TensorProto.FLOAT)


def _int4(block: int, *, opset: int = 21, of_activation: bool = False) -> onnx.ModelProto:
    scales = _tensor("ws", np.full((_ROWS // block, _COLUMNS), 0.01), _HALF)
    packed = _packed("wq", (_ROWS, _COLUMNS), TensorProto.INT4, values_per_byte=2)
    nodes = [
        _node("DequantizeLinear", ["wq", "ws"], ["w"], axis=0, block_size=block),
        _node("MatMul", ["x", "w"], ["y"]),
    ]
    if not of_activation:
        return _model(nodes, [packed, scales], opset=opset)
    scale = _tensor("xs", np.array(0.1), _HALF)
    zero = helper.make_tensor("xz", TensorProto.INT4, [], [0])
    nodes = [
        _node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        _node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        _node("MatMul", ["xd", "w"], ["y"]),
    ]
    return _model(nodes, [scale, zero, _tensor("w", _weights(), _HALF)], opset=opset)


def _fp8() -> onnx.ModelProto:
    kind = TensorProto.FLOAT8E4M3FN
    constants = [
        _packed("wq", (_ROWS, _COLUMNS), kind),
        _tensor("ws", np.array(0.01), _HALF),
        _tensor("xs", np.array(0.02), _HALF),
        helper.make_tensor("z", kind, [], [0.0]),
    ]
    nodes = [
        _node("DequantizeLinear", ["wq", "ws"], ["w"]),
        _node("QuantizeLinear", ["x", "xs", "z"], ["xq"]),
        _node("DequantizeLinear", ["xq", "xs", "z"], ["xd"]),
        _node("MatMul", ["xd", "w"], ["y"]),
    ]
    return _model(nodes, constants)


def _nvfp4() -> onnx.ModelProto:
    fp4, fp8 = TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E4M3FN
    constants = [
        _packed("wq", (_ROWS, _COLUMNS), fp4, values_per_byte=2),
        _packed("wbq", (_ROWS // 16, _COLUMNS), fp8),
        _tensor("wg", np.array(0.01), TensorProto.FLOAT),
        _tensor("xg", np.array(0.01), TensorProto.FLOAT),
    ]
    nodes = [
        _node("DequantizeLinear", ["wbq", "wg"], ["wb"]),
        _node("DequantizeLinear", ["wq", "wb"], ["w"], axis=0, block_size=16),
        _node("Cast", ["w"], ["wh"], to=_HALF),
        helper.make_node(
            "TRT_FP4DynamicQuantize",
            ["x", "xg"],
            ["xq", "xbq"],
            domain="trt",
            name="quantise",
            axis=-1,
            block_size=16,
            scale_type=fp8,
        ),
        _node("DequantizeLinear", ["xbq", "xg"], ["xb"]),
        _node("DequantizeLinear", ["xq", "xb"], ["xd"], axis=-1, block_size=16),
        _node("Cast", ["xd"], ["xh"], to=_HALF),
        _node("MatMul", ["xh", "wh"], ["y"]),
    ]
    return _model(nodes, constants, opset=23, domain="trt")


def _dynamic() -> onnx.ModelProto:
    quantised = np.clip(np.round(_weights() / 0.001), -127, 127)
    constants = [
        _tensor("wq", quantised.astype(np.int8), TensorProto.INT8),
        _tensor("wz", np.array(0), TensorProto.INT8),
        _tensor("ws", np.array(0.001), TensorProto.FLOAT),
    ]
    nodes = [
        _node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        _node("MatMulInteger", ["xq", "wq", "xz", "wz"], ["yi"]),
        _node("Cast", ["yi"], ["yf"], to=TensorProto.FLOAT),
        _node("Mul", ["xs", "ws"], ["s"]),
        _node("Mul", ["yf", "s"], ["y"]),
    ]
    return _model(nodes, constants, dtype=TensorProto.FLOAT)


def _matmul_nbits() -> onnx.ModelProto:
    constants = [
        numpy_helper.from_array(np.full((_COLUMNS, _ROWS // 32, 16), 0x11, np.uint8), "wq"),
        _tensor("ws", np.full(_COLUMNS * _ROWS // 32, 0.01), _HALF),
    ]
    node = helper.make_node(
        "MatMulNBits",
        ["x", "wq", "ws"],
        ["y"],
        name="nbits",
        domain="com.microsoft",
        K=_ROWS,
        N=_COLUMNS,
        bits=4,
        block_size=32,
    )
    return _model([node], constants, domain="com.microsoft")


def _custom() -> onnx.ModelProto:
    node = helper.make_node("MyOwn", ["x"], ["y"], name="mine", domain="example.org")
    return _model([node], domain="example.org", width=_ROWS)


def _mixed() -> onnx.ModelProto:
    nodes = [_node("MatMul", ["x", "w"], ["y"])]
    return _model(nodes, [_tensor("w", _weights(), TensorProto.FLOAT)])


def _mixed_add() -> onnx.ModelProto:
    bias = _tensor("b", np.zeros(_COLUMNS, np.float32), TensorProto.FLOAT)
    nodes = [_node("MatMul", ["x", "w"], ["m"]), _node("Add", ["m", "b"], ["y"])]
    return _model(nodes, [_tensor("w", _weights(), _HALF), bias])


def _bitwise_and() -> onnx.ModelProto:
    nodes = [
        _node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        _node("BitwiseAnd", ["i", "m"], ["j"]),
        _node("Cast", ["j"], ["y"], to=_HALF),
    ]
    return _model(nodes, [_tensor("m", np.array(7), TensorProto.INT32)], width=_ROWS)


def _nonzero() -> onnx.ModelProto:
    nodes = [
        _node("NonZero", ["x"], ["at"]),
        _node("Cast", ["at"], ["f"], to=_HALF),
        _node("ReduceSum", ["f"], ["s"], keepdims=0),
        _node("Add", ["x", "s"], ["y"]),
    ]
    return _model(nodes, width=_ROWS)


def _scatter() -> onnx.ModelProto:
    constants = [_tensor("at", np.zeros((1, 2)), TensorProto.INT64), _tensor("u", np.ones(1), _HALF)]
    return _model([_node("ScatterND", ["x", "at", "u"], ["y"])], constants, width=_ROWS)


def _if() -> onnx.ModelProto:
    def branch(op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{op}_y", _HALF, [1, _ROWS])
        return helper.make_graph([_node(op, ["x"], [f"{op}_y"])], op, [], [out])

    nodes = [
        _node("ReduceSum", ["x"], ["s"], keepdims=0),
        _node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch("Neg"), else_branch=branch("Abs")),
    ]
    return _model(nodes, width=_ROWS)


def _double() -> onnx.ModelProto:
    nodes = [
        _node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
        _node("Neg", ["d"], ["n"]),
        _node("Cast", ["n"], ["y"], to=_HALF),
    ]
    return _model(nodes, width=_ROWS)


def _int8_rows() -> onnx.ModelProto:
    """Activations with a scale for each of their columns."""
    model = _int8()
    for tensor in model.graph.initializer:
        if tensor.name == "xs":
            tensor.CopyFrom(_tensor("xs", np.full(_ROWS, 0.02, np.float32), TensorProto.FLOAT))
        elif tensor.name == "xz":
            tensor.CopyFrom(_tensor("xz", np.zeros(_ROWS), TensorProto.INT8))
    for node in model.graph.node:
        if node.input[0] in ("x", "xq") and node.op_type != "MatMul":
            node.attribute.append(helper.make_attribute("axis", 1))
    return model


def _dynamic_shape() -> onnx.ModelProto:
    model = _plain(_HALF)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].ClearField("dim_value")
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    return model


_ALL, _NONE = (True, True, True), (False, False, False)

CASES = {
    "fp32": Case(build=lambda: _plain(TensorProto.FLOAT), compiles=_ALL),
    "fp16": Case(build=lambda: _plain(_HALF), compiles=_ALL),
    "bf16": Case(build=lambda: _plain(TensorProto.BFLOAT16), compiles=_ALL),
    "int8 weights and activations": Case(build=_int8, compiles=_ALL),
    "int8 weights": Case(build=lambda: _int8(with_activation=False), compiles=_ALL),
    "int4 in blocks of 32": Case(build=lambda: _int4(32), compiles=_ALL),
    "int4 in blocks of 64": Case(build=lambda: _int4(64), compiles=_ALL),
    "int4 in blocks of 128": Case(build=lambda: _int4(128), compiles=_ALL),
    "fp8": Case(build=_fp8, compiles=(False, True, True), rule="type"),
    "nvfp4": Case(build=_nvfp4, compiles=(False, False, True), rule="type"),
    "int8 with a zero point": Case(build=lambda: _int8(zero_point=3), compiles=_NONE, rule="zero point"),
    "uint8 with a zero point": Case(
        build=lambda: _int8(zero_point=128, dtype=TensorProto.UINT8), compiles=_NONE, rule="zero point"
    ),
    "dynamic quantisation": Case(build=_dynamic, compiles=_NONE, rule="operator"),
    "MatMulNBits": Case(build=_matmul_nbits, compiles=_NONE, rule="domain"),
    "fp16 times fp32": Case(build=_mixed, compiles=_NONE, rule="mixed types"),
    "fp16 plus fp32": Case(build=_mixed_add, compiles=_NONE, rule="mixed types"),
    "a custom operator": Case(build=_custom, compiles=_NONE, rule="domain"),
    "BitwiseAnd": Case(build=_bitwise_and, compiles=_NONE, rule="operator"),
    "NonZero": Case(build=_nonzero, compiles=_NONE, rule="operator"),
    "ScatterND": Case(build=_scatter, compiles=_ALL, rule="operator"),
    "If": Case(build=_if, compiles=_ALL, rule="operator"),
    "fp64": Case(build=_double, compiles=_ALL, rule="type"),
    "uint8 without a zero point": Case(
        build=lambda: _int8(zero_point=0, dtype=TensorProto.UINT8), compiles=_NONE, rule="type"
    ),
    "int8 activations by column": Case(build=_int8_rows, compiles=_ALL, rule="activation"),
    "int4 in blocks of 16": Case(build=lambda: _int4(16), compiles=_ALL),
    "int4 in blocks of 256": Case(build=lambda: _int4(256), compiles=_ALL),
    "a shape that is not fixed": Case(build=_dynamic_shape, compiles=_NONE, rule="shape"),
    "int4 activations": Case(build=lambda: _int4(32, of_activation=True), compiles=_ALL, rule="activation"),
}
"""Every row of the table of conformance, and what was asked besides; `rule` is the one that refuses."""
