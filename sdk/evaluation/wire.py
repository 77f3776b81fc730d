"""What travels between a policy server and its client: a JSON header and raw arrays, in both directions.

    4 bytes   length of the header, unsigned, little-endian
    header    JSON: `version`, the fields of the message, and `arrays`: name, dtype and shape of each
    arrays    their elements one after another, little-endian, C order

Only numbers of known types are accepted, every length is checked before anything is read, and nothing is executed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import DataError
from roboalign.sdk.types import ActionChunk, FloatArray, ImageArray, Observation

__all__ = [
    "MAX_BODY_BYTES",
    "PROTOCOL_VERSION",
    "Message",
    "check_version",
    "chunk_from_bytes",
    "chunk_to_bytes",
    "decode",
    "encode",
    "observation_from_bytes",
    "observation_to_bytes",
]

PROTOCOL_VERSION = 1
"""Version of the messages; the other side must have the same."""
MAX_BODY_BYTES = 64 * 1024 * 1024
"""Largest message: a dozen pictures of 1024 pixels a side."""
MAX_HEADER_BYTES = 1024 * 1024
MAX_ARRAYS = 16
_MAX_SIDE = 2**15
"""Longest side of an array; four of them multiply without overflow."""
_DTYPES = ("<f4", "|u1")
_IMAGE = "image:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One decoded message."""

    fields: Mapping[str, object]
    """The header without `version` and `arrays`."""
    arrays: Mapping[str, NDArray[np.generic]]
    """Arrays by name."""


def encode(fields: Mapping[str, object], arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Returns the bytes of a message; arrays are float32 or uint8."""
    rows, parts = [], []
    for name, array in arrays.items():
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        if plain.dtype.str not in _DTYPES:
            raise DataError(f"array {name!r} is {array.dtype}, only float32 and uint8 travel")
        rows.append({"name": name, "dtype": plain.dtype.str, "shape": list(plain.shape)})
        parts.append(plain.tobytes())
    header = json.dumps({"version": PROTOCOL_VERSION, **fields, "arrays": rows}).encode()
    return struct.pack("<I", len(header)) + header + b"".join(parts)


def decode(body: bytes) -> Message:
    """Returns the message in `body`.

    Raises:
        DataError: It is cut off, too long, of another protocol version, or not a message.
    """
    if len(body) > MAX_BODY_BYTES:
        raise DataError(f"a message of {len(body)} bytes came, at most {MAX_BODY_BYTES} are accepted")
    if len(body) < 4:
        raise DataError(f"a message of {len(body)} bytes came, expected a length and a header")
    (length,) = struct.unpack_from("<I", body)
    if length > min(MAX_HEADER_BYTES, len(body) - 4):
        raise DataError(f"the header of a message says it has {length} bytes, but {len(body) - 4} bytes came")
    try:
        header = json.loads(body[4 : 4 + length].decode("utf-8"))
        version = header.pop("version")
        rows = header.pop("arrays")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise DataError(f"the header of a message is not what was agreed ({type(err).__name__}: {err})") from err
    check_version(version)
    return Message(fields=header, arrays=_read_arrays(rows, memoryview(body)[4 + length :]))


def check_version(version: object) -> None:
    """Raises DataError when the other side speaks another version of the protocol."""
    if version != PROTOCOL_VERSION:
        raise DataError(
            f"the other side speaks version {version!r} of the policy protocol, this roboalign speaks"
            f" {PROTOCOL_VERSION}; install the same version of roboalign on both sides"
        )


def _read_arrays(rows: object, rest: memoryview) -> dict[str, NDArray[np.generic]]:
    if not isinstance(rows, list) or len(rows) > MAX_ARRAYS:
        raise DataError(f"the header of a message does not list its arrays (at most {MAX_ARRAYS})")
    arrays: dict[str, NDArray[np.generic]] = {}
    offset = 0
    for row in rows:
        try:
            name, dtype, shape = str(row["name"]), row["dtype"], [int(size) for size in row["shape"]]
        except (KeyError, TypeError, ValueError, OverflowError) as err:
            raise DataError(f"an array of a message has no name, dtype or shape: {row!r:.80}") from err
        is_possible = all(0 <= size <= _MAX_SIDE for size in shape)
        if dtype not in _DTYPES or len(shape) > 4 or not is_possible or name in arrays:
            raise DataError(f"array {name!r:.40} of a message is {dtype!r:.20}{shape}; only float32 and uint8 travel")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > len(rest) - offset:
            raise DataError(f"array {name!r:.40} of a message needs {size} bytes, {len(rest) - offset} are left")
        arrays[name] = np.frombuffer(rest[offset : offset + size], dtype).reshape(shape).copy()
        offset += size
    if offset != len(rest):
        raise DataError(f"{len(rest) - offset} bytes are left over behind the arrays of a message")
    return arrays


def observation_to_bytes(observation: Observation, *, call: int) -> bytes:
    """Returns an observation as a message; `call` numbers the calls of a session, so that one can be repeated."""
    fields = {"instruction": observation.instruction, "time_s": observation.time_s, "call": call}
    arrays: dict[str, NDArray[np.generic]] = {"state": observation.state, "joint_pos_rad": observation.joint_pos_rad}
    arrays |= {_IMAGE + name: image for name, image in observation.images.items()}
    return encode(fields, arrays)


def observation_from_bytes(body: bytes) -> tuple[Observation, int]:
    """Returns the observation of a message and the number of the call; raises DataError for anything else."""
    message = decode(body)
    try:
        images = {n.removeprefix(_IMAGE): _bytes(a) for n, a in message.arrays.items() if n.startswith(_IMAGE)}
        observation = Observation(
            images=images,
            state=_floats(message.arrays["state"]),
            joint_pos_rad=_floats(message.arrays["joint_pos_rad"]),
            instruction=_text(message.fields["instruction"]),
            time_s=float(_number(message.fields["time_s"])),
        )
        return observation, int(_number(message.fields["call"]))
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise DataError(f"the message is not an observation: {err}") from err


def chunk_to_bytes(chunk: ActionChunk) -> bytes:
    """Returns an answer as a message."""
    fields = {
        "rate_hz": chunk.rate_hz,
        "source": chunk.source,
        "thought": chunk.thought,
        "reason": chunk.reason,
        "tokens": list(chunk.tokens),
        "latency_s": dict(chunk.latency_s),
    }
    return encode(fields, {"actions": chunk.actions})


def chunk_from_bytes(body: bytes) -> ActionChunk:
    """Returns the answer of a message; raises DataError for anything else."""
    message = decode(body)
    fields = message.fields
    try:
        latency_s, tokens = fields["latency_s"], fields["tokens"]
        if not isinstance(latency_s, dict) or not isinstance(tokens, list):
            raise TypeError("latency_s or tokens are missing")
        return ActionChunk(
            actions=_floats(message.arrays["actions"]),
            rate_hz=float(_number(fields["rate_hz"])),
            source=_text(fields["source"]),
            thought=None if fields["thought"] is None else _text(fields["thought"]),
            reason=None if fields["reason"] is None else _text(fields["reason"]),
            tokens=tuple(int(token) for token in tokens),
            latency_s={str(name): float(_number(value)) for name, value in latency_s.items()},
        )
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise DataError(f"the message is not an answer of a policy: {err}") from err


def _floats(array: NDArray[np.generic]) -> FloatArray:
    if array.dtype != np.float32:
        raise TypeError(f"an array is {array.dtype}, expected float32")
    return array.astype(np.float32, copy=False)


def _bytes(array: NDArray[np.generic]) -> ImageArray:
    if array.dtype != np.uint8:
        raise TypeError(f"a picture is {array.dtype}, expected uint8")
    return array.astype(np.uint8, copy=False)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"found {type(value).__name__}, expected text")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"found {value!r:.40}, expected a finite number")
    return value
