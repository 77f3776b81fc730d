"""Tokens by compiled functions in place of onnxruntime's graphs, where weights are too many for a cache.

onnxruntime multiplies one row of float32 at two thirds of the memory's speed, and codes of 4 bits at a third; the
functions of `sdk/backends/step_kernels.py` do at nearly all of it. They need numba, which is an extra, and compile
themselves when a bundle is first opened (8 s, kept for the next time). Prompts and passes over several tokens in
float32 stay with the graphs, and so does everything where these functions do not fit: another decoder than Llama's,
codes that are not of 4 bits in blocks of 32, a processor without AVX-512's products of bytes for codes, several
threads.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.backends.sequence import SequenceArrays
from roboalign.sdk.bundle import LOWER_ROLE, UPPER_ROLE, Bundle
from roboalign.sdk.errors import BackendError, ConfigError
from roboalign.sdk.quantized import StoredCodes, load_weights, read_codes
from roboalign.sdk.types import FloatArray

__all__ = ["CompiledStep", "open_compiled_step"]

_log = logging.getLogger(__name__)

_DECODER = "model.language_model"
_PRODUCTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Weights of a layer that multiply the same values."""
_NORMS = ("input_layernorm", "post_attention_layernorm")
_CACHE_LINE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decoder:
    """What of a decoder its weights do not say."""

    epsilon: float
    """Of its norms."""
    theta: float
    """Base of the angles by which places turn."""
    num_layers: int
    """Layers."""
    tap_layer: int
    """Layers below the hidden states that an action head reads."""


class CompiledStep:
    """Reads tokens into the arrays of a sequence, as `lower` and `upper` do. Not thread safe."""

    def __init__(
        self,
        bundle: Bundle,
        decoder: _Decoder,
        weights: Mapping[str, FloatArray],
        codes: Mapping[str, StoredCodes] | None,
        max_tokens: int,
    ) -> None:
        from roboalign.sdk.backends.step_kernels import BLOCK, GROUP, decode_tokens

        self._run: Callable[..., None] = decode_tokens
        layers = range(decoder.num_layers)
        self._words = weights[f"{_DECODER}.embed_tokens.weight"]
        norms = np.stack([[weights[f"{_DECODER}.layers.{i}.{norm}.weight"] for norm in _NORMS] for i in layers])
        products = []
        for parts in _PRODUCTS:
            names = [[f"{_DECODER}.layers.{i}.{part}.weight" for part in parts] for i in layers]
            products.append(_lines(len(names), partial(_side_by_side, names, weights, codes)))
        head = weights.get("lm_head.weight", self._words)
        self._weights = (norms, weights[f"{_DECODER}.norm.weight"], *products, head)
        kv = _cache_shape(bundle)
        num_rows = sum(_outputs(weights, part) for part in _PRODUCTS[0])
        hidden, mixed = _shape_of(weights, _PRODUCTS[1][0])
        wide = _outputs(weights, _PRODUCTS[2][0])
        exponents = np.arange(0, kv[2], 2, dtype=np.float32) / np.float32(kv[2])
        frequencies = (np.float32(1.0) / np.float32(decoder.theta) ** exponents).astype(np.float32)
        angles = np.arange(kv[1], dtype=np.float32)[:, None] * frequencies
        self._constants = (
            np.cos(angles),
            np.sin(angles),
            mixed // kv[2],
            np.float32(decoder.epsilon),
            decoder.tap_layer,
        )
        most = -(-max_tokens // GROUP) * GROUP
        longest = max(hidden, mixed, wide)
        num_blocks = -(-longest // BLOCK)
        self._most = max_tokens
        self._x = _aligned((most, hidden), np.float32)
        self._scratch: tuple[NDArray[Any], ...] = (
            *(_aligned((most, width), np.float32) for width in (hidden, num_rows, mixed, 2 * wide, wide, hidden)),
            np.zeros(kv[1], np.float32),
            _aligned((most, longest), np.int8),
            np.zeros((most, num_blocks), np.float32),
            np.zeros((most, num_blocks), np.int32),
        )

    def read(self, arrays: SequenceArrays, token_ids: Sequence[int], place: int, *, is_scored: bool) -> None:
        """Reads tokens: writes keys and values, hidden states, the last ones, and scores where asked for."""
        count, end = len(token_ids), place + len(token_ids)
        hidden, last, logits = arrays.hidden[place:end], arrays.last[0, :count], arrays.logits[0, :count]
        # Compiled code writes where it is told to, whatever lies there.
        if not (0 < count <= self._most and len(hidden) == len(last) == len(logits) == count):
            raise BackendError(
                f"{count} tokens at place {place} do not fit: 1 to {min(self._most, arrays.last.shape[1])} can be read "
                f"at once, and the sequence holds {len(arrays.hidden)}"
            )
        for index, token in enumerate(token_ids):
            self._x[index] = self._words[token]
        self._run(
            count,
            self._x,
            *self._weights,
            arrays.kv,
            place,
            *self._constants,
            is_scored,
            hidden,
            last,
            logits,
            *self._scratch,
        )


def open_compiled_step(bundle: Bundle, *, on_codes: bool, max_tokens: int) -> CompiledStep | None:
    """Returns what reads a bundle's tokens, or None where it cannot be used; a log line says why.

    Args:
        bundle: with graphs that read in place.
        on_codes: multiply codes as they are.
        max_tokens: tokens that are read at once, at most.
    """
    try:
        _check_numba()
        decoder, path = _describe(bundle), bundle.path / "model.safetensors"
        weights, codes = load_weights(path), read_codes(path) if on_codes else None
        _check_decoder(weights, decoder.num_layers)
        if codes is not None:
            _check_codes(codes, decoder.num_layers)
    except ConfigError as err:
        _log.info("tokens of %s are read by onnxruntime's graphs: %s", bundle.path, err)
        return None
    return CompiledStep(bundle, decoder, weights, codes, max_tokens)


def _check_numba() -> None:
    if find_spec("numba") is None:
        raise ConfigError("numba is not installed; pip install 'roboalign[fast]'")
    import numba

    if numba.config.DISABLE_JIT:
        raise ConfigError("numba is told not to compile (NUMBA_DISABLE_JIT)")


def _describe(bundle: Bundle) -> _Decoder:
    """Returns the constants of a bundle's decoder from its `config.json`."""
    specs, path = bundle.manifest.graphs, bundle.path / "config.json"
    if LOWER_ROLE not in specs:
        raise ConfigError("the bundle is of a version before there was 'lower'; export it again")
    if not path.is_file():
        raise ConfigError("the bundle has no config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    angles = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    theta = text.get("rope_theta") or angles.get("rope_theta")
    if not theta or angles.get("rope_type", "default") != "default" or text.get("hidden_act", "silu") != "silu":
        raise ConfigError("its config.json names no plain Llama decoder (rope_theta without scaling, silu)")
    lower, upper = (
        sum(tensor.name.startswith("key_") for tensor in specs[role].inputs) for role in (LOWER_ROLE, UPPER_ROLE)
    )
    # transformers' own default, which nano keeps.
    return _Decoder(
        epsilon=float(text.get("rms_norm_eps", 1e-6)), theta=float(theta), num_layers=lower + upper, tap_layer=lower
    )


def _check_decoder(weights: Mapping[str, FloatArray], num_layers: int) -> None:
    """Refuses a decoder with other weights than a Llama decoder has, such as biases."""
    parts = [*_NORMS, *(part for parts in _PRODUCTS for part in parts)]
    expected = {f"{_DECODER}.layers.{index}.{part}.weight" for index in range(num_layers) for part in parts}
    expected |= {f"{_DECODER}.{name}.weight" for name in ("embed_tokens", "norm")}
    found = {name for name in weights if name.startswith(f"{_DECODER}.")}
    if other := sorted(found ^ expected) or [name for name in ("lm_head.bias",) if name in weights]:
        raise ConfigError(
            f"it is no plain Llama decoder: {other[0]} is " + ("extra" if other[0] in weights else "absent")
        )


def _check_codes(codes: Mapping[str, StoredCodes], num_layers: int) -> None:
    """Refuses codes that make no whole tiles, and processors that cannot multiply them."""
    from roboalign.sdk.backends.step_kernels import BLOCK, TILE_ROWS, can_multiply_codes

    parts = [part for parts in _PRODUCTS for part in parts]
    for name in (f"{_DECODER}.layers.{index}.{part}.weight" for index in range(num_layers) for part in parts):
        if name not in codes:
            raise ConfigError(f"{name} is not stored as codes, and others are")
        layout = codes[name].layout
        if (layout.bits, layout.block) != (4, BLOCK) or layout.shape[1] % TILE_ROWS:
            raise ConfigError(
                f"{name} has {layout.shape[1]} outputs in codes of {layout.bits} bits in blocks of {layout.block}, "
                f"expected a multiple of {TILE_ROWS} in 4 bits and blocks of {BLOCK}"
            )
    if not can_multiply_codes():
        raise ConfigError("the processor has no AVX-512 VNNI, which multiplies codes")


def _tiles(parts: list[StoredCodes]) -> NDArray[np.uint8]:
    """Returns the bytes of the tiles of weights side by side: outputs in turn, and for each its blocks of inputs."""
    from roboalign.sdk.backends.step_kernels import BLOCK, TILE_BYTES, TILE_ROWS

    codes = np.concatenate([part.codes for part in parts], axis=1).astype(np.int16)
    inputs, outputs = codes.shape
    blocks, rows = inputs // BLOCK, outputs // TILE_ROWS
    # [blocks, half of a block, inputs in fours, of four, rows of tiles, outputs of a tile]
    split = (codes + 8).astype(np.uint8).reshape(blocks, 2, BLOCK // 8, 4, rows, TILE_ROWS)
    ordered = split.transpose(4, 0, 1, 2, 5, 3)
    packed = (ordered[:, :, 0] | (ordered[:, :, 1] << 4)).reshape(rows, blocks, -1)
    scales = np.concatenate([part.scales for part in parts], axis=1).astype(np.float32)
    wide = np.ascontiguousarray(scales.reshape(blocks, rows, TILE_ROWS).transpose(1, 0, 2)).view(np.uint8)
    return np.concatenate([packed, wide.reshape(rows, blocks, -1)], axis=2).reshape(rows * blocks * TILE_BYTES)


def _side_by_side(
    names: Sequence[Sequence[str]],
    weights: Mapping[str, FloatArray],
    codes: Mapping[str, StoredCodes] | None,
    layer: int,
) -> NDArray[Any]:
    """Returns the weights of a layer's product as they are multiplied."""
    if codes is None:
        return np.concatenate([weights[name] for name in names[layer]])
    return _tiles([codes[name] for name in names[layer]])


def _lines(num_layers: int, make: Callable[[int], NDArray[Any]]) -> NDArray[Any]:
    """Returns layers one behind the other, from the start of a cache line on; one at a time is made."""
    first = make(0)
    stacked = _aligned((num_layers, *first.shape), first.dtype)
    stacked[0] = first
    for index in range(1, num_layers):
        stacked[index] = make(index)
    return stacked


def _aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(num_bytes + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    lines: NDArray[Any] = raw[start : start + num_bytes].view(dtype).reshape(shape)
    return lines


def _shape_of(weights: Mapping[str, FloatArray], part: str) -> tuple[int, ...]:
    return weights[f"{_DECODER}.layers.0.{part}.weight"].shape


def _outputs(weights: Mapping[str, FloatArray], part: str) -> int:
    return _shape_of(weights, part)[0]


def _cache_shape(bundle: Bundle) -> tuple[int, int, int]:
    """Returns heads of keys, places and head size."""
    graphs = bundle.manifest.graphs
    tensors = [*graphs[LOWER_ROLE].inputs, *graphs[UPPER_ROLE].inputs]
    shape = next(tensor.shape for tensor in tensors if tensor.name.startswith("key_"))
    return shape[1], shape[2], shape[3]
