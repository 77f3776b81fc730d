"""Golden values and bounds of every reward, and the paper's against an independent reference."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_scenes
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.sdk.data.language import next_words, thought
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.reply import ReplyTokens, write_reply_ids
from roboalign.sdk.sim.camera import front_camera
from roboalign.trainer.rewards import (
    REWARDS,
    Demonstration,
    EnergyScale,
    RewardCase,
    RewardRule,
    common_prefix_share,
    find_neighbours,
    find_reward,
    register_reward,
    reward_names,
    score_reply,
    total_reward,
)
from roboalign.trainer.rewards.library import energy_shares
from roboalign.trainer.rewards.picture import path_share, project
from roboalign.trainer.rewards.thoughts import thought_share

TABLE = tiny_scenes.frames(24)
TABLE.chunks[:, :, :2] += 0.006 * np.random.default_rng(0).standard_normal((24, 4, 2)).astype(np.float32)
CODEC = tiny.codec_of(TABLE)
FMT = PromptFormat()
TOKENS = ReplyTokens(
    think_open=1,
    think_close=2,
    answer_open=3,
    answer_close=4,
    action_start=5,
    action_end=6,
    first_action=10,
    num_action=CODEC.vocab_size,
    eos=0,
)
WORDS = (7, 8, 9)
ENERGY = EnergyScale.fit(CODEC, TABLE.chunks)


def case(row: int = 0, *, said: str = "", others: tuple[int, ...] = ()) -> RewardCase:
    return RewardCase(
        codec=CODEC,
        target=Demonstration.of(TABLE.chunks[row], CODEC),
        others=tuple(Demonstration.of(TABLE.chunks[other], CODEC) for other in others),
        energy=ENERGY,
        truth=TABLE.truths[row],
        state=TABLE.states[row],
        fmt=FMT,
        words=lambda ids: said,
    )


def earn(reward: str, judged: RewardCase, actions: tuple[int, ...] | None = None, *, thinks: bool = True) -> float:
    ids = write_reply_ids(WORDS if thinks else None, TOKENS, action_ids=actions or judged.target.ids)
    score = score_reply(ids, judged.target.ids, judged.target.actions, codec=CODEC, tokens=TOKENS)
    return total_reward(replace(score, outcome=0.5), reward, judged)


def reference(generated: list[int], target: list[int]) -> float | None:
    """The paper's r_a, written another way: None where the paper does not define it."""
    if not target or not generated or generated[0] != target[0]:
        return None
    agree = [a == b for a, b in zip(generated, target, strict=False)]
    return (agree.index(False) if False in agree else len(agree)) / len(target)


def test_prefix_equals_an_independent_reference_on_100000_pairs() -> None:
    """With the undefined cases: an empty target is refused, a first mismatch and an empty reply are 0."""
    draw = random.Random(0)
    seen = {"empty target": 0, "undefined": 0, "overlong": 0, "partial": 0, "whole": 0}
    for _ in range(100_000):
        target = draw.choices(range(4), k=draw.randrange(9))
        generated = target[: draw.randrange(9)] + draw.choices(range(4), k=draw.randrange(5))
        if draw.random() < 0.2 and generated:
            generated[0] = draw.randrange(4)
        wanted = reference(generated, target)
        if not target:
            seen["empty target"] += 1
            continue
        assert common_prefix_share(generated, target) == (wanted or 0.0)
        seen["undefined"] += wanted is None
        seen["overlong"] += len(generated) > len(target)
        seen["partial"] += 0 < (wanted or 0.0) < 1
        seen["whole"] += wanted == 1.0
    assert min(seen.values()) > 1000, seen
    with pytest.raises(DataError, match="no action tokens"):
        common_prefix_share([1], [])


@pytest.mark.parametrize("reward", [name for name in reward_names() if name not in ("language", "success")])
def test_the_demonstrated_reply_earns_everything(reward) -> None:
    judged = case(others=(5,))
    exact = tuple(CODEC.encode(CODEC.decode(judged.target.ids).actions))
    wanted = 1.0
    if reward.endswith("soft"):
        error = score_reply((), judged.target.ids, judged.target.actions, codec=CODEC, tokens=TOKENS).error
        assert math.isinf(error)
        wanted = pytest.approx(1.0, abs=0.06)  # what the codec rounds off
    elif reward.endswith("visual"):
        wanted = pytest.approx(1.0, abs=0.06)
    assert earn(reward, judged, exact) == wanted


@pytest.mark.parametrize("reward", [name for name in reward_names() if name != "language"])
def test_a_missing_thought_costs_half(reward) -> None:
    judged = case(others=(5,))
    assert earn(reward, judged, thinks=False) == pytest.approx(earn(reward, judged) - 0.5)


def test_gate_pays_no_prefix_of_what_does_not_decode() -> None:
    judged = case()
    long = (*judged.target.ids, 0)
    assert earn("prefix", judged, long) == 1.0
    assert earn("gate", judged, long) == 0.5
    assert earn("gate", judged, judged.target.ids[:-1]) == 0.5


def test_energy_golden_values() -> None:
    """A coefficient one standard deviation off is worth nothing, and each counts by its share of the variance."""
    judged = case()
    (coefficients,), _ = CODEC.coefficients(judged.target.actions[None])
    place = int(np.argmax(ENERGY.weights))
    for off in (1, round(ENERGY.spread[place]) + 1):
        changed = coefficients.copy()
        changed[place] += off if changed[place] < 0 else -off
        ids = tuple(int(c) - CODEC.config.min_coefficient for c in changed)
        lost = ENERGY.weights[place] * min(1.0, off / ENERGY.spread[place])
        assert earn("energy", judged, ids) == pytest.approx(1 - lost / 2)
    assert ENERGY.weights.sum() == pytest.approx(1.0)
    assert earn("energy", judged, judged.target.ids[:-1]) == 0.5


def test_what_the_tokens_earn_adds_up_to_the_energy_of_the_action() -> None:
    judged, other = case(), case(row=3)
    ids = write_reply_ids(WORDS, TOKENS, action_ids=other.target.ids)
    score = score_reply(ids, judged.target.ids, judged.target.actions, codec=CODEC, tokens=TOKENS)
    shares = energy_shares(score, judged)
    assert len(shares) == len(other.target.ids)
    assert shares.min() >= 0
    assert 0.5 + shares.sum() / 2 == pytest.approx(earn("energy", judged, other.target.ids))


def test_chunks_that_never_vary_have_no_energy() -> None:
    with pytest.raises(DataError, match="no coefficient has energy"):
        EnergyScale.fit(CODEC, np.repeat(TABLE.chunks[:1], 3, axis=0))


def test_multi_takes_the_best_demonstration() -> None:
    """Rows 0 and 1 move to different corners: the demonstration of row 1 is worth everything once it is a neighbour."""
    alone, both = case(0), case(0, others=(1,))
    other = Demonstration.of(TABLE.chunks[1], CODEC).ids
    assert earn("multi:prefix", alone, other) == earn("prefix", alone, other) < 1.0
    assert earn("multi:prefix", both, other) == 1.0
    assert earn("multi", both, other) == earn("multi:gate", both, other) == 1.0
    assert find_reward("multi:soft").is_constrained
    assert not find_reward("multi").is_constrained


def test_neighbours_are_near_frames_of_other_episodes_at_the_same_stage() -> None:
    table = replace(
        TABLE,
        truths=(TABLE.truths[0],) * 5 + (TABLE.truths[1],),
        states=np.array([[0, 0, 0, 0, 0], [0.01, 0, 0, 0, 0], [0.021, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0] * 5, [0] * 5]),
        episodes=np.array([0, 1, 2, 0, 3, 4]),
        images=TABLE.images[:6],
        chunks=TABLE.chunks[:6],
    )
    found = find_neighbours(table, table)
    assert found[0] == (4, 1)
    assert found[1] == (0, 3, 4, 2)
    assert found[5] == ()
    assert find_neighbours(table, table) == found


@pytest.mark.parametrize("row", range(24))
def test_a_thought_made_from_the_truth_is_all_true(row) -> None:
    truth = TABLE.truths[row]
    for seed in range(4):
        assert thought_share(thought(truth, FMT, np.random.default_rng(seed)), truth, FMT) == 1.0


def test_a_thought_is_paid_by_its_fields() -> None:
    truth = TABLE.truths[0]
    x, y = FMT.position_numbers(truth.target_object.position_m[:2])
    assert thought_share("", truth, FMT) == 0.0
    assert thought_share(f"the red block is at {x} {y} .", truth, FMT) == 0.25
    assert thought_share(f"red block at {x + 5} {y} .", truth, FMT) == pytest.approx(0.25 * 0.75)
    assert thought_share(f"red block at {x + 50} {y} .", truth, FMT) == pytest.approx(0.25 * 0.5)
    assert thought_share(f"so {next_words(truth)} .", truth, FMT) == 0.25
    assert thought_share("the gripper is open .", truth, FMT) == 0.25
    assert thought_share("the gripper is closed .", truth, FMT) == 0.0
    assert thought_share(f"the gripper is at {x} {y} and the bowl at {x} {y} .", truth, FMT) == 0.0


def test_language_reads_the_thought_and_not_the_action() -> None:
    truth = TABLE.truths[0]
    judged = case(said=f"the gripper is open . next {next_words(truth)} .")
    assert earn("language", judged) == earn("language", judged, judged.target.ids[:1]) == pytest.approx(0.75)


def test_a_point_is_projected_where_the_camera_sees_it() -> None:
    """PyBullet's own matrices, for the camera of the training pictures."""
    pybullet = pytest.importorskip("pybullet")
    camera = front_camera()
    view = np.reshape(pybullet.computeViewMatrix(camera.eye_m, camera.aim_m, (0, 0, 1)), (4, 4)).T
    lens = np.reshape(pybullet.computeProjectionMatrixFOV(camera.fov_deg, 1.0, 0.1, 4.0), (4, 4)).T
    points = np.random.default_rng(0).uniform([0.35, -0.2, 0.0], [0.65, 0.2, 0.3], (20, 3))
    clip = lens @ view @ np.c_[points, np.ones(20)].T
    wanted = np.stack([0.5 + clip[0] / clip[3] / 2, 0.5 - clip[1] / clip[3] / 2], axis=1)
    np.testing.assert_allclose(project(points, camera.eye_m, camera.aim_m, camera.fov_deg), wanted, atol=1e-5)


def test_a_path_is_measured_in_lengths_of_the_demonstrated_one() -> None:
    state = np.array([0.5, 0.0, 0.2, 0.0, 0.08], np.float32)
    target = np.zeros((4, 5), np.float32)
    target[:, 1] = 0.02
    half = target / 2
    still = np.zeros_like(target)
    assert path_share(target, target, state, "panda") == 1.0
    assert path_share(half, target, state, "panda") == pytest.approx(0.5, abs=0.01)
    assert path_share(still, target, state, "panda") == path_share(-target, target, state, "panda") == 0.0
    turned = target.copy()
    turned[:, 3:] = 1.0
    assert path_share(turned, target, state, "panda") == 1.0


def test_success_is_half_form_and_half_outcome() -> None:
    assert earn("success", case()) == 0.75


IDS = st.lists(st.integers(0, 10 + CODEC.vocab_size - 1), max_size=30)


@settings(max_examples=60)
@given(ids=IDS, reward=st.sampled_from(reward_names()), outcome=st.floats(0, 1), said=st.text(max_size=40))
def test_any_ids_earn_a_reward_between_0_and_1(ids, reward, outcome, said) -> None:
    judged = case(said=said, others=(1,))
    score = score_reply(ids, judged.target.ids, judged.target.actions, codec=CODEC, tokens=TOKENS)
    assert 0.0 <= total_reward(replace(score, outcome=outcome), reward, judged) <= 1.0


def test_every_reward_says_what_it_is() -> None:
    assert all(find_reward(name).summary.endswith(".") for name in reward_names())
    assert json.dumps(sorted(REWARDS)) == json.dumps(
        ["energy", "gate", "language", "prefix", "soft", "success", "visual"]
    )


def test_a_reward_is_added_under_a_free_name_only(monkeypatch) -> None:
    monkeypatch.setattr("roboalign.trainer.rewards.library.REWARDS", dict(REWARDS))
    rule = RewardRule(name="mine", function=lambda score, case: 0.5, is_constrained=True)
    register_reward(rule)
    assert find_reward("mine") is rule
    with pytest.raises(ConfigError, match="named 'mine' already"):
        register_reward(rule)
    with pytest.raises(ConfigError, match="expected one of prefix, gate"):
        find_reward("multi:success")
    with pytest.raises(ConfigError, match="unknown need 'luck'"):
        RewardRule(name="lucky", function=rule.function, is_constrained=True, needs=("luck",))
