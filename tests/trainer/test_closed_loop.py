from functools import partial
from types import SimpleNamespace

import pytest
import tiny
import torch

from roboalign.sdk.data.collect import SEED_STRIDE
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.seeds import is_eval_seed, train_seed
from roboalign.trainer import closed_loop
from roboalign.trainer.checkpoint import CheckpointMeta, save_checkpoint
from roboalign.trainer.closed_loop import FIRST_SEED, token_rollouts

CODEC = tiny.codec_of(tiny.frames(8))


@pytest.fixture(scope="module")
def member():
    return tiny.backbone(CODEC)


@pytest.fixture(scope="module")
def folder(member, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "sft"
    meta = CheckpointMeta(stage="sft", recipe="tiny")
    save_checkpoint(path, model=member.model, processor=member.processor, meta=meta, codec=CODEC)
    return path


@pytest.fixture(autouse=True)
def _short_episodes(monkeypatch):
    monkeypatch.setattr(closed_loop, "SimEnv", partial(SimEnv, max_steps=8))


def test_rollouts_give_shares_and_leave_the_weights_alone(member, folder) -> None:
    before = {name: value.clone() for name, value in member.model.state_dict().items()}
    found = token_rollouts(folder, episodes=1, families=("push",))(member, CODEC)
    assert found["episodes"] == 1.0
    assert 0.0 <= found["success"] <= found["progress"] <= 1.0
    assert all(torch.equal(value, before[name]) for name, value in member.model.state_dict().items())
    assert not member.model.training


def test_the_scenes_are_the_same_at_every_call_and_the_families_take_turns(member, folder, monkeypatch) -> None:
    played = []

    def play(env, policy, *, seed, task, replan_every):
        played.append((seed, task, replan_every))
        return SimpleNamespace(success=task == "push", progress=0.5)

    monkeypatch.setattr(closed_loop, "run_episode", play)
    rollouts = token_rollouts(folder, episodes=2, replan_every=3)
    found = [rollouts(member, CODEC) for _ in range(2)]
    assert found == [{"success": 0.5, "progress": 0.5, "episodes": 2.0}] * 2
    assert played == [(train_seed(FIRST_SEED), "place", 3), (train_seed(FIRST_SEED + 1), "push", 3)] * 2


def test_the_model_acts_by_action_tokens_after_a_thought(member, folder, monkeypatch) -> None:
    """Pictures are made in the size that the model takes; it once got the simulator's own and raised."""
    results = []
    original = closed_loop.run_episode
    monkeypatch.setattr(closed_loop, "run_episode", lambda *a, **k: results.append(original(*a, **k)) or results[-1])
    token_rollouts(folder, episodes=1, families=("push",))(member, CODEC)
    assert results[0].sources == {"fast": 2}
    assert len(results[0].thoughts) == 2


def test_the_scenes_are_those_that_only_seed_99_collects() -> None:
    assert FIRST_SEED == 99 * SEED_STRIDE
    assert not is_eval_seed(FIRST_SEED + SEED_STRIDE - 1)


def test_no_episodes_are_refused(folder) -> None:
    with pytest.raises(ConfigError, match="episodes are 0, expected at least 1"):
        token_rollouts(folder, episodes=0)
