"""Plays the expert in the simulator and keeps what it saw and did, one episode at a time.

A demonstration: with probability `ActionNoise.share` a step *executes* the expert's action plus Gaussian noise, while
the *recorded* action is the expert's own, so that the data also show the way back (DART, arXiv 1703.09327). State,
truth and image are taken before the action. A scene: the same, but only a few random moments are rendered and the
episode is cut after the last of them, for training on pictures and questions, not on actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from roboalign.sdk.data.arrow import encode_png
from roboalign.sdk.data.episode import Episode, LanguageRow, truth_to_json
from roboalign.sdk.data.language import next_words
from roboalign.sdk.types import STATES, FloatArray, Observation

if TYPE_CHECKING:
    from roboalign.sdk.sim.truth import SceneTruth

__all__ = ["ActionNoise", "DemonstrationEnv", "Expert", "record_demonstration", "record_scene"]

FRONT = "front"
NOISE_STREAM = 0xDA47
"""Keeps the noise of an episode apart from the random numbers that laid out its scene."""
MOMENT_STREAM = 0x5CE0
"""The same for the choice of the moments to render."""
SCENE_STEPS = 20
"""Moments of a scene are drawn from the first so many steps: about the length of an episode."""

Expert = Callable[["SceneTruth"], FloatArray]


class DemonstrationEnv(Protocol):
    """The part of `SimEnv` that recording needs."""

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> object:
        """Lays out the scene of this seed."""

    def advance(self, action: FloatArray) -> bool:
        """Applies one action without rendering; returns True when no further step is allowed."""

    def observe(self, with_image: bool = True) -> Observation:
        """Returns what the robot senses now."""

    def truth(self) -> SceneTruth:
        """Returns what is true now."""

    def foreseen(self, truth: SceneTruth) -> SceneTruth:
        """Returns what will be true when the arm has caught up with what was sent."""

    def is_success(self) -> bool:
        """True when the task is done."""

    def domain(self) -> Mapping[str, object]:
        """Returns every value that the randomisation drew for this episode, ready for JSON; {} when it is off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionNoise:
    """Noise that is executed but not recorded."""

    share: float
    """Probability that a step is disturbed."""
    std_m: float
    """Standard deviation on dx, dy and dz."""
    std_rad: float
    """Standard deviation on dyaw."""

    def disturb(self, action: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Returns the action to execute; always draws the same number of random numbers."""
        is_disturbed = rng.random() < self.share
        noise = rng.standard_normal(4) * (self.std_m, self.std_m, self.std_m, self.std_rad)
        executed = np.array(action, dtype=np.float32)
        if is_disturbed:
            executed[:4] += noise
        return executed


@dataclass(kw_only=True, slots=True)
class _Recorder:
    """Collects frames until they become an `Episode`."""

    rate_hz: float
    state: str
    states: list[FloatArray] = field(default_factory=list)
    joints: list[FloatArray] = field(default_factory=list)
    actions: list[FloatArray] = field(default_factory=list)
    images: list[Mapping[str, bytes]] = field(default_factory=list)
    truths: list[str] = field(default_factory=list)
    subtasks: list[LanguageRow] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)

    def add(self, observation: Observation, truth: SceneTruth, action: FloatArray) -> None:
        """Records one frame."""
        words = next_words(truth)
        if not self.subtasks or self.subtasks[-1].content != words:
            time_s = len(self.states) / self.rate_hz
            self.subtasks.append(LanguageRow(role="assistant", content=words, style="subtask", timestamp_s=time_s))
        self.states.append(observation.state_of(STATES[self.state]))
        self.joints.append(observation.joint_pos_rad)
        self.actions.append(np.asarray(action, dtype=np.float32))
        self.instructions.append(truth.instruction)
        self.images.append({camera: encode_png(image) for camera, image in observation.images.items()})
        self.truths.append(truth_to_json(truth))

    def episode(self, domain: Mapping[str, object]) -> Episode:
        """Returns what was recorded."""
        others = sorted({camera for images in self.images for camera in images} - {FRONT})
        return Episode(
            task=self.instructions[0],
            instructions=tuple(self.instructions) if len(set(self.instructions)) > 1 else (),
            states=np.stack(self.states),
            state_names=STATES[self.state],
            joint_pos_rad=np.stack(self.joints).astype(np.float32),
            actions=np.stack(self.actions),
            images=tuple(images.get(FRONT) for images in self.images),
            other_images={camera: tuple(images.get(camera) for images in self.images) for camera in others},
            truth_json=tuple(self.truths),
            rate_hz=self.rate_hz,
            language_persistent=tuple(self.subtasks),
            domain=domain,
        )


def record_demonstration(
    env: DemonstrationEnv,
    expert: Expert,
    *,
    scene: Mapping[str, object],
    seed: int,
    noise: ActionNoise,
    image_every: int,
    rate_hz: float,
    state: str = "measured",
) -> Episode | None:
    """Returns one successful demonstration, or None when the expert did not finish.

    Args:
        env: The simulator; it is reset.
        expert: Answers the next action for a truth.
        scene: Options of the reset (`{"task": ...}`).
        seed: Decides the scene and the noise.
        noise: What disturbs the execution.
        image_every: Frames 0, k, 2k ... get an image.
        rate_hz: Control rate.
        state: Which of `STATES` is recorded; with `commanded`, words and truth are those of an arm that has caught up.
    """
    rng = np.random.default_rng([seed, NOISE_STREAM])
    recorder = _Recorder(rate_hz=rate_hz, state=state)
    env.reset(seed=seed, options=dict(scene))
    step, is_over = 0, False
    while not is_over:
        truth = env.truth()
        action = expert(truth)
        recorder.add(env.observe(with_image=step % image_every == 0), _told(env, truth, state), action)
        is_over = env.advance(noise.disturb(action, rng))
        if env.is_success():
            return recorder.episode(env.domain())
        step += 1
    return None


def record_scene(
    env: DemonstrationEnv,
    expert: Expert,
    *,
    scene: Mapping[str, object],
    seed: int,
    noise: ActionNoise,
    num_images: int,
    rate_hz: float,
    state: str = "measured",
) -> Episode:
    """Returns the start of an episode with pictures at `num_images` random moments, whether or not it would succeed.

    When the expert is done before the last moment, the finished scene is rendered once instead of the moments left.
    """
    moments = np.random.default_rng([seed, MOMENT_STREAM]).choice(SCENE_STEPS, size=num_images, replace=False)
    last = int(moments.max())
    rng = np.random.default_rng([seed, NOISE_STREAM])
    recorder = _Recorder(rate_hz=rate_hz, state=state)
    env.reset(seed=seed, options=dict(scene))
    is_over = False
    for step in range(last + 1):
        truth = env.truth()
        action = expert(truth)
        is_over = is_over or env.is_success()
        recorder.add(env.observe(with_image=is_over or step in moments), _told(env, truth, state), action)
        if is_over:
            break
        is_over = env.advance(noise.disturb(action, rng))
    return recorder.episode(env.domain())


def _told(env: DemonstrationEnv, truth: SceneTruth, state: str) -> SceneTruth:
    """Returns what a frame is described by: actions and words fit the state that is recorded."""
    return env.foreseen(truth) if state == "commanded" else truth
