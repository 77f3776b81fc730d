import json
from pathlib import Path

import pytest
import recorded

from roboalign.sdk.data import encode_png
from roboalign.sdk.errors import CheckFailed
from roboalign.trainer.data.check import SourceReport, check_sources, raise_if_failed, sources_table
from roboalign.trainer.data.mixture import load_mixture

TALK = [{"from": "human", "value": "what is it"}, {"from": "gpt", "value": "a cup"}]


def check(folder: Path, *sources: dict[str, object], decode: bool = False) -> list[SourceReport]:
    (folder / "mix.json").write_text(json.dumps({"source": list(sources)}))
    return check_sources(load_mixture(folder / "mix.json"), decode=decode)


def chat(folder: Path, *rows: dict[str, object], name: str = "talk", **more: object) -> dict[str, object]:
    (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {"name": name, "format": "chat", "path": f"{name}.jsonl", "weight": 1, **more}


def test_what_is_there_is_counted(tmp_path) -> None:
    recorded.write(tmp_path)
    robot = {"name": "robot", "format": "lerobot", "path": "demos", "weight": 3, "rows": 20}
    found = check(tmp_path, robot, chat(tmp_path, {"conversations": TALK * 2}))
    assert [(one.name, one.found, one.state, one.share) for one in found] == [
        ("robot", 12, "short", 0.75),
        ("talk", 2, "ok", 0.25),
    ]
    raise_if_failed(found)


def test_a_missing_and_a_broken_source_fail_by_name(tmp_path) -> None:
    gone = {"name": "gone", "format": "chat", "path": "no.jsonl", "weight": 1, "download": "SomeSet"}
    found = check(tmp_path, gone, chat(tmp_path, {"a": 1}))
    assert [one.state for one in found] == ["missing", "broken"]
    assert "get: SomeSet" in " ".join(sources_table(found).split())
    with pytest.raises(CheckFailed, match="2 of 2 sources cannot be used: gone, talk"):
        raise_if_failed(found)


def test_pictures_are_decoded_only_when_asked(tmp_path, monkeypatch) -> None:
    (tmp_path / "good.png").write_bytes(encode_png(recorded.np.zeros((4, 4, 3), "uint8")))
    (tmp_path / "bad.png").write_bytes(b"bad")
    rows = [{"image": name, "conversations": TALK} for name in ("good.png", "bad.png", "gone.png")]
    assert [one.state for one in check(tmp_path, chat(tmp_path, *rows))] == ["ok"]
    (found,) = check(tmp_path, chat(tmp_path, *rows), decode=True)
    assert found.state == "pictures"
    assert [line.partition(": ")[0] for line in found.bad_pictures] == ["row 2", "row 3"]


def test_the_table_of_the_paper_fits_80_columns_and_names_every_source(tmp_path) -> None:
    mixture = load_mixture("paper", root=tmp_path)
    table = sources_table(check_sources(mixture))
    assert max(map(len, table.splitlines())) <= 80
    assert all(table.count(source.name) >= 2 for source in mixture.sources)
