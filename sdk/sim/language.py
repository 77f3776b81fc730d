"""The sentences that name a task: paraphrases for training, and others that training never sees."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from roboalign.sdk.errors import ConfigError

__all__ = ["SPLITS", "TEMPLATES", "instruction_for"]

SPLITS = ("train", "heldout")
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
            "heldout": (
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
            "heldout": (
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
            "heldout": (
                "pick up the {target} and set it on top of the {goal}",
                "take the {target} and place it on the {goal}",
            ),
        },
    }
)
"""Templates per family and split. The held-out ones are new sentences made of words that the training ones use."""


def instruction_for(family: str, target: str, goal: str, *, split: str = "train", index: int = 0) -> str:
    """Returns the sentence for a task; `index` picks the template and wraps around."""
    if family not in TEMPLATES:
        raise ConfigError(f"unknown task family {family!r}; choose one of {', '.join(TEMPLATES)}")
    if split not in SPLITS:
        raise ConfigError(f"unknown instruction split {split!r}; choose one of {', '.join(SPLITS)}")
    templates = TEMPLATES[family][split]
    return templates[index % len(templates)].format(target=target, goal=goal)
