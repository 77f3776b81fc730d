"""The short version of `benchmarks/serial_identity.py`: an arm behind serial bytes and one without them are one arm."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from roboalign.drivers.virtual.direct import DirectServos
from roboalign.drivers.virtual.physics import JointState
from roboalign.drivers.virtual.robots import make_arm
from roboalign.sdk.control import FakeClock
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.types import ActionChunk

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from serial_identity import first_difference, run_on

SEED, TASK, PERIODS = 1_000_000_000, "place", 16


class Wanderer:
    """Goes where it just saw itself and its picture to be, so that the smallest difference grows."""

    def reset(self):
        self.count = 0

    def act(self, seen):
        self.count += 1
        brightness = float(seen.images["front"].mean()) / 255
        step = 0.02 * np.sin(40 * seen.state[:3] + brightness)
        actions = np.tile(np.array((*step, 0.02, self.count % 2), np.float32), (8, 1))
        return ActionChunk(actions=actions, rate_hz=10.0, source="callable")


def played(way):
    return run_on(way, SEED, TASK, Wanderer(), PERIODS)


@pytest.fixture(scope="module")
def direct():
    return played("direct")


def test_serial_bytes_change_nothing(direct):
    assert len(direct.periods) == PERIODS
    assert len({period["state"] for period in direct.periods}) == PERIODS, "it moves"
    assert first_difference(direct, played("memory")) == ""


@pytest.mark.slow
def test_a_terminal_and_another_process_change_nothing(direct):
    assert first_difference(direct, played("terminal")) == ""


def test_a_reading_that_is_one_count_off_is_found(direct, monkeypatch):
    """The comparison bites."""
    own = DirectServos._reading
    monkeypatch.setattr(
        DirectServos, "_reading", lambda self, servo: replace(own(self, servo), position=servo.present + 1)
    )
    assert "readings" in first_difference(direct, played("direct"))


def test_a_goal_that_is_one_count_off_is_found(direct, monkeypatch):
    own = DirectServos.write_goals
    monkeypatch.setattr(
        DirectServos, "write_goals", lambda self, counts: own(self, {i: count + 1 for i, count in counts.items()})
    )
    assert "registers" in first_difference(direct, played("direct"))


def test_readings_come_in_the_steps_of_encoder_and_registers():
    arm = make_arm("so101", start_s=0.0)
    servos = DirectServos(arm, FakeClock(3.0), 0.01)
    arm.servos[2].state = JointState(0.5001, 0.123456, 0.33333)
    readings, silent = servos.read(range(6), is_eager=True)
    assert silent == {}
    assert readings[2].position == 2048 + 326
    assert readings[2].load == 0.333
    assert readings[2].time_s == 3.0


def test_servos_of_another_make_are_refused():
    with pytest.raises(ConfigError, match="Feetech"):
        DirectServos(make_arm("koch"), FakeClock(), 0.01)
