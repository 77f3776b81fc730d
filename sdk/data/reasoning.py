"""Reasoning in several styles, from simulator truth: what is asked, the thought, and the answer in words.

`default` is the short thought of `language.thought`. `spatial` says where everything is and how things stand to each
other, `procedural` what was done, what comes now and what comes after it, and `choice` picks among lettered options.
Everything is true of the scene, and every number is one of the prompt's units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.data.language import (
    QuestionAnswer,
    focus_of,
    label_of,
    named_objects,
    next_words,
    offset_words,
    place_words,
    step_words,
    tellable_things,
    thought,
)
from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.sim.truth import SceneTruth

__all__ = ["REASONING_STYLES", "Reasoning", "choice_question", "reason", "steps_of"]

_PICK = ("reach", "descend", "grasp", "lift", "carry", "lower", "release", "retreat", "done")
_STEPS = {
    "place": _PICK,
    "stack": _PICK,
    "push": ("reach", "descend", "push", "retreat", "done"),
    "open": ("reach", "descend", "pull", "retreat", "done"),
    "close": ("reach", "descend", "push", "retreat", "done"),
    "slide": ("reach", "descend", "push", "retreat", "done"),
    "press": ("reach", "descend", "press", "retreat", "done"),
    "light": ("reach", "descend", "press", "retreat", "done"),
}
"""What the expert does when nothing goes wrong, by family."""
LETTERS = ("a", "b", "c", "d")
MAX_NEIGHBOURS = 2
"""Other things that a spatial thought places: more would not fit into the thought of a small model."""
STEPS_AHEAD = 2
"""Steps that a procedural thought looks ahead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reasoning:
    """What is asked, the thought, and the answer."""

    text: str
    """The scene's instruction, or a question with options."""
    thought: str
    """The reasoning."""
    answer: str
    """What to do next in words, or the letter and the words of the right option."""
    objects: tuple[str, ...]
    """Names of the objects that the text is about, in order."""


def reason(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator, style: str = "default") -> Reasoning:
    """Returns reasoning about the scene in one of `REASONING_STYLES`.

    Raises:
        ConfigError: there is no such style.
    """
    if style not in REASONING_STYLES:
        raise ConfigError(unknown_name("style of reasoning", style, REASONING_STYLES))
    if style == "choice":
        asked = choice_question(truth, fmt, rng)
        return Reasoning(
            text=asked.question,
            thought=f"{thought(truth, fmt, rng)} that is {asked.answer.partition(' ')[0]} .",
            answer=asked.answer,
            objects=asked.objects,
        )
    return Reasoning(
        text=truth.instruction,
        thought=_THOUGHTS[style](truth, fmt, rng),
        answer=next_words(truth),
        objects=named_objects(truth),
    )


def steps_of(truth: SceneTruth) -> tuple[str, ...]:
    """Returns the stages of the goal in their order; the present one alone when it is none of them."""
    steps = _STEPS[truth.family]
    return steps if truth.stage in steps else (truth.stage,)


def choice_question(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> QuestionAnswer:
    """Returns the question what comes next with lettered options; the answer is the letter and the words."""
    right = next_words(truth)
    others = [step_words(truth, stage) for stage in _STEPS[truth.family]]
    wrong = sorted({words for words in others if words != right})
    kept = [wrong[int(i)] for i in rng.permutation(len(wrong))[: len(LETTERS) - 1]]
    place = int(rng.integers(len(kept) + 1))
    options = [*kept[:place], right, *kept[place:]]
    listed = " ".join(f"{letter} {words}" for letter, words in zip(LETTERS, options, strict=False))
    lead = ("what comes next", "choose the next step")[int(rng.integers(2))]
    return QuestionAnswer(
        question=f"{truth.instruction} . {lead} : {listed}",
        answer=f"{LETTERS[place]} {right}",
        objects=named_objects(truth),
    )


def _spatial(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> str:
    focus = focus_of(truth)
    name, from_hand = label_of(focus), np.asarray(focus.position_m[:2]) - truth.state[:2]
    hand = " ".join(str(number) for number in fmt.position_numbers(truth.state[:2]))
    said = [
        f"the gripper is at {hand} and the {name} at {place_words(focus, fmt)}",
        f"the {name} is {offset_words(from_hand, fmt)} of the gripper",
    ]
    others = [thing for thing in tellable_things(truth) if thing.name != focus.name and label_of(thing) != name]
    for index in rng.permutation(len(others))[:MAX_NEIGHBOURS]:
        other = others[int(index)]
        gap = offset_words(np.asarray(other.position_m[:2]) - np.asarray(focus.position_m[:2]), fmt)
        said.append(f"the {label_of(other)} is {gap} of the {name}")
    return f"{' . '.join(said)} . so {next_words(truth)} ."


def _procedural(truth: SceneTruth, fmt: PromptFormat, rng: np.random.Generator) -> str:
    steps = steps_of(truth)
    now = steps.index(truth.stage)
    done = " , ".join(step_words(truth, stage) for stage in steps[max(0, now - STEPS_AHEAD) : now]) or "nothing"
    after = " , ".join(step_words(truth, stage) for stage in steps[now + 1 : now + 1 + STEPS_AHEAD]) or "nothing"
    lead = ("step", "this is step")[int(rng.integers(2))]
    return f"{lead} {now + 1} of {len(steps)} . done {done} . now {step_words(truth, truth.stage)} . then {after} ."


_THOUGHTS: dict[str, Callable[[SceneTruth, PromptFormat, np.random.Generator], str]] = {
    "default": thought,
    "spatial": _spatial,
    "procedural": _procedural,
}

REASONING_STYLES = (*_THOUGHTS, "choice")
"""Names of the styles; `choice` asks a question of its own, the others think about the scene's instruction."""
