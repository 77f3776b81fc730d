"""The reduced model against the randomisation's own actuator."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.sdk.sysid.arms import GAIN, make_recording, walk

from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sysid.fit import Target, descend
from roboalign.sdk.sysid.identify import fit_recording
from roboalign.sdk.sysid.model import PARAMETERS, JointModel
from roboalign.sdk.sysid.physics import WholeArm
from roboalign.sdk.sysid.posterior import Crowd, gather, settle
from roboalign.sdk.sysid.solve import paced
from roboalign.sdk.sysid.wiggle import WiggleConfig, find_centre

VALUES = np.array(
    [
        [0.0, 22.4, 71.6, 8.0, 45.1],
        [1.0, 0.6, 0.85, 1.15, 0.75],
        [1.0, 0.45, 0.8, 0.95, 0.6],
        [0.0, 0.009, 0.002, 0.005, 0.0],
        [0.0, 0.0014, 0.003, 0.0, 0.002],
    ]
)


def test_the_reduced_model_is_the_actuator_and_the_motor() -> None:
    model = JointModel.of(make_recording(VALUES, seconds=5.0), motor_gain=GAIN)
    both = np.stack([VALUES, VALUES[:, ::-1]])
    found = model.run(both)
    for variant, values in enumerate(both):
        np.testing.assert_allclose(found[:, variant], walk(values, model.command_rad), atol=1e-9)


def test_a_reading_between_two_steps_is_that_of_the_last_whole_one() -> None:
    recording = make_recording(VALUES, seconds=5.0)
    exact = JointModel.of(recording, motor_gain=GAIN).simulate(VALUES[None])[:, 0]
    later = JointModel.of(recording, motor_gain=GAIN)
    moved = np.stack([later.run(VALUES[None])[:, 0]], 1)
    object.__setattr__(later, "read_s", recording.read_s + 0.9 / 240)
    np.testing.assert_array_equal(later.sample(moved)[:, 0], exact)


def test_stretches_walked_through_at_once_are_the_recording_walked_through_in_one() -> None:
    model = JointModel.of(make_recording(VALUES, seconds=40.0), motor_gain=GAIN)
    both = np.stack([VALUES, VALUES[:, ::-1]])
    np.testing.assert_allclose(model.simulate(both), model.sample(model.run(both)), atol=1e-9)


def test_with_loads_the_reduced_model_is_the_whole_arm() -> None:
    recording, body = make_recording(VALUES, seconds=6.0), find_robot("so101")
    away = np.array(find_centre(body.spec(96), body.kinematics(), WiggleConfig())) - recording.start_rad
    recording = dataclasses.replace(
        recording, target_rad=recording.target_rad + away, start_rad=recording.start_rad + away
    )
    whole = WholeArm(body)
    model = whole.with_torques(JointModel.of(recording, motor_gain=GAIN))
    values = np.concatenate([VALUES, np.array([[0.1, 0.4, 0.2, 0.3, 0.0], [0.0] * 5])])
    loaded, defect = whole.refine(model, values)
    jerky = np.repeat([[10.0], [1.3], [1.0], [0.01], [0.005]], 5, 1)
    most = np.concatenate([jerky, whole.most_losses()[:1], np.zeros((1, 5))])
    assert whole.refine(model, most)[1].rms_rad.max() < 2e-3  # nothing flies
    whole.close()
    found = loaded.simulate(values[None])[:, 0] + defect.offset_rad
    bare = found - JointModel.of(recording, motor_gain=GAIN).simulate(values[None])[:, 0]
    assert defect.rms_rad.max() < 2e-4
    assert np.sqrt((bare**2).mean(0)).max() > 5 * defect.rms_rad.max()


def _target(*, noise_rad: float, seconds: float = 8.0, offset_rad: float = 0.0) -> Target:
    recording = make_recording(VALUES, seconds=seconds, noise_rad=noise_rad)
    return Target(
        model=JointModel.of(recording, motor_gain=GAIN),
        measured_rad=recording.position_rad + offset_rad,
        weight=np.ones_like(recording.position_rad),
        most_losses=np.zeros((2, 5)),
    )


START = np.concatenate([VALUES, np.zeros((2, 5))])


def test_a_crowd_spreads_as_the_noise_does_and_stays_inside_the_bounds() -> None:
    widths = []
    for noise_rad in (0.001, 0.004):
        target, rng = _target(noise_rad=noise_rad), np.random.default_rng(0)
        crowd = gather(target, START[None], rng)
        assert (crowd >= target.low).all()
        assert (crowd <= target.high).all()
        crowds = settle(
            target,
            crowd,
            np.repeat(np.append(np.geomspace(300.0, 1.0, 24), np.ones(8))[:, None], 5, 1),
            np.full(5, noise_rad),
            rng,
        )
        assert (crowds[-1].values >= target.low).all()
        assert (crowds[-1].values <= target.high).all()
        widths.append(np.concatenate([crowd.values for crowd in crowds[-4:]])[:, 1].std(0))
    ratio = widths[1] / widths[0]
    assert ((ratio > 2.0) & (ratio < 8.0)).all(), ratio


def test_a_supply_that_sags_is_seen_in_how_fast_setpoints_run() -> None:
    recording = dataclasses.replace(
        make_recording(VALUES, seconds=20.0), path="setpoint", setpoint_speed_rad_s=(4.7,) * 5, resolution_rad=0.0015
    )
    goals = np.round(recording.target_rad / 0.0015) * 0.0015
    recording = dataclasses.replace(recording, target_rad=goals, start_rad=goals[0])
    slower = dataclasses.replace(recording, setpoint_speed_rad_s=(0.985 * 4.7,) * 5)
    seen = JointModel.of(slower, motor_gain=GAIN).simulate(VALUES[None])[:, 0]
    model = JointModel.of(recording, motor_gain=GAIN)
    target = Target(model=model, measured_rad=seen, weight=np.ones_like(seen), most_losses=np.zeros((2, 5)))
    crowd = Crowd.at(target, START[None], np.full(5, 1e-4))
    assert (crowd.cost > 0).any()
    found = paced(recording, target, crowd, np.full(5, 1e-4), 0.0)
    np.testing.assert_allclose(found.residuals(START[None]).left_rad, 0.0, atol=1e-9)


@pytest.mark.slow
def test_a_fit_finds_the_parameters_and_its_intervals_hold_them() -> None:
    recording = make_recording(VALUES, seconds=16.0, noise_rad=0.0015, bias_rad=0.004)
    result = fit_recording(recording).result
    wanted = dict(zip(PARAMETERS, VALUES, strict=True)) | {"bias_rad": np.full(5, 0.004)}
    bars = {"delay_ms": 2.0, "gain": 0.2, "speed_scale": 0.02, "play_rad": 0.002, "dead_band_rad": 0.0015}
    held = []
    for name, true in wanted.items():
        found = result.joints[name]
        held += [item.low <= value <= item.high for item, value in zip(found, true, strict=True)]
        near = [abs(item.value - value) <= bars.get(name, 0.001) for item, value in zip(found, true, strict=True)]
        assert sum(near) >= 4, name
    assert np.mean(held) >= 0.8
    assert all(item.low <= 0.0015 <= item.high for item in result.joints["noise_std_rad"])
    assert all(not item.is_identified for item in result.joints["damping_nm_s_rad"])


@pytest.mark.parametrize("offset", [0.01, -0.02])
def test_a_zero_that_is_off_is_not_taken_for_a_parameter(offset: float) -> None:
    target = _target(noise_rad=0.0, offset_rad=offset)
    found = descend(target, START[None], 3, lambda text: None)
    np.testing.assert_allclose(target.residuals(found).bias_rad[0], offset, atol=1e-6)
    np.testing.assert_allclose(found[0, :5], VALUES, atol=1e-6)
