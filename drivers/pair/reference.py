"""How a pair looks when it is in order: which hues its cameras show, and where in the picture the tool is.

A bundle cannot know which camera is which, so this is measured once, on a pair that works: in the simulator for the
shipped bundles, whose references come with the package, and on the robot otherwise. It is a small JSON file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from roboalign.drivers.pair.pictures import NUM_HUES, TURNS, change_middle, hue_shares, view_error
from roboalign.drivers.pair.session import Evidence
from roboalign.sdk.bundle import SHIPPED_BUNDLES, shipped_bundle_path
from roboalign.sdk.errors import ConfigError, RoboalignError
from roboalign.sdk.typed_json import from_json
from roboalign.sdk.types import Observation

__all__ = [
    "REFERENCE_NAME",
    "Reference",
    "ViewReference",
    "find_reference",
    "make_reference",
    "read_reference",
    "view_changes",
    "write_reference",
]

Float64Array = NDArray[np.float64]

REFERENCE_NAME = "reference.json"
"""Name beside a bundle's files; the manifest does not list it, so it can be added on the robot."""

_VERSION = 1
_MIN_CHANGES = 6
_MIN_MOVE_M = 0.015
_MAX_SPREAD = 0.08


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewReference:
    """One camera."""

    motion: tuple[tuple[float, ...], ...]
    """4 x 2: tool position in metres with a one behind, to row and column of the change when it moves, 0 to 1."""
    spread: float
    """How far changes were from that, as a share of the picture."""
    hues: tuple[float, ...]
    """Share of each hue among coloured pixels."""

    def __post_init__(self) -> None:
        if len(self.motion) != 4 or any(len(row) != 2 for row in self.motion) or len(self.hues) != NUM_HUES:
            raise ConfigError(f"a view has 4 x 2 numbers of motion and {NUM_HUES} hues; make the reference again")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A pair in order."""

    version: int
    """Layout of the file."""
    robot: str
    """Name of the arm."""
    source: str
    """What it was measured on, for people."""
    scenes: int
    """Different scenes among the pictures."""
    sentences: tuple[str, ...]
    """What was asked for in them."""
    views: Mapping[str, ViewReference]
    """By camera name."""


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
        if np.abs(tool_m[after] - tool_m[before]).max() < _MIN_MOVE_M:
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
        if len(tool_m) < _MIN_CHANGES:
            raise ConfigError(
                f"camera {name} showed {len(tool_m)} of the motions, expected {_MIN_CHANGES}; turn it to the arm"
            )
        rows = np.column_stack((tool_m, np.ones(len(tool_m))))
        motion = np.linalg.lstsq(rows, middles, rcond=None)[0]
        spread = view_error(motion, tool_m, middles, next(iter(TURNS)))
        if spread > _MAX_SPREAD:
            raise ConfigError(
                f"what changes in the pictures of camera {name} is {spread:.2f} of the picture away from the tool, "
                f"at most {_MAX_SPREAD} can be used; let nothing else move, and mend what the checks name"
            )
        seen = [*(session.moments[0].seen for session in sessions), *more]
        hues, _ = hue_shares([observation.images[name] for observation in seen])
        views[name] = ViewReference(
            motion=tuple(tuple(round(float(v), 4) for v in row) for row in motion),
            spread=round(spread, 4),
            hues=tuple(round(float(share), 5) for share in hues),
        )
    sentences = tuple(dict.fromkeys(session.sentence for session in sessions))
    scenes = len(sessions) + len(more)
    return Reference(version=_VERSION, robot=robot, source=source, scenes=scenes, sentences=sentences, views=views)


def write_reference(path: Path, reference: Reference) -> Path:
    """Writes the file in one step and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(asdict(reference), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def read_reference(path: Path) -> Reference:
    """Reads a file of `write_reference`; what is none is a ConfigError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("version") if isinstance(data, dict) else None
        if version != _VERSION:
            raise ConfigError(f"it has version {version}, expected {_VERSION}")
        return cast(Reference, from_json(Reference, data, "reference"))
    except (OSError, ValueError, RecursionError, RoboalignError) as err:
        raise ConfigError(
            f"{path} is no reference ({err}); make one: roboalign doctor BUNDLE --robot FILE --make-reference {path}"
        ) from err


def find_reference(bundle: Path) -> Path | None:
    """Returns the reference of a bundle: in its folder, or, of a shipped one, in the package; None without any."""
    candidates = [bundle / REFERENCE_NAME]
    if bundle.name in SHIPPED_BUNDLES and bundle.resolve() == shipped_bundle_path(bundle.name).resolve():
        candidates.append(bundle.parent / f"{bundle.name}.reference.json")
    return next((path for path in candidates if path.is_file()), None)


def _sensed_tool(evidence: Evidence) -> Float64Array:
    return np.array([moment.seen.state[:3] for moment in evidence.moments], np.float64)
