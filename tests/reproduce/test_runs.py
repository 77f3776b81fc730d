"""Steps run once, go on after anything, and arms stand and fall alone."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from small_study import PROGRAM, SCENES, Study

from roboalign.reproduce import forecast
from roboalign.sdk.data.storage import one_writer
from roboalign.sdk.errors import CheckFailed, ConfigError

ALL = 1 + 2 * (3 + 3 * 2 + 5)
"""Commands of the plan: the data, and for each seed three trainings, three heads with bundles, five evaluations."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = Study(tmp_path_factory.mktemp("study"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_LOG", str(study.log))
        patch.setattr("roboalign.reproduce.cache._room_hash", str.upper)
        study.page = study.run(workers=3)
        study.first = study.called()
        yield study


def test_every_step_runs_once(finished):
    assert len(finished.first) == len(set(finished.first)) == ALL


def test_a_step_that_no_seed_touches_is_shared(finished):
    assert "data" in finished.first


def test_a_finished_run_runs_nothing_again(finished):
    finished.run()
    assert finished.called() == []


def test_every_arm_and_seed_has_a_line_with_all_outcomes(finished):
    lines = [(result.arm, result.seed, result.n) for result in finished.ledger.results]
    assert lines == [(arm, seed, SCENES) for arm in ("sft", "aligned", "longer", "mute", "random") for seed in (0, 1)]


def test_seeds_share_no_scene(finished):
    first = {result.seed: result.scenes["first_seed"] for result in finished.ledger.results}
    assert first[1] - first[0] == SCENES


def test_a_result_names_every_command_that_made_it(finished):
    steps = [step.id for step in finished.ledger.of("mute")[0].made_by]
    assert steps == ["data", "sft.s0", "align.s0", "head.align.s0", "export.align.s0", "eval.mute.s0"]


def test_compute_is_matched_in_cpu_seconds(finished):
    """60 s for 100 updates of sft and 30 s of align: 150 updates take as long as both."""
    (folder,) = (finished.out / "steps" / "longer.s0").iterdir()
    assert "--steps 150 " in json.loads((folder / "step.json").read_text())["line"]


def test_the_order_of_the_steps_changes_no_result(finished, study):
    """Three at a time there, one at a time here; only times may differ."""
    study.run(workers=1)
    alone, together = (
        [replace(r, made_by=tuple(replace(step, cpu_s=0.0, wall_s=0.0) for step in r.made_by)) for r in ledger.results]
        for ledger in (study.ledger, finished.ledger)
    )
    assert alone == together


def test_a_changed_arm_reruns_only_what_it_touches(study):
    study.run(arms=("sft", "aligned"), seeds=(0,))
    study.called()
    study.change("train align {sft} --data", "train align {sft} --steps 3 --data")
    study.run(arms=("sft", "aligned"), seeds=(0,))
    assert study.called() == ["align.s0", "head.align.s0", "export.align.s0", "eval.aligned.s0"]


def test_other_data_rerun_everything_that_rests_on_them(study):
    study.run(arms=("sft", "random"), seeds=(0,))
    study.called()
    study.change("collect --episodes 4", "collect --episodes 5")
    study.run(arms=("sft", "random"), seeds=(0,))
    assert study.called() == ["data", "sft.s0", "head.sft.s0", "export.sft.s0", "eval.sft.s0"]


def test_a_name_for_the_source_keeps_results(study):
    study.run(arms=("random",), seeds=(0,))
    study.called()
    config = replace(study.config(arms=("random",), seeds=(0,)), source="another")
    assert [row.status for row in forecast(config, program=PROGRAM)] == ["to run"]
    assert [row.status for row in forecast(replace(config, source="one"), program=PROGRAM)] == ["done"]


def test_a_failed_step_stops_only_the_arms_that_need_it(study, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "head.align.s0")
    with pytest.raises(CheckFailed, match=r"1 of 9 steps failed, first head\.align\.s0: head\.align\.s0 is broken"):
        study.run(arms=("sft", "aligned"), seeds=(0,))
    assert [result.arm for result in study.ledger.results] == ["sft"]
    gap = next(gap for gap in study.ledger.gaps if (gap.arm, gap.seed) == ("aligned", 0))
    assert gap.reason.startswith("head.align failed: head.align.s0 is broken on purpose (exit code 2")


def test_a_failed_step_is_tried_again(study, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "eval.random.s0")
    with pytest.raises(CheckFailed):
        study.run(arms=("random",), seeds=(0,))
    monkeypatch.delenv("FAKE_FAIL")
    study.run(arms=("random",), seeds=(0,))
    assert study.called() == ["eval.random.s0"] * 2


def test_a_refusal_is_a_result_and_not_asked_for_again(study, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSE", "align.s0")
    for _ in range(2):
        study.run(arms=("aligned",), seeds=(0,))
    assert study.called() == ["data", "sft.s0", "align.s0"]
    assert ("aligned", 0, "align refused: nothing to explore") in [
        (gap.arm, gap.seed, gap.reason) for gap in study.ledger.gaps
    ]


def test_a_refusal_where_none_is_expected_is_a_failure(study, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSE", "sft.s0")
    with pytest.raises(CheckFailed, match=r"sft\.s0"):
        study.run(arms=("sft",), seeds=(0,))


def test_an_arm_whose_command_does_not_exist_is_reported(study):
    study.change("--no-think", "--dream")
    study.run(arms=("mute", "aligned"), seeds=(0,))
    assert [result.arm for result in study.ledger.results] == ["aligned"]
    assert "without a thought: No such option: --dream" in (study.out / "results.md").read_text()


def test_a_result_that_was_changed_is_noticed(study):
    study.run(arms=("sft",), seeds=(0,))
    (path,) = (study.out / "steps" / "sft.s0").glob("*/result/metrics.jsonl")
    path.write_text("")
    with pytest.raises(ConfigError, match="was changed after it was made"):
        study.run(arms=("sft",), seeds=(0,))


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(study):
    rows = forecast(study.config(seeds=(0,), arms=("sft",)), program=PROGRAM)
    assert [row.id for row in rows] == ["data", "sft.s0", "head.sft.s0", "export.sft.s0", "eval.sft.s0"]
    assert sum(row.minutes for row in rows) == 50.0
    assert not study.out.exists()


def run_apart(study, **options):
    """Starts a run in a process of its own."""
    code = (
        "from pathlib import Path; from roboalign.reproduce import *\n"
        f"run_study(StudyConfig(plan={str(study.plan)!r}, out=Path({str(study.out)!r}), source='one', **{options!r}),"
        f" program={PROGRAM!r})"
    )
    env = {**os.environ, "FAKE_SLEEP": "sft.s0"}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 120
    while not study.log.is_file() or "sft.s0" not in study.log.read_text():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return process


def test_a_killed_run_waits_for_the_command_that_it_left_and_does_nothing_twice(study):
    process = run_apart(study, arms=("sft",), seeds=(0,))
    process.kill()
    process.wait()
    study.run(arms=("sft",), seeds=(0,))
    assert study.called() == ["data", "sft.s0", "head.sft.s0", "export.sft.s0", "eval.sft.s0"]


def test_an_interrupted_run_ends_its_command_and_goes_on(study):
    process = run_apart(study, arms=("sft",), seeds=(0,))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) != 0
    study.run(arms=("sft",), seeds=(0,))
    assert study.called().count("data") == 1
    assert [result.arm for result in study.ledger.results] == ["sft"]


def test_two_runs_in_one_folder_are_refused(study):
    with one_writer(study.out), pytest.raises(ConfigError, match="is being written by another process"):
        study.run(arms=("random",), seeds=(0,))
    assert study.called() == []
