"""`sft` on models that are not ours: tiny random Qwen folders as they are published."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny
import tiny_qwen
import tiny_scenes
import torch
from safetensors.torch import load_file

from roboalign.sdk.errors import BundleError
from roboalign.trainer import sft as sft_stage
from roboalign.trainer import supervised
from roboalign.trainer.backbone import load_backbone
from roboalign.trainer.checkpoint import load_checkpoint
from roboalign.trainer.lora import LoraSettings
from roboalign.trainer.probe import probe_actions
from roboalign.trainer.sft import SftConfig, train_sft
from roboalign.trainer.source import find_folder
from roboalign.trainer.supervised import FitConfig

TABLE = tiny_scenes.frames(40)
FIT = FitConfig(steps=4, batch_size=4, micro_batch=2, save_every=2, freeze_vision=True, checkpointing=True)
LORA = LoraSettings(rank=2)


@pytest.fixture
def config(monkeypatch, tmp_path) -> SftConfig:
    monkeypatch.setattr(sft_stage, "load_frames", lambda *_args, **_kwargs: TABLE)
    # The measurements at the end write a thousand tokens one by one; they have tests of their own.
    monkeypatch.setattr(sft_stage, "answer_accuracy", lambda *_args, **_kwargs: {})
    monkeypatch.setattr(sft_stage, "probe_actions", partial(probe_actions, max_tokens=4))
    return SftConfig(
        data=Path("none"),
        base=tmp_path / "base",
        out=tmp_path / "sft",
        recipe="test",
        fit=FIT,
        horizon=4,
        action_vocab=64,
        tolerance=None,
        held_share=0.2,
        probe_frames=2,
        dtype="fp32",
    )


class _Killed(Exception):
    pass


def _kill_after_the_first_state(patch) -> None:
    original = supervised.save_training_state

    def save(*args, **kwargs) -> None:
        original(*args, **kwargs)
        raise _Killed

    patch.setattr(supervised, "save_training_state", save)


@pytest.mark.parametrize(
    ("version", "lora"),
    [
        ("qwen2_5_vl", None),
        ("qwen3_vl", LORA),
        pytest.param("qwen2_5_vl", LORA, marks=pytest.mark.slow),
        pytest.param("qwen3_vl", None, marks=pytest.mark.slow),
    ],
)
def test_a_published_model_learns_and_a_killed_run_goes_on_to_the_same_weights(
    config, version, lora, tmp_path, monkeypatch
) -> None:
    """transformers' own resume restores 1 of 57 tensors of Qwen2.5-VL (QwenLM/Qwen3-VL#1763); ours all or none."""
    tiny_qwen.folder(version, config.base)
    config = replace(config, fit=replace(FIT, lora=lora))
    whole = load_checkpoint(train_sft(config), expect_stage="sft")
    assert (whole.meta.parent, whole.meta.notes["origin"]) == (str(config.base), str(config.base))
    again = replace(config, out=tmp_path / "again")
    with monkeypatch.context() as patch:
        _kill_after_the_first_state(patch)
        with pytest.raises(_Killed):
            train_sft(again)
    resumed = train_sft(again)
    assert (resumed / "model.safetensors").read_bytes() == (config.out / "model.safetensors").read_bytes()
    assert ("adapter/adapter_model.safetensors" in whole.meta.files) == (lora is not None)
    before, after = (load_file(folder / "model.safetensors") for folder in (config.base, config.out))
    vision = [name for name in after if "visual" in name]
    assert vision
    assert all(torch.equal(before[name], after[name]) for name in vision)
    layers = [name for name in after if name.endswith("q_proj.weight") and "visual" not in name]
    assert not any(torch.equal(before[name], after[name]) for name in layers)


def test_what_was_trained_is_what_is_loaded(config) -> None:
    tiny_qwen.folder("qwen2_5_vl", config.base)
    out = train_sft(config)
    member = load_backbone(out)
    assert len(load_file(out / "model.safetensors")) == len(load_file(config.base / "model.safetensors"))
    assert member.tokenizer.decode(member.tokenizer.encode("<ACTION_3>")) == "<ACTION_3>"
    assert member.embedding_rows >= len(member.tokenizer)


def test_a_folder_without_a_model_is_named(tmp_path) -> None:
    with pytest.raises(BundleError, match=r"has neither roboalign.json nor config.json; give a checkpoint of ours"):
        find_folder(tmp_path)


def test_a_hub_id_that_cannot_be_reached_is_one_line() -> None:
    with pytest.raises(BundleError) as error:
        find_folder(Path("nobody/no-such-model"))
    text = str(error.value)
    assert "\n" not in text
    assert "no folder nobody/no-such-model, and the model hub does not give 'nobody/no-such-model'" in text
    assert text.endswith("copy the model here and give its folder")


def test_a_path_that_is_no_hub_id_is_a_missing_checkpoint(tmp_path) -> None:
    with pytest.raises(BundleError, match="no checkpoint folder at"):
        find_folder(tmp_path / "none")


def test_a_model_of_unknown_type_is_refused_with_the_known_ones(config) -> None:
    config.base.mkdir()
    (config.base / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BundleError, match="no backbone for model type 'bert', expected one of qwen2_5_vl,"):
        train_sft(config)


def test_a_model_of_another_package_is_found_by_its_entry_point(monkeypatch) -> None:
    from importlib.metadata import EntryPoint

    from roboalign.trainer import backbone

    point = EntryPoint(name="other", value="roboalign.trainer.nano:NanoBackbone", group=backbone.ENTRY_POINT_GROUP)
    monkeypatch.setattr(backbone, "entry_points", lambda group: [point] if group == point.group else [])
    assert backbone.backbone_class("other") is type(tiny.backbone(tiny.codec_of(TABLE)))
