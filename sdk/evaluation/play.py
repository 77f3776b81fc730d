"""`run_task`: one sentence, one simulated scene that fits it, one episode, with the thoughts as they come and a film.

The sentence is searched for objects and a few words, only in order to find a fitting scene and to judge the outcome.
The policy is given the sentence itself.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.contenders import PolicyRef
from roboalign.sdk.evaluation.controls import Wrapper
from roboalign.sdk.evaluation.episodes import EpisodePolicy, EpisodeResult, run_episode
from roboalign.sdk.evaluation.pictures import captioned_frames, write_gif
from roboalign.sdk.evaluation.scenes import SceneRef
from roboalign.sdk.sim.language import SENTENCES, TEMPLATES, instruction_for
from roboalign.sdk.sim.layout import COLOURS, GRASPABLE, SHAPES
from roboalign.sdk.sim.seeds import eval_seed
from roboalign.sdk.types import ActionChunk, Observation

__all__ = ["PlayConfig", "PlayResult", "Task", "find_scene", "parse_task", "run_task"]

_SEARCHED_SCENES = 20_000
"""Scenes looked at before giving up; one in about 70 fits a place task, and one is drawn in under a millisecond."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a sentence asks for."""

    family: str
    """One of `roboalign.sdk.sim.tasks.FAMILIES`."""
    target: str
    """Name of the object to move."""
    goal: str
    """Name of the bowl or block it goes to; `left` or `right` for push."""
    sentence: str
    """The sentence in lower case, without punctuation."""

    @property
    def is_known_form(self) -> bool:
        """Whether the sentence has a form that scenes are described with; others are worth less trust."""
        forms = {template for split in SENTENCES for template in TEMPLATES[self.family][split]}
        return self.sentence in {form.format(target=self.target, goal=self.goal) for form in forms}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayConfig:
    """One sentence to act on."""

    task: str
    """The sentence, e.g. `put the red block in the blue bowl`."""
    out: Path | None = None
    """Gif to write; None writes none."""
    policy: PolicyRef = field(default_factory=lambda: PolicyRef(kind="bundle"))
    """Who acts."""
    seed: int = 0
    """Chooses among the scenes that fit the sentence; they are held-out scenes."""
    replan_every: int | None = None
    """Actions of a chunk that are applied before the policy is asked again; None applies all."""

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix.lower() != ".gif":
            raise ConfigError(f"out is {str(self.out)!r}, only .gif can be written; give a name that ends in .gif")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayResult:
    """How it went."""

    task: Task
    """What was asked."""
    scene_seed: int
    """Seed of the scene that was found."""
    episode: EpisodeResult
    """The whole episode, pictures included when a gif was asked for."""
    gif: Path | None
    """The film."""


def run_task(config: PlayConfig, *, say: Callable[[str], None] = print) -> PlayResult:
    """Finds a scene that fits the sentence and lets the policy act in it once.

    Args:
        config: The sentence, the policy, and where the film goes.
        say: Gets every line for the reader: the thoughts as they come, then the outcome.

    Raises:
        ConfigError: The sentence is not understood; the message lists what can be asked.
    """
    task = parse_task(config.task)
    seed = find_scene(task, config.seed)
    if not task.is_known_form:
        say(f"note: sentences of training say it like this: {instruction_for(task.family, task.target, task.goal)!r}")
    env = SceneRef().open()
    try:
        policy = config.policy.open(env)
    except BaseException:
        env.close()
        raise
    say(f"task: {task.sentence} (scene {seed}, policy: {config.policy.name})")
    try:
        episode = run_episode(
            env,
            _Narrator(policy, task.sentence, say),
            seed=seed,
            task=task.family,
            replan_every=config.replan_every,
            record_frames=config.out is not None,
        )
    finally:
        policy.close()
        env.close()
    told = ((0, task.sentence),)
    episode = replace(
        episode, instruction=task.sentence, instructions=told
    )  # what the policy was told, not how the scene words it
    gif = write_gif(captioned_frames(episode), config.out) if config.out is not None else None
    who = ", ".join(sorted(episode.sources))
    say(f"{'done' if episode.success else 'not done'} after {episode.steps} steps; acted: {who}")
    return PlayResult(task=task, scene_seed=seed, episode=episode, gif=gif)


def parse_task(sentence: str) -> Task:
    """Returns what the sentence asks for.

    >>> parse_task("Put the red block in the blue bowl!").goal
    'blue bowl'
    """
    words = " ".join(sentence.lower().translate(str.maketrans("", "", string.punctuation)).split())
    named = re.findall(rf"\b(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})\b", words)
    sides = re.findall(r"\b(?:left|right)\b", words)
    targets = [name for name in named if name.split()[1] in GRASPABLE]
    if len(named) == 1 and targets and len(set(sides)) == 1:
        return Task(family="push", target=named[0], goal=sides[0], sentence=words)
    if len(named) == 2 and not sides and named[0] in targets and named[0] != named[1]:
        family = {"bowl": "place", "block": "stack"}.get(named[1].split()[1])
        if family is not None:
            return Task(family=family, target=named[0], goal=named[1], sentence=words)
    raise ConfigError(f"the task {sentence!r} is not understood; {_what_can_be_asked()}")


def find_scene(task: Task, index: int = 0) -> int:
    """Returns the seed of the `index`-th held-out scene whose target and goal are the ones asked for."""
    from roboalign.sdk.sim.tasks import scene_for

    if index < 0:
        raise ConfigError(f"seed is {index}, expected 0 or more")
    left = index
    for number in range(_SEARCHED_SCENES):
        seed = eval_seed(number)
        scene = scene_for(seed, task.family)
        if (scene.target, scene.goal) == (task.target, task.goal):
            if left == 0:
                return seed
            left -= 1
    raise ConfigError(f"no scene number {index} found for {task.sentence!r}; choose a smaller seed")


def _what_can_be_asked() -> str:
    examples = (
        instruction_for("place", "red block", "blue bowl"),
        instruction_for("push", "green cylinder", "left"),
        instruction_for("stack", "red block", "green block"),
    )
    forms = ", ".join(repr(example) for example in examples)
    return f"ask like {forms}, with the colours {', '.join(COLOURS)} and the shapes {', '.join(SHAPES)}"


class _Narrator(Wrapper):
    """Gives the policy the user's sentence and says its thoughts aloud, each once."""

    def __init__(self, policy: EpisodePolicy, sentence: str, say: Callable[[str], None]) -> None:
        super().__init__(policy)
        self._sentence, self._say = sentence, say
        self._start_s: float | None = None

    def reset(self) -> None:
        self._start_s = None
        super().reset()

    def act(self, observation: Observation) -> ActionChunk:
        chunk = self._policy.act(replace(observation, instruction=self._sentence))
        if self._start_s is None:
            self._start_s = observation.time_s
        text = chunk.thought if chunk.source != "hold" else f"(holding: {chunk.reason})"
        is_new = chunk.thought_use is None or chunk.thought_use.status != "held" or chunk.source == "hold"
        if text and is_new:
            self._say(f"{observation.time_s - self._start_s:5.1f} s  {text}")
        return chunk
