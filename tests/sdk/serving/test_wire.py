import contextlib
import io
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from roboalign.sdk.errors import DataError
from roboalign.sdk.serving import wire
from roboalign.sdk.serving.wire import pack, unpack, unpack_map

ARRAYS = st_numpy.arrays(st.sampled_from([np.uint8, np.float32]), st_numpy.array_shapes(max_dims=4, min_side=0))
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
NAMES = st.text().filter(lambda name: name not in ("__ndarray__", "__npgeneric__", "__image__"))


def array(dtype="<f4", shape=(3,), data=bytes(12), mark=b"__ndarray__"):
    """An array as openpi's client packs it, or as somebody lies about one."""
    return msgpack.packb({"x": {mark: True, b"data": data, b"dtype": dtype, b"shape": shape}})


@given(value=ARRAYS, has_text_names=st.booleans())
def test_an_array_survives_the_wire(value, has_text_names):
    back = unpack_map(pack({"x": value}, has_text_names=has_text_names))["x"]
    np.testing.assert_array_equal(back, value)
    assert (back.dtype, back.shape) == (value.dtype, value.shape)


@given(body=st.binary(max_size=300))
def test_garbage_is_a_data_error_or_harmless(body):
    try:
        value = unpack(body)
    except DataError:
        return
    assert isinstance(value, (type(None), bool, int, float, str, bytes, list, dict, np.ndarray))


@given(value=st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=20))
def test_plain_values_are_read_as_msgpack_says(value):
    assert repr(unpack(msgpack.packb(value))) == repr(value)


@given(cut=st.integers(0, 10_000), flip=st.integers(0, 255))
def test_a_damaged_message_is_a_data_error_or_another_message(cut, flip):
    body = bytearray(pack({"state": np.arange(5, dtype=np.float32), "prompt": "go", "images": {}}))
    body[cut % len(body)] ^= flip
    for damaged in (bytes(body), bytes(body[: cut % len(body)])):
        with contextlib.suppress(DataError):
            assert isinstance(unpack_map(damaged), dict)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not msgpack as agreed"),
        (msgpack.packb([1]), "expected a map"),
        (msgpack.packb({b"x": 1}), "expected a map"),
        (msgpack.packb({1: 1}), "not msgpack as agreed"),
        (array(dtype="|O", data=bytes(24)), r"type '\|O' came"),
        (array(dtype="|V4"), r"type '\|V4' came"),
        (array(dtype=[("a", "<f4")]), "only <f4"),
        (array(dtype=">f4"), "only <f4"),
        (array(shape=(4,)), "12 bytes, expected 16"),
        (array(shape=(-3,)), "expected up to 4 sides"),
        (array(shape=(2**40, 0)), "expected up to 4 sides"),
        (array(shape=(1, 1, 1, 1, 3)), "expected up to 4 sides"),
        (array(shape=3), "expected up to 4 sides"),
        (array(shape=(True, 3)), "expected up to 4 sides"),
        (array(data="x"), "expected up to 4 sides"),
        (array(mark=b"__npgeneric__", data="x"), "a number came"),
        (msgpack.packb({"x": msgpack.ExtType(5, b"x")}), "extension type"),
        (msgpack.packb({"x": "a" * 70_000}), "not msgpack as agreed"),
        (msgpack.packb({"x": [0] * 5_000}), "not msgpack as agreed"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack as agreed"),
        (b"\x91" * 100_000 + b"\x00", "not msgpack as agreed"),
        (msgpack.packb([[0] * 4_000] * 10), "more than 20000 things"),
        (pack({"x": 1}) + b"\x00", "not msgpack as agreed"),
    ],
)
def test_a_message_that_lies_or_asks_for_too_much_is_explained(body, message):
    with pytest.raises(DataError, match=message):
        unpack_map(body)


def test_a_small_message_cannot_ask_for_much_memory():
    """One byte is an empty map, which takes 64 bytes here: sixteen megabytes would become a gigabyte."""
    body = b"\x9f" + (b"\xdc\x0f\xff" + b"\x80" * 4095) * 15
    body = b"\x9f" + body * 15
    tracemalloc.start()
    with pytest.raises(DataError, match="more than"):
        unpack(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(body)


def test_many_small_pictures_cannot_ask_for_much_memory_together():
    """Two thousand pixels a side are eight kilobytes when they are black, and twelve megabytes when they are not."""
    one = {"__image__": True, "format": "png", "data": png(Image.new("RGB", (2000, 2000))), "shape": []}
    assert unpack(msgpack.packb([one]))[0].shape == (2000, 2000, 3)
    with pytest.raises(DataError, match="at most 4194304 pixels are accepted in a message"):
        unpack(msgpack.packb([one, one]))


def test_a_message_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 10)
    with pytest.raises(DataError, match="at most 10"):
        unpack(b"\x00" * 11)


@pytest.mark.parametrize("value", [np.zeros(3), np.array([None]), object(), {1, 2}])
def test_other_types_do_not_travel(value):
    with pytest.raises(DataError, match="travel"):
        pack({"x": value})


def png(image, kind="PNG"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def picture(data, kind="png"):
    return msgpack.packb({"x": {"__image__": True, "format": kind, "data": data, "shape": [6, 4, 3]}})


def test_a_compressed_picture_is_read():
    pixels = np.arange(72, dtype=np.uint8).reshape(6, 4, 3)
    np.testing.assert_array_equal(unpack_map(picture(png(Image.fromarray(pixels))))["x"], pixels)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (picture(b"nothing"), "cannot be read"),
        (picture(png(Image.new("RGB", (4, 4)), "GIF")), "cannot be read"),
        (picture(png(Image.new("RGB", (4, 4)))[:40]), "cannot be read"),
        (picture(png(Image.new("1", (3000, 3000)))), "at most 4194304 pixels"),
        (picture(b"", "webp"), "expected raw, png or jpeg"),
        (picture("text"), "expected raw, png or jpeg"),
    ],
)
def test_a_picture_that_is_none_or_too_large_is_refused(body, message):
    with pytest.raises(DataError, match=message):
        unpack_map(body)
