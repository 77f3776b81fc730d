"""What is written for verl: the reward file gives our rewards, and the prompts hold what it needs."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as parquet
import pytest
import tiny
import tiny_scenes

from roboalign.sdk.errors import ConfigError
from roboalign.trainer import verl
from roboalign.trainer.align_config import AlignConfig
from roboalign.trainer.checkpoint import CheckpointMeta, save_checkpoint
from roboalign.trainer.judge import ActionPrompts, Judge
from roboalign.trainer.rewards import RewardWeights, total_reward
from roboalign.trainer.verl import EMITTED_REWARDS, emit_verl, reward_source

TABLE = tiny_scenes.frames(24)
TABLE.chunks[:, :, :2] += 0.006 * np.random.default_rng(0).standard_normal((24, 4, 2)).astype(np.float32)
CODEC = tiny.codec_of(TABLE)


@pytest.fixture(scope="module")
def member():
    return tiny.backbone(CODEC)


def load(text: str, folder, name: str = "reward"):
    file = folder / f"{name}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def replies(member, count: int) -> list[list[int]]:
    """Returns replies of every quality: well-formed ones, and the same with tokens changed, dropped or doubled."""
    rng = np.random.default_rng(1)
    ids = member.tokenizer.convert_tokens_to_ids
    first, size = ids("<ACTION_0>"), CODEC.vocab_size
    words = member.tokenizer("go north bright", add_special_tokens=False)["input_ids"]
    anything = [*range(4, 60), *words, *(ids(f"<{m}>") for m in ("think", "/think", "answer", "/answer"))]
    found = []
    for number in range(count):
        near = TABLE.chunks[number % 24] + 0.004 * rng.standard_normal(TABLE.chunks[0].shape) * (number % 3)
        span = [first + token for token in CODEC.encode(near)]
        row = [ids("<think>"), *rng.choice(words, 1 + number % 3), ids("</think>"), ids("<answer>")]
        row += [ids("<ACTION_START>"), *span, ids("<ACTION_END>"), ids("</answer>"), member.tokenizer.eos_token_id]
        for _ in range(int(rng.integers(0, 4))):
            place, kind = int(rng.integers(len(row))), int(rng.integers(4))
            new = first + int(rng.integers(size)) if rng.random() < 0.5 else int(rng.choice(anything))
            row[place : place + (kind != 0)] = [] if kind == 1 else [new] if kind != 2 else [row[place]] * 2
        found.append([int(token) for token in row if token not in member.banned_ids])
    return found


@pytest.mark.parametrize("reward", EMITTED_REWARDS)
def test_the_written_file_gives_our_rewards(member, tmp_path, reward) -> None:
    weights = RewardWeights(form=0.4, distance=0.4, prefix=0.2)
    judge = Judge(ActionPrompts(TABLE, member, CODEC), reward, weights=weights, source=TABLE)
    module = load(reward_source(judge.case(0), reward, "<eos>"), tmp_path)
    targets = [[judge.case(row).target, *judge.case(row).others] for row in range(24)]
    truths = [json.dumps({"targets": [verl._target(one, CODEC) for one in some]}) for some in targets]
    end, rewards, unfinished = member.tokenizer.eos_token_id, [], 0
    for number, ids in enumerate(replies(member, 300)):
        row = number % 24
        if end not in ids:
            unfinished += 1
            continue
        text = member.tokenizer.decode(ids, skip_special_tokens=False)
        score = judge.prompts.score(row, ids)
        ours = total_reward(score, reward, judge.case(row))
        theirs = module.compute_score("roboalign", text, truths[row])
        assert theirs["score"] == pytest.approx(ours, abs=1e-4), text  # ours decodes to float32
        assert theirs["format"] == score.is_well_formed
        rewards.append(ours)
    assert unfinished < 60
    assert len({round(value, 3) for value in rewards}) > 5
    assert 0.1 < np.mean([value > 0.5 for value in rewards]) < 0.99


def test_both_ways_of_calling_agree(member, tmp_path) -> None:
    judge = Judge(ActionPrompts(TABLE, member, CODEC), "gate", weights=RewardWeights(), source=TABLE)
    module = load(reward_source(judge.case(0), "gate", "<eos>"), tmp_path)
    truth = verl._row(judge, 0, 0)["answer"]
    span = "".join(f"<ACTION_{i}>" for i in judge.case(0).target.ids)
    text = f"<think>go</think><answer><ACTION_START>{span}<ACTION_END></answer>"
    one = {"response": text, "response_length": 20, "ground_truth": truth}
    assert module.compute_score("roboalign", text, truth) == {"score": 1.0, "format": 1.0, "accuracy": 1.0}
    assert module.compute_score(one) == {"overall": 1.0, "format": 1.0, "accuracy": 1.0}
    assert module.compute_score([one, one]) == [module.compute_score(one)] * 2


def test_the_written_file_needs_nothing_but_the_standard_library(member, tmp_path) -> None:
    judge = Judge(ActionPrompts(TABLE, member, CODEC), "prefix", weights=RewardWeights(), source=TABLE)
    (tmp_path / "reward.py").write_text(reward_source(judge.case(0), "prefix", "<eos>"))
    command = "import reward, sys; assert not {'numpy', 'torch', 'roboalign'} & set(sys.modules)"
    subprocess.run([sys.executable, "-S", "-c", command], cwd=tmp_path, check=True)


def test_the_folder_holds_prompts_reward_and_settings(member, tmp_path, monkeypatch) -> None:
    sft = tmp_path / "sft"
    meta = CheckpointMeta(stage="sft", recipe="tiny")
    save_checkpoint(sft, model=member.model, processor=member.processor, meta=meta, codec=CODEC)
    monkeypatch.setattr(verl, "load_frames", lambda *_args, **_kwargs: TABLE)
    config = AlignConfig(
        data=tmp_path, sft=sft, out=tmp_path / "out", recipe="tiny", steps=4, reward="multi:energy", num_prompts=5
    )
    out = emit_verl(config)
    assert {path.name for path in out.iterdir()} == {"train.parquet", "reward.py", "settings.json"}
    rows = parquet.read_table(out / "train.parquet").to_pylist()
    assert len(rows) == 5
    for row in rows:
        assert row["problem"] == row["prompt"][0]["content"]
        assert row["problem"].count("<image>") == 1
        assert TABLE.truths[row["extra_info"]["frame"]].target in row["problem"]
        assert row["images"][0]["bytes"].startswith(b"\x89PNG")
        assert json.loads(row["reward_model"]["ground_truth"])["targets"][0]["ids"]
    settings = json.loads((out / "settings.json").read_text())
    assert settings["worker"]["rollout"]["n"] == 8
    with pytest.raises(ConfigError, match="exists already"):
        emit_verl(config)


def test_a_reward_that_needs_the_simulator_is_refused(tmp_path) -> None:
    config = AlignConfig(data=tmp_path, sft=tmp_path, out=tmp_path / "out", recipe="tiny", steps=4, reward="success")
    with pytest.raises(ConfigError, match="reward 'success' cannot be written for verl, expected one of prefix"):
        emit_verl(config)
