"""What is true in a simulated scene at one moment, as plain numbers: what the expert sees and labels are made from."""

from __future__ import annotations

from dataclasses import dataclass

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.scene import OBJECT_GOALS, Goal
from roboalign.sdk.types import FloatArray

__all__ = ["STAGES", "FixtureTruth", "ObjectTruth", "SceneTruth"]

STAGES = ("reach", "descend", "grasp", "lift", "carry", "lower", "release", "retreat", "push", "pull", "press", "done")
"""Names of what the expert does at a moment; `SceneTruth.stage` is one of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectTruth:
    """Where one object is and what it looks like."""

    name: str
    """Colour and shape, e.g. `red block`, and a tag where two look alike; unique in its scene."""
    colour: str
    """One of `layout.COLOURS`."""
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

    @property
    def label(self) -> str:
        """Colour and shape, as people say it."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True, slots=True)
class FixtureTruth:
    """How one fixture stands."""

    name: str
    """Its kind, one of `scene.FIXTURE_KINDS`."""
    position_m: FloatArray
    """float32[3], where the hand works on it: the knob of a drawer or door, the top of a button, the lamp."""
    opening: float
    """Drawer 0 closed to 1 open, door 0 left to 1 right, button 0 released to 1 pressed, light 0 off or 1 on."""
    speed_m_s: float
    """Speed of its moving part; 0 for the light."""
    num_presses: int
    """Times a button went down since the start; 0 for everything else."""
    is_touched: bool
    """True when any part of the robot touches it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneTruth:
    """All that is known about a scene at one moment."""

    family: str
    """Kind of the goal to work on now: the first one that is not reached, or the last."""
    objects: tuple[ObjectTruth, ...]
    """Every object on the table."""
    target: str
    """Name of the object to move now, or of the fixture."""
    goal: str
    """Name of the bowl or block it goes to; for `push` the direction, `left` or `right` as seen in the camera image;
    for fixtures the state they shall have."""
    instruction: str
    """The sentence the robot was given."""
    state: FloatArray
    """float32[5], measured tool state in the order of `STATE_NAMES`."""
    start_position_m: FloatArray
    """float32[3], where the target was at the start of the episode."""
    stage: str
    """What the expert does now, one of `STAGES`."""
    task: str = ""
    """Name of the task; empty means the family."""
    goals: tuple[Goal, ...] = ()
    """All goals, in order; empty means the one of `family`, `target` and `goal`."""
    done: tuple[bool, ...] = ()
    """Which goals are reached; in a sequence a goal stays reached."""
    fixtures: tuple[FixtureTruth, ...] = ()
    """Everything that is fixed to the table."""
    is_sequence: bool = False
    """Goals are given one after another."""
    robot: str = "panda"
    """Name of the arm."""

    def find(self, name: str) -> ObjectTruth:
        """Returns the object with this name; raises ConfigError when the scene has none."""
        for item in self.objects:
            if item.name == name:
                return item
        names = ", ".join(item.name for item in self.objects)
        raise ConfigError(f"the scene has no object named {name!r}; it has: {names}")

    def fixture(self, name: str) -> FixtureTruth:
        """Returns the fixture with this name; raises ConfigError when the scene has none."""
        for item in self.fixtures:
            if item.name == name:
                return item
        names = ", ".join(item.name for item in self.fixtures) or "none"
        raise ConfigError(f"the scene has no fixture named {name!r}; it has: {names}")

    @property
    def task_name(self) -> str:
        """Name of the task that judges the scene."""
        return self.task or self.family

    @property
    def all_goals(self) -> tuple[Goal, ...]:
        """Every goal, at least one."""
        return self.goals or (Goal(kind=self.family, target=self.target, goal=self.goal),)

    @property
    def target_object(self) -> ObjectTruth:
        """The object to move now; raises ConfigError when the target is a fixture."""
        return self.find(self.target)

    @property
    def goal_object(self) -> ObjectTruth | None:
        """The object it goes to; None when it goes to a side, and for fixtures."""
        return self.find(self.goal) if self.family in ("place", "stack") else None

    @property
    def is_about_object(self) -> bool:
        """True when the goal to work on now moves an object, not a fixture."""
        return self.family in OBJECT_GOALS
