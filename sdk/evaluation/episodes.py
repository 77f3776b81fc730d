"""One closed-loop episode: reset the scene, let a policy act in chunks until it succeeds or time runs out.

The policy sees only what `Observation` holds; success and progress come from the task's own predicates. A `hold` keeps
the tool where it is for `HOLD_STEPS` control periods with the last gripper command, and is counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from roboalign.sdk.control.chunks import Seam
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.types import ACTION_NAMES, ActionChunk, FloatArray, ImageArray, Observation, RobotSpec

__all__ = [
    "HOLD_STEPS",
    "EpisodeEnv",
    "EpisodePolicy",
    "EpisodeResult",
    "EpisodeRun",
    "Pace",
    "SeededPolicy",
    "run_episode",
]

HOLD_STEPS = 4
"""Control periods a hold lasts before the policy is asked again (0.4 s at 10 Hz)."""

_GRIPPER = ACTION_NAMES.index("gripper_open")


@runtime_checkable
class EpisodePolicy(Protocol):
    """What an episode asks of a policy; `roboalign.sdk.policy.Policy` and every control have it."""

    def reset(self) -> None:
        """Forgets the last episode."""

    def act(self, observation: Observation) -> ActionChunk:
        """Returns the next actions."""

    def close(self) -> None:
        """Frees what the policy holds."""


@runtime_checkable
class SeededPolicy(Protocol):
    """A policy that draws random numbers; told the seed of every episode, its answers do not depend on their order."""

    def seed_episode(self, seed: int) -> None:
        """Restarts every random stream from `seed`; called before `reset`."""


class Pace(Protocol):
    """How time passes while a policy computes; `roboalign.sdk.evaluation.latency.LatePace` is one.

    A policy that has one as its attribute `pace` is not waited for: the scene goes on.
    """

    def play(self, run: EpisodeRun, replan_every: int | None) -> None:
        """Plays a running episode to its end."""


class EpisodeEnv(Protocol):
    """What an episode asks of a simulated scene; `roboalign.sdk.sim.env.SimEnv` has it."""

    @property
    def robot_spec(self) -> RobotSpec:
        """Names, limits and rates of the robot; available before the first reset."""

    @property
    def instruction(self) -> str:
        """The sentence to follow now; it changes during a sequence of goals."""

    @property
    def num_goals(self) -> int:
        """Number of goals of this episode."""

    def reset(self, *, seed: int, options: dict[str, str]) -> tuple[object, object]:
        """Builds the scene of `seed`; `options["task"]` names the task."""

    def step(self, action: FloatArray) -> tuple[object, object, bool, bool, object]:
        """Applies one action for one control period; the third and fourth values end the episode."""

    def observe(self, with_image: bool) -> Observation:
        """What the robot senses now; rendering is skipped when no image is asked for."""

    def render(self) -> ImageArray:
        """Returns uint8[H, W, 3], a picture for people; does not change the scene."""

    def is_success(self) -> bool:
        """Whether the task is done now, by its own predicate."""

    def progress(self) -> float:
        """Share of the task's stages that were reached, 0 to 1."""

    def goals_done(self) -> int:
        """How many goals are reached now; in a sequence, how many were reached in their turn."""

    def domain(self) -> Mapping[str, object]:
        """Every value that was randomised for this episode, ready for JSON; empty when nothing is."""

    def state_hash(self) -> str:
        """Hash of the physical state, to compare two runs bit by bit."""

    def close(self) -> None:
        """Frees the scene."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeResult:
    """What happened in one episode; everything except `latency_s` is the same when the seed is run again."""

    seed: int
    """Seed of the scene."""
    task: str
    """Name of the task."""
    instruction: str
    """The sentence that describes the scene, the first one of a sequence (a shuffled policy was told another one)."""
    success: bool
    """Whether the task was done when the episode ended."""
    steps: int
    """Control periods that passed."""
    progress: float
    """Largest share of the stages that was reached, 0 to 1."""
    goals_done: int
    """Goals that were reached when the episode ended; in a sequence, in their turn."""
    num_goals: int
    """Goals of the episode."""
    rate_hz: float
    """Control periods a second."""
    num_calls: int
    """Times the policy was asked."""
    num_holds: int
    """Times it had no usable answer."""
    sources: Mapping[str, int]
    """Number of answers by who gave them: `flow`, `fast`, `expert`, `random`, `callable`, `hold`."""
    hold_reasons: Mapping[str, int] = field(default_factory=dict)
    """Number of holds by reason."""
    thoughts: tuple[tuple[int, str], ...] = ()
    """Control step and text of every thought."""
    instructions: tuple[tuple[int, str], ...] = ()
    """Control step from which each sentence held, and the sentence."""
    thought_statuses: Mapping[str, int] = field(default_factory=dict)
    """Number of answers by what became of the newest thought, `roboalign.sdk.types.THOUGHT_STATUSES`."""
    stood: int = 0
    """Control periods in which no action was there because the policy was still computing."""
    seams: Mapping[str, Seam] = field(default_factory=dict)
    """Changes of what was commanded, inside chunks and at their seams; empty where the policy was waited for."""
    domain: Mapping[str, object] = field(default_factory=dict)
    """What was randomised, by name."""
    start_hash: str = ""
    """Hash of the physical state after the reset: equal for every policy that is run on this scene."""
    state_hash: str = ""
    """Hash of the final physical state."""
    latency_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Seconds of every call by part; `act` is the whole call measured from outside, `thought_age` that of the picture
    behind a thought that was used."""
    frames: tuple[tuple[int, ImageArray], ...] = field(default=(), compare=False, repr=False)
    """Control step and uint8[H, W, 3] picture of every step; empty unless asked for."""


def run_episode(
    env: EpisodeEnv,
    policy: EpisodePolicy,
    *,
    seed: int,
    task: str,
    replan_every: int | None = None,
    record_frames: bool = False,
) -> EpisodeResult:
    """Runs the episode of `seed` from reset to its end.

    Args:
        env: A scene; it is reset here.
        policy: Who acts; it is reset here and not closed.
        seed: Seed of the scene.
        task: Name of the task.
        replan_every: Actions of a chunk that are applied before the policy is asked again; None applies all of them.
        record_frames: Keep a picture of every control step. Does not change the outcome.
    """
    if replan_every is not None and replan_every < 1:
        raise ConfigError(f"replan_every is {replan_every}, expected at least 1, or None for the whole chunk")
    env.reset(seed=seed, options={"task": task})
    if isinstance(policy, SeededPolicy):
        policy.seed_episode(seed)
    policy.reset()
    run = EpisodeRun(env, policy, record_frames)
    run.keep_frame()
    pace: Pace | None = getattr(policy, "pace", None)
    if pace is not None:
        pace.play(run, replan_every)
    while not run.is_over:
        run.execute(run.ask(), replan_every)
    return run.result(seed, task)


class EpisodeRun:
    """One running episode: what is asked and applied, and the counters."""

    def __init__(self, env: EpisodeEnv, policy: EpisodePolicy, record_frames: bool) -> None:
        """Takes a scene and a policy that were reset; a picture of every step is kept where that is asked for."""
        self.env, self.policy, self.record_frames = env, policy, record_frames
        self.is_over = False
        self.steps = self.num_calls = 0
        self.progress = 0.0
        self.gripper = 1.0
        self.sources: dict[str, int] = {}
        self.hold_reasons: dict[str, int] = {}
        self.thoughts: list[tuple[int, str]] = []
        self.thought_statuses: dict[str, int] = {}
        self.stood = 0
        self.seams: Mapping[str, Seam] = {}
        self.latency_s: dict[str, list[float]] = {}
        self.frames: list[tuple[int, ImageArray]] = []
        self.instructions = [(0, env.instruction)]
        self.start_hash = env.state_hash()

    def ask(self) -> ActionChunk:
        """Asks the policy once and books its answer."""
        observation = self.env.observe(with_image=bool(getattr(self.policy, "needs_image", True)))
        start_s = time.perf_counter()
        chunk = self.policy.act(observation)
        self.latency_s.setdefault("act", []).append(time.perf_counter() - start_s)
        for part, seconds in chunk.latency_s.items():
            self.latency_s.setdefault(part, []).append(float(seconds))
        self.num_calls += 1
        self.sources[chunk.source] = self.sources.get(chunk.source, 0) + 1
        if chunk.source == "hold":
            reason = chunk.reason or "no reason given"
            self.hold_reasons[reason] = self.hold_reasons.get(reason, 0) + 1
        if chunk.thought is not None:
            self.thoughts.append((self.steps, chunk.thought))
        if chunk.thought_use is not None:
            status = chunk.thought_use.status
            self.thought_statuses[status] = self.thought_statuses.get(status, 0) + 1
            if chunk.thought_use.is_used and chunk.thought_use.image_age_s is not None:
                self.latency_s.setdefault("thought_age", []).append(chunk.thought_use.image_age_s)
        return chunk

    def execute(self, chunk: ActionChunk, replan_every: int | None) -> None:
        """Applies the chunk, or stays in place when it is a hold; what is left is dropped when the sentence changes."""
        if chunk.source == "hold":
            actions = np.repeat(self.standing()[None], HOLD_STEPS, axis=0)
        else:
            actions = chunk.actions[:replan_every]
        for action in actions:
            self.step(action)
            if self.is_over or self.heard_another():
                return

    def step(self, action: FloatArray) -> None:
        """Applies one action for one control period."""
        _, _, terminated, truncated, _ = self.env.step(action)
        self.is_over = bool(terminated or truncated)
        self.gripper = float(action[_GRIPPER])
        self.steps += 1
        self.progress = max(self.progress, self.env.progress())
        self.keep_frame()

    def standing(self) -> FloatArray:
        """Returns the action that stays in place with the last gripper command."""
        action = np.zeros(len(ACTION_NAMES), np.float32)
        action[_GRIPPER] = self.gripper
        return action

    def heard_another(self) -> bool:
        """Books a change of the sentence; the actions that are left belong to the one before."""
        sentence = self.env.instruction
        if sentence == self.instructions[-1][1]:
            return False
        self.instructions.append((self.steps, sentence))
        return True

    def keep_frame(self) -> None:
        """Keeps a picture of this moment when film was asked for."""
        if self.record_frames:
            self.frames.append((self.steps, self.env.render()))

    def result(self, seed: int, task: str) -> EpisodeResult:
        """Closes the books."""
        success = self.env.is_success()
        return EpisodeResult(
            seed=seed,
            task=task,
            instruction=self.instructions[0][1],
            success=success,
            steps=self.steps,
            progress=1.0 if success else self.progress,
            goals_done=self.env.goals_done(),
            num_goals=self.env.num_goals,
            rate_hz=self.env.robot_spec.control_rate_hz,
            num_calls=self.num_calls,
            num_holds=self.sources.get("hold", 0),
            sources=self.sources,
            hold_reasons=self.hold_reasons,
            thoughts=tuple(self.thoughts),
            instructions=tuple(self.instructions),
            domain=dict(self.env.domain()),
            start_hash=self.start_hash,
            state_hash=self.env.state_hash(),
            thought_statuses=self.thought_statuses,
            stood=self.stood,
            seams=self.seams,
            latency_s={part: tuple(values) for part, values in self.latency_s.items()},
            frames=tuple(self.frames),
        )
