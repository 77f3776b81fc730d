"""What the action head is trained on: the three kinds of thought, and that the runtime feeds the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import Observation
from roboalign.trainer import features as module
from roboalign.trainer.backend import TorchBackend
from roboalign.trainer.checkpoint import CheckpointMeta, save_checkpoint
from roboalign.trainer.features import KINDS, Features, FeatureSettings, cache_features, compute_features, stale_rows
from roboalign.trainer.flow import FlowHead, FlowHeadConfig
from roboalign.trainer.thinking import greedy_thoughts

TABLE = tiny.frames(12)
CODEC = tiny.codec_of(TABLE)
SETTINGS = FeatureSettings(layer=1, budget=6, max_age=3)
FRESH, STALE, ABSENT = range(3)


@pytest.fixture(scope="module")
def member():
    made = tiny.backbone(CODEC)
    tiny.teach(made, TABLE, CODEC, steps=30)
    return made


@pytest.fixture(scope="module")
def features(member) -> Features:
    return compute_features(member, TABLE, SETTINGS)


def hidden(found: Features, kind: int, row: int) -> torch.Tensor:
    values, mask = found.batch(np.array([row]), np.array([kind]))
    return values[0][mask[0]]


def whole_pass(member, row: int, *, pace: str, thought_of: int | None) -> torch.Tensor:
    """The same hidden states from one pass over the whole sequence, without a cache."""

    def prompts(i: int, pace: str):
        return member.encode_prompts(
            [TABLE.truths[i].instruction], TABLE.states[i : i + 1], [TABLE.images[i]], pace=pace, task="act"
        )

    inputs = prompts(row, pace)
    if thought_of is not None:
        inputs = inputs.extend(*greedy_thoughts(member, prompts(thought_of, "slow"), budget=SETTINGS.budget))
    return member.hidden_after(inputs, SETTINGS.layer)[0]


@pytest.mark.parametrize("row", [0, 5, 11])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_features_are_those_of_one_pass_over_the_sequence(member, features, kind, row) -> None:
    thought_of = {"fresh": row, "stale": int(stale_rows(TABLE.episodes, max_age=3)[row]), "absent": None}[kind]
    wanted = whole_pass(member, row, pace="quick" if kind == "absent" else "slow", thought_of=thought_of)
    torch.testing.assert_close(hidden(features, KINDS.index(kind), row), wanted, atol=2e-3, rtol=1e-2)


def test_frames_in_other_batches_have_the_same_features(member, features) -> None:
    found = compute_features(member, TABLE, SETTINGS, batch_size=5)
    assert torch.equal(found.lengths, features.lengths)
    for kind in range(len(KINDS)):
        torch.testing.assert_close(hidden(found, kind, 7), hidden(features, kind, 7), atol=2e-3, rtol=1e-2)


def test_prompts_that_share_no_prefix_are_read_in_full(member, features, monkeypatch) -> None:
    """So it is where the paces are sentences of different length."""
    monkeypatch.setattr(module._Reading, "_num_shared", lambda *_: 0)
    found = compute_features(member, TABLE, SETTINGS, kinds=("absent",))
    torch.testing.assert_close(hidden(found, ABSENT, 3), hidden(features, ABSENT, 3), atol=2e-3, rtol=1e-2)


def test_a_batch_of_mixed_kinds_is_as_long_as_its_longest(features) -> None:
    values, mask = features.batch(np.array([0, 1, 2]), np.array([FRESH, STALE, ABSENT]))
    lengths = [len(hidden(features, kind, row)) for row, kind in enumerate((FRESH, STALE, ABSENT))]
    assert mask.sum(dim=1).tolist() == lengths
    assert values.shape[1] == max(lengths)
    assert torch.equal(values[2][mask[2]], hidden(features, ABSENT, 2))


def test_a_stale_thought_is_of_an_earlier_frame_of_the_same_episode() -> None:
    episodes = np.repeat([3, 4, 7], [50, 1, 40])
    rows = stale_rows(episodes, max_age=4)
    ages = np.arange(len(rows)) - rows
    assert (episodes[rows] == episodes).all()
    assert set(ages) == {0, 1, 2, 3, 4}
    assert np.flatnonzero(ages == 0).tolist() == [0, 50, 51]  # the first frames have no earlier one


def test_stored_features_are_read_and_not_thought_again(member, features, tmp_path, monkeypatch) -> None:
    stored = cache_features(tmp_path, member, TABLE, SETTINGS, kinds=KINDS, content={"backbone": "a"})
    monkeypatch.setattr(module, "compute_features", lambda *_, **__: pytest.fail("thought again"))
    again = cache_features(tmp_path, member, TABLE, SETTINGS, kinds=KINDS, content={"backbone": "a"})
    assert torch.equal(again.tokens, stored.tokens)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [pytest.approx(stored.num_bytes, abs=400)]


@pytest.mark.parametrize(
    "change", [{"content": {"backbone": "b"}}, {"kinds": ("fresh",)}, {"settings": replace(SETTINGS, layer=2)}]
)
def test_features_of_something_else_are_another_file(member, tmp_path, change) -> None:
    asked = {"kinds": KINDS, "content": {"backbone": "a"}, "settings": SETTINGS}
    for values in (asked, {**asked, **change}):
        cache_features(tmp_path, member, TABLE.take(np.arange(4)), **values)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_file_is_named(member, tmp_path) -> None:
    cache_features(tmp_path, member, TABLE, SETTINGS, kinds=("absent",), content={})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigError, match=f"{file.name} are damaged .* delete the file"):
        cache_features(tmp_path, member, TABLE, SETTINGS, kinds=("absent",), content={})


def test_features_that_will_not_fit_are_refused_after_the_first_batch(member) -> None:
    with pytest.raises(ConfigError, match=r"features of 12 frames will take .* GiB, expected at most 1e-05; read"):
        compute_features(member, TABLE, SETTINGS, batch_size=4, max_gib=1e-5)


def observation(row: int) -> Observation:
    return Observation(
        images={"front": TABLE.images[row]},
        state=TABLE.states[row],
        joint_pos_rad=np.zeros(7, np.float32),
        instruction=TABLE.truths[row].instruction,
        time_s=0.0,
    )


def _policy_folder(member, head: FlowHead, tmp_path: Path) -> Path:
    meta = CheckpointMeta(stage="head", recipe="tiny", notes={"thought_budget": SETTINGS.budget})
    save_checkpoint(
        tmp_path / "head", model=member.model, processor=member.processor, meta=meta, codec=CODEC, head=head
    )
    return tmp_path / "head"


@pytest.mark.parametrize("kind", [FRESH, STALE, ABSENT])
@torch.no_grad()
def test_the_runtime_feeds_the_head_what_it_was_trained_on(member, features, tmp_path, kind) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": member.hidden_size, "layer": 1, "horizon": 4, "width": 16, "num_layers": 1}
    ends = {"action_low": (-1.0,) * 5, "action_high": (1.0,) * 5, "state_mean": (0.0,) * 5, "state_std": (1.0,) * 5}
    head = FlowHead(FlowHeadConfig(**sizes, **ends)).eval()
    for parameter in head.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    folder = _policy_folder(member, head, tmp_path)
    older = observation(int(stale_rows(TABLE.episodes, max_age=3)[5])) if kind == STALE else None
    with Policy(TorchBackend.open(folder), think=kind != ABSENT) as policy:
        found = policy.act(observation(5), thought_about=older).actions
    noise = torch.from_numpy(np.random.default_rng((0, 0)).standard_normal((1, 4, 5), dtype=np.float32))

    def sampled(kind: int) -> np.ndarray:
        values, mask = features.batch(np.array([5]), np.array([kind]))
        return head.sample(values, mask, torch.from_numpy(TABLE.states[5:6]), noise)[0].numpy()

    np.testing.assert_allclose(found, sampled(kind), atol=2e-3)
    others = [sampled(other) for other in range(len(KINDS)) if other != kind]
    assert min(np.abs(found - other).max() for other in others) > 1e-2
