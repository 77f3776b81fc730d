import json

import pytest
from evaluation_fakes import LineScene, WalkSetup

from roboalign.sdk.errors import DataError
from roboalign.sdk.evaluation.plots import draw_curves, draw_success, panels, read_metrics
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": i, "reward": 0.1 * i, "zero_variance": 0.5, "kl": 0.01 * i, "reward_std": 0.2} for i in range(10)]
    rows += [{"step": i, "held": {"greedy": {"error": 1.0 / (i + 1)}, "error": 0.5}, "note": "text"} for i in (0, 5, 9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_metrics_are_read_by_name_with_their_steps(metrics):
    curves = read_metrics(metrics)
    assert curves["held/greedy/error"].steps == (0.0, 5.0, 9.0)
    assert curves["reward"].values[-1] == pytest.approx(0.9)
    assert "note" not in curves


def test_metrics_become_panels_of_one_quantity(metrics):
    found = {panel.title.split(" (")[0]: [c.name for c in panel.curves] for panel in panels(read_metrics(metrics))}
    assert found == {
        "Action error": ["held/greedy/error", "held/error"],
        "Reward": ["reward"],
        "KL to the start of the stage": ["kl"],
        "Reward variance within groups": ["zero_variance"],
    }


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": NaN}\n{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    assert read_metrics(path)["loss"].steps == (1.0, 2.0)


def test_a_line_that_a_kill_cut_off_is_left_out(metrics):
    metrics.write_text(metrics.read_text() + '{"step": 10, "rew')
    assert len(read_metrics(metrics)["reward"].values) == 10


def test_a_damaged_line_in_the_middle_is_named(metrics):
    metrics.write_text("broken\n" + metrics.read_text())
    with pytest.raises(DataError, match="line 1"):
        read_metrics(metrics)


def test_a_missing_metrics_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        read_metrics(tmp_path / "nothing.jsonl")


def test_a_panel_describes_itself_in_words(metrics):
    panel = next(panel for panel in panels(read_metrics(metrics)) if panel.title == "Reward")
    assert panel.description == "Reward, 10 points up to step 9: reward from 0 to 0.9"


def test_curves_are_drawn_and_repeatable(metrics):
    panel = panels(read_metrics(metrics))[0]
    assert draw_curves(panel).startswith(b"\x89PNG")
    assert draw_curves(panel) == draw_curves(panel)


def test_success_rates_are_drawn(tmp_path):
    report = evaluate(EvalConfig(out=tmp_path, episodes=4, films=0), WalkSetup(), LineScene())
    assert draw_success([("one", report), ("two", report)]).startswith(b"\x89PNG")
