import json
import sys
from pathlib import Path

import pytest

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.data.mixture import PAIRINGS, PAPER_MIXTURE, SAMPLE_KINDS, Mixture, load_mixture

ROBOT = {"name": "robot", "format": "lerobot", "path": "demos", "weight": 3}
CHAT = {"name": "talk", "format": "chat", "path": "talk.jsonl", "weight": 1}


def write(folder: Path, *sources: object, **more: object) -> Path:
    path = folder / "mix.json"
    path.write_text(json.dumps({"source": list(sources), **more}))
    return path


def load(folder: Path, *sources: object, **more: object) -> Mixture:
    return load_mixture(write(folder, *sources, **more))


def test_a_mixture_names_its_sources_and_their_shares(tmp_path) -> None:
    mixture = load(tmp_path, ROBOT, CHAT)
    assert (mixture.name, dict(mixture.shares)) == ("mix", {"robot": 0.75, "talk": 0.25})


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the standard library reads TOML from 3.11 on")
def test_toml_reads_as_json_does(tmp_path) -> None:
    tables = "".join(
        "[[source]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in source.items())
        for source in (ROBOT, CHAT)
    )
    (tmp_path / "mix.toml").write_text(tables)
    assert load_mixture(tmp_path / "mix.toml") == load(tmp_path, ROBOT, CHAT)


def test_paths_start_from_the_file_or_from_the_root(tmp_path) -> None:
    path = write(tmp_path, {**CHAT, "images": "pictures"})
    (source,) = load_mixture(path).sources
    assert (source.path, source.images) == (tmp_path / "talk.jsonl", tmp_path / "pictures")
    assert load_mixture(path, root=Path("/data")).sources[0].path == Path("/data/talk.jsonl")


def test_a_robot_source_is_zero_shot_unless_it_says_otherwise(tmp_path) -> None:
    (plain,) = load(tmp_path, ROBOT).sources
    assert plain.kind_shares == PAIRINGS["zero-shot"]
    (paired,) = load(tmp_path, {**ROBOT, "pairing": "paired"}).sources
    assert paired.kind_shares == PAIRINGS["paired"]


def test_kinds_spell_their_shares_out(tmp_path) -> None:
    (source,) = load(tmp_path, {**ROBOT, "kinds": {"action": 2, "reason": 1, "vqa": 0}}).sources
    assert source.kind_shares == {"action": 2, "reason": 1}


@pytest.mark.parametrize("pairing", sorted(PAIRINGS))
def test_the_shares_of_a_pairing_name_known_kinds_and_sum_to_one(pairing) -> None:
    assert set(PAIRINGS[pairing]) <= set(SAMPLE_KINDS)
    assert sum(PAIRINGS[pairing].values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({**CHAT, "wieght": 2}, r"source 1: unknown key 'wieght'; did you mean weight\?"),
        ({"name": "a"}, "source 1 lacks format, path, weight; every source has name, format, path, weight"),
        ({**CHAT, "format": "caht"}, r"source 'talk': unknown format 'caht'; did you mean chat\?"),
        ({**CHAT, "weight": -1}, "the weights of 'mix': talk is -1, expected a number that is not negative"),
        ({**CHAT, "weight": "1"}, "the weights of 'mix': talk is '1', expected a number that is not negative"),
        ({**CHAT, "weight": float("nan")}, "the weights of 'mix': talk is nan"),
        ({**CHAT, "weight": 0}, "the weights of 'mix' sum to 0, expected a positive sum"),
        ({**CHAT, "path": 7}, "source 1: path is 7, expected a str"),
        ({**CHAT, "turns": "join"}, r"source 'talk': unknown turns 'join'; did you mean joined\?"),
        ({**CHAT, "style": "spatial"}, "source 'talk' is of format chat and sets kinds, pairing, style or thought"),
        ({**ROBOT, "turns": "split"}, "source 'robot' is of format lerobot and sets images, turns or on_bad_image"),
        ({**ROBOT, "pairing": "pared"}, r"source 'robot': unknown pairing 'pared'; did you mean paired\?"),
        ({**ROBOT, "kinds": {"acton": 1}}, r"source 'robot': unknown kind 'acton'; did you mean action"),
        ({**ROBOT, "kinds": {"action": 0}}, "source 'robot': kinds sum to 0, expected a positive sum"),
        ({**ROBOT, "kinds": {"action": 1}, "pairing": "paired"}, "has both pairing and kinds, expected one"),
        ({**ROBOT, "style": "spacial"}, r"source 'robot': unknown style 'spacial'; did you mean spatial\?"),
        ("talk.jsonl", "source 1 is a str, expected a table"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_with_the_file(tmp_path, source, message) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load(tmp_path, source)
    assert str(error.value).startswith(str(tmp_path / "mix.json"))
    assert "\n" not in str(error.value)


def test_two_sources_of_one_name_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="has two sources named 'talk'; rename one"):
        load(tmp_path, CHAT, CHAT)


@pytest.mark.parametrize("content", [{}, {"source": []}, {"source": {}}, {"sources": [CHAT]}])
def test_a_file_without_sources_is_refused(tmp_path, content) -> None:
    (tmp_path / "mix.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"no source|list of sources|unknown key 'sources'; did you mean source\?"):
        load_mixture(tmp_path / "mix.json")


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the mixture .*nowhere\.toml"):
        load_mixture(tmp_path / "nowhere.toml")


def test_the_mixture_of_the_paper_has_its_numbers_of_samples() -> None:
    mixture = load_mixture("paper", root=Path("/data"))
    assert PAPER_MIXTURE.is_file()
    robot = [source.weight for source in mixture.sources if source.format == "lerobot"]
    asked = [source.weight for source in mixture.sources if source.format == "chat"]
    assert (sum(robot), round(sum(asked), -4)) == (400_000, 1_880_000)
    assert all(source.rows >= source.weight and source.download for source in mixture.sources)
