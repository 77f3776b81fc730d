from dataclasses import replace

import pytest
from evaluation_fakes import LineScene, WalkSetup

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.compare_page import write_compare_page
from roboalign.sdk.evaluation.comparison import compare
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate


def run(out, step_m=0.04, num_goals=1, **options):
    config = EvalConfig(out=out, **{"suite": "spatial", "trials": 3, "films": 0, **options})
    return evaluate(config, WalkSetup(step_m), LineScene(num_goals))


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    return run(root / "good", trials=5), run(root / "bad", 0.01, trials=5)


def test_policies_are_compared_scene_by_scene(reports):
    good, bad = reports
    pair = compare(good, bad).total
    assert pair.num_only_first == good.total.num_successes - bad.total.num_successes > 0
    assert (pair.num_only_second, pair.num_pairs) == (0, 50)


def test_every_task_is_compared_alone(reports):
    comparison = compare(*reports)
    assert [row.task for row in comparison.tasks] == [result.task for result in reports[0].tasks]
    assert sum(row.num_first - row.num_second for row in comparison.tasks) == comparison.total.num_only_first
    assert all(row.adjusted_p >= row.paired.p_value for row in comparison.tasks)


def test_the_order_of_the_episodes_does_not_matter(reports):
    good, bad = reports
    back = {
        name: tuple(reversed(getattr(bad, name)))
        for name in ("task_names", "seeds", "successes", "progresses", "goals_done", "start_hashes")
    }
    assert compare(good, replace(bad, **back)).total == compare(good, bad).total


def test_the_verdict_says_who_is_better(reports):
    good, bad = reports
    assert compare(good, bad, first_name="A", second_name="B").verdict.startswith("A is better than B")
    assert compare(bad, good, first_name="A", second_name="B").verdict.startswith("A is worse than B")
    assert "do not separate" in compare(good, good).verdict


def test_a_difference_is_claimed_only_where_the_test_agrees(reports):
    """Four scenes of fifty: Tango's interval leaves out 0, McNemar gives p = 0.12; the verdict called it better."""
    good, _ = reports
    wins, losses = (True,) * 50, (False,) * 4 + (True,) * 46
    comparison = compare(replace(good, successes=wins), replace(good, successes=losses))
    assert comparison.total.interval.low > 0.0
    assert comparison.total.p_value > 0.05
    assert "do not separate" in comparison.verdict


def test_progress_and_length_are_compared_too(tmp_path):
    good, bad = run(tmp_path / "a", num_goals=5), run(tmp_path / "b", 0.005, num_goals=5)
    comparison = compare(good, bad)
    assert comparison.progress.interval.low > 0.0
    assert comparison.length.difference == pytest.approx(good.goals.mean_length - bad.goals.mean_length)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "language"}, "split is 'train' in the first and 'language' in the second"),
        ({"randomization": "mild"}, "randomization is 'off' in the first and 'mild'"),
        ({"tasks": ("left_of_bowl",)}, "tasks is"),
        ({"suite": None, "trials": None, "episodes": 4}, "suite is 'spatial' in the first and None"),
        ({"trials": 2}, "10 scenes are only in the first and 0 only in the second, e.g. spatial/"),
        ({"first_episode": 1}, "10 scenes are only in the first and 10 only in the second"),
    ],
)
def test_evaluations_that_are_not_paired_are_refused(tmp_path, options, message):
    first, second = run(tmp_path / "a"), run(tmp_path / "b", **options)
    with pytest.raises(ConfigError, match=message):
        compare(first, second)


def test_scenes_that_began_otherwise_are_refused(reports):
    """The same seed may lay out another scene in another version."""
    good, bad = reports
    other = replace(bad, start_hashes=("0" * 64, *bad.start_hashes[1:]))
    with pytest.raises(ConfigError, match="began in another physical state"):
        compare(good, other)


def test_the_page_says_which_policy_is_first(reports, tmp_path):
    comparison = compare(*reports, first_name="mine", second_name="random & co")
    named = [("mine", reports[0]), ("random & co", reports[1])]
    page = write_compare_page(tmp_path / "compare.html", named, [comparison]).read_text()
    assert "<strong>mine</strong> minus the other one" in page
    assert "random &amp; co" in page
    assert "<script" not in page
