import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evaluation_fakes import LineScene, WalkSetup

from roboalign import demo
from roboalign.sdk.errors import BundleError, CheckFailed, ConfigError
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate

HERE = Path(__file__).parent
PROGRAM = (sys.executable, "-S", str(HERE / "fake_roboalign.py"))
STEPS = ["collect", "sft", "align", "head", "export", "eval", "eval", "eval", "eval", "eval"]


def run(out, lines=None, **options):
    say = lines.append if lines is not None else (lambda _text: None)
    return demo.run_demo(out=out, say=say, program=PROGRAM, **options)


def called(out):
    return (out / "called.txt").read_text().split()


@pytest.fixture(scope="module", autouse=True)
def evaluations(tmp_path_factory):
    """What `roboalign eval` would write: the same results for every step that asks."""
    root = tmp_path_factory.mktemp("evals")
    for name, step_m in (("good", 0.04), ("bad", 0.001)):
        evaluate(EvalConfig(out=root / name, episodes=20, films=0), WalkSetup(step_m), LineScene())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_EVALS", str(root))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    lines = []
    return run(out, lines), lines


def test_every_step_runs_once_and_the_report_is_written(finished):
    report, _ = finished
    assert called(report.parent) == STEPS
    assert "this run&#x27;s policy</strong> solved 20 of 20 unseen scenes" in report.read_text()


def test_every_command_is_printed_and_in_the_report(finished):
    report, lines = finished
    page = report.read_text()
    for step in demo.plan(demo.DemoConfig(out=report.parent)):
        assert f"$ {step.line}" in lines
        assert f"$ {step.line}".replace("'", "&#x27;") in page


def test_what_a_command_prints_reaches_the_reader_and_its_log(finished):
    report, lines = finished
    assert "  | sft works on sft" in lines
    assert "sft works on sft" in (report.parent / "logs" / "sft.log").read_text()


def test_the_report_compares_with_random_and_shuffled(finished):
    page = finished[0].read_text()
    assert page.count("clearly better") == 2
    assert "Stage align" in page


def test_a_finished_demo_runs_nothing_again(finished):
    report, _ = finished
    lines = []
    run(report.parent, lines)
    assert called(report.parent) == STEPS
    assert sum("done before" in line for line in lines) == len(STEPS)


def test_a_refused_align_is_said_and_the_demo_goes_on_with_sft(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSE", "1")
    lines = []
    page = run(tmp_path / "run", lines).read_text()
    assert "The align stage refused to start: nothing to explore for align: 3 % of the samples are well formed" in page
    assert f"roboalign train head {tmp_path / 'run' / 'sft'} " in page
    assert any("goes on with the sft model" in line for line in lines)
    assert "Stage align" not in page


def test_a_refused_align_stays_refused_when_the_demo_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSE", "1")
    monkeypatch.setenv("FAKE_FAIL", "export")
    with pytest.raises(CheckFailed):
        run(tmp_path / "run")
    monkeypatch.delenv("FAKE_FAIL")
    run(tmp_path / "run")
    assert called(tmp_path / "run").count("align") == 1


def test_a_failed_step_names_its_reason_and_its_log_and_can_be_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "head")
    with pytest.raises(CheckFailed, match=r"head ended with exit code 2: head is broken on purpose.*logs/head\.log"):
        run(tmp_path / "run")
    monkeypatch.delenv("FAKE_FAIL")
    run(tmp_path / "run")
    assert called(tmp_path / "run") == [*STEPS[:4], *STEPS[3:]]


def test_a_refusal_of_any_other_step_is_a_failure():
    steps = demo.plan(demo.DemoConfig(out=Path("runs/demo")))
    assert [step.name for step in steps if step.may_refuse] == ["align"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_lets_its_command_save_and_goes_on(tmp_path, monkeypatch, number):
    out = tmp_path / "run"
    call = f"run_demo(out=Path({str(out)!r}), program={PROGRAM})"
    code = f"from pathlib import Path; from roboalign.demo import run_demo; {call}"
    env = {**os.environ, "FAKE_HANG": "align"}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 60
    while not (out / "called.txt").is_file() or "align" not in called(out):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert (out / "saved.txt").is_file()
    assert json.loads((out / "demo.json").read_text())["steps"]["align"]["outcome"] == "interrupted"
    run(out)
    assert called(out) == [*STEPS[:3], *STEPS[2:]]


def test_a_folder_with_another_demo_is_refused(finished):
    with pytest.raises(ConfigError, match="other settings"):
        run(finished[0].parent, recipe="debug")


def test_an_unknown_recipe_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="demo, debug"):
        run(tmp_path, recipe="huge")


def test_a_result_that_was_taken_away_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "head")
    with pytest.raises(CheckFailed):
        run(tmp_path / "run")
    (tmp_path / "run" / "sft").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="sft is gone"):
        run(tmp_path / "run")


def test_missing_shipped_models_are_noticed_before_the_first_command(tmp_path, monkeypatch):
    monkeypatch.setattr("roboalign.sdk.bundle._models_folder", lambda: tmp_path)
    monkeypatch.setattr("roboalign.sdk.bundle.shipped_bundle_path", lambda: tmp_path / "nano-policy")
    with pytest.raises(BundleError, match="nano-base is not there"):
        demo.run_demo(out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_command_of_the_plan_is_one_that_the_command_line_knows():
    """Parses the plan with the real command line: a renamed option is noticed here and not after ten minutes."""
    import typer.main

    from roboalign.cli.main import app

    root = typer.main.get_command(app)
    for is_refused in (False, True):
        for step in demo.plan(demo.DemoConfig(out=Path("runs/demo")), is_refused=is_refused):
            command, words = root, list(step.argv)
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            assert command.make_context(step.name, words).params["out"] is not None
