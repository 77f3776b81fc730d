"""The supervised stages end to end, on six real episodes and the recipe that takes seconds."""

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from roboalign.sdk.data.arrow import encode_png
from roboalign.sdk.data.collect import CollectConfig, collect
from roboalign.sdk.errors import BundleError, ConfigError, DataError, RoboalignError
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import ACTION_NAMES, Observation
from roboalign.trainer import head as head_stage
from roboalign.trainer import supervised
from roboalign.trainer.align import align
from roboalign.trainer.backbone import load_backbone
from roboalign.trainer.backend import TorchBackend
from roboalign.trainer.base import train_base
from roboalign.trainer.checkpoint import load_checkpoint, partial_dir
from roboalign.trainer.flow import FlowHead
from roboalign.trainer.frames import load_frames
from roboalign.trainer.head import train_head
from roboalign.trainer.probe import ActionProbe, probe_actions
from roboalign.trainer.recipes import RECIPES, recipe
from roboalign.trainer.rewards import ReplyScore
from roboalign.trainer.sft import PAIRINGS, SftConfig, train_sft

DEBUG = recipe("nano-debug")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stages") / "data"
    return collect(CollectConfig(out=out, episodes=6, workers=1), show_progress=False)


@pytest.fixture(scope="session")
def base(data) -> Path:
    return train_base(DEBUG.base_config(data=data, out=data.with_name("base")))


@pytest.fixture(scope="session")
def sft(data, base) -> Path:
    return train_sft(DEBUG.sft_config(data=data, base=base, out=data.with_name("sft")))


@pytest.fixture(scope="session")
def paired(data, base) -> Path:
    return train_sft(DEBUG.sft_config(data=data, base=base, out=data.with_name("paired"), pairing="paired"))


@pytest.fixture(scope="session")
def head(data, sft) -> Path:
    return train_head(DEBUG.head_config(data=data, backbone=sft, out=data.with_name("head")))


@pytest.fixture(scope="session")
def frames(data):
    return load_frames(data, horizon=8, image_size_px=96, max_frames=20)


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_base_starts_a_line_of_checkpoints(base, frames) -> None:
    meta = load_checkpoint(base, expect_stage="base").meta
    assert (meta.recipe, meta.parent, meta.parent_sha256) == ("nano-debug", None, None)
    assert meta.data_hash == frames.data_hash
    assert meta.cpu_s > 0
    assert {"where", "next", "where_error_mm", "offset_within_10mm"} <= set(meta.metrics["answer_accuracy"])


@pytest.mark.parametrize("pairing", sorted(PAIRINGS))
def test_sft_names_its_parent_and_its_pairing(base, request, pairing) -> None:
    found = load_checkpoint(request.getfixturevalue({"zero-shot": "sft", "paired": "paired"}[pairing]))
    assert (found.meta.stage, found.meta.parent) == ("sft", "base")
    assert found.meta.parent_sha256 == load_checkpoint(base).sha256
    assert found.meta.notes["pairing"] == pairing
    assert found.load_codec().config.names == ACTION_NAMES


def test_sft_measures_both_ways_to_act(sft) -> None:
    metrics = load_checkpoint(sft).meta.metrics
    assert metrics["act"].keys() == metrics["think_act"].keys() == ActionProbe.__dataclass_fields__.keys()
    assert metrics["codec"]["tokens_per_chunk"] > 0


def test_sft_draws_from_a_mixture_and_says_so(data, base, tmp_path) -> None:
    pixels = base64.b64encode(encode_png(np.zeros((8, 8, 3), np.uint8))).decode()
    turns = [{"from": "human", "value": "what is it"}, {"from": "gpt", "value": "nothing"}]
    row = {"image": f"data:image/png;base64,{pixels}", "conversations": turns}
    (tmp_path / "talk.jsonl").write_text(json.dumps(row))
    robot = {"name": "robot", "format": "lerobot", "path": str(data), "weight": 3, "kinds": {"action": 2, "reason": 1}}
    talk = {"name": "talk", "format": "chat", "path": "talk.jsonl", "weight": 1}
    (tmp_path / "mix.json").write_text(json.dumps({"source": [robot, talk]}))
    config = DEBUG.sft_config(data=data, base=base, out=tmp_path / "sft")
    notes = load_checkpoint(train_sft(replace(config, mixture=tmp_path / "mix.json"))).meta.notes
    assert notes["mixture"]["shares"] == {"robot/action": 0.5, "robot/reason": 0.25, "talk": 0.25}
    assert (notes["robot"], notes["mixture"]["skipped"]) == ("panda", {})


@pytest.mark.parametrize("stage", ["align", "head"])
def test_a_stage_refuses_data_of_another_rate_with_both_rates(data, sft, tmp_path, stage) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(data, other)
    info = json.loads((other / "meta/info.json").read_text())
    (other / "meta/info.json").write_text(json.dumps({**info, "fps": 5}))
    run = {
        "align": lambda: align(DEBUG.align_config(data=other, sft=sft, out=out)),
        "head": lambda: train_head(DEBUG.head_config(data=other, backbone=sft, out=out)),
    }[stage]
    with pytest.raises(DataError, match=r"other was recorded at 5 Hz, the checkpoint.s actions are of 10 Hz"):
        run()


def test_head_names_its_parent_and_keeps_the_backbone(sft, head) -> None:
    meta = load_checkpoint(head, expect_stage="head").meta
    assert meta.parent_sha256 == load_checkpoint(sft).sha256
    assert meta.metrics["backbone"] == load_checkpoint(sft).meta.metrics
    assert {"held_error", "held_error_stale", "held_error_absent", "held_dx_m"} <= set(meta.metrics)
    before, after = (load_file(folder / "model.safetensors") for folder in (sft, head))
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_align_goes_on_from_sft_with_the_settings_of_the_recipe(data, sft, tmp_path) -> None:
    out = align(DEBUG.align_config(data=data, sft=sft, out=tmp_path / "align"))
    meta = load_checkpoint(out, expect_stage="align").meta
    assert meta.parent_sha256 == load_checkpoint(sft).sha256
    assert meta.metrics["last_step"] == 2


@pytest.mark.parametrize("actions", ["flow", "fast"])
def test_the_end_of_the_line_acts(head, frames, actions) -> None:
    observation = Observation(
        images={"front": frames.images[0]},
        state=frames.states[0],
        joint_pos_rad=np.zeros(7, np.float32),
        instruction=frames.truths[0].instruction,
        time_s=0.0,
    )
    with Policy(TorchBackend.open(head), actions=actions) as policy:
        chunk = policy.act(observation)
    assert (chunk.source, chunk.actions.shape) == (actions, (8, 5))


@pytest.mark.parametrize("stage", ["base", "sft", "head"])
def test_a_finished_stage_leaves_its_metrics_and_no_partial_folder(stage, request) -> None:
    folder = request.getfixturevalue(stage)
    assert (folder / "metrics.jsonl").read_text().count('"loss"') == 2
    assert not partial_dir(folder).exists()


def test_sft_refuses_a_checkpoint_of_another_stage(data, sft, tmp_path) -> None:
    with pytest.raises(BundleError) as error:
        train_sft(DEBUG.sft_config(data=data, base=sft, out=tmp_path / "again"))
    assert "sft is a sft checkpoint, expected base; give the folder of that stage" in one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_head_refuses_a_checkpoint_of_another_stage(data, base, tmp_path) -> None:
    with pytest.raises(BundleError) as error:
        train_head(DEBUG.head_config(data=data, backbone=base, out=tmp_path / "head"))
    assert "base is a base checkpoint, expected sft or align" in one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_head_refuses_a_layer_that_the_backbone_lacks(data, sft, tmp_path) -> None:
    config = replace(DEBUG.head_config(data=data, backbone=sft, out=tmp_path / "head"), layer=3)
    with pytest.raises(ConfigError, match=r"HeadConfig\.layer is 3, expected 1 to 2"):
        train_head(config)


@pytest.mark.parametrize("stage", ["base", "sft", "head"])
def test_missing_data_leaves_nothing_under_the_final_name(stage, base, sft, tmp_path) -> None:
    out, none = tmp_path / "out", tmp_path / "none"
    runs = {
        "base": lambda: train_base(DEBUG.base_config(data=none, out=out)),
        "sft": lambda: train_sft(DEBUG.sft_config(data=none, base=base, out=out)),
        "head": lambda: train_head(DEBUG.head_config(data=none, backbone=sft, out=out)),
    }
    with pytest.raises(RoboalignError) as error:
        runs[stage]()
    assert str(none) in one_line(error)
    assert not out.exists()


def test_a_prompt_without_room_for_the_picture_is_refused(data, tmp_path) -> None:
    config = DEBUG.base_config(data=data, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="the model makes 20 image tokens but the prompt has room for 24"):
        train_base(replace(config, model={**config.model, "num_keypoints": 4}))


class _Killed(Exception):
    pass


def _kill_after_the_first_state(monkeypatch, module) -> None:
    original = module.save_training_state

    def save(*args, **kwargs) -> None:
        original(*args, **kwargs)
        raise _Killed

    monkeypatch.setattr(module, "save_training_state", save)


def _same_weights(one: Path, other: Path, name: str) -> bool:
    return (one / name).read_bytes() == (other / name).read_bytes()


def test_a_killed_sft_goes_on_to_the_same_weights(data, base, sft, tmp_path, monkeypatch) -> None:
    config = DEBUG.sft_config(data=data, base=base, out=tmp_path / "sft")
    with monkeypatch.context() as patch:
        _kill_after_the_first_state(patch, supervised)
        with pytest.raises(_Killed):
            train_sft(config)
    assert not config.out.exists()
    with pytest.raises(BundleError, match="a partial run is there; let it finish"):
        load_checkpoint(config.out)
    assert _same_weights(train_sft(config), sft, "model.safetensors")


def test_a_second_head_takes_the_features_of_the_first(data, sft, tmp_path, monkeypatch) -> None:
    """The first keeps them, another seed then trains without thinking."""
    config = DEBUG.head_config(data=data, backbone=sft, out=tmp_path / "one")
    config = replace(config, features=tmp_path / "features")
    train_head(config)
    monkeypatch.setattr("roboalign.trainer.features.compute_features", lambda *_, **__: pytest.fail("thought again"))
    other = train_head(replace(config, out=tmp_path / "two", seed=1))
    assert not _same_weights(other, tmp_path / "one", "head.safetensors")
    assert len(list((tmp_path / "features").iterdir())) == 2  # of the training frames, and of the held-out ones


def test_a_killed_head_goes_on_to_the_same_weights_and_counts_its_time(data, sft, head, tmp_path, monkeypatch) -> None:
    """The time before the kill was once forgotten."""
    config = DEBUG.head_config(data=data, backbone=sft, out=tmp_path / "head")
    with monkeypatch.context() as patch:
        _kill_after_the_first_state(patch, head_stage)
        with pytest.raises(_Killed):
            train_head(config)
    file = partial_dir(config.out) / "state" / "state.json"
    record = json.loads(file.read_text())
    record["extra"]["time"] = {"wall_s": 5000.0, "cpu_s": 4000.0}
    file.write_text(json.dumps(record))
    assert _same_weights(train_head(config), head, "head.safetensors")
    meta = load_checkpoint(config.out).meta
    assert (5000.0 < meta.wall_s < 5100.0, 4000.0 < meta.cpu_s < 4100.0) == (True, True)


def test_pictures_of_another_size_are_refused(data) -> None:
    with pytest.raises(DataError, match="the pictures are 96 x 96 px, expected 64 x 64"):
        load_frames(data, horizon=8, image_size_px=64)


def test_every_frame_has_the_truth_of_its_own_moment(frames) -> None:
    assert len(frames) == 20
    for state, truth in zip(frames.states, frames.truths, strict=True):
        np.testing.assert_allclose(state, truth.state, atol=1e-6)  # the column of truths keeps six decimals


def test_the_chunks_begin_with_the_action_of_their_frame(data, frames) -> None:
    single = load_frames(data, horizon=1, image_size_px=96, max_frames=20)
    assert frames.chunks.shape == (20, 8, 5)
    np.testing.assert_array_equal(single.chunks[:, 0], frames.chunks[:, 0])


def test_a_probe_looks_at_the_same_frames_for_the_same_seed(sft, frames) -> None:
    backbone, codec = load_backbone(sft), load_checkpoint(sft).load_codec()
    first, second = (probe_actions(backbone, codec, frames, pace="quick", count=4, seed=3) for _ in range(2))
    assert first == second
    assert first.count == 4


def test_a_head_on_disk_has_the_shape_of_the_actions(head) -> None:
    config = FlowHead.load(head).config
    assert (config.horizon, config.num_actions) == (8, len(ACTION_NAMES))


def score(*, error: float, is_decodable: bool = True) -> ReplyScore:
    return ReplyScore(is_well_formed=True, is_decodable=is_decodable, is_first_right=False, prefix=0.5, error=error)


def test_a_probe_averages_the_error_of_what_decodes() -> None:
    probe = ActionProbe.of([score(error=0.2), score(error=0.4), score(error=float("inf"), is_decodable=False)])
    assert (probe.count, probe.well_formed, probe.prefix) == (3, 1.0, 0.5)
    assert (probe.decodable, probe.error) == (pytest.approx(2 / 3), pytest.approx(0.3))


def test_a_probe_of_which_nothing_decodes_has_no_error() -> None:
    assert ActionProbe.of([score(error=float("inf"), is_decodable=False)]).error is None


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_needs_nothing_but_paths(name) -> None:
    made, path = recipe(name), Path("x")
    if made.base_fit is None:
        with pytest.raises(ConfigError, match="has no base stage: its model comes trained"):
            made.base_config(data=path, out=path)
    configs = (
        *([made.base_config(data=path, out=path, seed=7, threads=2)] if made.base_fit else ()),
        made.sft_config(data=path, base=path, out=path, seed=7, threads=2),
        made.align_config(data=path, sft=path, out=path, seed=7, threads=2),
        made.head_config(data=path, backbone=path, out=path, seed=7, threads=2),
    )
    assert [config.recipe for config in configs] == [name] * len(configs)
    runs = [getattr(config, "fit", config) for config in configs]
    assert [(run.seed, run.threads) for run in runs] == [(7, 2)] * len(configs)


def test_align_settings_of_a_recipe_can_be_overridden() -> None:
    path = Path("x")
    assert DEBUG.align_config(data=path, sft=path, out=path, reward="prefix", steps=8).reward == "prefix"


def test_the_pairing_of_a_recipe_can_be_overridden() -> None:
    path = Path("x")
    config = DEBUG.sft_config(data=path, base=path, out=path, pairing="paired")
    assert (DEBUG.pairing, config.pairing) == ("zero-shot", "paired")


def test_an_unknown_pairing_is_refused_with_the_known_ones() -> None:
    path = Path("x")
    with pytest.raises(ConfigError, match=r"SftConfig\.pairing is 'few-shot', expected one of zero-shot, paired"):
        SftConfig(data=path, base=path, out=path, recipe="x", fit=DEBUG.sft_fit, pairing="few-shot")


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no recipe 'pico'; choose one of nano, nano-debug, nano-demo"):
        recipe("pico")


def test_an_interrupted_sft_is_not_finished_with_the_other_pairing(data, base, tmp_path, monkeypatch) -> None:
    """The two arms were once mixed when the second was given the folder of the first, interrupted one."""
    zero_shot = DEBUG.sft_config(data=data, base=base, out=tmp_path / "sft", pairing="zero-shot")
    with monkeypatch.context() as patch:
        _kill_after_the_first_state(patch, supervised)
        with pytest.raises(_Killed):
            train_sft(zero_shot)
    with pytest.raises(ConfigError, match="pairing differ"):
        train_sft(replace(zero_shot, pairing="paired"))
