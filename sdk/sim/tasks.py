"""Tasks: what a scene is drawn for, when it is solved, how far it got, and an expert that solves it.

A task is anything with the attributes of `Task`. The built-in ones are the families `place`, `push` and `stack`, and
the tasks of the suites, named `<suite>/<task>`. Anybody adds one from another package through the entry point group
`roboalign.tasks` (an object, or a function without arguments that returns one), or at run time with `register_task`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol, runtime_checkable
from zlib import crc32

import numpy as np

from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.sim import goals
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.sampling import sample_scene
from roboalign.sdk.sim.scene import SceneSpec
from roboalign.sdk.sim.truth import SceneTruth
from roboalign.sdk.types import FloatArray

__all__ = [
    "ENTRY_POINTS",
    "FAMILIES",
    "MAX_STEPS",
    "MIX",
    "SPLITS",
    "GoalTask",
    "Task",
    "find_task",
    "fitting_task",
    "register_task",
    "scene_for",
    "task_names",
]

FAMILIES = ("place", "push", "stack")
"""Names of the task families that the shipped models are trained on."""
MIX = "mix"
"""Lets the seed choose among `FAMILIES`."""
MAX_STEPS: Mapping[str, int] = {"place": 60, "push": 60, "stack": 70}
"""Control steps after which an episode of a family is cut off."""
SPLITS = ("train", "language", "object", "swap", "camera", "lighting")
"""What may differ from training, one thing each: nothing, sentences, colour and shape pairs, positions, the camera,
the light."""
FAMILY_SPLITS = ("train", "language", "camera", "lighting")
"""The splits of a family: its scenes are drawn from all pairs and positions already."""
ENTRY_POINTS = "roboalign.tasks"
"""Entry point group through which packages add tasks."""


@runtime_checkable
class Task(Protocol):
    """One kind of episode. Stateless: equal arguments give equal answers."""

    @property
    def name(self) -> str:
        """Unique name, e.g. `spatial/left_of`."""

    @property
    def robots(self) -> tuple[str, ...]:
        """Names of the arms that it is laid out for."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of `SPLITS` that it can be drawn for."""

    @property
    def max_steps(self) -> int:
        """Control steps after which an episode is cut off."""

    def sample(self, rng: np.random.Generator, *, robot: str, split: str) -> SceneSpec:
        """Returns a scene; it depends on the generator's state, the arm and the split alone."""

    def is_success(self, truth: SceneTruth) -> bool:
        """True when the task is solved now; must not ask the expert."""

    def progress(self, truth: SceneTruth) -> float:
        """How far the task is now, 0 to 1."""

    def expert(self, truth: SceneTruth) -> FloatArray:
        """Returns float32[5], what a demonstrator would do now, in the order of `ACTION_NAMES`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoalTask:
    """A task that is solved when the goals of its scene are reached (`goals.py`), with the built-in expert."""

    name: str
    """Unique name."""
    draw: Callable[[np.random.Generator, str, str], SceneSpec]
    """Draws a scene from a generator, the name of an arm and a split."""
    max_steps: int
    """Control steps after which an episode is cut off."""
    robots: tuple[str, ...] = ("panda",)
    """Names of the arms that it is laid out for."""
    splits: tuple[str, ...] = SPLITS
    """Those of `SPLITS` that it can be drawn for."""

    def sample(self, rng: np.random.Generator, *, robot: str = "panda", split: str = "train") -> SceneSpec:
        """Returns a scene."""
        return self.draw(rng, robot, split)

    def is_success(self, truth: SceneTruth) -> bool:
        """True when every goal is reached now."""
        return goals.is_success(truth)

    def progress(self, truth: SceneTruth) -> float:
        """Mean progress of the goals, 0 to 1."""
        return goals.progress(truth)

    def expert(self, truth: SceneTruth) -> FloatArray:
        """Returns the action of the built-in expert."""
        from roboalign.sdk.sim.expert import expert_action

        return expert_action(truth)


_registered: dict[str, Task] = {}


def register_task(task: Task) -> None:
    """Makes a task known to this process under its name; worker processes know it only through an entry point.

    Raises:
        ConfigError: There is another task of that name, or the object lacks an attribute of `Task`.
    """
    if not isinstance(task, Task):
        raise ConfigError(f"{task!r} is no task: it needs the attributes of roboalign.sdk.sim.tasks.Task")
    taken = (*_built_in(), *_installed()[0], MIX)
    if _registered.get(task.name, task) is not task or task.name in taken:
        raise ConfigError(f"there is a task named {task.name!r} already; choose another name")
    _registered[task.name] = task


def find_task(name: str) -> Task:
    """Returns the task of a name.

    Raises:
        ConfigError: There is none; the message lists the nearest names, and the installed packages whose tasks cannot
            be used.
    """
    known = _all_tasks()
    if name not in known:
        raise ConfigError("; also, ".join((unknown_name("task", name, known), *_installed()[1])))
    return known[name]


def task_names() -> tuple[str, ...]:
    """Returns the names of all tasks: families, suites, then what packages and this process added."""
    return tuple(_all_tasks())


def fitting_task(name: str, *, robot: str, split: str) -> Task:
    """Returns the task of a name, which has this arm and this split.

    Raises:
        ConfigError: There is no such task, arm or split, or the task is not laid out for them.
    """
    task = find_task(name)
    if split not in SPLITS:
        raise ConfigError(unknown_name("split", split, SPLITS))
    for what, value, choices in (("robot", find_robot(robot).name, task.robots), ("split", split, task.splits)):
        if value not in choices:
            raise ConfigError(f"task {name!r} has no {what} {value!r}; choose one of {', '.join(choices)}")
    return task


def scene_for(seed: int, task: str, split: str = "train", robot: str = "panda") -> SceneSpec:
    """Returns the scene of a seed; `mix` lets the seed choose the family. Equal arguments give equal scenes.

    Tasks other than the families have a stream of their own for each seed, so that scene k of one task says nothing
    about scene k of another. The first evaluation seeds of a suite's task give its frozen initial states.

    Raises:
        ConfigError: There is no such task, split or arm, or the task is not laid out for them.
    """
    rng = np.random.default_rng(seed)
    drawn = FAMILIES[int(rng.integers(len(FAMILIES)))]
    found = fitting_task(drawn if task == MIX else task, robot=robot, split=split)
    if found.name in FAMILIES:
        return found.sample(rng, robot=robot, split=split)
    from roboalign.sdk.suites import frozen_scene

    frozen = frozen_scene(found.name, seed, split)
    if frozen is not None and frozen.robot == robot:
        return frozen
    return found.sample(np.random.default_rng([seed, crc32(found.name.encode())]), robot=robot, split=split)


@functools.cache
def _built_in() -> Mapping[str, Task]:
    from roboalign.sdk.suites import suite_tasks

    families = {family: _family_task(family) for family in FAMILIES}
    return {**families, **{task.name: task for task in suite_tasks()}}


def _family_task(family: str) -> GoalTask:
    def draw(rng: np.random.Generator, robot: str, split: str) -> SceneSpec:
        return sample_scene(rng, family, "language" if split == "language" else "train", robot)

    robots = ("panda",) if family == "stack" else ("panda", "so101")
    return GoalTask(name=family, draw=draw, max_steps=MAX_STEPS[family], robots=robots, splits=FAMILY_SPLITS)


@functools.cache
def _installed() -> tuple[Mapping[str, Task], tuple[str, ...]]:
    """Returns the tasks of installed packages, and what is wrong with those that cannot be used."""
    found: dict[str, Task] = {}
    problems = []
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            loaded = entry.load()
        except (ImportError, AttributeError) as err:
            problems.append(f"{_place(entry)} cannot be loaded: {err}")
            continue
        is_task = isinstance(loaded, Task) and not isinstance(loaded, type)
        task = loaded() if callable(loaded) and not is_task else loaded
        if not isinstance(task, Task):
            problems.append(f"{_place(entry)} gives {type(task).__name__}, expected an object like Task")
        elif task.name in _built_in() or task.name in found or task.name == MIX:
            problems.append(f"{_place(entry)} adds a task named {task.name!r}, which exists already")
        else:
            found[task.name] = task
    return found, tuple(problems)


def _place(entry: metadata.EntryPoint) -> str:
    return f"entry point {entry.name!r} of {ENTRY_POINTS} ({entry.value})"


def _all_tasks() -> Mapping[str, Task]:
    return {**_built_in(), **_installed()[0], **_registered}
