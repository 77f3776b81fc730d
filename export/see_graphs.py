"""What a bundle for the CPU sees with: `hear` for the words of a prompt, `look` for its picture.

A picture is looked at with the words before it in mind: two convolutions over them, then the largest value of each
channel (`TextSummary`). `hear` gives what the convolutions make of each word, so that a prompt that begins like the one
before costs those of its other words alone, and of two more where the two meet; the largest value is taken by whoever
keeps them. `look` gives the picture's tokens from that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from roboalign.export.graph_part import GraphPart, describe, make_output
from roboalign.export.node_writer import NodeWriter, tensor_spec
from roboalign.export.weights import StoredTensor
from roboalign.sdk.bundle import HEAR_ROLE, GraphSpec, PolicySpec, TensorSpec

__all__ = ["LookGraph", "look_part", "write_hear"]

_STEMS = ("model.vision", "model.vision.stem")
"""Where nano and smol keep the part that sees."""

_TO_THE_END = 2**62


class LookGraph(torch.nn.Module):
    """pixels [1, 3, S, S], largest values of the words' convolutions [1, E] -> the picture's tokens [1, N, D]."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, summary: torch.Tensor) -> torch.Tensor:
        rows_1ND: torch.Tensor = self.model.model.vision.look(pixel_values, summary)[0]
        return rows_1ND


def look_part(model: PreTrainedModel, spec: PolicySpec, pixels: tuple[TensorSpec, torch.Tensor]) -> GraphPart:
    """Returns `look`, which takes these pictures."""
    summary = torch.rand((1, _width(model)), generator=torch.Generator().manual_seed(0))
    inputs = [pixels, (describe("summary", summary, "largest of the words' values in each channel"), summary)]
    tokens = (1, spec.prompt.num_image_tokens, spec.hidden_size)
    outputs = [make_output("rows", tokens, "what the decoder reads in place of the placeholders")]
    return GraphPart(module=LookGraph(model), weights="model", inputs=inputs, outputs=outputs)


def write_hear(
    model: PreTrainedModel, spec: PolicySpec, folder: Path, table: Mapping[str, StoredTensor]
) -> dict[str, GraphSpec]:
    """Writes `hear`, which has values for each word before the picture; returns it by role.

    Its number of tokens is not fixed. Of tokens that do not begin with the prompt, the first two words have wrong
    values, as they lack those before them.
    """
    most, writer = spec.max_prompt_tokens, NodeWriter(model, table, folder)
    inputs = [tensor_spec("tokens", (1, most), "int64", "token ids, the picture's placeholders among them")]
    outputs = [tensor_spec("heard", (1, most, _width(model)), "float32", "values of each word before the picture")]
    image = writer.constant("image", np.array(model.config.image_token_id, np.int64))
    writer.node("Equal", ["tokens", image], "is_image")
    writer.node("Cast", ["is_image"], "image_count", to=7)  # int64
    writer.node("CumSum", ["image_count", writer.constant("axis", np.array(1, np.int64))], "images_so_far")
    writer.node("Equal", ["images_so_far", writer.constant("none", np.array(0, np.int64))], "is_word")
    writer.node("Cast", ["is_word"], "word_count", to=7)
    writer.node("ReduceSum", ["word_count", writer.whole([1])], "num_words", keepdims=0)
    writer.node("Slice", ["tokens", writer.whole([0]), "num_words", writer.whole([1])], "words")
    writer.node("Gather", [writer.weight("model.language_model.embed_tokens.weight"), "words"], "rows")
    stem, value = _stem(model), "rows"
    if stem != _STEMS[0]:
        writer.node("Transpose", [writer.weight(f"{_STEMS[0]}.narrow.weight")], "narrow", perm=[1, 0])
        writer.node("MatMul", [value, "narrow"], "narrowed")
        writer.node("Add", ["narrowed", writer.weight(f"{_STEMS[0]}.narrow.bias")], "narrow_rows")
        value = "narrow_rows"
    for name, out in (("conv1", "first"), ("conv2", "heard")):
        value = _convolution(writer, f"{stem}.summary.{name}", value, out)
    return {HEAR_ROLE: writer.save(HEAR_ROLE, inputs, outputs, ("tokens",), ("heard",))}


def _convolution(writer: NodeWriter, name: str, value: str, out: str) -> str:
    """Returns a convolution over three words and its activation.

    Written as one product of each word and its neighbours: that sums in the same order however many words there are,
    which onnxruntime's convolution does not.
    """
    writer.node("Pad", [value, writer.whole([0, 1, 0, 0, 1, 0])], f"{out}.padded")
    for start, end in ((0, -2), (1, -1), (2, _TO_THE_END)):
        bounds = [writer.whole([start]), writer.whole([end]), writer.whole([1])]
        writer.node("Slice", [f"{out}.padded", *bounds], f"{out}.from{start}")
    writer.node("Concat", [f"{out}.from{start}" for start in range(3)], f"{out}.three", axis=2)
    weight, shape = writer.weight(f"{name}.weight"), writer.shape(f"{name}.weight")
    writer.node("Transpose", [weight], f"{out}.turned", perm=[2, 1, 0])
    writer.node("Reshape", [f"{out}.turned", writer.whole([3 * shape[1], shape[0]])], f"{out}.columns")
    writer.node("MatMul", [f"{out}.three", f"{out}.columns"], f"{out}.product")
    writer.node("Add", [f"{out}.product", writer.weight(f"{name}.bias")], f"{out}.sum")
    writer.node("Sigmoid", [f"{out}.sum"], f"{out}.open")
    writer.node("Mul", [f"{out}.sum", f"{out}.open"], out)
    return out


def _stem(model: PreTrainedModel) -> str:
    return next(stem for stem in _STEMS if f"{stem}.summary.conv1.weight" in model.state_dict())


def _width(model: PreTrainedModel) -> int:
    """Returns the width of what words say to the stem."""
    return len(model.state_dict()[f"{_stem(model)}.summary.conv2.weight"])
