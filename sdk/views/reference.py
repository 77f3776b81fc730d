"""How a robot's pictures look when it is in order: which hues its cameras show, and where in them the tool is.

A bundle cannot know which camera is which, so this is measured: on data that a policy learned from, or on a pair that
works. It is a small JSON file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.bundle import SHIPPED_BUNDLES, shipped_bundle_path
from roboalign.sdk.errors import ConfigError, RoboalignError
from roboalign.sdk.typed_json import from_json
from roboalign.sdk.types import ImageArray
from roboalign.sdk.views.pictures import NUM_HUES, TURNS, hue_shares, view_error

__all__ = [
    "MIN_MOVE_M",
    "REFERENCE_NAME",
    "REFERENCE_VERSION",
    "Reference",
    "ViewReference",
    "find_reference",
    "fit_view",
    "read_reference",
    "write_reference",
]

Float64Array = NDArray[np.float64]

REFERENCE_NAME = "reference.json"
"""Name beside a bundle's files; the manifest does not list it, so it can be added on the robot."""

REFERENCE_VERSION = 1
"""Layout of the file."""

MIN_MOVE_M = 0.015
"""Between two pictures that are compared, the tool moved so far along one axis at least."""

_MIN_CHANGES = 6
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


def fit_view(camera: str, tool_m: Float64Array, middles: Float64Array, pictures: Sequence[ImageArray]) -> ViewReference:
    """Returns how the view of a camera looks.

    Args:
        camera: its name.
        tool_m: float64[N, 3], where the tool was in the middle of motions.
        middles: float64[N, 2], where the picture changed between their ends, see `change_middle`.
        pictures: of several scenes, for the colours that there are.

    Raises:
        ConfigError: It showed too little of the motion, or something else moved.
    """
    if len(tool_m) < _MIN_CHANGES:
        raise ConfigError(
            f"camera {camera} showed {len(tool_m)} of the motions, expected {_MIN_CHANGES}; turn it to the arm"
        )
    rows = np.column_stack((tool_m, np.ones(len(tool_m))))
    motion = np.asarray(np.linalg.lstsq(rows, middles, rcond=None)[0], np.float64)
    spread = view_error(motion, tool_m, middles, next(iter(TURNS)))
    if spread > _MAX_SPREAD:
        raise ConfigError(
            f"what changes in the pictures of camera {camera} is {spread:.3f} of the picture away from the tool, "
            f"at most {_MAX_SPREAD} can be used; let the camera stand, and nothing else move"
        )
    hues, _ = hue_shares(pictures)
    return ViewReference(
        motion=tuple(tuple(round(float(v), 4) for v in row) for row in motion),
        spread=round(spread, 4),
        hues=tuple(round(float(share), 5) for share in hues),
    )


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
        if version != REFERENCE_VERSION:
            raise ConfigError(f"it has version {version}, expected {REFERENCE_VERSION}")
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
