"""What travels between a policy server and its clients: msgpack, with arrays as openpi's client packs them.

An array is a map of four: `__ndarray__` (true), `data` (its bytes), `dtype` and `shape`. Only numbers of a few types
are accepted, every length and the number of things in a message are bounded, and nothing is executed: there is no
pickle, and an array of Python objects is refused like any other type that does not travel.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import DataError, missing_extra

__all__ = ["MAX_MESSAGE_BYTES", "PROTOCOL_VERSION", "TOKEN_VARIABLE", "import_msgpack", "pack", "unpack", "unpack_map"]

PROTOCOL_VERSION = 2
"""Version of what roboalign adds to openpi's protocol (1 was a protocol over HTTP)."""
TOKEN_VARIABLE = "ROBOALIGN_TOKEN"
"""Environment variable with the token, for server and client; an argument would be seen in the list of processes."""
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest message: five pictures of 1024 pixels a side."""
MAX_THINGS = 20_000
"""Numbers, texts, lists and maps in one message, the elements of arrays not counted."""
MAX_LENGTH = 4096
"""Longest list or map."""
MAX_TEXT_BYTES = 64 * 1024
MAX_SIDE = 2**15
"""Longest side of an array; four of them multiply without overflow."""
MAX_PICTURE_PIXELS = 4 * 1024 * 1024
"""Pixels of all compressed pictures (vla-eval sends PNG) of a message: sizes are looked at before they are decoded."""
_SENT = ("<f4", "|u1")
_ACCEPTED = ("<f4", "<f8", "|u1")


def pack(value: object, *, has_text_names: bool = False) -> bytes:
    """Returns a message.

    Args:
        value: maps, lists, texts, numbers, None, and arrays of float32 or uint8.
        has_text_names: whether the four names of an array are texts (vla-eval) and not bytes (openpi).
    """

    def to_map(item: object) -> object:
        if not isinstance(item, np.ndarray):
            raise DataError(f"{type(item).__name__} does not travel, only numbers, texts and arrays do")
        plain = np.ascontiguousarray(item, item.dtype.newbyteorder("<"))
        if plain.dtype.str not in _SENT:
            raise DataError(f"an array is {item.dtype}, only float32 and uint8 travel")
        row = {"__ndarray__": True, "data": plain.tobytes(), "dtype": plain.dtype.str, "shape": list(plain.shape)}
        return row if has_text_names else {name.encode(): field for name, field in row.items()}

    body: bytes = import_msgpack().packb(value, default=to_map)
    return body


def unpack_map(body: bytes) -> Mapping[str, object]:
    """Returns the map of a message; raises DataError for anything else, see `unpack`."""
    value = unpack(body)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise DataError(f"a message is {type(value).__name__}, expected a map with names")
    return value


def unpack(body: bytes) -> object:
    """Returns the value of a message.

    Raises:
        DataError: It is cut off, too long, holds too much, or holds what does not travel.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        raise DataError(f"a message of {len(body)} bytes came, at most {MAX_MESSAGE_BYTES} are accepted")
    count = _Count()
    try:
        value: object = import_msgpack().unpackb(
            body,
            object_hook=count.read_map,
            list_hook=count.read_list,
            ext_hook=_refuse_extension,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=MAX_MESSAGE_BYTES,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            max_ext_len=12,
        )
    except DataError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as err:
        # msgpack raises ValueError and its children, with the bytes in some messages.
        raise DataError(f"a message is not msgpack as agreed ({type(err).__name__}: {str(err)[:80]})") from err
    return value


class _Count:
    """Reads lists and maps of one message, and stops when there are too many things: one byte can be an object."""

    def __init__(self) -> None:
        self._left, self._pixels_left = MAX_THINGS, MAX_PICTURE_PIXELS

    def read_list(self, items: list[object]) -> list[object]:
        self._take(len(items))
        return items

    def read_map(self, row: dict[object, object]) -> object:
        self._take(len(row))
        names = {name.decode("ascii", "replace") if isinstance(name, bytes) else name: name for name in row}
        if "__ndarray__" in names:
            return _array(*(row.get(names.get(field)) for field in ("data", "dtype", "shape")))
        if "__npgeneric__" in names:
            return _scalar(row.get(names.get("data")))
        if "__image__" in names:
            picture = _picture(row, self._pixels_left)
            self._pixels_left -= math.prod(picture.shape[:2])
            return picture
        return row

    def _take(self, num: int) -> None:
        self._left -= num + 1
        if self._left < 0:
            raise DataError(f"a message holds more than {MAX_THINGS} things")


def _array(data: object, dtype: object, shape: object) -> NDArray[np.generic]:
    if not isinstance(dtype, str) or dtype not in _ACCEPTED:
        raise DataError(f"an array of type {dtype!r:.40} came, only {', '.join(_ACCEPTED)} are accepted")
    is_shape = isinstance(shape, list) and len(shape) <= 4 and all(type(n) is int and 0 <= n <= MAX_SIDE for n in shape)
    if not isinstance(data, bytes) or not isinstance(shape, list) or not is_shape:
        raise DataError(f"an array of shape {shape!r:.60} came, expected up to 4 sides to {MAX_SIDE}, and its bytes")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size != len(data):
        raise DataError(f"an array of shape {shape} and type {dtype} came with {len(data)} bytes, expected {size}")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"a number came as {value!r:.40}")
    return value


def _picture(row: Mapping[object, object], max_pixels: int) -> NDArray[np.generic]:
    """Returns a picture that vla-eval packed: `raw`, `png` or `jpeg`."""
    if row.get("format") == "raw":
        return _array(row.get("data"), row.get("dtype"), row.get("shape"))
    from PIL import Image

    data = row.get("data")
    if not isinstance(data, bytes) or row.get("format") not in ("png", "jpeg"):
        raise DataError(f"a picture came as {row.get('format')!r:.40}, expected raw, png or jpeg, and its bytes")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > max_pixels:
                raise DataError(
                    f"a picture of {picture.size} came, at most {MAX_PICTURE_PIXELS} pixels are accepted in a message"
                )
            return np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        if isinstance(err, DataError):
            raise
        raise DataError(f"a picture cannot be read ({type(err).__name__}: {str(err)[:80]})") from err


def _refuse_extension(code: int, _data: bytes) -> object:
    raise DataError(f"an extension type ({code}) came; only numbers, texts and arrays travel")


def import_msgpack() -> ModuleType:
    """Returns the package; raises BackendError when it is absent."""
    try:
        import msgpack
    except ImportError as err:
        raise missing_extra("msgpack", "serve", "a served policy") from err
    found: ModuleType = msgpack
    return found
