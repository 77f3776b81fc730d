"""Writes the graphs of Qwen2.5-VL at its real widths, checks them, and has NVIDIA's compiler take them for the boards.

    python benchmarks/qwen_graphs.py --model qwen2.5-vl-3b --python VENV/bin/python
    python benchmarks/qwen_graphs.py --model qwen2.5-vl-3b --full

Weights are random, and as many decoder and vision layers are written as --layers and --vision-layers say, since all of
them need more memory than a small machine has. --full writes the graphs of all layers without any weights (an empty
file of the right size stands for them), checks their structure, and compiles nothing. Tracing needs no weights in
memory either way. Printed are nodes, time, and the peak memory of tracing and of each compilation.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from roboalign.export.graph_check import GraphRules, check_graph
from roboalign.export.graphs import decoder_shape
from roboalign.export.onnx_files import write_graph
from roboalign.export.qwen_graphs import QwenPrefillGraph, QwenReadGraph, QwenStepGraph, QwenVisionGraph
from roboalign.export.rtx import compile_graph
from roboalign.export.shapes import CONTEXT_TOKENS, PICTURE_PX, TEXT_TOKENS
from roboalign.export.targets import all_targets
from roboalign.export.weights import StoredTensor, stored_tensors
from roboalign.sdk.bundle import TensorSpec
from roboalign.sdk.settings_file import read_settings

SECTIONS, ROPE_THETA = [16, 24, 24], 1_000_000.0  # of Qwen2.5-VL's published configurations
FULL_ATTENTION = [7, 15, 23, 31]  # likewise: which of 32 vision layers look at the whole picture


def build(name: str, layers: int | None, vision_layers: int | None) -> Qwen2_5_VLForConditionalGeneration:
    """Returns a model of the published widths whose parameters take no memory: each repeats a single zero."""
    row = read_settings(Path(sys.modules["roboalign.export.shapes"].__file__).with_name("shapes.toml"), "sizes")[name]
    text, seen = row["decoder"], row["vision"]
    depth = vision_layers or seen["depth"]
    full = FULL_ATTENTION if vision_layers is None else [depth - 1]
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": text["hidden"],
            "intermediate_size": text["intermediate"],
            "num_hidden_layers": layers or text["layers"],
            "num_attention_heads": text["heads"],
            "num_key_value_heads": text["kv_heads"],
            "vocab_size": text["vocab"],
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": SECTIONS},
            "tie_word_embeddings": text["tied"],
        },
        vision_config={
            "depth": depth,
            "hidden_size": seen["hidden"],
            "intermediate_size": seen["intermediate"],
            "out_hidden_size": text["hidden"],
            "fullatt_block_indexes": full,
            "patch_size": seen["patch"],
        },
        tie_word_embeddings=text["tied"],
    )
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
    inner = model.model
    inner.language_model.rotary_emb = type(inner.language_model.rotary_emb)(config=config.text_config)
    inner.visual.rotary_pos_emb = type(inner.visual.rotary_pos_emb)(config.vision_config)
    empty: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            made = torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
            setattr(module, key, empty.setdefault(id(parameter), made))
    return model


def write_random(model: torch.nn.Module, path: Path, *, is_empty: bool) -> dict[str, StoredTensor]:
    """Writes random float16 weights, tied ones once, as safetensors; or only room for them."""
    first: dict[int, str] = {}
    stored_as = {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + 2 * math.prod(shape)]}
        offset += 2 * math.prod(shape)
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        if is_empty:
            stream.truncate(stream.tell() + offset)
        for shape in [] if is_empty else shapes.values():
            scale = 1.0 if len(shape) == 1 else shape[-1] ** -0.5
            for _ in range(shape[0] if len(shape) > 1 else 1):
                rest = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
                stream.write((rng.standard_normal(rest, dtype=np.float32) * scale).astype(np.float16).tobytes())
    table = stored_tensors(path)
    return {name: table[stored] for name, stored in stored_as.items()}


def graphs(
    model: Qwen2_5_VLForConditionalGeneration, tap: int
) -> dict[str, tuple[torch.nn.Module, dict[str, torch.Tensor], dict[str, tuple[int, ...]]]]:
    """Returns modules with example inputs and the shapes of their outputs, by role."""
    config, shape = model.config, decoder_shape(model)
    seen = config.vision_config
    side = PICTURE_PX // seen.patch_size // seen.spatial_merge_size * seen.spatial_merge_size
    tokens = side**2 // seen.spatial_merge_size**2
    prompt = tokens + TEXT_TOKENS
    ids = torch.zeros((1, prompt), dtype=torch.int64)
    ids[0, 8 : 8 + tokens] = config.image_token_id
    length, position = torch.tensor([prompt]), torch.arange(prompt).repeat(3, 1)
    image = torch.zeros((tokens, shape.hidden_size))
    patches = torch.zeros((side**2, 3 * seen.temporal_patch_size * seen.patch_size**2))
    kv = (2 * shape.num_layers, shape.num_kv_heads, CONTEXT_TOKENS, shape.head_dim)
    prefilled = {"input_ids": ids, "length": length, "position": position, "image": image}
    logits, hidden = (1, shape.vocab_size), (1, prompt, shape.hidden_size)
    rows = (*kv[:2], prompt, kv[3])
    stepped = {"token": torch.tensor([5]), "length": length, "position": length.clone(), "kv": torch.zeros(kv)}
    read = {name: prefilled[name] for name in ("input_ids", "position", "image")}
    return {
        "vision": (QwenVisionGraph(model, (side, side)), {"patches": patches}, {"image": tuple(image.shape)}),
        "prefill": (QwenPrefillGraph(model, tap), prefilled, {"logits": logits, "hidden": hidden, "kv": rows}),
        "step": (
            QwenStepGraph(model, tap),
            stepped,
            {"logits": logits, "hidden": (1, shape.hidden_size), "kv_new": (*kv[:2], 1, kv[3])},
        ),
        "read": (QwenReadGraph(model, tap), read, {"hidden": hidden}),
    }


def describe(name: str, shape: tuple[int, ...], dtype: str) -> TensorSpec:
    """Returns a description in which what graphs hand to each other is float16."""
    is_half = name in ("image", "hidden", "kv", "kv_new")
    return TensorSpec(name=name, shape=shape, dtype="float16" if is_half else dtype, unit="benchmark")


def peak_gb(who: int) -> float:
    """Returns the peak memory of this process, or of the largest child."""
    return resource.getrusage(who).ru_maxrss * 1024 / 1e9


def main() -> int:
    """Prints a row for each graph and compilation; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-vl-3b", choices=("qwen2.5-vl-3b", "qwen2.5-vl-7b"))
    parser.add_argument("--layers", type=int, default=2, help="decoder layers to write")
    parser.add_argument("--vision-layers", type=int, default=2, help="vision layers to write")
    parser.add_argument("--full", action="store_true", help="write all layers, without weights, and compile nothing")
    parser.add_argument("--roles", default="vision,prefill,step,read", help="which graphs")
    parser.add_argument("--python", help="Python of an environment with tensorrt-rtx-cu13")
    options = parser.parse_args()
    layers, seen = (None, None) if options.full else (options.layers, options.vision_layers)
    model = build(options.model, layers, seen)
    num_layers = model.config.text_config.num_hidden_layers
    tap = max(1, num_layers // 2)
    num_refused = 0
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        table = write_random(model, folder / "model.safetensors", is_empty=options.full)
        size = (folder / "model.safetensors").stat().st_size / 1e9
        print(f"{options.model}: {num_layers} decoder layers, tap {tap}, {size:.1f} GB of weights", flush=True)
        for role, one in graphs(model, tap).items():
            if role in options.roles.split(","):
                write_one(role, one, folder, table)
        del model, one
        gc.collect()
        if not options.full and options.python:
            num_refused = compile_all(folder, options.python)
    return 1 if num_refused else 0


def write_one(
    role: str,
    one: tuple[torch.nn.Module, dict[str, torch.Tensor], dict[str, tuple[int, ...]]],
    folder: Path,
    table: Mapping[str, StoredTensor],
) -> None:
    """Writes one graph in half precision and checks it by rules; a finding is an error."""
    module, inputs, outputs = one
    start_s = time.monotonic()
    given = [(describe(n, tuple(v.shape), str(v.dtype).removeprefix("torch.")), v) for n, v in inputs.items()]
    wanted = [describe(n, shape, "float32") for n, shape in outputs.items()]
    path = folder / f"{role}.onnx"
    write_graph(module, given, wanted, path, table, in_half=True)
    graph = onnx.load(path, load_external_data=False)
    rules = GraphRules(name="all boards", dtypes=("fp32", "fp16"), max_opset=20)
    found = [finding.message for finding in check_graph(graph, rules, folder=folder)]
    assert not found, found
    spent_s = time.monotonic() - start_s
    print(
        f"{role:8} {len(graph.graph.node):5} nodes, {path.stat().st_size / 1e6:.1f} MB, written and checked in "
        f"{spent_s:.0f} s, peak so far {peak_gb(resource.RUSAGE_SELF):.1f} GB",
        flush=True,
    )


def compile_all(folder: Path, python: str) -> int:
    """Prints what the compiler says to each graph; returns how many it refuses."""
    num_refused = 0
    for path in sorted(folder.glob("*.onnx")):
        for capability in sorted({target.stand_in for target in all_targets().values() if target.stand_in}):
            start_s = time.monotonic()
            found = compile_graph(path, capability, python=python)
            num_refused += not found.is_taken
            words = "compiles" if found.is_taken else found.message
            spent_s, peak = time.monotonic() - start_s, peak_gb(resource.RUSAGE_CHILDREN)
            print(f"{path.stem:8} sm {capability:5} {words} {spent_s:.0f} s, largest so far {peak:.1f} GB", flush=True)
    return num_refused


if __name__ == "__main__":
    raise SystemExit(main())
