"""Weights of a few bits: how a bundle stores them, and how numpy makes and reads them.

Weight-only and symmetric, the form that ONNX's `DequantizeLinear` describes (opset 21): a matrix is stored as it is
multiplied, [inputs, outputs], in blocks of 32 or 16 inputs with one scale for each block and output; a kernel of a
convolution has one scale for each output channel. Scales are float16 and are what the codes were rounded with, so that
everybody who reads the file computes the same weights.

In a safetensors file the codes lie under the weight's own name and the scales under `NAME.scale`; the file's metadata
says how to read them. Codes of 4 bits are packed as ONNX packs them: the even element in the low half of a byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.typed_json import from_json
from roboalign.sdk.types import FloatArray

__all__ = [
    "BLOCKS",
    "METADATA_KEY",
    "SCALE_SUFFIX",
    "Codes",
    "QuantizedLayout",
    "StoredCodes",
    "best_scales",
    "block_of",
    "code_range",
    "dequantize",
    "layouts_to_metadata",
    "load_weights",
    "pack_codes",
    "quantize_channels",
    "quantize_matrix",
    "read_codes",
    "read_weights",
]

BLOCKS = (32, 16)
"""Inputs that share a scale: the largest that divides their number; NVIDIA's parser refuses a shorter last block."""

METADATA_KEY = "roboalign.quantized"
"""Key of the layouts in a safetensors file's metadata."""

SCALE_SUFFIX = ".scale"
"""What the name of a weight's scales ends with."""

_SHRINK = np.linspace(1.0, 0.6, 17, dtype=np.float32)
"""Scales tried for a block, as shares of what its largest value asks for: cutting one off can cost less in all."""

Codes = NDArray[np.int8]
"""Whole numbers, one for each weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedLayout:
    """How the codes of one weight are to be read."""

    bits: int
    """4 or 8."""
    shape: tuple[int, ...]
    """Shape of the codes: [inputs, outputs] of a matrix, or the kernel's own."""
    block: int
    """Rows that share a scale; 0 when each first index (output channel) has one of its own."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredCodes:
    """A weight as a file holds it, its codes one by one."""

    codes: Codes
    """int8, in the layout's shape."""
    scales: NDArray[np.float16]
    """What they are multiplied by."""
    layout: QuantizedLayout
    """How to read them."""


def block_of(num_inputs: int) -> int | None:
    """Returns the block for a matrix with so many inputs, or None where none divides their number."""
    return next((block for block in BLOCKS if num_inputs % block == 0), None)


def quantize_matrix(
    weight: FloatArray, bits: int, cost: FloatArray | None = None
) -> tuple[Codes, NDArray[np.float16], QuantizedLayout]:
    """Returns codes int8[K, N] and scales float16[K / block, N] of a matrix float[K, N], and how to read them.

    Of each block, the scale with the smallest squared error among several is taken; `cost` float32[K] says what an
    error in each row costs, None takes all alike.
    """
    size = block_of(len(weight))
    if size is None:
        raise ConfigError(
            f"a matrix with {len(weight)} inputs has no whole blocks, expected a multiple of {BLOCKS[-1]}"
        )
    codes = np.empty(weight.shape, np.int8)
    scales = np.empty((len(weight) // size, weight.shape[1]), np.float16)
    for index, start in enumerate(range(0, len(weight), size)):
        rows = slice(start, start + size)
        codes[rows], scales[index] = _quantize_columns(weight[rows], bits, None if cost is None else cost[rows])
    return codes, scales, QuantizedLayout(bits=bits, shape=weight.shape, block=size)


def quantize_channels(weight: FloatArray, bits: int) -> tuple[Codes, NDArray[np.float16]]:
    """Returns codes int8[O, ...] and scales float16[O] of a kernel float[O, ...]."""
    codes, scales = _quantize_columns(weight.reshape(len(weight), -1).T, bits)
    return np.ascontiguousarray(codes.T).reshape(weight.shape), scales


def code_range(bits: int) -> tuple[int, int]:
    """Returns the lowest and the highest code."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def best_scales(columns: FloatArray, bits: int, cost: FloatArray | None = None) -> NDArray[np.float16]:
    """Returns the scale float16[C] of each column of float[R, C] whose rounding errors, squared, cost least.

    Args:
        columns: values that share a scale, by column.
        bits: of a code.
        cost: float[R], what an error in each row costs; None takes all alike.
    """
    lowest, highest = code_range(bits)
    weight = np.ones((len(columns), 1), np.float32) if cost is None else cost[:, None]
    largest = np.abs(columns).max(axis=0)
    best = np.full(columns.shape[1], np.finfo(np.float16).smallest_subnormal, np.float16)
    least = np.full(columns.shape[1], np.inf, np.float32)
    for share in _SHRINK:
        scales = np.maximum(largest * share / highest, np.finfo(np.float16).smallest_subnormal).astype(np.float16)
        wide = scales.astype(np.float32)
        error = (weight * (np.clip(np.rint(columns / wide), lowest, highest) * wide - columns) ** 2).sum(axis=0)
        is_better = error < least
        best = np.where(is_better, scales, best)
        least = np.where(is_better, error, least)
    return best


def dequantize(codes: Codes, scales: NDArray[np.float16], layout: QuantizedLayout) -> FloatArray:
    """Returns float32 weights in the shape of the codes."""
    wide = scales.astype(np.float32)
    if layout.block:
        return codes * np.repeat(wide, layout.block, axis=0)[: len(codes)]
    return codes * wide.reshape(-1, *(1,) * (codes.ndim - 1))


def pack_codes(codes: Codes, bits: int) -> NDArray[np.uint8] | Codes:
    """Returns what is stored: the codes, or two of them a byte."""
    if bits == 8:
        return codes
    flat = codes.reshape(-1).view(np.uint8) & 15
    flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
    return flat[0::2] | (flat[1::2] << 4)


def layouts_to_metadata(layouts: Mapping[str, QuantizedLayout]) -> dict[str, str]:
    """Returns the metadata of a safetensors file that holds such weights; nothing when there are none."""
    described = {name: asdict(layout) for name, layout in sorted(layouts.items())}
    return {METADATA_KEY: json.dumps(described)} if described else {}


def read_weights(path: Path) -> dict[str, FloatArray] | None:
    """Returns every weight of a safetensors file as float32, codes decoded; None when the file holds no codes.

    A matrix comes as PyTorch's `Linear` has it, [outputs, inputs].

    Raises:
        BundleError: the file is damaged, or its codes do not fit what its metadata says.
    """
    with _damage_told(path):
        # Files without codes may hold what numpy has no type for, such as bfloat16: they are not looked into.
        if _read_layouts(path) is None:
            return None
        stored, coded = _read_stored(path)
        weights = {name: np.asarray(value, np.float32) for name, value in stored.items()}
        for name, found in coded.items():
            weight = dequantize(found.codes, found.scales, found.layout)
            weights[name] = np.ascontiguousarray(weight.T) if found.layout.block else weight
    return weights


def load_weights(path: Path) -> dict[str, FloatArray]:
    """Returns every weight of a safetensors file as float32, whether it is stored as numbers or as codes.

    Raises:
        BundleError: the file is damaged, or its codes do not fit what its metadata says.
    """
    decoded = read_weights(path)
    if decoded is None:
        with _damage_told(path):
            return {name: np.asarray(value, np.float32) for name, value in _read_stored(path)[0].items()}
    return decoded


def read_codes(path: Path) -> dict[str, StoredCodes]:
    """Returns the weights of a safetensors file that are stored as codes; none where it holds no codes.

    Raises:
        BundleError: the file is damaged, or its codes do not fit what its metadata says.
    """
    with _damage_told(path):
        return {} if _read_layouts(path) is None else _read_stored(path)[1]


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as err:
        raise BundleError(f"the weights in {path} are damaged ({err}); copy or export the folder again") from err


def _read_layouts(path: Path) -> dict[str, QuantizedLayout] | None:
    """Returns how codes are to be read, by weight; None where the file says nothing of codes."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        described = (file.metadata() or {}).get(METADATA_KEY)
    if described is None:
        return None
    return {name: _layout_from_json(name, entry) for name, entry in json.loads(described).items()}


def _read_stored(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, StoredCodes]]:
    """Returns what is stored as numbers, and what as codes."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    coded = {}
    for name, layout in (_read_layouts(path) or {}).items():
        scales = stored.pop(name + SCALE_SUFFIX)
        _check_scales(name, scales, layout)
        coded[name] = StoredCodes(codes=_unpack(name, stored.pop(name), layout), scales=scales, layout=layout)
    return stored, coded


def _layout_from_json(name: str, entry: object) -> QuantizedLayout:
    layout = cast(QuantizedLayout, from_json(QuantizedLayout, entry, name))
    is_matrix = layout.block in BLOCKS and len(layout.shape) == 2 and layout.shape[0] % layout.block == 0
    if layout.bits not in (4, 8) or not (is_matrix or (layout.block == 0 and layout.shape)) or min(layout.shape) < 1:
        raise ValueError(
            f"{name} has {list(layout.shape)} codes of {layout.bits} bits in blocks of {layout.block}, which cannot be"
        )
    return layout


def _check_scales(name: str, scales: NDArray[Any], layout: QuantizedLayout) -> None:
    rows = layout.shape[0]
    shape = (rows // layout.block, layout.shape[1]) if layout.block else (rows,)
    if scales.dtype != np.float16 or scales.shape != shape or not np.isfinite(scales).all():
        raise ValueError(
            f"{name}{SCALE_SUFFIX} is {scales.dtype}{list(scales.shape)}, expected finite float16{list(shape)}"
        )


def _unpack(name: str, stored: NDArray[Any], layout: QuantizedLayout) -> Codes:
    count = math.prod(layout.shape)
    dtype, shape = (np.int8, layout.shape) if layout.bits == 8 else (np.uint8, (-(-count // 2),))
    if stored.dtype != dtype or stored.shape != shape:
        raise ValueError(
            f"{name} is {stored.dtype}{list(stored.shape)}, expected {np.dtype(dtype)}{list(shape)} for "
            f"{list(layout.shape)} codes of {layout.bits} bits"
        )
    if layout.bits == 8:
        return stored
    halves = np.stack((stored & 15, stored >> 4), axis=-1).reshape(-1)[:count]
    codes = ((halves.astype(np.int16) ^ 8) - 8).astype(np.int8)
    return codes.reshape(layout.shape)


def _quantize_columns(
    columns: FloatArray, bits: int, cost: FloatArray | None = None
) -> tuple[Codes, NDArray[np.float16]]:
    """Quantises each column of float[R, C] with a scale of its own."""
    scales = best_scales(columns, bits, cost)
    codes = np.clip(np.rint(columns / scales.astype(np.float32)), *code_range(bits)).astype(np.int8)
    return codes, scales
