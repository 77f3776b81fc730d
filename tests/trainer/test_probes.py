"""Probes: neighbours, thoughts against the truth, and the report of a checkpoint."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_scenes

from roboalign.sdk.data.language import thought
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.trainer.checkpoint import CheckpointMeta, save_checkpoint
from roboalign.trainer.probes import ProbeConfig, report, run_probes
from roboalign.trainer.probes.neighbours import LABELS, K, label_of, nearest_labels, neighbour_probe, prompt_states
from roboalign.trainer.probes.thoughts import FACTS, ThoughtFacts, judge, read_thought, written_thoughts

TABLE = tiny_scenes.frames(48)
CODEC = tiny.codec_of(TABLE)
TRUE = ThoughtFacts(object="red block", place=(40, 52), offset=(4, -3), hand="open", next="lift the red block")


@pytest.fixture(scope="module")
def member():
    return tiny.backbone(CODEC)


def test_the_label_of_most_neighbours_wins_and_the_nearer_one_at_a_tie() -> None:
    references = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [-1, 0.1]], np.float32)
    labels = ["a", "b", "b", "c", "c"]
    assert nearest_labels(references, labels, references[:1], k=3) == ["b"]
    assert nearest_labels(references, labels, references[:1], k=2) == ["a"]


def test_labels_say_stage_places_and_offsets() -> None:
    truth = TABLE.truths[0]
    place = np.floor(truth.target_object.position_m[:2] / 0.08).astype(int)
    assert label_of(truth, "stage") == f"{truth.family} {truth.stage}"
    assert label_of(truth, "target") == f"{place[0]} {place[1]}"
    assert label_of(truth, "gripper") == "6 0"


def test_the_probe_reads_what_the_hidden_state_says(member, monkeypatch) -> None:
    """Hidden states that are the label in disguise are read without error, noise at about chance."""
    train, held = TABLE.split(0.3)
    names = sorted({label_of(truth, "stage") for truth in TABLE.truths})

    def told(_backbone, table, *, layer):
        return np.eye(len(names), dtype=np.float32)[[names.index(label_of(t, "stage")) for t in table.truths]]

    monkeypatch.setattr("roboalign.trainer.probes.neighbours.prompt_states", told)
    rows = {(row.label, row.task): row for row in neighbour_probe(member, train, held, layer=1)}
    known = {label_of(truth, "stage") for truth in train.truths}
    right = sum(label_of(truth, "stage") in known for truth in held.truths)
    assert rows["stage", "all"].right == right > 0
    assert rows["stage", "all"].count == len(held)
    assert rows["target", "all"].right < len(held)
    per_task = [row for (label, task), row in rows.items() if label == "stage" and task != "all"]
    assert sum(row.count for row in per_task) == len(held)
    assert {row.label for row in rows.values()} == set(LABELS)


def test_too_few_references_are_refused(member) -> None:
    with pytest.raises(DataError, match=f"at least {K} reference frames, found 4"):
        neighbour_probe(member, TABLE.take(np.arange(4)), TABLE, layer=1)


def test_hidden_states_do_not_depend_on_the_batch(member) -> None:
    few, many = (prompt_states(member, TABLE.take(np.arange(9)), layer=1, batch_size=size) for size in (2, 9))
    np.testing.assert_allclose(few, many, atol=1e-5)


def test_every_style_of_a_true_thought_is_read_and_right() -> None:
    texts = {thought(TABLE.truths[0], tiny.FORMAT, np.random.default_rng(seed)) for seed in range(20)}
    assert len(texts) == 3
    for truth in TABLE.truths[:24]:
        true = read_thought(thought(truth, tiny.FORMAT, np.random.default_rng(0)))
        for seed in range(6):
            found = read_thought(thought(truth, tiny.FORMAT, np.random.default_rng(seed)))
            assert judge(found, true, tiny.FORMAT) == dict.fromkeys(FACTS, True)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"object": "blue bowl"}, {"object"}),
        ({"place": (43, 52)}, {"place_10mm"}),
        ({"place": (45, 52)}, {"place_10mm", "place_20mm"}),
        ({"offset": (4, 3)}, {"offset_10mm", "offset_20mm"}),
        ({"hand": "closed"}, {"hand"}),
        ({"next": None}, {"next", "complete"}),
    ],
)
def test_each_wrong_fact_is_counted_as_wrong(change, wrong) -> None:
    result = judge(replace(TRUE, **change), TRUE, tiny.FORMAT)
    assert {name for name, is_right in result.items() if not is_right} == wrong | {"all_true"}


@pytest.mark.parametrize("text", ["", "go go go", "the is at 3", "holding the . next ."])
def test_a_thought_that_says_nothing_has_no_facts(text) -> None:
    assert read_thought(text) == ThoughtFacts(object=None, place=None, offset=None, hand=None, next=None)


def test_the_words_of_a_thought_come_without_its_markers(member) -> None:
    texts = written_thoughts(member, TABLE.take(np.arange(3)), budget=4)
    assert len(texts) == 3
    assert not any("think>" in text for text in texts)


@pytest.fixture
def folder(member, tmp_path, monkeypatch):
    meta = CheckpointMeta(stage="sft", recipe="tiny")
    save_checkpoint(tmp_path / "sft", model=member.model, processor=member.processor, meta=meta, codec=CODEC)
    monkeypatch.setattr(report, "load_frames", lambda *_args, **_kwargs: TABLE)
    return tmp_path / "sft"


def config(folder, **changes) -> ProbeConfig:
    values = {"checkpoint": folder, "data": folder, "out": folder.with_name("p.json"), "questions": 6, "references": 20}
    return ProbeConfig(**{**values, **changes})


def test_the_report_of_a_checkpoint_is_the_same_twice(folder) -> None:
    first = run_probes(config(folder))
    text = folder.with_name("p.json").read_text()
    assert run_probes(config(folder)) == first
    assert folder.with_name("p.json").read_text() == text
    assert {row["probe"] for row in json.loads(text)["rows"]} == {"neighbours", "answers", "thoughts"}
    assert all(row.low <= row.rate <= row.high for row in first.rows)
    assert first.layer == 1  # of 2, at the depth of the paper


def test_a_layer_that_the_model_lacks_is_refused(folder) -> None:
    with pytest.raises(ConfigError, match=r"ProbeConfig\.layer is 3, expected 1 to 2"):
        run_probes(config(folder, layer=3))
