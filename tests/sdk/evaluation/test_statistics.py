import math

import numpy as np
import pytest

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.statistics import holm, mcnemar_exact, paired_difference, summarize


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
    assert (pair.bootstrap.low, pair.bootstrap.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.011)


def test_paired_difference_refuses_lists_of_two_lengths():
    with pytest.raises(ConfigError, match="3 and 2"):
        paired_difference([True, True, False], [True, False])


def test_holm_agrees_with_the_definition():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx((0.06, 0.03, 0.06))


def test_holm_never_exceeds_one_and_keeps_the_order():
    assert holm([0.9, 0.5, 0.7]) == (1.0, 1.0, 1.0)


def test_summary_agrees_with_numpy():
    values = np.random.default_rng(0).random(101)
    summary = summarize(values.tolist())
    assert (summary.num, summary.p50, summary.p99) == (101, np.median(values), np.percentile(values, 99))


def test_summary_of_nothing_is_nan():
    assert math.isnan(summarize([]).mean)
