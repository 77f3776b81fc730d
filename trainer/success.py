"""Simulated rollouts as a reward: how many steps a sampled chunk saves an expert who finishes the task.

A frame's scene is laid out again from its truth (objects where they stood, the tool and gripper as they were, a held
object between the fingers), the chunk is carried out through the limiter, and the scripted expert goes on until the
task's own predicate holds or `MAX_STEPS` are over. A chunk of T actions is worth the steps that the expert then needs
less than without it, over T, inside [0, 1]: the expert's own chunk is worth about 1, standing still 0, and so is
whatever makes the task impossible. The policy itself is not asked again: its further answers would add their own
noise, and a picture and a decoding for every step.

Nothing here is random, and a scene is built from nothing for every rollout, so the number of processes does not change
a result. What is not restored: speeds, tilted objects, fixtures and the reached goals of a sequence; frames with the
last two are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import numpy as np

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.scene import ObjectSpec, SceneSpec
from roboalign.sdk.sim.truth import SceneTruth
from roboalign.sdk.types import ACTION_NAMES, FloatArray

__all__ = ["MAX_STEPS", "Rollout", "RolloutPool", "outcome", "restore_scene", "steps_to_success"]

MAX_STEPS = 60
"""Control steps that the expert gets after the chunk; the families' own limit."""


_SQUEEZE = np.zeros(len(ACTION_NAMES), np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One thing to try: a chunk in the scene of a frame."""

    truth: SceneTruth
    """The frame."""
    actions: FloatArray | None
    """float32[T, A]; None lets the expert begin at once."""


def outcome(steps_without: int, steps_after: int, horizon: int) -> float:
    """Returns the share of a chunk's steps that it saved the expert, 0 to 1.

    >>> outcome(20, 12, 8), outcome(20, 20, 8), outcome(20, 60, 8)
    (1.0, 0.0, 0.0)
    """
    return float(np.clip((steps_without - steps_after) / horizon, 0.0, 1.0))


def steps_to_success(rollout: Rollout, max_steps: int = MAX_STEPS) -> int:
    """Carries out one rollout in this process; returns the expert's steps to success, `max_steps` when it fails."""
    truth = rollout.truth
    env = _environment(truth.robot)
    restore_scene(env, truth)
    for action in () if rollout.actions is None else rollout.actions:
        env.advance(action)
        if env.is_success():
            return 0
    for step in range(max_steps):
        if env.is_success():
            return step
        env.advance(env.expert_action())
    return max_steps


def restore_scene(env: SimEnv, truth: SceneTruth) -> None:
    """Lays out the scene of a frame; raises DataError when it holds what cannot be restored."""
    if truth.fixtures or truth.is_sequence:
        what = "fixtures" if truth.fixtures else "a sequence of goals"
        raise DataError(
            f"the scene of {truth.instruction!r} has {what}, which a simulated reward cannot restore; choose "
            "demonstrations of place, push and stack, or another reward"
        )
    x, y, z, yaw, width = (float(value) for value in truth.state)
    scene = SceneSpec(
        family=truth.family,
        objects=tuple(
            ObjectSpec(
                colour=item.colour,
                shape=item.shape,
                x_m=float(item.position_m[0]),
                y_m=float(item.position_m[1]),
                yaw_rad=item.yaw_rad,
                tag=item.name.removeprefix(item.label).strip(),
            )
            for item in truth.objects
        ),
        target=truth.target,
        goal=truth.goal,
        instruction=truth.instruction,
        tool_start_m=(x, y, z),
        tool_yaw_rad=yaw,
        task=truth.task,
        goals=truth.goals,
        robot=truth.robot,
    )
    env.reset(seed=0, options={"scene": scene})
    world = env.robot.world
    for item in truth.objects:
        world.place_object(item.name, item.position_m, item.yaw_rad)
    joints = world.joint_pos_rad()
    world.set_joints(joints, width)
    env.robot.controller.reset(joints, width)
    if any(item.is_held for item in truth.objects):
        # Contacts exist only after a step: without one the scene would say that nothing is held.
        env.robot.act(_SQUEEZE)


@lru_cache(maxsize=4)
def _environment(robot: str) -> SimEnv:
    return SimEnv(robot=robot, task="place")


class RolloutPool:
    """Processes that carry out rollouts; results come back in order. Close it, or use it in a `with` block."""

    def __init__(self, workers: int, *, max_steps: int = MAX_STEPS) -> None:
        if workers < 1:
            raise ConfigError(f"rollout workers are {workers}, expected at least 1")
        self.workers, self.max_steps = workers, max_steps
        self._pool: ProcessPoolExecutor | None = None
        self._base: dict[int, int] = {}

    def outcomes(self, keys: Sequence[int], rollouts: Sequence[Rollout], horizon: int) -> list[float]:
        """Returns what each rollout is worth.

        Args:
            keys: names the frame of each rollout; what the expert needs there alone is computed once for each.
            rollouts: with the actions to try; a rollout without is worth 0.
            horizon: actions of a chunk.
        """
        new = {
            key: Rollout(truth=rollout.truth, actions=None)
            for key, rollout in zip(keys, rollouts, strict=True)
            if key not in self._base
        }
        self._base.update(zip(new, self._run(list(new.values()), [self.max_steps] * len(new)), strict=True))
        tried = [place for place, rollout in enumerate(rollouts) if rollout.actions is not None]
        # Who needs as many steps as the expert without the chunk has earned nothing, so nobody goes on for longer.
        limits = [self._base[keys[place]] for place in tried]
        steps = self._run([rollouts[place] for place in tried], limits)
        values = [0.0] * len(rollouts)
        for place, without, after in zip(tried, limits, steps, strict=True):
            values[place] = outcome(without, after, horizon)
        return values

    def _run(self, rollouts: Sequence[Rollout], limits: Sequence[int]) -> list[int]:
        if self.workers == 1 or not rollouts:
            return [steps_to_success(rollout, limit) for rollout, limit in zip(rollouts, limits, strict=True)]
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"))
        chunk = max(1, len(rollouts) // (4 * self.workers))
        return list(self._pool.map(steps_to_success, rollouts, limits, chunksize=chunk))

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> RolloutPool:
        return self

    def __exit__(self, *_exception: Any) -> None:
        self.close()
