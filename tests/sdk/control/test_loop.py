"""The loop on a fake clock: deadlines, misses, holds, and that it always brings the robot to a stop."""

import math

import numpy as np
import pytest

from roboalign.sdk.control import ControlLoop, FakeClock, LoopReport, MonotonicClock, SimClock, Tick
from roboalign.sdk.errors import ConfigError, DataError, RobotError
from roboalign.sdk.robot import Robot
from roboalign.sdk.types import ActionChunk, Applied, Observation


class StubRobot:
    """Writes down its commands with the clock's time; `sim` lets a period pass in each, as a simulation does."""

    def __init__(self, spec, clock: FakeClock, is_sim: bool = False) -> None:
        self.spec, self.clock, self.is_sim = spec, clock, is_sim
        self.log: list[tuple[str, float]] = []
        self.is_stopped = False
        self.broken: dict[str, Exception] = {}

    def connect(self, *, rearm: bool = False) -> None: ...

    def observe(self, instruction: str = "", with_images: bool = True) -> Observation:
        self._maybe_raise("observe")
        state, joints = np.zeros(5, np.float32), np.zeros(3, np.float32)
        time_s = self.clock.now()
        return Observation(images={}, state=state, joint_pos_rad=joints, instruction=instruction, time_s=time_s)

    def act(self, action) -> Applied:
        reasons = ("dx_m: step above 0.04",) if abs(action[0]) > 0.04 else ()
        return self._command("act", action, reasons)

    def hold(self) -> Applied:
        return self._command("hold", np.zeros(5, np.float32), ("hold",))

    def park(self) -> None: ...

    def estop(self) -> None:
        self.is_stopped = True

    def disconnect(self) -> None: ...

    def _command(self, kind: str, action, reasons: tuple[str, ...]) -> Applied:
        self._maybe_raise(kind)
        self.log.append((kind, round(self.clock.now(), 6)))
        if self.is_sim:
            self.clock.advance(0.1)
        return Applied(requested=action, sent=action, joint_target_rad=np.zeros(3, np.float32), reasons=reasons)

    def _maybe_raise(self, kind: str) -> None:
        if kind in self.broken:
            raise self.broken[kind]


class StubPolicy:
    """Answers chunks of `horizon` actions after `latency_s` of the fake clock."""

    def __init__(self, clock: FakeClock, *, horizon: int = 4, latency_s: float = 0.0, answer=None) -> None:
        self.clock, self.horizon, self.latency_s, self.answer = clock, horizon, latency_s, answer
        self.seen: list[Observation] = []
        self.num_resets = 0

    def reset(self) -> None:
        self.num_resets += 1

    def act(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        self.clock.advance(self.latency_s)
        if self.answer is not None:
            return self.answer()
        return ActionChunk(actions=np.full((self.horizon, 5), 0.01), rate_hz=10.0, source="flow")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(100.0)


@pytest.fixture
def robot(spec, clock) -> StubRobot:
    return StubRobot(spec, clock)


def run(robot: StubRobot, policy: StubPolicy, max_ticks: int = 8, **options) -> LoopReport:
    return ControlLoop(robot, policy, robot.clock, **options).run("push the cup", max_ticks=max_ticks)


def test_the_stub_is_a_robot(robot):
    assert isinstance(robot, Robot)


def test_actions_are_sent_at_absolute_deadlines(robot, clock):
    report = run(robot, StubPolicy(clock))
    assert robot.log[:8] == [("act", round(100 + 0.1 * index, 6)) for index in range(8)]
    assert (report.ticks, report.misses, report.holds, report.changed) == (8, 0, 0, 0)
    assert report.stopped_by == "max_ticks"


def test_a_new_chunk_is_asked_for_when_the_last_is_used_up(robot, clock):
    policy = StubPolicy(clock, horizon=4)
    report = run(robot, policy, max_ticks=9)
    assert report.chunks == len(policy.seen) == 3
    assert [seen.time_s for seen in policy.seen] == pytest.approx([100.0, 100.4, 100.8])
    assert policy.seen[0].instruction == "push the cup"
    assert policy.num_resets == 1


def test_replan_every_uses_only_the_head_of_each_chunk(robot, clock):
    policy = StubPolicy(clock, horizon=4)
    ticks: list[Tick] = []
    run(robot, policy, replan_every=2, on_tick=ticks.append)
    assert len(policy.seen) == 4
    assert [tick.step for tick in ticks] == [0, 1] * 4


def test_latency_within_a_period_is_lateness_but_no_miss(robot, clock):
    report = run(robot, StubPolicy(clock, latency_s=0.08))
    assert report.misses == 0
    assert report.p99_lateness_s == pytest.approx(0.08)
    assert report.p50_lateness_s == 0.0
    assert [time_s for _, time_s in robot.log[:3]] == [100.08, 100.1, 100.2]


def test_latency_beyond_a_period_is_missed_deadlines_and_no_burst(robot, clock):
    """250 ms at 10 Hz: the first command goes out at 0.25, those due at 0.1 and 0.2 are missed, the next is at 0.3."""
    report = run(robot, StubPolicy(clock, latency_s=0.25), max_ticks=4)
    assert [time_s for _, time_s in robot.log[:4]] == [100.25, 100.3, 100.4, 100.5]
    assert report.misses == 2
    assert report.p99_lateness_s > 0.2


def test_lateness_does_not_add_up(robot, clock):
    ticks: list[Tick] = []

    def slow_listener(tick: Tick) -> None:
        ticks.append(tick)
        clock.advance(0.09)

    report = run(robot, StubPolicy(clock), max_ticks=50, on_tick=slow_listener)
    assert report.misses == 0
    assert ticks[-1].time_s == pytest.approx(104.9)


def test_a_simulation_whose_time_moves_with_act_is_never_late(spec, clock):
    robot = StubRobot(spec, clock, is_sim=True)
    sim_clock = SimClock(clock.now, robot.hold)
    report = ControlLoop(robot, StubPolicy(clock), sim_clock).run("go", max_ticks=300)
    assert (report.misses, report.holds) == (0, 0)
    assert report.p99_lateness_s < 1e-9
    assert [kind for kind, _ in robot.log] == ["act"] * 300 + ["hold"]


def test_real_time_keeps_its_rate(robot, clock):
    """Generous: it must not run ahead, and must not stretch by what each tick takes."""
    report = ControlLoop(robot, StubPolicy(clock), MonotonicClock()).run("go", max_ticks=6)
    assert report.duration_s >= 0.5
    assert report.ticks == 6


def test_the_simulated_panda_runs_in_simulated_time(clock):
    pytest.importorskip("pybullet")
    sim = pytest.importorskip("roboalign.sdk.sim")
    robot = sim.SimRobot()
    robot.connect()
    sim_clock = SimClock(lambda: robot.observe(with_images=False).time_s, robot.hold)
    ticks: list[Tick] = []
    actions = np.tile(np.array((0.0, 0.005, 0.0, 0.0, 1.0), np.float32), (8, 1))
    policy = StubPolicy(clock, answer=lambda: ActionChunk(actions=actions, rate_hz=10.0, source="expert"))
    report = ControlLoop(robot, policy, sim_clock, on_tick=ticks.append).run("go", max_ticks=16)
    moved_m = robot.observe(with_images=False).state[1] - ticks[0].observation.state[1]
    robot.disconnect()
    assert (report.ticks, report.misses, report.holds, report.changed) == (16, 0, 0, 0)
    assert report.duration_s == pytest.approx(1.7, abs=0.01)
    assert moved_m == pytest.approx(0.08, abs=0.01)


def test_a_policy_that_holds_makes_the_robot_hold_with_its_reason(robot, clock):
    policy = StubPolicy(clock, answer=lambda: ActionChunk.hold("short: 12 of 40 coefficients", rate_hz=10.0))
    report = run(robot, policy, max_ticks=5)
    assert report.holds == 5
    assert dict(report.hold_reasons) == {"policy holds: short: 12 of 40 coefficients": 5}
    assert {kind for kind, _ in robot.log} == {"hold"}


def test_a_policy_that_raises_makes_the_robot_hold_and_the_loop_go_on(robot, clock):
    answers = iter([ValueError("no tokens"), None])

    def answer() -> ActionChunk:
        error = next(answers, None)
        if error is not None:
            raise error
        return ActionChunk(actions=np.zeros((4, 5)), rate_hz=10.0, source="flow")

    report = run(robot, StubPolicy(clock, answer=answer), max_ticks=3)
    assert [kind for kind, _ in robot.log[:3]] == ["hold", "act", "act"]
    assert dict(report.hold_reasons) == {"policy raised ValueError: no tokens": 1}


def test_an_answer_that_is_no_chunk_is_a_hold(robot, clock):
    report = run(robot, StubPolicy(clock, answer=lambda: np.zeros((8, 5))), max_ticks=2)
    assert dict(report.hold_reasons) == {"policy returned ndarray, expected ActionChunk": 2}


def test_a_sensor_that_fails_is_a_hold(robot, clock):
    robot.broken["observe"] = DataError("observation state is not finite in tool_x_m")
    report = run(robot, StubPolicy(clock), max_ticks=2)
    assert report.holds == 2
    assert "tool_x_m" in next(iter(report.hold_reasons))


def test_actions_from_an_old_observation_are_dropped(robot, clock):
    """The policy takes longer than the watchdog allows: every chunk is stale when it arrives."""
    report = run(robot, StubPolicy(clock, latency_s=0.7), max_ticks=3, watchdog_s=0.5)
    assert {kind for kind, _ in robot.log} == {"hold"}
    assert dict(report.hold_reasons) == {"action too old: over 0.5 s since its observation": 3}


def test_the_tail_of_a_long_chunk_runs_into_the_watchdog(robot, clock):
    report = run(robot, StubPolicy(clock, horizon=8), max_ticks=8, watchdog_s=0.55)
    assert report.holds == 1
    assert report.max_age_s == pytest.approx(0.5)


def test_too_many_holds_in_a_row_end_the_run_with_the_reason(robot, clock):
    policy = StubPolicy(clock, answer=lambda: ActionChunk.hold("lost", rate_hz=10.0))
    report = run(robot, policy, max_ticks=100, max_holds=7)
    assert report.ticks == 7
    assert report.stopped_by == "holds: policy holds: lost"


def test_until_ends_the_run(robot, clock):
    loop = ControlLoop(robot, StubPolicy(clock), clock)
    report = loop.run("go", max_ticks=100, until=lambda: len(robot.log) >= 5)
    assert (report.ticks, report.stopped_by) == (5, "until")


def test_what_the_limiter_changed_is_counted(robot, clock):
    chunk = ActionChunk(actions=np.array([[0.5, 0, 0, 0, 1], [0.01, 0, 0, 0, 1]]), rate_hz=10.0, source="flow")
    report = run(robot, StubPolicy(clock, answer=lambda: chunk), max_ticks=4)
    assert report.changed == 2
    assert dict(report.change_reasons) == {"dx_m: step above 0.04": 2}


def test_the_robot_holds_when_the_run_is_over(robot, clock):
    run(robot, StubPolicy(clock), max_ticks=3)
    assert [kind for kind, _ in robot.log] == ["act", "act", "act", "hold"]


def test_ticks_tell_age_and_chunk(robot, clock):
    ticks: list[Tick] = []
    run(robot, StubPolicy(clock, latency_s=0.02), max_ticks=3, on_tick=ticks.append)
    assert [tick.age_s for tick in ticks] == pytest.approx([0.02, 0.1, 0.2])
    assert ticks[2].chunk is ticks[0].chunk
    assert ticks[0].observation.instruction == "push the cup"


def test_a_hold_has_no_age_and_no_step(robot, clock):
    ticks: list[Tick] = []
    policy = StubPolicy(clock, answer=lambda: ActionChunk.hold("lost", rate_hz=10.0))
    run(robot, policy, max_ticks=1, on_tick=ticks.append)
    assert math.isnan(ticks[0].age_s)
    assert ticks[0].step == -1


def test_a_chunk_for_another_rate_is_refused_after_bringing_the_robot_to_a_stop(robot, clock):
    chunk = ActionChunk(actions=np.zeros((4, 5)), rate_hz=20.0, source="flow")
    with pytest.raises(ConfigError, match="20 Hz but the loop runs at 10 Hz"):
        run(robot, StubPolicy(clock, answer=lambda: chunk))
    assert robot.log == [("hold", 100.0)]


@pytest.mark.parametrize("error", [RuntimeError("listener"), KeyboardInterrupt()])
def test_whatever_goes_wrong_the_robot_holds(robot, clock, error):
    def listener(tick: Tick) -> None:
        raise error

    with pytest.raises(type(error)):
        run(robot, StubPolicy(clock), on_tick=listener)
    assert robot.log[-1][0] == "hold"
    assert not robot.is_stopped


def test_a_robot_that_cannot_hold_is_stopped_and_the_first_error_is_told(robot, clock):
    robot.broken = {"act": RobotError("bus lost"), "hold": RobotError("still lost")}
    with pytest.raises(RobotError, match="bus lost"):
        run(robot, StubPolicy(clock))
    assert robot.is_stopped


def test_a_second_run_starts_afresh(robot, clock):
    policy = StubPolicy(clock, horizon=8)
    loop = ControlLoop(robot, policy, clock)
    loop.run("one", max_ticks=3)
    loop.run("two", max_ticks=3)
    assert [seen.instruction for seen in policy.seen] == ["one", "two"]
    assert policy.num_resets == 2


def test_the_number_of_distinct_reasons_is_bounded(robot, clock):
    policy = StubPolicy(clock, answer=lambda: ActionChunk.hold(f"try {len(policy.seen)}", rate_hz=10.0))
    report = run(robot, policy, max_ticks=100, max_holds=1000)
    assert report.hold_reasons["other"] == 68
    assert report.holds == 100


@pytest.mark.parametrize(
    ("option", "value"),
    [("rate_hz", 0.0), ("rate_hz", math.nan), ("replan_every", 0), ("watchdog_s", -1), ("max_holds", 0)],
)
def test_options_that_make_no_sense_are_refused(robot, clock, option, value):
    with pytest.raises(ConfigError, match=option):
        ControlLoop(robot, StubPolicy(clock), clock, **{option: value})


def test_no_ticks_is_refused(robot, clock):
    with pytest.raises(ConfigError, match="max_ticks is 0"):
        run(robot, StubPolicy(clock), max_ticks=0)


def test_the_clock_and_rate_have_defaults(robot, clock):
    loop = ControlLoop(robot, StubPolicy(clock))
    assert loop.rate_hz == 10.0
    assert loop.clock.now() > 0
