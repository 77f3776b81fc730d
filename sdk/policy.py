"""`Policy`: an observation goes in, a chunk of actions comes out, with the thought that led to it.

The loop is the same for every backend: read the prompt and the picture, write a thought token by token up to a
budget, then act, either through the flow head on the hidden states (`actions="flow"`) or by writing action tokens
under the length constraint (`actions="fast"`). Decoding is greedy, and the flow noise depends only on the seed and on
how many calls there were since `reset`, so equal calls from there on give equal answers. Whatever goes wrong inside the
model becomes a hold with its reason.

A policy that thinks `beside` its actions answers with the newest thought that is finished, and goes on thinking between
its answers (`sdk/thinking.py`); every chunk says which thought it had and how old that was.

Where the backend reads several tokens in one pass, the thought before is the draft of the next one (`sdk/draft.py`):
what the model would write again costs one pass, not one a token, and the tokens are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Literal

import numpy as np

from roboalign.sdk.backends import (
    Backend,
    RecallingBackend,
    RememberingBackend,
    WindowBackend,
    choose_backend,
    find_backend,
)
from roboalign.sdk.bundle import (
    EDGE_LLM_NAME,
    MANIFEST_NAME,
    PolicySpec,
    checkpoint_stage,
    find_bundle,
    read_bundle,
    require_robot,
)
from roboalign.sdk.errors import BackendError, BundleError, ConfigError
from roboalign.sdk.guided import Committed, GuidedHead
from roboalign.sdk.thinking import Aside, Thinker, Thinking, resolve_thinking
from roboalign.sdk.turn import NoAnswerError, Turn, Vocabulary, Writing
from roboalign.sdk.types import ActionChunk, FloatArray, Observation, ThoughtUse

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
        thinking: Thinking | None = None,
        draft: bool = True,
        seed: int = 0,
        clock: Callable[[], float] = perf_counter,
        is_driven: bool = False,
    ) -> None:
        """Wraps an open backend; see `load`.

        Args:
            backend: belongs to the policy from now on.
            actions: see `load`.
            think: see `load`.
            thinking: see `load`.
            draft: see `load`.
            seed: see `load`.
            clock: seconds; of latencies, ages and budgets.
            is_driven: thoughts beside the actions are written by who calls `think_on`, not by a thread; for clocks that
                are simulated.
        """
        if actions not in ACTIONS:
            raise ConfigError(f"actions is {actions!r}, expected one of {', '.join(ACTIONS)}")
        _check_abilities(backend, actions)
        if thinking is not None and thinking.recalls:
            _check_recall(backend, actions)
        self._backend = backend
        self._actions = actions
        self._is_flow = actions == "flow"
        self._thinking = resolve_thinking(think, thinking)
        self._think = self._thinking.mode != "off"
        self._thinking.check_budget(backend.spec.max_thought_tokens)
        self._windows = backend.windows if draft and isinstance(backend, WindowBackend) else ()
        self._last_thought: tuple[int, ...] = ()
        self._seed = seed
        self._clock = clock
        self._num_calls = 0
        self._is_closed = False
        self._hear: Callable[[str], None] | None = None
        self._vocabulary = Vocabulary(backend)
        self._thinker = Thinker(self._turn, self._thinking, backend.spec.max_thought_tokens, clock)
        self._guided_head: GuidedHead | None = None
        self._aside = None if is_driven else Aside(self._thinker, self._thinking.share)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        backend: str = "auto",
        actions: Literal["flow", "fast"] = "flow",
        think: bool = True,
        thinking: Thinking | None = None,
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
            think: write a thought before each chunk; False is short for a `thinking` that is off.
            thinking: when to think, how long at most, and how old a thought may be.
            draft: read the thought before again where it still holds, instead of writing it anew: fewer passes where
                the bundle has graphs for it, and the same tokens.
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
            return cls(opened, actions=actions, think=think, thinking=thinking, draft=draft, seed=seed)
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

    @property
    def thinking(self) -> Thinking:
        """When the policy thinks, how long at most, and how old a thought may be."""
        return self._thinking

    def reset(self) -> None:
        """Starts a new episode: the noise begins anew, and nothing was thought."""
        with self._alone():
            self._thinker.reset()
            if isinstance(self._backend, RememberingBackend):
                self._backend.forget()
        self._num_calls = 0
        self._last_thought = ()

    def listen(self, hear: Callable[[str], None] | None) -> None:
        """Lets `hear` have each thought while it is written: what there is of it, up to 20 times a second, and its end.

        Called where the model runs, which waits for it: in `act`, or in the thread of thoughts beside the actions. The
        thought that a chunk was made with is the chunk's own.
        """
        self._hear = hear

    def think_on(self) -> bool:
        """Makes one pass of the thought beside; returns whether there was one to make. For `is_driven` policies."""
        return self._thinker.work()

    def act(
        self,
        observation: Observation,
        *,
        thought_about: Observation | None = None,
        words: Sequence[int] | None = None,
        noise: FloatArray | None = None,
        committed: Committed | None = None,
    ) -> ActionChunk:
        """Returns the next actions, or a hold with its reason. Blocks while the model runs.

        Args:
            observation: what the robot senses now.
            thought_about: think about this observation instead: an earlier one (a stale thought), or one of another
                scene (a control of what thoughts are worth).
            words: ids of the thought to write instead of the model's own, to compare two backends word by word.
            noise: float32[T, A] that the flow head starts from instead of the seeded one.
            committed: what is left of the chunk before, which this one goes on from (`sdk/guided.py`).

        Raises:
            DataError: the observation lacks a camera, or holds what cannot be right.
            ConfigError: a policy that does not think was told what to think about, or there is no head to guide.
        """
        if (thought_about is not None or words is not None) and not self._think:
            raise ConfigError("this policy does not think, so it takes no thought; load it with think=True")
        if (thought_about is not None or words is not None) and self._thinking.mode == "beside":
            raise ConfigError("a policy that thinks beside its actions takes no thought; load it with think=True")
        if committed is not None and self._actions != "flow":
            raise ConfigError("only the flow head can go on from committed actions; act with actions='flow'")
        if self._is_closed:
            raise BackendError("this policy is closed; load it again with Policy.load")
        drawn = self._noise()
        noise = drawn if noise is None else noise
        if self._thinking.mode == "beside":
            return self._act_beside(observation, noise, committed)
        turn = self._turn()
        use: ThoughtUse | None = None
        try:
            given = words if thought_about is None else self._thought_about(thought_about)
            turn.read(observation, think=self._think, for_head=self._is_flow and not self._think)
            if self._think and given is not None:
                turn.write_words(given)
            elif self._think:
                turn.write_thought(self._writing(), self._last_thought)
                self._last_thought = turn.written
                use = ThoughtUse(status="fresh", id=self._num_calls, age_s=0.0, image_age_s=turn.time_s)
            actions = self._actions_of(turn, observation, noise, committed)
        except NoAnswerError as problem:
            return replace(turn.hold(str(problem)), thought_use=use)
        return replace(turn.chunk(actions, self._actions), thought_use=use)

    def _act_beside(self, observation: Observation, noise: FloatArray, committed: Committed | None) -> ActionChunk:
        """Acts on the newest finished thought, and lets the next one begin; the first one is waited for."""
        turn, seen_s = self._turn(), self._clock()
        with self._alone():
            turn.lap("wait")
            thought, use = self._thinker.use(observation.instruction, self._clock())
            waits = self._thinking.waits_for_first and use.status in ("none", "instruction_changed")
            wants = not waits and self._thinker.wants(observation.instruction)
            # A thought that is written now, or goes on behind this prompt, needs all layers; the head does not.
            for_head = self._is_flow and not waits and not (wants and thought is not None)
            try:
                turn.read(observation, think=thought is not None or waits, for_head=for_head)
                if thought is not None and thought.states is not None:
                    turn.recall_words(thought.words, thought.states)
                elif thought is not None:
                    turn.write_words(thought.words, for_head=self._is_flow)
                elif waits:
                    use = self._thinker.write_now(turn, observation, seen_s=seen_s)
                chunk = turn.chunk(self._actions_of(turn, observation, noise, committed), self._actions)
            except NoAnswerError as problem:
                chunk = turn.hold(str(problem))
            if wants:
                # Without a thought the prompt was another one (`<quick>`), so the thinker has to read its own.
                prompt = turn.give_prompt() if thought is not None else None
                self._thinker.begin(observation, seen_s=seen_s, prompt=prompt)
        return replace(chunk, thought_use=use)

    def _actions_of(
        self, turn: Turn, observation: Observation, noise: FloatArray, committed: Committed | None
    ) -> FloatArray:
        if self._actions == "fast":
            return turn.write_actions()
        state = observation.state_of(self.spec.state_names)
        if committed is None:
            return turn.flow(state, noise)
        return turn.flow_guided(self._guided(), state, noise, committed)

    def _guided(self) -> GuidedHead:
        if self._guided_head is None:
            self._guided_head = GuidedHead.load(self._backend.folder)
        return self._guided_head

    def _turn(self) -> Turn:
        return Turn(self._backend, self._vocabulary, self._clock, self._windows, self._hear)

    def _alone(self) -> AbstractContextManager[None]:
        return nullcontext() if self._aside is None else self._aside.acting()

    def _writing(self) -> Writing:
        return self._thinking.writing(self.spec.max_thought_tokens, self._num_calls)

    def close(self) -> None:
        """Frees the model, once the pass that is being made has ended; may be called twice."""
        self._is_closed = True
        if self._aside is not None:
            self._aside.close()
        self._backend.close()

    def __enter__(self) -> Policy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _thought_about(self, observation: Observation) -> tuple[int, ...]:
        turn = self._turn()
        turn.read(observation, think=True)
        turn.write_thought(self._writing(), self._last_thought)
        return turn.written

    def _noise(self) -> FloatArray:
        shape = (self.spec.horizon, len(self.spec.action_names))
        noise = np.random.default_rng((self._seed, self._num_calls)).standard_normal(shape, dtype=np.float32)
        self._num_calls += 1
        return noise


def _check_recall(backend: Backend, actions: str) -> None:
    if actions != "flow":
        raise ConfigError("only the action head can recall thoughts (Thinking.recalls); act with actions='flow'")
    if not isinstance(backend, RecallingBackend):
        raise ConfigError(
            f"{type(backend).__name__} keeps no hidden states of thoughts, which Thinking.recalls needs; leave it out, "
            "or act with a bundle for the cpu on the onnx backend"
        )


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
