"""Every stage, and one closed-loop episode, for backbones that are not nano. Minutes: run with --also slow."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_qwen

from roboalign.export import ExportConfig, export
from roboalign.sdk.data.collect import CollectConfig, collect
from roboalign.sdk.evaluation.episodes import run_episode
from roboalign.sdk.policy import Policy
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.seeds import train_seed
from roboalign.trainer import sft as sft_stage
from roboalign.trainer.align import align
from roboalign.trainer.backend import TorchBackend
from roboalign.trainer.base import train_base
from roboalign.trainer.checkpoint import load_checkpoint
from roboalign.trainer.head import train_head
from roboalign.trainer.recipes import recipe
from roboalign.trainer.sft import train_sft

pytestmark = pytest.mark.slow

DEBUG = recipe("smol-debug")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("lines") / "data"
    return collect(CollectConfig(out=out, episodes=4, workers=1), show_progress=False)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl", "smol"])
def line(request, data) -> tuple[str, Path]:
    """The last checkpoint of a model that went through all stages."""
    name = request.param
    home = data.with_name(name)
    if name == "smol":
        base = train_base(DEBUG.base_config(data=data, out=home / "base"))
    else:
        base = tiny_qwen.folder(name, home / "base", is_lively=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft_stage, "answer_accuracy", partial(sft_stage.answer_accuracy, count=2))
        config = replace(DEBUG.sft_config(data=data, base=base, out=home / "sft"), probe_frames=2)
        fit = replace(config.fit, place_weight=0.0)
        if name == "smol":  # is exported: an untrained model answers all alike, and parity would prove nothing
            fit = replace(fit, steps=240, batch_size=8, micro_batch=8, peak_rate=3e-3, save_every=120)
        sft = train_sft(replace(config, fit=fit))
    aligned = align(DEBUG.align_config(data=data, sft=sft, out=home / "align"))
    return name, train_head(DEBUG.head_config(data=data, backbone=aligned, out=home / "head"))


def test_the_line_of_parents_is_whole(line, data) -> None:
    name, head = line
    meta = load_checkpoint(head, expect_stage="head").meta
    assert meta.parent_sha256 == load_checkpoint(data.with_name(name) / "align").sha256
    wanted = "language: random weights;" if name == "smol" else str(data.with_name(name) / "base")
    assert json.loads((head / "config.json").read_text())["origin"].startswith(wanted)


@pytest.mark.parametrize("actions", ["flow", "fast"])
def test_it_plays_an_episode(line, actions) -> None:
    _, head = line
    env = SimEnv("mix", max_steps=10)
    try:
        with Policy(TorchBackend.open(head), actions=actions) as policy:
            found = run_episode(env, policy, seed=train_seed(3), task="push")
    finally:
        env.close()
    assert 0.0 <= found.progress <= 1.0


def test_it_is_exported_with_parity(line, tmp_path) -> None:
    name, head = line
    config = ExportConfig(run=head, out=tmp_path / "bundle", num_observations=96 if name == "smol" else 24)
    bundle = export(config, say=lambda _line: None)
    with Policy.load(bundle) as policy:
        assert policy.spec.prompt.form == ("chat" if name == "smol" else "qwen")
        assert np.isfinite(policy.spec.action_high).all()
    assert "Its first weights: " in (bundle / "README.md").read_text()
