"""What a dataset itself says about its frames: the instruction, thoughts, the present step, questions with answers.

Language columns of LeRobot 3.1 are read (`language_persistent`: `subtask` is the step, `plan`, `memory` and `motion`
together the thought; `language_events`: `vqa` is a question and its answer), and text columns named `thought`,
`reasoning` or `subtask`, with or without a prefix that ends in a dot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.data.episode import Episode, LanguageRow
from roboalign.sdk.data.lerobot import LeRobotDataset

__all__ = ["FrameWords", "read_words"]

_THOUGHT_STYLES = ("plan", "memory", "motion")
_STEP_STYLE = "subtask"
_THOUGHT_COLUMNS = ("thought", "reasoning")
_STEP_COLUMN = "subtask"
_ROUNDING_S = 1e-3
"""Timestamps are float32: a row that begins with a frame holds for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameWords:
    """What is said about one frame."""

    instruction: str
    """What the robot should do."""
    thought: str | None = None
    """Reasoning, where the dataset has some."""
    step: str | None = None
    """What is being done now, where the dataset says it."""
    questions: tuple[tuple[str, str], ...] = ()
    """Questions about the picture with their answers."""

    @property
    def has_thought(self) -> bool:
        """Whether there is anything to think: a thought, or the step alone."""
        return self.thought is not None or self.step is not None


def read_words(
    dataset: LeRobotDataset, frames: NDArray[np.int64], episodes: dict[int, Episode], *, thought: str | None = None
) -> tuple[FrameWords, ...]:
    """Returns the words of the given frames.

    Args:
        dataset: Where they are from.
        frames: int64[N], global frames.
        episodes: Every episode that a frame is of, by its number.
        thought: Text column that holds thoughts; None looks for the usual names.

    Raises:
        DataError: the column is not there, or holds no text.
    """
    names = {key.rpartition(".")[2]: key for key, item in dataset.info.features.items() if item.dtype == "string"}
    usual = next((names[name] for name in _THOUGHT_COLUMNS if name in names), None)
    key = thought or usual
    thoughts = None if key is None else dataset.text_column(key)
    steps = dataset.text_column(names[_STEP_COLUMN]) if _STEP_COLUMN in names else None
    numbers = dataset.episode_of_frame()[frames]
    found = []
    for frame, number in zip(frames, numbers, strict=True):
        within = int(frame - dataset.episode_starts[number])
        said = _said(episodes[int(number)], within)
        own_thought = (thoughts[frame] if thoughts else None) or said.thought
        own_step = (steps[frame] if steps else None) or said.step
        found.append(
            FrameWords(
                instruction=said.instruction,
                thought=own_thought or None,
                step=own_step or None,
                questions=said.questions,
            )
        )
    return tuple(found)


def _said(episode: Episode, within: int) -> FrameWords:
    """What the instructions and the language columns say about one frame of an episode."""
    time_s = within / episode.rate_hz + _ROUNDING_S
    in_force: dict[str, str] = {}
    for row in sorted(episode.language_persistent, key=lambda row: row.timestamp_s or 0.0):
        if row.style and row.content and (row.timestamp_s or 0.0) <= time_s:
            in_force[row.style] = row.content
    parts = [in_force[style] for style in _THOUGHT_STYLES if style in in_force]
    return FrameWords(
        instruction=episode.instructions[within] if episode.instructions else episode.task,
        thought=" ".join(parts) or None,
        step=in_force.get(_STEP_STYLE),
        questions=_questions(episode.language_events[within] if episode.language_events else ()),
    )


def _questions(rows: Sequence[LanguageRow]) -> tuple[tuple[str, str], ...]:
    asked = [row for row in rows if row.style == "vqa" and row.content]
    return tuple(
        (str(question.content), str(answer.content))
        for question, answer in pairwise(asked)
        if (question.role, answer.role) == ("user", "assistant") and question.camera == answer.camera
    )
