import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from roboalign.sdk.errors import BackendError, BundleError, CheckFailed, ConfigError
from roboalign.trainer import align as stage
from roboalign.trainer.align import AlignConfig, align
from roboalign.trainer.checkpoint import CheckpointMeta, load_checkpoint, partial_dir, save_checkpoint
from roboalign.trainer.grpo import AlignTrainer
from roboalign.trainer.lora import ADAPTER_FILES, LoraSettings
from roboalign.trainer.measure import Measurement, ReplyMeasure, collapse, destruction, what_is_missing
from roboalign.trainer.rewards import REWARDS, RewardRule
from roboalign.trainer.run import read_status
from roboalign.trainer.watch import AlignWatch

TABLE = tiny.frames(48)
CODEC = tiny.codec_of(TABLE)


def _save(folder: Path, *, steps: int) -> Path:
    member = tiny.backbone(CODEC)
    tiny.teach(member, TABLE, CODEC, steps=steps)
    meta = CheckpointMeta(stage="sft", recipe="tiny", notes={"pairing": "paired"})
    save_checkpoint(folder, model=member.model, processor=member.processor, meta=meta, codec=CODEC)
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("taught") / "sft", steps=70)


@pytest.fixture(autouse=True)
def _table(monkeypatch):
    monkeypatch.setattr(stage, "load_frames", lambda *_args, **_kwargs: TABLE)


def _config(sft: Path, out: Path, **changes) -> AlignConfig:
    settings = {
        "data": Path("tiny"),
        "sft": sft,
        "out": out,
        "recipe": "tiny",
        "steps": 4,
        "prompts_per_rollout": 4,
        "samples_per_prompt": 4,
        "micro_batch": 8,
        "max_tokens": 32,
        "watch_every": 2,
        "watch_prompts": 8,
        "watch_samples": 2,
        "save_every": 2,
        "held_share": 0.2,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "dtype": "fp32",
        "min_first_token": 0.0,
        "min_informative": 0.0,
        "stop_error_ratio": 100.0,
        "stop_decodable_drop": 1.0,
        "stop_variety": 0.0,
        "keep_variety": 0.0,
        "keep": "last",
    }
    return AlignConfig(**(settings | changes))


def _lines(out: Path, key: str) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


@pytest.mark.parametrize("reward", ["soft", "prefix"])
def test_a_run_ends_in_a_checkpoint_and_its_numbers(taught, tmp_path, reward, capfd) -> None:
    out = align(_config(taught, tmp_path / "align", reward=reward))
    found = load_checkpoint(out, expect_stage="align")
    assert found.meta.parent_sha256 == load_checkpoint(taught).sha256
    assert found.meta.metrics["last_step"] == 4
    assert found.meta.notes["reward"] == reward
    updates = _lines(out, "reward")
    assert [line["step"] for line in updates] == [1, 2, 3, 4]
    logged = {"kl", "entropy", "clip_low", "zero_variance", "well_formed", "decodable", "distinct", "thought_tokens"}
    speeds = {"rollout_tokens_s", "update_tokens_s"}
    assert all(logged | speeds | {"grad_norm"} <= line.keys() for line in updates)
    assert all(line[name] > 0 for line in updates for name in speeds)
    assert [line["step"] for line in _lines(out, "held")] == [0, 2, 4]
    assert not partial_dir(out).exists()
    assert capfd.readouterr().out == ""


def test_credit_by_token_trains_and_differs_from_credit_by_reply(taught, tmp_path) -> None:
    by_token, by_reply = (
        load_file(align(_config(taught, tmp_path / credit, reward="energy", credit=credit)) / "model.safetensors")
        for credit in ("token", "reply")
    )
    assert any(not torch.equal(by_token[name], by_reply[name]) for name in by_reply)


def test_the_weights_change(taught, tmp_path) -> None:
    out = align(_config(taught, tmp_path / "align"))
    before, after = (load_file(folder / "model.safetensors") for folder in (taught, out))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("reward", ["soft", "prefix"])
def test_the_ratio_is_one_before_the_first_update(taught, tmp_path, reward, monkeypatch) -> None:
    """Old, new and reference log-probabilities and those of sampling come from the same mask."""
    seen = []
    original = AlignTrainer._compute_loss

    def look(self, model, inputs):
        loss = original(self, model, inputs)
        if self.state.global_step == 0:
            seen.append((self._log_probs.detach(), inputs))
        return loss

    monkeypatch.setattr(AlignTrainer, "_compute_loss", look)
    align(_config(taught, tmp_path / "align", reward=reward, steps=2, updates_per_rollout=2, micro_batch=4))
    assert len(seen) == 2
    for new, inputs in seen:
        mask = inputs["completion_mask"].bool()
        assert int(mask.sum()) > 20
        for name in ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"):
            assert (new - inputs[name])[mask].abs().max() < 1e-5, name


def test_the_sampling_gap_stays_small_after_updates(taught, tmp_path) -> None:
    out = align(_config(taught, tmp_path / "align"))
    assert all(line["sampling_gap"] < 1e-4 for line in _lines(out, "reward"))


class _Interrupted(Exception):
    pass


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["all", "lora"])
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(taught, tmp_path, monkeypatch, lora) -> None:
    whole = align(_config(taught, tmp_path / "whole", steps=6, lora=lora))

    original = AlignTrainer._generate_and_score_completions

    def fail(self, inputs):
        if self.state.global_step == 3:
            raise _Interrupted
        return original(self, inputs)

    config = _config(taught, tmp_path / "parts", steps=6, lora=lora)
    with monkeypatch.context() as patch:
        patch.setattr(AlignTrainer, "_generate_and_score_completions", fail)
        with pytest.raises(_Interrupted):
            align(config)
    assert not config.out.exists()
    saved = load_file(partial_dir(config.out) / "state" / "model.safetensors")
    restored = {}

    def look(self, inputs):
        if not restored:
            restored.update({name: value.clone() for name, value in self.model.state_dict().items()})
        return original(self, inputs)

    monkeypatch.setattr(AlignTrainer, "_generate_and_score_completions", look)
    parts = align(config)
    for name, tensor in saved.items():
        assert torch.equal(restored[name], tensor), name
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-6, rtol=1e-5)
    assert [line["step"] for line in _lines(parts, "reward")] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in _lines(parts, "held")] == [0, 2, 4, 6]


def test_a_run_interrupted_before_its_result_was_written_only_writes_it(taught, tmp_path, monkeypatch) -> None:
    config = _config(taught, tmp_path / "align", keep="best")

    def fail(*_args, **_kwargs):
        raise _Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(stage, "save_checkpoint", fail)
        with pytest.raises(_Interrupted):
            align(config)
    out = align(config)
    assert load_checkpoint(out).meta.metrics["last_step"] == 4
    assert [line["step"] for line in _lines(out, "reward")] == [1, 2, 3, 4]


def test_a_kill_right_after_a_state_was_saved_loses_no_line(taught, tmp_path, monkeypatch) -> None:
    """The state was once saved before the numbers of its step were written, and nobody wrote them afterwards."""
    config = _config(taught, tmp_path / "align")
    original = AlignTrainer.save_state

    def save(self, folder, extra):
        original(self, folder, extra)
        raise _Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(AlignTrainer, "save_state", save)
        with pytest.raises(_Interrupted):
            align(config)
    assert [line["step"] for line in _lines(align(config), "reward")] == [1, 2, 3, 4]


def test_nothing_in_a_saved_state_is_a_pickle(taught, tmp_path, monkeypatch) -> None:
    names = set()
    original = AlignTrainer.save_state

    def look(self, folder, extra):
        original(self, folder, extra)
        names.update(path.name for path in folder.iterdir())

    monkeypatch.setattr(AlignTrainer, "save_state", look)
    align(_config(taught, tmp_path / "align"))
    assert names
    assert all(name.endswith((".safetensors", ".json")) for name in names)


def test_nothing_to_explore_is_refused_with_the_numbers(tmp_path) -> None:
    sft = _save(tmp_path / "untaught", steps=0)
    config = _config(sft, tmp_path / "align", min_first_token=0.1, reward="prefix")
    with pytest.raises(
        CheckFailed, match=r"first action token is right in 0\.0% of greedy replies \(needs 10%\)"
    ) as caught:
        align(config)
    assert "0.0% of the samples are well-formed" in str(caught.value)
    assert not config.out.exists()
    status = read_status(partial_dir(config.out))
    assert (status.state, status.reason) == ("refused", str(caught.value))


def test_force_goes_on_and_says_so(tmp_path, capfd) -> None:
    sft = _save(tmp_path / "untaught", steps=0)
    out = align(_config(sft, tmp_path / "align", min_first_token=0.1, reward="prefix", force=True, steps=2))
    assert load_checkpoint(out).meta.notes["force"] is True
    assert "going on because of force" in capfd.readouterr().err


def test_a_destructive_run_is_stopped_and_the_best_weights_are_kept(taught, tmp_path, capfd) -> None:
    config = _config(
        taught,
        tmp_path / "align",
        reward="prefix",
        learning_rate=0.02,
        beta=0.0,
        steps=8,
        keep="best",
        stop_error_ratio=1.2,
        stop_decodable_drop=0.2,
    )
    out = align(config)
    metrics = load_checkpoint(out).meta.metrics
    assert metrics["last_step"] < 8
    assert "stopped at step" in metrics["stopped"]
    assert metrics["kept"]["error"] <= metrics["start"]["error"]
    assert "stopped at step" in capfd.readouterr().err
    if metrics["kept_step"] == 0:
        before, after = (load_file(folder / "model.safetensors") for folder in (taught, out))
        assert all(torch.equal(before[name], after[name]) for name in before)


def _stand_still(member) -> None:
    """Makes one chunk the answer to everything: the embedding of one word becomes that of every picture."""
    with torch.no_grad():
        member.model.model.vision.slot.zero_()
        for parameter in member.model.model.vision.point.parameters():
            parameter.zero_()
        for parameter in member.model.model.vision.cell.parameters():
            parameter.zero_()


def test_a_collapsed_policy_loses_against_its_start_and_stops_the_run(taught, tmp_path, monkeypatch, capfd) -> None:
    """A smaller error does not help it: every measurement after the start is made to look twice as good."""
    original = AlignWatch.measure

    def measure(self):
        if self.step == 0:
            return original(self)
        _stand_still(self.trainer._backbone)
        now = original(self)
        halved = self.start.error / 2
        return replace(now, greedy=replace(now.greedy, error=halved), sampled=replace(now.sampled, error=halved))

    monkeypatch.setattr(AlignWatch, "measure", measure)
    config = _config(taught, tmp_path / "align", keep="best", keep_variety=0.8, stop_variety=0.7)
    metrics = load_checkpoint(align(config)).meta.metrics
    assert (metrics["kept_step"], metrics["last_step"]) == (0, 2)
    assert metrics["start"]["greedy"]["distinct"] > 0.2
    assert "greedy chunks are different ones" in metrics["stopped"]
    assert "step 2 cannot be the best" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda score, case: float("nan"), "gave nan, expected one number from 0 to 1"),
        (lambda score, case: None, "gave None"),
        (lambda score, case: [0.5, 0.5], r"gave \[0.5, 0.5\]"),
        (lambda score, case: 1.5, "gave 1.5"),
        (lambda score, case: {}["grip"], "raised KeyError: 'grip'"),
    ],
)
def test_a_bad_reward_stops_the_run_and_the_folder_says_why(taught, tmp_path, monkeypatch, answer, words) -> None:
    def late(score, case):
        late.calls += 1
        return answer(score, case) if late.calls > 40 else 0.5

    late.calls = 0
    monkeypatch.setitem(REWARDS, "bad", RewardRule(name="bad", function=late, is_constrained=True))
    config = _config(taught, tmp_path / "align", reward="bad")
    with pytest.raises(ConfigError, match=rf"reward 'bad', reply \d+ \(frame \d+\): {words}") as caught:
        align(config)
    assert "\n" not in str(caught.value)
    assert read_status(partial_dir(config.out)).reason == str(caught.value)


def test_transformers_can_sample_instead_of_us(taught, tmp_path) -> None:
    """Free of the length constraint, and without the tokens that must not be sampled: a finite loss says so."""
    out = align(_config(taught, tmp_path / "align", rollout="trl", steps=2))
    assert all({"rollout_tokens_s", "update_tokens_s"} <= line.keys() for line in _lines(out, "reward"))
    assert all(np.isfinite(line["loss"]) and np.isfinite(line["kl"]) for line in _lines(out, "reward"))


def test_vllm_is_refused_where_it_is_not_installed(taught, tmp_path) -> None:
    assert find_spec("vllm") is None
    with pytest.raises(BackendError, match=r"not installed: pip install 'trl\[vllm\]'"):
        align(_config(taught, tmp_path / "align", rollout="vllm"))


def test_several_updates_a_rollout_learn_from_the_same_replies(taught, tmp_path) -> None:
    out = align(_config(taught, tmp_path / "align", updates_per_rollout=2, micro_batch=4, steps=4))
    lines = _lines(out, "loss")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert ["rollout_tokens_s" in line for line in lines] == [True, False, True, False]
    assert all(line["update_tokens_s"] > 0 for line in lines)


def test_closed_loop_numbers_are_kept_with_every_measurement(taught, tmp_path) -> None:
    calls = []

    def closed_loop(member, codec):
        assert not member.model.training
        calls.append(codec.vocab_size)
        return {"success": 0.25}

    out = align(_config(taught, tmp_path / "align"), closed_loop=closed_loop)
    assert len(calls) == 3
    assert all(line["held"]["closed_loop"] == {"success": 0.25} for line in _lines(out, "held"))


def test_a_frozen_vision_encoder_stays_as_it_is(taught, tmp_path) -> None:
    out = align(_config(taught, tmp_path / "align", freeze_vision=True, steps=2))
    before, after = (load_file(folder / "model.safetensors") for folder in (taught, out))
    vision = [name for name in before if ".vision." in name]
    assert vision
    assert all(torch.equal(before[name], after[name]) for name in vision)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_low_rank_additions_change_the_decoders_layers_alone_and_are_merged(taught, tmp_path, keep) -> None:
    rank = 2
    out = align(_config(taught, tmp_path / "align", lora=LoraSettings(rank=rank), keep=keep, learning_rate=1e-2))
    before, after = (load_file(folder / "model.safetensors") for folder in (taught, out))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {name for name in before if name.endswith("_proj.weight") and ".vision." not in name}
    kept = load_checkpoint(out, expect_stage="align").meta
    if keep == "best" and kept.metrics["kept_step"] == 0:
        assert not changed
    else:
        assert changed == layers
        for name in layers:
            assert torch.linalg.matrix_rank((after[name] - before[name]).double(), atol=1e-6) <= rank, name
    assert {f"adapter/{name}" for name in ADAPTER_FILES} <= set(kept.files)
    assert kept.notes["lora"]["rank"] == rank


def test_learning_goes_up_the_soft_reward(taught, tmp_path) -> None:
    """Not evidence about robots: only that the gradient points the right way."""
    config = _config(taught, tmp_path / "align", steps=20, watch_every=20, save_every=20, samples_per_prompt=8)
    out = align(replace(config, learning_rate=3e-3, beta=0.0, micro_batch=32))
    rewards = [line["reward"] for line in _lines(out, "reward")]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05


def test_another_stage_is_refused(taught, tmp_path) -> None:
    out = align(_config(taught, tmp_path / "align", steps=2))
    with pytest.raises(BundleError, match="expected sft"):
        align(_config(out, tmp_path / "again"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "pixels"}, "prefix, gate, soft"),
        ({"keep": "first"}, "best, last"),
        ({"samples_per_prompt": 1}, "at least 2"),
        ({"micro_batch": 5}, "not a multiple"),
        ({"steps": 0}, "at least 1"),
        ({"credit": "token", "reward": "prefix"}, "does not say what a token earned"),
        ({"constraint": "maybe"}, "auto, on, off"),
        ({"rollout": "trl", "constraint": "on"}, "choose rollout own"),
        ({"updates_per_rollout": 2, "micro_batch": 8, "steps": 3}, "multiple of updates_per_rollout"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        _config(Path("sft"), Path("out"), **changes)


GOOD = ReplyMeasure(
    reward=0.6,
    error=0.1,
    decodable=1.0,
    well_formed=0.9,
    prefix=0.3,
    first_token=0.5,
    tokens=20.0,
    thought_tokens=8.0,
    distinct=0.9,
    motion_m=0.014,
)
START = Measurement(greedy=GOOD, sampled=GOOD, informative=0.9, demonstrated_distinct=1.0, demonstrated_motion_m=0.012)
GATE = {"min_first_token": 0.1, "min_informative": 0.5, "min_well_formed": 0.05}
LIMITS = {"error_ratio": 1.5, "error_slack": 0.0, "decodable_drop": 0.15}


def test_a_good_start_passes_the_gate() -> None:
    assert what_is_missing(START, **GATE) == []


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (replace(START, greedy=replace(GOOD, first_token=0.05)), "first action token"),
        (replace(START, informative=0.4), "differ in reward for 40.0%"),
        (replace(START, sampled=replace(GOOD, well_formed=0.01)), "1.0% of the samples are well-formed"),
    ],
)
def test_each_gate_names_its_number(start, words) -> None:
    (sentence,) = what_is_missing(start, **GATE)
    assert words in sentence


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (START, None),
        (replace(START, greedy=replace(GOOD, error=0.14)), None),
        (replace(START, greedy=replace(GOOD, error=0.16)), "greedy error went from 0.100 to 0.160"),
        (replace(START, greedy=replace(GOOD, decodable=0.8)), "decodable greedy replies"),
        (replace(START, sampled=replace(GOOD, decodable=0.8)), "decodable samples"),
    ],
)
def test_destruction_is_seen_and_noise_is_not(now, words) -> None:
    reason = destruction(START, now, **LIMITS)
    assert (reason is None) if words is None else (words in reason)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"distinct": 0.73}, None),
        ({"distinct": 0.71}, "71.0% of the greedy chunks are different ones (start 90.0%, limit 72.0%)"),
        ({"motion_m": 0.0097}, None),
        ({"motion_m": 0.0095}, "move 9.5 mm a step (start 14.0 mm, limit 9.6 mm)"),
    ],
)
def test_a_collapse_is_measured_against_the_start_or_the_demonstrations(changes, words) -> None:
    """The demonstrations move 12 mm a step: a policy that moved 14 may fall to 12, and its limit is .8 of that."""
    reason = collapse(START, replace(START, greedy=replace(GOOD, **changes)), limit=0.8)
    assert (reason is None) if words is None else (words in reason)


def test_the_shipped_models_collapse_would_be_seen() -> None:
    """sdk/models/README.md: the error fell to .343, 59 of 60 different chunks became 16, and 14 mm a step 5 mm."""
    before = replace(START, greedy=replace(GOOD, error=0.462, distinct=59 / 60, motion_m=0.014))
    after = replace(START, greedy=replace(GOOD, error=0.343, distinct=16 / 60, motion_m=0.005))
    assert after.error < before.error
    assert destruction(before, after, **LIMITS) is None
    assert collapse(before, after, limit=0.5) is not None


def test_a_measurement_survives_json() -> None:
    assert Measurement.from_json(json.loads(json.dumps(START.to_json()))) == START
