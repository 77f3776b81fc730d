"""A graph of a bundle before it is written: module, weights, and name, shape, dtype and unit of every tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from roboalign.export.graphs import decoder_shape
from roboalign.sdk.bundle import PolicySpec, TensorSpec

__all__ = ["GraphMaker", "GraphPart", "describe", "make_input", "make_output", "prefill_outputs", "step_part"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GraphPart:
    """One graph."""

    module: torch.nn.Module
    """What is traced."""
    weights: str
    """Weight file, without its ending: `model` or `head`."""
    inputs: list[tuple[TensorSpec, torch.Tensor]]
    """With an example of each."""
    outputs: list[TensorSpec]
    """What it returns."""


GraphMaker = Callable[[PreTrainedModel, PolicySpec, int], dict[str, GraphPart]]
"""From a backbone, what shapes follow from and the layer that the head reads: the graphs by role, without the head."""


def prefill_outputs(model: PreTrainedModel, spec: PolicySpec) -> list[TensorSpec]:
    """Returns what the graph of a prompt gives."""
    shape, prompt = decoder_shape(model), spec.max_prompt_tokens
    rows = (2 * shape.num_layers, shape.num_kv_heads, prompt, shape.head_dim)
    return [
        make_output("logits", (1, shape.vocab_size), "scores of the next token"),
        make_output("hidden", (1, prompt, shape.hidden_size), "hidden states of the tapped layer"),
        make_output("kv", rows, "keys and values of each layer in turn"),
    ]


def step_part(module: torch.nn.Module, model: PreTrainedModel, spec: PolicySpec, *, has_position: bool) -> GraphPart:
    """Returns the graph that reads one more token."""
    shape = decoder_shape(model)
    token, length = torch.tensor([5]), torch.tensor([spec.max_prompt_tokens])
    cache = (2 * shape.num_layers, shape.num_kv_heads, spec.max_tokens, shape.head_dim)
    # Not the same tensor as the length: the exporter would take the two inputs for one.
    place = length.clone()
    position = [(describe("position", place, "largest position read before it, plus one"), place)]
    inputs = [
        (describe("token", token, "token id"), token),
        (describe("length", length, "tokens read before this one"), length),
        *(position if has_position else ()),
        make_input("kv", cache, "keys and values of each layer in turn"),
    ]
    outputs = [
        make_output("logits", (1, shape.vocab_size), "scores of the next token"),
        make_output("hidden", (1, shape.hidden_size), "hidden state of the tapped layer"),
        make_output("kv_new", (*cache[:2], 1, cache[3]), "the rows to put into kv at `length`"),
    ]
    return GraphPart(module=module, weights="model", inputs=inputs, outputs=outputs)


def describe(name: str, tensor: torch.Tensor, unit: str, fields: tuple[str, ...] = ()) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=dtype, unit=unit, fields=fields)


def make_input(
    name: str, shape: tuple[int, ...], unit: str, fields: tuple[str, ...] = ()
) -> tuple[TensorSpec, torch.Tensor]:
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return describe(name, tensor, unit, fields), tensor


def make_output(name: str, shape: tuple[int, ...], unit: str, fields: tuple[str, ...] = ()) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype="float32", unit=unit, fields=fields)
