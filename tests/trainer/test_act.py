"""The baseline without a language model: what it learns from, that it resumes, and that an evaluation can open it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from tiny_scenes import frames as scene_frames

from roboalign.sdk.data.collect import CollectConfig, collect
from roboalign.sdk.errors import BundleError, ConfigError, DataError
from roboalign.sdk.evaluation.contenders import named_policy
from roboalign.sdk.sim.env import SimEnv
from roboalign.trainer import act as module
from roboalign.trainer.act import ActConfig, train_act
from roboalign.trainer.act_model import ActModel, act_loss, pixels

TABLE = tiny.frames(16)


def model(**changes: object) -> ActModel:
    torch.manual_seed(0)
    sizes = module._sizes(TABLE, rate_hz=10.0)
    small = {"width": 32, "encoder_layers": 1, "decoder_layers": 1, "channels": (8, 8, 8), **changes}
    return ActModel(replace(sizes, **small))


def test_it_learns_what_the_picture_says() -> None:
    made, rng = model(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    chunks, states = torch.from_numpy(TABLE.chunks), torch.from_numpy(TABLE.states)

    def error() -> float:
        found = made.eval().predict(TABLE.images, TABLE.states, [t.instruction for t in TABLE.truths])
        return float((made.normalize(found) - made.normalize(chunks)).abs()[:, :, :2].mean())

    before = error()
    made.train()
    for _ in range(130):  # the style is unlearnt first
        noise = torch.from_numpy(rng.standard_normal((16, made.sizes.style_size)).astype(np.float32))
        words = made.bag([t.instruction for t in TABLE.truths])
        loss, _ = act_loss(made, pixels(TABLE.images), states, words, chunks, noise, style_weight=10.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error() < 0.5 * before


def test_the_instruction_is_a_bag_of_known_words() -> None:
    made = model()
    one, same, unknown = made.bag(
        ["go to the bright corner", "Corner bright the to go!", "go to the bright zebra corner"]
    )
    torch.testing.assert_close(one, same)
    torch.testing.assert_close(one, unknown)
    assert not torch.equal(one, made.bag(["go"])[0])
    assert torch.equal(made.bag(["", "zebra"]), torch.zeros((2, 32)))


def test_another_sentence_gives_other_actions() -> None:
    made = model().eval()
    torch.nn.init.normal_(made.film1.film.weight, std=0.3)
    first, second = (
        made.predict(TABLE.images[:1], TABLE.states[:1], [text]) for text in ("go to the", "bright corner")
    )
    assert (first - second).abs().max() > 1e-4


def test_the_sizes_say_which_words_it_knows() -> None:
    table = scene_frames(12)
    sizes = module._sizes(table, rate_hz=10.0)
    assert {"red", "block", "bowl", "left"} <= set(sizes.words)
    assert len(set(sizes.words)) == len(sizes.words)


def test_no_style_is_a_standard_normal_one() -> None:
    made = model().eval()
    with torch.no_grad():
        made.style_out.weight.zero_()
        made.style_out.bias.zero_()
    arguments = (pixels(TABLE.images), torch.from_numpy(TABLE.states), made.bag(["go"] * 16))
    loss, distance = act_loss(
        made, *arguments, torch.from_numpy(TABLE.chunks), torch.zeros((16, 16)), style_weight=10.0
    )
    assert loss.item() == pytest.approx(distance.item(), abs=1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("act") / "data"
    return collect(CollectConfig(out=out, episodes=4, workers=1, tasks=("place",)), show_progress=False)


@pytest.fixture(scope="module")
def config(data) -> ActConfig:
    return ActConfig(data=data, out=data.with_name("act"), steps=2, batch_size=4, save_every=1, max_frames=30)


@pytest.fixture(scope="module")
def folder(config) -> Path:
    return train_act(config)


def test_an_evaluation_opens_the_folder_and_names_who_acts(folder) -> None:
    ref = named_policy(str(folder))
    assert (ref.kind, ref.name) == ("act", str(folder))
    env = SimEnv("place", max_steps=8)
    try:
        env.reset(seed=1_000_000_000)
        chunk = ref.open(env).act(env.observe())
    finally:
        env.close()
    assert (chunk.source, chunk.actions.shape, chunk.rate_hz) == ("act", (8, 5), 10.0)


def test_a_picture_of_another_size_is_refused(folder) -> None:
    env = SimEnv("place", image_size_px=64)
    try:
        env.reset(seed=1_000_000_000)
        with pytest.raises(DataError, match="a picture 64 x 64 of camera 'front', expected 96 x 96 px"):
            named_policy(str(folder)).open(env).act(env.observe())
    finally:
        env.close()


def test_a_killed_training_goes_on_to_the_same_weights(config, folder, tmp_path, monkeypatch) -> None:
    class Killed(Exception):
        pass

    original = module.save_training_state

    def save(*args, **kwargs) -> None:
        original(*args, **kwargs)
        raise Killed

    again = replace(config, out=tmp_path / "act")
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_training_state", save)
        with pytest.raises(Killed):
            train_act(again)
    assert not again.out.exists()
    assert (train_act(again) / "act.safetensors").read_bytes() == (folder / "act.safetensors").read_bytes()


def test_a_damaged_folder_is_named(folder, tmp_path) -> None:
    (tmp_path / "act.json").write_text((folder / "act.json").read_text()[:40])
    with pytest.raises(BundleError, match=r"the ACT-like policy in .* is damaged"):
        ActModel.load(tmp_path)


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ActConfig\.steps is 0, expected 1 or more"):
        ActConfig(data=Path("d"), out=Path("o"), steps=0)
