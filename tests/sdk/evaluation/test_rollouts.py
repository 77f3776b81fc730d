import json

import pytest
from evaluation_fakes import WalkSetup

from roboalign.sdk.errors import BackendError, ConfigError, DataError
from roboalign.sdk.evaluation.pictures import read_film
from roboalign.sdk.evaluation.results import compare, episode_from_json, read_report
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate


def run(out, setup=None, **options):
    return evaluate(EvalConfig(out=out, **{"episodes": 10, "films": 0, **options}), setup or WalkSetup())


def outcome(report):
    return report.seeds, report.successes, report.state_hashes


def test_families_take_turns_and_seeds_are_held_out(tmp_path):
    report = run(tmp_path)
    assert report.seeds == tuple(1_000_000_000 + i for i in range(10))
    assert [(f.family, f.num_episodes) for f in report.families] == [("place", 5), ("push", 5)]


def test_the_same_seeds_give_the_same_successes_and_hashes(tmp_path):
    assert outcome(run(tmp_path / "a", WalkSetup(0.01))) == outcome(run(tmp_path / "b", WalkSetup(0.01)))


def test_processes_change_nothing(tmp_path):
    alone, two = run(tmp_path / "a", WalkSetup(0.01)), run(tmp_path / "b", WalkSetup(0.01), workers=2)
    assert outcome(alone) == outcome(two)
    assert two.total.num_successes not in (0, 10)


def test_the_report_on_disk_is_the_report(tmp_path):
    report = run(tmp_path, WalkSetup(0.01, hold_every=3))
    assert read_report(tmp_path) == report
    assert report.who_acted.startswith("flow ")
    assert report.hold_reasons == {"nothing to say": report.total.num_holds}


def test_the_report_sums_up_the_episodes(tmp_path):
    report = run(tmp_path)
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    episodes = [episode_from_json(line) for line in lines[1:-1]]
    assert report.num_calls == sum(e.num_calls for e in episodes)
    assert report.total.mean_steps == sum(e.steps for e in episodes) / 10
    assert report.thought_share == 1.0
    assert report.latency_s["thought"].num == report.num_calls


@pytest.mark.parametrize("cut", [0, 7])
def test_an_interrupted_evaluation_goes_on(tmp_path, cut):
    whole = run(tmp_path / "whole", WalkSetup(0.01))
    lines = (tmp_path / "whole" / "episodes.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    text = "".join(lines[:5]) + lines[5][:cut]
    (tmp_path / "cut" / "episodes.jsonl").write_text(text)
    assert outcome(run(tmp_path / "cut", WalkSetup(0.01))) == outcome(whole)
    assert (tmp_path / "cut" / "episodes.jsonl").read_text().startswith("".join(lines[:5]))


def test_a_finished_evaluation_is_not_run_again(tmp_path):
    run(tmp_path, WalkSetup(0.01))
    before = [line for line in (tmp_path / "episodes.jsonl").read_text().splitlines() if "wall_s" not in line[:9]]
    run(tmp_path, WalkSetup(0.01))
    after = [line for line in (tmp_path / "episodes.jsonl").read_text().splitlines() if "wall_s" not in line[:9]]
    assert before == after


def test_more_episodes_extend_an_evaluation(tmp_path):
    first = run(tmp_path, WalkSetup(0.01), episodes=4)
    more = run(tmp_path, WalkSetup(0.01), episodes=9)
    assert more.successes[:4] == first.successes
    assert more.total.num_episodes == 9


def test_another_policy_in_the_same_folder_is_refused(tmp_path):
    run(tmp_path, WalkSetup(0.01))
    with pytest.raises(ConfigError, match=r"policy step_m = 0.01, asked for 0.02; give another --out"):
        run(tmp_path, WalkSetup(0.02))


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ConfigError, match="replan_every"):
        run(tmp_path, replan_every=2)


def test_a_folder_with_another_jsonl_is_refused(tmp_path):
    (tmp_path / "episodes.jsonl").write_text("hello\n")
    with pytest.raises(DataError, match="header"):
        run(tmp_path)


def test_an_error_in_a_worker_reaches_the_caller(tmp_path):
    with pytest.raises(DataError, match="broken on purpose"):
        run(tmp_path, WalkSetup(fails=True), workers=2)


def test_a_worker_that_dies_is_explained(tmp_path):
    with pytest.raises(BackendError, match="1 worker"):
        run(tmp_path, WalkSetup(dies=True), workers=2)


@pytest.mark.parametrize(
    "options",
    [{"episodes": 0}, {"workers": 0}, {"families": ("fly",)}, {"families": ()}, {"split": "test"}, {"films": -1}],
)
def test_wrong_settings_are_named(tmp_path, options):
    with pytest.raises(ConfigError):
        EvalConfig(out=tmp_path, **options)


def test_the_first_episodes_of_each_family_are_filmed(tmp_path):
    report = run(tmp_path, films=1, workers=2)
    assert report.films == ("films/place-1000000000", "films/push-1000000001")
    strip = read_film(tmp_path / report.films[1])
    assert strip.frames[0].step == 0
    assert strip.frames[-1].step == strip.steps
    assert strip.frames[0].thought == "move 1"
    assert (tmp_path / report.films[0] / "episode.gif").read_bytes().startswith(b"GIF89a")


def test_policies_are_compared_seed_by_seed(tmp_path):
    good, bad = run(tmp_path / "a"), run(tmp_path / "b", WalkSetup(0.01))
    pair = compare(good, bad)
    assert pair.num_only_first == good.total.num_successes - bad.total.num_successes
    assert pair.num_only_second == 0


def test_evaluations_of_other_families_are_not_paired(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b", families=("place",))
    with pytest.raises(ConfigError, match="not paired"):
        compare(first, second)


def test_a_newer_report_is_refused_by_its_version(tmp_path):
    run(tmp_path)
    row = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**row, "format_version": 99}))
    with pytest.raises(DataError, match="version 99"):
        read_report(tmp_path)


def test_a_missing_report_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="roboalign eval"):
        read_report(tmp_path / "nothing")
