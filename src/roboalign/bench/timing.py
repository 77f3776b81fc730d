"""Contenders measured in turn, round by round, so that whatever else the machine does falls on all of them alike.

A ratio is made within each round and then summarised: the median, and from where to where nine of ten rounds lie.
Processor time is that of this process; what another process does on the same core is not in it, what it does to caches
and memory is.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time

import numpy as np

__all__ = ["Spread", "Timing", "interleave", "memory_read_bytes_s", "ratio", "spread"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What a contender took, round by round."""

    cpu_s: tuple[float, ...]
    """Processor time of this process."""
    wall_s: tuple[float, ...]
    """Time that passed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A quantity over the rounds."""

    median: float
    """Half of the rounds are below."""
    low: float
    """5 % of the rounds are below."""
    high: float
    """95 % of the rounds are below."""


def interleave(contenders: Mapping[str, Callable[[], None]], rounds: int, *, warm_up: int = 1) -> dict[str, Timing]:
    """Runs every contender once in each round, in an order that turns, and returns what each took."""
    names = list(contenders)
    cpu_s: dict[str, list[float]] = {name: [] for name in names}
    wall_s: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for _ in range(warm_up):
            contenders[name]()
    gc.collect()
    gc.disable()
    try:
        for index in range(rounds):
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                wall, cpu = perf_counter(), process_time()
                contenders[name]()
                cpu_s[name].append(process_time() - cpu)
                wall_s[name].append(perf_counter() - wall)
    finally:
        gc.enable()
    return {name: Timing(cpu_s=tuple(cpu_s[name]), wall_s=tuple(wall_s[name])) for name in names}


def spread(values: Sequence[float]) -> Spread:
    """Returns median, 5 and 95 % of what was measured."""
    low, median, high = (float(value) for value in np.percentile(np.asarray(values), (5, 50, 95)))
    return Spread(median=median, low=low, high=high)


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Spread:
    """Returns how many times as long the first took, round by round."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


_READ_BYTES = 512 * 2**20
"""More than any cache holds."""


def memory_read_bytes_s() -> Callable[[], float]:
    """Returns what measures, each time it is called, how many bytes one thread reads from memory in a second."""
    block = np.ones(_READ_BYTES // 4, np.float32)

    def measure() -> float:
        start = process_time()
        block.dot(block)
        return _READ_BYTES / (process_time() - start)

    return measure
