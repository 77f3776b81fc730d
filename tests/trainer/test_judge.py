import pytest
import tiny
import tiny_scenes

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.judge import ActionPrompts, Judge
from roboalign.trainer.rewards import RewardWeights

TABLE = tiny_scenes.frames(24)
CODEC = tiny.codec_of(TABLE)
WEIGHTS = RewardWeights()


@pytest.fixture(scope="module")
def prompts():
    return ActionPrompts(TABLE, tiny.backbone(CODEC), CODEC)


def reply(prompts, row: int) -> list[int]:
    span = "".join(f"<ACTION_{i}>" for i in prompts.target(row).ids)
    text = f"<think>go</think><answer><ACTION_START>{span}<ACTION_END></answer><eos>"
    return prompts.backbone.tokenizer(text, add_special_tokens=False)["input_ids"]


class FakePool:
    """Stands for the simulators; remembers what it was asked."""

    def outcomes(self, keys, rollouts, horizon):
        self.asked = list(keys), [rollout.truth for rollout in rollouts], horizon
        return [0.0 if rollout.actions is None else 0.25 for rollout in rollouts]


def test_a_simulated_reward_asks_the_pool_for_every_reply(prompts) -> None:
    pool = FakePool()
    judge = Judge(prompts, "success", weights=WEIGHTS, source=TABLE, pool=pool)
    verdict = judge.judge([3, 5], [reply(prompts, 3), [7]])
    assert verdict.rewards == [0.625, 0.0]
    assert pool.asked == ([3, 5], [TABLE.truths[3], TABLE.truths[5]], 4)


def test_a_simulated_reward_without_simulators_is_refused(prompts) -> None:
    with pytest.raises(ConfigError, match="needs a pool of simulators"):
        Judge(prompts, "success", weights=WEIGHTS, source=TABLE)


def test_other_demonstrations_come_from_the_training_frames(prompts, monkeypatch) -> None:
    monkeypatch.setattr("roboalign.trainer.judge.find_neighbours", lambda table, source: [(1,)] * len(table))
    judge = Judge(prompts, "multi:prefix", weights=WEIGHTS, source=TABLE)
    assert judge.judge([0, 0], [reply(prompts, 1), reply(prompts, 2)]).rewards == [1.0, 0.5]


def test_a_judge_reads_the_thought_in_words(prompts) -> None:
    judge = Judge(prompts, "language", weights=WEIGHTS, source=TABLE)
    assert judge.judge([0], [reply(prompts, 0)]).rewards == [0.5]
    assert judge.case(0).words(prompts.backbone.tokenizer("go north")["input_ids"]).split() == ["go", "north"]
