"""Injected latencies, without physics and with a scripted policy; the shipped model once, on the simulated scene."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from evaluation_fakes import MAX_STEPS, LineEnv
from tests.stub_board import copy_portable

from roboalign.export.board_latency import board_latency
from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.bundle import read_bundle
from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.caveats import caveats
from roboalign.sdk.evaluation.contenders import PolicyRef
from roboalign.sdk.evaluation.controls import BlindPolicy
from roboalign.sdk.evaluation.episodes import HOLD_STEPS, run_episode
from roboalign.sdk.evaluation.latency import LatencyProfile, LatePace, TimedBackend
from roboalign.sdk.evaluation.results import (
    episode_from_json,
    episode_to_json,
    read_report,
    summarize_episodes,
    write_report_json,
)
from roboalign.sdk.policy import Policy
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.thinking import Thinking
from roboalign.sdk.types import ActionChunk, ThoughtUse


class SlowWalk:
    """Takes `act_s` for a chunk of eight; says in each action the number of its call and its place in the chunk."""

    def __init__(self, act_s: float, strategy: str, *, hold_at: int = 0, thoughts: int = 0, first_s: float = 0) -> None:
        self.clock, self.act_s, self.hold_at, self.first_s = FakeClock(), act_s, hold_at, first_s
        self.asked_s: list[float] = []
        self.told: list[str] = []
        self.committed = []
        self.left, self.num_passes = thoughts, 0
        self.pace = LatePace(self, self.clock, strategy)

    def think_on(self) -> bool:
        if self.left == 0:
            return False
        self.left, self.num_passes = self.left - 1, self.num_passes + 1
        self.clock.advance(0.03)
        return True

    def commit(self, committed) -> None:
        self.committed.append(committed)

    def reset(self) -> None:
        pass

    def act(self, observation) -> ActionChunk:
        self.asked_s.append(round(self.clock.now(), 6))
        self.told.append(observation.instruction)
        awaits = self.first_s > 0.0 and len(self.asked_s) == 1
        self.clock.advance(self.first_s if awaits else self.act_s)
        if len(self.asked_s) == self.hold_at:
            return ActionChunk.hold("nothing to say", rate_hz=10.0)
        actions = np.zeros((8, 5), np.float32)
        actions[:, 0] = 1e-6
        actions[:, 1], actions[:, 2] = len(self.asked_s), np.arange(8)
        use = ThoughtUse(status="awaited" if awaits else "fresh")
        return ActionChunk(actions=actions, rate_hz=10.0, source="flow", thought_use=use)

    def close(self) -> None:
        pass


def play(policy, *, env=None, **options):
    env = LineEnv() if env is None else env
    episode = run_episode(env, policy, seed=4, task="place", **options)
    return episode, [(int(a[1]), int(a[2])) if a[0] else None for a in env.actions]


def test_without_a_latency_every_action_is_applied_in_turn():
    episode, rows = play(SlowWalk(0.0, "wait"))
    assert rows == [(1 + i // 8, i % 8) for i in range(MAX_STEPS)]
    assert (episode.stood, episode.num_calls) == (0, 3)


def test_a_policy_that_is_waited_for_lets_the_arm_stand():
    """A chunk takes 0.25 s: the third period after it was asked for is the first that has it."""
    episode, rows = play(SlowWalk(0.25, "wait"))
    assert rows == [None] * 3 + [(1, i) for i in range(8)] + [None] * 3 + [(2, i) for i in range(6)]
    assert episode.stood == 6


def test_a_chunk_that_is_asked_for_in_time_leaves_no_gap():
    episode, rows = play(SlowWalk(0.25, "hold"))
    assert rows == [None] * 3 + [(1, i) for i in range(8)] + [(2, i) for i in range(3, 8)] + [
        (3, i) for i in range(3, 7)
    ]
    assert episode.stood == 3


def test_switching_asks_again_after_a_period_in_which_it_can_think():
    policy = SlowWalk(0.15, "switch")
    _, rows = play(policy)
    assert rows[:11] == [None] * 2 + [(1, i) for i in range(5)] + [(2, i) for i in range(2, 5)] + [(3, 2)]
    assert policy.asked_s[:3] == [0.0, 0.5, 0.8]


def test_guided_chunks_are_told_what_is_left_and_how_much_of_it_is_applied_meanwhile():
    policy = SlowWalk(0.15, "rtc")
    _, rows = play(policy)
    first, second = policy.committed[:2]
    assert (len(first.actions), first.delay) == (0, 0)
    assert [(int(a[1]), int(a[2])) for a in second.actions] == [(1, i) for i in range(3, 8)]
    assert second.delay == 2
    assert rows[:11] == [None] * 2 + [(1, i) for i in range(5)] + [(2, i) for i in range(2, 5)] + [(3, 2)]


def test_replan_every_says_when_to_ask():
    policy = SlowWalk(0.05, "switch")
    play(policy, replan_every=4)
    assert policy.asked_s[:3] == [0.0, 0.5, 0.9]


def test_what_waits_for_a_pass_of_the_thinker_waits_here_too():
    policy = SlowWalk(0.2, "wait", thoughts=100)
    play(policy)
    assert policy.asked_s[1] > 1.0  # due at 1.0 s; the pass that had begun took until then
    assert policy.asked_s[1] < 1.03


def test_asked_without_pause_it_still_makes_a_pass_between_two_actions():
    policy = SlowWalk(0.5, "hold", thoughts=100)
    play(policy)
    assert policy.num_passes >= len(policy.asked_s) - 1


def test_a_hold_is_waited_out_and_counted():
    episode, rows = play(SlowWalk(0.0, "wait", hold_at=2))
    assert rows[8 : 8 + HOLD_STEPS] == [None] * HOLD_STEPS
    assert rows[8 + HOLD_STEPS] == (3, 0)
    assert (episode.num_holds, episode.stood) == (1, 0)


def test_a_delay_beyond_the_chunk_is_refused():
    with pytest.raises(ConfigError, match=r"an answer takes 0\.85 s"):
        play(SlowWalk(0.85, "hold"))
    assert play(SlowWalk(0.85, "wait"))[0].stood == 9 + 3


def test_an_answer_that_waits_for_its_thought_says_nothing_of_the_delay_of_others():
    """1.2 s would be more than a chunk of eight covers; the others take 0.15 s, which is two steps."""
    policy = SlowWalk(0.15, "rtc", first_s=1.2)
    _, rows = play(policy)
    assert rows[:12] == [None] * 12
    assert None not in rows[12:]
    assert [committed.delay for committed in policy.committed][:4] == [0, 0, 2, 2]


def test_a_new_sentence_drops_what_is_there_and_what_is_on_its_way():
    class Told(LineEnv):
        @property
        def instruction(self) -> str:
            return "first" if self.steps < 6 else "second"

    policy = SlowWalk(0.25, "hold")
    _, rows = play(policy, env=Told())
    assert policy.told[:2] == ["first", "second"]
    assert rows[:10] == [None] * 3 + [(1, 0), (1, 1), (1, 2)] + [None] * 3 + [(2, 0)]


def test_controls_keep_the_pace_of_the_policy_that_they_wrap():
    episode, _ = play(BlindPolicy(SlowWalk(0.25, "wait")))
    assert episode.stood == 6


@pytest.fixture(scope="module")
def scene():
    made = SimEnv("place", max_steps=24)
    yield made
    made.close()


def play_shipped(scene, **options):
    policy = PolicyRef(kind="bundle", **options).open(scene)
    try:
        return run_episode(scene, policy, seed=1_000_000_000, task="place")
    finally:
        policy.close()


def test_the_shipped_policy_does_the_same_when_its_passes_take_no_time(scene):
    plain, late = play_shipped(scene), play_shipped(scene, latency=LatencyProfile())
    assert late.state_hash == plain.state_hash
    assert (late.thoughts, late.num_calls) == (plain.thoughts, plain.num_calls)


def test_the_shipped_policy_thinks_beside_its_actions_and_repeats_itself(scene):
    thinking = Thinking(mode="beside", max_age_s=3.0)
    latency = LatencyProfile(prefill_s=0.05, token_s=0.01, action_s=0.02)
    options = {"thinking": thinking, "latency": latency, "chunks": "rtc"}
    first, again = play_shipped(scene, **options), play_shipped(scene, **options)
    assert first.state_hash == again.state_hash
    assert first.thought_statuses == again.thought_statuses
    assert first.thought_statuses["fresh"] > 1
    assert first.thought_statuses["awaited"] == 1
    assert "none" not in first.thought_statuses
    ages = first.latency_s["thought_age"]
    assert 0.1 < min(ages) < max(ages) <= 3.0


def test_a_thought_that_is_recalled_takes_no_time(scene):
    """All but the first, which is written meanwhile; to read one takes at least a pass."""
    latency, taken_s = LatencyProfile(prefill_s=0.05, token_s=0.01, action_s=0.02), {}
    for recalls in (False, True):
        thinking = Thinking(mode="beside", max_age_s=3.0, recalls=recalls)
        episode = play_shipped(scene, thinking=thinking, latency=latency, chunks="wait")
        first, *taken_s[recalls] = episode.latency_s["thought"]
        assert first > 0.1
    assert min(taken_s[False]) > 0.009
    assert max(taken_s[True]) < 1e-9


def test_a_backend_that_keeps_no_thoughts_keeps_none_in_simulated_time(tmp_path):
    backend = OnnxBackend(read_bundle(copy_portable(tmp_path / "portable")))
    clock = FakeClock()
    timed = TimedBackend(backend, LatencyProfile(), clock)
    with pytest.raises(ConfigError, match="keeps no hidden states of thoughts"):
        Policy(timed, thinking=Thinking(mode="beside", recalls=True), clock=clock.now, is_driven=True)
    timed.close()


def test_a_written_profile_is_read():
    profile = LatencyProfile.parse("prefill=0.1,action=0.05")
    assert (profile.prefill_s, profile.token_s, profile.action_s) == (0.1, 0.0, 0.05)


@pytest.mark.parametrize("text", ["", "prefill", "prefill=x", "prefil=1", "token=1,token=2", "token=-1", "token=nan"])
def test_a_profile_that_is_none_is_refused(text):
    with pytest.raises(ConfigError):
        LatencyProfile.parse(text)


def test_a_board_and_a_model_are_a_profile():
    thor, orin = (board_latency(f"{board}/qwen2.5-vl-7b") for board in ("agx-thor", "agx-orin-64gb"))
    assert thor.name == "agx-thor/qwen2.5-vl-7b in nvfp4, predicted"
    assert orin.name.endswith("in int4, predicted")
    assert thor.token_s < orin.token_s < 0.05
    assert 0.02 < thor.prefill_s < orin.prefill_s < 1.0


@pytest.mark.parametrize("text", ["agx-thor/qwen", "thorr/qwen2.5-vl-7b", "cpu/qwen2.5-vl-7b", "agx-thor"])
def test_a_board_or_model_that_nobody_knows_is_refused(text):
    with pytest.raises(ConfigError):
        board_latency(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "random", "latency": LatencyProfile()}, "how a random policy thinks"),
        ({"kind": "bundle", "chunks": "switch"}, "a chunk strategy needs a latency"),
        ({"kind": "bundle", "chunks": "swap", "latency": LatencyProfile()}, "unknown chunk strategy 'swap'"),
        ({"kind": "bundle", "think": False, "thinking": Thinking()}, "think=False, but thinking asks for"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        PolicyRef(**values)


def test_a_row_says_how_it_thinks_and_what_its_passes_take():
    ref = PolicyRef(kind="bundle", thinking=Thinking(mode="beside"), latency=LatencyProfile(name="thor"))
    assert ref.name == "shipped bundle, thinking beside, latency thor, chunks wait"
    row = ref.describe()
    assert row["thinking"]["mode"] == "beside"
    assert (row["latency"]["name"], row["chunks"]) == ("thor", "wait")
    assert "recalls" not in row["thinking"], "trials that were begun before there was such a thing go on"
    recalling = PolicyRef(kind="bundle", thinking=Thinking(mode="beside", recalls=True), latency=LatencyProfile())
    assert "thinking beside, recalled, latency" in recalling.name
    assert recalling.describe()["thinking"]["recalls"] is True


def late_report(**changes):
    latency = LatencyProfile(prefill_s=0.25, name="some board")
    episodes = [play(SlowWalk(0.25, "hold"))[0], play(SlowWalk(0.25, "wait"))[0]]
    policy = {"kind": "bundle", "latency": asdict(latency), "chunks": "hold"}
    return summarize_episodes([replace(episode, **changes) for episode in episodes], policy=policy, config={})


def test_a_report_says_what_became_of_time_thoughts_and_seams():
    episode = late_report(thought_statuses={"none": 1, "fresh": 3}, latency_s={"thought_age": (0.5, 1.5)}, stood=5)
    said = " ".join(caveats(episode))
    assert "(some board; chunks: hold)" in said
    assert "the arm stood still in 25.0 % of the control periods" in said
    assert "Thoughts: none 25 %, fresh 75 %; the picture behind one was 1.00 s old" in said
    assert "Mean change at the seams of chunks" in said


def test_a_report_of_a_late_policy_survives_its_file(tmp_path):
    report = late_report()
    assert report.seams["velocity"].num_across == 2
    assert read_report(write_report_json(report, tmp_path / "report.json")) == report


def test_an_episode_of_a_late_policy_survives_its_line():
    episode = replace(play(SlowWalk(0.25, "hold"))[0], latency_s={})
    assert episode.seams["velocity"].num_across == 2
    assert episode_from_json(episode_to_json(episode)) == episode
