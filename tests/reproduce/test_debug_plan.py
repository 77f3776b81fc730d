"""The plan `debug` with the real commands, end to end: minutes of CPU."""

import pytest

from roboalign.reproduce import StudyConfig, run_study
from roboalign.reproduce.ledger import read_ledger

ARMS = ("sft", "aligned", "random")


@pytest.mark.slow
def test_the_debug_plan_runs_and_goes_on(tmp_path, capfd):
    config = StudyConfig(plan="debug", out=tmp_path / "out", arms=ARMS, seeds=(0,), workers=2)
    page = run_study(config)
    ledger = read_ledger(page.with_name("results.jsonl"))
    assert [result.arm for result in ledger.results] == list(ARMS)
    aligned = {step.facts.stage: step.facts for step in ledger.of("aligned")[0].made_by}
    assert aligned["align"].updates == 2
    assert aligned["align"].curves["reward"]
    assert all(aligned[stage].cpu_s > 0 for stage in ("sft", "align", "head"))
    capfd.readouterr()
    run_study(config)
    assert "started" not in capfd.readouterr().err, "a second run finds everything"
