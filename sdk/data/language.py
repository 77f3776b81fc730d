"""Sentences from simulator truth: questions with answers, and thoughts in varied wording.

Everything is derived from one `SceneTruth`; numbers are whole length units of the `PromptFormat` (5 mm by default),
so a sentence can be checked against the scene it was made from. Directions are those of the camera picture: `near`
is +x
(towards the camera), `far` is -x, `right` is +y, `left` is -y.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.sim.truth import FixtureTruth, ObjectTruth, SceneTruth

__all__ = [
    "QUESTION_KINDS",
    "QuestionAnswer",
    "focus_of",
    "label_of",
    "named_objects",
    "next_words",
    "offset_words",
    "place_words",
    "question",
    "step_words",
    "tellable_things",
    "thought",
]

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
    "pull": "pull the {target}",
    "press": "press the {target}",
    "done": "stay still",
}
_NEXT_WITH = {
    "open": {**_NEXT, "reach": "move behind the handle of the {target}", "pull": "pull the {target} open"},
    "close": {**_NEXT, "reach": "move in front of the handle of the {target}", "push": "push the {target} closed"},
    "slide": {**_NEXT, "reach": "move beside the handle of the {target}", "push": "push the {target} to the {goal}"},
    "press": {**_NEXT, "press": "press the {target} down"},
    "light": {**_NEXT, "press": "press the {target} to turn the light {goal}"},
}
"""What is said otherwise when the goal is about a fixture; the target is what the hand works on."""

_Thing = ObjectTruth | FixtureTruth


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
    return step_words(truth, truth.stage)


def step_words(truth: SceneTruth, stage: str) -> str:
    """Returns one stage of the scene's goal in words."""
    words = _NEXT_WITH.get(truth.family, _NEXT)[stage]
    if not truth.is_about_object:
        return words.format(target=_handled(truth).name, goal=truth.goal)
    place = truth.goal_object
    return words.format(target=truth.target_object.label, goal=truth.goal if place is None else place.label)


def named_objects(truth: SceneTruth) -> tuple[str, ...]:
    """Returns the names of the things in the scene's instruction: the target, then the goal where it is an object."""
    return (truth.target,) if truth.goal_object is None else (truth.target, truth.goal)


def offset_words(offset_m: np.ndarray, fmt: PromptFormat) -> str:
    """Returns a planar offset in words; a zero still names a direction, so that the form never changes."""
    near, right = (int(v) for v in np.rint(np.asarray(offset_m[:2], np.float64) / fmt.length_unit_m))
    return f"{abs(near)} {'near' if near >= 0 else 'far'} {abs(right)} {'right' if right >= 0 else 'left'}"


def place_words(obj: _Thing, fmt: PromptFormat) -> str:
    """Returns where a thing is, as two numbers."""
    x, y = fmt.position_numbers(np.asarray(obj.position_m[:2]))
    return f"{x} {y}"


def _hand_words(truth: SceneTruth) -> str:
    held = next((o for o in truth.objects if o.is_held), None)
    if held is not None:
        return f"holding the {held.label}"
    return "open" if truth.state[4] > 0.06 else "closed"


def _handled(truth: SceneTruth) -> FixtureTruth:
    """Returns the fixture that the hand works on: the button switches the light."""
    return truth.fixture("button" if truth.family == "light" else truth.target)


def label_of(thing: _Thing) -> str:
    """Returns what people call it: two objects that look alike are called the same."""
    return thing.label if isinstance(thing, ObjectTruth) else thing.name


def _all_things(truth: SceneTruth) -> list[_Thing]:
    """Returns objects, then fixtures."""
    return [*truth.objects, *truth.fixtures]


def tellable_things(truth: SceneTruth) -> list[_Thing]:
    """Returns everything that a word can point to: no objects that look alike; all, should nothing else be there."""
    things = _all_things(truth)
    labels = [label_of(thing) for thing in things]
    return [thing for thing in things if labels.count(label_of(thing)) == 1] or things


def _draw(things: Sequence[_Thing], rng: np.random.Generator) -> _Thing:
    return things[int(rng.integers(len(things)))]


def focus_of(truth: SceneTruth) -> _Thing:
    """Returns what the next movement is about: the goal once the target is held, else the target."""
    if not truth.is_about_object:
        return _handled(truth)
    goal = truth.goal_object
    return goal if goal is not None and truth.stage in ("carry", "lower", "release") else truth.target_object


def thought(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> str:
    """Returns a reasoning text: where the object that matters is, how far it is from the tool, and what comes next.

    Three styles with the same facts (spatial first, hand first, plan first), drawn by `rng`.
    """
    focus = focus_of(truth)
    offset = offset_words(np.asarray(focus.position_m[:2]) - truth.state[:2], fmt)
    place, hand, plan, name = place_words(focus, fmt), _hand_words(truth), next_words(truth), label_of(focus)
    styles = (
        f"the {name} is at {place} , {offset} of the gripper . the gripper is {hand} . next {plan} .",
        f"gripper {hand} . {name} at {place} , that is {offset} . so {plan} .",
        f"i see the {name} at {place} . from the gripper it is {offset} . the hand is {hand} . i {plan} .",
    )
    return styles[int(rng.integers(len(styles)))]


def _where(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    thing = _draw(tellable_things(truth), rng)
    text = ("where is the {}", "find the {}", "point to the {}")[int(rng.integers(3))].format(label_of(thing))
    return QuestionAnswer(question=text, answer=place_words(thing, fmt), objects=(thing.name,))


def _offset(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    thing = _draw(tellable_things(truth), rng)
    text = ("how far is the {} from the gripper", "which way from the gripper to the {}")[int(rng.integers(2))]
    answer = offset_words(np.asarray(thing.position_m[:2]) - truth.state[:2], fmt)
    return QuestionAnswer(question=text.format(label_of(thing)), answer=answer, objects=(thing.name,))


def _everything(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    things = sorted(_all_things(truth), key=lambda thing: thing.name)
    text = ("what is on the table", "list the objects")[int(rng.integers(2))]
    answer = " , ".join(f"{label_of(thing)} {place_words(thing, fmt)}" for thing in things)
    return QuestionAnswer(question=text, answer=answer, objects=())


def _colour(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    thing = _draw(_all_things(truth), rng)
    return QuestionAnswer(
        question=f"what is at {place_words(thing, fmt)}", answer=label_of(thing), objects=(thing.name,)
    )


def _left_of(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    things = tellable_things(truth)
    if len(things) < 2 or len({label_of(thing) for thing in things}) < len(things):
        return _where(truth, fmt, rng)
    first, second = (things[int(i)] for i in rng.permutation(len(things))[:2])
    is_left = first.position_m[1] < second.position_m[1]
    text = f"is the {label_of(first)} left of the {label_of(second)}"
    answer = f"{'yes' if is_left else 'no'} , {place_words(first, fmt)} and {place_words(second, fmt)}"
    return QuestionAnswer(question=text, answer=answer, objects=(first.name, second.name))


def _held(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    if not truth.objects:
        return _where(truth, fmt, rng)
    is_target = truth.is_about_object and rng.random() < 0.7
    obj = truth.target_object if is_target else truth.objects[int(rng.integers(len(truth.objects)))]
    is_held = any(item.is_held for item in truth.objects if item.label == obj.label)
    text = f"is the {obj.label} in the gripper"
    return QuestionAnswer(question=text, answer="yes" if is_held else "no", objects=(obj.name,))


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
