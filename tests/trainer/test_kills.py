"""The short version of `benchmarks/resume.py`: every stage is killed once and goes on to the same result."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import resume


@pytest.mark.slow
def test_a_killed_stage_goes_on_to_the_same_numbers_and_weights(tmp_path) -> None:
    shown = []
    outcomes = resume.measure(tmp_path, kills=4, seed=1, show=shown.append)
    assert [outcome.stage for outcome in outcomes] == list(resume.STAGES)
    for outcome in outcomes:
        assert (outcome.kills, outcome.equal, outcome.varied, outcome.half_written) == (1, True, True, 0), shown
