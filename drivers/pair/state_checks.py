"""Whether state, joints and actions mean what their names say: order, units, gripper, axes.

Joints and the tool's state say the same thing twice, through the arm's kinematics. Where they disagree, every mistake
that people make is tried in turn (another unit, exchanged fields, exchanged joints, a joint that counts the other way
round), and the one under which both agree is named. What was asked and what moved are compared likewise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product

import numpy as np
from numpy.typing import NDArray

from roboalign.drivers.pair.session import AXES, Evidence
from roboalign.drivers.setup.checks import Check
from roboalign.sdk.control.kinematics import Kinematics, state_from_pose
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES

__all__ = ["StateReading", "check_axes", "check_gripper", "check_state"]

Float64Array = NDArray[np.float64]

_FAR_M, _FAR_RAD = 0.006, 0.04  # most robots compute the one from the other; some measure both
_TILT_RAD, _JOINTS_TO_POINT_DOWN = 0.25, 5
_SHARE = 0.9  # of the moments that must agree: a reading may get lost
_UNITS = {"m": 1.0, "cm": 1e-2, "mm": 1e-3}
_ANGLES = {"rad": 1.0, "degrees": math.pi / 180.0}
_MIN_GRIP_SHARE = 0.3
_MIN_M, _MIN_RAD = 0.008, 0.08
_SCALE_LOW, _SCALE_HIGH = 0.6, 1.5
_STRAY = 0.45

_ORDER_REMEDY = (
    "make observe() give state and joints in the order of the robot's spec (state: "
    f"{', '.join(STATE_NAMES)}); of a serial arm, see that each servo has its id: roboalign setup-motors"
)
_UNIT_REMEDY = "convert to metres and radians where the observation is made; the policy was trained on these"


@dataclass(frozen=True, kw_only=True, slots=True)
class StateReading:
    """What can be believed of an arm's state after the checks."""

    checks: tuple[Check, ...]
    """`joint order` and `state units`."""
    tool: Float64Array | None
    """float64[T, 4], x, y, z and yaw as they truly were; None when nobody knows."""
    width_m: Float64Array | None
    """float64[T], distance between the fingers as it is sensed; None when nobody knows."""

    @property
    def is_sound(self) -> bool:
        """Whether state and joints are as they should be."""
        return not any(check.status == "failed" for check in self.checks)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cause:
    """A mistake that might have been made, and state and joints without it."""

    check: str
    words: str
    state: Float64Array
    joints: Float64Array
    is_exchange: bool = False


def check_state(evidence: Evidence) -> StateReading:
    """Compares state with joints in every moment."""
    state = np.array([moment.seen.state for moment in evidence.moments], np.float64)
    joints = np.array([moment.seen.joint_pos_rad for moment in evidence.moments], np.float64)
    if evidence.kinematics is None:
        why = "cannot tell: the links of this robot are not known, so joints and state cannot be compared"
        checks = (Check.skipped("joint order", why), Check.skipped("state units", why))
        return StateReading(checks=checks, tool=state[:, :4], width_m=state[:, 4])
    if joints.shape[1] != evidence.kinematics.num_joints:
        found = f"{joints.shape[1]} joints are sensed, the arm has {evidence.kinematics.num_joints}"
        return _lost(found)
    links = _Links(evidence.kinematics)
    given = _Cause(check="", words="", state=state, joints=joints)
    if _agrees(given, evidence, links):
        return _sound(given, evidence, links)
    # Where both agree and still cannot be right, the state was made of the same wrong joints.
    joint_orders = _joint_orders(given, evidence, links, is_made=_is_close(given, links))
    for cause in (*_other_units(given), *_field_orders(given), *joint_orders):
        if _agrees(cause, evidence, links):
            return _explained(cause)
    error_m, error_rad = _errors(given, links)
    found = (
        f"the state is {np.median(error_m):.3f} m and {np.median(error_rad):.2f} rad from where the joints put the "
        "tool, and neither another unit nor another order explains it"
    )
    return _lost(found)


def _explained(cause: _Cause) -> StateReading:
    remedy = _UNIT_REMEDY if cause.check == "state units" else _ORDER_REMEDY
    failed = Check.failed(cause.check, cause.words, remedy)
    other = Check.skipped("joint order" if cause.check == "state units" else "state units", f"see {cause.check}")
    return StateReading(checks=(failed, other), tool=cause.state[:, :4], width_m=cause.state[:, 4])


def _lost(found: str) -> StateReading:
    checks = (Check.failed("joint order", found, _ORDER_REMEDY), Check.skipped("state units", "see joint order"))
    return StateReading(checks=checks, tool=None, width_m=None)


def _sound(given: _Cause, evidence: Evidence, links: _Links) -> StateReading:
    """State and joints agree. They may still be wrong alike, where the one is computed from the other."""
    error_m, error_rad = _errors(given, links)
    found = f"state and joints agree within {1000 * error_m.max():.0f} mm and {error_rad.max():.2f} rad"
    checks = (Check.passed("joint order", found), Check.passed("state units", "metres and radians"))
    reading = StateReading(checks=checks, tool=given.state[:, :4], width_m=given.state[:, 4])
    if check_axes(evidence, reading).status != "failed":
        return reading
    for cause in _joint_orders(given, evidence, links, is_made=True):
        # A joint of the other sign looks like an action of the other sign; exchanged joints look like nothing else.
        if cause.is_exchange and _agrees(cause, evidence, links):
            tried = replace(reading, tool=cause.state[:, :4])
            if check_axes(evidence, tried).status == "passed":
                return _explained(cause)
    return reading


class _Links:
    """Where joints put the tool, computed once for each set of joints."""

    def __init__(self, kinematics: Kinematics) -> None:
        self._kinematics = kinematics
        self._known: dict[bytes, tuple[Float64Array, Float64Array]] = {}

    def place(self, joints: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Returns float64[T, 5], the states of these joints with no width, and float64[T], the tool's tilt."""
        key = joints.tobytes()
        if key not in self._known:
            poses = [self._kinematics.forward(row) for row in joints]
            states = np.array([state_from_pose(pose, 0.0) for pose in poses], np.float64)
            down = np.array([-pose[2, 2] for pose in poses])
            self._known[key] = states, np.arccos(np.clip(down, -1.0, 1.0))
        return self._known[key]


def _errors(cause: _Cause, links: _Links) -> tuple[Float64Array, Float64Array]:
    """Returns float64[T] each: how far the state's place and yaw are from the joints'."""
    expected, _ = links.place(cause.joints)
    turn = np.remainder(cause.state[:, 3] - expected[:, 3] + math.pi, 2 * math.pi) - math.pi
    return np.linalg.norm(cause.state[:, :3] - expected[:, :3], axis=1), np.abs(turn)


def _is_close(cause: _Cause, links: _Links) -> bool:
    error_m, error_rad = _errors(cause, links)
    return bool(np.quantile(error_m, _SHARE) <= _FAR_M and np.quantile(error_rad, _SHARE) <= _FAR_RAD)


def _agrees(cause: _Cause, evidence: Evidence, links: _Links) -> bool:
    """Whether state and joints say the same, the gripper can be that wide, and the tool points down, as it must."""
    width, most = cause.state[:, 4], evidence.spec.gripper_max_width_m
    if width.min() < -0.1 * most or width.max() > 1.15 * most:
        return False
    is_grip = np.array([moment.part in ("close", "open") for moment in evidence.moments])
    if np.ptp(width[is_grip]) < 0.05 * most and np.ptp(cause.state[is_grip][:, :4], axis=0).max() > 0.5 * most:
        return False  # something else changed when the gripper was moved
    if not _is_close(cause, links):
        return False
    _, tilt = links.place(cause.joints)
    return evidence.spec.num_joints < _JOINTS_TO_POINT_DOWN or bool(np.quantile(tilt, _SHARE) < _TILT_RAD)


def _other_units(given: _Cause) -> Iterator[_Cause]:
    for place, width, yaw, joint in product(_UNITS, _UNITS, _ANGLES, _ANGLES):
        scale = np.array([_UNITS[place]] * 3 + [_ANGLES[yaw], _UNITS[width]])
        odd = [
            f"the {what} in {unit}"
            for what, unit, usual in (("place", place, "m"), ("gripper width", width, "m"), ("yaw", yaw, "rad"))
            if unit != usual
        ]
        odd += ["the joints in degrees"] if joint != "rad" else []
        if odd:
            yield replace(
                given,
                check="state units",
                words=f"the observation has {' and '.join(odd)}, expected metres and radians",
                state=given.state * scale,
                joints=given.joints * _ANGLES[joint],
            )


def _field_orders(given: _Cause) -> Iterator[_Cause]:
    same = tuple(range(len(STATE_NAMES)))
    for order in sorted(permutations(same), key=lambda order: sum(a != b for a, b in zip(order, same, strict=True))):
        moved = [f"{STATE_NAMES[order[i]]} holds {STATE_NAMES[i]}" for i in same if order[i] != i]
        if moved:
            yield replace(given, check="joint order", words="; ".join(moved), state=given.state[:, list(order)])


def _joint_orders(given: _Cause, evidence: Evidence, links: _Links, *, is_made: bool) -> Iterator[_Cause]:
    """Exchanged joints and a joint of the other sign, with the state being right, or with one made of the joints."""
    names = evidence.spec.joint_names
    count = len(names)
    orders = []
    for a, b in combinations(range(count), 2):
        swapped = list(range(count))
        swapped[a], swapped[b] = b, a
        orders.append(swapped)
    orders += [list(range(count))[::-1], *(np.roll(range(count), shift).tolist() for shift in (1, -1))]
    fixes = []
    for order in orders:
        arrived = ", ".join(names[order.index(index)] for index in range(count))
        fixes.append((given.joints[:, order], f"joints arrive as {arrived}", True))
    for index, name in enumerate(names):
        turned = given.joints.copy()
        turned[:, index] *= -1.0
        fixes.append((turned, f"joint {name} counts the other way round", False))
    for joints, words, is_exchange in fixes:
        state = given.state
        if is_made:
            state = links.place(joints)[0].copy()
            state[:, 4] = given.state[:, 4]
        yield replace(given, check="joint order", words=words, state=state, joints=joints, is_exchange=is_exchange)


def check_gripper(evidence: Evidence, reading: StateReading) -> Check:
    """Compares the sensed width after `close` and after `open`."""
    name = "gripper sign"
    if reading.width_m is None:
        return Check.skipped(name, "see joint order")
    closed, opened = (float(reading.width_m[evidence.places(part)[-1]]) for part in ("close", "open"))
    most = evidence.spec.gripper_max_width_m
    found = f"{1000 * closed:.0f} mm wide after {ACTION_NAMES[4]} 0, {1000 * opened:.0f} mm after 1"
    if closed - opened > _MIN_GRIP_SHARE * most:
        remedy = (
            "the gripper opens when it should close, or its width is counted backwards: let it open at 1, and let "
            f"{STATE_NAMES[4]} grow as it opens; of a serial arm: roboalign calibrate (the jaws' ends were exchanged)"
        )
        return Check.failed(name, f"{found}; expected it to grow", remedy)
    if opened - closed < _MIN_GRIP_SHARE * most:
        return Check.failed(
            name,
            f"{found}; it does not follow",
            "see that the gripper is empty, powered and calibrated, and that the fifth action reaches it",
        )
    return Check.passed(name, found)


def check_axes(evidence: Evidence, reading: StateReading) -> Check:
    """Compares what was asked along each axis with what the tool did."""
    name = "motion axes"
    if not reading.is_sound:
        return Check.skipped(name, "see joint order and state units")
    assert reading.tool is not None
    problems, shown, seen = [], [], 0
    for axis, label in enumerate(AXES):
        found = _response(evidence, reading.tool, axis)
        if found is None:
            continue
        asked, moved = found
        seen += 1
        gain = moved[axis] / asked
        stray = max((abs(moved[other] / asked), AXES[other]) for other in _others(axis))
        shown.append(f"{label} {gain:.0%}")
        if stray[0] > _STRAY and stray[0] > abs(gain):
            problems.append(f"asked to go along {label}, the tool went along {stray[1]}")
        elif gain < 0:
            problems.append(f"asked to go along {label}, the tool went the other way")
        elif not _SCALE_LOW <= gain <= _SCALE_HIGH:
            problems.append(f"asked to go {abs(asked):.3f} along {label}, the tool went {abs(moved[axis]):.3f}")
    if problems:
        remedy = (
            "apply each action as a displacement of the tool in the base frame, in metres and radians, in the order "
            f"{', '.join(ACTION_NAMES)}, and see that robot.toml names this arm"
        )
        return Check.failed(name, "; ".join(problems), remedy)
    if seen < 2:
        return Check.skipped(name, "cannot tell: limits were in the way; put the tool into the middle and try again")
    return Check.passed(name, f"of what was asked the tool went: {', '.join(shown)}")


def _others(axis: int) -> list[int]:
    """Axes of the same unit, among which a motion can be compared."""
    return [other for other in range(3) if other != axis] if axis < 3 else [3]


def _response(evidence: Evidence, tool: Float64Array, axis: int) -> tuple[float, Float64Array] | None:
    """Returns what was asked along an axis and how the tool moved; None where a limit kept it from moving."""
    label, least = AXES[axis], _MIN_RAD if axis == 3 else _MIN_M
    for part in (f"{label} out", f"{label} across", f"{label} back"):
        places = evidence.places(part)
        if not places or places[0] == 0:
            continue
        asked = sum(float(evidence.moments[index].action[axis]) for index in places)
        moved = tool[places[-1]] - tool[places[0] - 1]
        moved[3] = math.remainder(moved[3], 2 * math.pi)
        is_free = all(evidence.moments[index].is_free for index in places)
        if abs(asked) >= least and is_free:
            return asked, moved
    return None
