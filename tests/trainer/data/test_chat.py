import json
from pathlib import Path

import pytest

from roboalign.sdk.errors import DataError
from roboalign.trainer.data.chat import ChatFile

TALK = [
    {"from": "human", "value": "<image>\nwhat is it"},
    {"from": "gpt", "value": "a cup"},
    {"from": "human", "value": "what colour"},
    {"from": "gpt", "value": "red"},
]
MESSAGES = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it"}]},
    {"role": "assistant", "content": "a cup"},
]
ROW = {"image": "a.png", "conversations": TALK}


def write(folder: Path, rows: list[object], name: str = "talk.jsonl") -> Path:
    path = folder / name
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(json.dumps(row) for row in rows))
    return path


def asked(file: ChatFile) -> list[tuple[int, str, str | None]]:
    return [(found.row, found.text, found.answer) for found in map(file.at, range(len(file)))]


def test_joined_turns_stand_before_the_last_question(tmp_path) -> None:
    found = asked(ChatFile(write(tmp_path, [ROW])))
    assert found == [(1, "what is it", "a cup"), (1, "what is it\na cup\nwhat colour", "red")]


def test_split_turns_forget_what_was_before(tmp_path) -> None:
    found = asked(ChatFile(write(tmp_path, [ROW]), turns="split"))
    assert found == [(1, "what is it", "a cup"), (1, "what colour", "red")]


@pytest.mark.parametrize("name", ["talk.jsonl", "talk.json", "talk.parquet"])
def test_every_kind_of_file_reads_alike(tmp_path, name) -> None:
    rows = [{"image": f"{n}.png", "conversations": TALK[: 2 if n % 2 else 4]} for n in range(5)]
    file = ChatFile(write(tmp_path, rows, name))
    assert (file.num_rows, len(file)) == (5, 8)
    assert [found.row for found in map(file.at, range(8))] == [1, 1, 2, 3, 3, 4, 5, 5]
    assert file.at(7).image == "4.png"


def test_messages_read_as_conversations_do(tmp_path) -> None:
    found = asked(ChatFile(write(tmp_path, [{"image": "a.png", "messages": MESSAGES}])))
    assert found == [(1, "be short\nwhat is it", "a cup")]


@pytest.mark.parametrize("image", [b"png", {"bytes": b"png", "path": "a.png"}])
def test_a_parquet_file_may_hold_the_pictures(tmp_path, image) -> None:
    path = write(tmp_path, [{"image": image, "conversations": TALK[:2]}], "talk.parquet")
    assert ChatFile(path).at(0).image == b"png"


def test_a_whole_reply_is_taken_apart(tmp_path) -> None:
    said = [TALK[0], {"from": "gpt", "value": "<think>it has a handle</think><answer>a cup</answer>"}]
    found = ChatFile(write(tmp_path, [{"conversations": said}])).at(0)
    assert (found.thought, found.answer, found.image) == ("it has a handle", "a cup", None)


def test_an_action_follows_a_thought(tmp_path) -> None:
    said = [TALK[0], {"from": "gpt", "value": "<think>go up</think>"}]
    row = {"conversations": said, "state": [0, 0, 0, 0, 1], "action": [[0.0] * 5] * 2}
    found = ChatFile(write(tmp_path, [row])).at(0)
    assert (found.thought, found.answer) == ("go up", None)
    assert (found.state.shape, found.action.shape) == ((5,), (2, 5))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hello"}, "row 2: no conversations and no messages; found text"),
        ({"conversations": TALK[:1]}, "row 2: the last question has no answer"),
        ({"conversations": TALK[1:3]}, "row 2: the turns are assistant, user, expected question and answer in turn"),
        ({"conversations": [{"from": "cat", "value": "mew"}]}, r"row 2: a turn is .*, expected from \(one of human"),
        ({"conversations": [{"from": "human", "value": "<image>"}, TALK[1]]}, "row 2: a question is empty"),
        ({"conversations": [TALK[0], {"from": "gpt", "value": " "}]}, "row 2: the answer '' cannot be learnt"),
        ({"conversations": [TALK[0], {"from": "gpt", "value": "<think>x"}]}, "row 2: the answer '<think>x' cannot"),
        ({"images": ["a", "b"], "conversations": TALK}, "row 2: 2 pictures, expected one"),
        ({"image": 7, "conversations": TALK}, "row 2: the picture is a int, expected a path or bytes"),
        ({"state": ["x"], "conversations": TALK}, "row 2: state is no array of numbers"),
        ({"action": [1.0], "conversations": TALK[:2]}, r"row 2: action has shape \[1\], expected 2 dimensions"),
        ({"action": [[1.0]], "conversations": TALK}, "row 2: an action answers one question, found 4 turns"),
        ({"action": [[1.0]], "conversations": TALK[:2]}, "row 2: the answer beside an action is 'a cup', expected"),
        (["a list"], "row 2: found a list, expected a conversation"),
    ],
)
def test_a_row_that_is_no_conversation_is_told_with_file_and_row(tmp_path, row, message) -> None:
    with pytest.raises(DataError, match=message) as error:
        ChatFile(write(tmp_path, [ROW, row]))
    assert str(tmp_path / "talk.jsonl") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("talk.jsonl", "", "holds no answer, expected at least one conversation"),
        ("talk.jsonl", '{"a"', "line 1 is no JSON"),
        ("talk.json", "{}", "holds a dict, expected a list of conversations"),
        ("talk.parquet", "PAR", "is not a complete parquet file"),
        ("talk.csv", "", "ends in '.csv', expected one of .jsonl, .json, .parquet"),
    ],
)
def test_a_file_that_holds_no_conversations_is_refused(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        ChatFile(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"there is no chat file .*nowhere\.jsonl"):
        ChatFile(tmp_path / "nowhere.jsonl")
