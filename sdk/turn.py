"""One call of `Policy.act`, step by step: read, think, act; and the words and markers that it needs for that.

A thought can be written in one go, or pass by pass (`thought_passes`), which is how it is written beside the actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.backends import (
    ActionScoreBackend,
    Backend,
    Decoding,
    InspectableBackend,
    RecallingBackend,
    SkimmingBackend,
    WindowBackend,
)
from roboalign.sdk.constraint import ActionConstraint
from roboalign.sdk.draft import Draft
from roboalign.sdk.errors import BundleError, ConfigError, DataError, missing_extra
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.guided import Committed, GuidedHead
from roboalign.sdk.types import ActionChunk, FloatArray, Observation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["NoAnswerError", "Turn", "Vocabulary", "Writing"]

_HEARD_EVERY_S = 0.05


class NoAnswerError(Exception):
    """The model gave no usable answer; the message says why. Becomes a hold."""


class Vocabulary:
    """The tokenizer, the codec and the ids of the markers."""

    def __init__(self, backend: Backend) -> None:
        self.tokenizer = _load_tokenizer(backend.folder)
        self.size = self.tokenizer.get_vocab_size(with_added_tokens=True)
        self.think_open, self.think_close = self.id("<think>"), self.id("</think>")
        self.answer_open = self.id("<answer>")
        self.codec = FastCodec.load(backend.folder) if backend.spec.has_actions else None
        self.action_start = self.id("<ACTION_START>") if self.codec else -1
        self.action_end = self.id("<ACTION_END>") if self.codec else -1
        self.first_action = self.id("<ACTION_0>") if self.codec else -1
        self._constraint: ActionConstraint | None = None
        self._thought_mask: NDArray[np.bool_] | None = None

    def id(self, token: str) -> int:
        """Returns the id of a marker."""
        found: int | None = self.tokenizer.token_to_id(token)
        if found is None:
            raise BundleError(
                f"tokenizer.json has no token {token!r}; the folder belongs to a model that was not trained to act"
            )
        return found

    def constraint(self, vocab_size: int) -> ActionConstraint:
        """Returns the length constraint of action spans for logits of this width."""
        if self._constraint is None:
            assert self.codec is not None
            self._constraint = ActionConstraint(
                self.codec.token_lengths,
                num_coefficients=self.codec.num_coefficients,
                action_start_id=self.action_start,
                action_end_id=self.action_end,
                first_action_id=self.first_action,
                lm_vocab_size=vocab_size,
            )
        return self._constraint

    def thought_mask(self, vocab_size: int) -> NDArray[np.bool_]:
        """Returns bool[V]: words, and the end of the thought; no other marker and no action token."""
        if self._thought_mask is None:
            mask = np.zeros(vocab_size, np.bool_)
            mask[: self.size] = True
            mask[list(self.tokenizer.get_added_tokens_decoder())] = False
            mask[self.think_close] = True
            self._thought_mask = mask
        return self._thought_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Writing:
    """How long a thought may become, and how its words are chosen."""

    max_tokens: int
    """Words after which it is closed."""
    max_s: float = math.inf
    """Seconds after which it is closed; looked at before each pass."""
    temperature: float = 0.0
    """0 takes the best word; above, words are drawn from the scores divided by it."""
    rng: np.random.Generator | None = None
    """Draws the words; needed above temperature 0."""


class Turn:
    """One call of `Policy.act`: the sequence being written, and the time it takes."""

    def __init__(
        self,
        backend: Backend,
        vocabulary: Vocabulary,
        clock: Callable[[], float],
        windows: tuple[int, ...],
        hear: Callable[[str], None] | None = None,
    ) -> None:
        self._backend = backend
        self._hear, self._heard_s = hear, -math.inf
        self._windows = windows
        self._words = vocabulary
        self._spec = backend.spec
        self._clock = clock
        self._started = self._lap_from = clock()
        self._latency: dict[str, float] = {}
        self._decoding: Decoding | None = None
        self._prompt: tuple[int, FloatArray] = (0, np.zeros(0, np.float32))
        self._tokens: list[int] = []
        self.thought: str | None = None
        """The thought as text; None before it is closed."""
        self.written: tuple[int, ...] = ()
        """Words of the thought."""

    def read(self, observation: Observation, *, think: bool, for_head: bool = False) -> None:
        """Reads the prompt and the picture; `for_head` alone where that is less, and nothing is written behind it."""
        name = self._spec.camera_names[0]
        if name not in observation.images:
            has = ", ".join(sorted(observation.images)) or "none"
            raise DataError(
                f"the observation has no image of camera {name!r} (it has: {has}); observe with the picture"
            )
        prompt = self._spec.prompt
        prompt.check_image(observation.images[name], name)
        state = observation.state_of(self._spec.state_names)
        text = prompt.prompt_text(observation.instruction, state, pace="slow" if think else "quick", task="act")
        ids: list[int] = self._words.tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > self._spec.max_prompt_tokens:
            raise DataError(
                f"the instruction makes a prompt of {len(ids)} tokens, at most {self._spec.max_prompt_tokens} fit; "
                "say it shorter"
            )
        backend, pixels = self._backend, prompt.pixel_values(observation.images[name])
        if for_head and isinstance(backend, SkimmingBackend):
            self.resume(backend.skim_prompt(ids, pixels))
        else:
            self.resume(backend.prefill(ids, pixels))
        self.lap("vision_prompt")

    def resume(self, decoding: Decoding) -> None:
        """Goes on behind a prompt that was read already; the sequence belongs to this turn from now on."""
        self._decoding = decoding
        can_rewind = isinstance(self._backend, WindowBackend)  # of others, scores may cost a request and are not needed
        self._prompt = decoding.length, np.array(decoding.logits) if can_rewind else np.zeros(0, np.float32)

    def give_prompt(self) -> Decoding | None:
        """Forgets all but the prompt and gives the sequence away; None where the backend cannot forget.

        Nothing can be written in this turn afterwards.
        """
        decoding, self._decoding = self._decoding, None
        if decoding is None or not isinstance(self._backend, WindowBackend):
            return None
        length, logits = self._prompt
        if decoding.length > length:
            self._backend.rewind(decoding, length, logits)
        return decoding

    def write_thought(self, writing: Writing, drafted: Sequence[int] = ()) -> None:
        """Writes `<think> ... </think>`; a thought that reaches its budget is closed there."""
        for _ in self.thought_passes(writing, drafted):
            pass

    def thought_passes(self, writing: Writing, drafted: Sequence[int] = ()) -> Iterator[None]:
        """Writes `<think> ... </think>`, and comes back after each pass; when it ends, the thought is closed.

        What is `drafted` is read in windows where the model would write it too; the tokens are those without it. Drawn
        words have no draft.
        """
        is_greedy = writing.temperature == 0.0
        draft = Draft(drafted if is_greedy else (), windows=self._windows if is_greedy else ())
        end_s = math.inf if math.isinf(writing.max_s) else self._clock() + writing.max_s
        self._feed(self._words.think_open)
        yield
        written: list[int] = []
        while len(written) < writing.max_tokens and (math.isinf(end_s) or self._clock() < end_s):
            token = self._next_word(writing)
            if token == self._words.think_close:
                break
            run = draft.propose(token, room=min(writing.max_tokens - len(written), self._room()))
            num_agreed = self._read_agreed(run)
            draft.report(num_agreed)
            written += run[:num_agreed]
            self._tell(written)
            yield
        self._feed(self._words.think_close)
        self._keep_thought(written)
        if self._hear is not None:
            self._hear(self.thought or "")

    def write_words(self, given: Sequence[int], *, for_head: bool = False) -> None:
        """Writes `<think> ... </think>` with the words that are given, in as few passes as the backend has.

        Args:
            given: ids of the words.
            for_head: nothing but the action head sees them.
        """
        opening, closing = self._words.think_open, self._words.think_close
        words = list(given[: given.index(closing)] if closing in given else given)
        marked = [opening, *words, closing]
        if for_head and isinstance(self._backend, SkimmingBackend):
            self._skim(self._backend, marked)
            self._keep_thought(words)
            return
        size = max(self._windows, default=1)
        for start in range(0, len(marked), size):
            run = marked[start : start + size]
            if len(run) == 1:
                self._feed(run[0])
            else:
                self._extend(run)
        self._keep_thought(words)

    def recall_words(self, words: Sequence[int], states: FloatArray) -> None:
        """Lets the action head see `<think> ... </think>` as it was read elsewhere."""
        assert self._decoding is not None
        if self._room() < len(states):
            raise self._too_long()
        cast(RecallingBackend, self._backend).recall(self._decoding, states)
        self._tokens += [self._words.think_open, *words, self._words.think_close]
        self._keep_thought(words)

    def thought_states(self) -> FloatArray:
        """Returns what the action head sees of everything behind the prompt."""
        assert self._decoding is not None
        return cast(RecallingBackend, self._backend).states(self._decoding, self._prompt[0])

    def _tell(self, words: Sequence[int]) -> None:
        """Says what is written so far to who listens, now and then: nobody reads faster."""
        if self._hear is not None and self._clock() - self._heard_s >= _HEARD_EVERY_S:
            self._heard_s = self._clock()
            self._hear(self._text(words))

    def _text(self, words: Sequence[int]) -> str:
        text: str = self._words.tokenizer.decode(list(words), skip_special_tokens=False)
        return text.strip()

    def _keep_thought(self, words: Sequence[int]) -> None:
        self.written = tuple(words)
        self.thought = self._text(words)
        self.lap("thought")

    def _read_agreed(self, run: Sequence[int]) -> int:
        """Reads tokens of which the first is the model's own, up to where it would write another; returns how many."""
        if len(run) == 1:
            self._feed(run[0])
            return 1
        assert self._decoding is not None
        start = self._decoding.length
        logits = self._extend(run)
        for count in range(1, len(run)):
            if self._best_word(logits[count - 1]) != run[count]:
                cast(WindowBackend, self._backend).rewind(self._decoding, start + count, logits[count - 1])
                del self._tokens[count - len(run) :]
                return count
        return len(run)

    def _extend(self, run: Sequence[int]) -> FloatArray:
        assert self._decoding is not None
        if self._room() < len(run):
            raise self._too_long()
        logits = cast(WindowBackend, self._backend).extend(self._decoding, run)
        self._tokens += run
        return logits

    def _skim(self, backend: SkimmingBackend, run: Sequence[int]) -> None:
        assert self._decoding is not None
        if self._room() < len(run):
            raise self._too_long()
        backend.skim(self._decoding, run)
        self._tokens += run

    def write_actions(self) -> FloatArray:
        """Writes `<answer><ACTION_START>...<ACTION_END>` and returns the actions that it spells."""
        if self._words.codec is None:
            raise NoAnswerError("the model never learnt action tokens")
        self._feed(self._words.answer_open)
        first, count = self._words.first_action, self._words.codec.vocab_size
        if isinstance(self._backend, ActionScoreBackend) and self._backend.num_action_scores == count:
            constraint = self._words.constraint(len(self._logits()))
            step, rows = self._backend.step_action, slice(first, first + count)
            self._feed(self._words.action_start, step)
        else:
            step, rows = self._backend.step, slice(None)
            self._feed(self._words.action_start)
            constraint = self._words.constraint(len(self._logits()))
        remaining = constraint.start()
        written: list[int] = []
        while remaining > 0:
            token = (rows.start or 0) + self._best(self._logits(), constraint.mask(remaining)[rows])
            remaining = constraint.advance(remaining, token)
            written.append(token - first)
            if remaining > 0:
                self._feed(token, step)
            else:
                self._tokens += [token, self._words.action_end]
        decoded = self._words.codec.decode(written)
        if decoded.actions is None:
            raise NoAnswerError(f"the action tokens are {decoded.status}: {decoded.num_coefficients} coefficients")
        self.lap("action")
        return decoded.actions

    def flow(self, state: FloatArray, noise: FloatArray) -> FloatArray:
        """Returns the actions of the flow head on everything read and written so far."""
        assert self._decoding is not None
        actions = self._backend.flow(self._decoding, state, noise)
        self.lap("action")
        return actions

    def flow_guided(self, head: GuidedHead, state: FloatArray, noise: FloatArray, committed: Committed) -> FloatArray:
        """Returns the same actions where nothing is committed, else such that go on from what is."""
        assert self._decoding is not None
        if not isinstance(self._backend, InspectableBackend):
            raise ConfigError("this backend does not show its hidden states, so its head cannot be guided")
        hidden = self._backend.inspect(self._decoding)["hidden"]
        actions = head.sample(hidden, state, noise, committed)
        self.lap("action")
        return actions

    def chunk(self, actions: FloatArray, source: str) -> ActionChunk:
        """Returns the answer; actions that are not finite become a hold."""
        if not np.isfinite(actions).all():
            return self.hold(f"the {source} actions are not finite")
        return ActionChunk(
            actions=actions,
            rate_hz=self._spec.rate_hz,
            source=source,
            thought=self.thought,
            tokens=tuple(self._tokens),
            latency_s=self._finished_latency(),
        )

    def hold(self, reason: str) -> ActionChunk:
        """Returns the answer that asks the robot to stay."""
        held = ActionChunk.hold(reason, rate_hz=self._spec.rate_hz, thought=self.thought, tokens=tuple(self._tokens))
        return replace(held, latency_s=self._finished_latency())

    def _logits(self) -> FloatArray:
        assert self._decoding is not None
        return self._decoding.logits

    def _next_word(self, writing: Writing) -> int:
        logits = self._logits()
        best = self._best_word(logits)
        if writing.temperature == 0.0:
            return best
        assert writing.rng is not None
        scores = (logits.astype(np.float64) - float(logits[best])) / writing.temperature
        weights = np.where(self._words.thought_mask(len(logits)), np.exp(np.minimum(scores, 0.0)), 0.0)
        return int(writing.rng.choice(len(weights), p=weights / weights.sum()))

    def _best_word(self, logits: FloatArray) -> int:
        return self._best(logits, self._words.thought_mask(len(logits)))

    def _best(self, logits: FloatArray, mask: NDArray[np.bool_]) -> int:
        best = int(np.where(mask, logits, -np.inf).argmax())
        # A backend that knows the scores of some tokens only gives minus infinity to the others.
        if np.isnan(logits).any() or not np.isfinite(logits[best]):
            raise NoAnswerError("the model's scores are not finite for any token that may follow")
        return best

    def _feed(self, token: int, step: Callable[[Decoding, int], None] | None = None) -> None:
        assert self._decoding is not None
        if self._room() < 1:
            raise self._too_long()
        (step or self._backend.step)(self._decoding, token)
        self._tokens.append(token)

    def _room(self) -> int:
        assert self._decoding is not None
        return self._spec.max_tokens - self._decoding.length

    def _too_long(self) -> NoAnswerError:
        return NoAnswerError(f"the answer is longer than the {self._spec.max_tokens} tokens that the model can hold")

    def lap(self, part: str) -> None:
        """Books the time since the part before."""
        now = self._clock()
        self._latency[part] = now - self._lap_from
        self._lap_from = now

    @property
    def time_s(self) -> float:
        """Seconds from the start of the turn to the end of its last part."""
        return self._lap_from - self._started

    def _finished_latency(self) -> dict[str, float]:
        return {**self._latency, "total": self._clock() - self._started}


def _load_tokenizer(folder: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as err:
        raise missing_extra("tokenizers", "cpu", "a policy") from err
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as err:  # tokenizers raises bare Exception
        raise BundleError(f"{path} cannot be read ({err}); copy or export the folder again") from err
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
