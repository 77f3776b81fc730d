import io
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.sdk.errors import BackendError
from roboalign.sdk.libero import server
from roboalign.sdk.libero.client import LiberoClient

MakeClient = Callable[..., LiberoClient]


def message(header: dict[str, object], arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    server.write_message(stream, header, arrays)
    return stream.getvalue()


@given(st.sampled_from(server.DTYPES), st.lists(st.integers(0, 4), max_size=3), st.text(max_size=20))
def test_a_message_comes_back_as_it_was_sent(dtype: str, shape: list[int], text: str) -> None:
    array = np.ones(shape, dtype)
    header, arrays = server.read_message(io.BytesIO(message({"text": text}, {"one": array, "two": array}))) or ({}, {})
    assert header == {"text": text}
    assert arrays["two"].dtype == dtype
    assert np.array_equal(arrays["two"], array)


@pytest.mark.parametrize("length", [1, 15, 16, 30, -1])
def test_a_cut_message_is_named_as_such(length: int) -> None:
    whole = message({"op": "step"}, {"action": np.zeros(7)})
    with pytest.raises(server.MessageError, match="ends after"):
        server.read_message(io.BytesIO(whole[:length]))


@given(st.binary(min_size=16, max_size=200))
def test_garbage_is_no_message(data: bytes) -> None:
    with pytest.raises(server.MessageError):
        server.read_message(io.BytesIO(data))


def test_a_stream_that_ends_between_messages_is_an_end() -> None:
    assert server.read_message(io.BytesIO(b"")) is None


@pytest.mark.parametrize("listed", [[["a", "object", [1]]], [["a", "uint8", [3]]], [["a", "uint8", [1, 1]]]])
def test_arrays_that_do_not_fit_are_refused(listed: list[object]) -> None:
    text = server.json.dumps({"arrays": listed}).encode()
    data = server.HEAD.pack(server.MAGIC, len(text), 2) + text + b"xx"
    with pytest.raises(server.MessageError):
        server.read_message(io.BytesIO(data))


def test_what_the_benchmark_prints_does_not_disturb_the_answers(make_client: MakeClient) -> None:
    with make_client() as client:
        client.ask("open", {"suite": "libero_object", "task": "t"})
        header, arrays = client.ask("reset", {"seed": 1, "state": None})
    assert header["is_success"] is False
    assert arrays["joints"].shape == (7,)


def test_an_error_of_the_benchmark_travels_and_the_process_lives_on(make_client: MakeClient) -> None:
    with make_client() as client:
        with pytest.raises(BackendError, match="LIBERO refused 'reset': LookupError: no task is open"):
            client.ask("reset", {"seed": 1, "state": None})
        assert client.ask("hello")[0]["protocol"] == server.PROTOCOL


def test_a_process_that_dies_is_quoted(make_client: MakeClient) -> None:
    client = make_client("die")
    client.open()
    client.ask("open", {"suite": "libero_object", "task": "t"})
    with pytest.raises(BackendError, match=r"ended at 'step'.*Segmentation fault, more or less"):
        client.ask("step", {}, {"action": np.zeros(7)})
    assert not client.is_open


def test_a_process_that_hangs_is_given_up_and_killed(make_client: MakeClient) -> None:
    client = make_client("hang", 1.0)
    client.open()
    client.ask("open", {"suite": "libero_object", "task": "t"})
    start_s = time.monotonic()
    with pytest.raises(BackendError, match="did not answer 'step' within 1 s"):
        client.ask("step", {}, {"action": np.zeros(7)})
    assert time.monotonic() - start_s < 10
    assert not client.is_open


def test_another_protocol_is_refused_with_both_versions(make_client: MakeClient) -> None:
    with pytest.raises(BackendError, match="speaks protocol 99, this roboalign 1"):
        make_client("other-protocol").open()


def test_a_process_that_says_something_else_is_refused() -> None:
    client = LiberoClient([sys.executable, "-c", "print('hello, this is no benchmark')"])
    with pytest.raises(BackendError, match="failed at 'hello'"):
        client.open()


def test_an_interpreter_that_is_missing_names_the_way_out() -> None:
    with pytest.raises(BackendError, match="libero setup"):
        LiberoClient(["/no/such/python"]).open()


def test_close_may_be_called_at_any_time_and_twice(make_client: MakeClient) -> None:
    client = make_client()
    client.close()
    client.open()
    client.close()
    client.close()
    with pytest.raises(BackendError, match="not open"):
        client.ask("hello")
