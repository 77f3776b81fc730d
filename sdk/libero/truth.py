"""What is true in a LIBERO scene, in the robot's base frame, decoded from the answers of the benchmark's process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.types import FloatArray

__all__ = ["LiberoObject", "LiberoTask", "LiberoTruth", "decode_task", "decode_truth", "tool_yaw_rad"]

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class LiberoTask:
    """What does not change while a task is open."""

    suite: str
    """Suite as the benchmark names it, e.g. `libero_object_swap`."""
    name: str
    """Task as the benchmark names it."""
    file_words: str
    """The file name as a sentence: what LIBERO's own scripts and openpi tell a policy."""
    sentence: str
    """The `:language` entry of the task file."""
    goals: tuple[tuple[str, ...], ...]
    """Predicates that must all hold, e.g. `("in", "milk_1", "basket_1_contain_region")`."""
    object_names: tuple[str, ...]
    """Movable objects, then fixtures."""
    num_fixtures: int
    """How many of them are fixtures."""
    num_states: int
    """Frozen initial states."""
    joint_names: tuple[str, ...]
    """Arm joints."""
    joint_range_rad: Vector
    """float64[J, 2], limits of the joints."""
    base_position_m: Vector
    """float64[3], the robot's base in the world; it is not rotated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiberoObject:
    """One object as a box."""

    name: str
    """Instance name of the benchmark, e.g. `akita_black_bowl_1`."""
    position_m: Vector
    """float64[3], centre of the box of its collision geometry."""
    rotation: Vector
    """float64[3, 3], axes of that box as columns."""
    size_m: Vector
    """float64[3], lengths of the box along its own axes."""
    is_fixture: bool
    """True for furniture."""
    is_touched: bool
    """True when a finger touches it."""
    is_held: bool
    """True when both fingers touch it."""

    @property
    def half_extent_m(self) -> Vector:
        """float64[3], half the box that is aligned with the base frame."""
        return np.asarray(np.abs(self.rotation) @ self.size_m / 2, np.float64)

    @property
    def bottom_m(self) -> float:
        """Height of its lowest point."""
        return float(self.position_m[2] - self.half_extent_m[2])

    @property
    def top_m(self) -> float:
        """Height of its highest point."""
        return float(self.position_m[2] + self.half_extent_m[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class LiberoTruth:
    """All that is known about the scene at one moment."""

    task: LiberoTask
    """What does not change."""
    objects: tuple[LiberoObject, ...]
    """Every object, in the order of `task.object_names`."""
    state: FloatArray
    """float32[5] in the order of `STATE_NAMES`."""
    tool_rotation: Vector
    """float64[3, 3], the tool's axes as columns; the third points where the fingers point."""
    joint_pos_rad: FloatArray
    """float32[J]."""
    is_success: bool
    """The benchmark's own check."""
    goals_done: tuple[bool, ...]
    """The benchmark's check of each predicate."""
    sim_state: Vector
    """The benchmark's flat state (time, positions, speeds)."""
    time_s: float
    """Simulated time."""

    def find(self, name: str) -> LiberoObject:
        """Returns the object that a name of a goal predicate belongs to: its own, or that of one of its regions."""
        found = [item for item in self.objects if name == item.name or name.startswith(f"{item.name}_")]
        if not found:
            raise ConfigError(f"the scene has no object {name!r}; it has {', '.join(self.task.object_names)}")
        return max(found, key=lambda item: len(item.name))


def decode_task(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> LiberoTask:
    """Returns the task of an answer to `open`."""
    return LiberoTask(
        suite=str(header["suite"]),
        name=str(header["task"]),
        file_words=str(header["file_words"]),
        sentence=str(header["sentence"]),
        goals=tuple(tuple(str(word) for word in goal) for goal in header["goals"]),
        object_names=tuple(header["objects"]),
        num_fixtures=int(header["num_fixtures"]),
        num_states=int(header["num_states"]),
        joint_names=tuple(header["joint_names"]),
        joint_range_rad=np.asarray(arrays["joint_range"], np.float64),
        base_position_m=np.asarray(arrays["base_pose"][:3], np.float64),
    )


def decode_truth(
    task: LiberoTask, extents_m: Vector, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> LiberoTruth:
    """Returns the truth of an answer to `reset` or `step`; `extents_m` is float64[N, 2, 3] from the reset."""
    first_fixture = len(task.object_names) - task.num_fixtures
    objects = []
    for number, name in enumerate(task.object_names):
        rotation = np.asarray(arrays["rotations"][number], np.float64)
        centre = rotation @ extents_m[number].mean(axis=0)
        touched = arrays["touched"][number]
        objects.append(
            LiberoObject(
                name=name,
                position_m=arrays["positions"][number] + centre - task.base_position_m,
                rotation=rotation,
                size_m=extents_m[number][1] - extents_m[number][0],
                is_fixture=number >= first_fixture,
                is_touched=bool(touched.any()),
                is_held=bool(touched.all()),
            )
        )
    tool_rotation = np.asarray(arrays["tool_rotation"], np.float64)
    state = np.empty(5, np.float32)
    state[:3] = arrays["tool_position"] - task.base_position_m
    state[3] = tool_yaw_rad(tool_rotation)
    state[4] = arrays["fingers"][0] - arrays["fingers"][1]
    return LiberoTruth(
        task=task,
        objects=tuple(objects),
        state=state,
        tool_rotation=tool_rotation,
        joint_pos_rad=np.asarray(arrays["joints"], np.float32),
        is_success=bool(header["is_success"]),
        goals_done=tuple(bool(done) for done in header["goals_done"]),
        sim_state=np.asarray(arrays["state"], np.float64),
        time_s=float(header["time_s"]),
    )


def tool_yaw_rad(tool_rotation: Vector) -> float:
    """Returns the turn of the fingers about the vertical; 0 when they open along the base's y axis."""
    return float(np.arctan2(-tool_rotation[0, 0], tool_rotation[1, 0]))
