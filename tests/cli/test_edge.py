"""The edge of the command line: one line for every error a user can cause, and exit codes that mean something."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from roboalign import __version__
from roboalign.cli.main import main
from roboalign.demo import DemoConfig, plan
from roboalign.sdk.errors import CheckFailed, ConfigError, RoboalignError
from roboalign.steps import Step

BAD_INPUT = {
    "no such verb": ["tran"],
    "no such option": ["collect", "--episode", "3"],
    "not a number": ["collect", "--episodes", "many"],
    "an argument is missing": ["train", "align", "--data", "nowhere"],
    "unknown task to collect": ["collect", "--tasks", "place,juggle"],
    "no episodes": ["collect", "--episodes", "0"],
    "a picture at every 0th frame": ["collect", "--image-every", "0"],
    "a policy of a module that is not there": ["eval", "nopackage.policies:act"],
    "no dataset": ["data", "preview", "nowhere"],
    "unknown task": ["run", "--task", "make me a sandwich"],
    "not a gif": ["run", "--out", "film.mp4"],
    "a trace where time is simulated": ["run", "--trace", "run.jsonl"],
    "a page at no port": ["run", "--real-time", "--page", "home"],
    "a page for everybody without a token": ["run", "--real-time", "--page", "0.0.0.0:8360"],
    "a trace that is none": ["replay", "nowhere.jsonl"],
    "no bundle to run": ["run", "nowhere"],
    "no bundle to evaluate": ["eval", "nowhere"],
    "thoughts recalled that are not beside": ["eval", "--recall-thoughts"],
    "no scenes": ["eval", "random", "--episodes", "0"],
    "no name in a list": ["eval", "random", "--tasks", ","],
    "a setting of what is served elsewhere": ["eval", "ws://127.0.0.1:9", "--actions", "fast"],
    "no such scene": ["run", "--seed", "-1"],
    "a folder to write a page to": ["data", "show", "nowhere", "--out", "."],
    "a preview that is no page": ["data", "preview", "nowhere", "--out", "film.mp4"],
    "a preview that is no gif": ["data", "preview", "nowhere", "--episode", "0", "--out", "film.mp4"],
    "no samples to preview": ["data", "preview", "nowhere", "--count", "0"],
    "no mixture": ["data", "sources", "nowhere.toml"],
    "no mixture to preview": ["data", "preview", "nowhere.json"],
    "no chat file to preview": ["data", "preview", "nowhere.jsonl"],
    "nothing to distill from": ["data", "distill", "nowhere", "--data", "nowhere", "--out", "thoughts.jsonl"],
    "thoughts in an unknown format": ["data", "distill", "nowhere", "--data", "nowhere", "--out", "thoughts.csv"],
    "a folder to write a comparison to": ["compare", "nowhere", "nowhere", "--out", "."],
    "unknown actor": ["eval", "expert", "--actions", "magic"],
    "unknown suite": ["eval", "expert", "--suite", "spatal"],
    "unknown split": ["eval", "expert", "--suite", "spatial", "--split", "heldout"],
    "unknown task to evaluate": ["eval", "expert", "--tasks", "plase"],
    "unknown randomisation": ["eval", "expert", "--randomize", "mid"],
    "unknown kind of policy": ["eval", "exprt"],
    "no server": ["eval", "ws://127.0.0.1:9"],
    "no code": ["eval", "nowhere.py:make"],
    "nothing to serve": ["serve", "nowhere"],
    "the expert cannot be served": ["serve", "expert"],
    "everybody served without a token": ["serve", "random", "--host", "0.0.0.0"],
    "an address of another protocol": ["eval", "http://127.0.0.1:9"],
    "nothing to compare with": ["compare", "nowhere"],
    "nothing to compare": ["compare", "nowhere", "nowhere"],
    "unknown recipe": ["train", "base", "--data", "nowhere", "--recipe", "huge"],
    "nothing to train on": ["train", "base", "--data", "nowhere", "--recipe", "nano-debug"],
    "no checkpoint": ["train", "sft", "nowhere", "--data", "nowhere"],
    "nothing to align": ["train", "align", "nowhere", "--data", "nowhere"],
    "nothing to put a head on": ["train", "head", "nowhere", "--data", "nowhere"],
    "nothing to export": ["export"],
    "no such run": ["export", "nowhere"],
    "unknown target": ["export", "nowhere", "--target", "toaster"],
    "a type that is only planned": ["export", "nowhere", "--precision", "fp8"],
    "an unknown check": ["export", "nowhere", "--check", "polygraphy"],
    "a plan of an unknown model": ["export", "--dry-run", "--model", "qwen"],
    "a model without a plan": ["export", "--model", "qwen3-vl-2b"],
    "nothing to plan for": ["export", "--dry-run"],
    "a board that is none": ["export", "nowhere", "--target", "jetson", "--board", "toaster"],
    "engines where there is no Jetson": ["export", "nowhere", "--target", "jetson", "--build"],
    "no such rounding": ["export", "nowhere", "--precision", "int4", "--rounding", "up"],
    "no number for a part's error": ["export", "nowhere", "--precision", "int4", "--max-part-error", "nan"],
    "a rounding of full weights": ["export", "nano-policy", "--rounding", "awq"],
    "a rounding of products": ["export", "nano-policy", "--precision", "int8-w8a8", "--rounding", "awq"],
    "a tool of products for codes": ["export", "nano-policy", "--precision", "int8", "--modelopt-python", "nowhere"],
    "a loss of full weights": ["export", "nano-policy", "--max-part-error", "0.1"],
    "a check that Edge-LLM does": ["export", "nano-policy", "--edge-llm-python", "nowhere", "--check", "rtx"],
    "data that Edge-LLM does not take": ["export", "nano-policy", "--edge-llm-python", "nowhere", "--data", "demos"],
    "a backend that is none": ["eval", "nano-policy", "--backend", "tensort"],
    "a backend for the expert": ["eval", "expert", "--backend", "cpu"],
    "a bundle for the other arm": ["run", "nano-so101"],
    "a Python without Edge-LLM's tools": ["export", "nowhere", "--edge-llm-python", "nowhere"],
    "nothing to build": ["build", "nowhere"],
    "nothing to build over there": ["build", "nowhere", "--on", "user@board"],
    "an address that is an option": ["build", "nano-policy", "--on", "-oProxyCommand=x"],
    "nothing to describe": ["info", "nowhere"],
    "a page that is none": ["info", "nano-policy", "--html", "page.txt"],
    "nothing to verify": ["verify", "nowhere"],
    "fewer than no episodes": ["verify", "nano-policy", "--episodes", "-1"],
    "a receipt that is none": ["verify", "nano-policy", "--out", "receipt.txt"],
    "no such plan": ["reproduce", "nowhere"],
    "no such plan file": ["reproduce", "nowhere.toml"],
    "no such arm": ["reproduce", "debug", "--arms", "sfd", "--dry-run"],
    "a seed that is no number": ["reproduce", "debug", "--seeds", "0,x"],
    "no workers": ["reproduce", "debug", "--workers", "0"],
    "no ledger": ["reproduce", "--report", "nowhere.jsonl"],
    "unknown robot": ["check-robot", "toaster"],
    "a simulated arm and a robot file": ["check-robot", "so101", "--robot", "robot.toml"],
    "a camera without a device": ["calibrate", "--port", "nowhere", "--camera", "front"],
}


@pytest.mark.parametrize("args", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_line_and_exit_2(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "something half-written was left"


@pytest.fixture
def fail_with(monkeypatch: pytest.MonkeyPatch):
    """Makes `roboalign run` raise a given error inside the room."""

    def prepare(error: BaseException) -> list[str]:
        def broken(*_args: object, **_options: object) -> None:
            raise error

        monkeypatch.setattr("roboalign.sdk.evaluation.run_task", broken)
        return ["run"]

    return prepare


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("the value is wrong"), 2, "error: the value is wrong"),
        (RoboalignError("in two\n   lines"), 2, "error: in two lines"),
        (CheckFailed("parity: 0.1 above 0.001"), 1, "error: parity: 0.1 above 0.001"),
        (FileNotFoundError(2, "No such file or directory", "x/y"), 2, "error: x/y: No such file or directory"),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: /x: Permission denied"),
        (
            FileExistsError(17, "File exists", "x"),
            2,
            "error: x: there is a file where a folder is expected; choose another place",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ModuleNotFoundError("No module named 'gymnasium'", name="gymnasium"),
            2,
            "error: this command needs the package 'gymnasium', which is not installed: pip install 'roboalign[sim]'",
        ),
    ],
)
def test_an_error_is_one_line(fail_with, error, code, line, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(fail_with(error)) == code
    assert capsys.readouterr().err == line + "\n"


def test_a_bug_keeps_its_traceback_and_is_no_usage_error(fail_with, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(fail_with(ZeroDivisionError("oops"))) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: this is a bug in roboalign; please report the lines above\n")


@pytest.mark.parametrize("place", [0, 1])
def test_debug_shows_the_traceback_wherever_it_stands(fail_with, place: int) -> None:
    args = fail_with(ConfigError("the value is wrong"))
    args.insert(place, "--debug")
    with pytest.raises(ConfigError):
        main(args)


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import sys; from roboalign.cli.main import main; sys.exit(main(['--help']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141
    process.stderr.close()


def test_version() -> None:
    done = subprocess.run([sys.executable, "-m", "roboalign", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"roboalign {__version__}\n")


def test_the_result_is_the_only_line_on_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["collect", "--episodes", "1", "--tasks", "push", "--workers", "1", "--out", "data"]) == 0
    assert capsys.readouterr().out == "data\n"
    assert main(["data", "preview", "data", "--episode", "0", "--out", "a.gif", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["path"] == "a.gif"
    assert row["preview"]["num_episodes"] == 1
    assert row["preview"]["families"] == {"push": 1}
    assert Path("a.gif").stat().st_size > 1000


def test_a_control_can_be_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "expert", "--episodes", "2", "--films", "0", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["path"] == "runs/eval-expert/report.html"
    assert row["report"]["total"]["num_episodes"] == 2
    assert row["report"]["acted"].keys() == {"expert"}


def test_run_says_what_it_does_and_writes_a_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "expert", "--task", "push the red block to the left", "--out", "film.gif"]) == 0
    out, err = capsys.readouterr()
    assert out == "film.gif\n"
    assert "push the red block to the left" in err


@pytest.mark.parametrize("step", plan(DemoConfig(out=Path("out"))), ids=lambda step: step.name)
def test_the_demo_types_commands_that_exist(step: Step, capsys: pytest.CaptureFixture[str]) -> None:
    """Option names are checked before --help is answered; see the next test."""
    assert main([*step.argv, "--help"]) == 0, capsys.readouterr().err


def test_help_does_not_hide_an_unknown_option() -> None:
    assert main(["collect", "--bogus", "--help"]) == 2
