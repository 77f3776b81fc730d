"""Wrong sentences for the shuffled control: what another task of the same kind would be told.

A wrong sentence that could be obeyed is worth more than one that could not: a policy cannot do well by treating it as
noise. So it names what stands in the scene whenever there is such a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.language import TEMPLATES, instruction_for
from roboalign.sdk.sim.layout import COLOURS, GRASPABLE, SHAPES
from roboalign.sdk.sim.sampling import sample_scene
from roboalign.sdk.sim.scene import OBJECT_GOALS, Goal
from roboalign.sdk.sim.tasks import FAMILIES, scene_for, task_names
from roboalign.sdk.sim.truth import SceneTruth

__all__ = ["TruthSource", "shuffle_sentence", "shuffle_task"]

_NAMED = re.compile(rf"\b(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})\b")
_FIXTURE_WORDS = {"drawer": "drawer", "door": "door", "slider": "door", "button": "button", "light": "light"}


class TruthSource(Protocol):
    """A simulated scene that can be asked what is true; `roboalign.sdk.sim.env.SimEnv` has it."""

    def truth(self) -> SceneTruth:
        """Returns the truth at this moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wrong:
    """A sentence that is not the true one."""

    sentence: str
    goals: tuple[Goal, ...]


def shuffle_sentence(env: object, rng: np.random.Generator, *, seed: int, split: str = "train") -> str:
    """Returns a wrong sentence for the scene that an environment shows now.

    Args:
        env: A simulated scene with `truth()`, or an outside benchmark with `tasks`, `task` and `instruction`.
        rng: Decides which one.
        seed: Seed of the scene; sentences of other tasks are those of their scenes of the same seed.
        split: Split of the scene.

    Raises:
        ConfigError: The environment offers no other sentence.
    """
    truth = env.truth() if hasattr(env, "truth") else None
    if not isinstance(truth, SceneTruth):
        return _benchmark_sentence(env, rng)
    single = len(truth.all_goals) == 1 and truth.is_about_object
    if truth.task_name in FAMILIES or (single and _has_other_target(truth)):
        return shuffle_task(truth, rng)
    wrong = [item for item in _sentences(truth, seed, split) if _is_wrong(item, truth)]
    could_be_obeyed = [item for item in wrong if _fits(item.sentence, truth)]
    choices = could_be_obeyed or wrong
    if choices:
        return choices[int(rng.integers(len(choices)))].sentence
    if truth.is_about_object:
        return shuffle_task(truth, rng)
    raise ConfigError(f"no other task is like {truth.task_name!r}, so there is no wrong sentence to tell")


def shuffle_task(truth: SceneTruth, rng: np.random.Generator) -> str:
    """Returns a sentence of the same family that asks for another target, and for another goal where there is one.

    It names objects that stand on the table when it can. Where the scene has no second target (some stack scenes), the
    sentence of another scene is taken.
    """
    shapes, labels = {item.name: item.shape for item in truth.objects}, {o.name: o.label for o in truth.objects}
    targets = [name for name, shape in shapes.items() if shape in GRASPABLE and labels[name] != _label(truth)]
    if truth.family == "push":
        goals = ["left", "right"]
    else:
        wanted = "bowl" if truth.family == "place" else "block"
        goals = [name for name, shape in shapes.items() if shape == wanted]
    pairs = [(target, goal) for target in targets for goal in goals if target != goal]
    pairs = [pair for pair in pairs if pair[1] != truth.goal] or pairs
    if pairs:
        target, goal = pairs[int(rng.integers(len(pairs)))]
        target, goal = labels[target], labels.get(goal, goal)
    else:
        while True:
            scene = sample_scene(rng, truth.family)
            target, goal = scene.target, scene.goal
            if target != _label(truth):
                break
    index = int(rng.integers(len(TEMPLATES[truth.family]["train"])))
    return instruction_for(truth.family, target, goal, index=index)


def _label(truth: SceneTruth) -> str:
    return truth.target_object.label


def _has_other_target(truth: SceneTruth) -> bool:
    """Whether something that looks otherwise than the target could be moved instead."""
    return any(item.shape in GRASPABLE and item.label != _label(truth) for item in truth.objects)


def _sentences(truth: SceneTruth, seed: int, split: str) -> Iterator[_Wrong]:
    """Yields the sentences of the other tasks of the suite, of their scenes of the same seed."""
    suite, slash, _ = truth.task_name.partition("/")
    for name in task_names():
        if not slash or not name.startswith(f"{suite}/") or name == truth.task_name:
            continue
        scene = scene_for(seed, name, split, truth.robot)
        if scene.is_sequence:
            for sentence, goal in zip(scene.instructions, scene.goals, strict=True):
                yield _Wrong(sentence=sentence, goals=(goal,))
        else:
            yield _Wrong(sentence=scene.instruction, goals=scene.all_goals)


def _is_wrong(item: _Wrong, truth: SceneTruth) -> bool:
    """Whether obeying it would not do what is asked now."""
    if item.sentence == truth.instruction:
        return False
    now = Goal(kind=truth.family, target=truth.target, goal=truth.goal)
    if truth.is_sequence:
        return item.goals != (now,) and (now.kind in OBJECT_GOALS or item.goals[0].kind != now.kind)
    # Where objects look alike, the same name means another object in another scene.
    is_ambiguous = any(item.name != item.label for item in truth.objects)
    return item.goals != truth.all_goals or is_ambiguous


def _fits(sentence: str, truth: SceneTruth) -> bool:
    """Whether everything that a sentence names is in the scene."""
    labels = {item.label for item in truth.objects}
    fixtures = {item.name for item in truth.fixtures}
    named = {kind for word, kind in _FIXTURE_WORDS.items() if re.search(rf"\b{word}\b", sentence)}
    return set(_NAMED.findall(sentence)) <= labels and named <= fixtures


def _benchmark_sentence(env: object, rng: np.random.Generator) -> str:
    """Returns the words of the name of another task: LIBERO names its tasks by their sentences."""
    names: Sequence[str] = getattr(env, "tasks", ())
    true = getattr(env, "instruction", "")
    words = [re.sub(r"^\d+_", "", name.rpartition("/")[2]).replace("_", " ") for name in names]
    others = [sentence for sentence in words if sentence not in (true, getattr(env, "task_words", true))]
    if len(others) < 2:
        raise ConfigError(f"{type(env).__name__} does not list other tasks, so there is no wrong sentence to tell")
    return others[int(rng.integers(len(others)))]
