import itertools
import json
import re
from html.parser import HTMLParser

import pytest
from evaluation_fakes import LineScene, WalkSetup

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.evaluation.report import CommandRecord, Contender, ReportSources, Stage, verdicts, write_report
from roboalign.sdk.evaluation.results import read_report
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate

VOID = {"meta", "img", "br", "wbr"}


class Page(HTMLParser):
    """Checks that every tag is closed and collects what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.tags, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("evals")
    for name, setup, films in (("good", WalkSetup(0.04), 2), ("bad", WalkSetup(0.001), 0)):
        evaluate(EvalConfig(out=root / name, episodes=40, films=films), setup, LineScene())
    (root / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": 3.0 - i}) + "\n" for i in range(3)))
    return root


@pytest.fixture
def sources(folders):
    return ReportSources(
        title="A <test> page",
        contenders=(
            Contender(label="mine", folder=folders / "good", role="main"),
            Contender(label="random & co", folder=folders / "bad", role="control"),
        ),
        stages=(Stage(title="Stage sft", metrics=folders / "metrics.jsonl", facts={"parent": "base"}),),
        commands=(CommandRecord(line="roboalign eval --out 'a b'", wall_s=75.0, outcome="done"),),
        notes=("align refused: nothing to explore",),
        provenance={"python": "3.11"},
    )


@pytest.fixture
def page(sources, tmp_path):
    return write_report(sources, tmp_path / "report.html").read_text()


def test_the_page_is_well_formed_and_self_contained(page):
    parsed = Page(page)
    assert not re.search(r"<script|<link|https?://|@import|url\(", page)
    assert all(image["src"].startswith("data:image/png;base64,") for image in parsed.images)


def test_every_picture_has_words(page):
    images = Page(page).images
    assert len(images) > 6
    assert all(len(image["alt"]) > 10 for image in images)


def test_the_page_fits_a_phone(page):
    parsed = Page(page)
    assert any(attrs.get("name") == "viewport" for tag, attrs in parsed.tags if tag == "meta")
    num_tables = sum(tag == "table" for tag, _ in parsed.tags)
    assert num_tables == page.count("<div class=scroll tabindex=0><table>")


def test_headings_do_not_skip_a_level(page):
    levels = [int(tag[1]) for tag, _ in Page(page).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_the_first_paragraph_gives_the_result(page):
    text = " ".join("".join(Page(page).text).split())
    assert "mine solved 40 of 40 unseen scenes: 100.0 % (91.2 to 100.0 %)." in text


def test_the_numbers_of_the_page_are_those_of_the_files(page, folders):
    for name in ("good", "bad"):
        total = read_report(folders / name).total
        low, high = 100 * total.interval.low, 100 * total.interval.high
        assert f"{100 * total.rate:.1f} % ({low:.1f} to {high:.1f} %)" in page.replace("\u00a0", " ")


def test_every_row_names_who_acted(page):
    table = page[page.index("<h2>Closed-loop success") :]
    assert table.count("<td>flow</td>") >= 2


def test_names_are_escaped(page):
    assert "A &lt;test&gt; page" in page
    assert "random &amp; co" in page
    assert "roboalign eval --out &#x27;a b&#x27;" in page


def test_a_refused_stage_is_said_at_the_top(page):
    assert 0 < page.index("align refused: nothing to explore") < page.index("<h2>")


def test_thoughts_stand_under_the_pictures(page):
    assert page.count("<q>move") >= 6


def test_the_verdict_compares_the_bounds(sources):
    reports = [(contender, read_report(contender.folder)) for contender in sources.contenders]
    ((text, ok),) = verdicts(reports)
    assert ok
    assert "91.2 %" in text
    assert "random & co" in text


def test_a_policy_that_is_no_better_is_called_so(sources):
    reports = [(contender, read_report(sources.contenders[1].folder)) for contender in sources.contenders]
    ((text, ok),) = verdicts(reports)
    assert not ok
    assert text.endswith("not separated")


def test_the_same_files_give_the_same_page(sources, tmp_path):
    first = write_report(sources, tmp_path / "a.html").read_bytes()
    assert first == write_report(sources, tmp_path / "b.html").read_bytes()


def test_a_report_without_evaluations_is_refused(tmp_path):
    with pytest.raises(ConfigError):
        write_report(ReportSources(title="x", contenders=()), tmp_path / "report.html")


def test_a_missing_evaluation_leaves_no_page(sources, tmp_path):
    broken = ReportSources(title="x", contenders=(Contender(label="x", folder=tmp_path / "none"),))
    with pytest.raises(DataError):
        write_report(broken, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
