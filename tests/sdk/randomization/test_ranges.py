"""Ranges draw what they say, know what they cover, and survive a file."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.randomization.ranges import (
    Choice,
    Integers,
    LogUniform,
    Range,
    Signed,
    Uniform,
    fixed,
    intervals,
    overlaps,
    range_from_json,
    range_to_json,
)

BOUNDS = st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)).map(sorted)
RANGES = st.one_of(
    BOUNDS.map(lambda pair: Uniform(*pair)),
    BOUNDS.map(lambda pair: LogUniform(*pair)),
    BOUNDS.map(lambda pair: Signed(*pair)),
    st.tuples(st.integers(-9, 9), st.integers(0, 9)).map(lambda pair: Integers(pair[0], pair[0] + pair[1])),
    st.lists(st.integers(-5, 5) | st.floats(-5, 5), min_size=1, max_size=4).map(lambda many: Choice(tuple(many))),
)


@given(RANGES, st.integers(0, 2**32))
def test_what_is_drawn_lies_in_the_range(found: Range, seed: int) -> None:
    drawn = found.draw(np.random.default_rng(seed), 20)
    assert len(drawn) == 20
    assert all(any(low <= value <= high for low, high in intervals(found)) for value in drawn)


@given(RANGES)
def test_a_range_comes_back_from_its_file(found: Range) -> None:
    assert range_from_json(json.loads(json.dumps(range_to_json(found))), "x") == found


def test_a_signed_range_draws_both_signs_and_never_the_gap() -> None:
    drawn = np.array(Signed(0.2, 0.3).draw(np.random.default_rng(0), 200))
    assert {-1.0, 1.0} == set(np.sign(drawn))
    assert np.abs(drawn).min() >= 0.2


def test_a_logarithmic_range_has_as_much_below_its_geometric_mean_as_above() -> None:
    drawn = np.array(LogUniform(0.01, 100.0).draw(np.random.default_rng(0), 4000))
    assert abs(np.mean(drawn < 1.0) - 0.5) < 0.03


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Uniform(0, 1), Uniform(1, 2), True),
        (Uniform(0, 1), Uniform(1.1, 2), False),
        (Signed(0.5, 1), Uniform(-0.4, 0.4), False),
        (Signed(0.5, 1), Uniform(-0.6, 0.4), True),
        (Choice(("a", "b")), Choice(("c",)), False),
        (Choice((1, 2)), Integers(2, 3), True),
        (fixed(0.0), Signed(0.1, 0.2), False),
    ],
)
def test_overlap(one: Range, other: Range, expected: bool) -> None:
    assert overlaps(one, other) is overlaps(other, one) is expected


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(1, 0),
        lambda: Uniform(0, math.nan),
        lambda: Uniform(0, math.inf),
        lambda: Uniform(False, 1),
        lambda: LogUniform(0, 1),
        lambda: Signed(-1, 1),
        lambda: Integers(0, 1.5),  # type: ignore[arg-type] # the mistake under test
        lambda: Choice(()),
        lambda: Choice((math.nan,)),
        lambda: Choice((True,)),
    ],
)
def test_an_impossible_range_is_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    "content", [None, True, [], {}, {"uniform": 3}, {"uniform": [1]}, {"unifrm": [0, 1]}, {"uniform": [0, 1], "x": 1}]
)
def test_what_is_no_range_is_named(content: object) -> None:
    with pytest.raises(ConfigError, match=r"light\.azimuth_rad"):
        range_from_json(content, "light.azimuth_rad")
