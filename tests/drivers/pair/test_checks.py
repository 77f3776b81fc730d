"""Single checks: what they say when they cannot tell, and of faults that no kind of the planted ones has."""

from dataclasses import replace

import numpy as np
import pytest
from tests.drivers.pair.desk import NEEDS, SENTENCE, DeskArm, Listener, session

from roboalign.drivers.pair.policy_checks import ask_policy, check_instruction, check_speed
from roboalign.drivers.pair.state_checks import check_axes, check_gripper, check_state
from roboalign.drivers.setup.checks import Check, DoctorReport
from roboalign.sdk.views.pictures import NUM_HUES, TURNS, colour_evidence, hue_shares, picture_lag, view_error


def with_state(evidence, change):
    moments = (replace(m, seen=replace(m.seen, state=change(m.seen.state.copy()))) for m in evidence.moments)
    return replace(evidence, moments=tuple(moments))


def test_a_state_that_nothing_explains_is_named_all_the_same():
    def drift(state):
        state[:3] += 0.1
        return state

    reading = check_state(with_state(session(), drift))
    assert reading.checks[0].status == "failed"
    assert "neither another unit nor another order explains it" in reading.checks[0].found
    assert check_axes(session(), reading).status == "skipped"


def test_an_arm_of_unknown_links_cannot_be_compared():
    evidence = session(kinematics=None)
    reading = check_state(evidence)
    assert {check.status for check in reading.checks} == {"skipped"}
    assert check_axes(evidence, reading).status == "passed"


def test_a_gripper_that_stays_is_no_wrong_sign():
    def stuck(state):
        state[4] = 0.02
        return state

    evidence = with_state(session(), stuck)
    check = check_gripper(evidence, check_state(evidence))
    assert (check.name, check.status) == ("gripper sign", "failed")
    assert "it does not follow" in check.found


def test_a_policy_that_does_not_listen_fails_and_one_sentence_cannot_tell():
    seen = [DeskArm().observe(SENTENCE)]
    deaf = ask_policy(Listener(listens=False), seen, ("lift it", "push it"), clock=lambda: 0.0)
    assert check_instruction(deaf, NEEDS).status == "failed"
    one = ask_policy(Listener(), seen, ("lift it",), clock=lambda: 0.0)
    assert check_instruction(one, NEEDS).status == "skipped"


@pytest.mark.parametrize(("step_s", "status"), [(0.1, "passed"), (2.0, "failed")])
def test_an_answer_must_not_take_longer_than_its_actions_last(step_s, status):
    times = iter(np.arange(0.0, 100.0, step_s))
    answers = ask_policy(Listener(), [DeskArm().observe(SENTENCE)], ("a b", "c"), clock=lambda: float(next(times)))
    assert check_speed(answers, NEEDS).status == status


def test_exchanged_colours_are_the_mirror_of_hues():
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    hues, share = hue_shares([picture])
    swapped, _ = hue_shares([picture[..., ::-1]])
    assert 0.1 < share < 1.0
    assert colour_evidence(hues, hues) > 0 > colour_evidence(swapped, hues)
    assert np.abs(swapped[(NUM_HUES * 2 // 3 - 1 - np.arange(NUM_HUES)) % NUM_HUES] - hues).max() < 0.02


def test_a_grey_picture_has_no_hues():
    assert hue_shares([np.full((8, 8, 3), 90, np.uint8)])[1] == 0.0


def test_each_turn_is_told_from_the_others():
    motion = np.array([[0.0, 0.5], [3.0, 0.0], [0.2, -2.0], [0.3, 0.4]])
    tool = np.random.default_rng(0).uniform(-0.05, 0.05, (8, 3))
    upright = np.column_stack((tool, np.ones(8))) @ motion
    for name, turn in TURNS.items():
        errors = {other: view_error(motion, tool, turn(upright), other) for other in TURNS}
        assert min(errors, key=errors.get) == name
        assert errors[name] < 1e-12


def test_the_lag_of_pictures_is_counted_in_periods():
    dice = np.random.default_rng(1)
    speeds = np.repeat(dice.integers(0, 2, 12), 5).astype(float)
    places = (20 + 2 * np.cumsum(speeds)).astype(int) % 60
    frames = []
    for place in places:
        frame = np.zeros((96, 96, 3), np.uint8)
        frame[30:60, place : place + 20] = 255
        frames.append(frame)
    late = [frames[max(0, index - 4)] for index in range(len(frames))]
    assert (picture_lag(frames, speeds), picture_lag(late, speeds)) == (0, 4)
    assert picture_lag([frames[0]] * len(frames), speeds) is None


def test_a_narrow_screen_gets_lines_of_80():
    check = Check.failed("disk", "word " * 40, "do " * 50)
    lines = DoctorReport(checks=(check,)).wrapped().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("FAIL disk: word")
