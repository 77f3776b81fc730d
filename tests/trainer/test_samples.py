import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_scenes
import torch

from roboalign.sdk.data.motion import motion_reasoning
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.reply import parse_reply
from roboalign.trainer.data.words import FrameWords
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.samples import SAMPLE_KINDS, Sample, action_text, check_kinds, collate, make_sample
from roboalign.trainer.sft import PAIRINGS
from roboalign.trainer.supervised import draw_kinds

TABLE = tiny_scenes.frames(40)
CODEC = tiny.codec_of(TABLE)
FLAGS = {"vqa": ("quick", "ask"), "reason": ("slow", "ask"), "action": ("quick", "act"), "paired": ("slow", "act")}


@pytest.fixture(scope="module")
def member():
    return tiny.backbone(CODEC)


def sample(kind: str, frame: int = 0, seed: int = 0) -> Sample:
    return make_sample(TABLE, frame, kind, tiny.FORMAT, np.random.default_rng(seed), CODEC)


def drawn(pairing: str, count: int = 400) -> list[Sample]:
    rng = np.random.default_rng(0)
    kinds = draw_kinds(PAIRINGS[pairing], count, rng)
    return [make_sample(TABLE, i % len(TABLE), kind, tiny.FORMAT, rng, CODEC) for i, kind in enumerate(kinds)]


def all_kinds() -> list[Sample]:
    return [sample(kind, frame, frame) for kind in SAMPLE_KINDS for frame in range(7)]


def has_thought_and_action(one: Sample) -> bool:
    return "<think>" in one.reply and "<ACTION_START>" in one.reply


def test_zero_shot_samples_never_pair_a_thought_with_an_action() -> None:
    samples = drawn("zero-shot")
    assert not any(has_thought_and_action(s) for s in samples)
    assert {(s.pace, s.task) for s in samples} == {FLAGS["vqa"], FLAGS["reason"], FLAGS["action"]}


def test_paired_samples_do_so_as_often_as_the_pairing_says() -> None:
    share = np.mean([has_thought_and_action(s) for s in drawn("paired")])
    assert share == pytest.approx(PAIRINGS["paired"]["paired"], abs=0.08)


@pytest.mark.parametrize("pairing", sorted(PAIRINGS))
def test_the_shares_of_a_pairing_name_known_kinds_and_sum_to_one(pairing) -> None:
    assert set(PAIRINGS[pairing]) <= set(SAMPLE_KINDS)
    assert sum(PAIRINGS[pairing].values()) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", SAMPLE_KINDS)
def test_the_flags_of_the_prompt_ask_for_what_the_reply_holds(kind) -> None:
    one = sample(kind)
    reply = parse_reply(one.reply)
    assert reply.is_well_formed
    assert ((one.pace, one.task), one.source) == (FLAGS[kind], kind)
    assert (reply.thought is not None) == (one.pace == "slow")
    assert reply.answer.startswith("<ACTION_START>") == (one.task == "act")


@pytest.mark.parametrize("kind", ["action", "paired"])
def test_the_answer_spells_the_chunk_of_its_frame(kind) -> None:
    for frame in range(4):
        answer = parse_reply(sample(kind, frame).reply).answer
        assert answer == action_text(CODEC.encode(TABLE.chunks[frame]))


def test_action_text_surrounds_the_tokens() -> None:
    assert action_text((7, 0)) == "<ACTION_START><ACTION_7><ACTION_0><ACTION_END>"


@pytest.mark.parametrize(("kind", "codec"), [("action", None), ("paired", None), ("dream", CODEC)])
def test_a_kind_that_cannot_be_made_is_refused(kind, codec) -> None:
    with pytest.raises(ConfigError, match=f"'{kind}' needs an action codec and must be one of vqa, reason"):
        make_sample(TABLE, 0, kind, tiny.FORMAT, np.random.default_rng(0), codec)


@pytest.mark.parametrize("kind", SAMPLE_KINDS)
def test_the_same_generator_makes_the_same_sample(kind) -> None:
    one, other = sample(kind, 3, seed=5), sample(kind, 3, seed=5)
    assert (one.text, one.reply) == (other.text, other.reply)


def test_what_samples_say_is_what_shipped_models_learnt() -> None:
    rng, digest = np.random.default_rng(5), hashlib.sha256()
    for kind, frame in itertools.product(("vqa", "reason"), range(40)):
        one = make_sample(TABLE, frame, kind, tiny.FORMAT, rng)
        digest.update(f"{one.text}|{one.reply}\n".encode())
    assert digest.hexdigest()[:16] == "71fd1230f994e569"


def test_labels_cover_exactly_the_reply_and_its_end(member) -> None:
    samples = all_kinds()
    batch = collate(samples, member)
    for row, one in enumerate(samples):
        ids, is_real = batch.inputs.input_ids[row], batch.inputs.attention_mask[row].bool()
        is_reply = batch.labels[row] != -100
        assert torch.equal(batch.labels[row][is_reply], ids[is_reply])
        text, prompt = (member.tokenizer.decode(ids[where]) for where in (is_reply, is_real & ~is_reply))
        wanted = tiny.FORMAT.prompt_text(one.text, one.state, pace=one.pace, task=one.task)
        assert text.replace(" ", "") == f"{one.reply}<eos>".replace(" ", "")
        assert prompt.replace(" ", "") == wanted.replace(" ", "")


def test_the_reply_is_one_run_behind_the_prompt_and_before_the_padding(member) -> None:
    batch = collate(all_kinds(), member)
    for labels, mask in zip(batch.labels, batch.inputs.attention_mask, strict=True):
        places = torch.nonzero(labels != -100)[:, 0]
        assert len(places) == places[-1] - places[0] + 1
        assert mask.tolist() == [1] * (int(places[-1]) + 1) + [0] * (len(mask) - int(places[-1]) - 1)


def test_padding_is_on_the_right_and_has_its_own_token(member) -> None:
    batch = collate(all_kinds(), member)
    padding = batch.inputs.attention_mask == 0
    assert padding.any()
    assert not padding[:, 0].any()
    assert torch.equal(padding, batch.inputs.input_ids == member.tokenizer.pad_token_id)


def test_places_are_those_of_the_named_objects_in_order_and_nan_elsewhere(member) -> None:
    nothing = [np.nan, np.nan]
    push = TABLE.truths[1].find("red block").position_m[:2]
    assert (TABLE.truths[1].family, TABLE.truths[5].family) == ("push", "stack")
    stack = [TABLE.truths[5].find(name).position_m[:2] for name in ("red block", "green block")]
    places = collate([sample("reason", 1), sample("reason", 5)], member).places.numpy()
    np.testing.assert_array_equal(places, np.array([[push, nothing], stack], np.float32))


def test_a_list_of_everything_names_no_place(member) -> None:
    samples = [sample("vqa", 0, seed) for seed in range(60)]
    lists = [s for s in samples if s.text in ("list the objects", "what is on the table")]
    assert lists
    assert collate(lists, member).places.isnan().all()


def test_pictures_are_those_of_the_frames(member) -> None:
    batch = collate([sample("action", frame) for frame in (3, 0)], member)
    expected = np.stack([tiny.FORMAT.pixel_values(TABLE.images[frame]) for frame in (3, 0)])
    np.testing.assert_array_equal(batch.inputs.extra["pixel_values"].numpy(), expected)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6])
def test_training_and_held_out_frames_share_no_episode(share) -> None:
    train, held = TABLE.split(share)
    assert len(train) + len(held) == len(TABLE)
    assert set(train.episodes).isdisjoint(held.episodes)
    assert len(set(held.episodes)) == max(1, round(share * 10))


def test_taken_frames_keep_what_belongs_to_them() -> None:
    taken = TABLE.take(np.array([7, 2]))
    assert taken.truths == (TABLE.truths[7], TABLE.truths[2])
    for name in ("images", "states", "chunks", "episodes"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(TABLE, name)[[7, 2]])


@pytest.mark.parametrize("kind", ["reason", "paired"])
@pytest.mark.parametrize(("style", "words"), [("spatial", "the gripper is at"), ("procedural", "step")])
def test_a_style_changes_the_thought_and_nothing_else(kind, style, words) -> None:
    styled = make_sample(TABLE, 0, kind, tiny.FORMAT, np.random.default_rng(0), CODEC, style=style)
    assert words in parse_reply(styled.reply).thought
    assert parse_reply(styled.reply).answer == parse_reply(sample(kind).reply).answer
    assert styled.text == sample(kind).text


@pytest.mark.parametrize(("kind", "pace"), [("vqa", "quick"), ("reason", "slow")])
def test_a_choice_is_asked_with_its_options_and_answered_with_a_letter(kind, pace) -> None:
    asked = make_sample(TABLE, 0, kind, tiny.FORMAT, np.random.default_rng(0), style="choice")
    assert parse_reply(asked.reply).answer in asked.text
    assert (asked.pace, parse_reply(asked.reply).answer[:2] in ("a ", "b ", "c ", "d ")) == (pace, True)


def test_a_choice_is_no_thought_before_an_action() -> None:
    with pytest.raises(ConfigError, match="style choice asks for a letter, so kind paired cannot have it"):
        make_sample(TABLE, 0, "paired", tiny.FORMAT, np.random.default_rng(0), CODEC, style="choice")


@pytest.mark.parametrize(("kind", "what"), [("vqa", "question"), ("reason", "thought")])
def test_words_that_were_not_recorded_are_refused(kind, what) -> None:
    with pytest.raises(DataError, match=f"frames: frame 2 has no recorded {what}; found the columns none"):
        make_sample(TABLE, 2, kind, tiny.FORMAT, np.random.default_rng(0), style="recorded")


def _recorded(*words: FrameWords) -> FrameTable:
    return replace(TABLE.take(np.arange(len(words))), truths=None, words=words)


_ASKED = FrameWords(instruction="go", questions=(("what is it", "a cup"),))
_THOUGHT = FrameWords(instruction="go", thought="it is left")


def test_a_kind_that_frames_say_nothing_for_is_refused_with_what_is_left() -> None:
    table = _recorded(_THOUGHT, _THOUGHT, _ASKED)
    with pytest.raises(DataError, match=r"2 of 3 frames have no recorded question.*leave out vqa: --shares action=1$"):
        check_kinds(table, {"vqa": 0.5, "action": 0.5, "reason": 0.0})
    with pytest.raises(DataError, match=r"leave out paired, vqa: --shares action=1, or .*: --style motion$"):
        check_kinds(table, {"vqa": 0.4, "paired": 0.4, "action": 0.2})
    with pytest.raises(DataError, match=r"1 of 3 frames have no recorded thought.*; record a thought with every frame"):
        check_kinds(table, {"paired": 1.0})


def test_kinds_that_every_frame_says_something_for_pass() -> None:
    check_kinds(_recorded(_THOUGHT, _THOUGHT), {"paired": 0.5, "reason": 0.3, "action": 0.2, "vqa": 0.0})
    check_kinds(_recorded(_ASKED), {"vqa": 1.0})
    check_kinds(TABLE, dict.fromkeys(SAMPLE_KINDS, 1.0))


def test_thoughts_of_the_motion_need_nothing_that_was_recorded() -> None:
    table = _recorded(_ASKED, FrameWords(instruction="go"))
    check_kinds(table, {"paired": 0.5, "reason": 0.5}, "motion")
    with pytest.raises(DataError, match="1 of 2 frames have no recorded question"):
        check_kinds(table, {"vqa": 0.5, "reason": 0.5}, "motion")
    made = make_sample(table, 1, "paired", tiny.FORMAT, np.random.default_rng(0), CODEC, style="motion")
    thought = parse_reply(made.reply).thought
    assert thought == motion_reasoning("go", table.states[1], table.chunks[1], tiny.FORMAT).thought
    assert made.text == "go"
    asked = make_sample(table, 0, "vqa", tiny.FORMAT, np.random.default_rng(0), style="motion")
    assert (asked.text, parse_reply(asked.reply).answer) == ("what is it", "a cup")
