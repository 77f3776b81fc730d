"""Clocks: the machine's, a fake one, and a simulation's."""

import time

import pytest

from roboalign.sdk.control import Clock, FakeClock, MonotonicClock, SimClock
from roboalign.sdk.errors import ConfigError, RobotTimeout


@pytest.mark.parametrize("clock", [MonotonicClock(), FakeClock(), SimClock(lambda: 0.0, lambda: None)])
def test_every_clock_is_a_clock(clock):
    assert isinstance(clock, Clock)


def test_the_machines_clock_wakes_after_its_deadline_and_not_much_later():
    clock = MonotonicClock()
    deadline_s = clock.now() + 0.02
    clock.sleep_until(deadline_s)
    assert 0 <= time.monotonic() - deadline_s < 1.0


def test_a_deadline_in_the_past_does_not_wait():
    clock = MonotonicClock()
    before_s = time.monotonic()
    clock.sleep_until(clock.now() - 10)
    assert time.monotonic() - before_s < 1.0


def test_a_fake_clock_moves_only_when_told():
    clock = FakeClock(5.0)
    clock.sleep_until(4.0)
    assert clock.now() == 5.0
    clock.advance(1.5)
    clock.sleep_until(7.0)
    assert clock.now() == 7.0
    with pytest.raises(ConfigError, match="cannot go back"):
        clock.advance(-1)


def test_a_simulations_clock_steps_it_until_the_deadline():
    steps = []
    clock = SimClock(lambda: 0.1 * len(steps), lambda: steps.append(1))
    clock.sleep_until(0.3)
    assert len(steps) == 3
    clock.sleep_until(0.3)
    assert len(steps) == 3


def test_a_simulation_that_stands_still_is_an_error_not_an_endless_wait():
    with pytest.raises(RobotTimeout, match=r"stays at 0\.0 s"):
        SimClock(lambda: 0.0, lambda: None).sleep_until(1.0)


def test_spinning_ends_at_the_moment_or_when_the_clock_is_set_back(monkeypatch):
    clock = MonotonicClock()
    wanted_s = clock.now() + 0.002
    clock.spin_until(wanted_s)
    assert clock.now() >= wanted_s
    times = iter((5.0, 6.0, 2.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    clock.spin_until(10.0)
    assert next(times, None) is None, "it looked three times: ahead, ahead, back"
