"""The reply form: what is written can be read back, and anything else is named as malformed."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.sdk import reply
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.reply import ReplyTokens, find_action_ids, parse_reply, parse_reply_ids, write_reply, write_reply_ids

SPECIAL = ReplyTokens(
    think_open=1, think_close=2, answer_open=3, answer_close=4, action_start=5, action_end=6, first_action=100,
    num_action=50, eos=0,
)  # fmt: skip
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]

part = st.text(min_size=1).filter(lambda text: text.strip() and not any(tag in text for tag in TAGS))
pieces = st.lists(st.sampled_from([*TAGS, "a", " ", "\n", "<", "think>"]), max_size=8).map("".join)
text_ids = st.lists(st.integers(7, 99), min_size=1, max_size=6).map(tuple)
codec_ids = st.lists(st.integers(0, 49), min_size=1, max_size=6).map(tuple)
soup = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 50, 100, 149, 150]), max_size=10)


@given(st.none() | part, part)
def test_a_written_reply_reads_back_as_its_parts(thought, answer):
    read = parse_reply(write_reply(thought, answer))
    assert (read.thought, read.answer, read.is_well_formed, read.problem) == (thought, answer, True, None)


@given(pieces)
def test_a_well_formed_reply_is_exactly_what_would_be_written(text):
    read = parse_reply(text)
    if read.is_well_formed:
        assert write_reply(read.thought, read.answer) == text
    else:
        assert read.problem
        assert (read.thought, read.answer) == (None, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "missing"),
        ("blue", "missing"),
        ("<answer>blue", "expected"),
        ("<think>t</think>", "expected"),
        ("<answer>a</answer><think>t</think>", "expected"),
        ("<think>t</think><answer>a</answer><answer>b</answer>", "expected"),
        ("<think><think>t</think><answer>a</answer>", "expected"),
        ("<Think>t</Think><answer>a</answer>", "outside"),
        (" <answer>a</answer>", "outside"),
        ("<answer>a</answer>\n", "outside"),
        ("<think>t</think> <answer>a</answer>", "outside"),
        ("<think> </think><answer>a</answer>", "thought is blank"),
        ("<think>t</think><answer>\n</answer>", "answer is blank"),
    ],
)
def test_a_malformed_reply_says_what_is_wrong(text, problem):
    read = parse_reply(text)
    assert not read.is_well_formed
    assert problem in read.problem


@pytest.mark.parametrize(
    ("thought", "answer"), [("", "a"), (" ", "a"), (None, ""), ("</think>", "a"), (None, "<answer>")]
)
def test_parts_that_could_not_be_read_back_are_not_written(thought, answer):
    with pytest.raises(DataError, match="blank or holds"):
        write_reply(thought, answer)


@given(st.none() | text_ids, codec_ids)
def test_a_written_action_reply_reads_back_as_its_parts(thought_ids, action_ids):
    read = parse_reply_ids(write_reply_ids(thought_ids, SPECIAL, action_ids=action_ids), SPECIAL)
    assert read.is_well_formed
    assert (read.thought_ids, read.action_ids, read.answer_ids) == (thought_ids, action_ids, None)


@given(st.none() | text_ids, text_ids)
def test_a_written_text_reply_reads_back_as_its_parts(thought_ids, answer_ids):
    read = parse_reply_ids(write_reply_ids(thought_ids, SPECIAL, answer_ids=answer_ids), SPECIAL)
    assert (read.thought_ids, read.action_ids, read.answer_ids) == (thought_ids, None, answer_ids)


@given(soup)
def test_well_formed_ids_are_exactly_what_would_be_written(ids):
    read = parse_reply_ids(ids, SPECIAL)
    assert read.is_well_formed == (read.problem is None)
    if read.is_well_formed:
        parts = {"action_ids": read.action_ids, "answer_ids": read.answer_ids}
        assert list(write_reply_ids(read.thought_ids, SPECIAL, **parts)) == ids


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([], "order"),
        ([3, 5, 100, 6, 4], "order"),
        ([1, 9, 2, 3, 5, 100, 4, 0], "order"),
        ([3, 5, 100, 6, 4, 0, 0], "order"),
        ([3, 1, 9, 2, 5, 100, 6, 4, 0], "order"),
        ([9, 3, 5, 100, 6, 4, 0], "outside"),
        ([3, 9, 5, 100, 6, 4, 0], "outside"),
        ([3, 5, 100, 6, 4, 0, 9], "outside"),
        ([1, 9, 2, 9, 3, 5, 100, 6, 4, 0], "outside"),
        ([3, 5, 6, 4, 0], "empty"),
        ([1, 2, 3, 5, 100, 6, 4, 0], "empty"),
        ([3, 4, 0], "empty"),
        ([1, 100, 2, 3, 5, 100, 6, 4, 0], "in the thought"),
        ([3, 5, 100, 9, 6, 4, 0], "mixes"),
        ([3, 9, 100, 4, 0], "mixes"),
    ],
)
def test_malformed_ids_say_what_is_wrong(ids, problem):
    read = parse_reply_ids(ids, SPECIAL)
    assert not read.is_well_formed
    assert problem in read.problem


@pytest.mark.parametrize(
    "parts", [{}, {"action_ids": [1], "answer_ids": [9]}, {"action_ids": []}, {"action_ids": [50]}]
)
def test_ids_that_could_not_be_read_back_are_not_written(parts):
    with pytest.raises(DataError):
        write_reply_ids(None, SPECIAL, **parts)


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([9, 9], None),
        ([9, 5], ()),
        ([5, 100, 149, 6, 4, 0], (0, 49)),
        ([1, 9, 5, 101, 9, 102], (1,)),
        ([5, 101, 5, 102], (1,)),
    ],
)
def test_action_ids_are_found_in_malformed_replies_too(ids, found):
    assert find_action_ids(ids, SPECIAL) == found


def test_tokens_that_share_an_id_are_refused():
    with pytest.raises(ConfigError, match="share an id"):
        ReplyTokens(
            think_open=1, think_close=2, answer_open=3, answer_close=4, action_start=5, action_end=6, first_action=3,
            num_action=5, eos=0,
        )  # fmt: skip


def test_examples_in_the_docstrings_are_true():
    assert doctest.testmod(reply).failed == 0
