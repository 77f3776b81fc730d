"""Our five numbers as LIBERO's seven, in one place.

LIBERO takes a displacement and a rotation vector, both relative to where the tool is now and scaled to [-1, 1], and a
gripper sign (robosuite `OSC_POSE`, `output_max` 0.05 m and 0.5 rad; -1 opens). The controller is compliant: of a
displacement held for one period of 50 ms it covers about a third.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import LimitViolation
from roboalign.sdk.types import ACTION_NAMES, FloatArray

__all__ = ["MAX_STEP_M", "MAX_STEP_RAD", "limit_action", "native_action"]

MAX_STEP_M = 0.05
"""`output_max` of robosuite's `OSC_POSE` for a displacement."""
MAX_STEP_RAD = 0.5
"""`output_max` of robosuite's `OSC_POSE` for a rotation."""
OPEN_FROM = 0.5
"""Gripper commands from here on open; robosuite knows only the sign."""
_STILL_RAD = 1e-4
_ROUNDING = 1.0 + 1e-6

_HIGH = np.array([MAX_STEP_M] * 3 + [MAX_STEP_RAD, 1.0], np.float32)
_LOW = np.array([-MAX_STEP_M] * 3 + [-MAX_STEP_RAD, 0.0], np.float32)


def limit_action(action: FloatArray) -> tuple[FloatArray, tuple[str, ...]]:
    """Returns the action within the controller's range, and the names of what had to be changed.

    Raises:
        LimitViolation: the shape is wrong or a value is not finite.
    """
    values = np.asarray(action, np.float32)
    if values.shape != (len(ACTION_NAMES),):
        raise LimitViolation(f"action has shape {values.shape}, expected ({len(ACTION_NAMES)},): {ACTION_NAMES}")
    bad = [name for name, value in zip(ACTION_NAMES, values, strict=True) if not np.isfinite(value)]
    if bad:
        raise LimitViolation(f"action is not finite in {', '.join(bad)}; a policy must hold instead")
    limited = np.clip(values, _LOW, _HIGH)
    outside = (values > _HIGH * _ROUNDING) | (values < _LOW * _ROUNDING)
    return limited, tuple(name for name, is_out in zip(ACTION_NAMES, outside, strict=True) if is_out)


def native_action(action: FloatArray, tool_rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns float64[7] for the benchmark from a limited float32[5].

    A turn is about the vertical and levels the tool on the way, so that it keeps pointing down; without a turn the
    rotation is zero and the controller keeps its last orientation.
    """
    native = np.zeros(7)
    native[:3] = np.clip(np.asarray(action[:3], np.float64) / MAX_STEP_M, -1.0, 1.0)
    turn = float(action[3])
    if abs(turn) > _STILL_RAD:
        level = np.cross(tool_rotation[:, 2], (0.0, 0.0, -1.0))
        native[3:6] = np.clip((level + np.array([0.0, 0.0, turn])) / MAX_STEP_RAD, -1.0, 1.0)
    native[6] = -1.0 if action[4] >= OPEN_FROM else 1.0
    return native
