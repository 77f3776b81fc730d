"""Graphs of Qwen2.5-VL and Qwen3-VL against transformers' own tiny random models: equal, and their traps."""

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.trainer.tiny_qwen import backbone, make_lively

from roboalign.export.graph_check import GraphRules, check_graph
from roboalign.export.onnx_files import write_graph
from roboalign.export.qwen3_graphs import Qwen3PrefillGraph, Qwen3StepGraph, Qwen3VisionGraph
from roboalign.export.qwen_graphs import QwenPrefillGraph, QwenReadGraph, QwenStepGraph, QwenVisionGraph
from roboalign.export.weights import write_weights
from roboalign.sdk.bundle import TensorSpec
from roboalign.trainer.backbone import HuggingFaceBackbone, PromptInputs

logging.getLogger("torch.__trace").propagate = False  # pytest would format 100,000 records of it

PROMPT, LONGEST, TAP = 96, 104, 2


@pytest.fixture(scope="module")
def member() -> HuggingFaceBackbone:
    made = backbone("qwen2_5_vl", num_actions=None)
    make_lively(made.model)
    return made


def prompt_of(member: HuggingFaceBackbone) -> PromptInputs:
    picture = np.random.default_rng(0).integers(0, 256, (84, 112, 3)).astype(np.uint8)
    return member.encode_prompts(["put the red block away"], [None], [picture], pace="slow", task="act")


def grid_of(prompt: PromptInputs) -> tuple[int, int]:
    _, rows, columns = prompt.extra["image_grid_thw"][0].tolist()
    return rows, columns


@pytest.fixture(scope="module")
def prompt(member: HuggingFaceBackbone) -> PromptInputs:
    return prompt_of(member)


@pytest.fixture(scope="module")
def grid(prompt: PromptInputs) -> tuple[int, int]:
    return grid_of(prompt)


def padded(member: HuggingFaceBackbone, prompt: PromptInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids int64[1, PROMPT], length and positions int64[3, PROMPT], padded on the right."""
    length = prompt.input_ids.shape[1]
    ids = torch.zeros((1, PROMPT), dtype=torch.int64)
    ids[:, :length] = prompt.input_ids
    position = torch.zeros((3, PROMPT), dtype=torch.int64)
    position[:, :length] = member.positions(prompt)[:, 0]
    return ids, torch.tensor([length]), position


@torch.no_grad()
def prefill(
    member: HuggingFaceBackbone, prompt: PromptInputs, grid: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids, length, position = padded(member, prompt)
    image = QwenVisionGraph(member.model, grid)(prompt.extra["pixel_values"])
    return QwenPrefillGraph(member.model, TAP)(ids, length, position, image)


@torch.no_grad()
def test_the_vision_graph_of_a_fixed_size_sees_what_the_model_sees(member, prompt, grid):
    """The picture does not divide into whole windows, so both ways of attention are taken."""
    graph = QwenVisionGraph(member.model, grid)
    assert len(set(graph.lengths)) > 1
    expected = member.encode_images(prompt)[0]
    assert torch.allclose(graph(prompt.extra["pixel_values"]), expected, atol=1e-4)


@torch.no_grad()
def test_windows_of_one_size_are_a_batch_and_the_same(member):
    grid = (8, 8)
    pixels = torch.rand((64, 3 * 2 * 14 * 14), generator=torch.Generator().manual_seed(0))
    graph = QwenVisionGraph(member.model, grid)
    assert set(graph.lengths) == {16}
    expected = member.model.get_image_features(pixels, torch.tensor([[1, *grid]])).pooler_output[0]
    assert torch.allclose(graph(pixels), expected, atol=1e-4)


@torch.no_grad()
def test_prefill_is_the_model_whatever_the_padding(member, prompt, grid):
    logits, hidden, _ = prefill(member, prompt, grid)
    expected, _ = member.prefill(prompt)
    assert torch.allclose(logits, expected, atol=1e-3)
    length = prompt.input_ids.shape[1]
    assert torch.allclose(hidden[:, :length], member.hidden_after(prompt, TAP), atol=1e-3)


@torch.no_grad()
def decode(
    member: HuggingFaceBackbone, prompt: PromptInputs, grid: tuple[int, int], *, offset: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of six steps by the graph and by the model; `offset` is added to each position."""
    step, length = QwenStepGraph(member.model, TAP), prompt.input_ids.shape[1]
    kv = torch.zeros((2 * member.num_layers, 1, LONGEST, 16))
    kv[:, :, :length] = prefill(member, prompt, grid)[2][:, :, :length]
    _, state = member.prefill(prompt)
    ours, theirs = [], []
    for count, token in enumerate((5, 40, 7, 99, 12, 63)):
        place, position = torch.tensor([length + count]), state.next_position + offset
        logits, _, rows = step(torch.tensor([token]), place, position, kv)
        kv[:, :, length + count] = rows[:, :, 0]
        expected, state = member.step(torch.tensor([token]), state)
        ours.append(logits)
        theirs.append(expected)
    return torch.cat(ours), torch.cat(theirs)


def test_steps_are_those_of_the_model(member, prompt, grid):
    ours, theirs = decode(member, prompt, grid, offset=0)
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert len(set(theirs.argmax(dim=1).tolist())) > 1


def test_a_step_at_the_number_of_tokens_is_wrong(member, prompt, grid):
    """The trap of three axes: behind a picture, the next position is not the number of tokens read."""
    length = prompt.input_ids.shape[1]
    _, state = member.prefill(prompt)
    offset = length - int(state.next_position)
    assert offset > 0
    ours, theirs = decode(member, prompt, grid, offset=offset)
    assert not torch.allclose(ours, theirs, atol=0.05)


@torch.no_grad()
def test_the_cut_decoder_gives_the_tapped_layer_before_any_norm(member, prompt, grid):
    ids, _, position = padded(member, prompt)
    image = QwenVisionGraph(member.model, grid)(prompt.extra["pixel_values"])
    graph = QwenReadGraph(member.model, TAP)
    hidden = graph(ids, position, image)[:, : prompt.input_ids.shape[1]]
    expected = member.hidden_after(prompt, TAP)
    assert torch.allclose(hidden, expected, atol=1e-3)
    assert not torch.allclose(member.decoder.norm(hidden), expected, atol=0.1)


@pytest.fixture(scope="module")
def third() -> HuggingFaceBackbone:
    made = backbone("qwen3_vl", num_actions=None)
    make_lively(made.model)
    return made


@torch.no_grad()
def test_qwen3_reads_a_prompt_and_steps_as_the_model_does(third):
    """The picture is no square and no multiple of the table of places; its features enter behind two layers."""
    prompt = prompt_of(third)
    ids, length, position = padded(third, prompt)
    image = Qwen3VisionGraph(third.model, grid_of(prompt))(prompt.extra["pixel_values"])
    assert image.shape[0] == 3
    graph = Qwen3PrefillGraph(third.model, TAP)
    logits, hidden, rows = graph(ids, length, position, image)
    expected, state = third.prefill(prompt)
    assert torch.allclose(logits, expected, atol=1e-3)
    assert torch.allclose(hidden[:, : int(length)], third.hidden_after(prompt, TAP), atol=1e-3)
    kv = torch.zeros((2 * third.num_layers, 1, LONGEST, 16))
    kv[:, :, : int(length)] = rows[:, :, : int(length)]
    found, _, _ = Qwen3StepGraph(third.model, TAP)(torch.tensor([40]), length, state.next_position, kv)
    wanted, _ = third.step(torch.tensor([40]), state)
    assert torch.allclose(found, wanted, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("trap", ["later features", "axes in sections"])
def test_what_qwen3_does_otherwise_counts(third, trap):
    """Without what enters later, or with Qwen2.5-VL's sections, the answer is another one."""
    prompt = prompt_of(third)
    ids, length, position = padded(third, prompt)
    image = Qwen3VisionGraph(third.model, grid_of(prompt))(prompt.extra["pixel_values"])
    if trap == "later features":
        hidden = Qwen3PrefillGraph(third.model, TAP)(ids, length, position, image[:1])[1]
    else:
        graph = Qwen3PrefillGraph(third.model, TAP)
        graph.angles = QwenPrefillGraph(third.model, TAP).angles
        hidden = graph(ids, length, position, image)[1]
    expected = third.hidden_after(prompt, TAP)
    assert not torch.allclose(hidden[:, : int(length)], expected, atol=0.05)


@pytest.mark.slow
@torch.no_grad()
def test_all_four_are_written_in_half_precision_for_a_board(member, prompt, grid, tmp_path: Path):
    """Traced, narrowed, checked, and close to the model in onnxruntime; a board's compiler is asked by --also rtx."""
    table = write_weights(member.model, tmp_path / "model.safetensors", "fp16")
    stored = member.model.state_dict()
    member.model.load_state_dict({name: tensor.half().float() for name, tensor in stored.items()})
    ids, length, position = padded(member, prompt)
    pixels = prompt.extra["pixel_values"]
    image = QwenVisionGraph(member.model, grid)(pixels)
    kv = torch.zeros((2 * member.num_layers, 1, LONGEST, 16))
    asked = {
        "vision": (QwenVisionGraph(member.model, grid), {"patches": pixels}, ["image"]),
        "prefill": (
            QwenPrefillGraph(member.model, TAP),
            {"input_ids": ids, "length": length, "position": position, "image": image},
            ["logits", "hidden", "kv"],
        ),
        "step": (
            QwenStepGraph(member.model, TAP),
            {"token": torch.tensor([5]), "length": length, "position": length - 9, "kv": kv},
            ["logits", "hidden", "kv_new"],
        ),
        "read": (
            QwenReadGraph(member.model, TAP),
            {"input_ids": ids, "position": position, "image": image},
            ["hidden"],
        ),
    }
    for role, (module, inputs, outputs) in asked.items():
        results = module(*inputs.values())
        expected = results if isinstance(results, tuple) else (results,)
        write_graph(
            module,
            [(described(name, value), value) for name, value in inputs.items()],
            [described(name, value) for name, value in zip(outputs, expected, strict=True)],
            tmp_path / f"{role}.onnx",
            table,
            in_half=True,
        )
        model = onnx.load(tmp_path / f"{role}.onnx", load_external_data=False)
        rules = GraphRules(name="a board", dtypes=("fp32", "fp16"), max_opset=20)
        assert check_graph(model, rules, folder=tmp_path) == []
        session = onnxruntime.InferenceSession(tmp_path / f"{role}.onnx", providers=["CPUExecutionProvider"])
        feed = {name: narrowed(name, value) for name, value in inputs.items()}
        for found, wanted in zip(session.run(None, feed), expected, strict=True):
            scale = float(wanted.abs().max())
            real = slice(None) if found.ndim < 3 or found.shape[1] != PROMPT else slice(0, int(length))
            difference = np.abs(found.astype(np.float32) - wanted.numpy())[:, real]
            assert difference.max() < 0.02 * scale, role


CARRIED = ("image", "kv", "kv_new", "hidden")


def described(name: str, value: torch.Tensor) -> TensorSpec:
    dtype = "float16" if name in CARRIED else str(value.dtype).removeprefix("torch.")
    return TensorSpec(name=name, shape=tuple(value.shape), dtype=dtype, unit="test")


def narrowed(name: str, value: torch.Tensor) -> np.ndarray:
    return value.half().numpy() if name in CARRIED else value.numpy()
