"""Whether thoughts are true: each fact of a greedy thought against the same fact of the simulator.

The truth goes through the same reader: it is the thought that the data would have said about the frame. So a fact
counts as right when the model says what the teacher would, or a place or offset within 10 or 20 mm of it. What a
thought does not say is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch

from roboalign.sdk.data.language import thought
from roboalign.sdk.prompt import PromptFormat
from roboalign.trainer.backbone import HuggingFaceBackbone
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.thinking import greedy_thoughts

__all__ = ["FACTS", "ThoughtFacts", "judge", "read_thought", "thought_quality", "written_thoughts"]

FACTS = ("complete", "object", "place_10mm", "place_20mm", "offset_10mm", "offset_20mm", "hand", "next", "all_true")
"""What is judged: every fact is there; each fact by itself; everything right, places and offsets within 10 mm."""

_PLACE = re.compile(r"(?:the )?((?:[a-z]+ )?[a-z]+) (?:is )?at (\d+) (\d+)")
_OFFSET = re.compile(r"(\d+) (near|far) (\d+) (left|right)")
_HAND = re.compile(r"(?:gripper|hand) (?:is )?(open|closed|holding the [a-z ]+?) \.")
_NEXT = re.compile(r"(?:\bnext|\bso|\. i) ([a-z ]+?) ?\.$")


@dataclass(frozen=True, kw_only=True, slots=True)
class ThoughtFacts:
    """What a thought says; None where it does not."""

    object: str | None
    """The thing that the next movement is about."""
    place: tuple[int, int] | None
    """Where it is, in length units."""
    offset: tuple[int, int] | None
    """From the gripper to it, in length units; near and right are positive."""
    hand: str | None
    """State of the hand."""
    next: str | None
    """What comes next."""


def read_thought(text: str) -> ThoughtFacts:
    """Returns the facts of a thought in any of the styles of `roboalign.sdk.data.language.thought`."""
    place, offset, hand, plan = (pattern.search(text) for pattern in (_PLACE, _OFFSET, _HAND, _NEXT))
    signs = {"near": 1, "far": -1, "right": 1, "left": -1}
    return ThoughtFacts(
        object=place[1].removeprefix("the ") if place else None,
        place=(int(place[2]), int(place[3])) if place else None,
        offset=(int(offset[1]) * signs[offset[2]], int(offset[3]) * signs[offset[4]]) if offset else None,
        hand=hand[1] if hand else None,
        next=plan[1] if plan else None,
    )


def judge(found: ThoughtFacts, true: ThoughtFacts, fmt: PromptFormat) -> dict[str, bool]:
    """Returns which of `FACTS` are right."""

    def within(name: str, limit_m: float) -> bool:
        mine, other = getattr(found, name), getattr(true, name)
        if mine is None or other is None:
            return False
        return bool(np.hypot(*np.subtract(mine, other)) * fmt.length_unit_m <= limit_m + 1e-9)

    right = {
        "complete": all(getattr(found, name) is not None for name in ThoughtFacts.__slots__),
        "object": found.object is not None and found.object == true.object,
        "place_10mm": within("place", 0.010),
        "place_20mm": within("place", 0.020),
        "offset_10mm": within("offset", 0.010),
        "offset_20mm": within("offset", 0.020),
        "hand": found.hand is not None and found.hand == true.hand,
        "next": found.next is not None and found.next == true.next,
    }
    return {**right, "all_true": all(right.values())}


@torch.no_grad()
def written_thoughts(
    backbone: HuggingFaceBackbone, table: FrameTable, *, budget: int = 48, batch_size: int = 64
) -> list[str]:
    """Returns the words of the greedy thought about every frame."""
    texts: list[str] = []
    for start in range(0, len(table), batch_size):
        rows = np.arange(start, min(start + batch_size, len(table)))
        inputs = backbone.encode_prompts(
            [table.instruction(int(r)) for r in rows],
            table.states[rows],
            list(table.images[rows]),
            pace="slow",
            task="act",
        )
        ids, mask = greedy_thoughts(backbone, inputs, budget=budget)
        for row, keep in zip(ids, mask, strict=True):
            words = row[keep.bool()][1:-1].tolist()  # without <think> and </think>
            texts.append(str(backbone.tokenizer.decode(words, skip_special_tokens=False)).strip())
    return texts


def thought_quality(
    backbone: HuggingFaceBackbone, held: FrameTable, fmt: PromptFormat, *, budget: int = 48
) -> dict[str, int]:
    """Returns for every one of `FACTS` in how many of the frames it is right."""
    counts = dict.fromkeys(FACTS, 0)
    truths = held.require_truths("the probe of thoughts")
    for text, truth in zip(written_thoughts(backbone, held, budget=budget), truths, strict=True):
        true = read_thought(thought(truth, fmt, np.random.default_rng(0)))
        for name, is_right in judge(read_thought(text), true, fmt).items():
            counts[name] += is_right
    return counts
