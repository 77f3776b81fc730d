import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.intervals import bootstrap_mean, success_interval, tango, wilson


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


@pytest.mark.parametrize("interval_of", [wilson, success_interval])
@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_an_interval_holds_the_rate_and_stays_in_range(interval_of, n, share):
    successes = round(share * n)
    interval = interval_of(successes, n)
    assert 0.0 <= interval.low <= successes / n <= interval.high <= 1.0


@pytest.mark.parametrize("interval_of", [wilson, success_interval])
def test_nothing_is_known_without_episodes(interval_of):
    assert (interval_of(0, 0).low, interval_of(0, 0).high) == (0.0, 1.0)


@pytest.mark.parametrize("n", [1, 10, 300])
def test_the_ends_at_no_and_at_all_successes_are_exact(n):
    assert success_interval(0, n).low == 0.0
    assert success_interval(n, n).high == 1.0


@pytest.mark.parametrize(("successes", "n", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1, 5, 0.0)])
def test_impossible_counts_are_refused(successes, n, confidence):
    for interval_of in (wilson, success_interval):
        with pytest.raises(ConfigError):
            interval_of(successes, n, confidence)


@given(n=st.integers(1, 200))
def test_the_correction_only_widens(n):
    for successes in range(n + 1):
        plain, ours = wilson(successes, n), success_interval(successes, n)
        assert ours.low <= plain.low
        assert ours.high >= plain.high


@pytest.mark.parametrize("n", [20, 50, 100, 500])
def test_only_the_ends_of_three_successes_or_failures_differ_from_wilson(n):
    changed = [k for k in range(n + 1) if success_interval(k, n) != wilson(k, n)]
    assert changed == [1, 2, 3, n - 3, n - 2, n - 1]


@given(n=st.integers(2, 200))
def test_more_successes_never_lower_an_end(n):
    rows = [success_interval(successes, n) for successes in range(n + 1)]
    assert all(a.low <= b.low and a.high <= b.high for a, b in itertools.pairwise(rows))


def test_tango_inverts_the_score_test():
    """At each end the distance to the restricted maximum of the likelihood is the quantile of the normal."""
    from scipy.optimize import minimize_scalar

    first, second, n = 9, 3, 40
    interval = tango(first, second, n)
    for end in (interval.low, interval.high):

        def surprise(q, end=end):
            return -(first * np.log(q + end) + second * np.log(q) + (n - first - second) * np.log(1 - 2 * q - end))

        best = minimize_scalar(
            surprise, bounds=(max(0, -end) + 1e-12, (1 - end) / 2 - 1e-12), method="bounded", options={"xatol": 1e-12}
        ).x
        score = (first - second - n * end) / np.sqrt(n * (2 * best + end * (1 - end)))
        assert abs(score) == pytest.approx(1.959964, abs=1e-4)


@given(n=st.integers(1, 60), a=st.floats(0, 1), b=st.floats(0, 1))
def test_tango_holds_the_difference_and_mirrors(n, a, b):
    first = round(a * n)
    second = round(b * (n - first))
    one, other = tango(first, second, n), tango(second, first, n)
    assert -1.0 <= one.low <= (first - second) / n <= one.high <= 1.0
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)


def test_tango_of_no_disagreement_has_a_width():
    assert tango(0, 0, 10).high == pytest.approx(0.2775, abs=1e-4)


@pytest.mark.parametrize(("first", "second", "n"), [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_tango_refuses_impossible_counts(first, second, n):
    with pytest.raises(ConfigError, match="not possible"):
        tango(first, second, n)


def test_the_bootstrap_agrees_with_resampling_the_values_themselves():
    rng = np.random.default_rng(2)
    values = rng.integers(0, 6, 200).astype(float)
    means = values[rng.integers(0, 200, (10_000, 200))].mean(axis=1)
    interval = bootstrap_mean(values.tolist())
    assert (interval.low, interval.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)


def test_tasks_that_differ_do_not_widen_the_bootstrap_within_tasks():
    values, groups = [0.0] * 20 + [1.0] * 20, ["hard"] * 20 + ["easy"] * 20
    assert bootstrap_mean(values, groups).width == 0.0
    assert bootstrap_mean(values).width > 0.2


def test_tasks_with_one_episode_each_are_drawn_together():
    """Redrawn within tasks of one episode, every resample would be the same."""
    assert bootstrap_mean([0.0, 1.0] * 5, [f"task {i}" for i in range(10)]).width > 0.3


@pytest.mark.parametrize(("values", "groups"), [([], None), ([1.0], ["a", "b"])])
def test_a_bootstrap_of_nothing_or_of_unnamed_tasks_is_refused(values, groups):
    with pytest.raises(ConfigError):
        bootstrap_mean(values, groups)
