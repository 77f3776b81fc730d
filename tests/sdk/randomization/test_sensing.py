"""What is sensed: exact when off, late and lost as often as it says, and the same however often it is read."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.sdk.errors import RobotError
from roboalign.sdk.randomization import DomainSample
from roboalign.sdk.randomization.sensing import FrameBuffer, JointSensor
from roboalign.sdk.randomization.values import (
    Concern,
    DropoutValues,
    FrameAgeValues,
    NoiseValues,
    ObservationNoiseValues,
)

JOINTS = np.linspace(-1, 1, 7)


def domain(**concerns: Concern) -> DomainSample:
    return dataclasses.replace(DomainSample(seed=3), **concerns)  # type: ignore[arg-type]


def picture(step: int) -> np.ndarray:
    return np.full((8, 8, 3), step, np.uint8)


def frames(sample: DomainSample, steps: int) -> list[int]:
    """Returns the step of which the picture is that arrives in each step."""
    buffer, seen = FrameBuffer(sample), []
    for step in range(steps):
        buffer.advance(lambda step=step: picture(step))  # type: ignore[misc]
        seen.append(int(buffer.read(lambda step=step: picture(step))[0, 0, 0]))  # type: ignore[misc]
    return seen


def test_off_shows_every_picture_at_once() -> None:
    assert frames(DomainSample.off(), 5) == [0, 1, 2, 3, 4]


@given(st.integers(0, 5))
def test_pictures_arrive_as_late_as_they_are_old(age: int) -> None:
    assert frames(domain(frame_age=FrameAgeValues(steps=age)), 9) == [max(0, step - age) for step in range(9)]


def test_lost_pictures_are_replaced_by_the_last_that_arrived() -> None:
    seen = frames(domain(dropouts=DropoutValues(frame_share=0.4)), 200)
    kept = [step for step, found in enumerate(seen) if found == step]
    assert 0.5 < len(kept) / 200 < 0.7
    assert seen == [max(found for found in kept if found <= step) for step in range(200)]


def test_age_does_not_change_which_pictures_are_lost() -> None:
    lossy = DropoutValues(frame_share=0.4)
    fresh = frames(domain(dropouts=lossy), 50)
    assert frames(domain(dropouts=lossy, frame_age=FrameAgeValues(steps=2)), 50) == [0, 0, *fresh[:-2]]


def test_nothing_is_rendered_that_nobody_asks_for() -> None:
    buffer, calls = FrameBuffer(DomainSample.off()), []
    buffer.advance(lambda: calls.append(1) or picture(0))  # type: ignore[func-returns-value]
    assert not calls


def test_the_noise_of_a_picture_does_not_depend_on_the_ones_before() -> None:
    noisy = domain(noise=NoiseValues(shot_std=0.1, read_std=0.1))
    every, last = FrameBuffer(noisy), FrameBuffer(noisy)
    for step in range(4):
        every.advance(lambda: picture(100))
        last.advance(lambda: picture(100))
        found = [every.read(lambda: picture(100)) for _ in range(step)]
    assert np.array_equal(found[0], last.read(lambda: picture(100)))
    assert all(np.array_equal(found[0], other) for other in found)


def test_a_repeated_picture_has_its_old_noise() -> None:
    buffer = FrameBuffer(domain(frame_age=FrameAgeValues(steps=1), noise=NoiseValues(read_std=0.1)))
    seen = []
    for _ in range(3):
        buffer.advance(lambda: picture(100))
        seen.append(buffer.read(lambda: picture(100)))
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])


def test_a_reader_cannot_spoil_the_buffer() -> None:
    buffer = FrameBuffer(domain(frame_age=FrameAgeValues(steps=1)))
    buffer.advance(lambda: picture(7))
    buffer.read(lambda: picture(7))[:] = 0
    assert buffer.read(lambda: picture(7))[0, 0, 0] == 7


def test_an_exact_sensor_reads_what_is_true() -> None:
    sensor = JointSensor(DomainSample.off())
    sensor.advance(JOINTS, 0.03)
    joints, width = sensor.read()
    assert sensor.is_exact
    assert (joints.tobytes(), width) == (JOINTS.tobytes(), 0.03)


def test_errors_have_their_size() -> None:
    noise = ObservationNoiseValues(joint_std_rad=0.01, joint_bias_rad=(0.05,) * 8, gripper_std_m=0.001)
    sensor, read = JointSensor(domain(observation_noise=noise)), []
    for _ in range(800):
        sensor.advance(JOINTS, 0.03)
        read.append(sensor.read())
    errors = np.stack([joints for joints, _ in read]) - JOINTS
    assert errors.mean(0) == pytest.approx(np.full(7, 0.05), abs=0.002)
    assert errors.std(0) == pytest.approx(np.full(7, 0.01), rel=0.15)
    assert np.std([width for _, width in read]) == pytest.approx(0.001, rel=0.1)


def test_the_width_of_a_gripper_is_never_negative() -> None:
    sensor = JointSensor(domain(observation_noise=ObservationNoiseValues(gripper_std_m=0.01)))
    widths = []
    for _ in range(50):
        sensor.advance(JOINTS, 0.0)
        widths.append(sensor.read()[1])
    assert min(widths) == 0.0 < max(widths)


@given(st.integers(1, 10**6))
@settings(max_examples=20)
def test_a_lost_reading_repeats_the_last_one(seed: int) -> None:
    sensor = JointSensor(dataclasses.replace(domain(dropouts=DropoutValues(state_share=0.5)), seed=seed))
    seen = []
    for step in range(30):
        sensor.advance(np.full(2, float(step)), 0.0)
        seen.append(sensor.read()[0][0])
    assert seen[0] == 0.0
    assert all(found in (before, step) for step, (before, found) in enumerate(itertools.pairwise(seen), 1))
    assert 0 < len(set(seen)) < 30


def test_losses_do_not_move_the_noise() -> None:
    noise = ObservationNoiseValues(joint_std_rad=0.01)
    sensors = [
        JointSensor(domain(observation_noise=noise)),
        JointSensor(domain(observation_noise=noise, dropouts=DropoutValues(state_share=0.5))),
    ]
    same = 0
    for _ in range(40):
        for sensor in sensors:
            sensor.advance(JOINTS, 0.0)
        same += np.array_equal(sensors[0].read()[0], sensors[1].read()[0])
    assert 10 < same < 30


def test_reading_before_the_first_step_is_an_error() -> None:
    with pytest.raises(RobotError, match="advance"):
        JointSensor(DomainSample.off()).read()
    with pytest.raises(RobotError, match="advance"):
        FrameBuffer(DomainSample.off()).read(lambda: picture(0))
