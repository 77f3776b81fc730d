"""AWQ: scales that leave the function alone, and rounding that costs less for it."""

import json
import logging

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from roboalign.export import ExportConfig, awq, export
from roboalign.export.awq import fold_scales, round_by_cost
from roboalign.export.calibration import input_moments
from roboalign.export.rounding import Calibration
from roboalign.export.sensitivity import PARTS, answers, modules_of, round_parts
from roboalign.sdk.quantized import dequantize, quantize_matrix
from roboalign.trainer.backend import TorchBackend

logging.getLogger("torch.__trace").propagate = False  # pytest would format 100,000 records of it

RNG = np.random.default_rng(5)
SIZES = np.exp(RNG.normal(scale=1.5, size=96))  # of inputs: a few are large, as in language models
INPUTS = RNG.normal(size=(512, 96)) * SIZES


def _some_moments(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Inputs of very different sizes for every linear layer, also for those of the tiny head that get no codes."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    return {
        f"{name}.weight": np.diag(SIZES[: layer.in_features] ** 2)
        for name, layer in layers.items()
        if layer.in_features in (32, 64, 96)
    }


@pytest.fixture
def folded(run):
    """A policy before and after every matrix that can be scaled was, as backends."""
    before, after = TorchBackend.open(run), TorchBackend.open(run)
    for module in modules_of(after).values():
        fold_scales(module, _some_moments(module), 4)
    return before, after


def _differences(one: TorchBackend, other: TorchBackend, observations) -> tuple[float, bool]:
    (actions, thoughts), (others, other_thoughts) = answers(one, observations), answers(other, observations)
    span = np.asarray(one.spec.action_high) - np.asarray(one.spec.action_low)
    return float((np.abs(actions - others) / span).max()), thoughts == other_thoughts


def test_scaling_leaves_every_answer_as_it_was(folded, observations):
    difference, is_same = _differences(*folded, observations)
    assert difference < 1e-5
    assert is_same


@pytest.mark.parametrize("weight", ["blocks.0.modulation.bias", "source.1.weight", "blocks.0.mine.key_value.weight"])
def test_a_row_that_is_not_divided_changes_the_answers(folded, observations, weight):
    """The comparison above can fail: what one of the three kinds of makers had before is put back."""
    before, after = folded
    with torch.no_grad():
        after.head.get_parameter(weight).copy_(before.head.get_parameter(weight))
    assert _differences(before, after, observations)[0] > 1e-3


def test_matrices_behind_a_norm_or_a_linear_layer_can_be_scaled(run):
    found = {}
    for file, module in modules_of(TorchBackend.open(run)).items():
        names = {layer: name for name, layer in module.named_modules()}
        found[file] = {names[reader] for fold in awq._folds(module) for reader in fold.readers}
    assert {name.removeprefix("model.language_model.layers.")[2:] for name in found["model"]} == {
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    }
    attention = [f"blocks.0.{kind}.{part}" for kind in ("mine", "cross") for part in ("query", "key_value", "out")]
    assert found["head"] == {"source.1", "blocks.0.feed.0", *attention}


def test_values_shared_by_several_heads_are_left_alone():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
    )
    config._attn_implementation = "eager"
    layer = LlamaDecoderLayer(config, 0).eval()
    x = torch.randn(1, 7, 64) * torch.from_numpy(SIZES[:64]).float()
    angles = LlamaRotaryEmbedding(config)(x, torch.arange(7)[None])
    before = layer(x, position_embeddings=angles)
    kept = layer.self_attn.o_proj.weight.clone()
    moments = _some_moments(layer)
    found = fold_scales(layer, moments, 4)
    assert torch.equal(layer.self_attn.o_proj.weight, kept)
    assert not np.array_equal(found["self_attn.q_proj.weight"], moments["self_attn.q_proj.weight"])
    assert torch.allclose(layer(x, position_embeddings=angles), before, rtol=1e-4, atol=1e-5)


def _error(weight, found) -> float:
    return float(np.linalg.norm(INPUTS @ (found - weight)))


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_and_clipping_each_lower_the_error_of_what_a_matrix_computes(bits):
    weight = RNG.normal(size=(96, 40)).astype(np.float32)
    moments = INPUTS.T @ INPUTS
    nearest = _error(weight, dequantize(*quantize_matrix(weight, bits)))
    clipped = _error(weight, dequantize(*round_by_cost(weight, moments, bits)))
    scale = awq._best_scale([weight], moments, bits)[:, None]
    scaled = dequantize(*round_by_cost(weight * scale, moments / (scale * scale.T), bits)) / scale
    assert clipped < nearest
    assert _error(weight, scaled) < 0.8 * clipped


def test_inputs_of_equal_size_need_no_scale():
    assert np.array_equal(awq._best_scale([np.ones((96, 4), np.float32)], np.eye(96), 4), np.ones(96, np.float32))


def test_inputs_that_were_never_seen_keep_finite_weights():
    seen = INPUTS.copy()
    seen[:, 32:64] = 0
    scale = awq._best_scale([RNG.normal(size=(96, 8)).astype(np.float32)], seen.T @ seen, 4)
    assert np.isfinite(scale).all()
    assert scale.min() > 0
    assert (awq._best_scale([np.ones((96, 4), np.float32)], np.zeros((96, 96)), 4) == 1).all()


def test_only_the_parts_that_become_codes_are_scaled(run, observations):
    """A board keeps the head in full weights, and its bytes with it."""
    backend = TorchBackend.open(run)
    moments = input_moments(backend, observations[::2])
    kept = {name: value.clone() for name, value in backend.head.state_dict().items()}
    calibration = Calibration(moments=moments, rounding="awq")
    found = round_parts(backend, observations, "int4", limit=1.0, calibration=calibration, parts=("decoder",))
    assert set(found.codes["model"]) == {name for name in moments["model"] if name.startswith(PARTS["decoder"][1])}
    assert all(torch.equal(kept[name], value) for name, value in backend.head.state_dict().items())


def test_a_bundle_passes_parity_and_says_how_it_was_rounded(run, observations, tmp_path):
    config = ExportConfig(run=run, out=tmp_path / "few", precision="int4", rounding="awq", max_part_error=1.0)
    out = export(config, observations=observations, say=lambda line: None)
    record = json.loads((out / "quantization.json").read_text())
    assert (record["rounding"], record["num_calibration"]) == ("awq", len(observations[::2]))
