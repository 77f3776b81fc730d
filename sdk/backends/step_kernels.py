"""Tokens through a Llama decoder, compiled by numba for the processor that it runs on, on one thread.

A token reads every weight once, so what counts is how fast weights come from memory. They are read here in one
sequence, row after row, which the memory gives at its full speed; a product that reads several rows at once gets less
than half of it. Weights of 4 bits lie in tiles of 16 outputs by 32 inputs, their scales behind them, as AVX-512's
product of bytes (VNNI) wants them: 16 outputs by 4 inputs an instruction, no sum across a register. Inputs are then
rounded to 8 bits in blocks of 32, as onnxruntime's MatMulNBits does. Of several tokens, eight at a time are multiplied
with the codes that are in a register.

numba has to be installed; `sdk/backends/compiled_step.py` decides whether this is used. Shape suffixes: L layers,
D hidden size, F width of the feed-forward, V vocabulary, K head size, P places, M tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload

__all__ = ["BLOCK", "GROUP", "TILE_BYTES", "TILE_ROWS", "can_multiply_codes", "decode_tokens"]

TILE_ROWS = 16
"""Outputs of a tile."""
BLOCK = 32
"""Inputs of a tile, which share an output's scale."""
TILE_BYTES = TILE_ROWS * (BLOCK // 2 + 4)
"""Codes of a tile, two a byte, and its scales in float32."""

GROUP = 8
"""Tokens that are multiplied with a tile at once: their sums fill half of the registers."""

_LEAST_GROUP = 4
"""Fewer tokens are multiplied one by one."""

_SUMS = {"reassoc", "contract", "nsz", "arcp"}
"""Sums in any order; what is not finite stays so."""
_CODES = TILE_ROWS * BLOCK // 2
_REGISTER = 64
_HALF = _CODES // _REGISTER
_LINE = 64


def can_multiply_codes() -> bool:
    """Returns whether numba compiles for a processor that has the instruction that multiplies tiles of codes."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return {"+avx512f", "+avx512vnni"} <= {*features.split(",")}


@intrinsic
def _float_of_bits(_context: Any, _bits: Any) -> Any:
    def write(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), write


_ARRAYS = (0, 2, 3, 4, 6)
"""Which arguments of a product of tiles are arrays."""


def _at(builder: Any, base: Any, place: Any, kind: Any = None) -> Any:
    """Returns a pointer to a place behind another one."""
    found = builder.gep(base, [place])
    return found if kind is None else builder.bitcast(found, kind.as_pointer())


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    """Returns a vector of one value."""
    nothing, word = ir.Constant(kind, ir.Undefined), ir.IntType(32)
    first = builder.insert_element(nothing, value, ir.Constant(word, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(word, TILE_ROWS), [0] * TILE_ROWS))


def _tile_products(num_tokens: int) -> Any:
    """Returns what multiplies a row of tiles with the inputs of so many tokens."""

    @intrinsic
    def multiply(
        _context: Any, tiles: Any, row: Any, rounded: Any, scales: Any, corrections: Any, num_blocks: Any, out: Any
    ) -> Any:
        return types.void(tiles, row, rounded, scales, corrections, num_blocks, out), write

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, splat = partial(_at, builder), partial(_splat, builder)
        arrays = [context.make_array(signature.args[index])(context, builder, args[index]) for index in _ARRAYS]
        byte, word, long = ir.IntType(8), ir.IntType(32), ir.IntType(64)
        words, floats = ir.VectorType(word, TILE_ROWS), ir.VectorType(ir.FloatType(), TILE_ROWS)
        dot, fused = (
            cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
            for name, kind in (("llvm.x86.avx512.vpdpbusd.512", words), ("llvm.fma.v16f32", floats))
        )
        low, four = ir.Constant(words, [0x0F0F0F0F] * TILE_ROWS), ir.Constant(words, [4] * TILE_ROWS)
        tiles, row, num_blocks = arrays[0].data, args[1], args[5]
        tokens = [long(token) for token in range(num_tokens)]
        # A token's inputs lie as far behind the last one's as the arrays say, its outputs as wide as `out` is.
        inputs, input_scales, fixes, outs = (
            [at(builder.bitcast(array.data, byte.as_pointer()), builder.mul(token, stride)) for token in tokens]
            for array, stride in ((array, cgutils.unpack_tuple(builder, array.strides)[0]) for array in arrays[1:])
        )
        totals = [cgutils.alloca_once(builder, floats) for _ in tokens]
        for total in totals:
            builder.store(ir.Constant(floats, [0.0] * TILE_ROWS), total)
        first = builder.mul(row, num_blocks)
        with cgutils.for_range(builder, num_blocks) as loop:
            block = loop.index
            tile = at(tiles, builder.mul(builder.add(first, block), long(TILE_BYTES)))
            fix = builder.mul(block, long(4))
            sums = [[splat(builder.load(at(base, fix, word)), words)] for base in fixes]
            for pair in sums:
                pair.append(ir.Constant(words, [0] * TILE_ROWS))
            for index in range(_HALF):
                codes = builder.load(at(tile, long(_REGISTER * index), words), align=1)
                halves = builder.and_(codes, low), builder.and_(builder.lshr(codes, four), low)
                for half, values in enumerate(halves):
                    place = builder.add(builder.mul(block, long(BLOCK)), long(4 * (index + _HALF * half)))
                    for base, pair in zip(inputs, sums, strict=True):
                        four_inputs = splat(builder.load(at(base, place, word), align=4), words)
                        pair[half] = builder.call(dot, [pair[half], values, four_inputs])
            scale = builder.load(at(tile, long(_CODES), floats), align=4)
            for base, pair, total in zip(input_scales, sums, totals, strict=True):
                both = builder.fmul(scale, splat(builder.load(at(base, fix, ir.FloatType())), floats))
                products = builder.sitofp(builder.add(*pair), floats)
                builder.store(builder.call(fused, [products, both, builder.load(total)]), total)
        place = builder.mul(row, long(4 * TILE_ROWS))
        for base, total in zip(outs, totals, strict=True):
            builder.store(builder.load(total), at(base, place, floats), align=4)
        return context.get_dummy_value()

    return multiply


_multiply_tiles, _multiply_tiles_by_group = _tile_products(1), _tile_products(GROUP)


@intrinsic
def _fetch(_context: Any, rows: Any, first_byte: Any) -> Any:
    """Asks for the cache line at a byte of an array, which is waited for by nobody."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        start = builder.bitcast(context.make_array(signature.args[0])(context, builder, args[0]).data, byte)
        builder.call(fetch, [builder.gep(start, [args[1]]), word(0), word(2), word(1)])
        return context.get_dummy_value()

    return types.void(rows, types.int64), write


@njit(fastmath=_SUMS, inline="always")
def _exp(x: Any) -> Any:
    """The exponential of a float32 to a unit in its last place, in operations that a compiler makes vectors of."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    rest = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    series = np.float32(1.9875691500e-4)
    series = series * rest + np.float32(1.3981999507e-3)
    series = series * rest + np.float32(8.3334519073e-3)
    series = series * rest + np.float32(4.1665795894e-2)
    series = series * rest + np.float32(1.6666665459e-1)
    series = series * rest + np.float32(5.0000001201e-1)
    series = series * rest * rest + rest + np.float32(1.0)
    return series * _float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))


@njit(fastmath=_SUMS)
def _multiply(weights: Any, x: Any, y: Any) -> None:
    for row in range(len(weights)):
        line = weights[row]
        for token in range(len(x)):
            values = x[token]
            total = np.float32(0.0)
            for column in range(len(values)):
                total += line[column] * values[column]
            y[token, row] = total


@njit(fastmath=_SUMS)
def _round(x: Any, rounded: Any, scales: Any, corrections: Any) -> None:
    """Rounds an input to 8 bits, each block by its largest value; codes are stored 8 too high, which is taken off."""
    for block in range(len(x) // BLOCK):
        part, codes = x[block * BLOCK : (block + 1) * BLOCK], rounded[block * BLOCK : (block + 1) * BLOCK]
        largest, nothing = np.float32(0.0), np.float32(0.0)
        for index in range(BLOCK):
            largest = max(largest, abs(part[index]))
            nothing += part[index] * np.float32(0.0)  # not a number where one of them is not finite
        scales[block] = largest / np.float32(127.0) + nothing
        share = np.float32(127.0) / largest if largest > 0.0 else np.float32(0.0)
        total = np.int32(0)
        for index in range(BLOCK):
            value = np.rint(part[index] * share)
            code = np.int32(value) if abs(value) <= np.float32(127.0) else np.int32(0)
            codes[index] = code
            total += code
        corrections[block] = np.int32(-8) * total


@njit(fastmath=_SUMS)
def _multiply_codes(tiles: Any, x: Any, y: Any, rounded: Any, scales: Any, corrections: Any) -> None:
    """The arrays of `y` and of what is rounded have rows up to the next whole group."""
    num_tokens, num_blocks = len(x), x.shape[1] // BLOCK
    for token in range(num_tokens):
        _round(x[token], rounded[token], scales[token], corrections[token])
    for row in range(y.shape[1] // TILE_ROWS):
        first = 0
        while num_tokens - first >= _LEAST_GROUP:
            _multiply_tiles_by_group(
                tiles, row, rounded[first:], scales[first:], corrections[first:], num_blocks, y[first:]
            )
            first += GROUP
        for token in range(first, num_tokens):
            _multiply_tiles(tiles, row, rounded[token:], scales[token:], corrections[token:], num_blocks, y[token:])


def _product(weights: Any, x: Any, y: Any, rounded: Any, scales: Any, corrections: Any) -> None:
    """y[M, N] = the weights of a layer times x[M, K]: float32[N, K], or the bytes of tiles."""
    raise NotImplementedError("compiled only")


@overload(_product, jit_options={"fastmath": _SUMS})
def _choose_product(weights: Any, x: Any, y: Any, rounded: Any, scales: Any, corrections: Any) -> Any:
    def on_floats(weights: Any, x: Any, y: Any, rounded: Any, scales: Any, corrections: Any) -> None:
        _multiply(weights, x, y)

    def on_codes(weights: Any, x: Any, y: Any, rounded: Any, scales: Any, corrections: Any) -> None:
        _multiply_codes(weights, x, y, rounded, scales, corrections)

    return on_codes if weights.dtype == types.uint8 else on_floats


@njit(fastmath=_SUMS)
def _norm(x: Any, weight: Any, epsilon: Any, out: Any) -> None:
    for token in range(len(x)):
        row, to = x[token], out[token]
        squares = np.float32(0.0)
        for index in range(len(row)):
            squares += row[index] * row[index]
        scale = np.float32(1.0) / np.sqrt(squares / np.float32(len(row)) + epsilon)
        for index in range(len(row)):
            to[index] = row[index] * scale * weight[index]


@njit(fastmath=_SUMS)
def _turn(rows: Any, cos: Any, sin: Any) -> None:
    """Turns vectors[heads, K] by the angles of their place."""
    half = len(cos)
    for head in range(len(rows)):
        first, second = rows[head, :half], rows[head, half:]
        for index in range(half):
            a, b = first[index], second[index]
            first[index] = a * cos[index] - b * sin[index]
            second[index] = b * cos[index] + a * sin[index]


@njit(fastmath=_SUMS)
def _score(query: Any, keys: Any, values: Any, num_read: Any, scores: Any) -> None:
    """What one head's query makes of the keys; asks for the values meanwhile."""
    fours, row_bytes = num_read // 4 * 4, 4 * len(query)
    for first in range(0, fours, 4):
        four = keys[first : first + 4]
        for byte in range(first * row_bytes, (first + 4) * row_bytes, _LINE):
            _fetch(values, byte)
        a, b, c, d = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        for index in range(len(query)):
            a += query[index] * four[0, index]
            b += query[index] * four[1, index]
            c += query[index] * four[2, index]
            d += query[index] * four[3, index]
        scores[first], scores[first + 1], scores[first + 2], scores[first + 3] = a, b, c, d
    for place in range(fours, num_read):
        a = np.float32(0.0)
        for index in range(len(query)):
            a += query[index] * keys[place, index]
        scores[place] = a


@njit(fastmath=_SUMS)
def _mix(shares: Any, values: Any, next_keys: Any, num_read: Any, out: Any) -> None:
    """The values in their shares; asks for the next head's keys meanwhile."""
    fours, row_bytes = num_read // 4 * 4, 4 * len(out)
    out[:] = np.float32(0.0)
    for first in range(0, fours, 4):
        four = values[first : first + 4]
        for byte in range(first * row_bytes, (first + 4) * row_bytes, _LINE):
            _fetch(next_keys, byte)
        a, b, c, d = shares[first], shares[first + 1], shares[first + 2], shares[first + 3]
        for index in range(len(out)):
            out[index] += a * four[0, index] + b * four[1, index] + c * four[2, index] + d * four[3, index]
    for place in range(fours, num_read):
        a = shares[place]
        for index in range(len(out)):
            out[index] += a * values[place, index]


@njit(fastmath=_SUMS)
def _attend(
    query: Any, keys: Any, values: Any, next_keys: Any, num_read: Any, scale: Any, shares: Any, out: Any
) -> None:
    """What one head makes of the places that were read."""
    _score(query, keys, values, num_read, shares)
    largest, total = np.float32(-np.inf), np.float32(0.0)
    for place in range(num_read):
        shares[place] *= scale
        largest = max(largest, shares[place])
    for place in range(num_read):
        shares[place] = _exp(shares[place] - largest)
        total += shares[place]
    _mix(shares, values, next_keys, num_read, out)
    for index in range(len(out)):
        out[index] /= total


@njit(fastmath=_SUMS)
def _gate(wide: Any, out: Any) -> None:
    """Writes what the gate, the first half, lets through of the second half."""
    size = out.shape[1]
    for token in range(len(wide)):
        gate, value, to = wide[token, :size], wide[token, size:], out[token]
        for index in range(size):
            to[index] = gate[index] / (np.float32(1.0) + _exp(-gate[index])) * value[index]


@njit(fastmath=_SUMS)
def _add(x: Any, y: Any) -> None:
    for token in range(len(x)):
        for index in range(x.shape[1]):
            x[token, index] += y[token, index]


@njit(fastmath=_SUMS, nogil=True, cache=True)
def decode_tokens(
    count: Any,
    x: Any,
    norms_L2D: Any,
    last_norm_D: Any,
    query_key_value_L: Any,
    mix_L: Any,
    gate_up_L: Any,
    down_L: Any,
    head_VD: Any,
    kv: Any,
    place: Any,
    cos_PK: Any,
    sin_PK: Any,
    num_heads: Any,
    epsilon: Any,
    tap_layer: Any,
    is_scored: Any,
    hidden_MD: Any,
    last_MD: Any,
    logits_MV: Any,
    normed: Any,
    rows: Any,
    mixed: Any,
    wide: Any,
    gated: Any,
    added: Any,
    shares_P: Any,
    rounded: Any,
    scales: Any,
    corrections: Any,
) -> None:
    """Reads tokens behind those in the cache.

    Args:
        count: M, how many.
        x: [M or more, D], embeddings of the tokens; overwritten.
        norms_L2D: weights of the norms before attention and before the feed-forward.
        last_norm_D: weights of the last norm.
        query_key_value_L: weights of each layer, side by side; float32[L, N, K], or uint8[L, bytes of tiles].
        mix_L: of what follows attention.
        gate_up_L: of the gate, then of what it lets through.
        down_L: of what follows the gate.
        head_VD: float32 weights of the scores.
        kv: float32[2 L, heads of keys, P, K], keys and values of each layer in turn; rows from `place` on are written.
        place: where the first token stands.
        cos_PK: of each place, K / 2 angles.
        sin_PK: of each place, K / 2 angles.
        num_heads: of attention.
        epsilon: of the norms.
        tap_layer: layers before `hidden_MD` is written.
        is_scored: whether to write `logits_MV`.
        hidden_MD: output of the tapped layer.
        last_MD: output of the last norm.
        logits_MV: scores of what follows each token.
        normed: [M up to a whole group, D], scratch, as are all behind it.
        rows: query, key and value of each token.
        mixed: output of attention.
        wide: output of gate and up.
        gated: what the gate lets through.
        added: what a layer adds.
        shares_P: attention of one head.
        rounded: int8, the longest input of a product.
        scales: of its blocks.
        corrections: int32, of its blocks.
    """
    num_kv_heads, head_dim = kv.shape[1], kv.shape[3]
    shared_by = num_heads // num_kv_heads
    scale = np.float32(1.0 / np.sqrt(head_dim))
    first_value = num_heads + num_kv_heads
    x, normed, rows, mixed = x[:count], normed[:count], rows[:count], mixed[:count]
    wide, gated, added = wide[:count], gated[:count], added[:count]
    heads = rows.reshape(count, first_value + num_kv_heads, head_dim)
    for layer in range(len(norms_L2D)):
        if layer == tap_layer:
            hidden_MD[:] = x
        _norm(x, norms_L2D[layer, 0], epsilon, normed)
        _product(query_key_value_L[layer], normed, rows, rounded, scales, corrections)
        for token in range(count):
            _turn(heads[token, :first_value], cos_PK[place + token], sin_PK[place + token])
            kv[2 * layer, :, place + token] = heads[token, num_heads:first_value]
            kv[2 * layer + 1, :, place + token] = heads[token, first_value:]
        for head in range(num_heads):
            keys, values = kv[2 * layer, head // shared_by], kv[2 * layer + 1, head // shared_by]
            next_keys = kv[2 * layer, min(head + 1, num_heads - 1) // shared_by]
            for token in range(count):
                out = mixed[token, head * head_dim : (head + 1) * head_dim]
                _attend(heads[token, head], keys, values, next_keys, place + token + 1, scale, shares_P, out)
        _product(mix_L[layer], mixed, added, rounded, scales, corrections)
        _add(x, added)
        _norm(x, norms_L2D[layer, 1], epsilon, normed)
        _product(gate_up_L[layer], normed, wide, rounded, scales, corrections)
        _gate(wide, gated)
        _product(down_L[layer], gated, added, rounded, scales, corrections)
        _add(x, added)
    if tap_layer == len(norms_L2D):
        hidden_MD[:] = x
    _norm(x, last_norm_D, epsilon, last_MD)
    if is_scored:
        _multiply(head_VD, last_MD, logits_MV)
