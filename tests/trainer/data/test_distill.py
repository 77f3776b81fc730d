"""Distilling from the tiny world's models: what is kept, what is not, and that the mixture reads what was written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_scenes

from roboalign.sdk.data.language import next_words
from roboalign.sdk.errors import BundleError, CheckFailed, ConfigError, DataError
from roboalign.sdk.reply import parse_reply, write_reply
from roboalign.trainer.checkpoint import CheckpointMeta, save_checkpoint
from roboalign.trainer.data import distill as module
from roboalign.trainer.data.chat import ChatFile
from roboalign.trainer.data.distill import DistillConfig, distill
from roboalign.trainer.data.mixture import SourceSpec
from roboalign.trainer.data.sources import ChatSource, Opening
from roboalign.trainer.rollout import Completions
from roboalign.trainer.samples import action_text

TABLE = replace(tiny_scenes.frames(12), name="demos")
CODEC = tiny.codec_of(TABLE)
FAR = CODEC.encode(-3 * TABLE.chunks[0])


@pytest.fixture(scope="module")
def member():
    return tiny.backbone(CODEC)


def save(member, folder: Path) -> Path:
    meta = CheckpointMeta(stage="sft", recipe="tiny")
    save_checkpoint(folder, model=member.model, processor=member.processor, meta=meta, codec=CODEC)
    return folder


@pytest.fixture(scope="module")
def checkpoint(member, tmp_path_factory) -> Path:
    return save(member, tmp_path_factory.mktemp("distill") / "sft")


@pytest.fixture(autouse=True)
def _table(monkeypatch):
    monkeypatch.setattr(module, "load_frames", lambda *_args, **_kwargs: TABLE)


@pytest.fixture
def say(monkeypatch, member):
    """Makes the model reply with the given texts, the same to every frame."""

    def prepare(*replies: str) -> None:
        ids = [member.tokenizer(reply, add_special_tokens=False)["input_ids"] for reply in replies]

        def sample_replies(_backbone, prompts, *_args, **_kwargs) -> Completions:
            return Completions(token_ids=ids * prompts.num_prompts, log_probs=[])

        monkeypatch.setattr(module, "sample_replies", sample_replies)

    return prepare


def config(checkpoint: Path, out: Path, **changes: object) -> DistillConfig:
    return DistillConfig(checkpoint=checkpoint, data=Path("demos"), out=out, **changes)


def acting(thought: str, ids: tuple[int, ...]) -> str:
    return write_reply(thought, action_text(ids)) + "<eos>"


def test_the_thought_with_the_nearest_action_is_kept(checkpoint, say, tmp_path) -> None:
    right = CODEC.encode(TABLE.chunks[0])
    say(acting("far", FAR), acting("near", right), "<answer>no</answer><eos>")
    report = distill(config(checkpoint, tmp_path / "t.jsonl", samples=3))
    file = ChatFile(tmp_path / "t.jsonl")
    # The right chunk of frame 0 is that of every fourth frame, up to its noise.
    assert (report.asked, report.kept, len(file)) == (12, 3, 3)
    assert {file.at(n).thought for n in range(3)} == {"near"}
    assert report.rejected == {"form": 12, "action": 12 + 9}


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_a_mixture_reads_what_was_written(checkpoint, say, tmp_path, name) -> None:
    say(acting("near", CODEC.encode(TABLE.chunks[0])))
    distill(config(checkpoint, tmp_path / name, samples=1))
    spec = SourceSpec(name="own", format="chat", path=tmp_path / name, weight=1.0)
    sample = ChatSource(spec, Opening(fmt=tiny.FORMAT, codec=CODEC)).sample(0, np.random.default_rng(0))
    assert (sample.pace, sample.task, sample.state.shape) == ("slow", "act", (5,))
    reply = parse_reply(sample.reply)
    assert reply.thought == "near"
    frames = [i for i in range(12) if np.array_equal(TABLE.images[i], sample.image)]
    assert reply.answer in {action_text(CODEC.encode(TABLE.chunks[i])) for i in frames}


def test_words_are_kept_where_they_name_the_true_step(checkpoint, say, tmp_path) -> None:
    words = next_words(TABLE.truths[3])
    say(write_reply("it is so", words) + "<eos>", write_reply("or so", words) + "<eos>", "<answer>no</answer>")
    report = distill(config(checkpoint, tmp_path / "t.jsonl", accept="words", samples=3))
    same = [i for i, truth in enumerate(TABLE.truths) if next_words(truth) == words]
    assert report.kept == len(same)
    found = ChatFile(tmp_path / "t.jsonl").at(0)
    assert (found.thought, found.answer) == ("it is so", words)
    assert report.rejected == {"form": 12, "answer": 2 * (12 - len(same))}


def test_nothing_good_enough_is_a_failed_check_and_leaves_no_file(checkpoint, say, tmp_path) -> None:
    say(acting("far", FAR))
    with pytest.raises(CheckFailed, match=r"none of 12 replies was good enough \(action 12\); train the model further"):
        distill(config(checkpoint, tmp_path / "t.jsonl", samples=1))
    assert list(tmp_path.iterdir()) == []


def test_words_need_something_to_compare_with(checkpoint, say, tmp_path, monkeypatch) -> None:
    bare = replace(TABLE, truths=None, words=())
    monkeypatch.setattr(module, "load_frames", lambda *_args, **_kwargs: bare)
    with pytest.raises(DataError, match="demos has neither simulator truth nor recorded steps to compare words with"):
        distill(config(checkpoint, tmp_path / "t.jsonl", accept="words"))


def test_a_tokenizer_without_the_action_rows_is_refused(tmp_path) -> None:
    small = tiny.backbone(CODEC)
    folder = tmp_path / "sft"
    meta = CheckpointMeta(stage="sft", recipe="tiny")
    grown = tiny.FastCodec.fit(TABLE.chunks, rate_hz=10.0, vocab_size=CODEC.vocab_size + 1, scale=8.0)
    save_checkpoint(folder, model=small.model, processor=small.processor, meta=meta, codec=grown)
    with pytest.raises(BundleError, match=r"the tokenizer lacks 1 of the \d+ markers and action tokens of its codec"):
        distill(config(folder, tmp_path / "t.jsonl"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accept": "acton"}, r"unknown way to accept 'acton'; did you mean action\?"),
        ({"out": Path("t.csv")}, r"t\.csv ends in '\.csv', expected \.jsonl or \.parquet"),
        ({"samples": 0}, "samples is 0, expected at least 1"),
        ({"frames": 0}, "frames is 0, expected at least 1"),
        ({"max_error": float("nan")}, "max_error is nan, expected a positive number"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message) -> None:
    settings = {"out": Path("t.jsonl"), **changes}
    with pytest.raises(ConfigError, match=message):
        config(Path("sft"), **settings)


@pytest.mark.slow
def test_a_taught_model_gives_thoughts_that_led_to_the_right_action(tmp_path) -> None:
    taught = tiny.backbone(CODEC)
    tiny.teach(taught, TABLE, CODEC, steps=70)
    report = distill(config(save(taught, tmp_path / "sft"), tmp_path / "t.jsonl", max_error=0.3, temperature=0.3))
    thoughts = {found.thought for found in map(ChatFile(report.path).at, range(report.kept))}
    assert report.kept >= 6
    assert all(thought.startswith("go ") for thought in thoughts)
