"""Thinking beside the actions: on a clock that every pass of a scripted model moves, and with real threads."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from roboalign.sdk import turn
from roboalign.sdk.backends import Decoding
from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.bundle import PolicySpec, shipped_bundle_path
from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.errors import BackendError, ConfigError, DataError
from roboalign.sdk.policy import Policy
from roboalign.sdk.thinking import Aside, Thinking
from roboalign.sdk.types import FloatArray, Observation

BESIDE = Thinking(mode="beside", max_age_s=20.0, waits_for_first=False)
WAITING = Thinking(mode="beside", max_age_s=20.0)


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


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend(folder, spec, ids, clock) -> TalkingBackend:
    return TalkingBackend(folder, replace(spec, max_thought_tokens=12), ids, clock)


@pytest.fixture
def policy(backend, clock) -> Policy:
    return Policy(backend, thinking=BESIDE, clock=clock.now, is_driven=True)


def seen(observation: Observation, number: int, instruction: str = "go") -> Observation:
    image = np.full((96, 96, 3), number, np.uint8)
    return replace(observation, images={"front": image}, instruction=instruction)


def think_to_the_end(policy: Policy) -> int:
    count = 0
    while policy.think_on():
        count += 1
    return count


def test_before_the_first_thought_it_acts_as_without_one_and_says_so(policy, observation):
    chunk = policy.act(seen(observation, 0))
    assert (chunk.thought_use.status, chunk.thought_use.id, chunk.thought) == ("none", None, None)
    assert tuple(chunk.actions[0, :2]) == (0.0, 0.0)


def test_the_first_thought_is_waited_for_and_no_other(backend, clock, observation):
    """Prompt, `<think>`, three words and the end take 6 s; what the thought is about needs no second one."""
    policy = Policy(backend, thinking=WAITING, clock=clock.now, is_driven=True)
    chunk = policy.act(seen(observation, 2))
    use = chunk.thought_use
    assert (chunk.thought, tuple(chunk.actions[0, :2])) == ("ccc", (5.0, 1.0))
    assert (use.status, use.id, use.age_s, use.image_age_s) == ("awaited", 1, 0.0, 6.0)
    assert backend.passes.count("prompt") == 1
    assert not policy.think_on()
    held = policy.act(seen(observation, 3))
    assert (held.thought, held.thought_use.status, held.thought_use.id) == ("ccc", "held", 1)
    policy.think_on()
    assert policy.act(seen(observation, 4)).thought == "ccc", "the second one is still being written"
    think_to_the_end(policy)
    assert policy.act(seen(observation, 5)).thought == "ddd"


def test_the_first_thought_about_a_new_instruction_is_waited_for_too(backend, clock, observation):
    policy = Policy(backend, thinking=WAITING, clock=clock.now, is_driven=True)
    policy.act(seen(observation, 2))
    policy.act(seen(observation, 3))
    policy.think_on()
    chunk = policy.act(seen(observation, 4, "stop"))
    assert (chunk.thought, chunk.thought_use.status, chunk.thought_use.id) == ("eee", "awaited", 2)
    assert not policy.think_on(), "the thought about the old instruction was dropped"


def test_a_thought_that_was_waited_for_is_used_however_old_it_is_once(backend, clock, observation):
    policy = Policy(backend, thinking=replace(WAITING, max_age_s=3.0), clock=clock.now, is_driven=True)
    chunk = policy.act(seen(observation, 2))
    assert (chunk.thought, chunk.thought_use.status, chunk.thought_use.image_age_s) == ("ccc", "awaited", 6.0)
    chunk = policy.act(seen(observation, 3))
    assert (chunk.thought_use.status, chunk.thought) == ("expired", None)
    assert policy.think_on()


def test_a_first_thought_that_cannot_be_written_is_a_hold_and_the_next_action_does_without(backend, clock, observation):
    policy = Policy(backend, thinking=WAITING, clock=clock.now, is_driven=True)
    scores = backend._logits
    backend._logits = lambda cache: np.full(len(backend.ids), np.nan, np.float32)
    assert "not finite" in policy.act(seen(observation, 2)).reason
    backend._logits = scores
    chunk = policy.act(seen(observation, 3))
    assert (chunk.source, chunk.thought, chunk.thought_use.status) == ("flow", None, "failed")
    think_to_the_end(policy)
    assert policy.act(seen(observation, 4)).thought == "ddd"


def test_it_acts_on_the_newest_finished_thought_and_says_how_old_it_is(policy, backend, clock, observation):
    """Prompt and flow: 2 s. Thought about picture 2: prompt, `<think>`, three words and, in the last pass, the end."""
    policy.act(seen(observation, 2))
    assert think_to_the_end(policy) == 6
    clock.advance(0.5)
    chunk = policy.act(seen(observation, 3))
    assert chunk.thought == "ccc"
    assert tuple(chunk.actions[0, :2]) == (5.0, 1.0)
    use = chunk.thought_use
    assert (use.status, use.id, use.age_s, use.image_age_s, use.reason) == ("fresh", 1, 0.5, 8.5, None)
    again = policy.act(seen(observation, 3))
    assert (again.thought, again.thought_use.status, again.thought_use.id) == ("ccc", "held", 1)


def test_a_thought_that_is_being_written_is_not_acted_on(policy, observation):
    policy.act(seen(observation, 2))
    for _ in range(5):
        assert policy.think_on()
        assert policy.act(seen(observation, 3)).thought_use.status == "none"
    policy.think_on()
    assert policy.act(seen(observation, 3)).thought == "ccc"


def test_the_next_thought_goes_on_from_the_prompt_that_an_action_read(policy, backend, observation):
    policy.act(seen(observation, 2))
    think_to_the_end(policy)
    policy.act(seen(observation, 3))
    backend.passes.clear()
    think_to_the_end(policy)
    assert "prompt" not in backend.passes
    chunk = policy.act(seen(observation, 4))
    assert (chunk.thought, chunk.thought_use.id) == ("ddd", 2)
    assert chunk.actions[0, 0] == 5.0


def test_writing_beside_gives_the_words_of_writing_before(policy, backend, clock, observation):
    alone = Policy(backend, clock=clock.now).act(seen(observation, 5))
    policy.act(seen(observation, 5))
    for _ in range(3):  # actions in between do not disturb it
        policy.think_on()
        policy.act(seen(observation, 1))
    think_to_the_end(policy)
    assert policy.act(seen(observation, 1)).tokens == alone.tokens


@pytest.mark.parametrize("mode", ["before_every_chunk", "beside"])
def test_who_listens_hears_a_thought_word_by_word(backend, clock, observation, mode):
    """A pass takes a second here, so nothing is left out; beside, a thought is heard before anybody can act on it."""
    policy = Policy(backend, thinking=replace(BESIDE, mode=mode), clock=clock.now, is_driven=True)
    heard: list[str] = []
    policy.listen(heard.append)
    policy.act(seen(observation, 0))
    think_to_the_end(policy)
    policy.listen(None)
    assert heard == ["a", "aa", "aaa", "aaa"]
    assert policy.act(seen(observation, 2)).thought == ("aaa" if mode == "beside" else "ccc")
    think_to_the_end(policy)
    assert len(heard) == 4, "nobody listens any more"


def test_a_listener_is_told_now_and_then_and_always_the_end(backend, clock, observation, monkeypatch):
    monkeypatch.setattr(turn, "_HEARD_EVERY_S", 2.5)
    backend.length = 6
    policy = Policy(backend, clock=clock.now, draft=False)
    heard: list[str] = []
    policy.listen(heard.append)
    thought = policy.act(seen(observation, 0)).thought
    assert heard == ["a", "aaaa", "aaaaaa"]
    assert thought == heard[-1]


def test_a_thought_older_than_its_limit_is_dropped(policy, clock, observation):
    policy.act(seen(observation, 2))
    think_to_the_end(policy)
    clock.advance(12.5)
    chunk = policy.act(seen(observation, 3))
    assert (chunk.thought_use.status, chunk.thought) == ("expired", None)
    assert chunk.thought_use.image_age_s == 20.5
    assert chunk.thought_use.reason == "the newest thought is over 20 s old"
    assert tuple(chunk.actions[0, :2]) == (0.0, 0.0)


def test_a_new_instruction_drops_the_thought_and_the_one_being_written(policy, observation):
    policy.act(seen(observation, 2))
    think_to_the_end(policy)
    policy.act(seen(observation, 3))
    policy.think_on()
    chunk = policy.act(seen(observation, 4, "stop"))
    assert (chunk.thought_use.status, chunk.thought) == ("instruction_changed", None)
    think_to_the_end(policy)
    chunk = policy.act(seen(observation, 5, "stop"))
    assert (chunk.thought, chunk.thought_use.status, chunk.thought_use.id) == ("eee", "fresh", 2)


def test_a_reset_forgets_thoughts_and_repeats_itself(policy, observation):
    def episode():
        policy.reset()
        chunks = []
        for number in range(4):
            chunks.append(policy.act(seen(observation, number)))
            for _ in range(4):
                policy.think_on()
        return [(c.thought, c.thought_use.status, c.thought_use.id, c.actions.tolist()) for c in chunks]

    first = episode()
    assert [row[1] for row in first] == ["none", "none", "fresh", "held"]
    assert episode() == first


def test_a_failing_thinker_becomes_a_reason_and_the_policy_acts_on(policy, backend, observation):
    policy.act(seen(observation, 2))
    backend.fails_at = "step"
    think_to_the_end(policy)
    chunk = policy.act(seen(observation, 3))
    assert (chunk.source, chunk.thought_use.status) == ("flow", "failed")
    assert chunk.thought_use.reason == "BackendError: out of memory"
    backend.fails_at = None
    think_to_the_end(policy)
    assert policy.act(seen(observation, 3)).thought == "ddd"


def test_a_budget_of_words_closes_the_thought(backend, clock, observation):
    thinking = replace(BESIDE, budget_tokens=2)
    policy = Policy(backend, thinking=thinking, clock=clock.now, is_driven=True)
    policy.act(seen(observation, 2))
    think_to_the_end(policy)
    chunk = policy.act(seen(observation, 2))
    assert chunk.thought == "cc"
    assert chunk.tokens[-1] == backend.ids["</think>"]


@pytest.mark.parametrize(("budget_s", "words"), [(0.5, ""), (1.0, ""), (1.5, "c"), (3.0, "cc"), (9.0, "ccc")])
def test_a_budget_of_seconds_closes_the_thought_with_the_pass_that_spends_it(
    backend, clock, observation, budget_s, words
):
    """`<think>` takes the first second; a word is begun only where time is left."""
    thinking = Thinking(budget_s=budget_s)
    chunk = Policy(backend, thinking=thinking, clock=clock.now).act(seen(observation, 2))
    assert chunk.thought == words
    assert chunk.tokens == (backend.ids["<think>"], *[backend.ids["c"]] * len(words), backend.ids["</think>"])
    assert chunk.source == "flow"


def test_drawn_words_depend_on_the_seed_and_the_number_of_the_call_alone(backend, clock, observation):
    backend._logits = lambda cache: np.zeros(len(backend.ids), np.float32)

    def thoughts(seed: int, temperature: float = 1.0) -> list[str]:
        policy = Policy(backend, thinking=Thinking(temperature=temperature, seed=seed), clock=clock.now)
        return [policy.act(seen(observation, 2)).thought for _ in range(2)]

    assert thoughts(1) == thoughts(1)
    assert len(set(thoughts(1) + thoughts(2))) == 4


def test_at_a_low_temperature_drawn_words_are_the_best_ones(backend, clock, observation):
    thinking = Thinking(temperature=0.01)
    chunk = Policy(backend, thinking=thinking, clock=clock.now).act(seen(observation, 2))
    assert chunk.thought == "ccc"
    assert backend.passes.count("window") == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "besides"}, "unknown thinking mode 'besides'; did you mean beside"),
        ({"max_age_s": 0.0}, "max_age_s is 0.0, expected more than 0"),
        ({"budget_s": -1.0}, "budget_s is -1.0"),
        ({"budget_tokens": 0}, "budget_tokens is 0, expected at least 1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        Thinking(**values)


def test_settings_that_do_not_fit_are_refused(backend, observation):
    with pytest.raises(ConfigError, match="budget_tokens is 13, but the model has room for 12 words"):
        Policy(backend, thinking=Thinking(budget_tokens=13))
    with pytest.raises(ConfigError, match="think=False, but thinking asks for 'beside'"):
        Policy(backend, think=False, thinking=BESIDE)
    with pytest.raises(ConfigError, match="takes no thought"):
        Policy(backend, thinking=BESIDE).act(observation, words=[1])


def test_the_shipped_model_writes_beside_its_actions_what_it_writes_before_them(observation):
    """Two sequences live on one backend, and a prompt that was handed over is as good as one that was read."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (96, 96, 3), np.uint8) for _ in range(4)]
    observations = [replace(observation, images={"front": picture}) for picture in pictures]
    folder = shipped_bundle_path()
    with Policy(OnnxBackend.open(folder), draft=False) as before:
        expected = [before.act(one).tokens for one in observations]
        texts = [before.act(one).thought for one in observations]
    assert len(set(texts)) == 4
    with Policy(OnnxBackend.open(folder), thinking=replace(BESIDE, max_age_s=1e6), is_driven=True) as policy:
        policy.act(observations[0])
        for number, about in enumerate(observations[1:]):
            policy.think_on()
            policy.act(observations[3 - number])  # another sequence in the middle of the thought
            think_to_the_end(policy)
            chunk = policy.act(about)
            assert (chunk.tokens, chunk.thought_use.id) == (expected[number], number + 1)


def thinker_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "roboalign-thinker"]


def act_until(policy: Policy, observation: Observation, status: str):
    for _ in range(10_000):
        chunk = policy.act(observation)
        if chunk.thought_use.status == status:
            return chunk
    raise AssertionError(f"no chunk was {status}; the last one was {chunk.thought_use}")


def act_and_catch_the_thinker(policy: Policy, backend: TalkingBackend, observation: Observation) -> None:
    """Acts; afterwards the thinker is inside its first pass and stays there until the gate is opened."""
    flow, backend.gate = backend.flow, threading.Event()
    backend.gate.set()

    def flow_then_stop(*arguments):
        actions = flow(*arguments)
        backend.gate.clear()
        backend.inside.clear()
        backend.flow = flow
        return actions

    backend.flow = flow_then_stop
    policy.act(observation)
    assert backend.inside.wait(10.0)


def test_with_threads_a_thought_is_finished_though_actions_follow_without_pause(backend, observation):
    with Policy(backend, thinking=replace(BESIDE, max_age_s=1e6, share=0.5)) as policy:
        assert policy.act(seen(observation, 2)).thought_use.status == "none"
        statuses = (policy.act(seen(observation, 2)).thought_use.status for _ in range(2000))
        assert "fresh" in statuses
    assert thinker_threads() == []


def test_an_idle_policy_has_no_thread(backend, observation):
    policy = Policy(backend, thinking=BESIDE)
    policy.act(seen(observation, 2))
    for thread in thinker_threads():
        thread.join(10.0)
    assert thinker_threads() == []
    assert policy.act(seen(observation, 2)).thought == "ccc"
    policy.close()
    assert thinker_threads() == []


def test_closing_in_the_middle_of_a_thought_ends_the_thread(backend, observation):
    policy = Policy(backend, thinking=BESIDE)
    act_and_catch_the_thinker(policy, backend, seen(observation, 2))
    closing = threading.Thread(target=policy.close)
    closing.start()
    while not policy._aside._is_closed:
        closing.join(0.001)
    backend.gate.set()
    closing.join(10.0)
    assert not closing.is_alive()
    assert thinker_threads() == []
    assert backend.passes == ["prompt", "flow", "prompt"]
    with pytest.raises(BackendError, match="closed"):
        policy.act(observation)


def test_a_reset_in_the_middle_of_a_thought_ends_it(backend, observation):
    with Policy(backend, thinking=BESIDE) as policy:
        act_and_catch_the_thinker(policy, backend, seen(observation, 2))
        resetting = threading.Thread(target=policy.reset)
        resetting.start()
        while policy._aside._num_waiting == 0:
            resetting.join(0.001)
        backend.gate.set()
        resetting.join(10.0)
        for thread in thinker_threads():
            thread.join(10.0)
        assert thinker_threads() == []
        assert backend.passes == ["prompt", "flow", "prompt"]
        assert policy.act(seen(observation, 3)).thought_use.status == "none"


def test_an_error_of_an_action_reaches_the_caller_and_the_thought_goes_on(backend, observation):
    small = replace(observation, images={"front": np.zeros((64, 64, 3), np.uint8)})
    with Policy(backend, thinking=BESIDE) as policy:
        policy.act(seen(observation, 2))
        with pytest.raises(DataError, match="64, 64, 3"):
            policy.act(small)
        assert act_until(policy, seen(observation, 2), "fresh").thought == "ccc"
    assert thinker_threads() == []


def test_a_failing_thinker_ends_its_thread_and_the_next_action_says_why(backend, observation):
    backend.fails_at = "step"
    with Policy(backend, thinking=BESIDE) as policy:
        policy.act(seen(observation, 2))
        for thread in thinker_threads():
            thread.join(10.0)
        assert policy.act(seen(observation, 2)).thought_use.reason == "BackendError: out of memory"
    assert thinker_threads() == []


def test_an_action_waits_for_the_pass_that_is_being_made_and_for_no_other(backend, observation):
    with Policy(backend, thinking=BESIDE) as policy:
        act_and_catch_the_thinker(policy, backend, seen(observation, 2))
        backend.passes.clear()
        acting = threading.Thread(target=lambda: policy.act(seen(observation, 3)))
        acting.start()
        while policy._aside._num_waiting == 0:
            acting.join(0.001)
        backend.gate.set()
        acting.join(10.0)
        assert backend.passes[1:3] == ["prompt", "flow"]
    assert thinker_threads() == []


class BusyThinker:
    """Always has a pass to make, each of which takes a while on its clock."""

    is_busy, num_passes, now_s = True, 0, 0.0

    def work(self) -> bool:
        self.num_passes += 1
        self.now_s += 0.01
        return True


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_actions_without_pause_leave_thoughts_their_share_of_the_time(share):
    """Somebody waits whenever an action ends, so the thinker makes the passes that it has earned and no other."""
    thinker = BusyThinker()
    aside = Aside(thinker, share, lambda: thinker.now_s)
    aside._num_waiting = 1
    for _ in range(200):
        with aside.acting():
            thinker.now_s += 0.005
    aside._num_waiting = 0
    aside.close()
    assert abs(thinker.num_passes * 0.01 / thinker.now_s - share) < 0.02
    assert thinker_threads() == []


def test_thoughts_that_rested_are_not_made_up_for_at_once():
    thinker = BusyThinker()
    aside = Aside(thinker, 0.5, lambda: thinker.now_s)
    thinker.is_busy = False
    with aside.acting():
        thinker.now_s += 100.0
    thinker.is_busy = True
    aside._num_waiting = 1
    for _ in range(40):
        with aside.acting():
            pass
    aside._num_waiting = 0
    aside.close()
    assert thinker.num_passes in (10, 11)


def test_a_share_that_is_none_or_all_is_refused():
    for share in (0.0, 1.0):
        with pytest.raises(ConfigError, match=f"Thinking.share is {share}, expected between 0 and 1"):
            Thinking(share=share)
