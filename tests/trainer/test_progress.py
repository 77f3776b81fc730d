import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.progress import MetricsLog, Timer, check_same_settings, learning_rate, progress_bar

STEPS = st.integers(1, 500)
SHARES = st.floats(0.0, 1.0)


def steps_in(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def written(path, *steps: int) -> None:
    log = MetricsLog(path, first_step=0)
    for step in steps:
        log.write(step=step, loss=0.5)


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path) -> None:
    log = MetricsLog(tmp_path / "deep" / "metrics.jsonl")
    log.write(step=3, loss=0.25)
    assert json.loads(log.path.read_text()) == {"step": 3, "loss": 0.25}


@pytest.mark.parametrize(("first", "kept"), [(0, []), (2, [0, 1]), (3, [0, 1, 2, 2]), (9, [0, 1, 2, 2, 3])])
def test_a_resumed_log_drops_what_will_be_done_again(tmp_path, first, kept) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 0, 1, 2, 2, 3)
    MetricsLog(path, first_step=first)
    assert steps_in(path) == kept


def test_a_line_cut_by_a_kill_is_dropped_and_the_next_one_is_whole(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 0, 1)
    path.write_text(path.read_text()[:-9])
    MetricsLog(path, first_step=2).write(step=2)
    assert steps_in(path) == [0, 2]


def test_a_timer_goes_on_from_what_was_used_before() -> None:
    timer = Timer(wall_s=100.0, cpu_s=50.0)
    assert 100.0 <= timer.wall_s < 110.0
    assert 50.0 <= timer.cpu_s < 60.0


def test_sleeping_takes_wall_time_and_no_cpu_time() -> None:
    timer = Timer()
    time.sleep(0.05)
    assert timer.wall_s >= 0.05
    assert timer.cpu_s < timer.wall_s


@given(st.integers(0, 600), STEPS, SHARES, SHARES)
def test_a_rate_is_positive_at_the_start_and_never_above_the_peak(step, steps, warmup, final) -> None:
    rate = learning_rate(step, peak=2.0, steps=steps, warmup_share=warmup, final_share=final)
    assert 0.0 <= rate <= 2.0
    assert learning_rate(0, peak=2.0, steps=steps, warmup_share=warmup) > 0.0


@given(STEPS, SHARES)
def test_the_peak_is_reached_at_the_end_of_the_warm_up(steps, share) -> None:
    warmup = max(1, round(share * steps))
    assert learning_rate(warmup - 1, peak=2.0, steps=steps, warmup_share=share) == 2.0


@settings(max_examples=40)
@given(st.integers(2, 200), st.floats(0.0, 0.9))
def test_a_rate_only_rises_in_the_warm_up_and_only_falls_after_it(steps, share) -> None:
    rates = [learning_rate(step, peak=1.0, steps=steps, warmup_share=share) for step in range(steps)]
    warmup = max(1, round(share * steps))
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup - 1 :] == sorted(rates[warmup - 1 :], reverse=True)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_a_rate_ends_at_its_final_share_and_stays_there(final) -> None:
    ends = [learning_rate(s, peak=2.0, steps=100, warmup_share=0.1, final_share=final) for s in (100, 200)]
    assert ends == pytest.approx([2.0 * final, 2.0 * final], abs=1e-12)


def test_half_way_down_is_half_the_peak() -> None:
    assert learning_rate(55, peak=2.0, steps=100, warmup_share=0.1) == pytest.approx(1.0)


def test_a_progress_bar_is_silent_where_there_is_no_terminal(capfd) -> None:
    with progress_bar("tiny", 2) as update:
        update(1, "loss 0.1")
    assert capfd.readouterr() == ("", "")


def test_an_interrupted_run_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    """An interrupted zero-shot run used to be finished as a paired one when that was asked for in its folder."""
    with pytest.raises(ConfigError, match=r"pairing differ\); go on with the settings"):
        check_same_settings({"pairing": "paired", "seed": 0}, {"pairing": "zero-shot", "seed": 0}, folder=tmp_path)
    check_same_settings({"seed": 0}, {"seed": 0}, folder=tmp_path)
