"""The graphs of a policy, with name, shape, dtype and unit of everything that goes in and comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch

from roboalign.export.graphs import ExtendGraph, FlowGraph, PrefillGraph, StepGraph, decoder_shape
from roboalign.export.onnx_files import write_graph
from roboalign.export.products import Products
from roboalign.export.rounding import QuantizedWeight
from roboalign.export.weights import write_weights
from roboalign.sdk.bundle import EXTEND_ROLE, GraphSpec, PolicySpec, TensorSpec
from roboalign.sdk.errors import CheckFailed
from roboalign.trainer.flow import FlowHead
from roboalign.trainer.nano import NanoForConditionalGeneration

__all__ = ["prefill_interface", "write_graphs"]

_Interface = tuple[list[tuple[TensorSpec, torch.Tensor]], list[TensorSpec]]


def write_graphs(
    model: NanoForConditionalGeneration,
    head: FlowHead,
    spec: PolicySpec,
    folder: Path,
    precision: str,
    *,
    codes: Mapping[str, Mapping[str, QuantizedWeight]] = MappingProxyType({}),
    in_half: bool = False,
    products: Products | None = None,
    windows: Sequence[int] = (),
) -> dict[str, GraphSpec]:
    """Writes the graphs of a policy with their weights; returns their descriptions by role.

    Args:
        model: backbone.
        head: action head.
        spec: what the shapes follow from.
        folder: where to write.
        precision: how weights are stored that are no codes.
        codes: by weight file (`model`, `head`), the weights that are codes.
        in_half: compute in float16 as far as that is safe; keys, values and hidden states are float16 then.
        products: type of the products in `prefill` and `step` that are narrow, and their scales by weight.
        windows: numbers of tokens that an `extend` graph each reads in one pass, beside `prefill`, `step`, `flow`.

    Raises:
        CheckFailed: a graph cannot be written as required, or a weight is used by no graph.
    """
    tables = {
        "model": write_weights(model, folder / "model.safetensors", precision, codes=codes.get("model", {})),
        "head": write_weights(head, folder / "head.safetensors", precision, codes=codes.get("head", {})),
    }
    layer = head.config.layer
    parts: dict[str, tuple[torch.nn.Module, str, _Interface]] = {
        "prefill": (PrefillGraph(model, layer), "model", prefill_interface(model, spec)),
        "step": (StepGraph(model, layer), "model", _step_interface(model, spec)),
        **{
            f"{EXTEND_ROLE}{window}": (ExtendGraph(model, layer), "model", _extend_interface(model, spec, window))
            for window in windows
        },
        "flow": (FlowGraph(head), "head", _flow_interface(spec)),
    }
    graphs: dict[str, GraphSpec] = {}
    used: set[str] = set()
    for role, (module, weights, interface) in parts.items():
        inputs, outputs = _narrowed(interface) if in_half else interface
        path = folder / f"{role}.onnx"
        narrow = products if weights == "model" else None
        graphs[role], names = write_graph(
            module, inputs, outputs, path, tables[weights], in_half=in_half, products=narrow
        )
        used |= names
    unused = [
        f"{s.file}:{name}" for t in tables.values() for name, s in t.items() if f"{s.file}:{s.offset}" not in used
    ]
    if unused:
        raise CheckFailed(f"{len(unused)} weights are used by no graph, first {unused[0]}; the graphs are incomplete")
    return graphs


_CARRIED = ("hidden", "kv", "kv_new")
"""What one graph hands to another. The host makes or reads everything else, in float32."""


def _narrowed(interface: _Interface) -> _Interface:
    """Returns an interface whose carried tensors are float16."""
    inputs, outputs = interface
    return [(_half(spec), tensor) for spec, tensor in inputs], [_half(spec) for spec in outputs]


def _half(spec: TensorSpec) -> TensorSpec:
    return replace(spec, dtype="float16") if spec.name in _CARRIED else spec


def prefill_interface(model: NanoForConditionalGeneration, spec: PolicySpec) -> _Interface:
    shape, size, prompt = decoder_shape(model), spec.image_size_px, spec.max_prompt_tokens
    ids = torch.zeros((1, prompt), dtype=torch.int64)
    # Tracing needs a valid prompt: one word, then the picture's placeholders.
    ids[0, 0] = model.config.bos_token_id
    ids[0, 1 : 1 + spec.prompt.num_image_tokens] = model.config.image_token_id
    length = torch.tensor([1 + spec.prompt.num_image_tokens])
    inputs = [
        (_spec("input_ids", ids, "token ids, padded on the right"), ids),
        (_spec("length", length, "tokens in the prompt"), length),
        _float("pixel_values", (1, 3, size, size), "(pixel / 255 - mean) / std, planes red green blue"),
    ]
    rows = (2 * shape.num_layers, shape.num_kv_heads, prompt, shape.head_dim)
    outputs = [
        _out("logits", (1, shape.vocab_size), "scores of the next token"),
        _out("hidden", (1, prompt, shape.hidden_size), "hidden states of the tapped layer"),
        _out("kv", rows, "keys and values of each layer in turn"),
    ]
    return inputs, outputs


def _step_interface(model: NanoForConditionalGeneration, spec: PolicySpec) -> _Interface:
    token = torch.tensor([5])
    described = _spec("token", token, "token id")
    return _decode_interface(model, spec, (described, token), "the rows to put into kv at `length`")


def _extend_interface(model: NanoForConditionalGeneration, spec: PolicySpec, window: int) -> _Interface:
    tokens = torch.full((window,), 5)
    described = _spec("tokens", tokens, "token ids, padded on the right")
    return _decode_interface(model, spec, (described, tokens), "the rows to put into kv from `length` on")


def _decode_interface(
    model: NanoForConditionalGeneration, spec: PolicySpec, tokens: tuple[TensorSpec, torch.Tensor], rows: str
) -> _Interface:
    shape, count = decoder_shape(model), len(tokens[1])
    length = torch.tensor([spec.max_prompt_tokens])
    cache = (2 * shape.num_layers, shape.num_kv_heads, spec.max_tokens, shape.head_dim)
    inputs = [
        tokens,
        (_spec("length", length, "tokens read before"), length),
        _float("kv", cache, "keys and values of each layer in turn"),
    ]
    outputs = [
        _out("logits", (count, shape.vocab_size), "scores of what follows each token"),
        _out("hidden", (count, shape.hidden_size), "hidden states of the tapped layer"),
        _out("kv_new", (*cache[:2], count, cache[3]), rows),
    ]
    return inputs, outputs


def _flow_interface(spec: PolicySpec) -> _Interface:
    chunk = (1, spec.horizon, len(spec.action_names))
    length = torch.tensor([spec.max_prompt_tokens])
    inputs = [
        _float("hidden", (1, spec.max_tokens, spec.hidden_size), "hidden states of the tapped layer"),
        (_spec("length", length, "tokens read"), length),
        _float("state", (1, len(spec.state_names)), "by name: m, rad", spec.state_names),
        _float("noise", chunk, "standard normal", spec.action_names),
    ]
    return inputs, [_out("actions", chunk, "by name: m and rad per control period, 1 = open", spec.action_names)]


def _spec(name: str, tensor: torch.Tensor, unit: str, fields: tuple[str, ...] = ()) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=dtype, unit=unit, fields=fields)


def _float(
    name: str, shape: tuple[int, ...], unit: str, fields: tuple[str, ...] = ()
) -> tuple[TensorSpec, torch.Tensor]:
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return _spec(name, tensor, unit, fields), tensor


def _out(name: str, shape: tuple[int, ...], unit: str, fields: tuple[str, ...] = ()) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype="float32", unit=unit, fields=fields)
