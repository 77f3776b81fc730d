import base64
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from recorded import episode, said

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.reply import parse_reply
from roboalign.trainer.data.mixture import load_mixture
from roboalign.trainer.data.sources import Opening, SampleStream, open_mixture
from roboalign.trainer.samples import Sample

FMT = PromptFormat(image_size_px=recorded.SIZE_PX)
CODEC = FastCodec.fit(
    0.01 * np.random.default_rng(0).standard_normal((40, 4, 5)), rate_hz=10.0, vocab_size=32, scale=2.0
)
SPOKEN = (said("subtask", "reach", 0.0), said("subtask", "lift", 0.3))
TALK = [{"from": "human", "value": "<image>\nwhat is it"}, {"from": "gpt", "value": "a cup"}]
ROBOT = {"name": "robot", "format": "lerobot", "path": "demos", "weight": 3, "kinds": {"action": 2, "reason": 1}}
CHAT = {"name": "talk", "format": "chat", "path": "talk.jsonl", "weight": 1}


def png(colour: tuple[int, int, int] = (200, 0, 0), size: tuple[int, int] = (8, 4)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sources")
    recorded.write(path, [episode(n, language_persistent=SPOKEN) for n in range(2)])
    talk(path, [png(), png((0, 0, 200)), png((0, 200, 0))])
    return path


def talk(folder: Path, pictures: list[bytes], name: str = "talk.jsonl", **more: object) -> None:
    for number, picture in enumerate(pictures):
        (folder / f"{number}.png").write_bytes(picture)
    rows = [{"image": f"{number}.png", "conversations": TALK, **more} for number in range(len(pictures))]
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))


def stream(folder: Path, *sources: dict[str, object], seed: int = 0, codec: FastCodec | None = CODEC) -> SampleStream:
    path = folder / "mix.json"
    path.write_text(json.dumps({"source": list(sources)}))
    return open_mixture(load_mixture(path), Opening(fmt=FMT, codec=codec), seed=seed)


def plain(sample: Sample) -> tuple[object, ...]:
    image, state = (None if part is None else part.tobytes() for part in (sample.image, sample.state))
    return sample.source, sample.text, sample.reply, sample.pace, sample.task, image, state


def test_samples_come_by_weight_and_kind(folder) -> None:
    found = stream(folder, ROBOT, CHAT)
    counts = Counter(found.at(n).source for n in range(found.schedule.period))
    assert counts == {"robot/action": 2, "robot/reason": 1, "talk": 1}


@given(start=st.integers(0, 60), count=st.integers(1, 7), seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_a_resumed_run_draws_the_same_samples(folder, start, count, seed) -> None:
    through, resumed = (stream(folder, ROBOT, CHAT, seed=seed) for _ in range(2))
    whole = [plain(sample) for step in range(start + 2) for sample in through.draw(step, count)]
    tail = [plain(sample) for step in (start, start + 1) for sample in resumed.draw(step, count)]
    assert tail == whole[start * count :]


def test_a_step_in_words_is_thought_and_answered(folder) -> None:
    found = stream(folder, {**ROBOT, "kinds": {"reason": 1}})
    replies = {parse_reply(found.at(n).reply).answer for n in range(12)}
    assert replies == {"reach", "lift"}
    assert parse_reply(found.at(0).reply).thought in replies


def test_actions_come_with_words_that_were_recorded(folder) -> None:
    sample = stream(folder, {**ROBOT, "kinds": {"paired": 1}}).at(0)
    reply = parse_reply(sample.reply)
    assert (sample.pace, sample.task, reply.thought) == ("slow", "act", reply.thought)
    assert reply.thought in ("reach", "lift")
    assert reply.answer.startswith("<ACTION_START>")


def test_a_picture_keeps_its_shape_between_grey_bars(folder) -> None:
    sample = stream(folder, CHAT).at(0)
    assert (sample.image.shape, sample.state, sample.pace, sample.task) == ((16, 16, 3), None, "quick", "ask")
    assert sample.image[0, 0].tolist() == [128, 128, 128]
    assert max(sample.image[8, 8]) == 200


def test_a_picture_may_be_inside_the_row(tmp_path) -> None:
    address = "data:image/png;base64," + base64.b64encode(png(size=(16, 16))).decode()
    (tmp_path / "talk.jsonl").write_text(json.dumps({"image": address, "conversations": TALK}))
    assert stream(tmp_path, CHAT).at(0).image[3, 3].tolist() == [200, 0, 0]


def test_a_distilled_action_becomes_the_tokens_of_the_codec(tmp_path) -> None:
    said = [TALK[0], {"from": "gpt", "value": "<think>go up</think>"}]
    action = np.zeros((4, 5)).tolist()
    talk(tmp_path, [png()], conversations=said, action=action, state=[0.4, 0, 0.3, 0, 0.05])
    sample = stream(tmp_path, CHAT).at(0)
    assert (sample.pace, sample.task, sample.state.shape) == ("slow", "act", (5,))
    tokens = "".join(f"<ACTION_{i}>" for i in CODEC.encode(np.zeros((4, 5))))
    assert sample.reply == f"<think>go up</think><answer><ACTION_START>{tokens}<ACTION_END></answer>"


@pytest.mark.parametrize(("bad", "why"), [(b"no picture", "does not decode"), (png()[:40], "does not decode")])
def test_a_picture_that_does_not_decode_stops_with_file_row_and_reason(tmp_path, bad, why) -> None:
    talk(tmp_path, [bad])
    with pytest.raises(DataError, match=rf"talk\.jsonl: row 1: the picture 0\.png {why}") as error:
        stream(tmp_path, CHAT).at(0)
    assert "\n" not in str(error.value)


def test_a_skipped_picture_is_counted_once_and_replaced(tmp_path) -> None:
    talk(tmp_path, [png(), b"bad", png()])
    found = stream(tmp_path, {**CHAT, "on_bad_image": "skip"})
    samples = [found.at(n) for n in range(9)]
    assert all(sample.image is not None for sample in samples)
    assert found.skipped == {"talk": 1}


def test_a_file_of_bad_pictures_is_refused_although_they_are_skipped(tmp_path) -> None:
    talk(tmp_path, [b"bad"])
    (tmp_path / "0.png").unlink()
    with pytest.raises(DataError, match=r"no picture can be read, e\.g\. .* is missing in"):
        stream(tmp_path, {**CHAT, "on_bad_image": "skip"}).at(0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {**ROBOT, "kinds": {"vqa": 1}},
            r"'robot': kind vqa .* neither simulator truth nor questions .* found the columns",
        ),
        ({**ROBOT, "style": "spatial", "kinds": {"reason": 1}}, "has no simulator truth .* which style spatial needs"),
        ({**ROBOT, "path": "nowhere"}, "there is no dataset folder"),
        ({**CHAT, "path": "nowhere.jsonl"}, "there is no chat file"),
        ({**ROBOT, "thought": "why", "kinds": {"reason": 1}}, "lacks the column why; found observation"),
    ],
)
def test_a_source_that_cannot_give_what_is_asked_is_refused(folder, source, message) -> None:
    with pytest.raises(DataError, match=message):
        stream(folder, source).at(0)


def test_thoughts_that_were_asked_for_and_are_not_there_are_refused_with_the_columns(tmp_path) -> None:
    recorded.write(tmp_path)
    with pytest.raises(DataError, match=r"kind reason .* nor thoughts in words; found the columns observation\.images"):
        stream(tmp_path, {**ROBOT, "kinds": {"reason": 1}})


def test_actions_without_a_codec_are_refused(folder) -> None:
    with pytest.raises(ConfigError, match="source 'robot' has samples with actions, which need a codec"):
        stream(folder, ROBOT, codec=None)


def test_datasets_of_two_robots_do_not_mix(tmp_path) -> None:
    for name, robot in (("a", "panda"), ("b", "so101")):
        (tmp_path / name).mkdir()
        recorded.write(tmp_path / name, robot=robot)
    parts = [{**ROBOT, "name": name, "path": f"{name}/demos", "kinds": {"action": 1}} for name in "ab"]
    with pytest.raises(DataError, match="is of the robot so101, expected panda"):
        stream(tmp_path, *parts)


def test_data_of_another_rate_than_the_codec_are_refused(tmp_path) -> None:
    recorded.write(tmp_path, rate_hz=5.0)
    with pytest.raises(DataError, match="was recorded at 5 Hz, expected 10 Hz"):
        stream(tmp_path, {**ROBOT, "kinds": {"action": 1}})


def test_the_content_hash_follows_the_shares_and_the_content(folder, tmp_path) -> None:
    talk(tmp_path, [png()])
    first = stream(tmp_path, CHAT).content_hash
    assert stream(tmp_path, {**CHAT, "weight": 2}).content_hash == first
    talk(tmp_path, [png(), png()])
    assert stream(tmp_path, CHAT).content_hash != first
    assert len({stream(folder, ROBOT, {**CHAT, "weight": w}).content_hash for w in (1, 2)}) == 2
