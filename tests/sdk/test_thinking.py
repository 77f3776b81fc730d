"""Thinking beside the actions, on a clock that every pass of a scripted model moves."""

from dataclasses import replace

import numpy as np
import pytest
from tests.talking import BESIDE, TalkingBackend, seen, think_to_the_end

from roboalign.sdk import turn
from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.bundle import shipped_bundle_path
from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.policy import Policy
from roboalign.sdk.thinking import Thinking

WAITING = Thinking(mode="beside", max_age_s=20.0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend(folder, spec, ids, clock) -> TalkingBackend:
    return TalkingBackend(folder, replace(spec, max_thought_tokens=12), ids, clock)


@pytest.fixture
def policy(backend, clock) -> Policy:
    return Policy(backend, thinking=BESIDE, clock=clock.now, is_driven=True)


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
        ({"recalls": True}, "recalls is for thoughts beside the actions, and the mode is 'before_every_chunk'"),
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
    with pytest.raises(ConfigError, match="TalkingBackend keeps no hidden states of thoughts"):
        Policy(backend, thinking=replace(BESIDE, recalls=True))
    with pytest.raises(ConfigError, match="only the action head can recall thoughts"):
        Policy(backend, actions="fast", thinking=replace(BESIDE, recalls=True))
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
