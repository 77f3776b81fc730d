"""Sentences from simulator truth: questions with answers, and thoughts in varied wording.

Everything is derived from one `SceneTruth`; numbers are whole length units of the `PromptFormat` (5 mm by default),
so a sentence can be checked against the scene it was made from. Directions are those of the camera picture: `near`
is +x
(towards the camera), `far` is -x, `right` is +y, `left` is -y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.sim.truth import ObjectTruth, SceneTruth

__all__ = ["QUESTION_KINDS", "QuestionAnswer", "named_objects", "next_words", "question", "thought"]

_NEXT = {
    "reach": "move above the {target}",
    "descend": "go down to the {target}",
    "grasp": "close the gripper on the {target}",
    "lift": "lift the {target}",
    "carry": "carry the {target} to the {goal}",
    "lower": "lower the {target} onto the {goal}",
    "release": "open the gripper",
    "retreat": "move up and away",
    "push": "push the {target} to the {goal}",
    "done": "stay still",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionAnswer:
    """One question about a picture, with its answer and the objects it is about."""

    question: str
    """The question, in the form the prompt takes."""
    answer: str
    """The answer in words."""
    objects: tuple[str, ...]
    """Names of the objects that the question is about, in the order they are named (at most two)."""


def next_words(truth: SceneTruth) -> str:
    """Returns what to do next, in words, e.g. `go down to the red block`."""
    return _NEXT[truth.stage].format(target=truth.target, goal=truth.goal)


def named_objects(truth: SceneTruth) -> tuple[str, ...]:
    """Returns the names of the objects in the scene's instruction: the target, then the goal where it is an object."""
    return (truth.target,) if truth.goal_object is None else (truth.target, truth.goal)


def _offset_words(offset_m: np.ndarray, fmt: PromptFormat) -> str:
    """Returns a planar offset in words; a zero still names a direction, so that the form never changes."""
    near, right = (int(v) for v in np.rint(np.asarray(offset_m[:2], np.float64) / fmt.length_unit_m))
    return f"{abs(near)} {'near' if near >= 0 else 'far'} {abs(right)} {'right' if right >= 0 else 'left'}"


def _place(obj: ObjectTruth, fmt: PromptFormat) -> str:
    x, y = fmt.position_numbers(np.asarray(obj.position_m[:2]))
    return f"{x} {y}"


def _hand_words(truth: SceneTruth) -> str:
    held = next((o for o in truth.objects if o.is_held), None)
    if held is not None:
        return f"holding the {held.name}"
    return "open" if truth.state[4] > 0.06 else "closed"


def _focus(truth: SceneTruth) -> ObjectTruth:
    """Returns the object that the next movement is about: the goal once the target is held, else the target."""
    goal = truth.goal_object
    return goal if goal is not None and truth.stage in ("carry", "lower", "release") else truth.target_object


def thought(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> str:
    """Returns a reasoning text: where the object that matters is, how far it is from the tool, and what comes next.

    Three styles with the same facts (spatial first, hand first, plan first), drawn by `rng`.
    """
    focus = _focus(truth)
    offset = _offset_words(np.asarray(focus.position_m[:2]) - truth.state[:2], fmt)
    place, hand, plan = _place(focus, fmt), _hand_words(truth), next_words(truth)
    styles = (
        f"the {focus.name} is at {place} , {offset} of the gripper . the gripper is {hand} . next {plan} .",
        f"gripper {hand} . {focus.name} at {place} , that is {offset} . so {plan} .",
        f"i see the {focus.name} at {place} . from the gripper it is {offset} . the hand is {hand} . i {plan} .",
    )
    return styles[int(rng.integers(len(styles)))]


def _where(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    obj = truth.objects[int(rng.integers(len(truth.objects)))]
    text = ("where is the {}", "find the {}", "point to the {}")[int(rng.integers(3))].format(obj.name)
    return QuestionAnswer(question=text, answer=_place(obj, fmt), objects=(obj.name,))


def _offset(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    obj = truth.objects[int(rng.integers(len(truth.objects)))]
    text = ("how far is the {} from the gripper", "which way from the gripper to the {}")[int(rng.integers(2))]
    answer = _offset_words(np.asarray(obj.position_m[:2]) - truth.state[:2], fmt)
    return QuestionAnswer(question=text.format(obj.name), answer=answer, objects=(obj.name,))


def _everything(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    objects = sorted(truth.objects, key=lambda o: o.name)
    text = ("what is on the table", "list the objects")[int(rng.integers(2))]
    return QuestionAnswer(question=text, answer=" , ".join(f"{o.name} {_place(o, fmt)}" for o in objects), objects=())


def _colour(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    obj = truth.objects[int(rng.integers(len(truth.objects)))]
    return QuestionAnswer(
        question=f"what is at {_place(obj, fmt)}", answer=f"{obj.colour} {obj.shape}", objects=(obj.name,)
    )


def _left_of(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    if len(truth.objects) < 2:
        return _where(truth, fmt, rng)
    first, second = (truth.objects[int(i)] for i in rng.permutation(len(truth.objects))[:2])
    is_left = first.position_m[1] < second.position_m[1]
    text = f"is the {first.name} left of the {second.name}"
    answer = f"{'yes' if is_left else 'no'} , {_place(first, fmt)} and {_place(second, fmt)}"
    return QuestionAnswer(question=text, answer=answer, objects=(first.name, second.name))


def _held(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    obj = truth.target_object if rng.random() < 0.7 else truth.objects[int(rng.integers(len(truth.objects)))]
    text = f"is the {obj.name} in the gripper"
    return QuestionAnswer(question=text, answer="yes" if obj.is_held else "no", objects=(obj.name,))


_MAKERS: dict[str, Callable[[SceneTruth, PromptFormat, np.random.Generator], QuestionAnswer]] = {
    "where": _where,
    "offset": _offset,
    "everything": _everything,
    "colour": _colour,
    "left_of": _left_of,
    "held": _held,
}

QUESTION_KINDS = (*_MAKERS, "next")
"""Names of the question families; `next` asks what the robot should do for the scene's own instruction."""


def question(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator, kind: str) -> QuestionAnswer:
    """Returns one question of the given kind about the scene, with its answer (see `QUESTION_KINDS`)."""
    if kind == "next":
        return QuestionAnswer(question=truth.instruction, answer=next_words(truth), objects=named_objects(truth))
    return _MAKERS[kind](truth, fmt, rng)
