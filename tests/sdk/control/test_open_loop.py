"""A trace of an arm whose servos are late and weak, played on the arm as simulated and on one that knows them."""

import json
from dataclasses import asdict

import numpy as np
import pytest

pytest.importorskip("pybullet")

from roboalign.cli.main import main
from roboalign.sdk.control.open_loop import open_loop
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.randomization import DomainRandomization
from roboalign.sdk.sim.so101 import so101_spec
from roboalign.sdk.sim.world import SimWorld

SPEC = so101_spec()
HIDDEN = {"delay": {"bus_ms": 75.0}, "gain": {"position_scale": 0.5}}
"""75 ms are 18 physics steps."""


def joint_targets(num):
    """Smooth ways of the first three joints; the wrist stands."""
    times_s = np.arange(num) / SPEC.control_rate_hz
    ways = np.zeros((num, SPEC.num_joints))
    ways[:, :3] = 0.25 * np.sin(2 * np.pi * np.outer(times_s, (0.3, 0.41, 0.53)))
    return np.array(SPEC.home_joint_pos_rad) + ways


def lines(num=60, hidden=HIDDEN, spec=SPEC, zero_s=1000.0):
    """The trace that an arm with these servos would leave: joints are read when a target is sent."""
    world = SimWorld(robot="so101")
    world.connect()
    world.build(None, None, DomainRandomization.from_json(hidden).sample(0))
    ticks = []
    for index, target in enumerate(joint_targets(num)):
        sent_s = zero_s + index / SPEC.control_rate_hz
        measured = world.joint_pos_rad().tolist()
        world.step_control(target, SPEC.gripper_max_width_m)
        tick = {"tick": index, "due": index, "time_s": sent_s, "measured_s": sent_s}
        tick |= {"sent": [0.0, 0.0, 0.0, 0.0, 1.0], "targets": target.tolist()}
        ticks.append(tick | {"measured": measured, "step": 0, "interrupts": 0})
    world.close()
    head = {"roboalign_trace": 1, "robot": asdict(spec), "instruction": "", "policy": "p", "rate_hz": 10.0}
    return [head | {"scene": None}, *ticks]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    (folder / "identified.json").write_text(json.dumps(HIDDEN))
    return write(folder / "run.jsonl", lines())


def test_the_lag_of_a_late_arm_is_found(trace):
    """75 ms on the bus; half the gain adds a physics step or two to what the motor itself takes."""
    found, _ = open_loop(trace)
    assert (found.robot, found.readings, found.domain) == ("so101", 60, "as simulated")
    assert found.lag_ms == pytest.approx(80.0, abs=6.0)
    moved = [joint for joint in found.joints if joint.lag_ms is not None]
    assert [joint.name for joint in moved] == list(SPEC.joint_names[:3])
    for joint in moved:
        assert joint.lag_ms == pytest.approx(80.0, abs=12.0)
        assert joint.rms_after_lag_deg < 0.2 * joint.rms_deg
        assert joint.max_deg > joint.rms_deg > 0.5


def test_an_identified_domain_closes_the_gap(trace):
    nominal, _ = open_loop(trace)
    identified, _ = open_loop(trace, randomization=str(trace.parent / "identified.json"))
    assert identified.rms_deg < 0.02 < 0.2 * nominal.rms_deg
    assert identified.lag_ms == pytest.approx(0.0, abs=1.0)
    assert identified.domain.startswith("the middle of ")


def test_the_middle_of_an_identified_range_is_played(trace, tmp_path):
    ranges = {"delay": {"bus_ms": {"uniform": [65.0, 85.0]}}, "gain": {"position_scale": {"uniform": [0.4, 0.6]}}}
    (tmp_path / "ranges.json").write_text(json.dumps(ranges))
    assert open_loop(trace, randomization=str(tmp_path / "ranges.json"))[0].rms_deg < 0.02


def test_an_arm_as_simulated_has_no_gap(tmp_path):
    found, _ = open_loop(write(tmp_path / "run.jsonl", lines(hidden={})))
    assert found.rms_deg < 0.02
    assert found.lag_ms == 0.0


def test_an_offset_is_no_lag(tmp_path):
    rows = lines(hidden={})
    for row in rows[1:]:
        row["measured"][0] += 0.05
    found, _ = open_loop(write(tmp_path / "run.jsonl", rows))
    assert found.joints[0].rms_deg == pytest.approx(np.degrees(0.05), rel=0.1)
    assert found.joints[0].lag_ms == pytest.approx(0.0, abs=3.0)


def test_a_robot_may_have_a_name_of_its_own(tmp_path):
    rows = lines(num=25)
    rows[0]["robot"]["name"] = "left arm"
    assert open_loop(write(tmp_path / "run.jsonl", rows))[0].robot == "so101"


def test_the_end_of_a_robot_that_was_gone_is_left_out(tmp_path):
    rows = lines(num=25)
    gone = rows[-1] | {"tick": 25, "targets": [0.0] * SPEC.num_joints, "measured_s": None, "reason": "disconnected"}
    found, _ = open_loop(write(tmp_path / "run.jsonl", [*rows, gone]))
    assert found.readings == 25
    assert found.max_deg < 20.0


def changed(rows, **faults):
    head, ticks = rows[0], rows[1:]
    if "joints" in faults:
        head["robot"]["joint_names"] = [f"j{index}" for index in range(SPEC.num_joints)]
    if "name" in faults:
        head["robot"]["name"] = "panda"
    if "scene" in faults:
        head["scene"] = {"robot": "so101", "task": "place", "seed": 1}
    if "lost" in faults:
        del ticks[7]
    if "length" in faults:
        del ticks[12:]
    for tick in ticks:
        if "times" in faults:
            del tick["measured_s"]
        if "seldom" in faults:
            tick["measured_s"] = 1000.0 + 2.0 * (tick["tick"] // 20)
        if "leap" in faults and tick["tick"] > 9:
            tick["time_s"] -= 5.0
    return [head, *ticks]


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("joints", ConfigError, "is of so101 with the joints j0, j1, j2, j3, j4, which no simulated arm"),
        ("name", ConfigError, "is of panda with the joints shoulder_pan"),
        ("scene", ConfigError, "is of the simulated scene place of so101, expected a trace of a robot"),
        ("lost", DataError, "has 39 periods and lacks 1"),
        ("times", DataError, "40 of 40 periods do not say when"),
        ("length", DataError, "is 1.1 s long, expected 2 s"),
        ("seldom", DataError, "has 2 readings of the joints, expected 20"),
        ("leap", DataError, "do not rise"),
    ],
)
def test_a_trace_that_cannot_be_compared_is_refused(tmp_path, fault, error, message):
    path = write(tmp_path / "run.jsonl", changed(lines(num=40), **{fault: True}))
    with pytest.raises(error, match=message):
        open_loop(path)


def test_the_verb_prints_each_joint_and_writes_a_page(trace, tmp_path, capsys):
    page = tmp_path / "gap.html"
    assert main(["replay", str(trace), "--open-loop", "--report", str(page), "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["path"] == str(page)
    assert [joint["name"] for joint in found["open_loop"]["joints"]] == list(SPEC.joint_names)
    assert all(name in said.err for name in SPEC.joint_names)
    text = page.read_text()
    assert text.count("<svg") == 2 * SPEC.num_joints
    assert "<script" not in text


def test_the_options_of_open_loop_are_refused_without_it(trace, capsys):
    assert main(["replay", str(trace), "--randomize", "mild"]) == 2
    assert "add --open-loop" in capsys.readouterr().err
