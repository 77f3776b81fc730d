"""The loop beside a policy's process, on a clock that the test moves: deadlines, taking over, reasons to hold."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from tests.sdk.control.fake_process import Bench

from roboalign.sdk.control.records import Reason
from roboalign.sdk.control.sight import Sight
from roboalign.sdk.control.watchdog import WatchSettings
from roboalign.sdk.errors import CameraTimeout, ConfigError, LimitViolation, RobotError, RobotTimeout
from roboalign.sdk.types import ActionChunk


@pytest.fixture
def bench(spec):
    bench = Bench(spec)
    yield bench
    bench.close()


def test_commands_go_out_at_absolute_deadlines_while_the_policy_computes(bench):
    report = bench.run(30)
    times = [time_s for _, time_s in bench.robot.log[:30]]
    assert times == [round(100 + 0.1 * index, 6) for index in range(30)]
    assert (report.ticks, report.misses, report.clock_jumps) == (30, 0, 0)
    assert report.rate_hz == pytest.approx(30 / 2.9, rel=0.01)


def test_each_question_is_announced_before_the_robot_is_read(bench):
    read = bench.robot.observe
    seen = []
    bench.robot.observe = lambda *args, **more: seen.append(len(bench.process.announced)) or read(*args, **more)
    bench.run(30)
    assert len(bench.process.asked) > 3
    assert bench.process.announced == bench.process.asked
    assert seen == [number + 1 for number in range(len(bench.process.asked))]


def test_an_announcement_comes_before_the_command_where_there_is_time(bench):
    """The policy's process has half a millisecond more to wake up, and no command is late for it."""
    announce, sent = bench.process.announce, []
    bench.process.announce = lambda: sent.append(len(bench.robot.log)) or announce()
    report = bench.run(30, early_s=5e-4)
    asked, announced = bench.process.asked[1:], bench.process.announced[1:]
    assert len(asked) > 3
    assert announced == pytest.approx([time_s - 5e-4 for time_s in asked])
    assert all(
        bench.robot.log[number][1] == pytest.approx(time_s) for number, time_s in zip(sent[1:], asked, strict=True)
    )
    assert report.lateness_s.max == pytest.approx(0.0, abs=1e-9)


def test_the_arm_waits_for_the_first_answer_and_never_again(bench):
    report = bench.run(40)
    assert report.reasons == {"warming": 2}
    assert report.moved == 38
    assert report.skipped > 0


@pytest.mark.parametrize("commanded", [None, np.array([0.4, 0.1, 0.2, 0.3], np.float32)])
def test_the_policy_is_shown_where_the_tool_was_sent_where_the_robot_says_so(bench, commanded):
    bench.robot.commanded = commanded
    bench.run(4)
    shown = Sight(bench.process.channels, "lift").look().commanded
    assert shown is None if commanded is None else np.array_equal(shown, commanded)


def test_a_new_chunk_begins_behind_the_actions_sent_since_its_observation(bench):
    """Two actions before the end the policy is asked; one more is sent until its answer is there."""
    bench.run(16)
    assert bench.moves()[:14] == [(1, step) for step in range(7)] + [(2, step) for step in range(1, 7)] + [(3, 1)]


def test_what_the_arm_did_not_do_is_not_skipped(bench):
    """While the arm holds for an answer the plan does not move on: displacements count from where the arm is."""
    bench.run(20, is_ahead=False)
    assert all(0 in [step for chunk, step in bench.moves() if chunk == number] for number in (1, 2))


def test_asking_when_a_chunk_is_used_up_holds_with_the_reason_exhausted(bench):
    report = bench.run(30, is_ahead=False)
    assert report.reasons["exhausted"] >= 3
    assert report.skipped == 0


def test_of_a_slow_policys_chunks_at_least_half_is_used(spec):
    bench = Bench(spec, latency_s=1.05)
    report = bench.run(60)
    assert bench.moves()[8:12] == [(2, step) for step in range(4, 8)]
    assert report.reasons["exhausted"] > 5
    bench.close()


def test_the_policy_is_asked_earlier_once_it_takes_longer(bench):
    bench.process.at(2.0, lambda: setattr(bench.process, "latency_s", 0.35))
    assert bench.run(100).reasons["exhausted"] <= 3, "once, until it is known"


def test_a_killed_policy_is_held_within_the_watch_period_then_parked(bench):
    bench.process.at(1.035, lambda: setattr(bench.process, "is_alive", False))
    report = bench.run(200, park_after_s=2.0)
    held_s = next(time_s for kind, time_s in bench.robot.log if kind == "hold" and time_s > 101.035)
    assert held_s - 101.035 <= 0.02
    assert all(kind == "hold" for kind, time_s in bench.robot.log if time_s > 101.035)
    assert report.interrupted == 1
    assert report.stopped_by == "watchdog: the policy's process ended"
    assert report.ticks < 40


def test_a_silent_policy_is_held_and_goes_on_where_it_was(bench):
    bench.process.at(1.035, lambda: setattr(bench.process, "is_beating", False))
    bench.process.at(1.735, lambda: setattr(bench.process, "is_beating", True))
    report = bench.run(40)
    held_s = next(time_s for kind, time_s in bench.robot.log if kind == "hold" and time_s > 101.035)
    assert held_s - 101.035 <= 0.1
    assert report.reasons["watchdog"] >= 5
    assert report.notes["watchdog: the policy's process is silent"] >= 5
    assert report.chunks_refused == {}
    moves = bench.moves()
    assert all(later[0] > now[0] or later[1] == now[1] + 1 for now, later in pairwise(moves))


def test_what_a_policy_saw_before_a_long_silence_is_too_old_to_act_on(bench):
    bench.process.at(1.035, lambda: setattr(bench.process, "is_beating", False))
    bench.process.at(4.035, lambda: setattr(bench.process, "is_beating", True))
    report = bench.run(80)
    assert report.notes["watchdog: the action's observation is over 2 s away"] >= 1
    assert bench.robot.log[-2][0] == "act", "it went on with a fresh observation"


def test_a_policy_that_never_answers_is_given_up(bench):
    bench.process.at(1.0, lambda: setattr(bench.process, "latency_s", 1e9))
    report = bench.run(400, park_after_s=2.0, watch=WatchSettings(answer_timeout_s=3.0))
    assert report.reasons["exhausted"] >= 15
    assert report.stopped_by.startswith("exhausted")


def test_an_answer_that_takes_too_long_is_the_watchdogs(bench):
    bench.process.at(1.0, lambda: setattr(bench.process, "latency_s", 1e9))
    report = bench.run(400, park_after_s=20.0, watch=WatchSettings(answer_timeout_s=3.0))
    assert report.notes["watchdog: the policy has not answered for 3 s"] > 100


def test_a_chunk_that_is_not_finite_never_moves_the_arm(bench):
    def spoil():
        row = bench.channels.chunks.begin()
        np.copyto(row, bench.channels.chunks._records[bench.channels.chunks.newest % bench.channels.chunks.slots])
        row["actions"][0][3, 1] = np.nan
        bench.channels.chunks.commit(is_checked=True)

    bench.process.spoil = spoil
    report = bench.run(20)
    assert report.moved == 0
    assert report.reasons["limiter"] > 10
    assert set(report.chunks_refused) == {"the chunk is not finite"}


def test_a_torn_chunk_is_refused(bench):
    def spoil():
        ring = bench.channels.chunks
        ring._records[ring.newest % ring.slots]["actions"][0][0, 0] += 0.001

    bench.process.spoil = spoil
    report = bench.run(20)
    assert report.moved == 0
    assert set(report.chunks_refused) == {"overwritten or torn"}


def test_what_the_policy_says_when_it_holds_is_told(bench):
    bench.process.answer = lambda count: ActionChunk.hold("the thought never ended", rate_hz=10.0)
    report = bench.run(20)
    assert report.reasons["policy"] >= 15
    assert report.notes["policy: the thought never ended"] == report.reasons["policy"]


def test_a_chunk_for_another_rate_ends_the_run(bench):
    bench.process.answer = lambda count: dataclasses.replace(bench.process.number(count), rate_hz=20.0)
    with pytest.raises(ConfigError, match="chunk is for 20 Hz but the loop runs at 10 Hz"):
        bench.run(20)
    assert bench.robot.log[-1][0] == "hold"


def test_stop_is_latched(bench):
    bench.process.at(1.035, lambda: bench.channels.board["stop"].__setitem__(0, 1))
    bench.process.at(1.5, lambda: bench.channels.board["stop"].__setitem__(0, 0))
    with pytest.raises(LimitViolation, match="stop was pressed"):
        bench.run(60)
    late = [kind for kind, time_s in bench.robot.log if time_s > 101.035]
    assert set(late) == {"hold"}


def test_stop_holds_for_as_long_as_it_takes(bench):
    bench.process.at(1.035, lambda: bench.channels.board["stop"].__setitem__(0, 1))
    report = bench.run(100, park_after_s=1.0)
    assert report.ticks == 100, "an arm that somebody stopped does not park by itself"
    assert report.reasons["stopped"] >= 85


def test_a_camera_that_gives_nothing_new_is_named(bench):
    bench.process.at(1.0, lambda: setattr(bench.robot, "age_s", 0.6))
    bench.process.at(2.0, lambda: setattr(bench.robot, "age_s", 0.0))
    report = bench.run(40)
    assert 9 <= report.reasons["stale_camera"] <= 11
    assert bench.robot.log[-2][0] == "act"


@pytest.mark.parametrize(
    ("error", "reason"),
    [(CameraTimeout("camera 'front': old"), "stale_camera"), (RobotTimeout("no joints"), "disconnected")],
)
def test_a_robot_that_cannot_be_read_is_held_until_it_can(bench, error, reason):
    bench.process.at(1.0, lambda: bench.robot.broken.update(observe=error))
    bench.process.at(2.0, lambda: bench.robot.broken.clear())
    report = bench.run(40)
    assert report.reasons[reason] >= 5
    assert report.notes[f"{reason}: {error}"] == report.reasons[reason]
    assert bench.robot.log[-2][0] == "act"


def test_an_error_of_the_robot_stops_it_and_is_written_down(bench):
    bench.process.at(1.0, lambda: bench.robot.broken.update(act=RobotError("unplugged"), hold=RobotError("unplugged")))
    with pytest.raises(RobotError, match="unplugged"):
        bench.run(40)
    assert bench.robot.estops == 1
    last = np.zeros(1, bench.channels.ticks.record)
    bench.channels.ticks.copy(last)
    assert Reason.of(int(last["reason"][0])) is Reason.DISCONNECTED
    assert bytes(last["note"][0]) == b"unplugged"
    assert bench.loop.report().stopped_by == "RobotError: unplugged"


def test_an_action_that_the_limiter_refuses_is_the_limiters_and_used_up(bench):
    bench.robot.refuse = lambda action: ("hold: target out of reach",) if action[1] > 0.0025 else ()
    report = bench.run(30)
    assert report.reasons["limiter"] > 3
    assert report.notes["limiter: target out of reach"] == report.reasons["limiter"]
    assert report.chunks >= 3


def test_what_the_limiter_changes_is_counted(bench):
    bench.robot.refuse = lambda action: ("dx_m: below the workspace",)
    report = bench.run(20)
    assert report.changes == {"dx_m: below the workspace": report.moved}


def test_a_command_outside_the_limits_stops_the_robot_for_good(bench):
    bench.process.at(1.0, lambda: bench.robot.target.__setitem__(0, 50.0))
    with pytest.raises(LimitViolation, match="outside its joint limits"):
        bench.run(40)
    assert bench.robot.estops >= 1
    with pytest.raises(LimitViolation, match="the robot was stopped"):
        bench.guard.act(np.zeros(5, np.float32))


def test_a_command_that_leaps_stops_the_robot_for_good(bench):
    reach = bench.robot.spec.joint_max_speed_rad_s[0] * 2 / bench.robot.spec.control_rate_hz
    bench.process.at(1.0, lambda: bench.robot.target.__setitem__(0, reach * 1.05))
    with pytest.raises(LimitViolation, match="further from the last one"):
        bench.run(40)


def test_after_a_dead_camera_nothing_is_done_that_was_asked_before(bench):
    bench.process.latency_s = 0.55
    bench.process.at(1.31, lambda: setattr(bench.robot, "age_s", 0.6))
    bench.process.at(1.5, lambda: setattr(bench.robot, "age_s", 0.0))
    report = bench.run(60)
    assert "the chunk answers what was seen before the arm held" in report.chunks_refused
    assert report.reasons["stale_camera"] >= 1
    assert max(time_s for kind, time_s in bench.robot.log if kind == "act") > 104.0


def test_a_stall_misses_deadlines_and_does_not_catch_up(bench):
    bench.process.at(1.05, lambda: bench.process.advance(0.5))
    report = bench.run(30)
    assert report.misses == 4
    times = [time_s for _, time_s in bench.robot.log[:30]]
    assert min(np.diff(times)) > 0.04


def test_a_clock_that_goes_back_an_hour_does_not_stop_the_loop(bench):
    bench.process.at(1.05, lambda: setattr(bench.process, "_now_s", bench.process._now_s - 3600.0))
    report = bench.run(40)
    assert (report.ticks, report.clock_jumps) == (40, 1)
    assert report.moved > 25
    assert report.reasons["watchdog"] >= 1


def test_a_clock_that_leaps_an_hour_ahead_holds_and_goes_on(bench):
    bench.process.at(1.05, lambda: bench.process.advance(3600.0))
    report = bench.run(40)
    assert report.clock_jumps == 1
    assert report.reasons["watchdog"] >= 1
    assert bench.robot.log[-2][0] == "act"


def test_an_action_chosen_early_is_sent_at_its_deadline(bench):
    report = bench.run(30, early_s=5e-4)
    assert [time_s for _, time_s in bench.robot.log[:30]] == [round(100 + 0.1 * index, 6) for index in range(30)]
    assert (report.misses, report.reasons) == (0, {"warming": 2})
    assert report.lateness_s.max == pytest.approx(0.0, abs=1e-9)


def test_a_rate_above_the_robots_is_refused(bench):
    with pytest.raises(ConfigError, match="at most the robot's 10"):
        bench.run(1, rate_hz=20.0)


def test_the_joints_of_chunks_are_measured(bench):
    report = bench.run(60)
    assert report.joints.count == report.chunks - 1
    assert report.joints.max == pytest.approx(0.2 * 0.1 / 0.04, rel=1.0)
    assert report.within.count == report.moved - report.chunks
