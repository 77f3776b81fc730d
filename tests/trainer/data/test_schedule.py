from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.trainer.data.schedule import MAX_PERIOD, Schedule, parts_of, turns

PARTS = st.lists(st.integers(1, 40), min_size=1, max_size=7)
MIXES = st.dictionaries(
    st.sampled_from("abcdef"),
    st.tuples(st.floats(0.001, 9).map(lambda share: round(share, 3)), st.integers(1, 30)),
    min_size=1,
)


def schedule(mix, seed: int = 0) -> Schedule:
    return Schedule({n: share for n, (share, _) in mix.items()}, {n: size for n, (_, size) in mix.items()}, seed=seed)


@given(PARTS)
def test_after_any_number_of_turns_every_share_is_exact_to_one_sample(parts) -> None:
    order = turns(parts)
    drawn = np.cumsum(order[:, None] == np.arange(len(parts)), axis=0)
    wanted = np.arange(1, len(order) + 1)[:, None] * np.array(parts) / sum(parts)
    assert np.abs(drawn - wanted).max() < 1
    assert drawn[-1].tolist() == parts


@given(mix=MIXES, seed=st.integers(0, 2**32), start=st.integers(0, 1500))
@settings(deadline=None, max_examples=25)
def test_a_run_resumed_at_any_step_sees_the_same_stream(mix, seed, start) -> None:
    through, resumed = schedule(mix, seed), schedule(mix, seed)
    stream = [through.at(number) for number in range(start + 40)]
    assert [resumed.at(number) for number in range(start, start + 40)] == stream[start:]


@given(mix=MIXES, seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=25)
def test_no_row_comes_twice_before_all_came_once(mix, seed) -> None:
    found: dict[str, list[int]] = {name: [] for name in mix}
    plan = schedule(mix, seed)
    for number in range(600):
        draw = plan.at(number)
        assert draw.number == len(found[draw.source])
        found[draw.source].append(draw.row)
    for name, rows in found.items():
        size = mix[name][1]
        passes = [rows[first : first + size] for first in range(0, len(rows) - size + 1, size)]
        assert all(sorted(rows) == list(range(size)) for rows in passes)


def test_two_passes_and_two_seeds_differ_in_order() -> None:
    mix = {"a": (1.0, 30)}
    first, second = ([schedule(mix).at(n).row for n in range(k, k + 30)] for k in (0, 30))
    other = [schedule(mix, seed=1).at(n).row for n in range(30)]
    assert first != second
    assert first != other


def test_shares_that_need_too_long_a_period_are_rounded_to_parts_of_it() -> None:
    shares = {"a": 1 / 3, "b": 0.12345678901, "c": 1e-9}
    parts = parts_of(shares)
    assert MAX_PERIOD <= sum(parts.values()) <= MAX_PERIOD + 1
    for name, share in shares.items():
        assert abs(Fraction(parts[name], sum(parts.values())) - Fraction(share) / Fraction(sum(shares.values()))) < 2e-5


def test_a_source_without_weight_is_left_out_and_may_be_empty() -> None:
    plan = Schedule({"a": 1, "b": 0}, {"a": 3, "b": 0}, seed=0)
    assert Counter(plan.at(n).source for n in range(9)) == {"a": 9}


def test_an_empty_source_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="the source 'b' is empty, expected at least one sample"):
        Schedule({"a": 1, "b": 1}, {"a": 3, "b": 0}, seed=0)


def test_a_sample_before_the_first_is_refused() -> None:
    with pytest.raises(ConfigError, match="sample -1 was asked for, expected 0 or more"):
        schedule({"a": (1.0, 3)}).at(-1)
