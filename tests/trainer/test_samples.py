import numpy as np
import pytest
import tiny
import tiny_scenes
import torch

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.reply import parse_reply
from roboalign.trainer.samples import SAMPLE_KINDS, Sample, action_text, collate, make_sample
from roboalign.trainer.sft import PAIRINGS
from roboalign.trainer.supervised import draw_kinds

TABLE = tiny_scenes.frames(40)
CODEC = tiny.codec_of(TABLE)
FLAGS = {"vqa": "<quick><ask>", "reason": "<slow><ask>", "action": "<quick><act>", "paired": "<slow><act>"}


@pytest.fixture(scope="module")
def processor():
    return tiny.backbone(CODEC).processor


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
    assert not any(has_thought_and_action(s) or s.prompt.endswith(FLAGS["paired"]) for s in samples)
    assert {flag for flag in FLAGS.values() if any(s.prompt.endswith(flag) for s in samples)} == {
        FLAGS["vqa"],
        FLAGS["reason"],
        FLAGS["action"],
    }


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
    assert one.prompt.endswith(FLAGS[kind])
    assert (reply.thought is not None) == ("<slow>" in FLAGS[kind])
    assert reply.answer.startswith("<ACTION_START>") == ("<act>" in FLAGS[kind])


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
    assert sample(kind, 3, seed=5) == sample(kind, 3, seed=5)


def test_labels_cover_exactly_the_reply_and_its_end(processor) -> None:
    samples = all_kinds()
    batch = collate(samples, TABLE, processor)
    for row, one in enumerate(samples):
        is_reply, is_real = batch.labels[row] != -100, batch.attention_mask[row].bool()
        assert torch.equal(batch.labels[row][is_reply], batch.input_ids[row][is_reply])
        text = processor.tokenizer.decode(batch.input_ids[row][is_reply])
        prompt = processor.tokenizer.decode(batch.input_ids[row][is_real & ~is_reply])
        assert text.replace(" ", "") == f"{one.reply}<eos>".replace(" ", "")
        assert prompt.replace(" ", "") == one.prompt.replace(" ", "")


def test_the_reply_is_one_run_behind_the_prompt_and_before_the_padding(processor) -> None:
    batch = collate(all_kinds(), TABLE, processor)
    for labels, mask in zip(batch.labels, batch.attention_mask, strict=True):
        places = torch.nonzero(labels != -100)[:, 0]
        assert len(places) == places[-1] - places[0] + 1
        assert mask.tolist() == [1] * (int(places[-1]) + 1) + [0] * (len(mask) - int(places[-1]) - 1)


def test_padding_is_on_the_right_and_has_its_own_token(processor) -> None:
    batch = collate(all_kinds(), TABLE, processor)
    padding = batch.attention_mask == 0
    assert padding.any()
    assert not padding[:, 0].any()
    assert torch.equal(padding, batch.input_ids == processor.tokenizer.pad_token_id)


def test_places_are_those_of_the_named_objects_in_order_and_nan_elsewhere(processor) -> None:
    names = [(), ("blue bowl",), ("blue bowl", "red block")]
    samples = [Sample(frame=4, prompt="<bos>go", reply="<answer>go</answer>", objects=o) for o in names]
    places = collate(samples, TABLE, processor).places.numpy()
    bowl, block = (TABLE.truths[4].find(name).position_m[:2] for name in names[2])
    nothing = [np.nan, np.nan]
    expected = [[nothing, nothing], [bowl, nothing], [bowl, block]]
    np.testing.assert_array_equal(places, np.array(expected, np.float32))


def test_a_list_of_everything_names_no_place(processor) -> None:
    samples = [sample("vqa", 0, seed) for seed in range(60)]
    lists = [s for s in samples if "list the objects" in s.prompt or "what is on the table" in s.prompt]
    assert lists
    assert collate(lists, TABLE, processor).places.isnan().all()


def test_pictures_are_those_of_the_frames(processor) -> None:
    batch = collate([sample("action", frame) for frame in (3, 0)], TABLE, processor)
    expected = np.stack([tiny.FORMAT.pixel_values(TABLE.images[frame]) for frame in (3, 0)])
    np.testing.assert_array_equal(batch.pixel_values.numpy(), expected)


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
