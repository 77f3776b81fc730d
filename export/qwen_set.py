"""The graphs of a Qwen-VL policy: `vision` sees the patches of one picture, `prefill` and `step` count three axes."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from roboalign.export.graph_part import GraphPart, describe, make_input, make_output, prefill_outputs, step_part
from roboalign.export.qwen_graphs import QwenPrefillGraph, QwenStepGraph, QwenVisionGraph
from roboalign.sdk.bundle import PolicySpec

__all__ = ["qwen_parts"]


def qwen_parts(model: PreTrainedModel, spec: PolicySpec, layer: int) -> dict[str, GraphPart]:
    """Returns `vision`, `prefill` and `step` of a Qwen-VL model for pictures of the policy's size."""
    patches = spec.prompt.patches
    assert patches is not None  # the model's own processor states them
    tokens, prompt = spec.prompt.num_image_tokens, spec.max_prompt_tokens
    vision = QwenVisionGraph(model, (patches.rows, patches.columns))
    seen = (tokens, spec.hidden_size)
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
    prefill = QwenPrefillGraph(model, layer)
    return {
        "vision": GraphPart(
            module=vision,
            weights="model",
            inputs=[make_input("patches", patches.shape, unit)],
            outputs=[make_output("image", seen, "what the decoder sees at the placeholders")],
        ),
        "prefill": GraphPart(module=prefill, weights="model", inputs=inputs, outputs=prefill_outputs(model, spec)),
        "step": step_part(QwenStepGraph(model, layer), model, spec, has_position=True),
    }
