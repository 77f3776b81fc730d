"""When a policy thinks: not at all, before every chunk, or beside its actions; and the thinker that works beside them.

A thinker writes one thought after another, one pass of the model at a time, on a sequence of its own. It begins where
an action has just read its prompt: that part of the sequence is handed over instead of being read again. In real time a
thread makes the passes whenever nobody acts (`Aside`); an action waits for the pass that is being made. Where actions
follow one another without pause, thoughts get their share of the time (`Thinking.share`), so neither starves the other.
On a simulated clock whoever moves the clock makes the passes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

import numpy as np

from roboalign.sdk.backends import Decoding
from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.turn import NoAnswerError, Turn, Writing
from roboalign.sdk.types import FloatArray, Observation, ThoughtUse

__all__ = ["THINKING_MODES", "Aside", "Thinker", "Thinking", "Thought", "resolve_thinking"]

THINKING_MODES = ("off", "before_every_chunk", "beside")
"""`off` writes no thought; `before_every_chunk` acts when the thought is written; `beside` acts on the newest one that
is finished."""


_MOST_EARNED_S = 0.1
"""Time that is kept for later, at most: thoughts that rested are not made up for at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """When a policy thinks, how long at most, and how old a thought may be."""

    mode: Literal["off", "before_every_chunk", "beside"] = "before_every_chunk"
    """One of `THINKING_MODES`."""
    max_age_s: float = 2.0
    """Beside: age of the picture that a thought is about, above which it is dropped. Heads learn from thoughts up to
    1.6 s old unless they are trained otherwise (`HeadConfig.max_age`)."""
    waits_for_first: bool = True
    """Beside: the first thought about a sentence is written before the action, while the arm stands; otherwise what is
    done meanwhile is done without a thought."""
    budget_tokens: int | None = None
    """Words after which a thought is closed; None is the bundle's own limit, and none may be larger."""
    budget_s: float | None = None
    """Seconds after which a thought is closed; None sets no limit."""
    temperature: float = 0.0
    """0 writes the best word each time, as in training of the head; above, words are drawn."""
    seed: int = 0
    """Of the words that are drawn; each thought of an episode has a stream of its own."""
    recalls: bool = False
    """Beside: the action head sees the words of a thought as they were read when they were written, behind the picture
    that they are about; so acting on a thought costs no pass. Otherwise they are read again behind each new picture."""
    share: float = 0.2
    """Beside: of the time that the model works, the part that thoughts get while answers are asked for without pause.
    Where the model would rest, it thinks."""

    def __post_init__(self) -> None:
        if self.mode not in THINKING_MODES:
            raise ConfigError(unknown_name("thinking mode", self.mode, THINKING_MODES))
        for name in ("max_age_s", "budget_s"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ConfigError(f"Thinking.{name} is {value}, expected more than 0")
        if self.budget_tokens is not None and self.budget_tokens < 1:
            raise ConfigError(f"Thinking.budget_tokens is {self.budget_tokens}, expected at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise ConfigError(f"Thinking.temperature is {self.temperature}, expected 0 or more")
        if not 0.0 < self.share < 1.0:
            raise ConfigError(f"Thinking.share is {self.share}, expected between 0 and 1")
        if self.recalls and self.mode != "beside":
            raise ConfigError(f"Thinking.recalls is for thoughts beside the actions, and the mode is {self.mode!r}")
        if self.seed < 0:
            raise ConfigError(f"Thinking.seed is {self.seed}, expected 0 or more")

    def writing(self, max_tokens: int, number: int) -> Writing:
        """Returns how thought `number` of an episode is written by a model that holds `max_tokens` words."""
        return Writing(
            max_tokens=self.budget_tokens or max_tokens,
            max_s=math.inf if self.budget_s is None else self.budget_s,
            temperature=self.temperature,
            rng=np.random.default_rng((self.seed, number)) if self.temperature > 0.0 else None,
        )

    def check_budget(self, max_tokens: int) -> None:
        """Raises ConfigError for a budget beyond what a model holds."""
        if self.budget_tokens is not None and self.budget_tokens > max_tokens:
            raise ConfigError(
                f"Thinking.budget_tokens is {self.budget_tokens}, but the model has room for {max_tokens} words of "
                "thought; give at most that, or export a checkpoint that was trained with a larger budget"
            )


def resolve_thinking(think: bool, thinking: Thinking | None) -> Thinking:
    """Returns the settings that `think` and `thinking` mean together; raises ConfigError where they disagree."""
    if thinking is None:
        return Thinking(mode="before_every_chunk" if think else "off")
    if not think and thinking.mode != "off":
        raise ConfigError(f"think=False, but thinking asks for {thinking.mode!r}; leave think out")
    return thinking


@dataclass(frozen=True, kw_only=True, slots=True)
class Thought:
    """A finished thought."""

    id: int
    """Number in the episode, from 1."""
    words: tuple[int, ...]
    """Ids of its words."""
    text: str
    """The words as text."""
    instruction: str
    """The sentence that it is about."""
    seen_s: float
    """Clock time at which the observation that it is about came."""
    finished_s: float
    """Clock time at which it was closed."""
    states: FloatArray | None = field(default=None, compare=False, repr=False)
    """float32[n, D], what the action head saw of it; kept where it is recalled."""


class Thinker:
    """Writes thoughts pass by pass. Not thread safe: `Aside` sees to it that one at a time uses it and the model."""

    def __init__(
        self, make_turn: Callable[[], Turn], settings: Thinking, max_tokens: int, clock: Callable[[], float]
    ) -> None:
        """Stores the arguments; `make_turn` returns a turn on the model, with a sequence still to be read."""
        self._make_turn, self._settings, self._max_tokens, self._clock = make_turn, settings, max_tokens, clock
        self.reset()

    def reset(self) -> None:
        """Forgets every thought, the one that is being written included."""
        self.newest: Thought | None = None
        self.failure: str | None = None
        self._num_thoughts = 0
        self._used_id = 0
        self._passes: Iterator[None] | None = None
        self._instruction = ""

    @property
    def is_busy(self) -> bool:
        """Whether a thought is being written."""
        return self._passes is not None

    def wants(self, instruction: str) -> bool:
        """Whether a thought about this sentence should begin: none is being written, or one about another sentence."""
        return not self.is_busy or self._instruction != instruction

    def begin(self, observation: Observation, *, seen_s: float, prompt: Decoding | None) -> None:
        """Begins a thought; `prompt` is the sequence behind its prompt, where that was read already."""
        self._instruction = observation.instruction
        self._passes = self._write(observation, seen_s, prompt)

    def work(self) -> bool:
        """Makes one pass; returns whether there was one to make. What goes wrong becomes `failure`."""
        if self._passes is None:
            return False
        try:
            next(self._passes)
        except StopIteration:
            self._passes = None
        except NoAnswerError as problem:
            self._fail(str(problem))
        except Exception as err:  # noqa: BLE001 - nobody would hear of it: the next action says it
            self._fail(f"{type(err).__name__}: {err}")
        return True

    def write_now(self, turn: Turn, observation: Observation, *, seen_s: float) -> ThoughtUse:
        """Writes a thought in one go, in a turn that has read its prompt; drops the one that was being written.

        Raises:
            NoAnswerError: It cannot be written; the next action does without.
        """
        self._instruction, self._passes = observation.instruction, None
        try:
            for _ in self._written_in(turn, observation, seen_s):
                pass
        except NoAnswerError as problem:
            self.newest = None
            self._fail(str(problem))
            raise
        assert self.newest is not None
        self._used_id = self.newest.id
        image_age_s = self.newest.finished_s - seen_s  # waited for, so it is used however old it is
        return ThoughtUse(status="awaited", id=self.newest.id, age_s=0.0, image_age_s=image_age_s)

    def use(self, instruction: str, now_s: float) -> tuple[Thought | None, ThoughtUse]:
        """Returns the thought to act on, and what became of the newest one."""
        newest, failure = self.newest, self.failure
        if newest is None:
            return None, ThoughtUse(status="none" if failure is None else "failed", reason=failure)
        status: str
        reason: str | None
        age_s, image_age_s = now_s - newest.finished_s, now_s - newest.seen_s
        if newest.instruction != instruction:
            status, reason = "instruction_changed", "the newest thought is about another instruction"
        elif image_age_s > self._settings.max_age_s:
            status = "expired" if failure is None else "failed"
            reason = failure or f"the newest thought is over {self._settings.max_age_s:g} s old"
        else:
            status, reason = "fresh" if newest.id != self._used_id else "held", failure
            self._used_id = newest.id
        note = ThoughtUse(status=status, id=newest.id, age_s=age_s, image_age_s=image_age_s, reason=reason)
        return newest if note.is_used else None, note

    def _write(self, observation: Observation, seen_s: float, prompt: Decoding | None) -> Iterator[None]:
        turn = self._make_turn()
        if prompt is None:
            turn.read(observation, think=True)
            yield
        else:
            turn.resume(prompt)
        yield from self._written_in(turn, observation, seen_s)

    def _written_in(self, turn: Turn, observation: Observation, seen_s: float) -> Iterator[None]:
        number = self._num_thoughts + 1
        drafted = self.newest.words if self.newest is not None else ()
        yield from turn.thought_passes(self._settings.writing(self._max_tokens, number), drafted)
        self._num_thoughts, self.failure = number, None
        self.newest = Thought(
            id=number,
            words=turn.written,
            text=turn.thought or "",
            instruction=observation.instruction,
            seen_s=seen_s,
            finished_s=self._clock(),
            states=turn.thought_states() if self._settings.recalls else None,
        )

    def _fail(self, reason: str) -> None:
        self._passes, self.failure = None, reason


class Aside:
    """Lets a thread work while nobody acts. The thread lives as long as there is work, so an idle policy has none.

    Actions that follow one another without pause leave it `share` of the time: each earns the thinker some, and the
    passes that an action waits for spend it. An action begins at once while there is none left.
    """

    def __init__(self, thinker: Thinker, share: float, clock: Callable[[], float] = perf_counter) -> None:
        """Stores the thinker, its share of the time, and a clock in seconds; no thread yet."""
        self._thinker, self._clock = thinker, clock
        self._earned_per_s = share / (1.0 - share)
        self._earned_s = 0.0
        self._turn = threading.Condition()
        self._is_taken = False
        self._num_waiting = 0
        self._owes_pass = False
        self._is_closed = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Has the model for itself; waits for one pass at most. What was begun inside goes on afterwards."""
        with self._turn:
            self._num_waiting += 1
            try:
                self._turn.wait_for(lambda: not self._is_taken and not self._owes_pass)
            finally:
                self._num_waiting -= 1
            self._is_taken = True
        began_s = self._clock()
        try:
            yield
        finally:
            with self._turn:
                self._is_taken = False
                earned_s = self._earned_s + (self._clock() - began_s) * self._earned_per_s
                self._earned_s = min(earned_s, _MOST_EARNED_S)
                if self._thinker.is_busy and not self._is_closed:
                    self._owes_pass = self._earned_s > 0.0
                    self._start()
                self._turn.notify_all()

    def close(self) -> None:
        """Ends the thread after its present pass, and waits for that; may be called twice."""
        with self._turn:
            self._is_closed, self._owes_pass = True, False
            thread = self._thread
            self._turn.notify_all()
        if thread is not None:
            thread.join()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="roboalign-thinker", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while self._take():
            began_s = self._clock()
            try:
                self._thinker.work()
            finally:
                with self._turn:
                    if self._owes_pass or self._num_waiting:
                        self._earned_s -= self._clock() - began_s
                    self._is_taken = self._owes_pass = False
                    self._turn.notify_all()

    def _take(self) -> bool:
        """Waits for the model; False when there is nothing left to do, and the thread has to end."""
        with self._turn:
            self._turn.wait_for(
                lambda: self._is_closed or (not self._is_taken and (self._num_waiting == 0 or self._owes_pass))
            )
            if self._is_closed or not self._thinker.is_busy:
                self._thread, self._owes_pass = None, False
                self._turn.notify_all()
                return False
            self._is_taken = True
            return True
