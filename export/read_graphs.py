"""The decoder of a bundle for the CPU as onnxruntime runs it fastest: fused operators, any number of tokens, in place.

`lower` reads tokens behind those that the cache holds, as far as the layer that the action head sees; `upper` has the
layers above it and scores what may follow the last of these tokens; `write_actions` scores action tokens alone, which
are all that may follow inside an action span. What only the action head will see needs `lower` alone.
`export/see_graphs.py` has the graphs that see. All share the weight files with the portable graphs, which TensorRT and
other providers run.

`lower` and `upper` depart from the rules of those on purpose. Their operators are onnxruntime's own
(GroupQueryAttention writes keys and values to their places, so no mask is computed and no cache copied), and their
number of tokens is not fixed: one session then serves a prompt, the rest of a prompt, a drafted thought and a single
token, with one copy of the weights. Products of the same values are one product: query, key and value, and the two
halves of the gate. Their weights are put side by side by nodes that onnxruntime runs once, when it loads the graph, so
that the file stores each once.

`lower_codes` and `upper_codes` are the same with products on the codes themselves (MatMulNBits, activations rounded to
8 bits in blocks). That operator wants codes in another order than the standard one, which is also made by nodes that
are run once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from onnx import TensorProto
from transformers import PreTrainedModel

from roboalign.export.graphs import DecoderShape, decoder_shape
from roboalign.export.node_writer import NodeWriter, tensor_spec
from roboalign.export.onnx_files import CODES_OPSET
from roboalign.export.weights import StoredTensor
from roboalign.sdk.bundle import (
    LOWER_CODES_ROLE,
    LOWER_ROLE,
    UPPER_CODES_ROLE,
    UPPER_ROLE,
    WRITE_ACTIONS_ROLE,
    GraphSpec,
    PolicySpec,
    TensorSpec,
)
from roboalign.sdk.quantized import SCALE_SUFFIX

__all__ = ["ActionRows", "write_read_graphs"]

ActionRows = tuple[int, int]
"""Id of the first action token, and how many there are."""

_TO_THE_END = 2**62
_EIGHT_BIT_ACTIVATIONS = 4
"""`accuracy_level` of MatMulNBits: the only one whose products are fast."""


def write_read_graphs(
    model: PreTrainedModel,
    spec: PolicySpec,
    layer: int,
    folder: Path,
    table: Mapping[str, StoredTensor],
    *,
    action_rows: ActionRows | None,
) -> dict[str, GraphSpec]:
    """Writes `lower`, `upper` and, where there are codes or action tokens, what is for these; returns them by role.

    Args:
        model: with a Llama decoder.
        spec: what the shapes follow from.
        layer: whose output the action head reads.
        folder: where to write.
        table: where the weights lie.
        action_rows: ids of the action tokens; None where there are none.
    """
    writer = _Writer(model, spec, table, folder)
    graphs = {LOWER_ROLE: writer.lower(layer), UPPER_ROLE: writer.upper(layer)}
    if writer.opset == CODES_OPSET:
        graphs[LOWER_CODES_ROLE] = writer.on_codes(writer.lower, layer)
        graphs[UPPER_CODES_ROLE] = writer.on_codes(writer.upper, layer)
    if action_rows is not None and table["lm_head.weight"].layout is None:
        graphs[WRITE_ACTIONS_ROLE] = writer.write_actions(*action_rows)
    return graphs


class _Writer(NodeWriter):
    """Writes the graphs of a decoder."""

    def __init__(
        self, model: PreTrainedModel, spec: PolicySpec, table: Mapping[str, StoredTensor], folder: Path
    ) -> None:
        super().__init__(model, table, folder)
        self._model, self._spec = model, spec
        self._shape: DecoderShape = decoder_shape(model)
        self._on_codes = False

    def on_codes(self, write: Callable[[int], GraphSpec], layer: int) -> GraphSpec:
        """The same graph, with products on codes where weights are codes."""
        self._on_codes = True
        graph = write(layer)
        self._on_codes = False
        return graph

    def lower(self, layer: int) -> GraphSpec:
        """Tokens, or rows that are given in their place -> hidden states of the tapped layer, new rows."""
        inputs = [
            self._rows("tokens", "int64", "token ids", ()),
            self._rows("given", "float32", "rows in place of a token's embedding"),
            self._rows("is_given", "bool", "which rows to take", (1,)),
        ]
        outputs = [self._rows("hidden", "float32", "hidden states of the tapped layer")]
        self.node("Gather", [self.weight("model.language_model.embed_tokens.weight"), "tokens"], "words")
        self.node("Where", ["is_given", "given", "words"], "x0")
        self._layers(range(layer), "x0", "hidden")
        role = LOWER_CODES_ROLE if self._on_codes else LOWER_ROLE
        return self._save_reading(role, range(layer), inputs, outputs, ("tokens", "given", "is_given", "hidden"))

    def upper(self, layer: int) -> GraphSpec:
        """Hidden states of the tapped layer -> last ones, scores of what follows the last of these tokens, new rows."""
        inputs = [
            self._rows("hidden", "float32", "hidden states of the tapped layer"),
            tensor_spec("first_scored", (1,), "int64", "which of these tokens is the first that is scored"),
        ]
        outputs = [
            self._rows("last", "float32", "last hidden states, normalised"),
            self._rows("logits", "float32", "scores of what follows each token", (self._shape.vocab_size,)),
        ]
        layers = range(layer, self._shape.num_layers)
        self._layers(layers, "hidden", "total")
        self._norm("total" if layers else "hidden", "model.language_model.norm.weight", "last")
        ends = [self.whole([_TO_THE_END]), self.whole([1])]
        self.node("Slice", ["last", "first_scored", *ends], "scored")
        self.node("Transpose", [self.weight("lm_head.weight")], "columns", perm=[1, 0])
        self.node("MatMul", ["scored", "columns"], "logits")
        role = UPPER_CODES_ROLE if self._on_codes else UPPER_ROLE
        return self._save_reading(role, layers, inputs, outputs, ("hidden", "last"), ("logits",))

    def _layers(self, layers: range, value: str, out: str) -> None:
        """Puts layers one behind the other; each adds to what goes in."""
        if not layers:
            return
        self._angles()
        first = f"model.language_model.layers.{layers[0]}.input_layernorm.weight"
        normed, added = self._norm(value, first, f"{first}.out"), value
        for index in layers:
            where = f"model.language_model.layers.{index}"
            mixed = self._attention(f"{where}.self_attn", normed, index)
            normed, added = self._add_norm(added, mixed, f"{where}.post_attention_layernorm.weight")
            fed = self._feed_forward(f"{where}.mlp", normed)
            if index == layers[-1]:
                self.node("Add", [added, fed], out)
            else:
                after = f"model.language_model.layers.{index + 1}.input_layernorm.weight"
                normed, added = self._add_norm(added, fed, after)

    def _rows(self, name: str, dtype: str, unit: str, width: tuple[int, ...] | None = None) -> TensorSpec:
        width = (self._shape.hidden_size,) if width is None else width
        return tensor_spec(name, (1, self._spec.max_prompt_tokens, *width), dtype, unit)

    def _save_reading(
        self,
        role: str,
        layers: range,
        inputs: list[TensorSpec],
        outputs: list[TensorSpec],
        *open_ended: tuple[str, ...],
    ) -> GraphSpec:
        """Writes a graph with the cache of its layers."""
        if layers:
            inputs = [
                *inputs,
                tensor_spec("last_place", (1,), "int32", "place of the last of these tokens in the sequence"),
                tensor_spec("length", (1,), "int32", "tokens read, these included"),
            ]
        rows = (1, self._shape.num_kv_heads, self._spec.max_tokens, self._shape.head_dim)
        for index in layers:
            for part in ("key", "value"):
                inputs.append(tensor_spec(f"{part}_{index}", rows, "float32", "of the tokens read"))
                outputs.append(tensor_spec(f"{part}_{index}_out", rows, "float32", "the same array, with new rows"))
        return self.save(role, inputs, outputs, *open_ended)

    def write_actions(self, first: int, count: int) -> GraphSpec:
        """Last hidden states -> scores of action tokens."""
        whole = self.table["lm_head.weight"]
        row_bytes = whole.num_bytes // whole.shape[0]
        part = replace(
            whole,
            offset=whole.offset + first * row_bytes,
            num_bytes=count * row_bytes,
            shape=(count, *whole.shape[1:]),
        )
        inputs = [self._rows("last", "float32", "last hidden states, normalised")]
        outputs = [self._rows("logits", "float32", "scores of what follows each token", (count,))]
        self.node("Transpose", [self.part("lm_head.rows", part)], "columns", perm=[1, 0])
        self.node("MatMul", ["last", "columns"], "logits")
        return self.save(WRITE_ACTIONS_ROLE, inputs, outputs, ("last", "logits"))

    def _angles(self) -> None:
        frequencies = self._model.model.language_model.rotary_emb.inv_freq.float()
        angles = torch.arange(self._spec.max_tokens).float()[:, None] * frequencies[None]
        for name, values in (("cos", angles.cos()), ("sin", angles.sin())):
            self.constant(name, values.numpy())

    def _attention(self, where: str, normed: str, index: int) -> str:
        shape = self._shape
        rows = self._product([f"{where}.{part}_proj" for part in ("q", "k", "v")], normed)
        cache = [f"key_{index}", f"value_{index}"]
        self.node(
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
        self.node("Split", [both], [gate, up], axis=-1, num_outputs=2)
        self.node("Sigmoid", [gate], f"{where}.open")
        self.node("Mul", [gate, f"{where}.open"], f"{where}.gated")
        self.node("Mul", [f"{where}.gated", up], f"{where}.wide")
        return self._product([f"{where}.down_proj"], f"{where}.wide")

    def _product(self, names: list[str], value: str) -> str:
        """Returns a value times the weights of these layers, side by side."""
        first, out = names[0], f"{names[0]}.out"
        has_bias = self.has_weight(f"{first}.bias")
        product = f"{first}.product" if has_bias else out
        layouts = {self._layout(name) for name in names}
        layout = layouts.pop() if len(layouts) == 1 else None
        if self._on_codes and layout is not None:
            self._product_of_codes(names, layout, value, product)
        else:
            for name in names:
                self.node("Transpose", [self.weight(f"{name}.weight")], f"{name}.columns", perm=[1, 0])
            columns = self.side_by_side([f"{name}.columns" for name in names], axis=1)
            self.node("MatMul", [value, columns], product)
        if has_bias:
            bias = self.side_by_side([self.weight(f"{name}.bias") for name in names], axis=0)
            self.node("Add", [product, bias], out)
        return out

    def _layout(self, name: str) -> tuple[int, int] | None:
        """Returns bits and block of a layer's codes; None where it has none."""
        layout = self.table[f"{name}.weight"].layout
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
            stored = self.table[f"{name}.weight"]
            as_bytes = replace(stored, dtype=TensorProto.UINT8, layout=None, shape=(inputs, shape[1] * bits // 8))
            packed.append(self.part(f"{name}.bytes", as_bytes))
            scales.append(self.part(f"{name}.weight{SCALE_SUFFIX}", self.table[f"{name}.weight{SCALE_SUFFIX}"]))
        self.node("Transpose", [self.side_by_side(packed, axis=1)], f"{first}.turned", perm=[1, 0])
        codes = f"{first}.turned"
        if bits == 4:
            codes = self._repacked(first, inputs, outputs)
        self.node("BitwiseXor", [codes, self.byte(8 + 8 * 16 if bits == 4 else 128)], f"{first}.unsigned")
        blocks = self.whole([outputs, inputs // block, block * bits // 8])
        self.node("Reshape", [f"{first}.unsigned", blocks], f"{first}.codes")
        self.node("Transpose", [self.side_by_side(scales, axis=1)], f"{first}.scales", perm=[1, 0])
        self.node(
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
        self.node("BitwiseAnd", [turned, self.byte(15)], halves[0])
        self.node("BitShift", [turned, self.byte(4)], halves[1], direction="RIGHT")
        rows = self.whole([outputs // 2, 1, inputs])
        for half in halves:
            self.node("Reshape", [half, rows], f"{half}.rows")
        self.node("Concat", [f"{half}.rows" for half in halves], f"{first}.single", axis=1)
        self.node("Reshape", [f"{first}.single", self.whole([outputs, inputs // 2, 2])], f"{first}.pairs")
        self.node("Split", [f"{first}.pairs"], [f"{first}.even", f"{first}.odd"], axis=-1, num_outputs=2)
        self.node("BitShift", [f"{first}.odd", self.byte(4)], f"{first}.raised", direction="LEFT")
        self.node("BitwiseOr", [f"{first}.even", f"{first}.raised"], f"{first}.repacked")
        return f"{first}.repacked"

    def _norm(self, value: str, weight: str, out: str) -> str:
        """A norm that follows no sum of the same graph: written out, and fused when it is loaded."""
        self.node("Pow", [value, self.constant("two", np.array(2.0, np.float32))], f"{out}.square")
        axes, epsilon = self.whole([-1]), self.constant("epsilon", np.array(self._epsilon, np.float32))
        self.node("ReduceMean", [f"{out}.square", axes], f"{out}.mean", keepdims=1)
        self.node("Add", [f"{out}.mean", epsilon], f"{out}.raised")
        self.node("Sqrt", [f"{out}.raised"], f"{out}.root")
        self.node("Div", [value, f"{out}.root"], f"{out}.unit")
        self.node("Mul", [f"{out}.unit", self.weight(weight)], out)
        return out

    def _add_norm(self, value: str, added: str, weight: str) -> tuple[str, str]:
        """Returns the norm of a sum, and the sum."""
        normed, total = f"{weight}.out", f"{weight}.sum"
        self.node(
            "SkipSimplifiedLayerNormalization",
            [value, added, self.weight(weight)],
            [normed, "", "", total],
            domain="com.microsoft",
            epsilon=self._epsilon,
        )
        return normed, total

    @property
    def _epsilon(self) -> float:
        return float(cast(Any, self._model.model.language_model.norm).variance_epsilon)

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        """Returns [inputs, outputs] of a layer whose weights are codes."""
        return self.table[f"{name}.weight"].shape
