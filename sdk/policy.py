"""`Policy`: an observation goes in, a chunk of actions comes out, with the thought that led to it.

The loop is the same for every backend: read the prompt and the picture, write a thought token by token up to a
budget, then act, either through the flow head on the hidden states (`actions="flow"`) or by writing action tokens
under the length constraint (`actions="fast"`). Decoding is greedy, and the flow noise depends only on the seed and on
how many calls there were since `reset`, so equal calls give equal answers. Whatever goes wrong inside the model
becomes a hold with its reason.

Where the backend reads several tokens in one pass, the thought before is the draft of the next one (`sdk/draft.py`):
what the model would write again costs one pass, not one a token, and the tokens are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.backends import Backend, Decoding, WindowBackend, choose_backend, find_backend
from roboalign.sdk.bundle import (
    EDGE_LLM_NAME,
    MANIFEST_NAME,
    PolicySpec,
    checkpoint_stage,
    find_bundle,
    read_bundle,
    require_robot,
)
from roboalign.sdk.constraint import ActionConstraint
from roboalign.sdk.draft import Draft
from roboalign.sdk.errors import BackendError, BundleError, ConfigError, DataError, missing_extra
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.types import ActionChunk, FloatArray, Observation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ACTIONS", "Policy"]

ACTIONS = ("flow", "fast")
"""Who turns the model's state into actions: the flow head, or the language model through action tokens."""


class Policy:
    """A loaded model that acts. Use it as a context manager, or call `close`.

    Example:
        with Policy.load() as policy:
            chunk = policy.act(robot.observe())
    """

    def __init__(
        self,
        backend: Backend,
        *,
        actions: Literal["flow", "fast"] = "flow",
        think: bool = True,
        draft: bool = True,
        seed: int = 0,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        if actions not in ACTIONS:
            raise ConfigError(f"actions is {actions!r}, expected one of {', '.join(ACTIONS)}")
        _check_abilities(backend, actions)
        self._backend = backend
        self._actions = actions
        self._think = think
        self._windows = backend.windows if draft and isinstance(backend, WindowBackend) else ()
        self._last_thought: tuple[int, ...] = ()
        self._seed = seed
        self._clock = clock
        self._num_calls = 0
        self._is_closed = False
        self._vocabulary = _Vocabulary(backend)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        backend: str = "auto",
        actions: Literal["flow", "fast"] = "flow",
        think: bool = True,
        draft: bool = True,
        threads: int = 1,
        seed: int = 0,
        robot: Collection[str] = (),
    ) -> Policy:
        """Loads a policy.

        Args:
            path: a bundle, or with `backend="torch"` also a checkpoint; `nano-so101` for the one that comes for the
                SO-101; None for the one that comes for the Panda.
            backend: `auto` (tensorrt where engines for this very board lie in the bundle, else onnx), or a registered
                name.
            actions: `flow` for the action head, `fast` for action tokens.
            think: write a thought before each chunk.
            draft: read the thought before again where it still holds, instead of writing it anew; faster where the
                bundle has graphs for it, and the tokens are the same.
            threads: CPU threads of the backend.
            seed: of the flow noise.
            robot: names of the robot that it will move; a bundle that names another one is refused before it is opened.

        Raises:
            BundleError: the path is missing, altered, of a newer format, of another kind, or for another robot.
            BackendError: the backend or a package it needs is absent.
        """
        if threads < 1:
            raise ConfigError(f"threads is {threads}, expected 1 or more")
        folder = find_bundle(path)
        if robot and (folder / MANIFEST_NAME).is_file():
            require_robot(read_bundle(folder).manifest, robot, folder)
        factory = find_backend(choose_backend(folder) if backend == "auto" else backend)
        opened = factory.open(folder, threads=threads)
        try:
            return cls(opened, actions=actions, think=think, draft=draft, seed=seed)
        except BaseException:
            opened.close()
            raise

    @property
    def spec(self) -> PolicySpec:
        """What the policy needs from the robot and promises to it."""
        return self._backend.spec

    @property
    def actions(self) -> str:
        """Who acts: `flow` or `fast`. Print it beside every figure."""
        return self._actions

    def reset(self) -> None:
        """Starts a new episode: the noise begins anew, and nothing was thought."""
        self._num_calls = 0
        self._last_thought = ()

    def act(
        self,
        observation: Observation,
        *,
        thought_about: Observation | None = None,
        words: Sequence[int] | None = None,
        noise: FloatArray | None = None,
    ) -> ActionChunk:
        """Returns the next actions, or a hold with its reason. Blocks while the model runs.

        Args:
            observation: what the robot senses now.
            thought_about: think about this observation instead: an earlier one (a stale thought), or one of another
                scene (a control of what thoughts are worth).
            words: ids of the thought to write instead of the model's own, to compare two backends word by word.
            noise: float32[T, A] that the flow head starts from instead of the seeded one.

        Raises:
            DataError: the observation lacks a camera, or holds what cannot be right.
            ConfigError: a policy that does not think was told what to think about.
        """
        if (thought_about is not None or words is not None) and not self._think:
            raise ConfigError("this policy does not think, so it takes no thought; load it with think=True")
        if self._is_closed:
            raise BackendError("this policy is closed; load it again with Policy.load")
        turn = _Turn(self._backend, self._vocabulary, self._clock, self._windows)
        drawn = self._noise()
        noise = drawn if noise is None else noise
        try:
            given = words if thought_about is None else self._thought_about(thought_about)
            turn.read(observation, think=self._think)
            if self._think and given is not None:
                turn.write_words(given)
            elif self._think:
                turn.write_thought(self._last_thought)
                self._last_thought = turn.written
            actions = turn.flow(observation.state, noise) if self._actions == "flow" else turn.write_actions()
        except _NoAnswerError as problem:
            return turn.hold(str(problem))
        return turn.chunk(actions, self._actions)

    def close(self) -> None:
        """Frees the model; may be called twice."""
        self._is_closed = True
        self._backend.close()

    def __enter__(self) -> Policy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _thought_about(self, observation: Observation) -> tuple[int, ...]:
        turn = _Turn(self._backend, self._vocabulary, self._clock, self._windows)
        turn.read(observation, think=True)
        turn.write_thought(self._last_thought)
        return turn.written

    def _noise(self) -> FloatArray:
        shape = (self.spec.horizon, len(self.spec.action_names))
        noise = np.random.default_rng((self._seed, self._num_calls)).standard_normal(shape, dtype=np.float32)
        self._num_calls += 1
        return noise


class _NoAnswerError(Exception):
    """The model gave no usable answer; the message says why. Becomes a hold."""


class _Vocabulary:
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


class _Turn:
    """One call of `Policy.act`: the sequence being written, and the time it takes."""

    def __init__(
        self, backend: Backend, vocabulary: _Vocabulary, clock: Callable[[], float], windows: tuple[int, ...]
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
            raise _NoAnswerError("the model never learnt action tokens")
        self._feed(self._words.answer_open)
        self._feed(self._words.action_start)
        constraint = self._words.constraint(len(self._logits()))
        remaining = constraint.start()
        written: list[int] = []
        while remaining > 0:
            token = self._best(self._logits(), constraint.mask(remaining))
            remaining = constraint.advance(remaining, token)
            written.append(token - self._words.first_action)
            if remaining > 0:
                self._feed(token)
            else:
                self._tokens += [token, self._words.action_end]
        decoded = self._words.codec.decode(written)
        if decoded.actions is None:
            raise _NoAnswerError(f"the action tokens are {decoded.status}: {decoded.num_coefficients} coefficients")
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
            raise _NoAnswerError("the model's scores are not finite for any token that may follow")
        return best

    def _feed(self, token: int) -> None:
        assert self._decoding is not None
        if self._room() < 1:
            raise self._too_long()
        self._backend.step(self._decoding, token)
        self._tokens.append(token)

    def _room(self) -> int:
        assert self._decoding is not None
        return self._spec.max_tokens - self._decoding.length

    def _too_long(self) -> _NoAnswerError:
        return _NoAnswerError(f"the answer is longer than the {self._spec.max_tokens} tokens that the model can hold")

    def _lap(self, part: str) -> None:
        now = self._clock()
        self._latency[part] = now - self._lap_from
        self._lap_from = now

    def _finished_latency(self) -> dict[str, float]:
        return {**self._latency, "total": self._clock() - self._started}


def _check_abilities(backend: Backend, actions: str) -> None:
    spec, folder = backend.spec, backend.folder
    if actions == "flow" and not spec.has_head:
        if (folder / EDGE_LLM_NAME).is_file():
            raise BundleError(f"{folder} gives an action head no hidden states; act with actions='fast'")
        found = f"{folder} is a checkpoint of stage {checkpoint_stage(folder)!r} without an action head"
        raise BundleError(f"{found}; train one with 'roboalign train head {folder}', or act with actions='fast'")
    if actions == "fast" and not spec.has_actions:
        raise BundleError(
            f"{folder} never learnt action tokens, so actions='fast' cannot work; give a model of stage sft or align"
        )


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
