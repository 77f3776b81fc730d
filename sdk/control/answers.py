"""The chunk that is being executed, and the taking over of the next: which action belongs to now.

Actions are displacements of the tool, so what counts is not the time since the observation but how many actions were
sent since then: while the arm held, the plan did not move on. Nothing here allocates an array.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from itertools import chain
from typing import Protocol

import numpy as np

from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.loop_report import Histogram, count
from roboalign.sdk.control.records import CHUNK, MAX_STEPS, SOURCES, Fields, Reason, fields_of, read_text
from roboalign.sdk.control.rings import Records
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.types import FloatArray, RobotSpec

__all__ = ["Answers"]

_EARLY_PERIODS = 1e-3  # sums of float periods are not exact
_WINDOW = 64  # answers whose latency decides how early the next one is asked for


class _UseCounts(Protocol):
    age: Histogram
    thought_age: Histogram
    joints: Histogram
    within: Histogram


class Answers:
    """Takes chunks from the ring, and gives actions one at a time."""

    def __init__(self, channels: Channels, rate_hz: float, spec: RobotSpec) -> None:
        """Stores where chunks come from and at which rate they are used."""
        self._ring, self._rate_hz = channels.chunks, rate_hz
        self._chunk, self._incoming = _Chunk(), _Chunk()
        self._scale = np.array([spec.max_step_m] * 3 + [spec.max_step_rad], np.float32)
        self._before, self._change = np.zeros(4, np.float32), np.zeros(4, np.float32)
        self._has_before = self._is_new = False
        self._latencies_s: deque[float] = deque(maxlen=_WINDOW)
        self._lead = 1
        self._seen = 0
        self._not_before = 0
        self.moves = 0
        """Actions used up so far."""
        self.step = -1
        """Index in the chunk of the action that was used last."""
        self.steps = 0
        """Actions in the chunk."""
        self.sequence = 0
        """Number of the chunk that is being executed; 0 for none."""
        self.observed_s = -math.inf
        """When the observation behind it was made."""
        self.thought_s = math.nan
        """When what was thought about was observed; NaN when nothing is known."""
        self.taken = self.skipped = 0
        """Chunks that were taken over, and actions of theirs that were left out."""
        self.latency = Histogram()
        self._why: tuple[Reason, str] = (Reason.WARMING, "the policy has not answered yet")

    def is_due(self, is_ahead: bool, coming: int = 0) -> bool:
        """Whether the policy should be asked after `coming` more actions, so that it answers before they run out.

        At least half of a chunk is used: a policy that is slower than that lets the arm hold for a while.
        """
        left = self.steps - self.step - 1 - coming
        return left <= (min(self._lead, self.steps // 2) if is_ahead else 0)

    def take(self, now_s: float, refused: Counter[str]) -> None:
        """Takes the newest chunk over, if there is one that was not seen before.

        Raises:
            ConfigError: It is for another rate.
        """
        newest = self._ring.newest
        if newest == self._seen:
            return
        self._seen = newest
        chunk = self._incoming
        if not self._ring.copy(chunk.bytes, newest):
            count(refused, "overwritten or torn")
            return
        self._measure(now_s - float(chunk.fields["observed_s"][0]))
        problem = self._problem(chunk)
        if problem is not None:
            if problem[1]:
                count(refused, problem[1])
            self._why = problem
            return
        fields = chunk.fields
        step = self.moves - int(fields["moves"][0])
        self._chunk, self._incoming = chunk, self._chunk
        self.sequence, self.steps, self.step = newest, int(fields["steps"][0]), step - 1
        self.observed_s, self.thought_s = float(fields["observed_s"][0]), float(fields["thought_s"][0])
        self.taken += 1
        self.skipped += step
        self._is_new = True
        self._why = Reason.EXHAUSTED, "all actions of the newest chunk were used"

    def _problem(self, chunk: _Chunk) -> tuple[Reason, str] | None:
        """Returns why an answer cannot be used."""
        fields = chunk.fields
        steps, rate_hz = int(fields["steps"][0]), float(fields["rate_hz"][0])
        source = SOURCES[min(int(fields["source"][0]), len(SOURCES) - 1)]
        if source == "hold" or steps == 0:
            return Reason.POLICY, read_text(fields, "reason") or "the policy gave no action"
        if steps > MAX_STEPS or not all(map(math.isfinite, chain.from_iterable(map(_numbers, chunk.rows[:steps])))):
            return Reason.LIMITER, "the chunk is not finite"
        if int(fields["observation"][0]) <= self._not_before:
            return Reason.NO_CHUNK, "the chunk answers what was seen before the arm held"
        if not math.isclose(rate_hz, self._rate_hz, rel_tol=1e-3):
            raise ConfigError(
                f"the policy's chunk is for {rate_hz:g} Hz but the loop runs at {self._rate_hz:g} Hz; run the loop at "
                "the policy's rate, or load a policy for this rate"
            )
        if self.moves - int(fields["moves"][0]) >= steps:
            return Reason.EXHAUSTED, "the chunk came when all of it was past"
        return None

    def _measure(self, latency_s: float) -> None:
        self.latency.add(max(0.0, latency_s))
        self._latencies_s.append(latency_s)
        ordered = sorted(self._latencies_s)
        at_s = ordered[min(len(ordered) - 1, math.ceil(0.99 * len(ordered)) - 1)]
        self._lead = math.ceil(at_s * self._rate_hz - _EARLY_PERIODS)

    def next(self) -> FloatArray | None:
        """Returns float32[A], the action that belongs to now, in place; None when there is none."""
        if self.step + 1 >= self.steps:
            return None
        return self._chunk.rows[self.step + 1]

    def why_none(self) -> tuple[Reason, str]:
        """Returns why there is no action."""
        return self._why

    def use(self, now_s: float, counts: _UseCounts) -> None:
        """Counts the action that `next` returned as used."""
        is_first, self._is_new = self._is_new, False
        self.step += 1
        self.moves += 1
        counts.age.add(max(0.0, now_s - self.observed_s))
        if not math.isnan(self.thought_s):
            counts.thought_age.add(max(0.0, now_s - self.thought_s))
        motion = self._chunk.motions[self.step]
        np.subtract(motion, self._before, out=self._change)
        np.divide(self._change, self._scale, out=self._change)
        np.absolute(self._change, out=self._change)
        if self._has_before:
            (counts.joints if is_first else counts.within).add(max(self._change.tolist()))
        np.copyto(self._before, motion)
        self._has_before = True

    def drop(self, question: int) -> None:
        """Forgets the chunk, and every answer to what was asked up to now: the arm holds, and the world went on."""
        self._not_before = max(self._not_before, question)
        if self.steps:
            self.steps, self.step, self.sequence = 0, -1, 0
            self._why = Reason.NO_CHUNK, "the chunk was dropped when the arm had to hold"
        self._has_before = False


class _Chunk:
    """A copy of a chunk, with names for what lies in it."""

    def __init__(self) -> None:
        record: Records = np.zeros(1, CHUNK)
        self.bytes = record.view(np.uint8)
        self.fields: Fields = fields_of(record)
        self.rows: list[FloatArray] = list(self.fields["actions"])
        self.motions: list[FloatArray] = [row[:4] for row in self.rows]


def _numbers(row: FloatArray) -> list[float]:
    numbers: list[float] = row.tolist()
    return numbers
