import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_scenes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.trainer.lora import LoraSettings
from roboalign.trainer.parallel import Parallel
from roboalign.trainer.progress import Timer
from roboalign.trainer.samples import make_sample
from roboalign.trainer.supervised import FitConfig, PlaceReadout, draw_kinds, fit, held_out_loss, random_shift

TRAIN, HELD = tiny_scenes.frames(40).split(0.2)
CODEC = tiny.codec_of(TRAIN)
CONFIG = FitConfig(steps=6, batch_size=4, save_every=2, place_weight=0.5, shift_px=8)
CLOCKS = ("cpu_s", "wall_s")


class _Stopped(Exception):
    pass


def draw_from(table, _step, count, rng):
    rows = rng.integers(len(table), size=count)
    return [make_sample(table, int(row), "vqa", tiny.FORMAT, rng) for row in rows]


draw, draw_held = partial(draw_from, TRAIN), partial(draw_from, HELD)


def stopping_after(steps: int):
    """Draws like `draw`, until `steps` training batches were drawn."""
    left = iter(range(steps))

    def limited(step, count, rng):
        if next(left, None) is None:
            raise _Stopped
        return draw(step, count, rng)

    return limited


def train(
    folder: Path, *, config: FitConfig = CONFIG, drawing=draw, member=None
) -> tuple[dict[str, torch.Tensor], Timer]:
    member = member or tiny.backbone(CODEC)
    timer = fit(member, drawing, draw_held, config, data_hash="tiny", folder=folder, label="tiny")
    return member.model.state_dict(), timer


def lines(folder: Path) -> list[dict]:
    """The metrics without the clocks."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)[0]


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(whole, tmp_path, steps) -> None:
    folder, wanted = whole
    with pytest.raises(_Stopped):
        train(tmp_path, drawing=stopping_after(steps))
    weights, _ = train(tmp_path)
    assert weights.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(weights[name], wanted[name])] == []
    assert lines(tmp_path) == lines(folder)


def test_an_update_is_the_same_however_it_is_cut(tmp_path) -> None:
    """Up to rounding: the mean is over all reply tokens of the update, not over micro-batches."""
    weights = []
    for index, micro_batch in enumerate((None, 3)):
        config = replace(CONFIG, steps=1, shift_px=0, place_weight=0.0, batch_size=8, micro_batch=micro_batch)
        train(tmp_path / str(index), config=config)
        weights.append([line["grad_norm"] for line in lines(tmp_path / str(index)) if "grad_norm" in line])
    assert weights[1] == pytest.approx(weights[0], rel=1e-4)


def test_activations_made_again_give_the_same_weights(whole, tmp_path) -> None:
    weights, _ = train(tmp_path, config=replace(CONFIG, checkpointing=True))
    assert all(torch.equal(weights[name], value) for name, value in whole[1].items())


def test_a_frozen_vision_encoder_is_left_alone_and_not_in_the_state(tmp_path) -> None:
    before = tiny.backbone(CODEC).vision.state_dict()
    config = replace(CONFIG, steps=1, save_every=1, freeze_vision=True)
    after, _ = train(tmp_path, config=config)
    assert all(torch.equal(after[f"model.vision.{name}"], before[name]) for name in before)
    assert not any("vision" in name for name in load_file(tmp_path / "state" / "weights.safetensors"))


def test_resuming_repeats_no_step_that_was_saved(tmp_path) -> None:
    with pytest.raises(_Stopped):
        train(tmp_path, drawing=stopping_after(5))
    train(tmp_path, drawing=stopping_after(2))
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == list(range(6))


def test_a_finished_run_that_is_called_again_draws_nothing(tmp_path) -> None:
    wanted, _ = train(tmp_path)
    weights, _ = train(tmp_path, drawing=stopping_after(0))
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def test_the_time_of_an_interrupted_run_is_counted(tmp_path) -> None:
    train(tmp_path)
    file = tmp_path / "state" / "state.json"
    record = json.loads(file.read_text())
    record["extra"]["time"] = {"wall_s": 5000.0, "cpu_s": 4000.0}
    file.write_text(json.dumps(record))
    timer = train(tmp_path)[1]
    assert 5000.0 <= timer.wall_s < 5100.0
    assert 4000.0 <= timer.cpu_s < 4100.0


def test_low_rank_additions_are_refused_in_several_processes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Parallel, "__init__", lambda self: setattr(self, "size", 2))
    config = replace(CONFIG, lora=LoraSettings(rank=2))
    with pytest.raises(ConfigError, match="trains in one process so far, found 2; leave out --processes"):
        train(tmp_path, config=config)


def test_a_state_of_another_model_is_refused(tmp_path) -> None:
    train(tmp_path, config=replace(CONFIG, steps=1))
    member = tiny.backbone(CODEC)
    member.model.resize_token_embeddings(len(member.tokenizer) + 8)
    with pytest.raises(BundleError, match=r"embed_tokens.weight in .* has shape"):
        train(tmp_path, member=member)


def test_every_step_and_every_saved_state_has_its_line(whole) -> None:
    found = lines(whole[0])
    assert [line["step"] for line in found if "loss" in line] == [0, 1, 2, 3, 4, 5]
    assert [line["step"] for line in found if "held_loss" in line] == [1, 3, 5]
    assert all({"rate", "grad_norm", "token_accuracy", "place_loss"} <= line.keys() for line in found if "loss" in line)


def test_another_seed_gives_another_run(whole, tmp_path) -> None:
    train(tmp_path, config=replace(CONFIG, seed=1))
    assert lines(tmp_path)[0]["loss"] != lines(whole[0])[0]["loss"]


def test_training_lowers_the_held_out_loss(tmp_path) -> None:
    train(tmp_path, config=replace(CONFIG, steps=24, save_every=12, peak_rate=5e-3))
    first, last = (line["held_loss"] for line in lines(tmp_path) if "held_loss" in line)
    assert last < first


def test_the_model_is_left_ready_to_answer(tmp_path) -> None:
    member = tiny.backbone(CODEC)
    train(tmp_path, config=replace(CONFIG, steps=1), member=member)
    assert not member.model.training


def test_the_held_out_loss_is_the_same_at_every_call_and_changes_no_mode() -> None:
    member = tiny.backbone(CODEC)
    member.model.train()
    first, second = (held_out_loss(member, draw_held, CONFIG, batches=1) for _ in range(2))
    assert first == second
    assert member.model.training


@pytest.mark.parametrize("field", ["steps", "batch_size", "micro_batch", "save_every", "threads"])
def test_a_setting_below_one_is_named(field) -> None:
    with pytest.raises(ConfigError, match=rf"FitConfig\.{field} is 0, expected at least 1"):
        FitConfig(**({"steps": 1} | {field: 0}))


@pytest.mark.parametrize("weights", [{"vqa": -0.1, "action": 1.0}, {"vqa": 0.0}, {}, {"vqa": 1.0, "action": -1.0}])
def test_weights_that_are_no_shares_are_refused(weights) -> None:
    with pytest.raises(ConfigError, match="expected non-negative numbers with a positive sum"):
        draw_kinds(weights, 4, np.random.default_rng(0))


def test_a_kind_without_weight_is_never_drawn() -> None:
    drawn = draw_kinds({"vqa": 0.0, "action": 2.0}, 200, np.random.default_rng(0))
    assert drawn == ["action"] * 200


def test_weights_are_shares_whatever_they_sum_to() -> None:
    drawn = draw_kinds({"vqa": 1, "action": 3}, 4000, np.random.default_rng(0))
    assert drawn.count("action") == pytest.approx(3000, abs=120)


def test_the_order_in_which_weights_are_written_does_not_matter() -> None:
    one, other = ({"vqa": 1.0, "action": 2.0}, {"action": 2.0, "vqa": 1.0})
    assert draw_kinds(one, 50, np.random.default_rng(3)) == draw_kinds(other, 50, np.random.default_rng(3))


def test_no_shift_leaves_the_pictures_alone() -> None:
    pixels = torch.rand((2, 3, 4, 4))
    assert random_shift(pixels, 0, np.random.default_rng(0)) is pixels


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(0, 2**32))
def test_a_shift_is_one_gain_and_one_offset_a_picture_within_its_bounds(amount, seed) -> None:
    pixels = torch.zeros((3, 3, 2, 2))
    pixels[:, :, 1] = 1.0
    shifted = random_shift(pixels, amount, np.random.default_rng(seed))
    offset, gain = shifted[:, :, 0], shifted[:, :, 1] - shifted[:, :, 0]
    for part, middle in ((offset, 0.0), (gain, 1.0)):
        assert (part - part[:, :1, :1]).abs().max() < 1e-6
        assert (part - middle).abs().max() <= amount / 100 + 1e-6


def test_places_that_nobody_named_teach_nothing() -> None:
    readout, tokens = PlaceReadout(8), torch.randn((2, 4, 8), requires_grad=True)
    loss = readout.loss(tokens, torch.full((2, 2, 2), torch.nan))
    loss.backward()
    assert loss.item() == 0.0
    assert tokens.grad.abs().max() == 0.0


def test_only_the_named_place_is_read_from_its_token() -> None:
    readout, tokens = PlaceReadout(8), torch.randn((1, 4, 8), requires_grad=True)
    places = torch.full((1, 2, 2), torch.nan)
    places[0, 1] = torch.tensor([0.4, 0.1])
    readout.loss(tokens, places).backward()
    assert (tokens.grad[0].abs().sum(dim=1) > 0).tolist() == [False, True, False, False]


def test_a_right_guess_of_a_place_costs_nothing() -> None:
    readout = PlaceReadout(8)
    last = readout.readout[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([-1.0, 2.0]))  # decimetres from (0.5, 0)
    places = torch.tensor([[[0.4, 0.2], [0.4, 0.2]]])
    assert readout.loss(torch.randn((1, 2, 8)), places).item() == pytest.approx(0.0, abs=1e-9)
