"""Counts every array object that numpy makes: results, views and temporaries, however short they live.

Tracing memory cannot tell, because numpy keeps small blocks for the next array. Every array, a view included, comes
from its type's `tp_alloc`, whose place in a type object has been the same since Python 3.8 (CPython, 64 bits).
`count_arrays` puts a function of its own there that does the same; `check` says whether it counts right.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_TP_ALLOC = 304  # bytes from the start of a type object
_generic = ctypes.pythonapi.PyType_GenericAlloc
_generic.restype, _generic.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_ssize_t]
_Alloc = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t)


@contextmanager
def count_arrays() -> Iterator[Counter[str]]:
    """Counts, by the file that makes the array, while the block runs."""
    places: Counter[str] = Counter()

    @_Alloc
    def alloc(kind: int, items: int) -> int:
        places[sys._getframe(1).f_code.co_filename] += 1
        found: int = _generic(kind, items)
        return found

    slot = ctypes.cast(id(np.ndarray) + _TP_ALLOC, ctypes.POINTER(ctypes.c_void_p))
    before = slot[0]
    slot[0] = ctypes.cast(alloc, ctypes.c_void_p).value
    try:
        yield places
    finally:
        slot[0] = before


def check() -> None:
    """Raises AssertionError where this Python or numpy keeps its arrays elsewhere."""
    one, two, sums = np.zeros(5), np.ones(5), np.zeros(5)
    for number, work in ((0, lambda: np.add(one, two, out=sums)), (1, lambda: one + two), (1, lambda: one[1:])):
        with count_arrays() as places:
            work()
        assert places.total() == number, f"counted {places.total()} arrays, expected {number}"
