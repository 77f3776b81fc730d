"""Looks at pictures for the backend that reads in place, and keeps what the words before a picture say to that.

A picture is looked at with the words of its prompt in mind. What `hear` gives for a word depends on two words to either
side, so of a prompt that begins like the one before only the words from there on are heard, with those around them.
Bundles before there was `hear` have `see`, which hears every word whenever it looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.backends.onnx_graph import OnnxGraph
from roboalign.sdk.bundle import HEAR_ROLE, LOOK_ROLE, SEE_ROLE, PolicySpec
from roboalign.sdk.errors import BackendError
from roboalign.sdk.types import FloatArray

__all__ = ["SIGHT_ROLES", "ClosedSight", "HearingSight", "Sight", "WholeSight", "make_sight"]

SIGHT_ROLES = (HEAR_ROLE, LOOK_ROLE, SEE_ROLE)
"""Roles of the graphs that are used here."""

_REACH = 2
"""Words to either side that what is heard of a word depends on."""


class Sight(Protocol):
    """Turns pictures into tokens."""

    def see(self, ids: NDArray[np.int64], pixels: FloatArray) -> tuple[int, FloatArray]:
        """Returns the place of the picture's first token in a prompt, and its tokens float32[N, D]."""

    def forget(self) -> None:
        """Hears every word of the next prompt."""


def make_sight(graphs: Mapping[str, OnnxGraph], spec: PolicySpec) -> Sight:
    """Returns what a bundle has."""
    if HEAR_ROLE in graphs:
        return HearingSight(graphs[HEAR_ROLE], graphs[LOOK_ROLE])
    return WholeSight(graphs[SEE_ROLE], spec)


class HearingSight:
    """Hears words once."""

    def __init__(self, hear: OnnxGraph, look: OnnxGraph) -> None:
        self._hear, self._look = hear, look
        self.forget()

    def see(self, ids: NDArray[np.int64], pixels: FloatArray) -> tuple[int, FloatArray]:
        """Returns the place of the picture's first token in a prompt, and its tokens float32[N, D]."""
        self._listen(ids)
        feed = {"pixel_values": pixels[None], "summary": self._summary}
        return len(self._heard), self._look.run(feed)[0][0]

    def forget(self) -> None:
        """Hears every word of the next prompt."""
        self._ids = np.zeros(0, np.int64)
        self._heard: FloatArray = np.zeros((0, 0), np.float32)  # [words, E]
        self._summary: FloatArray = np.zeros((1, 0), np.float32)  # [1, E]

    def _listen(self, ids: NDArray[np.int64]) -> None:
        """Brings what is kept to a prompt."""
        most, num_words = min(len(ids), len(self._ids)), len(self._heard)
        differ = np.flatnonzero(ids[:most] != self._ids[:most])
        same = int(differ[0]) if len(differ) else most
        if 0 < num_words < same:  # so the picture begins where it did
            return
        start = max(0, same - 2 * _REACH)
        heard = self._hear.run({"tokens": ids[None, start:]})[0][0]
        if start > 0:
            heard = np.concatenate((self._heard[: start + _REACH], heard[_REACH:]))
        self._ids, self._heard, self._summary = ids, heard, heard.max(axis=0)[None]


class ClosedSight:
    """In place of another when the graphs are gone."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle

    def see(self, ids: NDArray[np.int64], pixels: FloatArray) -> tuple[int, FloatArray]:
        """Raises BackendError."""
        raise BackendError(f"the onnx backend of {self._bundle} was closed; load the policy again")

    def forget(self) -> None:
        """Has nothing to forget."""


class WholeSight:
    """Hears every word whenever it looks."""

    def __init__(self, see: OnnxGraph, spec: PolicySpec) -> None:
        self._see, self._most = see, spec.max_prompt_tokens

    def see(self, ids: NDArray[np.int64], pixels: FloatArray) -> tuple[int, FloatArray]:
        """Returns the place of the picture's first token in a prompt, and its tokens float32[N, D]."""
        padded = np.zeros((1, self._most), np.int64)
        padded[0, : len(ids)] = ids
        rows, places = self._see.run({"input_ids": padded, "pixel_values": pixels[None]})
        first, last = int(places[0]), int(places[1])
        return first, rows[0, first : last + 1]

    def forget(self) -> None:
        """Has nothing to forget."""
