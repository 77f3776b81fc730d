"""Rounds a matrix so that what it computes changes least, given which inputs it really gets (GPTQ).

Inputs are rounded one after another, in the order in which they are stored; the error that each makes is taken back by
those that are still to come, in the proportion that the second moments of the inputs ask for (Frantar et al. 2022,
arXiv 2210.17323, algorithm 1, without reordering: blocks that share a scale stay contiguous). A block's scale is
chosen when its turn comes, from the weights as they then are, and weighs each input by what its error would cost.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.quantized import Codes, QuantizedLayout, best_scales, block_of, code_range
from roboalign.sdk.types import FloatArray

__all__ = ["Moments", "round_with_moments"]

Moments = NDArray[np.float64]
"""float64[K, K]: the sum of x x^T over the inputs x of a layer."""

_DAMPING = 0.01
"""Added to the diagonal, as a share of its mean (the paper's section 3.3): few observations leave directions unseen."""


def round_with_moments(
    weight: FloatArray, moments: Moments, bits: int
) -> tuple[Codes, NDArray[np.float16], QuantizedLayout]:
    """Returns codes int8[K, N] and scales float16[K / block, N] of a matrix float[K, N], and how to read them.

    Raises:
        ConfigError: the matrix has no whole blocks, or the moments are of another number of inputs or not finite.
    """
    num_inputs = len(weight)
    size = block_of(num_inputs)
    if size is None or moments.shape != (num_inputs, num_inputs) or not np.isfinite(moments).all():
        raise ConfigError(
            f"a matrix {list(weight.shape)} cannot be rounded with moments {list(moments.shape)}, expected finite ones "
            f"of as many inputs, in whole blocks"
        )
    upper = _inverse_root(moments)
    lowest, highest = code_range(bits)
    left = weight.astype(np.float64)
    codes = np.empty(weight.shape, np.int8)
    scales = np.empty((num_inputs // size, weight.shape[1]), np.float16)
    for start in range(0, num_inputs, size):
        stop = start + size
        cost = (1.0 / np.diag(upper)[start:stop] ** 2).astype(np.float32)
        scales[start // size] = best_scales(left[start:stop].astype(np.float32), bits, cost)
        scale = scales[start // size].astype(np.float64)
        errors = np.empty((size, weight.shape[1]))
        for row in range(start, stop):
            codes[row] = np.clip(np.rint(left[row] / scale), lowest, highest)
            errors[row - start] = (left[row] - codes[row] * scale) / upper[row, row]
            left[row + 1 : stop] -= np.outer(upper[row, row + 1 : stop], errors[row - start])
        left[stop:] -= upper[start:stop, stop:].T @ errors
    return codes, scales, QuantizedLayout(bits=bits, shape=weight.shape, block=size)


def _inverse_root(moments: Moments) -> Moments:
    """Returns the upper triangle U with U^T U = inverse of the damped moments."""
    damped = moments.copy()
    diagonal = np.diag(damped)
    never_seen = diagonal == 0
    damped[never_seen, never_seen] = 1.0
    damped[np.diag_indices_from(damped)] += _DAMPING * np.diag(damped).mean()
    return np.linalg.cholesky(np.linalg.inv(damped)).T
