"""Hidden dynamics of the virtual arm: off is exact, and each part does what the randomisation says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.drivers.arm.rig import Rig, make_rig

from roboalign.drivers.virtual.bullet import BulletPlant
from roboalign.drivers.virtual.config import VirtualBusConfig, build_line
from roboalign.drivers.virtual.physics import MotorCommand
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.randomization import DomainRandomization, DomainSample, fixed, preset
from roboalign.sdk.randomization import config as ranges

STEP_S = 1.0 / 240.0


@contextmanager
def opened(domain: DomainSample | None) -> Iterator[BulletPlant]:
    plant = BulletPlant(renderer="tiny", domain=domain).open()
    try:
        yield plant
    finally:
        plant.close()


def sample(**concerns: object) -> DomainSample:
    return DomainRandomization(name="test", **concerns).sample(5)  # type: ignore[arg-type]


def drive(plant: BulletPlant, offset_rad: float, steps: int, period_s: float = STEP_S) -> np.ndarray:
    """Runs the first joint along a ramp and returns where it was after every step."""
    start = [state.position_rad for state in plant.states()]
    found = []
    for step in range(1, steps + 1):
        along = min(1.0, step / 48) * offset_rad
        speed = offset_rad / 48 / STEP_S if step <= 48 else 0.0
        commands = [MotorCommand("position", value) for value in start]
        commands[0] = MotorCommand("position", start[0] + along, speed)
        plant.step(commands, period_s)
        found.append(plant.states()[0].position_rad - start[0])
    return np.array(found)


def test_dynamics_that_are_off_leave_everything_bit_by_bit() -> None:
    found = []
    for domain in (None, DomainSample.off()):
        with opened(domain) as plant:
            drive(plant, 0.2, 80)
            for mode in ("off", "velocity", "torque"):
                for _ in range(5):
                    plant.step([MotorCommand(mode, 0.1)] * 6, STEP_S)  # type: ignore[arg-type]
            found.append((plant.state_hash(), plant.errors_rad()))
    assert found[0] == found[1]


def test_a_delay_moves_the_joint_so_much_later() -> None:
    with opened(DomainSample.off()) as plant:
        plain = drive(plant, 0.2, 80)
    with opened(sample(delay=ranges.Delay(bus_ms=fixed(12 * 1000 / 240)))) as plant:
        late = drive(plant, 0.2, 80)
    np.testing.assert_allclose(late[12:], plain[:-12], atol=2e-4)
    assert np.abs(late[:12]).max() < 2e-4


def test_the_steps_of_the_line_do_not_change_the_dynamics() -> None:
    """At 100 Hz, 2.4 physics steps a cycle, the arm is where it is at 240 Hz."""
    domain = sample(rate_limit=ranges.RateLimit(speed_scale=fixed(0.3)), backlash=ranges.Backlash(play_rad=fixed(0.01)))
    ends = []
    for period_s, count in ((STEP_S, 240), (0.01, 100)):
        with opened(domain) as plant:
            start = [state.position_rad for state in plant.states()]
            goal = [start[0] + 0.3, *start[1:]]
            for _ in range(count):
                plant.step([MotorCommand("position", value) for value in goal], period_s)
            ends.append(plant.states()[0].position_rad - start[0])
    assert ends[0] == ends[1]
    assert ends[0] == pytest.approx(0.3 - 0.005, abs=1e-4)


def test_a_joint_that_fell_is_taken_where_it_is() -> None:
    domain = sample(delay=ranges.Delay(bus_ms=fixed(50.0)), backlash=ranges.Backlash(play_rad=fixed(0.01)))
    with opened(domain) as plant:
        plant.place("shoulder_lift", -0.8)
        plant.place("elbow_flex", 0.2)
        for _ in range(48):
            plant.step([MotorCommand("off")] * 6, STEP_S)
        places = [state.position_rad for state in plant.states()]
        for _ in range(24):
            plant.step([MotorCommand("position", value) for value in places], STEP_S)
        held = [state.position_rad for state in plant.states()]
    np.testing.assert_allclose(held, places, atol=0.02)


def test_readings_are_wrong_by_zero_error_noise_and_losses_and_the_servo_knows_the_truth(tmp_path: Path) -> None:
    noise = ranges.ObservationNoise(joint_std_rad=fixed(0.004), joint_bias_rad=fixed(0.02))
    domain = sample(observation_noise=noise, dropouts=ranges.Dropouts(state_share=fixed(0.3)))
    rig = rig_of(domain, tmp_path)
    rig.robot.connect()
    read, true = [], []
    for _ in range(400):
        rig.link.wait(0.01)
        read.append(rig.robot.state().position_rad[:5])
        true.append([state.position_rad for state in rig.plant.states()][:5])
    error = np.array(read) - np.array(true)
    assert np.abs(error.mean(0) - 0.02).max() < 0.002
    assert np.abs(error.std(0) - 0.004).max() < 0.001
    again = (np.diff(np.array(read), axis=0) == 0).all(1).mean()
    assert 0.2 < again < 0.4
    rig.plant.close()


def test_pictures_are_those_of_the_sample() -> None:
    moved = dataclasses.replace(preset("camera-heldout").sample(3), frame_age=preset("off").sample(0).frame_age)
    with opened(DomainSample.off()) as plain, opened(moved) as other:
        before = plain.frame("front", 48)
        assert before.shape == (48, 48, 3)
        assert not np.array_equal(before, other.frame("front", 48))
    late = sample(frame_age=ranges.FrameAge(steps=fixed(2)))
    with opened(late) as plant:
        first = plant.frame("front", 48)
        plant.place("shoulder_pan", 1.0)
        hold = [MotorCommand("position", state.position_rad) for state in plant.states()]
        ages = []
        for _ in range(4):
            plant.step(hold, 0.1)
            ages.append(np.array_equal(plant.frame("front", 48), first))
    assert ages[-1] is False
    assert ages[0] is True


def rig_of(domain: DomainSample, folder: Path) -> Rig:
    return make_rig(folder, plant=BulletPlant(renderer="tiny", domain=domain).open())


def test_settings_say_what_is_hidden_and_refuse_what_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "arm.json"
    path.write_text(json.dumps(preset("strong").sample(3).to_json()))
    line = build_line(VirtualBusConfig(hidden=str(path)))
    line.arm.plant.close()
    for values, said in (
        ({"hidden": str(path), "has_physics": False}, "without physics there are no such dynamics"),
        ({"hidden_seed": 3}, "there is nothing to draw from"),
    ):
        with pytest.raises(ConfigError, match=said):
            VirtualBusConfig(**values)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="give the seed"):
        build_line(VirtualBusConfig(hidden="strong"))


def test_the_trace_has_what_was_sent_and_read_in_every_cycle(tmp_path: Path) -> None:
    rig = rig_of(DomainSample.off(), tmp_path)
    rig.robot.connect()
    rig.robot.take_readings()
    start = rig.robot.observe(with_images=False).joint_pos_rad
    way = np.array([0.08, 0.0, 0.0, 0.0, 0.08], np.float32)
    for step in range(1, 41):
        rig.robot.act_joints(start + way * step / 40, 0.02)
    rows = rig.robot.take_readings()
    assert len(rows) == 40
    assert rig.robot.take_readings() == ()
    assert np.diff([row.sent_s for row in rows]) == pytest.approx(0.01)
    assert [row.time_s for row in rows] == pytest.approx([row.sent_s for row in rows])
    sent = np.array([row.target_rad for row in rows])
    assert np.abs(sent[-1] - (start + way)).max() < 0.0025
    read = np.array([row.joint_pos_rad for row in rows])
    assert np.abs(read[-1] - sent[-1]).max() < 0.012
    assert np.abs(sent / (2 * np.pi / 4096) - np.rint(sent / (2 * np.pi / 4096))).max() < 1e-6
    rig.plant.close()
