"""The nano model: what it sees, what it keeps, and its processor."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from roboalign.sdk.errors import BundleError
from roboalign.trainer.backbone import load_backbone, load_processor
from roboalign.trainer.base import order_number_rows
from roboalign.trainer.nano import NanoProcessor


@pytest.fixture(scope="module")
def table() -> object:
    return tiny.frames(8)


@pytest.fixture
def backbone(table: object) -> object:
    return tiny.backbone(tiny.codec_of(table))


def prompts(backbone, table, instruction: str = "go to the bright corner"):
    return backbone.encode_prompts([instruction] * 4, table.states[:4], list(table.images[:4]), pace="slow", task="act")


def test_every_number_is_one_token(backbone) -> None:
    lengths = {len(backbone.tokenizer.encode(f" {n}", add_special_tokens=False)) for n in range(128)}
    assert lengths == {1}


def test_the_picture_changes_what_the_model_says(backbone, table) -> None:
    inputs = prompts(backbone, table)
    logits = backbone.logits(inputs, keep=1)[:, 0]
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    blank = inputs.extra["pixel_values"][:1].expand(4, -1, -1, -1).contiguous()
    same = backbone.logits(
        type(inputs)(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, extra={"pixel_values": blank}),
        keep=1,
    )[:, 0]
    assert torch.allclose(same[0], same[1], atol=1e-5)


def test_the_instruction_changes_what_the_image_tokens_are(backbone, table) -> None:
    one = backbone.encode_images(prompts(backbone, table))
    other = backbone.encode_images(prompts(backbone, table, "go north to the corner"))
    assert (one - other).abs().max() > 1e-4


def test_word_order_changes_what_the_image_tokens_are(backbone, table) -> None:
    one = backbone.encode_images(prompts(backbone, table, "go north to the east"))
    other = backbone.encode_images(prompts(backbone, table, "go east to the north"))
    assert (one - other).abs().max() > 1e-4


def test_what_follows_the_picture_does_not_change_the_image_tokens(backbone, table) -> None:
    inputs = prompts(backbone, table)
    longer = inputs.extend(torch.full((4, 5), 20), torch.ones((4, 5), dtype=torch.long))
    assert torch.allclose(backbone.encode_images(inputs), backbone.encode_images(longer), atol=1e-6)


def test_keypoints_of_a_bright_corner_can_be_told_apart(backbone, table) -> None:
    out = backbone.model(**backbone._arguments(prompts(backbone, table)))
    assert out.keypoints.shape == (4, 8, 2)
    assert out.keypoints.abs().max() <= 1.0
    assert (out.keypoints[0] - out.keypoints[1]).abs().max() > 1e-4


def test_incremental_decoding_gives_the_logits_of_one_pass(backbone, table) -> None:
    inputs = prompts(backbone, table)
    ids = torch.arange(30, 36).repeat(4, 1)
    whole = backbone.logits(inputs.extend(ids, torch.ones_like(ids)), keep=1)[:, 0]
    _, state = backbone.prefill(inputs)
    for column in ids.T:
        logits, state = backbone.step(column, state)
    assert torch.allclose(logits, whole, atol=1e-4)


def test_a_saved_model_and_processor_say_the_same(backbone, table, tmp_path: Path) -> None:
    backbone.model.save_pretrained(tmp_path)
    backbone.processor.save_pretrained(tmp_path)
    again = load_backbone(tmp_path)
    assert torch.equal(again.logits(prompts(again, table), keep=1), backbone.logits(prompts(backbone, table), keep=1))


def test_a_folder_without_a_processor_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"preprocessor_config\.json"):
        NanoProcessor.from_pretrained(tmp_path)
    with pytest.raises(BundleError, match=r"config\.json"):
        load_processor(tmp_path)


def test_ordered_number_rows_are_nearer_for_nearer_numbers(backbone) -> None:
    order_number_rows(backbone.model, backbone.processor)
    weight = backbone.model.get_input_embeddings().weight.detach().numpy()
    rows = weight[[backbone.tokenizer.encode(f" {n}", add_special_tokens=False)[0] for n in range(128)]]
    gaps = [np.linalg.norm(rows[gap:] - rows[:-gap], axis=1).mean() for gap in (1, 2, 4)]
    assert gaps[0] < gaps[1] < gaps[2]
