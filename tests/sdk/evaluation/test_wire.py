import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from roboalign.sdk.errors import DataError
from roboalign.sdk.evaluation import wire
from roboalign.sdk.evaluation.wire import (
    chunk_from_bytes,
    chunk_to_bytes,
    decode,
    encode,
    observation_from_bytes,
    observation_to_bytes,
)
from roboalign.sdk.types import ActionChunk, Observation

FINITE = st.floats(-10, 10, width=32)


@given(
    actions=st_numpy.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(5)), elements=FINITE),
    thought=st.none() | st.text(),
    tokens=st.lists(st.integers(0, 10**6)),
)
def test_an_answer_survives_the_wire(actions, thought, tokens):
    chunk = ActionChunk(
        actions=actions, rate_hz=10.0, source="flow", thought=thought, tokens=tuple(tokens), latency_s={"total": 0.5}
    )
    back = chunk_from_bytes(chunk_to_bytes(chunk))
    np.testing.assert_array_equal(back.actions, chunk.actions)
    assert (back.thought, back.tokens, back.latency_s) == (thought, chunk.tokens, {"total": 0.5})


def test_a_hold_survives_the_wire():
    back = chunk_from_bytes(chunk_to_bytes(ActionChunk.hold("no answer", rate_hz=5.0)))
    assert (back.source, back.reason, back.rate_hz, back.actions.shape) == ("hold", "no answer", 5.0, (0, 5))


@given(image=st_numpy.arrays(np.uint8, (6, 4, 3)), instruction=st.text())
def test_an_observation_survives_the_wire(image, instruction):
    sent = Observation(
        images={"front": image, "wrist": image[::-1]},
        state=np.arange(5, dtype=np.float32),
        joint_pos_rad=np.zeros(7, np.float32),
        instruction=instruction,
        time_s=1.5,
    )
    back, call = observation_from_bytes(observation_to_bytes(sent, call=3))
    np.testing.assert_array_equal(back.images["wrist"], image[::-1])
    assert (back.instruction, back.time_s, call) == (instruction, 1.5, 3)


@given(body=st.binary(max_size=200))
def test_garbage_is_a_data_error(body):
    for read in (decode, observation_from_bytes, chunk_from_bytes):
        with pytest.raises(DataError):
            read(body)


@given(cut=st.integers(0, 10_000))
def test_a_cut_message_is_a_data_error(cut):
    body = encode({"a": 1}, {"x": np.zeros((3, 4), np.float32)})
    with pytest.raises(DataError):
        decode(body[: cut % len(body)])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (encode({}, {"x": np.zeros(3, np.float32)}) + b"more", "left over"),
        (encode({}, {}).replace(b'"version": 1', b'"version": 2'), "speaks version 2"),
        (encode({}, {"x": np.zeros(3, np.float32)}).replace(b"<f4", b"|O8"), "only float32"),
        (encode({}, {"x": np.zeros(3, np.float32)}).replace(b"[3]", b"[9]"), "needs 36 bytes"),
        (encode({}, {"x": np.zeros(33, np.float32)}).replace(b"[33]", b"[-3]"), "only float32"),
    ],
)
def test_a_message_that_lies_is_explained(body, message):
    with pytest.raises(DataError, match=message):
        decode(body)


def test_a_message_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 10)
    with pytest.raises(DataError, match="at most 10"):
        decode(b"\x00" * 11)


def test_other_types_do_not_travel():
    with pytest.raises(DataError, match="float64"):
        encode({}, {"x": np.zeros(3)})


@pytest.mark.parametrize(
    "header",
    [
        "[1]",
        '{"version": ' + "1" * 5000 + ', "arrays": []}',
        '{"version": 1, "arrays": [{"name": "a", "dtype": "<f4", "shape": [0, 1' + "0" * 30 + "]}]}",
        '{"version": 1, "arrays": [{"name": "a", "dtype": "<f4", "shape": [0, 1099511627776, 1099511627776]}]}',
        '{"version": 1, "arrays": [{"name": "a", "dtype": "<f4", "shape": [Infinity]}]}',
    ],
)
def test_numbers_that_no_machine_holds_are_refused(header):
    """They left `decode` as the errors of numpy and json, which a server answers as a bug in the policy."""
    with pytest.raises(DataError):
        decode(struct.pack("<I", len(header)) + header.encode())


def test_a_time_that_no_machine_holds_is_refused():
    arrays = {"state": np.zeros(5, np.float32), "joint_pos_rad": np.zeros(7, np.float32)}
    body = encode({"instruction": "go", "time_s": 10**400, "call": 1}, arrays)
    with pytest.raises(DataError, match="not an observation"):
        observation_from_bytes(body)
