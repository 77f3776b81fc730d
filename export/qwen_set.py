"""The graphs of a Qwen-VL policy: `vision` sees the patches of one picture, `prefill` and `step` count three axes."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedModel

from roboalign.export.graph_part import GraphPart, describe, make_input, make_output, prefill_outputs, step_part
from roboalign.export.qwen3_graphs import Qwen3PrefillGraph, Qwen3StepGraph, Qwen3VisionGraph
from roboalign.export.qwen_graphs import QwenPrefillGraph, QwenStepGraph, QwenVisionGraph
from roboalign.sdk.bundle import PolicySpec

__all__ = ["qwen3_parts", "qwen_parts"]


def qwen_parts(model: PreTrainedModel, spec: PolicySpec, layer: int) -> dict[str, GraphPart]:
    """Returns `vision`, `prefill` and `step` of a Qwen2.5-VL model for pictures of the policy's size."""
    vision = QwenVisionGraph(model, _grid(spec))
    modules = (vision, QwenPrefillGraph(model, layer), QwenStepGraph(model, layer))
    return _parts(model, spec, modules, (spec.prompt.num_image_tokens, spec.hidden_size))


def qwen3_parts(model: PreTrainedModel, spec: PolicySpec, layer: int) -> dict[str, GraphPart]:
    """Returns the same of a Qwen3-VL model, whose `image` also holds what enters behind the first layers."""
    vision = Qwen3VisionGraph(model, _grid(spec))
    modules = (vision, Qwen3PrefillGraph(model, layer), Qwen3StepGraph(model, layer))
    num_later = len(cast(Any, model).model.visual.deepstack_visual_indexes)
    return _parts(model, spec, modules, (1 + num_later, spec.prompt.num_image_tokens, spec.hidden_size))


def _grid(spec: PolicySpec) -> tuple[int, int]:
    assert spec.prompt.patches is not None  # the model's own processor states them
    return spec.prompt.patches.rows, spec.prompt.patches.columns


def _parts(
    model: PreTrainedModel,
    spec: PolicySpec,
    modules: tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module],
    seen: tuple[int, ...],
) -> dict[str, GraphPart]:
    vision, prefill, step = modules
    patches = spec.prompt.patches
    assert patches is not None
    tokens, prompt = spec.prompt.num_image_tokens, spec.max_prompt_tokens
    unit = "patches as they merge: (pixel / 255 - mean) / std, planes red green blue, each as often as it is deep"
    ids = torch.zeros((1, prompt), dtype=torch.int64)
    ids[0, 1 : 1 + tokens] = patches.image_token_id
    length, position = torch.tensor([1 + tokens]), torch.arange(prompt).repeat(3, 1)
    inputs = [
        (describe("input_ids", ids, "token ids, padded on the right"), ids),
        (describe("length", length, "tokens in the prompt"), length),
        (describe("position", position, "time, row and column of each token"), position),
        make_input("image", seen, "what the decoder sees at the placeholders"),
    ]
    return {
        "vision": GraphPart(
            module=vision,
            weights="model",
            inputs=[make_input("patches", patches.shape, unit)],
            outputs=[make_output("image", seen, "what the decoder sees at the placeholders")],
        ),
        "prefill": GraphPart(module=prefill, weights="model", inputs=inputs, outputs=prefill_outputs(model, spec)),
        "step": step_part(step, model, spec, has_position=True),
    }
