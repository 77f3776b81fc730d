import io
import json
import re
from pathlib import Path

import pytest
import recorded
import tiny
from PIL import Image
from recorded import episode, said

from roboalign.cli.main import main
from roboalign.sdk.errors import BundleError, ConfigError, DataError
from roboalign.trainer.checkpoint import CheckpointMeta, save_checkpoint
from roboalign.trainer.data.preview import preview_page, preview_samples, preview_text

TALK = [{"from": "human", "value": "<image>\nwhat <b>is</b> it"}, {"from": "gpt", "value": "a cup"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("preview")
    spoken = (said("subtask", "reach", 0.0),)
    recorded.write(path, [episode(n, language_persistent=spoken) for n in range(2)])
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, format="PNG")
    (path / "a.png").write_bytes(stream.getvalue())
    (path / "talk.jsonl").write_text(json.dumps({"image": "a.png", "conversations": TALK}))
    robot = {"name": "robot", "format": "lerobot", "path": "demos", "weight": 1, "kinds": {"reason": 1}}
    talk = {"name": "talk", "format": "chat", "path": "talk.jsonl", "weight": 1}
    (path / "mix.json").write_text(json.dumps({"source": [talk]}))
    (path / "both.json").write_text(json.dumps({"source": [robot, talk]}))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    codec = tiny.codec_of(tiny.frames(8))
    member, out = tiny.backbone(codec), tmp_path_factory.mktemp("model") / "sft"
    meta = CheckpointMeta(stage="sft", recipe="tiny")
    save_checkpoint(out, model=member.model, processor=member.processor, meta=meta, codec=codec)
    return out


def test_a_dataset_shows_every_kind_that_it_can_give(folder) -> None:
    found = preview_samples(folder / "demos", count=6)
    assert {one.sample.source for one in found.samples} == {"demos/action", "demos/reason", "demos/paired"}
    assert "codec fitted on 12 frames" in " ".join(found.notes)


def test_the_prompt_is_the_one_of_the_model_and_its_tokens_are_counted(folder, checkpoint) -> None:
    (one,) = preview_samples(folder / "talk.jsonl", count=1, checkpoint=checkpoint).samples
    assert one.prompt == "<bos>what b is b it<image>*24<quick><ask>"
    assert one.tokens is not None
    assert one.tokens[0] > 24
    assert one.sample.image.shape == (64, 64, 3)


def test_a_page_is_self_contained_marks_the_reply_and_shows_text_as_text(folder, tmp_path) -> None:
    page = preview_page(preview_samples(folder / "mix.json", count=2), tmp_path / "page.html").read_text()
    assert page.count("<mark>&lt;answer&gt;a cup&lt;/answer&gt;</mark>") == 2
    assert page.count("src='data:image/png;base64,") == 2
    assert not re.findall(r"(?:src|href)='(?!data:)", page)
    assert "<b>is</b>" not in page


def test_text_fits_80_columns_and_marks_the_reply(folder) -> None:
    text = preview_text(preview_samples(folder / "demos", count=6))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("> <think>reach</think>") == 4


def test_a_mixture_names_its_shares(folder) -> None:
    found = preview_samples(folder / "mix.json", count=1)
    assert found.notes == ("shares: talk 100.0%",)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"count": 0}, ConfigError, "the number of samples to show is 0, expected 1 or more"),
        ({"source": "mix.json", "style": "spatial"}, ConfigError, "a style was given for a mixture"),
        ({"source": "both.json"}, DataError, "the pictures are 16 x 16 px, expected 96 x 96"),
        ({"source": "nowhere"}, DataError, "there is no dataset folder|no dataset"),
        ({"checkpoint": Path("nowhere")}, BundleError, "nowhere"),
    ],
)
def test_what_cannot_be_shown_is_refused(folder, changes, error, message) -> None:
    settings = {"source": "demos", **changes}
    with pytest.raises(error, match=message):
        preview_samples(folder / settings.pop("source"), **settings)


def test_the_verb_writes_a_page_or_text(folder, tmp_path, capsys) -> None:
    assert main(["data", "preview", str(folder / "mix.json"), "--count", "1", "--out", str(tmp_path / "p.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "p.html")
    assert main(["data", "preview", str(folder / "mix.json"), "--count", "1", "--text"]) == 0
    assert "> <answer>a cup</answer>" in capsys.readouterr().out


def test_the_verb_for_sources_prints_a_table_and_fails_when_one_is_missing(folder, capsys) -> None:
    assert main(["data", "sources", str(folder / "both.json")]) == 0
    assert "talk" in capsys.readouterr().out
    assert main(["data", "sources", "paper", "--root", str(folder)]) == 1
    captured = capsys.readouterr()
    assert "bridge_fast" in captured.out
    assert captured.err.startswith("error: 12 of 12 sources cannot be used: llava_onevision")
