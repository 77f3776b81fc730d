"""Per-feature statistics in the form of lerobot's `meta/stats.json`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.types import ImageArray

__all__ = ["Statistics", "describe", "describe_histogram", "image_histogram"]

Statistics = dict[str, list[object]]
"""`min max mean std count q01 q10 q50 q90 q99`, each a list over the entries of the feature."""

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def describe(values: NDArray[np.generic]) -> Statistics:
    """Returns the statistics of `[N]` or `[N, D]` numbers over N."""
    columns = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    stats: Statistics = {
        "min": columns.min(axis=0).tolist(),
        "max": columns.max(axis=0).tolist(),
        "mean": columns.mean(axis=0).tolist(),
        "std": columns.std(axis=0).tolist(),
        "count": [len(columns)],
    }
    quantiles = np.quantile(columns, list(QUANTILES.values()), axis=0)
    stats.update(zip(QUANTILES, quantiles.tolist(), strict=True))
    return stats


def image_histogram(images: Sequence[ImageArray]) -> NDArray[np.int64]:
    """Returns int64[3, 256]: how often each value occurs in each colour channel."""
    histogram = np.zeros((3, 256), np.int64)
    for image in images:
        for channel in range(3):
            histogram[channel] += np.bincount(image[:, :, channel].ravel(), minlength=256)
    return histogram


def describe_histogram(histogram: NDArray[np.int64], *, num_images: int) -> Statistics:
    """Returns the statistics of images with values in [0, 1], each of shape [3, 1, 1] as lerobot has them."""
    levels = np.arange(256) / 255.0
    total = np.maximum(histogram.sum(axis=1), 1)
    mean = (histogram * levels).sum(axis=1) / total
    variance = (histogram * (levels - mean[:, None]) ** 2).sum(axis=1) / total
    cumulative = histogram.cumsum(axis=1)
    present = histogram > 0
    columns = {
        "min": levels[present.argmax(axis=1)],
        "max": levels[255 - present[:, ::-1].argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt(variance),
    }
    for name, quantile in QUANTILES.items():
        columns[name] = levels[(cumulative >= quantile * total[:, None]).argmax(axis=1)]
    stats: Statistics = {name: [[[float(value)]] for value in column] for name, column in columns.items()}
    stats["count"] = [num_images]
    return stats
