"""Arrays that are given out again once nobody holds them any more.

What a command returns may be kept by whoever gets it, for as long as it likes; mostly it is looked at and dropped. So
an array of the stock is given out again only while nothing refers to it, not even a view: CPython counts references.
"""

from __future__ import annotations

import sys

import numpy as np

from roboalign.sdk.types import FloatArray

__all__ = ["Stock"]


class Stock:
    """Float32 arrays of one length, in turn. For one thread."""

    def __init__(self, length: int, count: int = 8) -> None:
        """Makes the arrays; up to `count` may be held at a time before new ones are made."""
        self._arrays: list[FloatArray] = [np.empty(length, np.float32) for _ in range(count)]
        self._next = 0
        self._unheld = sys.getrefcount(self._arrays[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each array."""
        return self._arrays[0].shape

    def take(self) -> FloatArray:
        """Returns float32[length] with any content, which nobody else holds."""
        index = self._next
        self._next = (index + 1) % len(self._arrays)
        if sys.getrefcount(self._arrays[index]) > self._unheld:
            self._arrays[index] = np.empty(self.shape, np.float32)  # the old one is its holder's
        return self._arrays[index]
