"""Injected latencies: the scene goes on while a policy computes, for as long as a board would take.

The model runs here at once, and a simulated clock is moved by what each of its passes would take there: a prompt with
its picture, a token or a window of tokens, an action head. A policy is waited for: the arm stays at its last target
until the chunk is there, then uses it up. With a chunk strategy it is asked early enough that its next chunk comes
before the last one ends, and what passed meanwhile is left out of it (`sdk/control/chunks.py`). Either way it thinks
beside its actions whenever it is not asked. One model, one pass at a time: what waits for it waits here too. Left out:
cameras, buses, and other work on the board.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from roboalign.sdk.backends import (
    Backend,
    Decoding,
    InspectableBackend,
    RecallingBackend,
    RememberingBackend,
    WindowBackend,
)
from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.control.chunks import CHUNK_STRATEGIES, ChunkQueue, DelayEstimate, Seams
from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.evaluation.controls import Wrapper
from roboalign.sdk.evaluation.episodes import HOLD_STEPS, EpisodeRun
from roboalign.sdk.guided import Committed
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import ActionChunk, FloatArray, Observation

__all__ = ["WAIT", "LatePace", "LatePolicy", "LatencyProfile", "Paced", "TimedBackend"]

WAIT = "wait"
"""The strategy of a policy that is waited for."""

_WINDOW = 16
"""Tokens that a board reads in one pass where the bundle says nothing: the window that bundles are exported with."""
_EARLY_S = 1e-6  # sums of float periods are not exact


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyProfile:
    """What each pass takes on some board."""

    prefill_s: float = 0.0
    """Reading the picture and the prompt."""
    token_s: float = 0.0
    """Reading one token, or a window of tokens: both read all weights once."""
    action_s: float = 0.0
    """The action head, all of its steps."""
    name: str = ""
    """Where the figures come from."""

    def __post_init__(self) -> None:
        for name in ("prefill_s", "token_s", "action_s"):
            if not 0.0 <= getattr(self, name) < 60.0:
                raise ConfigError(f"LatencyProfile.{name} is {getattr(self, name)}, expected 0 to 60 seconds")

    @classmethod
    def parse(cls, text: str) -> LatencyProfile:
        """Reads `prefill=0.1,token=0.03,action=0.05`; what is not named takes no time.

        >>> LatencyProfile.parse("prefill=0.1, token=0.03").token_s
        0.03
        """
        values: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = (word.strip() for word in part.partition("="))
            try:
                seconds = float(value)
            except ValueError:
                seconds = -1.0
            if name not in ("prefill", "token", "action") or name in values or seconds < 0.0:
                raise ConfigError(
                    f"found {part!r} in the latency {text!r}, expected prefill=S,token=S,action=S in seconds, each"
                    " once, or BOARD/MODEL as in agx-thor/qwen2.5-vl-7b"
                )
            values[name] = seconds
        return cls(name=text, **{f"{name}_s": seconds for name, seconds in values.items()})


class TimedBackend:
    """A backend whose passes move a clock by what they take elsewhere."""

    def __init__(self, backend: Backend, profile: LatencyProfile, clock: FakeClock) -> None:
        """Wraps a backend that can forget tokens, as the onnx and TensorRT ones can."""
        if not isinstance(backend, WindowBackend):
            raise ConfigError("latencies are injected into bundles run by onnxruntime or TensorRT, not by this backend")
        self._backend, self._windowed, self._profile, self._clock = backend, backend, profile, clock
        self.windows = backend.windows or (_WINDOW,)
        if isinstance(backend, RecallingBackend):  # copies take no time
            self.states, self.recall = backend.states, backend.recall

    @property
    def spec(self) -> PolicySpec:
        """How to act with the model."""
        return self._backend.spec

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self._backend.folder

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        """Reads a prompt and a picture."""
        self._clock.advance(self._profile.prefill_s)
        return self._backend.prefill(prompt_ids, pixel_values)

    def step(self, decoding: Decoding, token_id: int) -> None:
        """Reads one more token."""
        self._clock.advance(self._profile.token_s)
        self._backend.step(decoding, token_id)

    def extend(self, decoding: Decoding, token_ids: Sequence[int]) -> FloatArray:
        """Reads several tokens as one pass, also where the bundle can only step."""
        self._clock.advance(self._profile.token_s)
        if self._windowed.windows:
            return self._windowed.extend(decoding, token_ids)
        rows = []
        for token_id in token_ids:
            self._backend.step(decoding, token_id)
            rows.append(np.array(decoding.logits))
        return np.stack(rows)

    def rewind(self, decoding: Decoding, length: int, logits: FloatArray) -> None:
        """Forgets what was read beyond `length`."""
        self._windowed.rewind(decoding, length, logits)

    def forget(self) -> None:
        """Reads the next prompt whole, where the wrapped backend would not."""
        if isinstance(self._backend, RememberingBackend):
            self._backend.forget()

    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        """Returns actions from the sequence read so far."""
        self._clock.advance(self._profile.action_s)
        return self._backend.flow(decoding, state, noise)

    def inspect(self, decoding: Decoding) -> Mapping[str, FloatArray]:
        """Shows what a head that is guided needs; that head takes as long as the one that is not."""
        self._clock.advance(self._profile.action_s)
        if not isinstance(self._backend, InspectableBackend):
            raise ConfigError("this backend does not show its hidden states, so its head cannot be guided")
        return self._backend.inspect(decoding)

    def close(self) -> None:
        """Closes the wrapped backend."""
        self._backend.close()


class LatePolicy(Wrapper):
    """A policy and the pace at which it answers. Its policy has a `TimedBackend` on the same clock, and is driven."""

    def __init__(self, policy: Policy, clock: FakeClock, strategy: str) -> None:
        """Takes who acts, the clock that its passes move, and `WAIT` or one of `CHUNK_STRATEGIES`."""
        super().__init__(policy)
        self._committed: Committed | None = None
        self._pace = LatePace(self, clock, strategy)

    @property
    def pace(self) -> LatePace:
        """How time passes."""
        return self._pace

    def think_on(self) -> bool:
        """Makes one pass of the thought beside; returns whether there was one to make."""
        return cast(Policy, self._policy).think_on()

    def commit(self, committed: Committed) -> None:
        """Says what the next chunk has to go on from."""
        self._committed = committed

    def act(self, observation: Observation, *, thought_about: Observation | None = None) -> ActionChunk:
        """Asks the policy; the clock moves."""
        committed, self._committed = self._committed, None
        return cast(Policy, self._policy).act(observation, thought_about=thought_about, committed=committed)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """An answer on its way."""

    chunk: ActionChunk
    made_at: int
    ready_s: float


class Paced(Protocol):
    """What a pace drives; `LatePolicy` has it."""

    def think_on(self) -> bool:
        """Makes one pass of a thought beside the actions; returns whether there was one to make."""

    def commit(self, committed: Committed) -> None:
        """Says what the next chunk has to go on from."""


class LatePace:
    """Plays an episode on a simulated clock: control periods pass while the policy computes."""

    def __init__(self, policy: Paced, clock: FakeClock, strategy: str) -> None:
        """Takes who computes, the clock that this moves, and how its chunks follow one another."""
        choices = (WAIT, *CHUNK_STRATEGIES)
        if strategy not in choices:
            raise ConfigError(unknown_name("chunk strategy", strategy, choices))
        self._policy, self._clock, self._strategy = policy, clock, strategy
        self._delay = DelayEstimate()
        self._has_worked = False

    def play(self, run: EpisodeRun, replan_every: int | None) -> None:
        """Plays a running episode to its end.

        Raises:
            ConfigError: An answer takes longer than the actions that it holds.
        """
        rate_hz = run.env.robot_spec.control_rate_hz
        start_s, seams, self._has_worked = self._clock.now(), Seams(), True
        queue = ChunkQueue("hold" if self._strategy == WAIT else self._strategy)
        asked: _Asked | None = None
        newest, standing = 0, 0
        for tick in count():
            now_s = start_s + tick / rate_hz
            self._think_until(now_s)
            is_due = queue.num_left == 0 or self._is_early_enough(queue, queue.count - newest, replan_every, rate_hz)
            if asked is None and standing == 0 and is_due:
                asked = self._ask(run, queue, now_s)
            if asked is not None and asked.ready_s <= now_s + _EARLY_S:
                newest = asked.made_at
                if asked.chunk.source == "hold":
                    standing = HOLD_STEPS
                else:
                    self._check(len(asked.chunk.actions), rate_hz)
                    kept = asked.chunk.actions[: replan_every if self._strategy == WAIT else None]
                    queue.add(kept, made_at=asked.made_at)
                asked = None
            action = queue.next()
            if action is None:
                run.stood += standing == 0
            standing = max(0, standing - 1) if action is None else 0
            run.step(run.standing() if action is None else action)
            seams.add(action, _joint_target(run), is_seam=queue.is_seam)
            if run.is_over:
                break
            if run.heard_another():
                queue.clear()
                asked = None
        run.seams = seams.result()

    def _ask(self, run: EpisodeRun, queue: ChunkQueue, now_s: float) -> _Asked:
        if not self._has_worked:
            self._policy.think_on()  # as in `thinking.Aside`: between two actions there is room for one pass
        self._clock.sleep_until(now_s)
        if self._strategy == "rtc":
            delay = self._delay.steps(run.env.robot_spec.control_rate_hz)
            self._policy.commit(Committed(actions=queue.left, delay=delay))
        chunk = run.ask()
        self._has_worked = False
        if chunk.thought_use is None or chunk.thought_use.status != "awaited":  # the answers behind it do not wait
            self._delay.add(self._clock.now() - now_s)
        return _Asked(chunk=chunk, made_at=queue.count, ready_s=self._clock.now())

    def _think_until(self, time_s: float) -> None:
        """Lets the thinker work until a moment, as far as it has something to do."""
        while self._clock.now() < time_s - _EARLY_S and self._policy.think_on():
            self._has_worked = True

    def _is_early_enough(self, queue: ChunkQueue, num_used: int, replan_every: int | None, rate_hz: float) -> bool:
        """Whether to ask now: a chunk is used up when the next one comes, or is left for a newer view of the scene.

        Unless told otherwise, all but `hold` ask as soon as a chunk has come, after a period in which it can think.
        """
        if self._strategy == WAIT:
            return False
        delay = self._delay.steps(rate_hz)
        if queue.num_left <= delay:
            return True
        if self._strategy == "hold":
            return replan_every is not None and num_used >= replan_every
        return num_used >= (replan_every or delay + 1)

    def _check(self, horizon: int, rate_hz: float) -> None:
        refusal = None if self._strategy == WAIT else self._delay.refusal(horizon, rate_hz)
        if refusal is not None:
            raise ConfigError(refusal)


def _joint_target(run: EpisodeRun) -> FloatArray | None:
    applied = getattr(run.env, "last_applied", None)
    return None if applied is None else np.array(applied.joint_target_rad)
