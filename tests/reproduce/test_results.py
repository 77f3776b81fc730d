"""From lines to what can be said: ledger, statistics, table, page."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.reproduce.analysis import arm_rows, contrasts, costs, say
from roboalign.reproduce.facts import StepFacts, matched_updates, step_facts
from roboalign.reproduce.ledger import Gap, Header, Ledger, MadeBy, Result, pack, read_ledger, unpack, write_ledger
from roboalign.reproduce.page import write_page_of
from roboalign.reproduce.study import report_ledger
from roboalign.reproduce.table import markdown
from roboalign.sdk.errors import BundleError, DataError
from roboalign.sdk.evaluation.statistics import mcnemar_exact

HEADER = Header(
    title="a study",
    plan_sha256="0" * 64,
    labels={"rl": "SFT + RL", "sft": "SFT", "act": "ACT-like"},
    seeds=(0, 1, 2),
    scenes=100,
    primary=("rl", "sft"),
    secondary=(("rl", "act"), ("sft", "act")),
    notes=("a small model",),
)
CURVES = {"reward": ((1.0, 0.5), (2.0, 0.6))}


def result(arm: str, seed: int, wins: int, n: int = 100, scenes: str = "same") -> Result:
    facts = StepFacts(stage="align", frames=40, updates=20, samples=240, cpu_s=30.0, curves=CURVES)
    step = MadeBy(
        id=f"align.s{seed}", line="roboalign train align", content="c", source="s", cpu_s=9, wall_s=9, facts=facts
    )
    return Result(
        arm=arm,
        seed=seed,
        n=n,
        successes=wins,
        outcomes=pack([i < wins for i in range(n)]),
        by_task={"place": (wins, n)},
        scenes={"sha256": f"{scenes}-{seed}"},
        who_acted="flow",
        thought_share=1.0,
        mean_progress=0.5,
        holds=0,
        made_by=(step,),
        versions={"roboalign": "1"},
    )


LEDGER = Ledger(
    header=HEADER,
    results=tuple(
        result(arm, seed, wins)
        for arm, rows in (("rl", (80, 82, 78)), ("sft", (60, 61, 59)))
        for seed, wins in enumerate(rows)
    ),
    gaps=tuple(Gap(arm="act", seed=seed, reason="No such command 'act'") for seed in (0, 1, 2)),
)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_outcomes_survive_packing(outcomes):
    assert unpack(pack(outcomes), len(outcomes)) == outcomes


def test_a_ledger_survives_its_file(tmp_path):
    assert read_ledger(write_ledger(tmp_path / "results.jsonl", LEDGER)) == LEDGER


def test_a_line_that_was_changed_by_hand_is_noticed(tmp_path):
    path = write_ledger(tmp_path / "results.jsonl", LEDGER)
    path.write_text(path.read_text().replace('"successes": 80', '"successes": 81'))
    with pytest.raises(DataError, match=r"line 2 of .*the packed outcomes of rl, seed 0, are not 81 successes"):
        read_ledger(path)


def test_a_ledger_without_a_plan_is_refused(tmp_path):
    path = write_ledger(tmp_path / "results.jsonl", LEDGER)
    path.write_text("\n".join(path.read_text().splitlines()[1:]))
    with pytest.raises(DataError, match="lacks the line of the plan"):
        read_ledger(path)


def test_the_primary_comparison_is_first_and_not_corrected():
    primary = contrasts(LEDGER)[0]
    assert (primary.first, primary.second, primary.adjusted_p) == ("rl", "sft", None)
    assert primary.found.num_pairs == 300
    assert primary.found.difference == pytest.approx(0.2)
    assert primary.found.scene_p_value == mcnemar_exact(60, 0)


def test_secondary_comparisons_are_corrected_for_their_number():
    more = replace(LEDGER, results=(*LEDGER.results, *(result("act", seed, 72) for seed in (0, 1, 2))), gaps=())
    _, first, second = contrasts(more)
    assert second.found.scene_p_value < first.found.scene_p_value
    assert second.adjusted_p == 2 * second.found.scene_p_value
    assert first.adjusted_p == first.found.scene_p_value


def test_a_comparison_without_both_arms_is_left_open_and_counts_for_nothing():
    _, missing, _ = contrasts(LEDGER)
    assert missing.found is None
    assert say(missing, LEDGER) == "SFT + RL against ACT-like: no seed has both"


def test_only_seeds_that_both_arms_have_are_compared():
    fewer = replace(LEDGER, results=LEDGER.results[1:])
    assert [seed.seed for seed in contrasts(fewer)[0].found.seeds] == [1, 2]


def test_the_hypothesis_needs_every_seed():
    fewer = replace(LEDGER, results=LEDGER.results[1:])
    assert say(contrasts(fewer)[0], LEDGER) == "SFT + RL better than SFT: not decided, 1 of 3 seeds are missing"


def test_other_scenes_are_not_paired():
    odd = replace(LEDGER, results=(result("rl", 0, 80, scenes="other"), *LEDGER.results[1:]))
    with pytest.raises(DataError, match="rl and sft are not paired: seed 0"):
        contrasts(odd)


def test_an_arm_without_a_result_keeps_its_row_and_its_reason():
    row = arm_rows(LEDGER)[2]
    assert (row.n, row.gaps) == (0, ("No such command 'act' (seed 0, 1, 2)",))


def test_the_cost_is_what_the_stage_counted():
    (cost,) = costs(arm_rows(LEDGER)[0])
    assert (cost.step, cost.updates, cost.samples, cost.tokens, cost.cpu_s) == ("align", 20, 240, None, 30.0)


def test_a_policy_without_a_language_model_says_what_it_took(tmp_path):
    (tmp_path / "training.json").write_text(
        '{"config": {"steps": 50, "batch_size": 4}, "frames": 7, "cpu_s": 12.34, "metrics": {}}'
    )
    assert step_facts(tmp_path) == StepFacts(stage="act", frames=7, updates=50, samples=200, cpu_s=12.3)


def test_updates_are_lengthened_by_the_cpu_seconds_of_the_other_step():
    assert matched_updates(StepFacts(updates=800, cpu_s=960.0), StepFacts(cpu_s=300.0)) == 1050


def test_compute_of_a_step_that_counted_nothing_cannot_be_matched():
    with pytest.raises(BundleError, match="compute cannot be matched: found None updates"):
        matched_updates(StepFacts(), StepFacts(cpu_s=1.0))


def test_the_table_has_every_arm_and_the_reason_of_those_without_a_result():
    text = markdown(LEDGER)
    assert text.startswith("Primary: SFT + RL better than SFT: holds (3 training seeds, 300 paired episodes).\n")
    assert "| SFT + RL | 3 | 300 | 80.0 % |" in text
    assert "| SFT + RL minus SFT (primary) | +20.0 | +1" in text
    assert "- ACT-like: No such command 'act' (seed 0, 1, 2)" in text


def test_the_page_stands_alone(tmp_path):
    page = write_page_of(LEDGER, tmp_path / "results.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    assert page.count("data:image/png") == 3, "one curve for the align run of each seed"


def test_the_report_of_a_ledger_lies_beside_it(tmp_path):
    write_ledger(tmp_path / "results.jsonl", LEDGER)
    assert report_ledger(tmp_path / "results.jsonl") == tmp_path / "results.html"
    assert (tmp_path / "results.md").read_text() == markdown(LEDGER)
