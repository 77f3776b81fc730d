"""What the arm does when something breaks: through the real bus and codec, on a virtual arm in memory, without time."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from tests.drivers.arm.rig import COUNT_RAD, MIDDLE, Rig, make_rig

from roboalign.drivers.arm.messages import Command, Order, decode_command
from roboalign.drivers.arm.states import State
from roboalign.drivers.virtual.bullet import BulletPlant
from roboalign.sdk.errors import LimitViolation, RobotError

FORWARD = np.array((0.006, 0.004, 0.002, 0.0, 1.0), np.float32)
CYCLE_S = 0.01


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """An arm that follows commands, at its home position."""
    return started(make_rig(tmp_path))


def started(rig: Rig) -> Rig:
    """Connects an arm that holds already, so that no test waits for a soft start."""
    place_home(rig)
    for servo in rig.virtual.servos:
        servo.write(40 if servo.model.protocol == "feetech" else 64, b"\x01")
    rig.robot.connect()
    return rig


def place_home(rig: Rig) -> None:
    for name, angle in zip(rig.parts.spec.joint_names, rig.parts.spec.home_joint_pos_rad, strict=True):
        rig.plant.place(name, angle)
    rig.virtual.settle()


def hand_m(rig: Rig) -> float:
    """Height of the tool above the table, as the joints really are."""
    joints = [state.position_rad for state in rig.plant.states()[:-1]]
    return float(rig.parts.kinematics.forward(joints)[2, 3])


def run_until(rig: Rig, is_over: Callable[[], bool], limit_s: float = 10.0) -> float:
    """Runs cycles until something holds, and returns how long it took."""
    start_s = rig.clock.now()
    while not is_over():
        assert rig.clock.now() - start_s < limit_s, rig.core.machine.history[-5:]
        rig.link.wait(CYCLE_S)
    return rig.clock.now() - start_s


def in_motion(rig: Rig) -> None:
    """Leaves the arm in the middle of a motion."""
    for _ in range(3):
        rig.robot.act(FORWARD)
    goal = rig.core.motion.goal + 0.3
    rig.link.ask(Command(order=Order.GOAL, motors_rad=tuple(goal.tolist()), within_s=0.3))
    rig.link.wait(0.1)
    assert not rig.core.motion.is_at_rest


@pytest.mark.parametrize(
    ("kind", "values", "state", "reason", "limp"),
    [
        ("dead", {"id": 3}, State.HOLD, "elbow_flex (id 3) cannot be read: timeout", ()),
        ("overload", {"id": 3}, State.FAULT, "elbow_flex (id 3): overload", ()),
        ("hot", {"id": 3, "celsius": 67.0}, State.PARKING, "elbow_flex (id 3): 67 C", ()),
        ("hot", {"id": 3, "celsius": 90.0}, State.FAULT, "elbow_flex (id 3): too hot by its own limit", ()),
        ("brownout", {"id": 3, "delay_s": 0.05}, State.HOLD, "elbow_flex (id 3) cannot be read", (2,)),
        ("voltage", {"volts": 5.0}, State.FAULT, "supply fell from 12.0 to 5.0 V", ()),
    ],
)
def test_a_servo_that_fails_in_motion_is_told_within_two_cycles_and_the_others_keep_torque(
    rig: Rig, kind: str, values: dict[str, object], state: State, reason: str, limp: tuple[int, ...]
) -> None:
    in_motion(rig)
    rig.suffer(kind, **values)
    for _ in range(2):
        rig.core.step()
        rig.clock.advance(CYCLE_S)
    assert rig.core.machine.state is state
    assert reason in rig.core.machine.reason
    assert [i for i, on in enumerate(rig.torques()) if not on] == list(limp)


def test_a_servo_that_restarted_gets_no_goal_that_would_switch_it_on(rig: Rig) -> None:
    in_motion(rig)
    rig.suffer("brownout", id=3, delay_s=0.02)
    while rig.core.machine.state is not State.FAULT:
        assert not rig.link.ask(Command(order=Order.HOLD)).error
        rig.link.wait(0.05)
    assert "elbow_flex (id 3) lost its torque: it restarted" in rig.core.machine.reason
    rig.link.wait(0.3)
    assert rig.torques() == [True, True, False, True, True, True]
    with pytest.raises(RobotError, match=r"elbow_flex \(id 3\) lost its torque.*rearm"):
        rig.robot.act(FORWARD)


def test_a_fault_is_left_by_an_explicit_rearm_alone(rig: Rig) -> None:
    in_motion(rig)
    rig.suffer("overload", id=2)
    rig.link.wait(0.05)
    with pytest.raises(RobotError, match="look at it"):
        rig.robot.connect()
    rig.robot.connect(rearm=True)
    rig.robot.act(FORWARD)
    assert rig.core.machine.state is State.ACTIVE


@pytest.mark.parametrize("kind", ["dead", "overload"])
def test_a_failing_servo_does_not_keep_the_others_from_being_parked_and_let_go(rig: Rig, kind: str) -> None:
    in_motion(rig)
    rig.suffer(kind, id=3)
    rig.link.wait(0.05)
    with pytest.raises(RobotError, match="did not let go") if kind == "dead" else nullcontext():
        rig.robot.disconnect()
    assert rig.core.is_done
    parked = rig.parts.spec.park_joint_pos_rad
    off = [abs(state.position_rad - want) for state, want in zip(rig.plant.states(), parked, strict=False)]
    assert max(off[:2] + off[3:]) < 0.05
    assert rig.torques()[:2] + rig.torques()[3:] == [False] * 5


def test_a_servo_that_did_not_let_go_is_named(rig: Rig) -> None:
    rig.suffer("dead", id=3)
    with pytest.raises(RobotError, match=r"elbow_flex \(id 3\) did not let go"):
        rig.robot.disconnect()


@pytest.mark.parametrize("arm", ["so101", "koch"])
def test_without_commands_the_arm_holds_parks_and_lets_go_gently(tmp_path: Path, arm: str) -> None:
    rig = started(make_rig(tmp_path, arm))
    in_motion(rig)
    assert run_until(rig, lambda: rig.core.machine.state is State.HOLD) <= 0.06 + CYCLE_S
    held = hand_m(rig)
    assert run_until(rig, lambda: rig.core.machine.state is State.PARKING) <= 0.5
    assert hand_m(rig) > held - 0.02
    assert run_until(rig, lambda: rig.core._parking.phase.value == "let go") <= 2.6
    shares = []
    while rig.core.has_torque:
        shares.append(rig.core.torque.now[1])
        rig.link.wait(CYCLE_S)
    assert 0.9 <= len(shares) * CYCLE_S <= 1.1
    assert max(-np.diff(shares)) < 0.05
    assert rig.torques() == [False] * 6
    with pytest.raises(RobotError, match=r"arrived \(no command for 0.5 s\) and let go.*call connect"):
        rig.robot.act(FORWARD)


def test_a_dynamixel_stops_by_itself_when_its_owner_does_and_goes_on_with_it(tmp_path: Path) -> None:
    rig = started(make_rig(tmp_path, "koch"))
    in_motion(rig)
    assert rig.virtual.find(2).memory[98] == 5
    rig.clock.advance(0.3)
    rig.line.pass_time(rig.clock.now())
    assert rig.virtual.find(2).memory[98] == 0xFF
    rig.link.wait(0.05)
    assert rig.virtual.find(2).memory[98] == 5
    rig.robot.disconnect()
    assert rig.virtual.find(2).memory[98] == 0


def test_an_arm_that_was_let_go_has_its_torque_limits_back(rig: Rig) -> None:
    rig.robot.disconnect()
    assert [rig.word(number, 48) for number in range(1, 7)] == [1000] * 6


def check_kill(rig: Rig, moment_s: float) -> tuple[float, float, float]:
    """The policy acts at 10 Hz and is killed; judged by what the servos are told and how the joints move.

    Returns seconds until it held, seconds until it had parked, and how far the hand came down before that.
    """
    start_s, step = rig.clock.now(), 0
    while rig.clock.now() - start_s < moment_s - 0.1:
        rig.robot.act(FORWARD * math.cos(step))
        step += 1
    goal = rig.core.motion.goal + np.array((0.2, -0.2, 0.2, 0.2, 0.2, 0.1))
    rig.link.ask(Command(order=Order.GOAL, motors_rad=tuple(goal.tolist()), within_s=0.15))
    rig.link.wait(max(CYCLE_S, start_s + moment_s - rig.clock.now()))
    killed_s, height = rig.clock.now(), hand_m(rig)
    rig.core.lose_client()
    run_until(rig, lambda: rig.core.motion.is_at_rest and rig.core.machine.state is State.HOLD)
    held_s = rig.clock.now() - killed_s
    assert held_s <= 0.1
    lowest = height
    while rig.core.machine.state is not State.PARKING:
        lowest = min(lowest, hand_m(rig))
        rig.link.wait(CYCLE_S)
    assert lowest > height - 0.02
    parked = np.array(rig.parts.spec.park_joint_pos_rad)
    run_until(
        rig,
        lambda: bool(np.abs(np.array([state.position_rad for state in rig.plant.states()[:-1]]) - parked).max() < 0.05),
    )
    parked_s = rig.clock.now() - killed_s
    assert parked_s <= 3.0
    run_until(rig, lambda: rig.core.is_done)
    assert rig.torques() == [False] * 6
    return held_s, parked_s, height - lowest


@pytest.mark.parametrize("seed", range(3))
def test_when_the_policy_is_killed_the_arm_holds_parks_and_lets_go(rig: Rig, seed: int) -> None:
    check_kill(rig, float(np.random.default_rng(seed).uniform(0.2, 2.0)))


@pytest.mark.slow
@pytest.mark.parametrize("has_physics", [False, True])
def test_when_the_policy_is_killed_at_a_hundred_moments(tmp_path: Path, has_physics: bool) -> None:
    for seed in range(100 - 50 * has_physics):
        plant = BulletPlant().open() if has_physics else None
        rig = make_rig(tmp_path, plant=plant)
        rig.robot.connect()
        rig.robot.go_home()
        check_kill(rig, float(np.random.default_rng(seed).uniform(0.2, 2.0)))
        rig.plant.close()


def pressing_s(rig: Rig, index: int, is_pressed: Callable[[float], bool], step: np.ndarray) -> float:
    """Acts until a motor presses, and returns how long from then until its torque limit is lower."""
    before = rig.word(index + 1, 48)
    pressed_s = math.nan
    for _ in range(40):
        for _ in range(10):
            rig.link.wait(CYCLE_S)
            if math.isnan(pressed_s) and is_pressed(abs(rig.plant.states()[index].torque_share)):
                pressed_s = rig.clock.now()
            if rig.word(index + 1, 48) < 0.7 * before:
                return rig.clock.now() - pressed_s
        rig.link.ask(command_of(rig, step))
    raise AssertionError("its torque was not reduced")


def command_of(rig: Rig, step: np.ndarray) -> Command:
    goal = np.clip(rig.core.motion.goal + step, rig.core.motion.lower, rig.core.motion.upper)
    return Command(order=Order.GOAL, motors_rad=tuple(goal.tolist()), within_s=0.1)


def test_a_joint_pressed_against_an_obstacle_is_relieved_and_free_again_when_it_turns_back(rig: Rig) -> None:
    angle = rig.plant.states()[0].position_rad
    rig.suffer("block", joint="shoulder_pan", upper_rad=angle + 0.1)
    step = np.array((0.1, 0, 0, 0, 0, 0))
    assert pressing_s(rig, 0, lambda share: share > 0.4, step) <= 0.3
    rig.link.wait(0.3)
    assert rig.core.motion.goal[0] <= angle + 0.1 + 0.04
    assert any("shoulder_pan (id 1): pushes against something" in text for text in rig.robot.state().alarms) or (
        abs(rig.plant.states()[0].torque_share) < 0.5
    )
    for _ in range(12):
        rig.link.ask(command_of(rig, -step))
        rig.link.wait(0.1)
    assert rig.word(1, 48) == 1000
    assert rig.plant.states()[0].position_rad < angle


def test_a_gripper_closed_on_a_block_is_relieved_and_keeps_its_grip(rig: Rig) -> None:
    for _ in range(10):
        rig.robot.act(np.array((0, 0, 0, 0, 1), np.float32))
    rig.suffer("block", joint="gripper", lower_rad=0.2)
    assert pressing_s(rig, 5, lambda share: share > 0.4, np.array((0, 0, 0, 0, 0, -0.3))) <= 0.3
    rig.link.wait(1.0)
    assert abs(rig.plant.states()[5].torque_share) > 0.1
    assert rig.torques() == [True] * 6


class Wire:
    """Every goal position that was on the wire, by id."""

    def __init__(self, rig: Rig) -> None:
        self.goals: list[dict[int, int]] = []
        rig.line.log = self._take

    def _take(self, way: str, _: float, data: bytes) -> None:
        if way == ">" and data[1] == 0x83 and data[2] == 42:
            self.goals.append({data[i]: int.from_bytes(data[i + 1 : i + 3], "little") for i in range(4, len(data), 3)})

    def check(self, rig: Rig) -> None:
        """No goal outside the sweep, no jump beyond the speed limits."""
        assert self.goals
        speed = max(rig.parts.settings.max_speed_rad_s)
        for index, unit in enumerate(rig.parts.joints.units):
            counts = np.array([goal[index + 1] for goal in self.goals])
            assert counts.min() >= unit.range_min
            assert counts.max() <= unit.range_max
            assert np.abs(np.diff(counts)).max(initial=0) <= speed * CYCLE_S * 1.01 / COUNT_RAD + 1


@pytest.mark.parametrize(
    "line",
    [
        b'{"order":"goal","motors_rad":[NaN,0,0,0,0,0]}',
        b'{"order":"goal","motors_rad":[Infinity,0,0,0,0,0]}',
        b'{"order":"goal","motors_rad":[0,0,0,0,0,-Infinity]}',
        b'{"order":"goal","motors_rad":[0,0,0,0,0,1e999]}',
        b'{"order":"goal","motors_rad":[0,0,0,0,0,0],"within_s":NaN}',
        b'{"order":"goal","motors_rad":["a"]}',
        b'{"order":"jump"}',
        b"[]",
        b"\xff\xfe",
    ],
)
def test_the_owner_refuses_commands_that_are_none(line: bytes) -> None:
    with pytest.raises(RobotError):
        decode_command(line)


def test_nothing_wild_reaches_the_wire(rig: Rig) -> None:
    wire = Wire(rig)
    for number in (math.nan, math.inf, -math.inf, 1e30, 400 / 57.3, 10.0, -10.0):
        for index in range(5):
            action = FORWARD.copy()
            action[index] = number
            rig.robot.act(action)
        state = rig.link.ask(Command(order=Order.GOAL, motors_rad=(number,) * 6))
        assert bool(state.error) is not math.isfinite(number)
        rig.link.wait(0.05)
    for size in (0, 1, 5, 7, 32):
        assert "expected 6" in rig.link.ask(Command(order=Order.GOAL, motors_rad=(0.0,) * size)).error
    for shape in ((0,), (4,), (6,), (1, 5)):
        with pytest.raises(LimitViolation):
            rig.robot.act(np.zeros(shape, np.float32))
    wire.check(rig)


def test_a_thousand_commands_a_second_are_no_faster_than_the_limits(rig: Rig) -> None:
    wire = Wire(rig)
    dice = np.random.default_rng(0)
    for _ in range(80):
        for _ in range(10):
            goal = dice.uniform(-4, 4, 6)
            rig.link.ask(Command(order=Order.GOAL, motors_rad=tuple(goal.tolist()), within_s=0.0))
        rig.link.wait(CYCLE_S)
    wire.check(rig)
    assert len(wire.goals) <= 81


def check_noise(rig: Rig, cycles: int) -> tuple[int, float]:
    """Acts at 50 Hz over a bad line; returns how many actions were held, and the worst age of an observation."""
    rig.suffer("drop", probability=0.05)
    rig.suffer("corrupt", probability=0.10)
    holds, worst_s = 0, 0.0
    for cycle in range(cycles):
        action = FORWARD * math.cos(cycle / 20)
        holds += any("cannot be read" in reason for reason in rig.robot.act(action).reasons)
        seen = rig.robot.observe(with_images=False)
        truth = np.array([state.position_rad for state in rig.plant.states()[:-1]])
        age_s = rig.clock.now() - seen.time_s
        worst_s = max(worst_s, age_s)
        reach = np.array(rig.parts.spec.joint_max_speed_rad_s) * (age_s + 0.02) + 0.02
        assert (np.abs(seen.joint_pos_rad - truth) <= reach).all(), f"a wrong position in cycle {cycle}"
    assert rig.core.machine.state in (State.ACTIVE, State.HOLD)
    return holds, worst_s


def test_drops_and_corruption_give_no_exception_and_no_wrong_position(tmp_path: Path) -> None:
    holds, worst_s = check_noise(started(make_rig(tmp_path, control_rate_hz=50.0)), 120)
    assert holds <= 20
    assert worst_s <= 0.4


@pytest.mark.slow
def test_ten_minutes_of_drops_and_corruption(tmp_path: Path) -> None:
    holds, worst_s = check_noise(started(make_rig(tmp_path, control_rate_hz=50.0)), 30_000)
    assert holds <= 3000
    assert worst_s <= 0.5


def test_an_unplugged_arm_faults_and_moves_after_replug_only_when_rearmed(rig: Rig) -> None:
    in_motion(rig)
    rig.suffer("unplug")
    assert run_until(rig, lambda: rig.core.machine.state is State.FAULT) <= 0.1
    rig.suffer("replug")
    wire = Wire(rig)
    rig.link.wait(1.0)
    assert rig.core.machine.state is State.FAULT
    assert "is back" in rig.core.machine.reason
    assert not wire.goals
    with pytest.raises(RobotError, match="rearm=True"):
        rig.robot.act(FORWARD)
    assert not wire.goals
    rig.robot.connect(rearm=True)
    rig.robot.act(FORWARD)
    assert rig.core.machine.state is State.ACTIVE
    assert wire.goals


def test_a_replugged_arm_without_a_policy_is_let_go_where_it_is(rig: Rig) -> None:
    in_motion(rig)
    rig.suffer("unplug")
    rig.link.wait(0.05)
    rig.core.lose_client()
    rig.link.wait(0.5)
    last_goal = rig.core.motion.goal.copy()
    rig.suffer("replug")
    run_until(rig, lambda: rig.core.is_done)
    after = [state.position_rad for state in rig.plant.states()]
    assert np.abs(np.array(after) - last_goal).max() < 0.02
    assert rig.torques() == [False] * 6


def test_an_arm_that_stays_unplugged_is_given_up(rig: Rig) -> None:
    rig.suffer("unplug")
    rig.link.wait(0.05)
    rig.core.lose_client()
    assert run_until(rig, lambda: rig.core.is_done, limit_s=20.0) < 12.0


def test_estop_is_confirmed_by_every_servo_and_latches(rig: Rig) -> None:
    in_motion(rig)
    rig.robot.estop()
    goals = [rig.word(number, 42) for number in range(1, 7)]
    present = [rig.word(number, 56) for number in range(1, 7)]
    assert np.abs(np.array(goals) - np.array(present)).max() <= 40
    rig.link.wait(1.0)
    assert [rig.word(number, 42) for number in range(1, 7)] == goals
    assert rig.torques() == [True] * 6
    with pytest.raises(RobotError, match="was stopped"):
        rig.robot.act(FORWARD)


def test_an_estop_that_a_servo_does_not_confirm_says_so(rig: Rig) -> None:
    in_motion(rig)
    rig.suffer("dead", id=4)
    with pytest.raises(RobotError, match=r"wrist_flex \(id 4\) did not confirm it: cut the power"):
        rig.robot.estop()
    with pytest.raises(RobotError, match="was stopped"):
        rig.robot.act(FORWARD)


def test_an_estop_that_cannot_be_sent_says_so(rig: Rig) -> None:
    in_motion(rig)
    rig.suffer("unplug")
    rig.link.wait(0.05)
    with pytest.raises(RobotError, match="the stop could not be sent, the port is lost: cut the power"):
        rig.robot.estop()


def test_an_estop_after_a_replug_is_sent_and_confirmed(rig: Rig) -> None:
    in_motion(rig)
    rig.suffer("unplug")
    rig.link.wait(0.05)
    rig.suffer("replug")
    rig.link.wait(0.5)
    wire = Wire(rig)
    rig.robot.estop()
    assert wire.goals
    assert rig.core.machine.state is State.ESTOP


def test_a_rearm_that_fails_keeps_the_arm_where_it_is(rig: Rig) -> None:
    in_motion(rig)
    rig.suffer("dead", id=3)
    run_until(rig, lambda: bool(rig.link.ask(Command(order=Order.HOLD)).error))
    with pytest.raises(RobotError, match=r"cannot find where the arm is: elbow_flex \(id 3\)"):
        rig.robot.connect(rearm=True)
    rig.link.wait(0.2)
    assert rig.core.machine.state is State.FAULT
    assert rig.torques() == [True] * 6
    with pytest.raises(RobotError, match=r"elbow_flex \(id 3\) did not let go"):
        rig.robot.disconnect()
    assert rig.torques()[:2] + rig.torques()[3:] == [False] * 5


def test_a_joint_that_is_silent_while_it_parks_is_waited_for_and_does_not_jump(rig: Rig) -> None:
    in_motion(rig)
    rig.core.lose_client()
    run_until(rig, lambda: rig.core.machine.state is State.PARKING)
    rig.link.wait(0.2)
    wire, start_s = Wire(rig), rig.clock.now()
    rig.suffer("dead", id=3)
    while rig.clock.now() < start_s + 0.2:
        rig.link.wait(CYCLE_S)
    rig.suffer("revive", id=3)
    rig.link.wait(0.5)
    counts = [goal[3] for goal in wire.goals if 3 in goal]
    assert len(counts) > 10
    assert np.abs(np.diff(counts)).max() <= 3 * 0.03 / COUNT_RAD


def test_an_arm_that_was_stopped_is_let_go_where_it_is_on_disconnect(rig: Rig) -> None:
    in_motion(rig)
    rig.robot.estop()
    before = [state.position_rad for state in rig.plant.states()]
    rig.robot.disconnect()
    after = [state.position_rad for state in rig.plant.states()]
    assert np.abs(np.array(after) - np.array(before)).max() < 0.02
    assert rig.torques() == [False] * 6


def test_soft_start_begins_low_and_does_not_move(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    before = [state.position_rad for state in rig.plant.states()]
    rig.link.open()
    assert not rig.link.ask(Command(order=Order.CONNECT)).error
    assert [rig.word(number, 48) for number in range(1, 7)] == [200] * 6
    rig.link.wait(0.5)
    assert 500 <= rig.word(1, 48) <= 700
    run_until(rig, lambda: rig.core.machine.state is State.ACTIVE)
    assert rig.word(1, 48) == 1000
    assert rig.word(6, 48) == 500
    after = [state.position_rad for state in rig.plant.states()]
    assert np.abs(np.array(after) - np.array(before)).max() < 0.005


def test_an_arm_outside_its_limits_is_not_switched_on(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    rig.plant.block("elbow_flex", None, None)
    rig.virtual.find(3).encoder.zero_count += 300
    rig.plant.place("elbow_flex", 1.6)
    rig.virtual.settle()
    with pytest.raises(RobotError, match=r"elbow_flex \(id 3\) is \d+ degrees outside its limits"):
        rig.robot.connect()
    assert rig.torques() == [False] * 6


@pytest.mark.parametrize(
    ("address", "data", "says"),
    [
        (31, b"\x05\x00", r"elbow_flex \(id 3\) has homing offset 5, its calibration says 0"),
        (33, b"\x01", r"elbow_flex \(id 3\) is in operating mode 1"),
        (9, (MIDDLE - 100).to_bytes(2, "little"), r"elbow_flex \(id 3\) stops at 1948 to 4095 by its own limits"),
        (3, b"\x09\x0b", r"elbow_flex \(id 3\) is model 2825, expected sts3215 \(777\)"),
        (18, b"\x10", r"elbow_flex \(id 3\) counts several turns"),
    ],
)
def test_a_servo_that_differs_from_the_calibration_is_refused(
    tmp_path: Path, address: int, data: bytes, says: str
) -> None:
    rig = make_rig(tmp_path)
    rig.virtual.find(3).memory[address : address + len(data)] = data
    with pytest.raises(RobotError, match=says):
        rig.robot.connect()
    assert not rig.core.has_torque


def test_a_missing_servo_is_named_with_what_to_look_at(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    rig.suffer("dead", id=5)
    with pytest.raises(RobotError, match=r"wrist_roll \(id 5\) timeout.*check cables, power and ids: roboalign doctor"):
        rig.robot.connect()
