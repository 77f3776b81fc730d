"""A policy in a real process: it answers through shared memory, and whatever happens to it the arm is held."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tests.sdk.control.fake_process import EchoRobot

from roboalign.sdk.control import MonotonicClock, policy_process
from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.policy_process import PolicyProcess, PolicyRecipe
from roboalign.sdk.control.records import read_text
from roboalign.sdk.control.tick import LoopSettings, RealTimeLoop
from roboalign.sdk.control.watchdog import Guard, WatchSettings
from roboalign.sdk.errors import BackendError, BundleError, ConfigError

STEADY = "tests.sdk.control.process_policies:Steady"
HELD_S = 0.2
"""What a busy test machine may take; `benchmarks/control_loop.py` measures against 0.1 s."""


@pytest.fixture
def fast(spec):
    return dataclasses.replace(spec, control_rate_hz=100.0, joint_max_speed_rad_s=(30.0,) * 3)


@pytest.fixture
def channels(fast):
    channels = Channels(fast)
    yield channels
    channels.close()


def opened(channels, **settings):
    process = PolicyProcess(PolicyRecipe(factory=STEADY, settings=settings), channels)
    process.open("push the cup")
    return process


def run(fast, channels, process, max_ticks, *, during=lambda: None, **settings):
    """Runs the loop, with something else happening in a thread."""
    robot = EchoRobot(fast, MonotonicClock())
    settings.setdefault("watch", WatchSettings(beat_timeout_s=0.15))
    loop = RealTimeLoop(Guard(robot), process, channels, LoopSettings(**settings))
    thread = threading.Thread(target=during)
    thread.start()
    report = loop.run("push the cup", max_ticks=max_ticks)
    thread.join()
    return robot, report


def test_a_policy_moves_an_arm_from_another_process(fast, channels):
    process = opened(channels)
    assert process.pid not in (None, os.getpid())
    _, report = run(fast, channels, process, 200)
    process.close()
    assert report.moved > 150
    assert report.chunks > 10
    assert set(report.reasons) <= {"warming", "exhausted", "watchdog", "no_chunk"}
    chunk = np.zeros(1, channels.chunks.record)
    assert channels.chunks.copy(chunk)
    assert bytes(chunk["thought"][0]) == b"saw 0.0 and push the cup"


@pytest.fixture
def urgent(monkeypatch):
    """A control process with real-time priority, as far as announcements go."""
    monkeypatch.setattr(policy_process, "is_real_time", lambda: True)


def test_a_question_that_is_announced_and_does_not_come_is_not_answered(fast, channels, urgent):
    process = opened(channels)
    _, report = run(fast, channels, process, 50)
    newest, pinned = channels.chunks.newest, channels.observations.newest
    process.announce()
    time.sleep(0.1)
    assert (channels.chunks.newest, channels.board["question"][0]) == (newest, channels.board["answered"][0])
    for _ in range(20):
        channels.observations.begin()
        channels.observations.commit()
    assert not channels.observations.has(pinned), "a rehearsal lets go of what it looked at"
    process.close()
    assert report.chunks == newest


def test_only_a_process_of_real_time_priority_announces_and_not_where_it_is_crowded(channels, monkeypatch):
    strokes = []
    process = PolicyProcess(PolicyRecipe(factory=STEADY), channels)
    process._child.ring = strokes.append
    process.announce()
    assert strokes == []
    monkeypatch.setattr(policy_process, "is_real_time", lambda: True)
    process.announce()
    assert strokes == [b"?"]
    channels.board["crowded"][0] += 1
    for _ in range(33):
        process.announce()
    assert strokes == [b"?"] * 2, "32 come unannounced"


def test_a_rehearsal_that_another_program_interrupts_is_told(channels, monkeypatch):
    times = iter((3, 3, 3, 4))
    monkeypatch.setattr(policy_process, "_preempted", lambda: next(times))
    desk = policy_process._Desk(channels, None, "push the cup")
    for crowded in (0, 1):
        desk.get_ready()
        assert channels.board["crowded"][0] == crowded


def test_a_policy_ends_by_itself_when_the_control_process_lets_go(channels):
    process = opened(channels)
    child = process._child._process
    process.close()
    assert child.returncode == 0


def test_what_a_policy_thinks_is_in_shared_memory_while_it_thinks(fast, channels):
    process = PolicyProcess(PolicyRecipe(factory="tests.sdk.control.process_policies:Talker"), channels)
    process.open("push the cup")
    assert channels.words.newest == 0, "what it thought while it was warmed up is nobody's"
    heard, words = set(), np.zeros(1, channels.words.record)

    def listen():
        for _ in range(300):
            if channels.words.copy(words):
                heard.add(read_text(words, "thought"))
            time.sleep(0.002)

    _, report = run(fast, channels, process, 100, during=listen)
    process.close()
    assert report.chunks > 3
    assert {text[-1] for text in heard} == {"x"}
    assert len({len(text) for text in heard}) > 1, "more than the end of each"
    assert channels.words.newest >= 4 * report.chunks


def test_a_policy_that_cannot_be_made_says_why(channels):
    with pytest.raises(BackendError, match="ValueError: this policy cannot be made"):
        opened(channels, do="refuse")
    with pytest.raises(ConfigError, match=r"policy recipe 'nowhere:at_all'.*expected 'module:function'"):
        PolicyProcess(PolicyRecipe(factory="nowhere:at_all"), channels).open("lift")
    with pytest.raises(BundleError, match="no/such/bundle"):
        PolicyProcess(PolicyRecipe(settings={"bundle": "no/such/bundle"}), channels).open("lift")


def test_a_policy_that_ends_while_it_loads_is_told_apart(channels):
    process = PolicyProcess(PolicyRecipe(factory="os:_exit", settings={"status": 3}), channels)
    with pytest.raises(BackendError, match=r"the policy's process ended without a word \(exit code 3\)"):
        process.open("lift")
    assert process.pid is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_policy_that_is_killed_or_stopped_is_held_and_given_up(fast, channels, number):
    process = opened(channels)
    pid, at_s = process.pid, []

    def disturb():
        time.sleep(0.7)
        at_s.append(time.monotonic())
        os.kill(pid, number)

    robot, report = run(fast, channels, process, 1000, during=disturb, park_after_s=0.5)
    process.close()
    acts = [time_s for kind, time_s in robot.log if kind == "act"]
    assert acts[-1] - acts[0] > 0.0
    assert acts[-1] - at_s[0] < HELD_S
    assert report.stopped_by.startswith("watchdog: the policy's process")
    assert report.reasons["watchdog"] > 30
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("do", "reason"), [("hang", "exhausted"), ("exit", "watchdog"), ("raise", "policy"), ("stall", "exhausted")]
)
def test_whatever_a_policy_does_the_loop_goes_on_and_says_why(fast, channels, do, reason):
    process = opened(channels, do=do)
    robot, report = run(fast, channels, process, 400, park_after_s=20.0)
    process.close()
    assert report.ticks == 400
    assert report.reasons[reason] > 20
    kinds = [kind for kind, _ in robot.log]
    assert (kinds[-50:].count("act") > 25) is (do == "stall")
    if do == "raise":
        assert report.notes["policy: policy raised RuntimeError: out of memory"] == report.reasons["policy"]


ORPHAN = """
import sys, time
from roboalign.sdk.sim.so101 import so101_spec
from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.policy_process import PolicyProcess, PolicyRecipe
import dataclasses
spec = dataclasses.replace(so101_spec(), image_size_px=16)
process = PolicyProcess(PolicyRecipe(factory="tests.sdk.control.process_policies:Steady", settings={}), Channels(spec))
process.open("lift")
print(process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_behind_however_the_control_process_ends(number):
    shared = set(Path("/dev/shm").iterdir())
    control = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=Path.cwd()
    )
    pid = int(control.stdout.readline())
    os.kill(pid, 0)
    control.send_signal(number)
    control.communicate()
    deadline_s = time.monotonic() + 5.0
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline_s, "the policy's process outlived the control process"
        time.sleep(0.01)
    assert set(Path("/dev/shm").iterdir()) <= shared
