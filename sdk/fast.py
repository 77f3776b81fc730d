"""FAST action codec (arXiv 2501.09747): a chunk of actions to a short sequence of token ids, and back.

Percentiles per dimension -> [-1, 1]; DCT-II (ortho) over time; times `scale`; rounded; flattened [frequency, field], so
that the lowest frequency of every field comes first; then byte-pair merges over a private alphabet in which one symbol
is one coefficient. Differences to the published processor: every value of the alphabet is a token, coefficients outside
it are clipped and counted, no pre-tokeniser splits the sequence, nothing is remembered between calls, and a sequence
that does not decode is a typed result, never a chunk of zeros. The published byte-level vocabularies cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.fast_file import FAST_FILE, FastConfig, FastReport, codec_hash, read_codec, write_codec
from roboalign.sdk.merges import apply_merges, learn_merges
from roboalign.sdk.types import ACTION_NAMES, FloatArray

__all__ = ["FAST_FILE", "FastCodec", "FastConfig", "FastDecoded", "FastReport"]

_PERCENTILES = (1.0, 99.0)
_TAIL_PERCENTILES = (0.1, 99.9)
_MIN_SPAN = 1e-3
"""Floor of `high - low` in the unit of the dimension: 1 mm, 1 mrad; a constant dimension would divide by zero."""
_ALPHABET_SHARE = 0.75
"""Largest share of the vocabulary that single coefficients may take; the rest is for merges."""
_MAX_MERGE_CHUNKS = 20_000
"""Chunks that the merges are learnt from; more change nothing that can be measured."""
_SCALES = tuple(float(base * 10**power) for power in range(4) for base in (1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.4, 8))

_Float64Array = NDArray[np.float64]
_IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class FastDecoded:
    """What a token sequence decodes to."""

    status: Literal["ok", "short", "long", "invalid"]
    """`short`/`long`: too few/many coefficients; `invalid`: an id outside the vocabulary."""
    actions: FloatArray | None
    """float32[T, D] in the units of the codec's names; None unless `status` is `ok`."""
    num_coefficients: int
    """Coefficients spelled by the tokens, up to the first invalid one."""


class FastCodec:
    """Encodes and decodes chunks of one shape, rate and action space; immutable, and safe to share between threads."""

    def __init__(self, config: FastConfig, fit_report: FastReport | None = None) -> None:
        self.config = config
        self.fit_report = fit_report
        low, high = config.low.astype(np.float64), config.high.astype(np.float64)
        self._middle, self._half_span = (low + high) / 2, (high - low) / 2
        dct = _dct_matrix(config.horizon)
        self._forward, self._inverse = dct * config.scale, dct.T / config.scale
        self._merged_id = {pair: config.alphabet_size + rank for rank, pair in enumerate(config.merges)}
        self._spelled = _spell(config)
        self.token_lengths = np.array([len(values) for values in self._spelled], dtype=np.int64)
        """int64[vocab_size], read-only: coefficients that each token spells."""
        self.token_lengths.flags.writeable = False

    @classmethod
    def fit(
        cls,
        actions: ArrayLike,
        *,
        rate_hz: float,
        names: Sequence[str] = ACTION_NAMES,
        vocab_size: int = 512,
        tolerance: Sequence[float] | None = None,
        scale: float = 10.0,
        max_merges: int | None = None,
    ) -> FastCodec:
        """Learns statistics, alphabet and merges from demonstrated chunks; the same chunks give the same codec.

        Args:
            actions: float[N, T, D] in the units of `names`.
            rate_hz: Control rate of the actions.
            names: The D action fields, each with its unit as suffix.
            vocab_size: Largest number of tokens; few or very regular chunks give fewer.
            tolerance: Absolute error per field that 95 % of the fitted actions must stay within; the smallest scale of
                a fixed ladder that does so replaces `scale`. `inf` for a field that does not matter.
            scale: Quanta per normalised unit when no tolerance is given (10 in the FAST paper).
            max_merges: Byte-pair merges at most; None fills the vocabulary (the FAST paper). With 0 every token is one
                coefficient at a known place, so a wrong token cannot shift what the tokens behind it mean.

        Raises:
            DataError: The actions have another shape or are not finite.
            ConfigError: An argument is out of range, or no scale reaches the tolerance with this vocabulary.
        """
        chunks = _checked(actions, (*np.asarray(actions).shape[1:2], len(names)))
        if vocab_size < 16:
            raise ConfigError(f"vocab_size is {vocab_size}, expected at least 16; the paper uses 2048")
        if max_merges is not None and max_merges < 0:
            raise ConfigError(f"max_merges is {max_merges}, expected 0 or more, or None to fill the vocabulary")
        low, high = _normalisation(chunks)

        empty = FastConfig(
            horizon=chunks.shape[1],
            names=tuple(names),
            rate_hz=float(rate_hz),
            scale=float(scale),
            low=low,
            high=high,
            min_coefficient=0,
            max_coefficient=0,
            merges=(),
        )

        def without_merges(scale: float) -> FastCodec:
            config = replace(empty, scale=scale)
            lowest, highest = _alphabet_bounds(cls(config)._transform(chunks), vocab_size)
            return cls(replace(config, min_coefficient=lowest, max_coefficient=highest))

        codec = without_merges(empty.scale) if tolerance is None else _pick_scale(without_merges, chunks, tolerance)
        room = vocab_size - codec.vocab_size
        num_merges = room if max_merges is None else min(max_merges, room)
        sample = np.linspace(0, len(chunks) - 1, min(len(chunks), _MAX_MERGE_CHUNKS)).astype(np.int64)
        symbols, _ = codec._quantise(chunks[sample])
        codec = cls(replace(codec.config, merges=learn_merges(symbols, codec.vocab_size, num_merges)))
        return cls(codec.config, codec.report(chunks))

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids are `0 .. vocab_size - 1`."""
        return self.config.vocab_size

    @property
    def num_coefficients(self) -> int:
        """Coefficients in a chunk, hence what the tokens of a decodable sequence spell in total."""
        return self.config.num_coefficients

    @property
    def hash(self) -> str:
        """sha256 (hex) of everything the codec file holds; equal hashes mean equal codecs."""
        return codec_hash(self.config, self.fit_report)

    def encode(self, actions: ArrayLike) -> tuple[int, ...]:
        """Returns the token ids of float[T, D] actions; coefficients outside the alphabet are clipped (see `report`).

        Raises:
            DataError: The actions have another shape or are not finite.
        """
        config = self.config
        chunk = _checked(np.asarray(actions)[None], (config.horizon, config.num_dims))
        symbols: list[int] = self._quantise(chunk)[0][0].tolist()
        merged_id, none = self._merged_id, config.vocab_size
        while True:
            ids = [merged_id.get(pair, none) for pair in pairwise(symbols)]
            best = min(ids, default=none)
            if best == none:
                return tuple(symbols)
            merged, position = [], 0
            while position < len(symbols):
                if position < len(ids) and ids[position] == best:
                    merged.append(best)
                    position += 2
                else:
                    merged.append(symbols[position])
                    position += 1
            symbols = merged

    def encode_many(self, actions: ArrayLike) -> list[tuple[int, ...]]:
        """Returns `[encode(chunk) for chunk in actions]` for float[N, T, D] actions, faster for thousands of chunks."""
        config = self.config
        symbols, _ = self._quantise(_checked(actions, (config.horizon, config.num_dims)))
        return apply_merges(symbols, config.alphabet_size, config.merges)

    def decode(self, ids: Sequence[int]) -> FastDecoded:
        """Returns the actions that the token ids spell, or why they spell none; never raises for wrong ids."""
        config, spelled = self.config, self._spelled
        coefficients: list[int] = []
        for token in ids:
            if not 0 <= token < len(spelled):
                return FastDecoded(status="invalid", actions=None, num_coefficients=len(coefficients))
            coefficients += spelled[token]
        found = len(coefficients)
        if found != config.num_coefficients:
            status: Literal["short", "long"] = "short" if found < config.num_coefficients else "long"
            return FastDecoded(status=status, actions=None, num_coefficients=found)
        actions = self._restore(np.array(coefficients, dtype=np.float64))[0].astype(np.float32)
        return FastDecoded(status="ok", actions=actions, num_coefficients=found)

    def coefficients(self, actions: ArrayLike) -> tuple[NDArray[np.int64], int]:
        """Returns int64[N, T * D] quantised coefficients of float[N, T, D] actions, and how many were clipped."""
        symbols, num_saturated = self._quantise(_checked(actions, (self.config.horizon, self.config.num_dims)))
        return symbols + self.config.min_coefficient, num_saturated

    def report(self, actions: ArrayLike) -> FastReport:
        """Returns the error, token and saturation figures of float[N, T, D] actions, for example held-out ones."""
        chunks = _checked(actions, (self.config.horizon, self.config.num_dims))
        error, num_saturated = self._error(chunks)
        tokens = float(np.mean([len(ids) for ids in self.encode_many(chunks)]))
        return FastReport(
            names=self.config.names,
            mean_error=tuple(error.mean(axis=0).tolist()),
            p95_error=tuple(np.percentile(error, 95, axis=0).tolist()),
            max_error=tuple(error.max(axis=0).tolist()),
            num_chunks=len(chunks),
            num_saturated=num_saturated,
            tokens_per_chunk=tokens,
            compression=self.config.num_coefficients / tokens,
        )

    def save(self, directory: str | Path) -> Path:
        """Writes `fast.json` into the directory, under its final name only once it is complete; returns its path."""
        return write_codec(directory, self.config, self.fit_report)

    @classmethod
    def load(cls, directory: str | Path) -> FastCodec:
        """Returns the codec saved in a directory.

        Raises:
            BundleError: The file is missing, truncated, altered, of another kind, or of a newer format.
        """
        return cls(*read_codec(directory))

    def _transform(self, chunks: _Float64Array) -> _Float64Array:
        """Returns float64[N, T * D] scaled coefficients before rounding, lowest frequency of all dimensions first."""
        coefficients = self._forward @ ((chunks - self._middle) / self._half_span)
        return coefficients.reshape(len(chunks), -1)

    def _quantise(self, chunks: _Float64Array) -> tuple[_IntArray, int]:
        """Returns int64[N, T * D] alphabet indices and the number of clipped coefficients."""
        low, high = self.config.min_coefficient, self.config.max_coefficient
        rounded = np.rint(self._transform(chunks))
        clipped = np.clip(rounded, low, high)
        return clipped.astype(np.int64) - low, int(np.count_nonzero(clipped != rounded))

    def _restore(self, coefficients: _Float64Array) -> _Float64Array:
        """Returns float64[N, T, D] actions of float64[N, T * D] (or one chunk's) coefficients."""
        shaped = coefficients.reshape(-1, self.config.horizon, self.config.num_dims)
        return self._inverse @ shaped * self._half_span + self._middle

    def _error(self, chunks: _Float64Array) -> tuple[_Float64Array, int]:
        """Returns float64[N * T, D] absolute errors after a round trip, and the number of clipped coefficients."""
        symbols, num_saturated = self._quantise(chunks)
        restored = self._restore((symbols + self.config.min_coefficient).astype(np.float64))
        return np.abs(restored - chunks).reshape(-1, self.config.num_dims), num_saturated


def _dct_matrix(size: int) -> _Float64Array:
    """Returns the orthonormal DCT-II matrix [frequency, time]; its transpose is its inverse."""
    frequency, time = np.arange(size)[:, None], np.arange(size)[None]
    matrix: _Float64Array = np.sqrt(2 / size) * np.cos(np.pi * (2 * time + 1) * frequency / (2 * size))
    matrix[0] /= np.sqrt(2)
    return matrix


def _spell(config: FastConfig) -> list[tuple[int, ...]]:
    """Returns the coefficients that each token stands for."""
    spelled: list[tuple[int, ...]] = [(value,) for value in range(config.min_coefficient, config.max_coefficient + 1)]
    for left, right in config.merges:
        spelled.append(spelled[left] + spelled[right])
    return spelled


def _checked(actions: ArrayLike, shape: tuple[int, ...]) -> _Float64Array:
    chunks = np.asarray(actions, dtype=np.float64)
    if chunks.ndim != 3 or chunks.size == 0 or chunks.shape[1:] != shape:
        raise DataError(f"actions have shape {list(chunks.shape)}, expected chunks of (steps, fields) = {shape}")
    if not np.isfinite(chunks).all():
        raise DataError("actions are not finite; drop the chunks that hold NaN or infinity")
    return chunks


def _normalisation(chunks: _Float64Array) -> tuple[FloatArray, FloatArray]:
    """Returns float32[D] low and high: percentiles, widened for a dimension that (almost) never moves.

    A field that is zero in 99 % of the steps has equal 1st and 99th percentiles, yet its rare values matter: the tails
    decide where they are 8 times wider than the percentiles, then the full range, then the floor of the span.
    """
    flat = chunks.reshape(-1, chunks.shape[-1])
    low, high = np.percentile(flat, _PERCENTILES, axis=0)
    tail_low, tail_high = np.percentile(flat, _TAIL_PERCENTILES, axis=0)
    rare = high - low < np.maximum(_MIN_SPAN, (tail_high - tail_low) / 8)
    low, high = np.where(rare, tail_low, low), np.where(rare, tail_high, high)
    constant = high - low < _MIN_SPAN
    low, high = np.where(constant, flat.min(axis=0), low), np.where(constant, flat.max(axis=0), high)
    # The second term keeps the span wide enough for float32 when the constant itself is large.
    floor = np.maximum(_MIN_SPAN, np.maximum(np.abs(low), np.abs(high)) * 1e-5)
    widen = np.maximum(0, floor - (high - low)) / 2
    return (low - widen).astype(np.float32), (high + widen).astype(np.float32)


def _alphabet_bounds(coefficients: _Float64Array, vocab_size: int) -> tuple[int, int]:
    """Returns the smallest and largest coefficient seen with a margin, cut so that merges find room."""
    lowest, highest = int(np.rint(coefficients.min())), int(np.rint(coefficients.max()))
    margin = max(2, (highest - lowest) // 10)
    lowest, highest = lowest - margin, highest + margin
    limit = int(vocab_size * _ALPHABET_SHARE)
    bottom = max(lowest, min(highest, limit // 2) - limit + 1)
    return bottom, min(highest, bottom + limit - 1)


def _pick_scale(
    with_scale: Callable[[float], FastCodec], chunks: _Float64Array, tolerance: Sequence[float]
) -> FastCodec:
    """Returns the codec of the smallest scale whose 95th percentile error is within the tolerance in every field."""
    limit = np.asarray(tolerance, dtype=np.float64)
    if limit.shape != chunks.shape[2:] or not (limit > 0).all():
        raise ConfigError(f"tolerance must hold one positive number for each of {chunks.shape[2]} fields: {tolerance}")
    best = np.full(limit.shape, np.inf)
    for scale in _SCALES:
        codec = with_scale(scale)
        error = np.percentile(codec._error(chunks)[0], 95, axis=0)
        if (error <= limit).all():
            return codec
        best = np.minimum(best, error)
    raise ConfigError(
        f"no scale reaches the tolerance {limit.tolist()} (95th percentile); the best errors were "
        f"{best.round(6).tolist()}. Allow more, or use a larger vocab_size"
    )
