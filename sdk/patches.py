"""How a picture becomes the patches of a Qwen-VL vision encoder, and how a prompt with pictures counts its positions.

With numpy alone, and to the last bit what transformers' picture processor gives: a picture is scaled by Pillow's
bicubic filter in its fixed-point arithmetic, with 8 bits between the two passes.

Positions have three axes: time, row and column. A word advances all three; a picture stands still in time and spreads
over rows and columns, and what follows goes on behind the larger of the two. So the next position is *not* the number
of tokens read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.types import FloatArray, ImageArray

__all__ = ["PatchFormat", "axis_positions", "resize_picture"]

_FRACTION_BITS = 22
"""Pillow's weights of 8-bit pictures are whole numbers of so many binary places."""

_SUPPORT, _SHARPNESS = 2.0, -0.5
"""Of Pillow's bicubic filter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchFormat:
    """Patches of the one size of picture that a policy sees."""

    rows: int
    """Patches from top to bottom; the picture is scaled to them."""
    columns: int
    """Patches from left to right."""
    patch_px: int
    """Side of a patch."""
    merge: int
    """So many patches, down and across, become one token."""
    frames: int
    """A patch is so many frames deep; a still picture is repeated."""
    mean: tuple[float, ...]
    """Of each colour, subtracted from pixel / 255."""
    std: tuple[float, ...]
    """Divides what is left."""
    image_token_id: int
    """Placeholder in the prompt, one for each token of the picture."""

    def __post_init__(self) -> None:
        counts = (self.rows, self.columns, self.patch_px, self.merge, self.frames)
        if min(counts) < 1 or self.rows % self.merge or self.columns % self.merge:
            raise ConfigError(
                f"patches are {self.rows} x {self.columns} of {self.patch_px} pixels, {self.frames} deep and merged by "
                f"{self.merge}, expected positive numbers and whole merged patches"
            )
        if (len(self.mean), len(self.std)) != (3, 3) or not all(value > 0 for value in self.std):
            raise ConfigError(f"patches have mean {self.mean} and std {self.std}, expected three each, std above 0")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.rows // self.merge, self.columns // self.merge

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of what `cut` returns: patches, and the numbers of each."""
        return self.rows * self.columns, 3 * self.frames * self.patch_px**2

    def cut(self, image: ImageArray) -> FloatArray:
        """Returns float32[N, W] patches, those that merge beside each other, from a picture uint8[height, width, 3]."""
        scaled = resize_picture(image, self.rows * self.patch_px, self.columns * self.patch_px)
        # Rounded where transformers rounds: scaled in double precision, normalised in single.
        unit = (scaled.astype(np.float64) * (1 / 255)).astype(np.float32)
        values = (unit - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        down, across = self.grid
        blocks = values.reshape(down, self.merge, self.patch_px, across, self.merge, self.patch_px, 3)
        planes = blocks.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
        deep = np.broadcast_to(planes, (*planes.shape[:5], self.frames, *planes.shape[6:]))
        return np.ascontiguousarray(deep.reshape(self.shape))

    def positions(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Returns int64[3, L] of a prompt whose pictures all have this size."""
        down, across = self.grid
        count = sum(token == self.image_token_id for token in ids)
        return axis_positions(ids, self.image_token_id, [self.grid] * (count // (down * across)))


def axis_positions(ids: Sequence[int], image_token_id: int, grids: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Returns time, row and column of each token, int64[3, L].

    Args:
        ids: the prompt.
        image_token_id: what stands for a token of a picture.
        grids: rows and columns of tokens of each picture, in turn.

    Raises:
        DataError: the placeholders are not those of the pictures.
    """
    is_image = np.asarray(ids) == image_token_id
    found = np.zeros((3, len(ids)), np.int64)
    expected = sum(down * across for down, across in grids)
    if int(is_image.sum()) != expected:
        raise DataError(
            f"the prompt has {int(is_image.sum())} placeholders, expected {expected} for {len(grids)} pictures"
        )
    place = position = 0
    remaining = iter(grids)
    while place < len(ids):
        if not is_image[place]:
            found[:, place] = position
            place, position = place + 1, position + 1
            continue
        down, across = next(remaining)
        span = slice(place, place + down * across)
        if not is_image[span].all():
            raise DataError(f"the placeholders of a picture of {down} x {across} tokens are not in one piece")
        found[:, span] = position
        found[1, span] += np.repeat(np.arange(down), across)
        found[2, span] += np.tile(np.arange(across), down)
        place, position = place + down * across, position + max(down, across)
    return found


def resize_picture(image: ImageArray, height: int, width: int) -> ImageArray:
    """Returns uint8[height, width, 3], scaled as Pillow's `resize` with its bicubic filter does.

    What lies between the passes is rounded, so that their order counts, and Pillow 13 chooses it by the sizes. A square
    picture, as policies see, is the same to the last bit, and so is one that grows or has one side scaled; where both
    sides shrink, and not alike, some values may differ.
    """
    if height < image.shape[0] and width > image.shape[1]:
        return _across(_down(image, height), width)
    return _down(_across(image, width), height)


def _down(image: ImageArray, height: int) -> ImageArray:
    return image if image.shape[0] == height else _scale(image, height)


def _across(image: ImageArray, width: int) -> ImageArray:
    return image if image.shape[1] == width else _scale(image.transpose(1, 0, 2), width).transpose(1, 0, 2)


def _scale(rows: ImageArray, count: int) -> ImageArray:
    """Returns `count` rows, each a weighted sum of those given."""
    flat = rows.reshape(rows.shape[0], -1).astype(np.float64)
    # Whole numbers below 2^53, so that the products are exact whatever their order.
    sums = _weights(rows.shape[0], count) @ flat + (1 << (_FRACTION_BITS - 1))
    scaled = np.floor(sums / (1 << _FRACTION_BITS))
    return np.clip(scaled, 0, 255).astype(np.uint8).reshape(count, *rows.shape[1:])


@cache
def _weights(length: int, count: int) -> NDArray[np.float64]:
    """Returns whole numbers [count, length]: how much of each row goes into each scaled row."""
    step = length / count
    stretch = max(step, 1.0)
    reach = _SUPPORT * stretch
    found = np.zeros((count, length))
    for index in range(count):
        centre = (index + 0.5) * step
        first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), length)
        distance = np.abs((np.arange(first, last) - centre + 0.5) * (1.0 / stretch))
        share = _bicubic(distance)
        share /= sum(share)  # one after the other, as Pillow adds them
        found[index, first:last] = np.trunc(share * (1 << _FRACTION_BITS) + np.copysign(0.5, share))
    found.setflags(write=False)
    return found


def _bicubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    near = ((_SHARPNESS + 2) * distance - (_SHARPNESS + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * _SHARPNESS
    return np.where(distance < 1, near, np.where(distance < _SUPPORT, far, 0.0))
