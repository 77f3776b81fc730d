"""What a served policy takes, and observations checked against it before they reach the policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.errors import DataError
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, FloatArray, ImageArray, Observation, RobotSpec

if TYPE_CHECKING:
    from roboalign.sdk.evaluation.episodes import EpisodePolicy

__all__ = ["Needs", "finite_number", "needs_of", "read_observation"]

_RESIZE = "resize it, e.g. with openpi_client.image_tools.resize_with_pad"


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a served policy takes from an observation."""

    camera_names: tuple[str, ...]
    """Cameras that may be sent; `image` is the first."""
    image_size_px: int | None
    """Height and width of each picture; None where the policy does not say."""
    has_images: bool
    """False for a policy that looks at nothing."""
    rate_hz: float
    """Rate at which its actions are meant to be applied."""
    spec: PolicySpec | None
    """What `sdk.Policy.spec` says; None for a policy that is no model."""

    def to_map(self) -> dict[str, object]:
        """Returns it for the first message."""
        return {
            "camera_names": list(self.camera_names),
            "image_size_px": self.image_size_px,
            "needs_image": self.has_images,
            "state_names": list(STATE_NAMES),
            "action_names": list(ACTION_NAMES),
            "rate_hz": self.rate_hz,
            "spec": None if self.spec is None else asdict(self.spec),
        }


def needs_of(policy: EpisodePolicy, robot: RobotSpec) -> Needs:
    """Returns what a policy needs; the robot's cameras and rate where it does not say."""
    spec = getattr(policy, "spec", None)
    found = spec if isinstance(spec, PolicySpec) else None
    return Needs(
        camera_names=robot.camera_names if found is None else found.camera_names,
        image_size_px=None if found is None else found.image_size_px,
        has_images=bool(getattr(policy, "needs_image", True)),
        rate_hz=robot.control_rate_hz if found is None else found.rate_hz,
        spec=found,
    )


def read_observation(
    needs: Needs,
    *,
    images: Mapping[object, object],
    state: object,
    prompt: object,
    joint_position: object = None,
    time_s: object = 0.0,
    commanded: object = None,
) -> Observation:
    """Returns the observation of values that came over the wire; raises DataError for what the policy cannot take."""
    if not isinstance(prompt, str):
        raise DataError(f"prompt is {type(prompt).__name__}, expected the sentence to follow")
    return Observation(
        images={str(name): _image(str(name), image, needs) for name, image in images.items()},
        state=_vector(state, "state", len(STATE_NAMES), f": {', '.join(STATE_NAMES)}"),
        joint_pos_rad=np.zeros(0, np.float32) if joint_position is None else _vector(joint_position, "joint_position"),
        instruction=prompt,
        time_s=finite_number(time_s),
        commanded=None if commanded is None else _vector(commanded, "commanded", 4, ": x, y, z and yaw of the tool"),
    )


def _image(name: str, value: object, needs: Needs) -> ImageArray:
    if name not in needs.camera_names:
        known = ", ".join(needs.camera_names) or "none"
        raise DataError(f"camera {name!r:.40} is unknown to this policy; its cameras are {known}")
    if not isinstance(value, np.ndarray):
        raise DataError(f"image {name!r} is {type(value).__name__}, expected an array")
    if value.ndim == 3 and value.shape[0] == 3 and value.shape[2] != 3:
        value = np.ascontiguousarray(value.transpose(1, 2, 0))
    size = needs.image_size_px
    sides = "height, width" if size is None else f"{size}, {size}"
    wanted = value.shape[:2] if size is None else (size, size)
    is_right = value.ndim == 3 and value.shape == (*wanted, 3)
    if value.dtype != np.uint8 or not is_right:
        raise DataError(
            f"image {name!r} is {value.dtype}{list(value.shape)}, expected uint8[{sides}, 3] or uint8[3, {sides}] RGB; "
            f"{_RESIZE}"
        )
    return value


def _vector(value: object, name: str, length: int | None = None, meaning: str = "") -> FloatArray:
    wanted = "numbers" if length is None else f"{length} numbers"
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        found = "missing" if value is None else str(getattr(value, "dtype", type(value).__name__))
        raise DataError(f"{name} is {found}, expected a float32 or float64 array of {wanted}{meaning}")
    with np.errstate(over="ignore"):
        vector = value.astype(np.float32)
    is_long = vector.ndim == 1 and length in (None, len(vector))
    if not is_long or not np.isfinite(vector).all():
        what = f"has shape {list(vector.shape)}" if not is_long else "is not finite"
        raise DataError(f"{name} {what}, expected {wanted}, all finite{meaning}")
    return vector


def finite_number(value: object) -> float:
    """Returns a number that came over the wire; raises DataError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"found {value!r:.40}, expected a finite number")
    return float(value)
