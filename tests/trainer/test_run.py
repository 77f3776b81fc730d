"""What a run leaves when it ends, however it ends; the stage is a function of a few lines."""

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from roboalign.sdk.errors import BundleError, CheckFailed, ConfigError, DataError
from roboalign.trainer.folders import partial_dir
from roboalign.trainer.progress import MetricsLog
from roboalign.trainer.run import RunOptions, RunStatus, read_status, stage_run


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    out: Path
    recipe: str = "tiny"
    steps: int = 3
    rate: float = 0.5
    threads: int = 1


@stage_run("tiny")
def train(config: Config, *, error: BaseException | None = None) -> Path:
    """Three steps; with `error`, it is raised after two."""
    work = partial_dir(config.out)
    log = MetricsLog(work / "metrics.jsonl")
    for step in range(config.steps):
        if step == 2 and error is not None:
            raise error
        log.write(step=step, loss=1.0 / (step + 1))
        (work / "state").mkdir(exist_ok=True)
    config.out.mkdir(exist_ok=True)
    (config.out / "roboalign.json").write_text("{}")
    return config.out


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(out=tmp_path / "run")


def interrupted(config: Config, error: BaseException | None = None) -> RunStatus:
    error = error or KeyboardInterrupt()
    with pytest.raises(type(error)):
        train(config, error=error)
    status = read_status(partial_dir(config.out))
    assert status is not None
    return status


def test_a_finished_run_says_so_beside_its_result_and_leaves_no_folder(config) -> None:
    status = read_status(train(config))
    assert (status.state, status.reason, status.stage, status.step) == ("finished", "", "tiny", 2)
    assert sorted(path.name for path in config.out.parent.iterdir()) == ["run"]
    assert "tiny" in (config.out / "report.html").read_text()
    assert json.loads((config.out / "settings.json").read_text())["rate"] == 0.5


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", "Ctrl-C; the same command goes on"),
        (CheckFailed("nothing to\nexplore"), "refused", "nothing to explore"),
        (DataError("no pictures"), "refused", "no pictures"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
    ],
)
def test_the_folder_says_why_it_stopped(config, error, state, reason) -> None:
    status = interrupted(config, error)
    assert (status.state, status.reason, status.step) == (state, reason, 1)
    assert reason in (partial_dir(config.out) / "report.html").read_text()
    assert not config.out.exists()


def test_a_request_to_stop_is_an_interruption_too(config, monkeypatch) -> None:
    class Asking(MetricsLog):
        def write(self, **values) -> None:
            super().write(**values)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setitem(globals(), "MetricsLog", Asking)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        train(config)
    assert stop.value.code == 143
    assert read_status(partial_dir(config.out)).reason == "asked to stop (SIGTERM); the same command goes on"
    assert signal.getsignal(signal.SIGTERM) is before


def test_while_it_runs_the_folder_names_the_process(config, monkeypatch) -> None:
    seen = []

    class Looking(MetricsLog):
        def write(self, **values) -> None:
            seen.append(read_status(self.path.parent))
            super().write(**values)

    monkeypatch.setitem(globals(), "MetricsLog", Looking)
    train(config)
    assert [(status.state, status.pid) for status in seen] == [("running", os.getpid())] * 3


def test_a_run_that_ends_before_its_first_line_leaves_nothing(tmp_path) -> None:
    @stage_run("tiny")
    def refuse(_config: Config) -> Path:
        raise DataError("no such data")

    with pytest.raises(DataError):
        refuse(Config(out=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_the_same_command_goes_on(config) -> None:
    interrupted(config)
    assert read_status(train(config)).state == "finished"


def test_resume_asks_for_a_run_to_go_on_with(config) -> None:
    with pytest.raises(ConfigError, match=r"there is nothing to resume: .*run\.partial has no saved state; leave out"):
        train(config, run=RunOptions(must_resume=True))
    interrupted(config)
    assert read_status(train(config, run=RunOptions(must_resume=True))).state == "finished"


def test_other_settings_are_refused_and_named(config) -> None:
    """An interrupted alignment was once finished with another reward: only the supervised stages compared settings."""
    interrupted(config)
    with pytest.raises(ConfigError, match=r"other settings \(rate differ\)"):
        train(replace(config, rate=0.25))
    assert read_status(partial_dir(config.out)).state == "interrupted"


def test_settings_that_change_nothing_may_differ(config) -> None:
    interrupted(config)
    assert read_status(train(replace(config, threads=4))).state == "finished"


def test_a_folder_of_another_version_is_refused_with_both(config) -> None:
    interrupted(config)
    file = partial_dir(config.out) / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"roboalign": "0.0.7"}))
    with pytest.raises(BundleError, match=r"written by roboalign 0\.0\.7, this is 0\."):
        train(config)


def test_somebody_elses_files_are_not_replaced(config) -> None:
    """`--out` once removed any folder that it was given, whatever was in it."""
    config.out.mkdir()
    (config.out / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds files but is no checkpoint; they would be removed"):
        train(config)
    assert (config.out / "thesis.txt").read_text() == "years of work"


def test_two_processes_do_not_write_one_folder(config) -> None:
    @stage_run("tiny")
    def twice(inner: Config) -> Path:
        return train(inner)

    with pytest.raises(ConfigError, match="is being written by another process"):
        twice(config)


def test_a_process_that_is_not_the_first_writes_nothing(config, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    partial_dir(config.out).mkdir()
    train(config)
    assert {path.name for path in config.out.iterdir()} == {"roboalign.json"}
    assert {path.name for path in partial_dir(config.out).iterdir()} == {"state"}


def test_a_damaged_status_is_one_line(tmp_path) -> None:
    (tmp_path / "status.json").write_text('{"state": "resting"}')
    with pytest.raises(BundleError, match=r"status\.json is damaged"):
        read_status(tmp_path)
