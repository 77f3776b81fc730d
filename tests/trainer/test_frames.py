from dataclasses import replace

import numpy as np
import pytest
import recorded
import tiny_scenes
from recorded import episode, said

from roboalign.sdk.data import truth_to_json
from roboalign.sdk.errors import DataError
from roboalign.sdk.types import COMMANDED_STATE_NAMES
from roboalign.trainer.frames import FrameTable, load_frames


def load(folder, **more) -> FrameTable:
    return load_frames(folder, horizon=4, image_size_px=recorded.SIZE_PX, **more)


def test_a_dataset_without_truth_gives_frames_with_its_sentences(tmp_path) -> None:
    table = load(recorded.write(tmp_path))
    assert (len(table), table.truths, table.robot) == (12, None, "panda")
    assert [table.instruction(i) for i in (0, 11)] == ["do task 0", "do task 1"]
    assert not any(words.has_thought for words in table.words)


def test_with_truth_the_instruction_is_the_truths() -> None:
    table = tiny_scenes.frames(4)
    assert [table.instruction(i) for i in range(4)] == [truth.instruction for truth in table.truths]


def test_what_needs_truth_says_so_with_the_columns_found(tmp_path) -> None:
    table = load(recorded.write(tmp_path))
    with pytest.raises(
        DataError, match=r"demos has no simulator truth .* which stage base needs; found the columns obs"
    ):
        table.require_truths("stage base")


def test_truth_on_some_frames_only_is_refused(tmp_path) -> None:
    scene = truth_to_json(tiny_scenes.scene(0))
    half = [replace(episode(0), truth_json=(scene,) * 6), episode(1)]
    with pytest.raises(DataError, match="has simulator truth on 6 of 12 frames, expected all or none"):
        load(recorded.write(tmp_path, half))


def test_the_step_of_a_frame_is_the_subtask_in_force(tmp_path) -> None:
    rows = (said("subtask", "reach", 0.0), said("subtask", "lift", 0.3), said("plan", "reach then lift", 0.0))
    table = load(recorded.write(tmp_path, [episode(0, language_persistent=rows), episode(1)]))
    assert [table.words[i].step for i in range(7)] == ["reach"] * 3 + ["lift"] * 3 + [None]
    assert [table.words[i].thought for i in (0, 6)] == ["reach then lift", None]


@pytest.mark.parametrize("name", ["thought", "annotation.reasoning"])
def test_a_text_column_holds_thoughts(tmp_path, name) -> None:
    path = recorded.write(tmp_path, columns={name: [f"so {n}" if n else "" for n in range(12)]})
    table = load(path)
    assert [words.thought for words in table.words[:3]] == [None, "so 1", "so 2"]


def test_a_thought_column_can_be_named(tmp_path) -> None:
    path = recorded.write(tmp_path, columns={"why": ["because"] * 12, "thought": ["no"] * 12})
    assert load(path, thought="why").words[0].thought == "because"


@pytest.mark.parametrize(
    ("key", "what"), [("hwy", "lacks the column hwy"), ("action", "stores float32, expected string")]
)
def test_a_thought_column_that_is_none_is_refused_with_the_columns_found(tmp_path, key, what) -> None:
    with pytest.raises(DataError, match=rf"{what}.*found observation\.images\.front"):
        load(recorded.write(tmp_path), thought=key)


def test_questions_of_a_frame_come_with_their_answers(tmp_path) -> None:
    asked = replace(said("vqa", "where is it", role="user"), camera="observation.images.front")
    answered = replace(said("vqa", "left"), camera="observation.images.front")
    events = ((asked, answered), *((),) * 5)
    table = load(recorded.write(tmp_path, [episode(0, language_events=events), episode(1)]))
    assert [words.questions for words in table.words[:2]] == [(("where is it", "left"),), ()]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rate_hz": 10.0}, "was recorded at 5 Hz, expected 10 Hz"),
        ({"robot": "panda"}, "is of the robot so101, expected panda"),
        ({"state_names": COMMANDED_STATE_NAMES}, "has the state tool_x_m, .* expected commanded_x_m, .* same --state"),
    ],
)
def test_data_of_another_robot_rate_or_state_is_refused_with_both_values(tmp_path, more, message) -> None:
    path = recorded.write(tmp_path, robot="so101", rate_hz=5.0)
    with pytest.raises(DataError, match=message):
        load(path, **more)


def test_data_of_another_action_space_is_refused_with_both_spaces(tmp_path) -> None:
    arm = episode(0, action_names=("j1", "j2"), actions=np.zeros((6, 2), np.float32))
    from roboalign.sdk.data import DatasetWriter

    with DatasetWriter(tmp_path / "d", image_size_px=16, num_joints=0, action_names=("j1", "j2")) as writer:
        writer.add(arm)
    with pytest.raises(DataError, match=r"action has shape \[2\] \(j1, j2\), expected \[5\] \(dx_m"):
        load(tmp_path / "d")


def test_taken_frames_keep_their_words(tmp_path) -> None:
    table = load(recorded.write(tmp_path)).take(np.array([7, 2]))
    assert [table.instruction(i) for i in range(2)] == ["do task 1", "do task 0"]


def corrected(folder):
    """Two episodes; a person acts in frames 2 and 3 of the first."""
    who = ((False, False, True, True, False, False), (False,) * 6)
    return recorded.write(folder, [replace(episode(k), interventions=said) for k, said in enumerate(who)])


def test_a_recording_with_corrections_is_learnt_whole_or_the_persons_frames_alone(tmp_path) -> None:
    path = corrected(tmp_path)
    whole, human = load(path), load(path, only_human=True)
    assert (len(whole), len(human)) == (12, 2)
    assert np.array_equal(human.states, whole.states[2:4])
    assert np.array_equal(human.chunks, whole.chunks[2:4])
    assert len(load(path, only_human=True, max_frames=1)) == 1


def test_a_recording_without_corrections_has_none_to_learn(tmp_path) -> None:
    with pytest.raises(DataError, match="lacks the column intervention"):
        load(recorded.write(tmp_path), only_human=True)
    nobody = [replace(episode(k), interventions=(False,) * 6) for k in range(2)]
    with pytest.raises(DataError, match="a person acted in none of its frames"):
        load(recorded.write(tmp_path / "more", nobody), only_human=True)


def test_an_episode_says_who_acted_as_its_dataset_does(tmp_path) -> None:
    with pytest.raises(DataError, match="episode 0 does not say in which frames a person acted"):
        recorded.write(tmp_path, [replace(episode(0), interventions=(True,) * 6), episode(1)])
