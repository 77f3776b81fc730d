"""What changes a key, and what does not."""

import pytest

from roboalign.reproduce.cache import content_hash, meaning, rooms_of, source_hash, step_key

WORDS = ("train", "head", "{sft.s0}", "--seed", "0")
KEY = step_key(WORDS, {"sft.s0": "abc"}, source="one")


@pytest.mark.parametrize(
    "other",
    [
        step_key((*WORDS[:-1], "1"), {"sft.s0": "abc"}, source="one"),
        step_key(WORDS, {"sft.s0": "abd"}, source="one"),
        step_key(WORDS, {"sft.s0": "abc"}, source="two"),
    ],
    ids=["another word", "another input", "another source"],
)
def test_command_inputs_and_source_are_in_the_key(other):
    assert other != KEY


def test_the_name_of_an_input_is_not_in_the_key():
    assert step_key(("train", "head", "{other}", "--seed", "0"), {"other": "abc"}, source="one") == KEY


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.txt").write_text("a")
    return tmp_path


def test_names_and_bytes_are_content(folder):
    before = content_hash(folder)
    (folder / "inner" / "a.txt").write_text("b")
    changed = content_hash(folder)
    (folder / "inner" / "a.txt").rename(folder / "inner" / "b.txt")
    assert len({before, changed, content_hash(folder)}) == 3


def test_hidden_files_are_not_content(folder):
    before = content_hash(folder)
    (folder / ".lock").write_text("1")
    assert content_hash(folder) == before


def test_comments_layout_and_docstrings_say_nothing():
    assert meaning('def f(x):\n    """Says."""\n    return x  # why\n') == meaning("def f(x): return x\n")


def test_another_statement_says_something_else():
    assert meaning("def f(x): return x\n") != meaning("def f(x): return x + 1\n")


def test_each_room_has_its_source():
    assert len({source_hash(rooms) for rooms in (("export",), ("trainer",), ("export", "trainer"))}) == 3


def test_a_checkpoint_that_is_evaluated_brings_the_trainer(folder):
    assert rooms_of("eval", [folder]) == ("sdk",)
    (folder / "roboalign.json").write_text("{}")
    assert rooms_of("eval", [folder]) == ("sdk", "trainer")
