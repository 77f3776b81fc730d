"""The simulated arm in real time, and its trace played again: the same commands, bit by bit."""

import json
import os
from contextlib import contextmanager

import pytest

pytest.importorskip("pybullet")

from roboalign.sdk.control import session, simulated
from roboalign.sdk.control.policy_process import PolicyRecipe
from roboalign.sdk.control.replay import replay
from roboalign.sdk.control.session import SessionConfig
from roboalign.sdk.control.simulated import run_simulated
from roboalign.sdk.errors import ConfigError, DataError

SENTENCE = "put the red block in the blue bowl"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One run with a policy that goes up and down in another process."""
    folder = tmp_path_factory.mktemp("run")
    config = SessionConfig(seconds=2.0, trace=folder / "run.jsonl", report=folder / "run.html", is_spoken=False)
    recipe = PolicyRecipe(factory="tests.sdk.control.process_policies:for_panda")
    said = []
    return folder, run_simulated(SENTENCE, recipe, config, said.append), said


def test_a_run_in_real_time_moves_the_simulated_arm_and_leaves_trace_and_report(ran):
    folder, run, said = ran
    assert run.report.ticks + run.report.misses >= 20
    assert run.report.moved > 5
    assert not run.success
    assert run.report.granted
    assert (folder / "run.html").stat().st_size > 3000
    assert any(line.startswith("granted: ") for line in said)


def test_memory_is_locked_before_the_robot_waits_for_commands(monkeypatch):
    """Reading all that is mapped from a cold disk took seconds, in which an arm that was connected parked."""
    order = []

    def noting(name, make):
        @contextmanager
        def noted(*args):
            order.append(name)
            with make(*args) as granted:
                yield granted

        return noted

    for name in ("quiet_memory", "high_priority"):
        monkeypatch.setattr(session, name, noting(name, getattr(session, name)))
    monkeypatch.setattr(simulated, "_scene", noting("robot", simulated._scene))
    recipe = PolicyRecipe(factory="tests.sdk.control.process_policies:for_panda")
    run_simulated(SENTENCE, recipe, SessionConfig(seconds=0.2, is_spoken=False), lambda line: None)
    assert order == ["quiet_memory", "robot", "high_priority"]


def test_its_trace_gives_the_same_commands_again(ran):
    folder, run, _ = ran
    found = replay(folder / "run.jsonl")
    assert (found.ticks, found.equal, found.is_equal) == (run.report.ticks, run.report.ticks, True)
    assert found.has_scene
    assert found.success is False


def test_a_trace_that_was_changed_is_noticed(ran, tmp_path):
    lines = (ran[0] / "run.jsonl").read_text().splitlines()
    changed = [json.loads(line) for line in lines]
    moved = next(row for row in changed if row.get("reason") == "moving")
    moved["requested"][2] += 0.001
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    found = replay(tmp_path / "run.jsonl")
    assert not found.is_equal
    assert found.max_action_error == pytest.approx(0.001, rel=1e-3)
    assert found.differences[0].startswith(f"period {moved['tick']}: sent ")


def test_a_trace_without_a_scene_is_played_through_limiter_and_kinematics(ran, tmp_path):
    lines = (ran[0] / "run.jsonl").read_text().splitlines()
    head = json.loads(lines[0]) | {"scene": None}
    (tmp_path / "run.jsonl").write_text("\n".join([json.dumps(head), *lines[1:]]))
    found = replay(tmp_path / "run.jsonl")
    assert not found.has_scene
    assert found.is_equal


def test_a_trace_with_a_hole_is_refused(ran, tmp_path):
    lines = [line for line in (ran[0] / "run.jsonl").read_text().splitlines() if '"tick": 3,' not in line]
    (tmp_path / "run.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="lacks 1"):
        replay(tmp_path / "run.jsonl")


def test_a_policy_of_another_rate_is_refused_and_nothing_is_left():
    recipe = PolicyRecipe(factory="tests.sdk.control.process_policies:Steady")
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, which need no path
    with pytest.raises(ConfigError, match=r"needs the rate 100\.0, the simulated arm has 10"):
        run_simulated(SENTENCE, recipe, SessionConfig(), lambda line: None)
    assert len(os.listdir("/proc/self/fd")) <= len(before)  # noqa: PTH208
