"""Controls of what a thought is worth: the policy acts on its own picture with a thought about something else.

`ShuffledThoughts` gives it thoughts about another scene: real thoughts of the right form, at about the same progress. A
policy that does not use its thoughts scores the same with them. `StaleThoughts` gives it the thought of some calls ago,
as a robot has it that thinks beside its control loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.controls import ExpertScene, Wrapper
from roboalign.sdk.evaluation.episodes import EpisodeEnv, EpisodePolicy
from roboalign.sdk.sim.seeds import EVAL_OFFSET, eval_seed
from roboalign.sdk.types import ActionChunk, Observation

__all__ = ["ShuffledThoughts", "StaleThoughts", "ThinkingPolicy"]

_FIRST_DONOR = 500_000_000
"""Evaluation scenes from this number on lend their thoughts; no evaluation gets there."""


class ThinkingPolicy(EpisodePolicy, Protocol):
    """A policy whose thought may be about something else than what it acts on; `roboalign.sdk.Policy` is one."""

    def act(self, observation: Observation, *, thought_about: Observation | None = None) -> ActionChunk:
        """Returns the next actions, with a thought about another observation when one is given."""


class _Scene(ExpertScene, EpisodeEnv, Protocol):
    """A scene that the expert can play."""


class ShuffledThoughts(Wrapper):
    """A policy whose every thought is about another held-out scene of the same task.

    The expert plays that scene beside the policy's, so that early thoughts stay early and late ones late; when it ends,
    another one begins. Which scenes they are depends on the seeds alone.
    """

    def __init__(self, policy: ThinkingPolicy, env: EpisodeEnv, seed: int = 0) -> None:
        make: Callable[[], _Scene] | None = getattr(env, "twin", None)
        if make is None:
            raise ConfigError(f"{type(env).__name__} has no second scene to take thoughts from; leave the shuffle out")
        super().__init__(policy)
        self._env, self._seed = env, seed
        self._donor = make()
        self._rng = np.random.default_rng(seed)
        self._is_over = True
        self._time_s = 0.0

    def seed_episode(self, seed: int) -> None:
        """Restarts the draw of scenes, and the wrapped policy's random stream if it has one."""
        self._rng = np.random.default_rng((self._seed, seed))
        super().seed_episode(seed)

    def reset(self) -> None:
        """Forgets the other scene; the next one is laid out at the first `act`."""
        self._is_over = True
        super().reset()

    def act(self, observation: Observation) -> ActionChunk:
        """Asks the wrapped policy, with a thought about the other scene."""
        self._play_until(observation.time_s)
        about = self._donor.observe(with_image=True)
        return cast(ThinkingPolicy, self._policy).act(observation, thought_about=about)

    def _play_until(self, time_s: float) -> None:
        """Lets the expert act for as long as passed since the last call; lays out a scene where none is running."""
        num_steps = 0 if self._is_over else round((time_s - self._time_s) * self._donor.robot_spec.control_rate_hz)
        self._time_s = time_s
        for _ in range(num_steps):
            _, _, terminated, truncated, _ = self._donor.step(self._donor.expert_action())
            self._is_over = bool(terminated or truncated)
            if self._is_over:
                break
        if self._is_over:
            seed = eval_seed(_FIRST_DONOR + int(self._rng.integers(EVAL_OFFSET - _FIRST_DONOR)))
            self._donor.reset(seed=seed, options={"task": _task_name(self._env)})
            self._is_over = False

    def close(self) -> None:
        """Closes the other scene and the wrapped policy."""
        self._donor.close()
        super().close()


class StaleThoughts(Wrapper):
    """A policy whose every thought is about what it saw `age` calls ago; the first calls use the oldest there is."""

    def __init__(self, policy: ThinkingPolicy, age: int) -> None:
        super().__init__(policy)
        self._seen: deque[Observation] = deque(maxlen=age + 1)

    def reset(self) -> None:
        """Forgets what was seen."""
        self._seen.clear()
        super().reset()

    def act(self, observation: Observation) -> ActionChunk:
        """Asks the wrapped policy, with a thought about an earlier observation."""
        self._seen.append(observation)
        return cast(ThinkingPolicy, self._policy).act(observation, thought_about=self._seen[0])


def _task_name(env: EpisodeEnv) -> str:
    return str(env.truth().task_name)  # type: ignore[attr-defined]  # whoever has a twin is a simulated scene
