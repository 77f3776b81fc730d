"""Arrays are given out again once nobody holds them, and never before."""

import gc

import numpy as np
import pytest

from roboalign.sdk.control.stock import Stock


def test_what_is_held_is_never_given_out_again():
    stock, rng, held = Stock(5, count=4), np.random.default_rng(0), []
    for number in range(500):
        array = stock.take()
        assert not any(np.shares_memory(array, other) for other, _ in held)
        array.fill(number)
        held.append((array, number))
        del array
        while len(held) > rng.integers(0, 9):
            held.pop(int(rng.integers(len(held))))
        assert all((other == value).all() for other, value in held)


@pytest.mark.parametrize("keep", [lambda a: a[1:], lambda a: a.reshape(1, 5), memoryview, lambda a: {"a": a}])
def test_a_view_holds_it_too(keep):
    stock = Stock(5, count=2)
    kept, addresses = keep(stock.take()), set()
    first = id(stock._arrays[0])
    for _ in range(6):
        addresses.add(id(stock.take()))
    assert first not in addresses
    del kept


def test_what_is_dropped_is_used_again():
    stock = Stock(5, count=2)
    gc.disable()  # counting references is enough
    try:
        assert len({id(stock.take()) for _ in range(10)}) == 2
    finally:
        gc.enable()
