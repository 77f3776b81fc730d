"""What is true in a simulated scene at one moment, as plain numbers: what the expert sees and labels are made from."""

from __future__ import annotations

from dataclasses import dataclass

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.types import FloatArray

__all__ = ["STAGES", "ObjectTruth", "SceneTruth"]

STAGES = ("reach", "descend", "grasp", "lift", "carry", "lower", "release", "retreat", "push", "done")
"""Names of what the expert does at a moment; `SceneTruth.stage` is one of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectTruth:
    """Where one object is and what it looks like."""

    name: str
    """Colour and shape, unique in its scene, e.g. `red block`."""
    colour: str
    """One of `tasks.COLOURS`."""
    shape: str
    """`block`, `cylinder` or `bowl`."""
    position_m: FloatArray
    """float32[3], centre of the object in the base frame; for a bowl the centre of its underside."""
    yaw_rad: float
    """Rotation about the vertical; for blocks folded into +-pi/4, 0 for round objects."""
    width_m: float
    """Distance across the object (a bowl's is the outer one)."""
    height_m: float
    """Height of the object as it stands."""
    speed_m_s: float
    """Speed of its centre."""
    tilt_rad: float
    """Angle between its own vertical axis and the world's."""
    is_held: bool
    """True when both fingers press on it."""
    is_touched: bool
    """True when any part of the robot touches it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneTruth:
    """All that is known about a scene at one moment."""

    family: str
    """Task family: `place`, `push` or `stack`."""
    objects: tuple[ObjectTruth, ...]
    """Every object on the table."""
    target: str
    """Name of the object to move."""
    goal: str
    """Name of the bowl or block it goes to; for `push` the direction, `left` or `right` as seen in the camera image."""
    instruction: str
    """The sentence the robot was given."""
    state: FloatArray
    """float32[5], measured tool state in the order of `STATE_NAMES`."""
    start_position_m: FloatArray
    """float32[3], where the target was at the start of the episode."""
    stage: str
    """What the expert does now, one of `STAGES`."""

    def find(self, name: str) -> ObjectTruth:
        """Returns the object with this name; raises ConfigError when the scene has none."""
        for item in self.objects:
            if item.name == name:
                return item
        names = ", ".join(item.name for item in self.objects)
        raise ConfigError(f"the scene has no object named {name!r}; it has: {names}")

    @property
    def target_object(self) -> ObjectTruth:
        """The object to move."""
        return self.find(self.target)

    @property
    def goal_object(self) -> ObjectTruth | None:
        """The object it goes to; None for `push`."""
        return None if self.family == "push" else self.find(self.goal)
