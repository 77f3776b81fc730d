import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.prompt import FORMS, PACES, TASKS, PromptFormat
from roboalign.sdk.sim.language import SENTENCES, instruction_for

FMT = PromptFormat()
HOME = np.array([0.45, 0.0, 0.2, 0.0, 0.08], np.float32)
MARKERS = ["<bos>", *["<image>"] * FMT.num_image_tokens, "<slow>", "<act>"]
UNITS = np.array([0.005, 0.005, 0.005, 0.02, 0.001])
ORIGIN = np.array([0.30, -0.26, 0.0, -1.0, 0.0])


def prompt(instruction: str = "go", state: np.ndarray = HOME, *, pace: str = "slow", task: str = "act") -> str:
    return FMT.prompt_text(instruction, state, pace=pace, task=task)


def test_a_prompt_reads_as_documented() -> None:
    expected = f"<bos>push the red block left state 30 52 40 50 80{'<image>' * 24}<quick><ask>"
    assert prompt("Push the red block left.", pace="quick", task="ask") == expected


@pytest.mark.parametrize(
    ("state", "numbers"),
    [
        (ORIGIN, [0, 0, 0, 0, 0]),
        (ORIGIN + 127 * UNITS, [127] * 5),
        (ORIGIN - UNITS, [0] * 5),
        (ORIGIN + 128 * UNITS, [127] * 5),
        (ORIGIN + 50.0, [127] * 5),
        (ORIGIN + 0.4 * UNITS, [0] * 5),
        (ORIGIN + 0.6 * UNITS, [1] * 5),
        (ORIGIN + 126.6 * UNITS, [127] * 5),
    ],
)
def test_state_numbers_at_their_limits(state, numbers) -> None:
    assert FMT.state_numbers(state.astype(np.float32)) == numbers


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.0, 127.0), min_size=5, max_size=5))
def test_a_state_can_be_read_back_to_half_a_unit(numbers) -> None:
    state = ORIGIN + np.asarray(numbers) * UNITS
    found = np.asarray(FMT.state_numbers(state.astype(np.float32)))
    assert np.abs(found - numbers).max() <= 0.5 + 1e-3


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=5))
def test_state_numbers_always_have_a_word(values) -> None:
    assert set(FMT.state_numbers(np.asarray(values, np.float32))) <= set(range(FMT.max_number + 1))


def test_an_object_and_the_tool_at_one_place_have_the_same_numbers() -> None:
    assert FMT.position_numbers(HOME[:2]) == FMT.state_numbers(HOME)[:2]


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_refused(index, value) -> None:
    state = HOME.copy()
    state[index] = value
    with pytest.raises(DataError, match="state must be 5 finite numbers"):
        prompt(state=state)


@pytest.mark.parametrize("shape", [(4,), (6,), (1, 5)])
def test_a_state_of_another_shape_is_refused(shape) -> None:
    with pytest.raises(DataError, match="state must be 5 finite numbers"):
        prompt(state=np.zeros(shape, np.float32))


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("task", TASKS)
def test_the_two_flags_close_the_prompt(pace, task) -> None:
    assert prompt(pace=pace, task=task).endswith(f"<image><{pace}><{task}>")


@pytest.mark.parametrize(
    "flags", [{"pace": "fast"}, {"task": "move"}, {"pace": "<act>"}, {"pace": "act", "task": "slow"}]
)
def test_unknown_flags_are_refused_with_the_known_ones(flags) -> None:
    with pytest.raises(ConfigError, match=r"\('quick', 'slow'\) and one of \('ask', 'act'\)"):
        prompt(**flags)


@pytest.mark.parametrize("instruction", ["", "  \n", "...", "<>", "!?"])
def test_an_instruction_without_a_word_is_refused(instruction) -> None:
    with pytest.raises(DataError, match="the instruction is empty"):
        prompt(instruction)


@pytest.mark.parametrize("marker", ["<image>", "<IMAGE>", "</think>", "<act>", "<ACTION_3>", "<bos>", "< image >"])
def test_a_marker_in_an_instruction_becomes_a_word(marker) -> None:
    assert re.findall(r"<[^>]*>", prompt(f"go {marker} there")) == MARKERS


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("<>/_image")), max_size=40))
def test_no_instruction_can_write_a_marker(instruction) -> None:
    text = prompt(f"go {instruction}")
    assert re.findall(r"<[^>]*>", text) == MARKERS
    assert text.count("<") == text.count(">") == len(MARKERS)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=40))
def test_cleaning_twice_is_cleaning_once(text) -> None:
    assert FMT.clean_text(FMT.clean_text(text)) == FMT.clean_text(text)


def test_an_instruction_that_was_spoken_is_the_one_that_was_trained() -> None:
    assert FMT.clean_text("  Put the RED block,\n in the blue bowl! ") == "put the red block in the blue bowl"


@pytest.mark.parametrize("split", SENTENCES)
@pytest.mark.parametrize(("family", "goal"), [("place", "blue bowl"), ("push", "left"), ("stack", "green block")])
def test_the_simulators_sentences_are_clean(split, family, goal) -> None:
    sentences = {instruction_for(family, "red block", goal, index=i, split=split) for i in range(100)}
    assert sentences == {FMT.clean_text(sentence) for sentence in sentences}


def test_a_format_survives_json() -> None:
    fmt = PromptFormat(image_size_px=64, origin_m=(0.1, 0.2, 0.3), yaw_origin_rad=0.5, max_number=99)
    assert PromptFormat.from_json(json.loads(json.dumps(fmt.to_json()))) == fmt


@pytest.mark.parametrize("change", [{"colour": 1}, {"max_number": None}])
def test_a_format_of_another_version_is_refused_by_field(change) -> None:
    data = {key: value for key, value in (FMT.to_json() | change).items() if value is not None}
    with pytest.raises(ConfigError, match=f"unknown fields {re.escape(str(sorted(change)))}"):
        PromptFormat.from_json(data)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((96, 64, 3), np.uint8),
        np.zeros((96, 96, 4), np.uint8),
        np.zeros((96, 96), np.uint8),
        np.zeros((96, 96, 3), np.float32),
    ],
)
def test_a_picture_of_another_size_or_type_is_refused_by_name(image) -> None:
    with pytest.raises(DataError, match=r"image 'wrist' is .*, expected uint8\[96, 96, 3\]; resize"):
        FMT.check_image(image, "wrist")
    with pytest.raises(DataError, match="expected uint8"):
        FMT.pixel_values(image)


def test_pixels_are_scaled_and_colours_come_first() -> None:
    image = np.zeros((96, 96, 3), np.uint8)
    image[5, 7] = (255, 0, 51)
    pixels = FMT.pixel_values(image)
    assert (pixels.shape, pixels.dtype, pixels.flags.c_contiguous) == ((3, 96, 96), np.float32, True)
    np.testing.assert_allclose(pixels[:, 5, 7], [2.0, -2.0, -1.2], atol=1e-6)
    np.testing.assert_allclose(pixels[:, 7, 5], [-2.0, -2.0, -2.0], atol=1e-6)


def test_a_chat_says_the_flags_and_keeps_what_a_pretrained_model_can_read() -> None:
    fmt = PromptFormat(form="chat", num_image_tokens=2)
    text = fmt.prompt_text("Push the <act> block, left!", HOME, pace="quick", task="act")
    turn = "Push the act block, left! state 30 52 40 50 80<image><image>\nAnswer at once. Answer with an action."
    assert text == f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n"


def test_qwen_sees_the_picture_first_between_its_own_markers() -> None:
    fmt = PromptFormat(form="qwen", num_image_tokens=1)
    text = fmt.prompt_text("go", None, pace="slow", task="ask")
    turn = "<|vision_start|><|image_pad|><|vision_end|>go\nThink first. Answer in words."
    assert text == f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("form", FORMS)
def test_without_a_state_nothing_is_said_about_one(form) -> None:
    assert "state" not in PromptFormat(form=form).prompt_text("go", None, pace="slow", task="act")


def test_the_first_form_is_written_as_before_there_were_others() -> None:
    """Bundles of older versions have no such field, and must stay readable both ways."""
    assert "form" not in FMT.to_json()
    chat = PromptFormat(form="chat")
    assert PromptFormat.from_json(json.loads(json.dumps(chat.to_json()))) == chat


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"PromptFormat\.form is 'poem', expected one of nano, chat, qwen"):
        PromptFormat(form="poem")
