"""Policies that say what a success rate is worth: the expert, chance, and the real policy deaf or blind.

Each has the methods of `EpisodePolicy`. The expert reads simulator truth, which no robot has; it bounds what the scenes
allow. A policy that does not listen scores the same with a shuffled instruction as with the true one, and one that does
not look the same with black pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.episodes import EpisodeEnv, EpisodePolicy, Pace, SeededPolicy
from roboalign.sdk.evaluation.shuffle import shuffle_sentence
from roboalign.sdk.types import ACTION_NAMES, ActionChunk, FloatArray, Observation, RobotSpec

__all__ = [
    "BlindPolicy",
    "ExpertPolicy",
    "ExpertScene",
    "RandomPolicy",
    "ShuffledInstruction",
    "Wrapper",
    "expert_policy",
]


@runtime_checkable
class ExpertScene(Protocol):
    """A scene whose task has a demonstrator; `roboalign.sdk.sim.env.SimEnv` has it."""

    @property
    def robot_spec(self) -> RobotSpec:
        """Names, limits and rates of the robot."""

    def expert_action(self) -> FloatArray:
        """Returns float32[5], what the demonstrator would do now."""


def expert_policy(env: EpisodeEnv) -> EpisodePolicy:
    """Returns the expert of a scene: the environment's own, or the one of its task.

    Raises:
        ConfigError: The environment has none.
    """
    make: Callable[[], EpisodePolicy] | None = getattr(env, "expert_policy", None)
    if make is not None:
        return make()
    if not isinstance(env, ExpertScene):
        raise ConfigError(f"{type(env).__name__} has no expert; evaluate another policy there")
    return ExpertPolicy(env)


class ExpertPolicy:
    """The scripted expert as a policy: one action at a time, from simulator truth."""

    needs_image = False

    def __init__(self, env: ExpertScene) -> None:
        self._env = env

    def reset(self) -> None:
        """Does nothing: the expert has no memory."""

    def act(self, observation: Observation) -> ActionChunk:
        """Returns the expert's next action; the observation is not looked at."""
        rate_hz = self._env.robot_spec.control_rate_hz
        return ActionChunk(actions=self._env.expert_action()[None], rate_hz=rate_hz, source="expert")

    def close(self) -> None:
        """Does nothing: the scene belongs to the caller."""


class RandomPolicy:
    """Chance that moves: a random direction held for one chunk with jitter on top, uniform within the robot's limits.

    White noise at 10 Hz would hardly leave its place; a held direction reaches the whole workspace, which makes the
    control harder to beat.
    """

    needs_image = False

    def __init__(self, spec: RobotSpec, seed: int = 0, *, horizon: int = 8) -> None:
        self._limit = np.array([spec.max_step_m] * 3 + [spec.max_step_rad], np.float32)
        self._rate_hz, self._seed, self._horizon = spec.control_rate_hz, seed, horizon
        self._rng = np.random.default_rng(seed)

    def seed_episode(self, seed: int) -> None:
        """Restarts the random stream, so that an episode does not depend on those before it."""
        self._rng = np.random.default_rng((self._seed, seed))

    def reset(self) -> None:
        """Does nothing: the stream is restarted by `seed_episode`."""

    def act(self, observation: Observation) -> ActionChunk:
        """Returns one chunk that ignores the observation."""
        direction = self._rng.uniform(-1.0, 1.0, 4)
        jitter = self._rng.uniform(-0.25, 0.25, (self._horizon, 4))
        actions = np.empty((self._horizon, len(ACTION_NAMES)), np.float32)
        actions[:, :4] = np.clip(direction + jitter, -1.0, 1.0) * self._limit
        actions[:, 4] = float(self._rng.integers(2))
        return ActionChunk(actions=actions, rate_hz=self._rate_hz, source="random")

    def close(self) -> None:
        """Does nothing."""


class Wrapper:
    """What the wrapping controls share: everything but `act` is the wrapped policy's."""

    def __init__(self, policy: EpisodePolicy) -> None:
        self._policy = policy

    @property
    def needs_image(self) -> bool:
        """Whether the wrapped policy looks at pictures."""
        return bool(getattr(self._policy, "needs_image", True))

    @property
    def pace(self) -> Pace | None:
        """How time passes while the wrapped policy computes."""
        return getattr(self._policy, "pace", None)

    def seed_episode(self, seed: int) -> None:
        """Restarts the wrapped policy's random stream if it has one."""
        if isinstance(self._policy, SeededPolicy):
            self._policy.seed_episode(seed)

    def reset(self) -> None:
        """Resets the wrapped policy."""
        self._policy.reset()

    def close(self) -> None:
        """Closes the wrapped policy."""
        self._policy.close()


class BlindPolicy(Wrapper):
    """A policy that is given black pictures; state and instruction are the true ones."""

    def act(self, observation: Observation) -> ActionChunk:
        """Asks the wrapped policy with black pictures."""
        black = {name: np.zeros_like(image) for name, image in observation.images.items()}
        return self._policy.act(replace(observation, images=black))


class ShuffledInstruction(Wrapper):
    """A policy that is told the sentence of another task, and judged by the true one.

    In a sequence it is told another wrong sentence whenever the true one changes.
    """

    def __init__(self, policy: EpisodePolicy, env: object, seed: int = 0, *, split: str = "train") -> None:
        super().__init__(policy)
        self._env, self._seed, self._split = env, seed, split
        self._scene_seed = 0
        self._rng = np.random.default_rng(seed)
        self._true: str | None = None
        self._told = ""

    def seed_episode(self, seed: int) -> None:
        """Restarts the draw of sentences, and the wrapped policy's random stream if it has one."""
        self._rng, self._scene_seed = np.random.default_rng((self._seed, seed)), seed
        super().seed_episode(seed)

    def reset(self) -> None:
        """Forgets the sentence; the next one is drawn at the first `act`."""
        self._true = None
        super().reset()

    def act(self, observation: Observation) -> ActionChunk:
        """Asks the wrapped policy with the wrong sentence."""
        if self._true != observation.instruction:
            self._told = shuffle_sentence(self._env, self._rng, seed=self._scene_seed, split=self._split)
            self._true = observation.instruction
        return self._policy.act(replace(observation, instruction=self._told))
