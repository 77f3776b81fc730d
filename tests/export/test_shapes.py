"""Sizes of published models against transformers' own, and of ours against their files."""

import json
import struct
from pathlib import Path

import pytest
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from roboalign.export import shapes
from roboalign.export.shapes import model_size, run_size
from roboalign.sdk.bundle import shipped_bundle_path
from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.trainer.flow import FlowHead, FlowHeadConfig


def transformers_model(name: str) -> torch.nn.Module:
    """A published model on the meta device: every shape, no weights."""
    row = shapes._table()[name]
    text, seen = row["decoder"], row["vision"]
    common = {
        "hidden_size": text["hidden"],
        "intermediate_size": text["intermediate"],
        "num_hidden_layers": text["layers"],
        "num_attention_heads": text["heads"],
        "num_key_value_heads": text["kv_heads"],
        "vocab_size": text["vocab"],
    }
    vision = {
        "depth": seen["depth"],
        "hidden_size": seen["hidden"],
        "intermediate_size": seen["intermediate"],
        "patch_size": seen["patch"],
        "out_hidden_size": text["hidden"],
    }
    with torch.device("meta"):
        if name.startswith("qwen2.5"):
            config = Qwen2_5_VLConfig(text_config=common, vision_config=vision, tie_word_embeddings=text["tied"])
            return Qwen2_5_VLForConditionalGeneration(config)
        common["head_dim"] = text["head_dim"]
        config = Qwen3VLConfig(text_config=common, vision_config=vision, tie_word_embeddings=text["tied"])
        return Qwen3VLForConditionalGeneration(config)


@pytest.mark.parametrize("name", ["qwen2.5-vl-3b", "qwen2.5-vl-7b", "qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b"])
def test_a_published_model_has_the_size_of_transformers(name: str) -> None:
    model, size = transformers_model(name), model_size(name)
    named = {key: parameter.numel() for key, parameter in model.named_parameters()}
    counts = {
        "vision": sum(count for key, count in named.items() if "visual" in key),
        "embed": sum(count for key, count in named.items() if "embed_tokens" in key),
        "decoder": sum(count for key, count in named.items() if ".layers." in key and "visual" not in key),
    }
    for part, count in counts.items():
        assert getattr(size, part) == pytest.approx(count, rel=0.01), part
    assert size.is_tied == ("lm_head.weight" not in named)


def test_the_head_is_that_of_our_recipes() -> None:
    size = model_size("qwen2.5-vl-7b")
    with torch.device("meta"):
        head = FlowHead(
            FlowHeadConfig(
                hidden_size=3584,
                layer=18,
                horizon=16,
                action_low=(0.0,) * 7,
                action_high=(1.0,) * 7,
                state_mean=(0.0,) * 8,
                state_std=(1.0,) * 8,
                width=1536,
                num_layers=16,
            )
        )
    assert size.head is not None
    assert size.head.weights == pytest.approx(sum(p.numel() for p in head.parameters()), rel=0.01)


def test_ours_are_counted_from_their_files() -> None:
    folder = shipped_bundle_path()
    size = run_size(folder)
    stored = sum((folder / name).stat().st_size for name in ("model.safetensors", "head.safetensors"))
    # Two bytes a weight, and a header for each file.
    assert stored - 2 * size.num_parameters == pytest.approx(10_000, abs=10_000)
    config = json.loads((folder / "config.json").read_text())
    assert size.kv_values == 2 * config["num_hidden_layers"] * config["num_attention_heads"] * config["head_dim"]
    assert (size.has_own_graphs, size.has_own_products) == (True, True)
    assert size.is_tied


def test_a_qwen_checkpoint_is_sized_too(tmp_path: Path) -> None:
    names = {
        "model.visual.blocks.0.attn.qkv.weight": 300,
        "model.language_model.embed_tokens.weight": 700,
        "lm_head.weight": 700,
        "model.language_model.layers.0.mlp.up_proj.weight": 900,
    }
    header = {name: {"dtype": "F16", "shape": [n], "data_offsets": [0, 0]} for name, n in names.items()}
    packed = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(packed)) + packed)
    text = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "max_position_embeddings": 4096,
    }
    config = {
        "model_type": "qwen2_5_vl",
        "text_config": text,
        "vision_config": {"patch_size": 14, "spatial_merge_size": 2},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = run_size(tmp_path)
    assert (size.vision, size.embed, size.decoder, size.is_tied) == (300, 700, 900, False)
    assert (size.patches, size.image_tokens, size.kv_values) == (1024, 256, 2 * 2 * 2 * 16)
    assert (size.has_own_graphs, size.has_own_products) == (True, False)  # which published sizes do not say
    assert size.head is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 3) + b"{}}"])
def test_damaged_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text((shipped_bundle_path() / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match="whose sizes can be read"):
        run_size(tmp_path)


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean qwen3-vl-2b"):
        model_size("qwen3-vl-2")
