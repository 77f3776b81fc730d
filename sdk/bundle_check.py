"""What a bundle is checked for beyond its hashes, with the standard library alone, before any other library reads it.

A digest says that a file is the one that was written, not that it was written well. So the header of each safetensors
file is compared with its length, every reference of a graph to outside data must lie within a listed file, and the
numbers of the manifest must fit one another. The manifest carries a digest of itself: it tells an accident or an edit
from what was written. It is no signature; whoever writes a bundle writes the digest too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from roboalign.sdk.errors import BundleError

if TYPE_CHECKING:
    from roboalign.sdk.bundle import Manifest, PolicySpec

__all__ = [
    "HEAD_NAME",
    "SEAL_NAME",
    "check_graph_references",
    "check_manifest",
    "check_safetensors",
    "check_statistics",
    "sealed_text",
    "statistics_digest",
]

HEAD_NAME = "head.json"
"""How the action head is built, and what it normalises by."""

SEAL_NAME = "manifest_sha256"
"""Field of the digest that a manifest carries of itself: of its text, with nothing in this field."""

_MAX_HEADER_BYTES = 100_000_000
"""Longest header that the safetensors library takes."""

_ITEM_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}

_ARITHMETIC = ("float32", "float16", "int8", "fp8")

_GRAPH_DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "bool")

_MAX_ELEMENTS = 2**34
"""Most elements of an input or output; a larger shape is a slip or an attack, never a policy."""

_DIGEST = re.compile(r"[0-9a-f]{64}")

# Numbers of the fields of onnx.proto in which outside data can be named, by message.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA = 13
_MAX_DEPTH = 16


def sealed_text(content: Mapping[str, object]) -> str:
    """Returns the text of a manifest: sorted, indented, and with the digest of that text in its `SEAL_NAME`."""

    def text(seal: str) -> str:
        return json.dumps({**content, SEAL_NAME: seal}, indent=2, sort_keys=True, allow_nan=False) + "\n"

    return text(hashlib.sha256(text("").encode()).hexdigest())


def statistics_digest(head: Path, policy: PolicySpec) -> str:
    """Returns the digest of the numbers that a head normalises states and actions by.

    Raises:
        BundleError: the file does not describe a head.
    """
    try:
        described = json.loads(head.read_text(encoding="utf-8"))
        rows = [described["state_mean"], described["state_std"], policy.action_low, policy.action_high]
        text = json.dumps([[float(value) for value in row] for row in rows])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        raise BundleError(f"{head} does not describe an action head ({err}); export the bundle again") from err
    return hashlib.sha256(text.encode()).hexdigest()


def check_statistics(manifest: Manifest, folder: Path) -> None:
    """Raises BundleError when a bundle that names its robot normalises by other numbers than it was made with."""
    if manifest.robot is None:
        return
    if (
        HEAD_NAME not in manifest.files
        or statistics_digest(folder / HEAD_NAME, manifest.policy) != manifest.robot.statistics_sha256
    ):
        raise BundleError(
            f"bundle {folder} normalises states and actions by other statistics than it was made with; its "
            f"{HEAD_NAME} or its limits are of another robot, export it again"
        )


def check_manifest(manifest: Manifest, where: Path) -> None:
    """Raises BundleError where the numbers and names of a manifest do not fit one another."""
    problem = _file_problem(manifest) or _graph_problem(manifest) or _policy_problem(manifest)
    if problem is not None:
        raise BundleError(f"bundle {where}: {problem}; the manifest was edited, export the bundle again")


def _file_problem(manifest: Manifest) -> str | None:
    for name, record in manifest.files.items():
        if Path(name).name != name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            return f"it lists the file {name!r}, which lies outside it; do not use this bundle"
        if not _DIGEST.fullmatch(record.sha256) or record.num_bytes < 0:
            return f"file {name} has digest {record.sha256[:16]!r} and {record.num_bytes} bytes, which cannot be"
    tokenizer = manifest.files.get("tokenizer.json")
    if tokenizer is not None and tokenizer.sha256 != manifest.tokenizer_sha256:
        return "tokenizer.json is not the tokenizer that tokenizer_sha256 names"
    return None


def _graph_problem(manifest: Manifest) -> str | None:
    if manifest.arithmetic not in _ARITHMETIC:
        return f"its graphs compute in {manifest.arithmetic!r}, expected one of {', '.join(_ARITHMETIC)}"
    for role, graph in manifest.graphs.items():
        if graph.file not in manifest.files:
            return f"graph {role} is in {graph.file!r}, which is not among its files"
        for tensor in (*graph.inputs, *graph.outputs):
            is_known = tensor.dtype in _GRAPH_DTYPES and all(size >= 1 for size in tensor.shape)
            if not is_known or math.prod(tensor.shape) > _MAX_ELEMENTS:
                return f"tensor {tensor.name} of graph {role} is {tensor.dtype}{list(tensor.shape)}, which cannot be"
            if tensor.fields and len(tensor.fields) != tensor.shape[-1]:
                return f"tensor {tensor.name} of graph {role} has {len(tensor.fields)} names for {tensor.shape[-1]}"
    return None


def _policy_problem(manifest: Manifest) -> str | None:
    policy = manifest.policy
    for name in ("horizon", "image_size_px", "max_prompt_tokens", "max_tokens", "hidden_size", "rate_hz"):
        if not getattr(policy, name) > 0:
            return f"policy.{name} is {getattr(policy, name)}, expected more than 0"
    if policy.max_thought_tokens < 0 or policy.max_prompt_tokens + policy.max_thought_tokens > policy.max_tokens:
        return "prompt and thought are longer than policy.max_tokens"
    if not policy.camera_names or policy.image_size_px != policy.prompt.image_size_px:
        return "policy names no camera, or pictures of two sizes"
    num = len(policy.action_names)
    if not num or (len(policy.action_low), len(policy.action_high)) != (num, num):
        return f"policy has {num} actions, {len(policy.action_low)} lower and {len(policy.action_high)} upper limits"
    for name, low, high in zip(policy.action_names, policy.action_low, policy.action_high, strict=True):
        if not low < high:
            return f"policy acts by {name} from {low:g} to {high:g}, expected an upper limit above the lower one"
    return None


def check_safetensors(path: Path) -> None:
    """Raises BundleError unless the header of a safetensors file describes exactly what the file holds."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise BundleError(
                f"{path} states a header of {length} bytes and has {size} in all; the file is damaged, export it again"
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        spans = sorted(_span(entry) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise BundleError(f"the header of {path} cannot be right ({err}); export the bundle again") from err
    end = 0
    for begin, stop in spans:
        if begin != end:
            raise BundleError(f"tensors in {path} overlap or leave a gap at byte {end}; export the bundle again")
        end = stop
    if end != size - 8 - length:
        raise BundleError(f"tensors in {path} end at byte {end} of {size - 8 - length}; export the bundle again")


def _span(entry: Mapping[str, object]) -> tuple[int, int]:
    """Returns where a tensor begins and ends; ValueError unless that is as long as its shape."""
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"a tensor has shape {shape!r:.40} at {offsets!r:.40}")
    if not all(type(number) is int and number >= 0 for number in (*shape, *offsets)):
        raise ValueError(f"a tensor has shape {shape!r:.40} at {offsets!r:.40}")
    begin, end = offsets
    if math.prod(shape) * _ITEM_BITS[str(entry["dtype"])] != 8 * (end - begin):
        raise ValueError(f"{entry['dtype']}{shape} in {end - begin} bytes")
    return begin, end


def check_graph_references(path: Path, sizes: Mapping[str, int]) -> None:
    """Raises BundleError where an ONNX file is cut short or names data outside of the listed files.

    Args:
        path: the graph.
        sizes: length of each file that it may read from, by name.
    """
    try:
        references = list(_references(memoryview(path.read_bytes()), "model", 0))
    except (ValueError, IndexError) as err:
        raise BundleError(f"graph {path} is cut short or damaged ({err}); export the bundle again") from err
    for entry in references:
        location = entry.get("location", "")
        if location not in sizes:
            raise BundleError(
                f"graph {path} reads from {location!r}, which is no file of its bundle; do not use this bundle"
            )
        offset, length = (entry.get(key, "0") for key in ("offset", "length"))
        is_number = offset.isascii() and offset.isdigit() and length.isascii() and length.isdigit()
        if not is_number or int(offset) + int(length) > sizes[location]:
            raise BundleError(
                f"graph {path} reads {length} bytes at {offset} of {location}, which has {sizes[location]}; "
                "export the bundle again"
            )


def _references(data: memoryview, message: str, depth: int) -> Iterator[Mapping[str, str]]:
    """Yields what is said about outside data, tensor by tensor, in a message of onnx.proto."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages nested more than {_MAX_DEPTH} deep")
    if message == "tensor":
        entries = [dict(_fields(value)) for number, value in _fields(data) if number == _EXTERNAL_DATA]
        if entries:
            yield {bytes(e.get(1, b"")).decode(): bytes(e.get(2, b"")).decode() for e in entries}
        return
    inner = _MESSAGES[message]
    for number, value in _fields(data):
        if number in inner:
            yield from _references(value, inner[number], depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields number and content of each field of a protobuf message; numbers come as empty content."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        start = place
        if kind == 0:
            _, place = _varint(data, place)
            yield number, data[:0]
            continue
        if kind == 2:
            length, start = _varint(data, place)
            place = start + length
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise ValueError(f"field {number} of kind {kind} at byte {start}")
        if place > len(data):
            raise ValueError(f"field {number} ends {place - len(data)} bytes behind its message")
        yield number, data[start:place]


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError(f"a number longer than ten bytes at {place}")
