"""The decoder of a bundle for the CPU as onnxruntime runs it fastest: fused operators, any number of tokens, in place.

`see` makes the rows that a prompt with its picture is, `read` reads tokens behind those that the cache holds, `write`
scores what may follow, and `write_actions` scores action tokens alone, which are all that may follow inside an action
span. They share the weight files with the portable graphs, which TensorRT and other providers run.

`read` departs from the rules of those on purpose. Its operators are onnxruntime's own (GroupQueryAttention writes keys
and values to their places, so no mask is computed and no cache copied), and its number of tokens is not fixed: one
session then serves a prompt, the rest of a prompt, a drafted thought and a single token, with one copy of the weights.
Products of the same values are one product: query, key and value, and the two halves of the gate. Their weights are
put side by side by nodes that onnxruntime runs once, when it loads the graph, so that the file stores each once.

`read_codes` is `read` with products on the codes themselves (MatMulNBits, activations rounded to 8 bits in blocks).
That operator wants codes in another order than the standard one, which is also made by nodes that are run once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from transformers import PreTrainedModel

from roboalign.export.graphs import DecoderShape, decoder_shape
from roboalign.export.onnx_files import CODES_OPSET, OPSET, WEIGHT_PREFIX, shorten_names
from roboalign.export.weights import StoredTensor, share_weights
from roboalign.sdk.bundle import (
    READ_CODES_ROLE,
    READ_ROLE,
    WRITE_ACTIONS_ROLE,
    WRITE_ROLE,
    GraphSpec,
    PolicySpec,
    TensorSpec,
)
from roboalign.sdk.quantized import SCALE_SUFFIX

__all__ = ["ActionRows", "SeeGraph", "write_read_graphs"]

ActionRows = tuple[int, int]
"""Id of the first action token, and how many there are."""

_IR_VERSION = 10
_TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
_EIGHT_BIT_ACTIVATIONS = 4
"""`accuracy_level` of MatMulNBits: the only one whose products are fast."""
_TOKENS = "tokens_read"
"""Name of the dimension that is not fixed."""


class SeeGraph(torch.nn.Module):
    """ids int64[1, P], pixels [1, 3, S, S] -> what the decoder reads [1, P, D], places of the picture's ends int64[2].

    What it reads are the words' embeddings, and the picture's own at the placeholders.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows_BPD, _ = self.model.model.merge(input_ids, pixel_values, None)
        is_image_P = input_ids[0] == self.model.config.image_token_id
        before = (is_image_P.long().cumsum(dim=0) == 0).long().sum()
        return rows_BPD, torch.stack((before, before + is_image_P.long().sum() - 1))


def write_read_graphs(
    model: PreTrainedModel,
    spec: PolicySpec,
    layer: int,
    folder: Path,
    table: Mapping[str, StoredTensor],
    *,
    action_rows: ActionRows | None,
) -> dict[str, GraphSpec]:
    """Writes `read`, `write` and, where there are codes or action tokens, what is for these; returns them by role.

    Args:
        model: with a Llama decoder.
        spec: what the shapes follow from.
        layer: whose output the action head reads.
        folder: where to write.
        table: where the weights lie.
        action_rows: ids of the action tokens; None where there are none.
    """
    opset = CODES_OPSET if any(stored.layout is not None for stored in table.values()) else OPSET
    writer = _Writer(model, spec, table, opset, folder)
    graphs = {READ_ROLE: writer.read(layer), WRITE_ROLE: writer.write()}
    if opset == CODES_OPSET:
        graphs[READ_CODES_ROLE] = writer.read_codes(layer)
    if action_rows is not None and table["lm_head.weight"].layout is None:
        graphs[WRITE_ACTIONS_ROLE] = writer.write_actions(*action_rows)
    return graphs


class _Writer:
    """Puts nodes, weights and constants of one graph after the other together."""

    def __init__(
        self,
        model: PreTrainedModel,
        spec: PolicySpec,
        table: Mapping[str, StoredTensor],
        opset: int,
        folder: Path,
    ) -> None:
        self._model, self._spec, self._table = model, spec, table
        self._opset, self._folder = opset, folder
        self._shape: DecoderShape = decoder_shape(model)
        self._weights = dict(model.state_dict())
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._parts: dict[str, StoredTensor] = {}
        self._on_codes = False

    def read_codes(self, layer: int) -> GraphSpec:
        """The same as `read`, with products on codes where weights are codes."""
        self._on_codes = True
        graph = self.read(layer)
        self._on_codes = False
        return graph

    def read(self, layer: int) -> GraphSpec:
        """Tokens, or rows that are given in their place -> last hidden states, those of the tapped layer, new rows."""
        shape, spec = self._shape, self._spec
        most = spec.max_prompt_tokens
        inputs = [
            _tensor("tokens", (1, most), "int64", "token ids"),
            _tensor("given", (1, most, shape.hidden_size), "float32", "rows in place of a token's embedding"),
            _tensor("is_given", (1, most, 1), "bool", "which rows to take"),
            _tensor("last_place", (1,), "int32", "place of the last of these tokens in the sequence"),
            _tensor("length", (1,), "int32", "tokens read, these included"),
        ]
        states = (most, shape.hidden_size)
        outputs = [
            _tensor("last", (1, *states), "float32", "last hidden states, normalised"),
            _tensor("hidden", (1, *states), "float32", "hidden states of the tapped layer"),
        ]
        self._angles()
        self._node("Gather", [self._weight("model.language_model.embed_tokens.weight"), "tokens"], "words")
        self._node("Where", ["is_given", "given", "words"], "x0")
        normed, added = self._norm("x0", "model.language_model.layers.0.input_layernorm.weight"), "x0"
        for index in range(shape.num_layers):
            where = f"model.language_model.layers.{index}"
            is_last = index + 1 == shape.num_layers
            after = "model.language_model.norm.weight" if is_last else f"model.language_model.layers.{index + 1}"
            mixed = self._attention(f"{where}.self_attn", normed, index)
            normed, added = self._add_norm(added, mixed, f"{where}.post_attention_layernorm.weight")
            fed = self._feed_forward(f"{where}.mlp", normed)
            name = after if is_last else f"{after}.input_layernorm.weight"
            normed, added = self._add_norm(added, fed, name, is_tapped=index + 1 == layer, is_last=is_last)
            rows = (1, shape.num_kv_heads, spec.max_tokens, shape.head_dim)
            for part in ("key", "value"):
                inputs.append(_tensor(f"{part}_{index}", rows, "float32", "of the tokens read"))
                outputs.append(_tensor(f"{part}_{index}_out", rows, "float32", "the same array, with new rows"))
        role = READ_CODES_ROLE if self._on_codes else READ_ROLE
        return self._save(role, inputs, outputs, [*inputs[:3], *outputs[:2]])

    def write(self) -> GraphSpec:
        """Last hidden states -> scores of every token."""
        return self._head(WRITE_ROLE, self._weight("lm_head.weight"), self._shape.vocab_size)

    def write_actions(self, first: int, count: int) -> GraphSpec:
        """Last hidden states -> scores of action tokens."""
        whole = self._table["lm_head.weight"]
        row_bytes = whole.num_bytes // whole.shape[0]
        part = replace(
            whole,
            offset=whole.offset + first * row_bytes,
            num_bytes=count * row_bytes,
            shape=(count, *whole.shape[1:]),
        )
        return self._head(WRITE_ACTIONS_ROLE, self._part("lm_head.rows", part), count)

    def _head(self, role: str, weight: str, width: int) -> GraphSpec:
        most = self._spec.max_prompt_tokens
        inputs = [_tensor("last", (1, most, self._shape.hidden_size), "float32", "last hidden states, normalised")]
        outputs = [_tensor("logits", (1, most, width), "float32", "scores of what follows each token")]
        self._node("Transpose", [weight], "columns", perm=[1, 0])
        self._node("MatMul", ["last", "columns"], "logits")
        return self._save(role, inputs, outputs, [*inputs, *outputs])

    def _angles(self) -> None:
        frequencies = self._model.model.language_model.rotary_emb.inv_freq.float()
        angles = torch.arange(self._spec.max_tokens).float()[:, None] * frequencies[None]
        for name, values in (("cos", angles.cos()), ("sin", angles.sin())):
            self._constant(name, values.numpy())

    def _attention(self, where: str, normed: str, index: int) -> str:
        shape = self._shape
        rows = self._product([f"{where}.{part}_proj" for part in ("q", "k", "v")], normed)
        cache = [f"key_{index}", f"value_{index}"]
        self._node(
            "GroupQueryAttention",
            [rows, "", "", *cache, "last_place", "length", "cos", "sin"],
            [f"{where}.mixed", *(f"{name}_out" for name in cache)],
            domain="com.microsoft",
            num_heads=shape.num_heads,
            kv_num_heads=shape.num_kv_heads,
            do_rotary=1,
            scale=shape.head_dim**-0.5,
        )
        return self._product([f"{where}.o_proj"], f"{where}.mixed")

    def _feed_forward(self, where: str, normed: str) -> str:
        both = self._product([f"{where}.{part}_proj" for part in ("gate", "up")], normed)
        gate, up = f"{where}.gate", f"{where}.up"
        self._node("Split", [both], [gate, up], axis=-1, num_outputs=2)
        self._node("Sigmoid", [gate], f"{where}.open")
        self._node("Mul", [gate, f"{where}.open"], f"{where}.gated")
        self._node("Mul", [f"{where}.gated", up], f"{where}.wide")
        return self._product([f"{where}.down_proj"], f"{where}.wide")

    def _product(self, names: list[str], value: str) -> str:
        """Returns a value times the weights of these layers, side by side."""
        first, out = names[0], f"{names[0]}.out"
        has_bias = f"{first}.bias" in self._weights
        product = f"{first}.product" if has_bias else out
        layouts = {self._layout(name) for name in names}
        layout = layouts.pop() if len(layouts) == 1 else None
        if self._on_codes and layout is not None:
            self._product_of_codes(names, layout, value, product)
        else:
            for name in names:
                self._node("Transpose", [self._weight(f"{name}.weight")], f"{name}.columns", perm=[1, 0])
            columns = self._side_by_side([f"{name}.columns" for name in names], axis=1)
            self._node("MatMul", [value, columns], product)
        if has_bias:
            bias = self._side_by_side([self._weight(f"{name}.bias") for name in names], axis=0)
            self._node("Add", [product, bias], out)
        return out

    def _layout(self, name: str) -> tuple[int, int] | None:
        """Returns bits and block of a layer's codes; None where it has none."""
        layout = self._table[f"{name}.weight"].layout
        return None if layout is None else (layout.bits, layout.block)

    def _product_of_codes(self, names: list[str], layout: tuple[int, int], value: str, out: str) -> None:
        """Puts a product on codes, which are [inputs, outputs] in the file, two of 4 bits a byte.

        The operator wants [outputs, blocks, bytes of a block], two neighbouring inputs a byte, without a sign.
        """
        (bits, block), first = layout, names[0]
        shapes = [self._stored_shape(name) for name in names]
        inputs, outputs = shapes[0][0], sum(shape[1] for shape in shapes)
        packed, scales = [], []
        for name, shape in zip(names, shapes, strict=True):
            stored = self._table[f"{name}.weight"]
            as_bytes = replace(stored, dtype=TensorProto.UINT8, layout=None, shape=(inputs, shape[1] * bits // 8))
            packed.append(self._part(f"{name}.bytes", as_bytes))
            scales.append(self._part(f"{name}.weight{SCALE_SUFFIX}", self._table[f"{name}.weight{SCALE_SUFFIX}"]))
        self._node("Transpose", [self._side_by_side(packed, axis=1)], f"{first}.turned", perm=[1, 0])
        codes = f"{first}.turned"
        if bits == 4:
            codes = self._repacked(first, inputs, outputs)
        self._node("BitwiseXor", [codes, self._byte(8 + 8 * 16 if bits == 4 else 128)], f"{first}.unsigned")
        blocks = self._whole([outputs, inputs // block, block * bits // 8])
        self._node("Reshape", [f"{first}.unsigned", blocks], f"{first}.codes")
        self._node("Transpose", [self._side_by_side(scales, axis=1)], f"{first}.scales", perm=[1, 0])
        self._node(
            "MatMulNBits",
            [value, f"{first}.codes", f"{first}.scales"],
            out,
            domain="com.microsoft",
            K=inputs,
            N=outputs,
            bits=bits,
            block_size=block,
            accuracy_level=_EIGHT_BIT_ACTIVATIONS,
        )

    def _repacked(self, first: str, inputs: int, outputs: int) -> str:
        """Returns bytes of two neighbouring inputs [outputs, inputs / 2, 1], made of those of two outputs."""
        turned, halves = f"{first}.turned", [f"{first}.low", f"{first}.high"]
        self._node("BitwiseAnd", [turned, self._byte(15)], halves[0])
        self._node("BitShift", [turned, self._byte(4)], halves[1], direction="RIGHT")
        rows = self._whole([outputs // 2, 1, inputs])
        for half in halves:
            self._node("Reshape", [half, rows], f"{half}.rows")
        self._node("Concat", [f"{half}.rows" for half in halves], f"{first}.single", axis=1)
        self._node("Reshape", [f"{first}.single", self._whole([outputs, inputs // 2, 2])], f"{first}.pairs")
        self._node("Split", [f"{first}.pairs"], [f"{first}.even", f"{first}.odd"], axis=-1, num_outputs=2)
        self._node("BitShift", [f"{first}.odd", self._byte(4)], f"{first}.raised", direction="LEFT")
        self._node("BitwiseOr", [f"{first}.even", f"{first}.raised"], f"{first}.repacked")
        return f"{first}.repacked"

    def _side_by_side(self, names: list[str], axis: int) -> str:
        if len(names) == 1:
            return names[0]
        self._node("Concat", names, f"{names[0]}.joined", axis=axis)
        return f"{names[0]}.joined"

    def _byte(self, value: int) -> str:
        return self._constant(f"byte.{value}", np.array(value, np.uint8))

    def _whole(self, shape: list[int]) -> str:
        return self._constant(f"shape.{'x'.join(map(str, shape))}", np.array(shape, np.int64))

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self._constants[name] = numpy_helper.from_array(values, name)
        return name

    def _norm(self, value: str, weight: str) -> str:
        """The first norm, which follows no sum: written out, and fused when it is loaded."""
        self._node("Pow", [value, self._constant("two", np.array(2.0, np.float32))], "norm.square")
        axes, epsilon = self._whole([-1]), self._constant("epsilon", np.array(self._epsilon, np.float32))
        self._node("ReduceMean", ["norm.square", axes], "norm.mean", keepdims=1)
        self._node("Add", ["norm.mean", epsilon], "norm.raised")
        self._node("Sqrt", ["norm.raised"], "norm.root")
        self._node("Div", [value, "norm.root"], "norm.unit")
        self._node("Mul", ["norm.unit", self._weight(weight)], "norm.out")
        return "norm.out"

    def _add_norm(
        self, value: str, added: str, weight: str, *, is_tapped: bool = False, is_last: bool = False
    ) -> tuple[str, str]:
        """Returns the norm of a sum, and the sum."""
        normed = "last" if is_last else f"{weight}.out"
        total = "hidden" if is_tapped else f"{weight}.sum"
        self._node(
            "SkipSimplifiedLayerNormalization",
            [value, added, self._weight(weight)],
            [normed, "", "", total],
            domain="com.microsoft",
            epsilon=self._epsilon,
        )
        return normed, total

    @property
    def _epsilon(self) -> float:
        return float(cast(Any, self._model.model.language_model.norm).variance_epsilon)

    def _weight(self, name: str) -> str:
        full = f"{WEIGHT_PREFIX}{name}"
        tensor = TensorProto(name=full, data_type=TensorProto.FLOAT)
        tensor.dims[:] = self._weights[name].shape
        self._constants[full] = tensor
        return full

    def _part(self, name: str, stored: StoredTensor) -> str:
        """Names bytes of the weight files that are no weight of the model by themselves."""
        full = f"{WEIGHT_PREFIX}{name}"
        self._constants[full] = TensorProto(name=full, dims=stored.shape, data_type=TensorProto.FLOAT)
        self._parts[name] = stored
        return full

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        """Returns [inputs, outputs] of a layer whose weights are codes."""
        return self._table[f"{name}.weight"].shape

    def _node(self, kind: str, inputs: list[str], outputs: str | list[str], **how: Any) -> None:
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **how))

    def _save(
        self,
        role: str,
        inputs: list[TensorSpec],
        outputs: list[TensorSpec],
        open_ended: list[TensorSpec],
    ) -> GraphSpec:
        """Writes what was put together, and begins anew; `open_ended` tensors have any number of tokens."""
        sides = [
            [
                helper.make_tensor_value_info(
                    tensor.name,
                    _TYPES[tensor.dtype],
                    [1, _TOKENS, *tensor.shape[2:]] if tensor in open_ended else list(tensor.shape),
                )
                for tensor in side
            ]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self._nodes, role, sides[0], sides[1], list(self._constants.values()))
        opsets = [helper.make_opsetid("", self._opset), helper.make_opsetid("com.microsoft", 1)]
        written = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        share_weights(written, {**self._table, **self._parts}, WEIGHT_PREFIX)
        shorten_names(written.graph)
        path = self._folder / f"{role}.onnx"
        onnx.save(written, path)
        onnx.checker.check_model(path)
        self._nodes, self._constants, self._parts = [], {}, {}
        return GraphSpec(file=path.name, opset=self._opset, inputs=tuple(inputs), outputs=tuple(outputs))


def _tensor(name: str, shape: tuple[int, ...], dtype: str, unit: str) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype=dtype, unit=unit)
