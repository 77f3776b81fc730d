"""How often the intervals hold the true value, by exact enumeration of every outcome, not by simulation."""

import numpy as np
import pytest
from scipy.stats import binom, multinomial

from roboalign.sdk.evaluation.intervals import bootstrap_mean, success_interval, tango, wilson

NUMS = (10, 20, 50, 100, 300, 500)
RATES = np.linspace(0.02, 0.98, 961)


def ends(interval_of, n):
    rows = [interval_of(successes, n) for successes in range(n + 1)]
    return np.array([row.low for row in rows]), np.array([row.high for row in rows])


def coverage(interval_of, n, rates):
    """The probability that the interval holds the rate, for each rate."""
    low, high = ends(interval_of, n)
    mass = binom.pmf(np.arange(n + 1)[:, None], n, rates)
    return (mass * ((low[:, None] <= rates) & (rates <= high[:, None]))).sum(axis=0)


def worst(interval_of, n, lowest=0.02):
    """The smallest coverage: it is taken just outside an end of an interval."""
    rates = np.concatenate([end + step for end in ends(interval_of, n) for step in (-1e-10, 1e-10)])
    rates = rates[(rates >= lowest) & (rates <= 1 - lowest)]
    return coverage(interval_of, n, np.concatenate([rates, RATES])).min()


@pytest.mark.parametrize("n", NUMS)
def test_intervals_hold_the_rate_as_often_as_they_say(n):
    assert coverage(success_interval, n, RATES).mean() == pytest.approx(0.95, rel=0.01)


@pytest.mark.parametrize("n", NUMS)
def test_intervals_hold_every_rate_in_92_of_100_repetitions(n):
    assert worst(success_interval, n) >= 0.92 - 1e-6


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 13, 28, 60, 200, 1000])
def test_no_rate_however_small_is_held_less_often(n):
    assert worst(success_interval, n, lowest=1e-6) >= 0.92 - 1e-6


def test_a_confidence_of_90_is_kept_as_well():
    assert worst(lambda k, n: success_interval(k, n, 0.9), 20, lowest=1e-6) >= 0.84 - 1e-6


@pytest.mark.parametrize(("n", "found"), [(10, 0.893), (20, 0.894), (50, 0.916), (100, 0.927), (300, 0.936)])
def test_the_plain_wilson_interval_misses_too_often_below_a_hundred_episodes(n, found):
    """Why it is corrected: where few succeed, all its misses lie on one side, above the end of 1, 2 or 3 successes."""
    assert worst(wilson, n) == pytest.approx(found, abs=1e-3)


def paired_coverage(interval_of, n, points):
    """The probability that the interval holds the difference, for each pair of shares (only first, only second)."""
    cells = np.array([(b, c) for b in range(n + 1) for c in range(n + 1 - b)])
    rows = [interval_of(int(b), int(c), n) for b, c in cells]
    low, high = np.array([row.low for row in rows]), np.array([row.high for row in rows])
    counts = np.column_stack([cells, n - cells.sum(axis=1)])
    found = []
    for first, second in points:
        mass = multinomial.pmf(counts, n, [first, second, 1 - first - second])
        is_held = (low - 1e-9 <= first - second) & (first - second <= high + 1e-9)
        found.append(mass[is_held].sum())
    return np.array(found)


SHARES = [(a, b) for a in (0.01, 0.02, 0.05, 0.12, 0.25, 0.45) for b in (0.01, 0.02, 0.05, 0.12, 0.25, 0.45)]


@pytest.mark.parametrize("n", [10, 20, 50])
def test_paired_differences_are_held_as_often_as_they_say(n):
    found = paired_coverage(tango, n, SHARES)
    assert found.min() >= 0.93
    assert 0.945 <= found.mean() <= 0.99  # with few disagreements nothing exact is shorter


@pytest.mark.slow
def test_a_percentile_bootstrap_of_twenty_pairs_is_far_too_short():
    """Why Tango's interval is used: with few disagreements most resamples are alike."""

    def bootstrap(first, second, n):
        return bootstrap_mean([1.0] * first + [-1.0] * second + [0.0] * (n - first - second), num_resamples=2000)

    found = paired_coverage(bootstrap, 20, SHARES)
    assert found.min() < 0.4
    assert found.mean() < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
def test_the_average_length_of_a_hundred_chains_is_held_about_as_often_as_it_says(rate):
    rng = np.random.default_rng(0)
    lengths = np.cumprod(rng.random((1000, 100, 5)) < rate, axis=2).sum(axis=2).astype(float)
    true = sum(rate**k for k in range(1, 6))
    rows = [bootstrap_mean(row.tolist(), num_resamples=1000, seed=i) for i, row in enumerate(lengths)]
    assert 0.92 <= np.mean([row.low <= true <= row.high for row in rows]) <= 0.98
