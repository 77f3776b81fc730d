"""Policies that say what a success rate is worth: the expert, chance, and the real policy told the wrong sentence.

Each has the methods of `EpisodePolicy`. The expert reads simulator truth, which no robot has; it bounds what the scenes
allow. A policy that does not listen scores the same with a shuffled instruction as with the true one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from roboalign.sdk.evaluation.episodes import EpisodePolicy, SeededPolicy
from roboalign.sdk.sim.language import TEMPLATES, instruction_for
from roboalign.sdk.sim.layout import GRASPABLE
from roboalign.sdk.sim.tasks import sample_scene
from roboalign.sdk.sim.truth import SceneTruth
from roboalign.sdk.types import ACTION_NAMES, ActionChunk, Observation, RobotSpec

__all__ = ["ExpertPolicy", "RandomPolicy", "ShuffledInstruction", "TruthSource", "shuffle_task"]


class TruthSource(Protocol):
    """A simulated scene that can be asked what is true; `roboalign.sdk.sim.env.SimEnv` has it."""

    def truth(self) -> SceneTruth:
        """Returns the truth at this moment."""


class ExpertPolicy:
    """The scripted expert as a policy: one action at a time, from simulator truth."""

    needs_image = False

    def __init__(self, env: TruthSource, *, rate_hz: float = 10.0) -> None:
        self._env, self._rate_hz = env, rate_hz

    def reset(self) -> None:
        """Does nothing: the expert has no memory."""

    def act(self, observation: Observation) -> ActionChunk:
        """Returns the expert's next action; the observation is not looked at."""
        from roboalign.sdk.sim.expert import expert_action

        return ActionChunk(actions=expert_action(self._env.truth())[None], rate_hz=self._rate_hz, source="expert")

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


class ShuffledInstruction:
    """A policy that is told the sentence of another task in the same scene, and judged by the true one."""

    def __init__(self, policy: EpisodePolicy, env: TruthSource, seed: int = 0) -> None:
        self._policy, self._env, self._seed = policy, env, seed
        self._rng = np.random.default_rng(seed)
        self._told: str | None = None

    @property
    def needs_image(self) -> bool:
        """Whether the wrapped policy looks at pictures."""
        return bool(getattr(self._policy, "needs_image", True))

    def seed_episode(self, seed: int) -> None:
        """Restarts the draw of sentences, and the wrapped policy's random stream if it has one."""
        self._rng = np.random.default_rng((self._seed, seed))
        if isinstance(self._policy, SeededPolicy):
            self._policy.seed_episode(seed)

    def reset(self) -> None:
        """Forgets the sentence; the next one is drawn at the first `act`."""
        self._told = None
        self._policy.reset()

    def act(self, observation: Observation) -> ActionChunk:
        """Asks the wrapped policy with the wrong sentence."""
        if self._told is None:
            self._told = shuffle_task(self._env.truth(), self._rng)
        return self._policy.act(replace(observation, instruction=self._told))

    def close(self) -> None:
        """Closes the wrapped policy."""
        self._policy.close()


def shuffle_task(truth: SceneTruth, rng: np.random.Generator) -> str:
    """Returns a sentence of the same family that asks for another target, and for another goal where there is one.

    It names objects that stand on the table when it can: such a sentence could be obeyed, so a policy cannot do well
    by treating it as noise. Where the scene has no second target (some stack scenes), the sentence of another scene is
    taken.
    """
    shapes = {item.name: item.shape for item in truth.objects}
    targets = [name for name, shape in shapes.items() if shape in GRASPABLE and name != truth.target]
    if truth.family == "push":
        goals = ["left", "right"]
    else:
        wanted = "bowl" if truth.family == "place" else "block"
        goals = [name for name, shape in shapes.items() if shape == wanted]
    pairs = [(target, goal) for target in targets for goal in goals if target != goal]
    pairs = [pair for pair in pairs if pair[1] != truth.goal] or pairs
    if pairs:
        target, goal = pairs[int(rng.integers(len(pairs)))]
    else:
        while True:
            scene = sample_scene(rng, truth.family)
            target, goal = scene.target, scene.goal
            if target != truth.target:
                break
    index = int(rng.integers(len(TEMPLATES[truth.family]["train"])))
    return instruction_for(truth.family, target, goal, index=index)
