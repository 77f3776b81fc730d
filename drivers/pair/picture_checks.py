"""Whether pictures come from the right camera, fresh, upright and in the right colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from roboalign.drivers.pair.reference import view_changes
from roboalign.drivers.pair.session import Evidence
from roboalign.drivers.setup.checks import Check
from roboalign.sdk.views.pictures import TURNS, colour_evidence, hue_shares, picture_lag, view_error
from roboalign.sdk.views.reference import Reference, ViewReference

__all__ = ["check_pictures"]

Float64Array = NDArray[np.float64]

_NAMES = ("frozen picture", "picture age", "camera swap", "picture orientation", "colour order")
_FROZEN_SHARE = 0.95
_MIN_PATH_M = 0.03
_MAX_LAG_PERIODS = 3
_NEAR, _FAR = 0.05, 0.07  # shares of the picture: 0.01 to 0.045 in 24 scenes in order, 0.055 and more otherwise
_MARGIN = 1.3
_MIN_CHANGES = 4
_MIN_COLOURED = 0.005
_SURE_NATS = 0.35


@dataclass(frozen=True, kw_only=True, slots=True)
class _View:
    """One camera, and what is known of it."""

    evidence: Evidence
    camera: str
    tool: Float64Array | None
    reference: ViewReference | None


def check_pictures(
    evidence: Evidence, cameras: Sequence[str], tool: Float64Array | None, reference: Reference | None
) -> list[Check]:
    """Returns the checks of every camera that a policy sees; a check that follows from a failed one is left out.

    Args:
        evidence: what was seen.
        cameras: those that the policy sees.
        tool: float64[T, 4], where the tool truly was; None when nobody knows.
        reference: how the pair looks when it is in order.
    """
    checks = []
    for camera in cameras:
        if camera not in evidence.moments[0].seen.images:
            checks += [Check.skipped(name, f"{camera}: see fit") for name in _NAMES]
            continue
        known = None if reference is None else reference.views.get(camera)
        view = _View(evidence=evidence, camera=camera, tool=tool, reference=known)
        checks += _check_view(view)
    return checks


def _check_view(view: _View) -> list[Check]:
    fresh = [_check_frozen(view), _check_age(view)]
    if any(check.status == "failed" for check in fresh):
        bad = next(check.name for check in fresh if check.status == "failed")
        if bad == "frozen picture":
            fresh = fresh[:1]
        return [*fresh, *(Check.skipped(name, f"see {bad}") for name in _NAMES[len(fresh) :])]
    place = _check_place(view)
    if place[0].status == "failed":
        return [*fresh, *place, Check.skipped("colour order", "see camera swap")]
    return [*fresh, *place, _check_colours(view)]


def _pictures(view: _View) -> list[NDArray[np.uint8]]:
    return [moment.seen.images[view.camera] for moment in view.evidence.moments]


def _still(view: _View, name: str) -> Check | None:
    if view.tool is None:
        return Check.skipped(name, f"{view.camera}: see joint order")
    if np.ptp(view.tool[:, :3], axis=0).max() < _MIN_PATH_M:
        return Check.skipped(name, f"{view.camera}: cannot tell: the arm did not move; see motion axes")
    return None


def _check_frozen(view: _View) -> Check:
    name = _NAMES[0]
    unknown = _still(view, name)
    if unknown is not None:
        return unknown
    pictures = _pictures(view)
    same = [np.array_equal(before, after) for before, after in pairwise(pictures)]
    found = f"{view.camera}: {sum(same)} of {len(same)} pictures are exactly as the one before, while the arm moved"
    if np.mean(same) >= _FROZEN_SHARE:
        remedy = "unplug the camera and plug it in again, close what else uses it, and see that its thread still runs"
        return Check.failed(name, found, remedy)
    return Check.passed(name, found)


def _check_age(view: _View) -> Check:
    name = _NAMES[1]
    unknown = _still(view, name)
    if unknown is not None:
        return unknown
    assert view.tool is not None
    period_s = 1.0 / view.evidence.spec.control_rate_hz
    speeds = [0.0, *np.linalg.norm(np.diff(view.tool[:, :3], axis=0), axis=1).tolist()]
    lag = picture_lag(_pictures(view), speeds)
    if lag is None:
        return Check.skipped(name, f"{view.camera}: cannot tell: what changes in the picture does not follow the arm")
    found = f"{view.camera}: pictures come {lag * period_s:.1f} s after the motion, in steps of {period_s:.1f} s"
    if lag > _MAX_LAG_PERIODS:
        remedy = (
            "read the newest picture and drop older ones (a queue of buffers is being read in order), ask the camera "
            "for fewer pixels, or take it off the hub"
        )
        return Check.failed(name, f"{found}; at most {_MAX_LAG_PERIODS * period_s:.1f} s is normal", remedy)
    return Check.passed(name, found)


def _check_place(view: _View) -> list[Check]:
    """Camera swap and orientation: where the picture changes while the tool moves."""
    names = _NAMES[2:4]
    unknown = _still(view, names[0])
    if unknown is not None:
        return [Check.skipped(name, unknown.found) for name in names]
    assert view.tool is not None
    if view.reference is None:
        why = (
            f"{view.camera}: cannot tell: no reference of this pair; make one on the day it works: add "
            "--make-reference FILE"
        )
        return [Check.skipped(name, why) for name in names]
    motion = np.array(view.reference.motion)
    errors: dict[tuple[str, str], float] = {}
    for camera in view.evidence.moments[0].seen.images:
        tool_m, middles = view_changes(view.evidence, camera, view.tool[:, :3])
        if len(tool_m) >= _MIN_CHANGES:
            errors.update({(camera, turn): view_error(motion, tool_m, middles, turn) for turn in TURNS})
    upright = next(iter(TURNS))
    given = errors.get((view.camera, upright))
    best = min(errors, key=lambda key: errors[key], default=None)
    if given is None or best is None:
        found = f"{view.camera}: the picture hardly changes while the arm moves, so the arm is not in it"
        remedy = f"turn the camera to where it was, or give {view.camera} the device that sees the arm"
        return [Check.failed(names[0], found, remedy), Check.skipped(names[1], f"see {names[0]}")]
    return _judge_place(view.camera, given, best, errors[best])


def _judge_place(camera: str, given: float, best: tuple[str, str], least: float) -> list[Check]:
    names, upright = _NAMES[2:4], next(iter(TURNS))
    found = f"{camera}: what moves is {given:.2f} of the picture from where the reference has it"
    is_clear = given > _MARGIN * least and given > _NEAR
    if best[0] != camera and is_clear and least < _NEAR:
        remedy = (
            f"exchange the devices of [cameras.{camera}] and [cameras.{best[0]}] in robot.toml; see which is which: "
            "roboalign doctor robot.toml --pictures ."
        )
        failed = Check.failed(names[0], f"{found}; the picture of {best[0]} fits ({least:.2f})", remedy)
        return [failed, Check.skipped(names[1], f"see {names[0]}")]
    if best[1] != upright and best[0] == camera and is_clear and least < _NEAR:
        remedy = "turn the camera, or turn its pictures before they are used; look at one: --pictures ."
        failed = Check.failed(names[1], f"{found}; {best[1]} it fits ({least:.2f})", remedy)
        return [Check.passed(names[0], f"{camera}: no other camera fits better"), failed]
    if given > _FAR:
        remedy = f"put camera {camera} back where it was, or name the right device for it; or make a new reference"
        failed = Check.failed(names[0], f"{found}; this is another view than the policy's", remedy)
        return [failed, Check.skipped(names[1], f"see {names[0]}")]
    return [Check.passed(names[0], found), Check.passed(names[1], f"{camera}: {upright}")]


def _check_colours(view: _View) -> Check:
    name = _NAMES[4]
    if view.reference is None:
        return Check.skipped(name, f"{view.camera}: cannot tell: no reference of this pair")
    found, share = hue_shares(_pictures(view)[:1])
    if share < _MIN_COLOURED:
        return Check.skipped(name, f"{view.camera}: cannot tell: nothing colourful in view; put something red there")
    nats = colour_evidence(found, np.array(view.reference.hues))
    text = f"{view.camera}: colours speak for RGB by {nats:+.1f} nats a pixel"
    if nats < -_SURE_NATS:
        remedy = (
            "red and blue are exchanged: convert with image[..., ::-1] where the camera is read (OpenCV gives BGR), "
            "and only once"
        )
        return Check.failed(name, text, remedy)
    if nats < _SURE_NATS:
        return Check.skipped(name, f"{text}: cannot tell; put something red or yellow in view")
    return Check.passed(name, text)
