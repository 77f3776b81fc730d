"""A model that thinks one letter over and over, on a clock that each of its passes moves; for tests of thinking."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from roboalign.sdk.backends import Decoding
from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.errors import BackendError
from roboalign.sdk.policy import Policy
from roboalign.sdk.thinking import Thinking
from roboalign.sdk.types import FloatArray, Observation

BESIDE = Thinking(mode="beside", max_age_s=20.0, waits_for_first=False)


class TalkingBackend:
    """Thinks `length` times the letter that the picture's brightness chooses; every pass takes a second.

    Its flow says what was read: which letter, and how many tokens of the thought.
    """

    windows = (4, 16)

    def __init__(self, folder: Path, spec: PolicySpec, ids: dict[str, int], clock: FakeClock) -> None:
        self.folder, self.spec, self.ids, self.clock = folder, spec, ids, clock
        self.length = 3
        self.passes: list[str] = []
        self.fails_at: str | None = None
        self.gate: threading.Event | None = None
        self.inside = threading.Event()

    def _pass(self, what: str) -> None:
        if self.gate is not None:
            self.inside.set()
            assert self.gate.wait(10.0)
        self.passes.append(what)
        self.clock.advance(1.0)
        if what == self.fails_at:
            raise BackendError("out of memory")

    def _logits(self, cache: dict) -> FloatArray:
        logits = np.zeros(len(self.ids), np.float32)
        is_over = len(cache["read"]) > self.length
        logits[self.ids["</think>" if is_over else cache["letter"]]] = 9.0
        return logits

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        self._pass("prompt")
        letter = "abcdefgh"[round(255 * (0.25 * float(pixel_values.mean()) + 0.5))]
        cache = {"letter": letter, "read": [], "start": len(prompt_ids), "is_slow": self.ids["<slow>"] in prompt_ids}
        return Decoding(logits=self._logits(cache), length=len(prompt_ids), cache=cache)

    def step(self, decoding: Decoding, token_id: int) -> None:
        self._read(decoding, [token_id], "step")

    def extend(self, decoding: Decoding, token_ids: Sequence[int]) -> FloatArray:
        return self._read(decoding, token_ids, "window")

    def _read(self, decoding: Decoding, token_ids: Sequence[int], what: str) -> FloatArray:
        self._pass(what)
        rows = []
        for token in token_ids:
            decoding.cache["read"].append(token)
            rows.append(self._logits(decoding.cache))
        decoding.logits, decoding.length = rows[-1], decoding.length + len(token_ids)
        return np.stack(rows)

    def rewind(self, decoding: Decoding, length: int, logits: FloatArray) -> None:
        del decoding.cache["read"][length - decoding.cache["start"] :]
        decoding.logits, decoding.length = logits, length

    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        self._pass("flow")
        actions = np.zeros((8, 5), np.float32)
        actions[:, 0] = len(decoding.cache["read"])
        actions[:, 1] = decoding.cache["is_slow"]
        return actions

    def close(self) -> None:
        pass


def seen(observation: Observation, number: int, instruction: str = "go") -> Observation:
    image = np.full((96, 96, 3), number, np.uint8)
    return replace(observation, images={"front": image}, instruction=instruction)


def think_to_the_end(policy: Policy) -> int:
    count = 0
    while policy.think_on():
        count += 1
    return count
