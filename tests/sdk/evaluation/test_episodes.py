import numpy as np
import pytest
from evaluation_fakes import MAX_STEPS, LineEnv, WalkPolicy

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.episodes import HOLD_STEPS, EpisodePolicy, run_episode


def run(policy, **options):
    return run_episode(LineEnv(), policy, seed=4, task="place", **options)


def test_an_episode_ends_with_its_success():
    episode = run(WalkPolicy())
    assert episode.success
    assert (episode.steps, episode.progress, episode.num_holds) == (8, 1.0, 0)


def test_an_episode_without_success_ends_at_the_time_limit():
    episode = run(WalkPolicy(0.005))
    assert not episode.success
    assert episode.steps == MAX_STEPS
    assert episode.progress == pytest.approx(0.1 / 0.3, abs=1e-3)


@pytest.mark.parametrize(("replan_every", "num_calls"), [(None, 2), (1, 8), (3, 3), (100, 2)])
def test_the_policy_is_asked_again_after_so_many_actions(replan_every, num_calls):
    assert run(WalkPolicy(), replan_every=replan_every).num_calls == num_calls


def test_replan_every_zero_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        run(WalkPolicy(), replan_every=0)


def test_a_hold_stays_in_place_and_is_counted_with_its_reason():
    env = LineEnv()
    episode = run_episode(env, WalkPolicy(hold_every=2), seed=4, task="place")
    assert episode.num_holds == 1
    assert episode.hold_reasons == {"nothing to say": 1}
    assert episode.sources == {"flow": 2, "hold": 1}
    assert not np.any(np.array(env.actions)[4 : 4 + HOLD_STEPS, :4])


def test_a_hold_keeps_the_last_gripper_command():
    env = LineEnv()
    run_episode(env, WalkPolicy(hold_every=2), seed=4, task="place")
    assert env.actions[3][4] == env.actions[4][4] == 0.0


def test_thoughts_are_kept_with_their_step():
    assert run(WalkPolicy()).thoughts == ((0, "move 1"), (4, "move 2"))


def test_latency_holds_every_part_of_every_call():
    latency_s = run(WalkPolicy()).latency_s
    assert set(latency_s) == {"act", "total", "thought"}
    assert latency_s["thought"] == (0.004, 0.004)


def test_frames_show_every_step_and_change_nothing_else():
    plain, filmed = run(WalkPolicy()), run(WalkPolicy(), record_frames=True)
    assert plain.frames == ()
    assert [step for step, _ in filmed.frames] == list(range(9))
    assert (plain.state_hash, plain.success, plain.thoughts) == (filmed.state_hash, filmed.success, filmed.thoughts)


def test_no_picture_is_taken_for_a_policy_that_does_not_look():
    env, policy = LineEnv(), WalkPolicy()
    policy.needs_image = False
    run_episode(env, policy, seed=4, task="place")
    assert env.num_images == 0


def test_the_rest_of_a_chunk_is_dropped_when_the_sentence_changes():
    """A policy that was told one goal must not go on with it when the next one is asked for."""
    policy = WalkPolicy()
    episode = run_episode(LineEnv(num_goals=2), policy, seed=4, task="chain")
    assert policy.told == ["chain for 4, part 1", "chain for 4, part 2"]
    assert episode.instructions == ((0, "chain for 4, part 1"), (4, "chain for 4, part 2"))
    assert (episode.goals_done, episode.num_goals, episode.success) == (2, 2, True)


def test_a_chunk_longer_than_the_first_goal_is_cut_at_it():
    episode = run_episode(LineEnv(num_goals=5), WalkPolicy(0.06), seed=4, task="chain")
    assert episode.num_calls == 5
    assert [step for step, _ in episode.instructions] == [0, 1, 2, 3, 4]


def test_the_state_in_which_an_episode_began_is_kept():
    starts = {run(WalkPolicy(step_m)).start_hash for step_m in (0.04, 0.01)}
    assert len(starts) == 1


def test_the_policy_of_the_sdk_fits_the_protocol():
    from roboalign.sdk.policy import Policy

    assert issubclass(Policy, EpisodePolicy)
