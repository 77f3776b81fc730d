import math

import numpy as np
import pytest
from scipy.stats import t as student

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.intervals import tango
from roboalign.sdk.evaluation.seeded import seeded_difference, t_quantile, t_tail


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    one = [True] * both + [True] * first + [False] * second + [False] * neither
    other = [True] * both + [False] * first + [True] * second + [False] * neither
    return one, other


def compared(*cells: tuple[int, int, int, int]):
    pairs = [outcomes(*cell) for cell in cells]
    return seeded_difference([p[0] for p in pairs], [p[1] for p in pairs], range(len(cells)))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30])
def test_students_t_is_that_of_scipy(degrees):
    assert t_quantile(0.95, degrees) == pytest.approx(student.ppf(0.975, degrees), rel=1e-9)
    assert t_tail(-1.7, degrees) == pytest.approx(2 * student.sf(1.7, degrees), rel=1e-9)


def test_the_interval_is_the_t_interval_of_the_seeds_where_they_differ_more_than_their_scenes():
    found = compared((200, 200, 50, 50), (200, 150, 100, 50), (200, 50, 50, 200))
    ends = student.interval(0.95, 2, loc=np.mean([0.3, 0.1, 0.0]), scale=np.std([0.3, 0.1, 0.0], ddof=1) / math.sqrt(3))
    assert (found.interval.low, found.interval.high) == pytest.approx(ends)


def test_seeds_that_agree_by_chance_do_not_make_the_interval_shorter_than_the_scenes_allow():
    found = compared(*[(40, 20, 10, 30)] * 3)
    assert found.interval.width == pytest.approx(found.scene_interval.width * t_quantile(0.95, 2) / 1.95996, rel=1e-4)


def test_models_that_never_differ_still_have_an_interval():
    assert compared(*[(0, 0, 0, 20)] * 3).interval.width > 0.1


def test_the_scenes_of_all_seeds_are_pooled():
    found = compared((10, 5, 1, 4), (10, 3, 2, 5))
    assert found.scene_interval == tango(8, 3, 40)
    assert found.num_pairs == 40


def test_a_single_seed_says_nothing_about_others():
    found = compared((10, 20, 1, 9))
    assert found.interval is None
    assert found.verdict == "better here"


@pytest.mark.parametrize(
    ("cells", "verdict"),
    [
        ([(100, 300, 10, 90)] * 3, "better"),
        ([(100, 10, 300, 90)] * 3, "worse"),
        ([(100, 150, 10, 240), (100, 20, 15, 365), (100, 16, 14, 370)], "better here"),
        ([(100, 20, 22, 358)] * 3, "not separated"),
    ],
)
def test_what_can_be_said(cells, verdict):
    assert compared(*cells).verdict == verdict


def test_the_gain_is_relative_to_the_second():
    assert compared((40, 20, 10, 30)).relative == pytest.approx(0.1 / 0.5)


def test_no_success_of_the_second_makes_every_gain_infinite():
    assert compared((0, 5, 0, 5)).relative == math.inf


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ConfigError, match="seed 7: found 2 and 1 episodes"):
        seeded_difference([[True, False]], [[True]], [7])


def test_a_missing_seed_is_refused():
    with pytest.raises(ConfigError, match="found 1 and 1 lists of episodes for 2 seeds"):
        seeded_difference([[True]], [[True]], [0, 1])
