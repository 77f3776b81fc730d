"""Patterns for the table, drawn as arrays. They darken the table's own colour and repeat without a seam."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.randomization.domain import DomainSample
from roboalign.sdk.types import ImageArray

__all__ = ["table_texture"]

Float64Array = NDArray[np.float64]

_SIZE_PX = 128


def table_texture(domain: DomainSample, width_m: float) -> ImageArray | None:
    """Returns uint8[128, 128, 3] for a table that is `width_m` wide, or None for a plain one.

    White leaves the table's colour as it is; the darkest spot is `contrast` below it.
    """
    values = domain.textures
    if values.table == "flat" or values.contrast == 0.0:
        return None
    cells = max(2, 2 * round(width_m / values.cell_m / 2))  # even, so that a checkerboard closes at its seam
    rng = domain.stream("textures", "pattern")
    pattern = {"checker": _checker, "noise": _noise, "gradient": _gradient}[values.table](cells, rng)
    grey = np.rint(255.0 * (1.0 - values.contrast * pattern)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _grid() -> tuple[Float64Array, Float64Array]:
    """Returns the middle of every pixel, 0 to 1, by row and by column."""
    middle = (np.arange(_SIZE_PX) + 0.5) / _SIZE_PX
    return middle[:, None], middle[None, :]


def _checker(cells: int, rng: np.random.Generator) -> Float64Array:
    rows, columns = _grid()
    shift = rng.random(2)
    parity = np.floor((rows + shift[0]) * cells) + np.floor((columns + shift[1]) * cells)
    checker: Float64Array = parity % 2
    return checker


def _noise(cells: int, rng: np.random.Generator) -> Float64Array:
    """Value noise: random numbers on a lattice, blended smoothly; two sizes of cells."""
    total = np.zeros((_SIZE_PX, _SIZE_PX))
    for share, count in ((0.65, cells), (0.35, min(2 * cells, _SIZE_PX // 2))):
        lattice = rng.random((count, count))
        place = np.arange(_SIZE_PX) / _SIZE_PX * count
        low = np.floor(place).astype(int)
        part = place - low
        part = part * part * (3 - 2 * part)
        high = (low + 1) % count
        top = lattice[low][:, low] * (1 - part) + lattice[low][:, high] * part
        bottom = lattice[high][:, low] * (1 - part) + lattice[high][:, high] * part
        total += share * (top * (1 - part[:, None]) + bottom * part[:, None])
    return total


def _gradient(cells: int, rng: np.random.Generator) -> Float64Array:
    """A slow wave across the table; `cells` plays no part."""
    del cells
    rows, columns = _grid()
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    wave = 2 * np.pi * (np.sign(np.cos(angle)) * columns + np.sign(np.sin(angle)) * rows) + phase
    pattern: Float64Array = (1 + np.sin(wave)) / 2
    return pattern
