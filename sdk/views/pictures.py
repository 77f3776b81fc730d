"""What pictures say of a camera, by numpy alone: where something changed, when, and which colours there are.

Two pictures between which the arm moved differ where the arm is. The middle of that change follows the tool, so a plane
that maps tool positions to it (`fit_view`) tells one camera from another, and a picture from its mirror image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.types import ImageArray

__all__ = [
    "NUM_HUES",
    "TURNS",
    "change_middle",
    "colour_evidence",
    "hue_shares",
    "picture_lag",
    "view_error",
]

Float64Array = NDArray[np.float64]

NUM_HUES = 72
"""Bins of the circle of hues; red is in the first and the last."""

_CHANGE = 30.0  # of 255, after noise was averaged: an arm in front of a table, not its shadow
_MIN_CHANGE_SHARE = 0.003
_MIN_SATURATION, _MIN_VALUE = 0.45, 0.25
_HUE_FLOOR = 0.0013  # of all coloured pixels: what the reference never showed may still come
_OFFSET_WEIGHT = 0.5
_MAX_LAG = 12
_MIN_CORRELATION = 0.4

TURNS: Mapping[str, Callable[[Float64Array], Float64Array]] = {
    "as it should be": lambda place: place,
    "upside down": lambda place: 1.0 - place,
    "mirrored": lambda place: place * (1.0, -1.0) + (0.0, 1.0),
    "flipped top to bottom": lambda place: place * (-1.0, 1.0) + (1.0, 0.0),
    "turned by 90 degrees": lambda place: place[:, ::-1] * (1.0, -1.0) + (0.0, 1.0),
    "turned by 270 degrees": lambda place: place[:, ::-1] * (-1.0, 1.0) + (1.0, 0.0),
    "mirrored and turned by 90 degrees": lambda place: place[:, ::-1],
    "mirrored and turned by 270 degrees": lambda place: 1.0 - place[:, ::-1],
}
"""How a picture may stand, and where a place (row, column) of the right picture is then; sizes are 0 to 1."""


def change_middle(before: ImageArray, after: ImageArray) -> Float64Array | None:
    """Returns float64[2], row and column of the middle of what changed, 0 to 1; None where next to nothing did."""
    if before.shape != after.shape:
        return None
    changed = _smooth(_difference(before, after)) > _CHANGE
    if changed.mean() < _MIN_CHANGE_SHARE:
        return None
    places = np.argwhere(changed)
    return np.asarray((places.mean(axis=0) + 0.5) / changed.shape, np.float64)


def view_error(motion: Float64Array, tool_m: Float64Array, middles: Float64Array, turn: str) -> float:
    """Returns how far changes are from where a view has them, as a share of the picture.

    What is common to all counts half: a camera that was put back stands a little aside.

    Args:
        motion: float64[4, 2] of the view: changes from tool positions with a one behind.
        tool_m: float64[N, 3].
        middles: float64[N, 2].
        turn: one of `TURNS`.
    """
    expected = TURNS[turn](np.column_stack((tool_m, np.ones(len(tool_m)))) @ motion)
    errors = middles - expected
    common = errors.mean(axis=0)
    return float(np.sqrt(((errors - common) ** 2).sum(axis=1).mean() + ((_OFFSET_WEIGHT * common) ** 2).sum()))


def hue_shares(pictures: Sequence[ImageArray]) -> tuple[Float64Array, float]:
    """Returns float64[NUM_HUES], the share of each hue among coloured pixels, and the share of these among all."""
    counts, total = np.zeros(NUM_HUES), 0
    for picture in pictures:
        rgb = picture.astype(np.float64) / 255.0
        high, low = rgb.max(axis=2), rgb.min(axis=2)
        span = high - low
        is_coloured = (span > _MIN_SATURATION * np.maximum(high, 1e-6)) & (high > _MIN_VALUE)
        red, green, blue = (rgb[..., channel][is_coloured] for channel in range(3))
        high, span = high[is_coloured], span[is_coloured]
        sixth = np.where(
            high == red,
            ((green - blue) / span) % 6.0,
            np.where(high == green, (blue - red) / span + 2.0, (red - green) / span + 4.0),
        )
        counts += np.bincount((sixth / 6.0 * NUM_HUES).astype(int) % NUM_HUES, minlength=NUM_HUES)
        total += is_coloured.size
    coloured = counts.sum()
    return counts / max(coloured, 1.0), float(coloured / max(total, 1))


def colour_evidence(found: Float64Array, reference: Float64Array) -> float:
    """Returns by how much hues speak for the order RGB (positive) or BGR (negative): nats for each coloured pixel."""
    known = (np.roll(reference, 1) + 2.0 * reference + np.roll(reference, -1)) / 4.0 + _HUE_FLOOR
    # Red and blue exchanged: a hue of h degrees becomes 240 - h.
    swapped = known[(NUM_HUES * 240 // 360 - 1 - np.arange(NUM_HUES)) % NUM_HUES]
    return float((found * np.log(known / swapped)).sum())


def picture_lag(pictures: Sequence[ImageArray], speeds: Sequence[float]) -> int | None:
    """Returns by how many periods pictures come after the motion that they show; None where that cannot be told.

    Args:
        pictures: one a period.
        speeds: of the tool in each period, of the same length.
    """
    changes = [0.0]
    for before, after in pairwise(pictures):
        changes.append(float((_smooth(_difference(before, after)) > _CHANGE / 2).mean()))
    moved, seen = np.asarray(speeds, np.float64), np.asarray(changes)
    scores = []
    for lag in range(_MAX_LAG + 1):
        a, b = moved[: len(moved) - lag], seen[lag:]
        if len(a) < 3 * _MAX_LAG or a.std() == 0.0 or b.std() == 0.0:
            return None
        scores.append(float(np.corrcoef(a, b)[0, 1]))
    best = int(np.argmax(scores))
    return best if scores[best] > _MIN_CORRELATION else None


def _difference(one: ImageArray, other: ImageArray) -> Float64Array:
    return np.asarray(np.abs(one.astype(np.float64) - other.astype(np.float64)).max(axis=2))


def _smooth(values: Float64Array) -> Float64Array:
    """Averages over 3 x 3 pixels; borders are repeated."""
    padded = np.pad(values, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9.0)
