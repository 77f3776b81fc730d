import json
import re

import pytest
import tiny
from test_run import Config, interrupted

from roboalign.trainer.events import EventFiles, scalars
from roboalign.trainer.folders import partial_dir
from roboalign.trainer.replies import keep_replies
from roboalign.trainer.report import write_report

TABLE = tiny.frames(8)
CODEC = tiny.codec_of(TABLE)


@pytest.fixture
def folder(tmp_path):
    interrupted(Config(out=tmp_path / "run"))
    return partial_dir(tmp_path / "run")


def test_a_page_is_one_file_that_loads_nothing(folder) -> None:
    text = write_report(folder).read_text()
    assert not re.findall(r"(?:src|href)=['\"](?!data:)", text)
    assert "<script" not in text


def test_the_curves_the_settings_and_the_reason_are_on_the_page(folder) -> None:
    text = write_report(folder).read_text()
    assert "Loss" in text
    assert text.count("<polyline") == 1
    assert "rate" in text
    assert "Ctrl-C" in text


def test_a_long_curve_is_thinned(folder) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0 / (step + 1)}) for step in range(5000)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    points = re.search(r'<polyline points="([^"]*)"', write_report(folder).read_text())[1].split()
    assert 100 < len(points) <= 300


def test_words_of_a_run_cannot_break_the_page(folder) -> None:
    (folder / "settings.json").write_text(json.dumps({"recipe": "<script>alert(1)</script>"}))
    assert "<script" not in write_report(folder).read_text()


def test_replies_show_picture_thought_and_error(folder) -> None:
    member = tiny.backbone(CODEC)
    tiny.teach(member, TABLE, CODEC, steps=60)
    keep_replies(folder, member, CODEC, TABLE, seed=0, count=4, max_tokens=40)
    replies = json.loads((folder / "replies.json").read_text())["replies"]
    assert len(replies) == 4
    assert any(reply["thought"].startswith("go ") for reply in replies)
    text = write_report(folder).read_text()
    assert text.count("src='data:image/png;base64,") == 4
    assert "action error" in text


def test_an_empty_folder_has_a_page_too(tmp_path) -> None:
    assert "no status" in write_report(tmp_path).read_text()


def test_nested_numbers_become_scalars_and_words_do_not() -> None:
    line = {"step": 3, "loss": 0.5, "held": {"greedy": {"error": 0.25}, "note": "x"}}
    assert scalars(line) == {"loss": 0.5, "held/greedy/error": 0.25}


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch) -> None:
    import builtins

    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Exception, match=r"pip install 'roboalign\[tensorboard\]'"):
        EventFiles(tmp_path)
