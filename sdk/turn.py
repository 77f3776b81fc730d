"""One call of `Policy.act`, step by step: read, think, act; and the words and markers that it needs for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.backends import ActionScoreBackend, Backend, Decoding, WindowBackend
from roboalign.sdk.constraint import ActionConstraint
from roboalign.sdk.draft import Draft
from roboalign.sdk.errors import BundleError, DataError, missing_extra
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.types import ActionChunk, FloatArray, Observation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["NoAnswerError", "Turn", "Vocabulary"]


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


class Turn:
    """One call of `Policy.act`: the sequence being written, and the time it takes."""

    def __init__(
        self, backend: Backend, vocabulary: Vocabulary, clock: Callable[[], float], windows: tuple[int, ...]
    ) -> None:
        self._backend = backend
        self._windows = windows
        self._words = vocabulary
        self._spec = backend.spec
        self._clock = clock
        self._started = self._lap_from = clock()
        self._latency: dict[str, float] = {}
        self._decoding: Decoding | None = None
        self._tokens: list[int] = []
        self._thought: str | None = None
        self.written: tuple[int, ...] = ()
        """Words of the thought."""

    def read(self, observation: Observation, *, think: bool) -> None:
        """Reads the prompt and the picture."""
        name = self._spec.camera_names[0]
        if name not in observation.images:
            has = ", ".join(sorted(observation.images)) or "none"
            raise DataError(
                f"the observation has no image of camera {name!r} (it has: {has}); observe with the picture"
            )
        prompt = self._spec.prompt
        prompt.check_image(observation.images[name], name)
        text = prompt.prompt_text(
            observation.instruction, observation.state, pace="slow" if think else "quick", task="act"
        )
        ids: list[int] = self._words.tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > self._spec.max_prompt_tokens:
            raise DataError(
                f"the instruction makes a prompt of {len(ids)} tokens, at most {self._spec.max_prompt_tokens} fit; "
                "say it shorter"
            )
        self._decoding = self._backend.prefill(ids, prompt.pixel_values(observation.images[name]))
        self._lap("vision_prompt")

    def write_thought(self, drafted: Sequence[int] = ()) -> None:
        """Writes `<think> ... </think>`; a thought that reaches the budget is closed there.

        What is `drafted` is read in windows where the model would write it too; the tokens are those without it.
        """
        draft = Draft(drafted, windows=self._windows)
        budget = self._spec.max_thought_tokens
        self._feed(self._words.think_open)
        written: list[int] = []
        while len(written) < budget and (token := self._next_word()) != self._words.think_close:
            run = draft.propose(token, room=min(budget - len(written), self._room()))
            num_agreed = self._read_agreed(run)
            draft.report(num_agreed)
            written += run[:num_agreed]
        self._end_thought(written)

    def write_words(self, given: Sequence[int]) -> None:
        """Writes `<think> ... </think>` with the words that are given, instead of the model's own."""
        closing = self._words.think_close
        words = list(given[: given.index(closing)] if closing in given else given)
        self._feed(self._words.think_open)
        size = max(self._windows, default=1)
        for start in range(0, len(words), size):
            run = words[start : start + size]
            if len(run) == 1:
                self._feed(run[0])
            else:
                self._extend(run)
        self._end_thought(words)

    def _end_thought(self, words: Sequence[int]) -> None:
        self._feed(self._words.think_close)
        self.written = tuple(words)
        self._thought = self._words.tokenizer.decode(list(words), skip_special_tokens=False).strip()
        self._lap("thought")

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

    def write_actions(self) -> FloatArray:
        """Writes `<answer><ACTION_START>...<ACTION_END>` and returns the actions that it spells."""
        if self._words.codec is None:
            raise NoAnswerError("the model never learnt action tokens")
        self._feed(self._words.answer_open)
        constraint = self._words.constraint(len(self._logits()))
        first, count = self._words.first_action, self._words.codec.vocab_size
        step, rows = self._backend.step, slice(None)
        if isinstance(self._backend, ActionScoreBackend) and self._backend.num_action_scores == count:
            step, rows = self._backend.step_action, slice(first, first + count)
        self._feed(self._words.action_start, step)
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
        self._lap("action")
        return decoded.actions

    def flow(self, state: FloatArray, noise: FloatArray) -> FloatArray:
        """Returns the actions of the flow head on everything read and written so far."""
        assert self._decoding is not None
        actions = self._backend.flow(self._decoding, state, noise)
        self._lap("action")
        return actions

    def chunk(self, actions: FloatArray, source: str) -> ActionChunk:
        """Returns the answer; actions that are not finite become a hold."""
        if not np.isfinite(actions).all():
            return self.hold(f"the {source} actions are not finite")
        return ActionChunk(
            actions=actions,
            rate_hz=self._spec.rate_hz,
            source=source,
            thought=self._thought,
            tokens=tuple(self._tokens),
            latency_s=self._finished_latency(),
        )

    def hold(self, reason: str) -> ActionChunk:
        """Returns the answer that asks the robot to stay."""
        held = ActionChunk.hold(reason, rate_hz=self._spec.rate_hz, thought=self._thought, tokens=tuple(self._tokens))
        return replace(held, latency_s=self._finished_latency())

    def _logits(self) -> FloatArray:
        assert self._decoding is not None
        return self._decoding.logits

    def _next_word(self) -> int:
        return self._best_word(self._logits())

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

    def _lap(self, part: str) -> None:
        now = self._clock()
        self._latency[part] = now - self._lap_from
        self._lap_from = now

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
