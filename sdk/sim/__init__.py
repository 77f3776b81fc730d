"""The PyBullet backend: simulated arms, scenes, tasks and a scripted expert.

Importing this package loads neither pybullet nor gymnasium. The Gymnasium ids (`roboalign/Place-Panda-v0`,
`roboalign/Place-SO101-v0`, one for every task and arm) are registered when gymnasium is already loaded, when `SimEnv`
is first used, or by `register_envs()`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roboalign.sdk.sim.env import SimEnv
    from roboalign.sdk.sim.expert import expert_action, expert_stage
    from roboalign.sdk.sim.robot import SimRobot
    from roboalign.sdk.sim.robots import RobotModel, find_robot
    from roboalign.sdk.sim.scene import FixtureSpec, Goal, ObjectSpec, SceneSpec
    from roboalign.sdk.sim.seeds import eval_seed, train_seed
    from roboalign.sdk.sim.tasks import FAMILIES, GoalTask, Task, find_task, register_task, scene_for, task_names
    from roboalign.sdk.sim.truth import FixtureTruth, ObjectTruth, SceneTruth
    from roboalign.sdk.sim.world import SimWorld

__all__ = [
    "FAMILIES",
    "FixtureSpec",
    "FixtureTruth",
    "Goal",
    "GoalTask",
    "ObjectSpec",
    "ObjectTruth",
    "RobotModel",
    "SceneSpec",
    "SceneTruth",
    "SimEnv",
    "SimRobot",
    "SimWorld",
    "Task",
    "eval_seed",
    "expert_action",
    "expert_stage",
    "find_robot",
    "find_task",
    "register_envs",
    "register_task",
    "scene_for",
    "task_names",
    "train_seed",
]

_MODULE_OF = {
    "FAMILIES": "tasks",
    "FixtureSpec": "scene",
    "FixtureTruth": "truth",
    "Goal": "scene",
    "GoalTask": "tasks",
    "ObjectSpec": "scene",
    "ObjectTruth": "truth",
    "RobotModel": "robots",
    "SceneSpec": "scene",
    "SceneTruth": "truth",
    "SimEnv": "env",
    "SimRobot": "robot",
    "SimWorld": "world",
    "Task": "tasks",
    "eval_seed": "seeds",
    "expert_action": "expert",
    "expert_stage": "expert",
    "find_robot": "robots",
    "find_task": "tasks",
    "register_task": "tasks",
    "scene_for": "tasks",
    "task_names": "tasks",
    "train_seed": "seeds",
}


def register_envs() -> None:
    """Registers the environments with gymnasium; does nothing for those that are registered."""
    import gymnasium

    from roboalign.sdk.sim.tasks import MIX, find_task, task_names
    from roboalign.sdk.suites import gym_id

    pairs = [(name, robot) for name in task_names() for robot in find_task(name).robots]
    for task, robot in ((MIX, "panda"), *pairs):
        if (env_id := gym_id(task, robot)) not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point="roboalign.sdk.sim.env:SimEnv",
                kwargs={"task": task, "robot": robot, "image_in_obs": True},
            )


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"roboalign.sdk.sim.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "gymnasium" in sys.modules:
    register_envs()
