"""Steering and recording where nothing is named: a simulated arm at a table; and the verbs that do it."""

import io
import json
import re
from types import MappingProxyType

import numpy as np
import pytest
from tests.drivers.arm.rig import write_files
from tests.drivers.setup_bench import Person

from roboalign.cli.main import main
from roboalign.cli.output import print_result
from roboalign.drivers.arm.files import write_robot_file
from roboalign.drivers.setup import station
from roboalign.drivers.setup.pilots import KeyboardPilot, ScriptPilot, Wish
from roboalign.drivers.setup.station import StationConfig, draw, make_pilot, record_at_station, steer_at_station
from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.control.loop import LoopReport
from roboalign.sdk.data import LeRobotDataset
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.so101 import so101_spec

pytest.importorskip("pybullet")
UP = np.array((0, 0, 0.005, 0, 1), np.float32)


def script(*wishes):
    return lambda spec: ScriptPilot([([UP] * 3, wish) for wish in wishes])


def test_nothing_named_means_a_simulated_arm_at_a_scene():
    person, pictures = Person([]), []
    report = steer_at_station(StationConfig(), script(Wish.KEEP), person, view=pictures.append, clock=FakeClock())
    assert report.ticks == 3
    assert person.said[0].startswith("on the table: ")
    assert person.asked == [], "a simulation is not asked about"
    assert "\x1b[38;2;" in pictures[0]


def test_simulated_episodes_have_scenes_and_sentences_of_their_own(tmp_path):
    settings = {"out": tmp_path / "data", "task": "anything", "episodes": 2, "seconds": 5.0, "clock": FakeClock()}
    report = record_at_station(StationConfig(seed=7), script(Wish.KEEP, Wish.KEEP), Person([]), **settings)
    assert report.is_complete
    dataset = LeRobotDataset(tmp_path / "data")
    tasks = [dataset.episode(index).task for index in range(2)]
    assert "anything" not in tasks
    assert tasks[0] != tasks[1]


def test_a_picture_becomes_lines_of_half_blocks():
    image = np.zeros((96, 96, 3), np.uint8)
    image[:48, :, 0] = 200
    lines = draw(image, columns=8).split("\n")
    assert len(lines) == 4
    assert lines[0].count("\u2580") == 8
    assert lines[0].startswith("\x1b[38;2;200;0;0;48;2;200;0;0m")
    assert lines[-1].startswith("\x1b[38;2;0;0;0;48;2;0;0;0m")


def test_pilots_by_name(tmp_path):
    assert isinstance(make_pilot("keyboard", keys=str)(so101_spec()), KeyboardPilot)
    with pytest.raises(ConfigError, match="unknown pilot 'keyboad'; did you mean keyboard"):
        make_pilot("keyboad")
    with pytest.raises(ConfigError, match=r"needs the leader arm's robot file: --leader"):
        make_pilot("leader")
    with pytest.raises(ConfigError, match="nowhere"):
        make_pilot("leader", leader=tmp_path / "nowhere.json")


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(station, "make_pilot", lambda kind, **more: script(Wish.KEEP))


def test_teleop_by_its_verb(scripted, capsys):
    assert main(["teleop", "--no-view", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)["report"]
    assert (report["ticks"], report["wish"]) == (3, "keep")
    assert "w/s forward" in err


def test_record_by_its_verb_says_that_it_can_go_on(scripted, capsys, tmp_path):
    assert main(["record", "--out", str(tmp_path / "data"), "--episodes", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["report"]["kept"] == 1
    assert "1 episodes are safe; the same command goes on" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "nano-so101", "--robot", "nowhere.json", "--yes"], "nowhere.json"),
        (["run", "--robot", "nowhere.json"], "name a bundle, nano-so101"),
        (["calibrate", "--port", "/dev/nowhere", "--arm", "so11"], "did you mean so101"),
        (["calibrate", "--port", "/dev/nowhere", "--camera", "front"], "'front', expected NAME=VALUE"),
        (["calibrate", "--port", "/dev/nowhere", "--camera", "front=/dev/video0"], "/dev/nowhere"),
        (["setup-motors", "--port", "/dev/nowhere"], "/dev/nowhere"),
        (["teleop", "--pilot", "mouse"], "unknown pilot 'mouse'"),
        (["doctor", "--arm", "so11"], "did you mean so101"),
        (["doctor", "--yes", "--backend", "cpu", "--traces", "x"], "--yes, --backend, --traces is of a bundle"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line_and_exit_2(args, message, capsys):
    assert main(args) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("error:") == 1


@pytest.mark.parametrize("verb", ["teleop", "record", "check-robot"])
def test_hardware_that_is_named_prints_its_limits_and_asks_before_it_moves(verb, tmp_path, monkeypatch, capsys):
    """`check-robot` knew simulated arms alone."""
    write_robot_file(tmp_path / "robot.json", write_files(tmp_path, port="/dev/nowhere"))
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    assert main([verb, "--robot", str(tmp_path / "robot.json")]) == 1
    err = capsys.readouterr().err
    assert re.search(r"shoulder_pan +-\d+\.\d to +\d+\.\d deg, up to", err)
    assert "Type yes to go on" in err
    assert "nothing has moved: the answer was not yes" in err


def test_a_loops_report_can_be_printed_as_json(capsys):
    """Its counts are in read-only mappings, which asdict could not copy: `run --robot --json` ended as a bug."""
    print_result(
        "done", as_json=True, report=LoopReport(ticks=1, misses=0, holds=1, hold_reasons=MappingProxyType({"x": 1}))
    )
    assert json.loads(capsys.readouterr().out)["report"]["hold_reasons"] == {"x": 1}


def test_doctor_by_its_verb_exits_with_1_when_a_check_fails(capsys):
    assert main(["doctor", "--port", "/dev/nowhere", "--json"]) == 1
    out, err = capsys.readouterr()
    checks = json.loads(out)["checks"]
    failed = [check for check in checks if check["status"] == "failed"]
    assert "port is there" in [check["name"] for check in failed]
    assert all(check["remedy"] for check in failed)
    assert "checks failed" in err
