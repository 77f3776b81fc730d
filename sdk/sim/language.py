"""The sentences that name a task: paraphrases for training, and others that training never sees."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from roboalign.sdk.errors import ConfigError

__all__ = ["SENTENCES", "TEMPLATES", "instruction_for"]

SENTENCES = ("train", "language")
"""Sets of paraphrases; scenes are drawn alike in both."""

TEMPLATES: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "place": {
            "train": (
                "put the {target} in the {goal}",
                "place the {target} in the {goal}",
                "pick up the {target} and put it in the {goal}",
                "move the {target} into the {goal}",
                "drop the {target} into the {goal}",
                "take the {target} and place it inside the {goal}",
                "the {target} goes in the {goal}",
            ),
            "language": (
                "pick up the {target} and drop it inside the {goal}",
                "take the {target} and move it into the {goal}",
            ),
        },
        "push": {
            "train": (
                "push the {target} to the {goal}",
                "slide the {target} to the {goal}",
                "push the {target} over the {goal} line",
                "move the {target} to the {goal}",
                "shove the {target} {goal}",
                "push the {target} towards the {goal} side",
                "slide the {target} across the {goal} line",
            ),
            "language": (
                "slide the {target} towards the {goal} side",
                "shove the {target} across the {goal} line",
            ),
        },
        "stack": {
            "train": (
                "stack the {target} on the {goal}",
                "put the {target} on the {goal}",
                "place the {target} on top of the {goal}",
                "pick up the {target} and stack it on the {goal}",
                "set the {target} on the {goal}",
                "take the {target} and put it on top of the {goal}",
                "the {target} goes on the {goal}",
            ),
            "language": (
                "pick up the {target} and set it on top of the {goal}",
                "take the {target} and place it on the {goal}",
            ),
        },
        "open": {
            "train": (
                "open the {target}",
                "pull the {target} open",
                "pull out the {target}",
                "slide the {target} open",
                "pull the {target} out by its handle",
                "take the handle and pull the {target} open",
            ),
            "language": (
                "open the {target} by its handle",
                "slide out the {target}",
            ),
        },
        "close": {
            "train": (
                "close the {target}",
                "push the {target} closed",
                "push in the {target}",
                "shut the {target}",
                "push the {target} in by its handle",
                "slide the {target} shut",
            ),
            "language": (
                "push the {target} shut",
                "close the {target} by its handle",
            ),
        },
        "slide": {
            "train": (
                "slide the {target} to the {goal}",
                "push the {target} to the {goal}",
                "move the {target} to the {goal}",
                "slide the {target} {goal}",
                "slide the {target} to the {goal} side",
                "push the handle of the {target} {goal}",
            ),
            "language": (
                "move the handle of the {target} to the {goal}",
                "push the {target} to the {goal} side",
            ),
        },
        "press": {
            "train": (
                "press the {target}",
                "push the {target}",
                "push down the {target}",
                "press the {target} down",
                "go to the {target} and press it",
                "press on the {target}",
            ),
            "language": (
                "push down on the {target}",
                "go to the {target} and push it down",
            ),
        },
        "light": {
            "train": (
                "turn the {target} {goal}",
                "turn {goal} the {target}",
                "switch the {target} {goal}",
                "switch {goal} the {target}",
                "press the button to turn the {target} {goal}",
                "the {target} goes {goal}",
            ),
            "language": (
                "press the button to switch {goal} the {target}",
                "to turn {goal} the {target} press the button",
            ),
        },
    }
)
"""Templates per kind of goal and split. Held-out ones are new sentences made of words that training ones use."""


def instruction_for(family: str, target: str, goal: str, *, split: str = "train", index: int = 0) -> str:
    """Returns the sentence for a task; `index` picks the template and wraps around."""
    if family not in TEMPLATES:
        raise ConfigError(f"unknown task family {family!r}; choose one of {', '.join(TEMPLATES)}")
    if split not in SENTENCES:
        raise ConfigError(f"unknown instruction split {split!r}; choose one of {', '.join(SENTENCES)}")
    templates = TEMPLATES[family][split]
    return templates[index % len(templates)].format(target=target, goal=goal)
