"""Age and losses of pictures, from how much they change while the arm moves by fits and starts."""

from __future__ import annotations

import numpy as np
import pytest

from roboalign.sdk.sysid.camera import CameraTrace, camera_estimates


def trace_of(age: int, share: float, *, noise: float = 0.05, steps: int = 99, seed: int = 0) -> CameraTrace:
    rng = np.random.default_rng(seed)
    motion = np.where(rng.random(steps) < 0.5, rng.uniform(0.03, 0.09, steps), 0.0)
    seen, change, same = 0.0, [], []
    place = np.cumsum(motion)
    for step in range(steps):
        shown = float(place[step - age]) if step >= age else 0.0
        is_lost = rng.random() < share
        change.append(0.0 if is_lost else 20 * abs(shown - seen) + noise * rng.random())
        same.append(bool(is_lost))
        seen = seen if is_lost else shown
    return CameraTrace(change=tuple(change), is_same=tuple(same), motion_rad=tuple(motion.tolist()))


@pytest.mark.parametrize("age", [0, 1, 2, 7])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_age_and_losses_are_found(age: int, share: float) -> None:
    found = camera_estimates(trace_of(age, share))
    assert found["frame_age_steps"].value == age
    assert found["frame_age_steps"].low <= age <= found["frame_age_steps"].high
    assert found["frame_share"].low <= share <= found["frame_share"].high


def test_pictures_that_do_not_follow_the_arm_tell_nothing() -> None:
    still = CameraTrace(change=(0.0,) * 99, is_same=(True,) * 99, motion_rad=trace_of(0, 0.0).motion_rad)
    assert camera_estimates(still) == {}
    blind = trace_of(3, 0.0, noise=50.0)
    assert not camera_estimates(blind)["frame_age_steps"].is_identified
