"""Goals between commands: always inside position, speed and acceleration limits."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.drivers.arm.motion import MAX_ACCELERATION_RAD_S2, Motion

DT = 0.01
targets = st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 0.5), st.integers(1, 12)), min_size=1, max_size=8)


def a_motion() -> Motion:
    motion = Motion((-1.0,), (1.5,), (2.8,))
    motion.reset((0.2,))
    return motion


@settings(max_examples=40)
@given(targets)
def test_no_command_makes_goals_leave_their_limits(commands: list[tuple[float, float, int]]) -> None:
    motion = a_motion()
    for target, within_s, cycles in commands:
        for cycle in range(cycles):
            before = motion.goal.copy()
            motion.follow(np.array((target,)), within_s - cycle * DT, DT)
            assert -1.0 <= motion.goal[0] <= 1.5
            assert abs(motion.goal - before)[0] <= 2.8 * DT + 1e-9


@settings(max_examples=40)
@given(targets)
def test_braking_ends_within_a_tenth_of_a_second(commands: list[tuple[float, float, int]]) -> None:
    motion = a_motion()
    for target, within_s, cycles in commands:
        for _ in range(cycles):
            motion.follow(np.array((target,)), within_s, DT)
    for _ in range(8):
        speed = motion.velocity.copy()
        motion.brake(DT)
        assert abs(motion.velocity - speed)[0] <= MAX_ACCELERATION_RAD_S2 * DT + 1e-9
    assert motion.is_at_rest


def test_a_target_is_reached_when_it_is_due_and_not_passed() -> None:
    motion = a_motion()
    goals = []
    for cycle in range(14):
        motion.follow(np.array((0.3,)), 0.1 - cycle * DT, DT)
        goals.append(float(motion.goal[0]))
    assert max(goals) <= 0.3 + 1e-12
    assert abs(goals[11] - 0.3) < 0.01
    assert goals[-1] == 0.3


def test_a_goal_outside_its_limits_may_only_come_back() -> None:
    motion = a_motion()
    motion.reset((1.7,))
    motion.follow(np.array((3.0,)), 0.1, DT)
    assert motion.goal[0] == 1.7
    for _ in range(100):
        motion.follow(np.array((1.0,)), 0.1, DT)
    assert abs(motion.goal[0] - 1.0) < 1e-3


def test_a_path_arrives_in_time_within_the_speed_limits() -> None:
    motion = Motion((-2.0, -2.0), (2.0, 2.0), (2.8, 1.0))
    motion.reset((1.6, 0.5))
    duration_s = motion.start_path(np.array((-1.7, 0.0)), 0.5, 2.1)
    assert 0.5 <= duration_s <= 2.1
    is_over, fastest = False, 0.0
    while not is_over:
        before = motion.goal.copy()
        is_over = motion.advance_path(DT)
        fastest = max(fastest, float((np.abs(motion.goal - before) / np.array((2.8, 1.0))).max()))
    assert fastest <= DT * 1.001
    assert np.abs(motion.goal - (-1.7, 0.0)).max() < 1e-9
