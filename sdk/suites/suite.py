"""The suites by name, and the tasks that they are made of."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import MappingProxyType

from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.libero.suites import LIBERO_SPLITS, LIBERO_SUITES, task_ids
from roboalign.sdk.libero.suites import NUM_STATES as LIBERO_NUM_STATES
from roboalign.sdk.sim.tasks import FAMILY_SPLITS, SPLITS, GoalTask
from roboalign.sdk.suites.chain import chain_tasks
from roboalign.sdk.suites.goal import goal_tasks
from roboalign.sdk.suites.long import long_tasks
from roboalign.sdk.suites.objects import object_tasks
from roboalign.sdk.suites.spatial import spatial_tasks

__all__ = ["NUM_STATES", "Suite", "find_suite", "gym_id", "suite_names", "suite_tasks"]

NUM_STATES = 50
"""Frozen initial states of each task, as in LIBERO."""
_MAKERS = MappingProxyType(
    {
        "spatial": spatial_tasks,
        "object": object_tasks,
        "goal": goal_tasks,
        "long": long_tasks,
        "chain": chain_tasks,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """Tasks that are evaluated together."""

    name: str
    """By which users choose it."""
    tasks: tuple[str, ...]
    """Names of its tasks, in order."""
    splits: tuple[str, ...]
    """The splits that every one of its tasks can be drawn for."""
    num_states: int = NUM_STATES
    """Frozen initial states of each task: the scenes of the first so many evaluation seeds."""
    robot: str = "panda"
    """Name of the arm."""
    kind: str = "sim"
    """`sim` for the simulator of this package, `libero` for the outside benchmark."""

    def __post_init__(self) -> None:
        if self.kind not in ("sim", "libero"):
            raise ConfigError(f"Suite.kind is {self.kind!r}; choose one of sim, libero")
        if len(set(self.tasks)) != len(self.tasks):
            raise ConfigError(f"Suite.tasks of {self.name!r} names a task twice: {', '.join(self.tasks)}")


@functools.cache
def suite_tasks() -> tuple[GoalTask, ...]:
    """Returns every task of the simulator's suites, suite by suite."""
    return tuple(task for make in _MAKERS.values() for task in make())


@functools.cache
def _suites() -> dict[str, Suite]:
    found = {}
    for name, make in _MAKERS.items():
        tasks = make()
        splits = tuple(split for split in SPLITS if all(split in task.splits for task in tasks))
        found[name] = Suite(name=name, tasks=tuple(task.name for task in tasks), splits=splits)
    found["so101"] = Suite(name="so101", tasks=("place", "push"), splits=FAMILY_SPLITS, robot="so101")
    return {**found, **{name: _libero_suite(name) for name in LIBERO_SUITES}}


def _libero_suite(name: str) -> Suite:
    """Returns a suite of the outside benchmark; a LIBERO-PRO variant is a split of the suite that it varies."""
    is_variant = name + LIBERO_SPLITS["language"] not in LIBERO_SUITES
    return Suite(
        name=name,
        tasks=task_ids(name),
        splits=("train",) if is_variant else tuple(LIBERO_SPLITS),
        num_states=LIBERO_NUM_STATES,
        kind="libero",
    )


def find_suite(name: str) -> Suite:
    """Returns the suite of this name.

    Raises:
        ConfigError: There is no such suite; the message lists the nearest names.
    """
    suite = _suites().get(name)
    if suite is None:
        raise ConfigError(unknown_name("suite", name, suite_names()))
    return suite


def suite_names() -> tuple[str, ...]:
    """Returns the names of all suites."""
    return tuple(_suites())


def gym_id(task: str, robot: str = "panda") -> str:
    """Returns the Gymnasium id of a task on an arm.

    >>> gym_id("spatial/left_of_bowl"), gym_id("place", "so101")
    ('roboalign/SpatialLeftOfBowl-Panda-v0', 'roboalign/Place-SO101-v0')
    """
    words = task.replace("/", "_").replace("-", "_").split("_")
    arm = robot.capitalize() if robot.isalpha() else robot.upper()
    return f"roboalign/{''.join(word.capitalize() for word in words)}-{arm}-v0"
