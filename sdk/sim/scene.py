"""What a scene is before it is built: objects, fixtures, goals and sentences, as plain values.

Two equal specs give bit-identical simulations. A spec survives JSON (`scene_to_json`, `scene_from_json`), which is how
the frozen initial states of the suites are stored.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.sim.layout import COLOURS, GRASPABLE

__all__ = [
    "FIXTURE_KINDS",
    "GOAL_KINDS",
    "OBJECT_GOALS",
    "FixtureSpec",
    "Goal",
    "ObjectSpec",
    "SceneSpec",
    "scene_from_json",
    "scene_to_json",
]

OBJECT_GOALS = ("place", "push", "stack")
"""Kinds of goals that move an object."""
_FIXTURE_GOALS = {
    "open": ("drawer", ("open",)),
    "close": ("drawer", ("closed",)),
    "slide": ("door", ("left", "right")),
    "press": ("button", ("pressed",)),
    "light": ("light", ("on", "off")),
}
GOAL_KINDS = (*OBJECT_GOALS, *_FIXTURE_GOALS)
"""All kinds of goals."""
FIXTURE_KINDS = ("drawer", "door", "button", "light")
"""What can be fixed to the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectSpec:
    """One object as a scene starts."""

    colour: str
    """One of `layout.COLOURS`."""
    shape: str
    """One of `layout.SHAPES`."""
    x_m: float
    """Position in the base frame."""
    y_m: float
    """Position in the base frame."""
    yaw_rad: float = 0.0
    """Rotation about the vertical."""
    tag: str = ""
    """Tells objects apart that look alike, e.g. `a` and `b`; part of the name, never of an instruction."""

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise ConfigError(f"ObjectSpec.colour is {self.colour!r}; choose one of {', '.join(COLOURS)}")
        if self.shape not in (*GRASPABLE, "bowl"):
            raise ConfigError(f"ObjectSpec.shape is {self.shape!r}; choose one of block, cylinder, bowl")

    @property
    def name(self) -> str:
        """Colour and shape as instructions say it, then the tag if there is one."""
        return f"{self.colour} {self.shape}" + (f" {self.tag}" if self.tag else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class FixtureSpec:
    """Something that stays where it is and has one moving part."""

    kind: str
    """One of `FIXTURE_KINDS`; a scene has at most one of each, so the kind is also the name."""
    x_m: float
    """Position of its base in the base frame."""
    y_m: float
    """Position of its base in the base frame."""
    opening: float = 0.0
    """How it starts: drawer 0 closed to 1 open, door 0 left to 1 right, light 0 off or 1 on; a button starts at 0."""

    def __post_init__(self) -> None:
        if self.kind not in FIXTURE_KINDS:
            raise ConfigError(f"FixtureSpec.kind is {self.kind!r}; choose one of {', '.join(FIXTURE_KINDS)}")
        if not 0.0 <= self.opening <= 1.0:
            raise ConfigError(f"FixtureSpec.opening of the {self.kind} is {self.opening}, expected 0 to 1")

    @property
    def name(self) -> str:
        """What instructions call it."""
        return self.kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """One thing to achieve."""

    kind: str
    """One of `GOAL_KINDS`."""
    target: str
    """Name of the object to move, or of the fixture."""
    goal: str
    """Name of the bowl or block it goes to; `left` or `right` for push and slide; `open`, `closed`, `pressed`, `on`,
    `off` for the other fixtures."""

    def __post_init__(self) -> None:
        if self.kind not in GOAL_KINDS:
            raise ConfigError(f"Goal.kind is {self.kind!r}; choose one of {', '.join(GOAL_KINDS)}")
        if self.kind in _FIXTURE_GOALS:
            target, goals = _FIXTURE_GOALS[self.kind]
            if self.target != target or self.goal not in goals:
                found = f"Goal of kind {self.kind!r} has target {self.target!r} and goal {self.goal!r}"
                raise ConfigError(f"{found}; expected target {target!r} and goal {' or '.join(goals)}")
        elif self.kind == "push" and self.goal not in ("left", "right"):
            raise ConfigError(f"Goal.goal is {self.goal!r}; for push choose one of left, right")


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneSpec:
    """All that is needed to build a scene: two equal specs give bit-identical simulations."""

    family: str
    """Kind of the first goal, one of `GOAL_KINDS`."""
    objects: tuple[ObjectSpec, ...]
    """What stands on the table; names are unique."""
    target: str
    """Name of the object to move first, or of the fixture."""
    goal: str
    """Where it goes, see `Goal.goal`."""
    instruction: str
    """The sentence given to the robot; in a sequence the first one."""
    tool_start_m: tuple[float, float, float]
    """Where the tool starts, in the base frame."""
    tool_yaw_rad: float = 0.0
    """Yaw at which the tool starts."""
    task: str = ""
    """Name of the task it was drawn for; empty means the family."""
    goals: tuple[Goal, ...] = ()
    """All goals, in order; empty means the one of `family`, `target` and `goal`."""
    fixtures: tuple[FixtureSpec, ...] = ()
    """What is fixed to the table."""
    is_sequence: bool = False
    """Goals are given one after another, each with its own sentence, and count once reached."""
    instructions: tuple[str, ...] = ()
    """A sequence's sentences, one for each goal."""
    robot: str = "panda"
    """Name of the arm the scene was laid out for."""

    def __post_init__(self) -> None:
        names = [item.name for item in self.objects]
        fixtures = [item.name for item in self.fixtures]
        for what, found in (("objects", names), ("fixtures", fixtures)):
            if len(set(found)) != len(found):
                raise ConfigError(f"SceneSpec.{what} has two of the same name: {', '.join(found)}")
        if self.family not in GOAL_KINDS:
            raise ConfigError(f"SceneSpec.family is {self.family!r}; choose one of {', '.join(GOAL_KINDS)}")
        for goal in self.all_goals:
            self._check_goal(goal, names, fixtures)
        if self.is_sequence and len(self.instructions) != len(self.goals):
            raise ConfigError(
                f"SceneSpec of a sequence has {len(self.instructions)} instructions for {len(self.goals)} goals; "
                "expected one for each"
            )

    def _check_goal(self, goal: Goal, names: list[str], fixtures: list[str]) -> None:
        things = names if goal.kind in OBJECT_GOALS else fixtures
        if goal.target not in things:
            raise ConfigError(f"SceneSpec.target is {goal.target!r}, which is not among: {', '.join(things)}")
        if goal.kind in ("place", "stack") and (goal.goal not in names or goal.goal == goal.target):
            raise ConfigError(
                f"SceneSpec.goal is {goal.goal!r}; for {goal.kind} choose one of "
                f"{', '.join(name for name in names if name != goal.target)}"
            )

    @property
    def all_goals(self) -> tuple[Goal, ...]:
        """Every goal, at least one."""
        return self.goals or (Goal(kind=self.family, target=self.target, goal=self.goal),)

    @property
    def task_name(self) -> str:
        """Name of the task that judges it."""
        return self.task or self.family


def scene_to_json(scene: SceneSpec) -> str:
    """Returns the spec as one line of JSON; fields that have their default are left out."""
    return json.dumps(_plain(scene), separators=(",", ":"), sort_keys=True)


def scene_from_json(text: str) -> SceneSpec:
    """Returns the spec that `scene_to_json` wrote.

    Raises:
        DataError: The text does not hold the fields of a `SceneSpec`.
    """
    try:
        fields = json.loads(text)
        fields["objects"] = tuple(ObjectSpec(**item) for item in fields["objects"])
        fields["goals"] = tuple(Goal(**item) for item in fields.get("goals", ()))
        fields["fixtures"] = tuple(FixtureSpec(**item) for item in fields.get("fixtures", ()))
        fields["instructions"] = tuple(fields.get("instructions", ()))
        fields["tool_start_m"] = tuple(fields["tool_start_m"])
        return SceneSpec(**fields)
    except (TypeError, KeyError, AttributeError, ValueError) as err:
        raise DataError(f"a scene record does not fit this version of roboalign ({err}): {text[:80]}") from err


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        pairs = {field.name: (getattr(value, field.name), field.default) for field in dataclasses.fields(value)}
        return {name: _plain(found) for name, (found, default) in pairs.items() if found != default}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
