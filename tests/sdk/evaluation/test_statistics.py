import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.statistics import mcnemar_exact, paired_difference, summarize, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (39, 50, 0.6476, 0.8725),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 60, 0.0030, 0.0886),
    ],
)
def test_wilson_agrees_with_published_values(successes, n, low, high):
    interval = wilson(successes, n)
    assert interval.low == pytest.approx(low, abs=1e-4)
    assert interval.high == pytest.approx(high, abs=1e-4)


def test_wilson_agrees_with_scipy():
    from scipy.stats import binomtest

    for successes, n, confidence in [(3, 17, 0.95), (180, 300, 0.9), (299, 300, 0.99)]:
        theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
        ours = wilson(successes, n, confidence)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_holds_the_rate_and_stays_in_range(n, share):
    successes = round(share * n)
    interval = wilson(successes, n)
    assert 0.0 <= interval.low <= successes / n <= interval.high <= 1.0


def test_wilson_knows_nothing_without_episodes():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1, 5, 0.0)])
def test_wilson_refuses_impossible_counts(successes, n, confidence):
    with pytest.raises(ConfigError):
        wilson(successes, n, confidence)


def test_wilson_covers_the_true_rate_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.05, 0.95, 4000)
    intervals = [wilson(int(rng.binomial(60, rate)), 60) for rate in rates]
    covered = np.mean([i.low <= rate <= i.high for i, rate in zip(intervals, rates, strict=True)])
    assert 0.94 < covered < 0.96


def test_mcnemar_agrees_with_the_binomial_test():
    from scipy.stats import binomtest

    for a, b in [(0, 5), (3, 9), (12, 12), (40, 10), (900, 700)]:
        assert mcnemar_exact(a, b) == pytest.approx(binomtest(a, a + b, 0.5).pvalue, rel=1e-9)


def test_mcnemar_of_no_disagreement_is_one():
    assert mcnemar_exact(0, 0) == 1.0


def test_paired_difference_counts_each_seed_with_itself():
    pair = paired_difference([True, True, False, True], [True, False, True, False])
    assert (pair.num_only_first, pair.num_only_second, pair.num_pairs) == (2, 1, 4)
    assert pair.difference == pytest.approx(0.25)


def test_paired_interval_is_repeatable_and_holds_the_difference():
    rng = np.random.default_rng(1)
    first, second = (rng.random(300) < 0.7).tolist(), (rng.random(300) < 0.4).tolist()
    pair = paired_difference(first, second)
    assert pair == paired_difference(first, second)
    assert pair.interval.low < pair.difference < pair.interval.high
    assert pair.interval.low > 0.0


def test_paired_bootstrap_agrees_with_resampling_the_seeds_themselves():
    rng = np.random.default_rng(2)
    first, second = rng.random(200) < 0.6, rng.random(200) < 0.5
    difference = first.astype(float) - second
    means = difference[rng.integers(0, 200, (10_000, 200))].mean(axis=1)
    pair = paired_difference(first.tolist(), second.tolist())
    assert (pair.interval.low, pair.interval.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.011)


def test_paired_difference_refuses_lists_of_two_lengths():
    with pytest.raises(ConfigError, match="3 and 2"):
        paired_difference([True, True, False], [True, False])


def test_summary_agrees_with_numpy():
    values = np.random.default_rng(0).random(101)
    summary = summarize(values.tolist())
    assert (summary.num, summary.p50, summary.p99) == (101, np.median(values), np.percentile(values, 99))


def test_summary_of_nothing_is_nan():
    assert math.isnan(summarize([]).mean)
