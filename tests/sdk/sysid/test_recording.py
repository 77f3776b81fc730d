"""Recordings: what is kept, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tests.sdk.sysid.arms import make_recording

from roboalign.sdk.errors import DataError
from roboalign.sdk.sim.panda import PANDA
from roboalign.sdk.sim.so101 import so101_spec
from roboalign.sdk.sysid import Recording, fit_recording
from roboalign.sdk.sysid.solve import JointFit, repeated_readings

PLAIN = np.array([[10.0] * 5, [1.0] * 5, [0.8] * 5, [0.0] * 5, [0.0] * 5])


def test_a_recording_comes_back_from_its_file_and_from_its_folder(tmp_path: Path) -> None:
    recording = make_recording(PLAIN, seconds=5.0)
    recording.save(tmp_path / "recording.json")
    for where in (tmp_path, tmp_path / "recording.json"):
        loaded = Recording.load(where)
        np.testing.assert_allclose(loaded.position_rad, recording.position_rad, atol=1e-7)
        np.testing.assert_allclose(loaded.read_s, recording.read_s, atol=1e-7)
        assert loaded.joint_names == recording.joint_names
    assert [path.name for path in tmp_path.iterdir()] == ["recording.json"]


def test_the_trace_of_another_robot_is_refused() -> None:
    recording = make_recording(PLAIN, seconds=5.0)
    recording.require(so101_spec())
    with pytest.raises(DataError, match=r"is of so101 with the joints shoulder_pan.*panda has panda_joint1"):
        recording.require(PANDA.spec(96))
    slower = dataclasses.replace(so101_spec(), joint_max_speed_rad_s=(1.0,) * 5)
    with pytest.raises(DataError, match="speed limits"):
        recording.require(slower)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"read_s": None}, "lacks read_s: without times no delay can be told"),
        ({"format": 7}, "format 7, this version reads 1"),
        ({"read_s": "stopped"}, "does not grow: without the time of every row"),
        ({"position_rad": "short"}, "position_rad has shape"),
        ({"sent_s": "words"}, "damaged"),
    ],
)
def test_a_damaged_recording_is_refused_by_what_is_wrong(change: dict[str, object], named: str, tmp_path: Path) -> None:
    path = tmp_path / "recording.json"
    make_recording(PLAIN, seconds=5.0).save(path)
    content = json.loads(path.read_text())
    for name, value in change.items():
        if value is None:
            del content[name]
        elif value == "stopped":
            content[name] = [1.0] * len(content[name])
        elif value == "short":
            content[name] = content[name][:-1]
        elif value == "words":
            content[name] = ["soon"] * len(content[name])
        else:
            content[name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=named):
        Recording.load(path)


def test_a_recording_that_ended_at_once_is_refused_with_why() -> None:
    whole = make_recording(PLAIN, seconds=5.0)
    names = ("sent_s", "target_rad", "target_width_m", "read_s", "position_rad", "width_m")
    short = {name: getattr(whole, name)[:50] for name in names}
    with pytest.raises(DataError, match="holds 50 readings, expected at least 500; it ended because: RobotTimeout"):
        fit_recording(dataclasses.replace(whole, **short, end="RobotTimeout: silent"))


@pytest.mark.parametrize(("noise_rad", "step_rad"), [(0.003, 0.0015), (0.0, 0.0015), (0.002, 0.0)])
def test_lost_readings_are_told_from_those_that_are_the_same_by_chance(noise_rad: float, step_rad: float) -> None:
    rng = np.random.default_rng(3)
    whole = make_recording(PLAIN, seconds=10.0)
    true = whole.position_rad
    read = true + noise_rad * rng.standard_normal(true.shape)
    read = np.round(read / step_rad) * step_rad if step_rad else read
    lost = rng.random(len(read)) < 0.05
    lost[0] = False
    for row in np.flatnonzero(lost):
        read[row] = read[row - 1]
    recording = dataclasses.replace(whole, position_rad=read, resolution_rad=step_rad)
    ones = np.ones_like(true)
    fit = JointFit(
        values=PLAIN,
        residual_rad=read - true,
        predicted_rad=true,
        std_rad=np.full(5, noise_rad),
        weight=ones,
        inflation=ones[0],
    )
    told, found = repeated_readings(recording, fit)
    moving = np.append(False, np.abs(np.diff(true, axis=0)).max(1) > 2 * step_rad + 1e-4)
    assert (found & ~lost).mean() < 0.01
    assert found[lost & moving].mean() > 0.95
    assert (told[lost] == found[lost]).all()
    assert abs(found.sum() / told.sum() - lost.mean()) < 0.02
