import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.sdk.libero.mapping import limit_action, native_action
from roboalign.sdk.libero.truth import tool_yaw_rad

HOME = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])


def turned(yaw_rad: float, tilt_rad: float = 0.0) -> np.ndarray:
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    tilt = np.array(
        [[1, 0, 0], [0, math.cos(tilt_rad), -math.sin(tilt_rad)], [0, math.sin(tilt_rad), math.cos(tilt_rad)]]
    )
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]]) @ HOME @ tilt


def action(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_the_largest_step_is_one() -> None:
    native = native_action(action(0.05, -0.05, 0.025, 0, 1), HOME)
    assert native == pytest.approx([1, -1, 0.5, 0, 0, 0, -1])


def test_a_turn_is_about_the_vertical() -> None:
    assert native_action(action(0, 0, 0, 0.25, 1), turned(0.7)) == pytest.approx([0, 0, 0, 0, 0, 0.5, -1])


def test_a_turn_levels_a_tilted_tool() -> None:
    tilted = turned(0.0, 0.2)
    native = native_action(action(0, 0, 0, 0.1, 1), tilted)
    axis = native[3:6] * 0.5 - [0, 0, 0.1]
    levelled = tilted[:, 2] + np.cross(axis, tilted[:, 2])
    assert abs(levelled[:2]).max() < 0.01


def test_without_a_turn_the_controller_keeps_its_orientation() -> None:
    assert not native_action(action(0.01, 0, 0, 0, 0), turned(0.0, 0.2))[3:6].any()


@pytest.mark.parametrize(("is_open", "sign"), [(1.0, -1.0), (0.5, -1.0), (0.49, 1.0), (0.0, 1.0)])
def test_the_gripper_opens_on_minus_one(is_open: float, sign: float) -> None:
    assert native_action(action(0, 0, 0, 0, is_open), HOME)[6] == sign


@given(st.lists(st.floats(-10, 10, width=32), min_size=5, max_size=5))
def test_no_native_action_leaves_its_range(values: list[float]) -> None:
    limited, _ = limit_action(action(*values))
    assert np.abs(native_action(limited, turned(0.3, 0.5))).max() <= 1.0


def test_what_fits_is_not_touched() -> None:
    fits = action(0.05, -0.05, 0.01, 0.5, 1.0)
    limited, changed = limit_action(fits)
    assert changed == ()
    assert np.array_equal(limited, fits)


@given(st.floats(-3.1, 3.1))
def test_the_yaw_of_the_tool_is_the_angle_it_was_turned_by(yaw_rad: float) -> None:
    assert tool_yaw_rad(turned(yaw_rad)) == pytest.approx(yaw_rad, abs=1e-9)
