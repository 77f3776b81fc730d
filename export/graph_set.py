"""The graphs of a policy, with name, shape, dtype and unit of everything that goes in and comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import cast

import onnx
import torch
from transformers import PreTrainedModel

from roboalign.export.flow_graph import FlowGraph
from roboalign.export.graph_part import (
    GraphMaker,
    GraphPart,
    describe,
    make_input,
    make_output,
    prefill_outputs,
    step_part,
)
from roboalign.export.graphs import PrefillGraph, StepGraph
from roboalign.export.onnx_files import shorten_names, write_graph
from roboalign.export.products import Products
from roboalign.export.read_graphs import ActionRows, write_read_graphs
from roboalign.export.rounding import QuantizedWeight
from roboalign.export.see_graphs import look_part, write_hear
from roboalign.export.weights import write_weights
from roboalign.sdk.bundle import LOOK_ROLE, GraphSpec, PolicySpec, TensorSpec
from roboalign.sdk.errors import CheckFailed, ConfigError
from roboalign.trainer.flow import FlowHead

__all__ = ["graph_maker", "is_one_line", "nano_parts", "write_graphs"]

_MAKERS = {
    "roboalign_nano": "roboalign.export.graph_set:nano_parts",
    "roboalign_smol": "roboalign.export.graph_set:nano_parts",
    "qwen2_5_vl": "roboalign.export.qwen_set:qwen_parts",
    "qwen3_vl": "roboalign.export.qwen_set:qwen3_parts",
}
"""By model type, what makes the graphs: the counterpart of the adapters in `trainer/backbone.py`."""


def write_graphs(
    model: PreTrainedModel,
    head: FlowHead,
    spec: PolicySpec,
    folder: Path,
    precision: str,
    *,
    codes: Mapping[str, Mapping[str, QuantizedWeight]] = MappingProxyType({}),
    in_half: bool = False,
    products: Products | None = None,
    reads_in_place: bool = False,
    action_rows: ActionRows | None = None,
) -> dict[str, GraphSpec]:
    """Writes each graph of a policy and the weights that they share; returns the descriptions by role.

    Args:
        model: backbone.
        head: action head.
        spec: what the shapes follow from.
        folder: where to write.
        precision: how weights are stored that are no codes.
        codes: by weight file (`model`, `head`), the weights that are codes.
        in_half: compute in float16 as far as that is safe; keys, values and hidden states are float16 then.
        products: type of the products in `prefill` and `step` that are narrow, and their scales by weight.
        reads_in_place: also write what onnxruntime decodes with on a CPU (`export/read_graphs.py`).
        action_rows: ids of the action tokens, whose scores it can then compute alone.

    Raises:
        CheckFailed: a graph cannot be written as required, or a weight is used by no graph.
    """
    tables = {
        "model": write_weights(model, folder / "model.safetensors", precision, codes=codes.get("model", {})),
        "head": write_weights(head, folder / "head.safetensors", precision, codes=codes.get("head", {})),
    }
    make = graph_maker(str(model.config.model_type))
    layer = head.config.layer
    look = {LOOK_ROLE: look_part(model, spec, _pixels(spec))} if reads_in_place else {}
    parts = {**make(model, spec, layer), **look, "flow": _flow_part(head, spec)}
    graphs: dict[str, GraphSpec] = {}
    used: set[str] = set()
    for role, part in parts.items():
        inputs, outputs = part.inputs, part.outputs
        if in_half:
            inputs, outputs = [(_half(spec), tensor) for spec, tensor in inputs], [_half(spec) for spec in outputs]
        path = folder / f"{role}.onnx"
        narrow = products if part.weights == "model" else None
        graphs[role], names = write_graph(
            part.module, inputs, outputs, path, tables[part.weights], in_half=in_half, products=narrow
        )
        _shorten_names(path)
        used |= names
    if reads_in_place:
        graphs |= write_hear(model, spec, folder, tables["model"])
        graphs |= write_read_graphs(model, spec, layer, folder, tables["model"], action_rows=action_rows)
    unused = [
        f"{s.file}:{name}" for t in tables.values() for name, s in t.items() if f"{s.file}:{s.offset}" not in used
    ]
    if unused:
        raise CheckFailed(f"{len(unused)} weights are used by no graph, first {unused[0]}; the graphs are incomplete")
    return graphs


def _shorten_names(path: Path) -> None:
    """Takes out of a graph the names that nobody asks for: a quarter of the file."""
    written = onnx.load(path, load_external_data=False)
    shorten_names(written.graph)
    onnx.save(written, path)


_CARRIED = ("image", "hidden", "kv", "kv_new")
"""What one graph hands to another. The host makes or reads everything else, in float32."""


def _half(spec: TensorSpec) -> TensorSpec:
    return replace(spec, dtype="float16") if spec.name in _CARRIED else spec


def is_one_line(model_type: str) -> bool:
    """Returns whether a backbone's positions have one axis, which some graphs and some calibration need."""
    return graph_maker(model_type) is nano_parts


def graph_maker(model_type: str) -> GraphMaker:
    """Returns what makes the graphs of a backbone; of one that has none, a ConfigError."""
    if model_type not in _MAKERS:
        known = ", ".join(sorted(name.removeprefix("roboalign_") for name in _MAKERS))
        raise ConfigError(
            f"no graphs are written for a {model_type} model, expected one of {known}; "
            "run it with sdk.Policy.load(..., backend='torch')"
        )
    module, _, name = _MAKERS[model_type].partition(":")
    return cast(GraphMaker, getattr(import_module(module), name))


def nano_parts(model: PreTrainedModel, spec: PolicySpec, layer: int) -> dict[str, GraphPart]:
    """Returns `prefill`, which sees the picture itself, and `step` of a nano or smol model."""
    ids = _example_prompt(model, spec)
    length = torch.tensor([1 + spec.prompt.num_image_tokens])
    inputs = [
        (describe("input_ids", ids, "token ids, padded on the right"), ids),
        (describe("length", length, "tokens in the prompt"), length),
        _pixels(spec),
    ]
    prefill = PrefillGraph(model, layer)
    return {
        "prefill": GraphPart(module=prefill, weights="model", inputs=inputs, outputs=prefill_outputs(model, spec)),
        "step": step_part(StepGraph(model, layer), model, spec, has_position=False),
    }


def _example_prompt(model: PreTrainedModel, spec: PolicySpec) -> torch.Tensor:
    """Tracing needs a valid prompt: one word, then the picture's placeholders."""
    ids = torch.zeros((1, spec.max_prompt_tokens), dtype=torch.int64)
    ids[0, 0] = model.config.bos_token_id
    ids[0, 1 : 1 + spec.prompt.num_image_tokens] = model.config.image_token_id
    return ids


def _pixels(spec: PolicySpec) -> tuple[TensorSpec, torch.Tensor]:
    size = spec.image_size_px
    return make_input("pixel_values", (1, 3, size, size), "(pixel / 255 - mean) / std, planes red green blue")


def _flow_part(head: FlowHead, spec: PolicySpec) -> GraphPart:
    chunk = (1, spec.horizon, len(spec.action_names))
    length = torch.tensor([spec.max_prompt_tokens])
    inputs = [
        make_input("hidden", (1, spec.max_tokens, spec.hidden_size), "hidden states of the tapped layer"),
        (describe("length", length, "tokens read"), length),
        make_input("state", (1, len(spec.state_names)), "by name: m, rad", spec.state_names),
        make_input("noise", chunk, "standard normal", spec.action_names),
    ]
    outputs = [make_output("actions", chunk, "by name: m and rad per control period, 1 = open", spec.action_names)]
    return GraphPart(module=FlowGraph(head), weights="head", inputs=inputs, outputs=outputs)
