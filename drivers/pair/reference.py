"""The reference of a pair that works, from sessions in which its arm moved: in the simulator, or on the robot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from roboalign.drivers.pair.session import Evidence
from roboalign.sdk.types import Observation
from roboalign.sdk.views.pictures import change_middle
from roboalign.sdk.views.reference import MIN_MOVE_M, REFERENCE_VERSION, Reference, fit_view

__all__ = ["make_reference", "view_changes"]

Float64Array = NDArray[np.float64]


def view_changes(evidence: Evidence, camera: str, tool_m: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Returns where a camera's pictures changed between the ends of motions: float64[N, 3] of the tool, float64[N, 2].

    Args:
        evidence: of a session with motions.
        camera: name of the camera.
        tool_m: float64[T, 3], true tool position of each moment.
    """
    moments = evidence.moments
    ends = [
        index
        for index, moment in enumerate(moments)
        if index + 1 == len(moments) or moments[index + 1].part != moment.part
    ]
    tools, middles = [], []
    for before, after in pairwise(ends):
        if np.abs(tool_m[after] - tool_m[before]).max() < MIN_MOVE_M:
            continue
        pictures = [moments[index].seen.images.get(camera) for index in (before, after)]
        if pictures[0] is None or pictures[1] is None:
            continue
        middle = change_middle(pictures[0], pictures[1])
        if middle is not None:
            tools.append((tool_m[before] + tool_m[after]) / 2.0)
            middles.append(middle)
    return np.reshape(tools, (-1, 3)), np.reshape(middles, (-1, 2))


def make_reference(
    sessions: Sequence[Evidence], *, robot: str, source: str, more: Sequence[Observation] = ()
) -> Reference:
    """Returns the reference of sessions with motions on a pair that is in order.

    Args:
        sessions: what was seen in each.
        robot: name of the arm.
        source: what they were, for people.
        more: observations of other scenes, for the colours that there are.

    Raises:
        ConfigError: A camera showed too little of the motion.
    """
    names = sorted({name for session in sessions for name in session.moments[0].seen.images})
    views = {}
    for name in names:
        found = [view_changes(session, name, _sensed_tool(session)) for session in sessions]
        tool_m, middles = (np.vstack(part) for part in zip(*found, strict=True))
        seen = [*(session.moments[0].seen for session in sessions), *more]
        views[name] = fit_view(name, tool_m, middles, [observation.images[name] for observation in seen])
    sentences = tuple(dict.fromkeys(session.sentence for session in sessions))
    scenes = len(sessions) + len(more)
    return Reference(
        version=REFERENCE_VERSION, robot=robot, source=source, scenes=scenes, sentences=sentences, views=views
    )


def _sensed_tool(evidence: Evidence) -> Float64Array:
    return np.array([moment.seen.state[:3] for moment in evidence.moments], np.float64)
