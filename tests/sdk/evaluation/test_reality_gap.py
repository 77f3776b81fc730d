"""Pearson and MMRV against cases worked out by hand, and what may not be compared."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.gap_page import write_gap_page
from roboalign.sdk.evaluation.reality_gap import Outcomes, PolicyOutcomes, gap, mmrv, pearson

RATES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=8)


def outcomes(num_solved, num=20, world="simulation", settings=(), first=0):
    return Outcomes(
        world=world,
        scenes=tuple(f"scene {first + index}" for index in range(num)),
        successes=tuple(index < num_solved for index in range(num)),
        settings=settings,
        sources=("here",),
    )


def policy(name, sim, real, **real_options):
    return PolicyOutcomes(name=name, sim=outcomes(sim), real=outcomes(real, world="robot", **real_options))


def policies(*pairs):
    return [policy(f"p{index}", sim, real) for index, (sim, real) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("sim", "real", "value"),
    [
        ((0.1, 0.2, 0.3), (0.2, 0.5, 0.6), 0.0),
        # All pairs are swapped: the gaps to the farthest are 0.4, 0.3, 0.4.
        ((0.3, 0.2, 0.1), (0.2, 0.5, 0.6), (0.4 + 0.3 + 0.4) / 3),
        # Simulation swaps the first two alone.
        ((0.2, 0.1, 0.9), (0.1, 0.4, 0.8), 0.6 / 3),
        # A tie in simulation counts against the worse one: 0.3 of the first, nothing of the second.
        ((0.5, 0.5), (0.2, 0.5), 0.3 / 2),
        # A tie in reality costs nothing: the gap is 0.
        ((0.1, 0.9), (0.5, 0.5), 0.0),
        # Four policies, the two best of them swapped.
        ((0.857, 0.71, 0.567, 0.267), (0.853, 0.92, 0.76, 0.133), (0.067 + 0.067 + 0 + 0) / 4),
    ],
)
def test_mmrv_of_cases_worked_out_by_hand(sim, real, value):
    assert mmrv(sim=sim, real=real) == pytest.approx(value)


def test_swapped_arguments_change_mmrv():
    """SIMPLER's README calls its function with (real, sim), which is declared as (sim, real)."""
    sim, real = (0.2, 0.1, 0.9), (0.1, 0.4, 0.8)
    assert mmrv(sim=real, real=sim) == pytest.approx(0.2 / 3) != mmrv(sim=sim, real=real)


def test_neither_figure_takes_arguments_by_place():
    with pytest.raises(TypeError):
        mmrv((0.1, 0.2), (0.1, 0.2))
    with pytest.raises(TypeError):
        pearson((0.1, 0.2), (0.1, 0.2))


def test_pearson_of_a_case_worked_out_by_hand():
    # Deviations (-1, 0, 1) and (-1, 1, 0) tenths: 1 / sqrt(2 * 2).
    assert pearson(sim=(0.1, 0.2, 0.3), real=(0.1, 0.3, 0.2)) == pytest.approx(0.5)
    assert pearson(sim=(0.1, 0.2, 0.3), real=(0.9, 0.8, 0.7)) == pytest.approx(-1.0)
    assert pearson(sim=(0.5, 0.5), real=(0.1, 0.9)) is None


@given(RATES)
def test_figures_stay_in_their_bounds(pairs):
    sim, real = (np.array(column) / 20 for column in zip(*pairs, strict=True))
    assert 0.0 <= mmrv(sim=sim, real=real) <= real.max() - real.min() + 1e-12
    correlation = pearson(sim=sim, real=real)
    if correlation is None:
        assert np.ptp(sim) == 0.0 or np.ptp(real) == 0.0
    else:
        assert -1.0 <= correlation <= 1.0
        assert correlation == pytest.approx(np.corrcoef(sim, real)[0, 1])


@given(RATES)
def test_mmrv_is_0_exactly_where_no_pair_is_swapped(pairs):
    sim, real = (np.array(column) / 20 for column in zip(*pairs, strict=True))
    is_swapped = any(real[i] < real[j] and not sim[i] < sim[j] for i in range(len(sim)) for j in range(len(sim)))
    assert (mmrv(sim=sim, real=real) > 0.0) == is_swapped
    assert mmrv(sim=real, real=real) == 0.0


@pytest.mark.parametrize("bad", [((0.1,), (0.2,)), ((0.1, 0.2), (0.3,)), ((10.0, 50.0), (0.1, 0.5))])
def test_rates_that_are_none_are_refused(bad):
    with pytest.raises(ConfigError):
        mmrv(sim=bad[0], real=bad[1])


def test_the_report_has_the_figures_of_the_rates():
    report = gap(policies((2, 4), (10, 6), (16, 14)), num_resamples=400)
    assert report.pearson.value == pytest.approx(pearson(sim=(0.1, 0.5, 0.8), real=(0.2, 0.3, 0.7)))
    assert report.mmrv.value == 0.0
    assert report.offset.value == pytest.approx((1.4 - 1.2) / 3)
    assert report.pearson.interval.low < report.pearson.value < report.pearson.interval.high
    assert report.policies[0].real.num_successes == 4


def test_the_same_seed_gives_the_same_intervals():
    some = policies((2, 4), (10, 6), (16, 14))
    assert gap(some, num_resamples=600) == gap(some, num_resamples=600)
    assert gap(some, num_resamples=600) != gap(some, num_resamples=600, seed=1)


def test_the_interval_of_a_difference_has_the_width_of_the_binomial():
    """Rates on scenes of their own: the standard error of the mean offset of two policies is known."""
    pair = [policy("a", 10, 10, first=100), policy("b", 10, 10, first=200)]
    pair[1] = replace(pair[1], sim=outcomes(10, first=300))
    width = gap(pair, num_resamples=4000).offset.interval.width
    assert width == pytest.approx(2 * 1.96 * np.sqrt(4 * 0.25 / 21) / 2, rel=0.06)


def test_scenes_of_both_worlds_are_paired():
    """The same outcomes in the same scenes leave no doubt about the offset; in other scenes they do."""
    paired, apart = policies((5, 5), (15, 15)), [policy("a", 5, 5, first=50), policy("b", 15, 15, first=50)]
    assert gap(paired, num_resamples=400).offset.interval.width == pytest.approx(0.0, abs=1e-12)
    assert gap(paired).num_shared == 20
    assert gap(apart, num_resamples=400).offset.interval.width > 0.1
    assert gap(apart, num_resamples=400).num_shared == 0


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"sim": outcomes(3, world="robot")}, {}, "simulation and reality are swapped"),
        ({"real": outcomes(3)}, {}, "was measured in simulation; give an evaluation on a robot"),
        ({}, {"is_stand_in": True}, "was measured on a robot; leave out --stand-in"),
        ({"sim": outcomes(3, settings=("arm so101",))}, {}, r"not run alike \(sim\): only p1 was run with arm so101"),
        ({"name": "p0"}, {}, "'p0' was entered twice"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, options, message):
    first, second = policies((1, 2), (3, 4))
    with pytest.raises(ConfigError, match=message):
        gap([first, replace(second, **change)], **options)


def test_one_policy_has_no_rank():
    with pytest.raises(ConfigError, match="found 1 policy"):
        gap(policies((1, 2)))


def test_a_stand_in_is_said():
    first, second = policies((1, 2), (3, 4))
    pairs = [replace(each, real=replace(each.real, world="simulation")) for each in (first, second)]
    report = gap(pairs, is_stand_in=True, num_resamples=50)
    assert "says nothing about hardware" in report.warnings[0]


def test_outcomes_of_a_scene_are_entered_once():
    with pytest.raises(ConfigError, match="the outcome of b was entered twice"):
        Outcomes(world="robot", scenes=("a", "b", "b"), successes=(True, True, False))


def test_a_reader_is_warned():
    lines = " ".join(gap(policies((0, 4), (10, 10)), num_resamples=50).warnings)
    assert "2 policies are too few" in lines
    assert "All episodes ended alike in a world for p0" in lines
    six = gap(policies(*((2 * k + 3, 2 * k + 4) for k in range(6))), num_resamples=50)
    assert six.warnings == ()


def test_a_correlation_that_is_none_is_not_made_up(tmp_path):
    report = gap(policies((10, 4), (10, 9)), num_resamples=50)
    assert report.pearson.value is None
    assert "no correlation" in " ".join(report.warnings)
    assert "Pearson r <strong>not defined" in write_gap_page(tmp_path / "gap.html", report).read_text()


def test_the_page_shows_every_policy_and_stands_alone(tmp_path):
    report = gap(policies((2, 4), (10, 6), (16, 14)), num_resamples=200)
    text = write_gap_page(tmp_path / "gap.html", report).read_text()
    assert text.count("<circle") == 3
    assert text.count("class=interval") == 6
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert "3 policies are too few" in text
