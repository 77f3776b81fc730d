"""`roboalign sysid`: which arm is asked for before it moves."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from tests.drivers.arm.rig import write_files

from roboalign.cli.main import main
from roboalign.drivers.arm.files import write_robot_file
from roboalign.sdk import sysid
from roboalign.sdk.errors import RobotError
from roboalign.sdk.sim.robot import SimRobot


def test_an_arm_in_simulation_moves_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pybullet")
    moved = []

    def identify(robot: SimRobot, config: sysid.SysidConfig, *, clock: object = None, **more: object) -> None:
        moved.append((type(robot), clock, robot.observe().joint_pos_rad.shape))
        raise RobotError("this was enough")

    monkeypatch.setattr(sysid, "identify", identify)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    (tmp_path / "robot.toml").write_text('arm = "sim:so101"\n')
    assert main(["sysid", "--robot", str(tmp_path / "robot.toml"), "--out", str(tmp_path / "out")]) == 2
    assert moved == [(SimRobot, None, (5,))]
    said = capsys.readouterr().err
    assert "this was enough" in said
    assert "Type yes" not in said
    assert "hands" not in said


def test_an_arm_on_a_port_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_robot_file(tmp_path / "robot.toml", replace(write_files(tmp_path), port=str(tmp_path / "nothing")))
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    assert main(["sysid", "--robot", str(tmp_path / "robot.toml"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "Type yes" in said
    assert "nothing has moved" in said
