"""Steering and recording: pilots, rates, what is kept, and what an interruption leaves; in memory."""

import dataclasses
import os
import struct

import numpy as np
import pytest
from tests.drivers.test_lerobot import SoFollower

from roboalign.drivers.lerobot import adapt_lerobot
from roboalign.drivers.setup.pilots import GamepadPilot, KeyboardPilot, ScriptPilot, Wish
from roboalign.drivers.setup.teleop import RecordConfig, record, steer
from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.data import LeRobotDataset, check_dataset
from roboalign.sdk.errors import ConfigError, DataError, RobotError
from roboalign.sdk.types import STATES

UP = np.array((0, 0, 0.005, 0, 1), np.float32)


class PacedArm:
    """A robot in memory whose readings carry the time of a clock, which passes with every action."""

    def __init__(self, lag=1.0):
        self.clock = FakeClock(50.0)
        self.inner = adapt_lerobot(SoFollower())
        self.inner._clock = self.clock.now
        self.lag = lag
        self.spec = self.inner.spec

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def act(self, action):
        applied = self.inner.act(action)
        self.clock.advance(self.lag / self.spec.control_rate_hz)
        return applied


@pytest.fixture
def arm():
    arm = PacedArm()
    arm.connect()
    return arm


def script(*wishes, length=6):
    return ScriptPilot([([UP] * length, wish) for wish in wishes])


def config(tmp_path, **more):
    return RecordConfig(**{"out": tmp_path / "data", "task": "lift it", "episodes": 2, **more})


def test_a_pilot_moves_the_arm_until_it_is_done(arm):
    before = arm.observe(with_images=False).state
    report = steer(arm, script(Wish.KEEP), clock=arm.clock)
    after = arm.observe(with_images=False).state
    assert after[2] - before[2] == pytest.approx(0.015, abs=0.016)
    assert after[2] > before[2]
    assert (report.ticks, report.wish, report.misses) == (6, Wish.KEEP, 0)
    assert report.rate_hz == pytest.approx(10.0)


def test_steering_ends_after_its_time(arm):
    report = steer(arm, ScriptPilot([([UP] * 100, Wish.KEEP)]), max_ticks=5, clock=arm.clock)
    assert (report.ticks, report.wish) == (5, Wish.GO_ON)


def test_missed_periods_are_counted_and_not_caught_up():
    arm = PacedArm(lag=2.5)
    arm.connect()
    report = steer(arm, script(Wish.KEEP), clock=arm.clock)
    assert report.misses >= 5
    assert report.rate_hz < 5


def test_whatever_a_pilot_raises_leaves_the_arm_holding(arm):
    class Broken(ScriptPilot):
        def action(self, observation):
            raise RobotError("the leader is gone")

    holds = []
    arm.hold = lambda: holds.append(True)
    with pytest.raises(RobotError, match="the leader is gone"):
        steer(arm, Broken([]), clock=arm.clock)
    assert holds == [True]


def test_two_episodes_become_a_dataset(arm, tmp_path):
    report = record(arm, script(Wish.KEEP, Wish.DISCARD, Wish.KEEP), config(tmp_path), clock=arm.clock)
    assert (report.kept, report.discarded, report.is_complete) == (2, 1, True)
    dataset = LeRobotDataset(tmp_path / "data")
    assert [len(dataset.episode(index)) for index in range(2)] == [6, 6]
    episode = dataset.episode(0)
    assert episode.task == "lift it"
    assert episode.actions[0] == pytest.approx(UP, abs=1e-6)
    assert episode.rate_hz == 10.0
    errors = [finding for finding in check_dataset(tmp_path / "data").findings if finding.severity == "error"]
    assert not errors


def test_what_was_sent_is_recorded_not_what_was_asked(arm, tmp_path):
    far = np.array((0, 0, 5.0, 0, 1), np.float32)
    record(arm, ScriptPilot([([far] * 3, Wish.KEEP)]), config(tmp_path, episodes=1), clock=arm.clock)
    actions = LeRobotDataset(tmp_path / "data").episode(0).actions
    assert np.abs(actions[:, 2]).max() <= arm.spec.max_step_m + 1e-6


def test_where_the_tool_was_sent_may_be_recorded_in_the_place_of_where_it_is(arm, tmp_path):
    with pytest.raises(ConfigError, match="state is 'wished', expected one of measured, commanded"):
        config(tmp_path, state="wished")
    found = {}
    for state in ("measured", "commanded"):
        record(arm, script(Wish.KEEP), config(tmp_path / state, episodes=1, state=state), clock=arm.clock)
        dataset = LeRobotDataset(tmp_path / state / "data")
        assert dataset.info.state_names == STATES[state]
        episode = dataset.episode(0)
        found[state] = np.abs(np.diff(episode.states[:, :3], axis=0) - episode.actions[:-1, :3]).max()
    assert found["commanded"] < 1e-6 < found["measured"]


def test_a_robot_that_does_not_say_where_its_tool_was_sent_is_recorded_as_measured_only(arm, tmp_path):
    observe = arm.inner.observe
    arm.observe = lambda *args, **more: dataclasses.replace(observe(*args, **more), commanded=None)
    with pytest.raises(DataError, match="does not say where"):
        record(arm, script(Wish.KEEP), config(tmp_path, episodes=1, state="commanded"), clock=arm.clock)


def test_a_recording_of_one_state_does_not_go_on_with_another(arm, tmp_path):
    record(arm, script(Wish.KEEP), config(tmp_path), clock=arm.clock)
    with pytest.raises(DataError, match=r"has the state tool_x_m.*go on with the same --state"):
        record(arm, script(Wish.KEEP), config(tmp_path, state="commanded"), clock=arm.clock)


def test_a_recording_that_was_cut_goes_on(arm, tmp_path):
    class Cut(ScriptPilot):
        def action(self, observation):
            if not self._actions:
                raise KeyboardInterrupt
            return super().action(observation)

    pilot = Cut([([UP] * 4, Wish.KEEP), ([UP] * 2, Wish.GO_ON)])
    with pytest.raises(KeyboardInterrupt):
        record(arm, pilot, config(tmp_path), clock=arm.clock)
    assert not (tmp_path / "data").exists()
    said = []
    report = record(arm, script(Wish.KEEP), config(tmp_path), clock=arm.clock, say=said.append)
    assert said[0] == "going on after 1 episodes of before"
    assert (report.kept, report.is_complete) == (2, True)
    assert [len(LeRobotDataset(tmp_path / "data").episode(index)) for index in range(2)] == [4, 6]


def test_a_pilot_that_quits_leaves_the_rest_for_later(arm, tmp_path):
    report = record(arm, script(Wish.KEEP), config(tmp_path, episodes=3), clock=arm.clock)
    assert (report.kept, report.is_complete) == (1, False)
    report = record(arm, script(Wish.KEEP, Wish.KEEP), config(tmp_path, episodes=3), clock=arm.clock)
    assert (report.kept, report.is_complete) == (3, True)


def test_episodes_below_the_stated_rate_are_not_kept(tmp_path):
    """A dataset that states 10 Hz and holds 7 Hz teaches a faster motion (lerobot #2786)."""
    arm = PacedArm(lag=1.4)
    arm.connect()
    said = []
    with pytest.raises(RobotError, match=r"3 episodes in a row ran at .* states 10 Hz; lower control_rate_hz"):
        record(arm, script(*[Wish.KEEP] * 4), config(tmp_path), clock=arm.clock, say=said.append)
    assert all("not kept" in line for line in said)
    assert not (tmp_path / "data").exists()


def test_a_scenes_own_sentence_is_recorded(arm, tmp_path):
    record(arm, script(Wish.KEEP), config(tmp_path, episodes=1), before_episode=lambda n: f"do {n}", clock=arm.clock)
    assert LeRobotDataset(tmp_path / "data").episode(0).task == "do 0"


@pytest.mark.parametrize(("field", "value"), [("task", " "), ("episodes", 0), ("max_ticks", 0)])
def test_wrong_settings_are_named(tmp_path, field, value):
    with pytest.raises(ConfigError, match=f"RecordConfig.{field}"):
        config(tmp_path, **{field: value})


def typed(*texts):
    texts = list(texts)
    return lambda: texts.pop(0) if texts else ""


def test_keys_are_steps_and_wishes(arm):
    pilot = KeyboardPilot(arm.spec, typed("wwww", "w", "ra", " ", "", "x"))
    seen = arm.observe(with_images=False)
    pilot.start(seen)
    step = 0.5 * arm.spec.max_step_m
    was_open = float(seen.state[4] > 0.5 * arm.spec.gripper_max_width_m)
    assert pilot.action(seen) == pytest.approx([step, 0, 0, 0, was_open])
    assert pilot.action(seen) == pytest.approx([0, step, step, 0, was_open])
    assert pilot.action(seen)[4] == 1.0 - was_open
    assert pilot.action(seen)[4] == 1.0 - was_open
    assert pilot.wish() is Wish.GO_ON
    pilot.action(seen)
    assert pilot.wish() is Wish.DISCARD
    assert pilot.wish() is Wish.GO_ON


def js(kind, number, value):
    return struct.pack("<IhBB", 0, value, kind, number)


@pytest.fixture
def pad(tmp_path, arm):
    path = tmp_path / "js0"
    os.mkfifo(path)
    holder = os.open(path, os.O_RDWR)
    pilot = GamepadPilot(arm.spec, path)
    pilot.start(arm.observe(with_images=False))
    yield pilot, holder
    pilot.close()
    if holder is not None:
        os.close(holder)


def test_a_gamepad_moves_only_while_its_shoulder_button_is_held(arm, pad):
    pilot, wire = pad
    seen = arm.observe(with_images=False)
    os.write(wire, js(2, 1, -32767))
    assert not pilot.action(seen)[:4].any()
    os.write(wire, js(1, 4, 1))
    assert pilot.action(seen)[0] == pytest.approx(0.5 * arm.spec.max_step_m)
    os.write(wire, js(1, 4, 0))
    assert not pilot.action(seen)[:4].any()


def test_gamepad_buttons_and_the_dead_zone(arm, pad):
    pilot, wire = pad
    seen = arm.observe(with_images=False)
    os.write(wire, js(1, 4, 1) + js(2, 0, 3000) + js(1, 0, 1) + js(1, 7, 1))
    action = pilot.action(seen)
    assert not action[:4].any(), "3000 of 32767 is a stick at rest"
    assert action[4] == 0.0, "A closes the gripper, which was open"
    assert pilot.wish() is Wish.KEEP


def test_the_state_that_a_pad_reports_when_it_is_opened_presses_nothing(arm, pad):
    pilot, wire = pad
    os.write(wire, js(0x81, 0, 1) + js(0x81, 7, 1))
    assert pilot.action(arm.observe(with_images=False))[4] == 1.0
    assert pilot.wish() is Wish.GO_ON


def test_a_missing_gamepad_is_named(arm, tmp_path):
    with pytest.raises(RobotError, match=r"no gamepad at .*js9 \(No such file"):
        GamepadPilot(arm.spec, tmp_path / "js9").start(arm.observe(with_images=False))


def test_an_episode_begins_with_the_first_motion(arm, tmp_path):
    """A person sets the scene first; those frames taught a policy to stand still."""
    still = np.array((0, 0, 0, 0, 1), np.float32)
    pilot = ScriptPilot([([still] * 7 + [UP] * 5, Wish.KEEP), ([still] * 3 + [UP] * 4, Wish.KEEP)])
    record(arm, pilot, config(tmp_path), clock=arm.clock)
    dataset = LeRobotDataset(tmp_path / "data")
    assert [len(dataset.episode(index)) for index in range(2)] == [5, 4]


def test_a_gripper_that_closes_begins_an_episode_too(arm):
    still, closed = np.array((0, 0, 0, 0, 1), np.float32), np.zeros(5, np.float32)
    report = steer(arm, ScriptPilot([([still] * 4 + [closed] * 3, Wish.KEEP)]), waits=True, clock=arm.clock)
    assert report.ticks == 3


def test_setting_the_scene_takes_no_time_of_the_episode(arm):
    still = np.array((0, 0, 0, 0, 1), np.float32)
    pilot = ScriptPilot([([still] * 50 + [UP] * 50, Wish.KEEP)])
    report = steer(arm, pilot, waits=True, max_ticks=10, clock=arm.clock)
    assert (report.ticks, report.misses) == (10, 0)


def test_an_episode_without_motion_is_not_kept(arm, tmp_path):
    still = np.array((0, 0, 0, 0, 1), np.float32)
    said = []
    pilot = ScriptPilot([([still] * 3, Wish.KEEP), ([UP] * 4, Wish.KEEP), ([UP] * 4, Wish.KEEP)])
    report = record(arm, pilot, config(tmp_path), clock=arm.clock, say=said.append)
    assert (report.kept, report.is_complete) == (2, True)
    assert "nothing was moved" in said[0]
