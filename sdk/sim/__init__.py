"""The PyBullet backend: scenes, tasks, a scripted expert and the simulated Panda.

Importing this package loads neither pybullet nor gymnasium. The Gymnasium ids `roboalign/Place-Panda-v0`, `Push`,
`Stack` and `Mix` are registered when gymnasium is already loaded, when `SimEnv` is first used, or by `register_envs()`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roboalign.sdk.sim.env import SimEnv
    from roboalign.sdk.sim.expert import expert_action, expert_stage
    from roboalign.sdk.sim.robot import SimRobot
    from roboalign.sdk.sim.seeds import eval_seed, train_seed
    from roboalign.sdk.sim.tasks import FAMILIES, ObjectSpec, SceneSpec, sample_scene
    from roboalign.sdk.sim.truth import ObjectTruth, SceneTruth
    from roboalign.sdk.sim.world import SimWorld

__all__ = [
    "FAMILIES",
    "ObjectSpec",
    "ObjectTruth",
    "SceneSpec",
    "SceneTruth",
    "SimEnv",
    "SimRobot",
    "SimWorld",
    "eval_seed",
    "expert_action",
    "expert_stage",
    "register_envs",
    "sample_scene",
    "train_seed",
]

_MODULE_OF = {
    "FAMILIES": "tasks",
    "ObjectSpec": "tasks",
    "ObjectTruth": "truth",
    "SceneSpec": "tasks",
    "SceneTruth": "truth",
    "SimEnv": "env",
    "SimRobot": "robot",
    "SimWorld": "world",
    "eval_seed": "seeds",
    "expert_action": "expert",
    "expert_stage": "expert",
    "sample_scene": "tasks",
    "train_seed": "seeds",
}


def register_envs() -> None:
    """Registers the environments with gymnasium; does nothing for those that are registered."""
    import gymnasium

    for family in ("place", "push", "stack", "mix"):
        env_id = f"roboalign/{family.capitalize()}-Panda-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point="roboalign.sdk.sim.env:SimEnv",
                kwargs={"family": family, "image_in_obs": True},
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
