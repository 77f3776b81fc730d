"""Thinking beside the actions in real time: a thread writes while nobody acts, and ends with its work."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from tests.talking import BESIDE, TalkingBackend, seen

from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.errors import BackendError, ConfigError, DataError
from roboalign.sdk.policy import Policy
from roboalign.sdk.thinking import Aside, Thinking
from roboalign.sdk.types import Observation


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend(folder, spec, ids, clock) -> TalkingBackend:
    return TalkingBackend(folder, replace(spec, max_thought_tokens=12), ids, clock)


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
