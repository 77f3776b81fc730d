"""The reduced model against the randomisation's own actuator."""

from __future__ import annotations

import numpy as np
import pytest
from tests.sdk.sysid.arms import GAIN, make_recording, walk

from roboalign.sdk.sysid.fit import Target, fit_joints
from roboalign.sdk.sysid.identify import fit_recording
from roboalign.sdk.sysid.model import PARAMETERS, JointModel

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
    assert np.mean(held) >= 0.7
    assert all(item.low <= 0.0015 <= item.high for item in result.joints["noise_std_rad"])
    assert all(not item.is_identified for item in result.joints["damping_nm_s_rad"])


@pytest.mark.parametrize("offset", [0.01, -0.02])
def test_what_the_model_leaves_out_is_not_taken_for_a_parameter(offset: float) -> None:
    recording = make_recording(VALUES, seconds=8.0)
    model = JointModel.of(recording, motor_gain=GAIN)
    target = Target(
        model=model,
        measured_rad=recording.position_rad + offset,
        weight=np.ones_like(recording.position_rad),
        most_losses=np.zeros((2, 5)),
    )
    start = np.concatenate([VALUES, np.zeros((2, 5))])
    fit = fit_joints(target, start=start, generations=0)
    np.testing.assert_allclose(fit.bias_rad, offset, atol=1e-6)
    np.testing.assert_allclose(fit.values[:5], VALUES, atol=1e-6)
