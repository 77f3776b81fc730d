"""The trainer's greedy thoughts, and that they are the ones the runtime writes."""

from functools import cache

import numpy as np
import pytest
import tiny
import torch

from roboalign.sdk.policy import Policy
from roboalign.sdk.types import Observation
from roboalign.trainer.backend import TorchBackend
from roboalign.trainer.checkpoint import CheckpointMeta, save_checkpoint
from roboalign.trainer.thinking import greedy_thoughts, thought_mask

TABLE = tiny.frames(8)
CODEC = tiny.codec_of(TABLE)
INSTRUCTIONS = ["go to the bright corner", "go", "go to the north corner", "bright"]


@cache
def _member(taught: int):
    """Untaught it never closes a thought by itself; taught it does so after a few words."""
    member = tiny.backbone(CODEC)
    tiny.teach(member, TABLE, CODEC, steps=taught)
    return member


@pytest.fixture(scope="module", params=[0, 30], ids=["untaught", "taught"])
def member(request):
    return _member(request.param)


def written(member, budget: int) -> list[list[int]]:
    """The thoughts about the first frames, without their padding."""
    inputs = member.encode_prompts(INSTRUCTIONS, TABLE.states[:4], list(TABLE.images[:4]), pace="slow", task="act")
    ids, mask = greedy_thoughts(member, inputs, budget=budget)
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def marker(member, name: str) -> int:
    return member.tokenizer.convert_tokens_to_ids(name)


@pytest.mark.parametrize("budget", [0, 1, 5, 24])
def test_a_thought_is_opened_closed_and_within_the_budget(member, budget) -> None:
    for row in written(member, budget):
        assert 2 <= len(row) <= budget + 2
        assert (row[0], row[-1]) == (marker(member, "<think>"), marker(member, "</think>"))


def test_only_words_stand_inside_a_thought(member) -> None:
    inside = {token for row in written(member, 24) for token in row[1:-1]}
    assert inside
    assert inside.isdisjoint(member.tokenizer.added_tokens_decoder)
    assert max(inside) < len(member.tokenizer)


def test_an_untaught_model_spends_its_budget_and_a_taught_one_does_not() -> None:
    """So the other tests see thoughts that the model closed and thoughts that were cut off."""
    assert {len(row) for row in written(_member(0), 24)} == {26}
    assert max(len(row) for row in written(_member(30), 24)) < 26


def test_padding_comes_only_after_the_end_of_a_thought(member) -> None:
    inputs = member.encode_prompts(INSTRUCTIONS, TABLE.states[:4], list(TABLE.images[:4]), pace="slow", task="act")
    ids, mask = greedy_thoughts(member, inputs, budget=9)
    assert ids.shape == mask.shape
    assert (mask.diff(dim=1) <= 0).all()
    assert (ids[mask == 0] == marker(member, "</think>")).all()


def test_the_mask_allows_words_and_the_end_of_the_thought_only(member) -> None:
    size = member.model.get_input_embeddings().weight.shape[0]
    allowed = set(torch.nonzero(thought_mask(member, size + 3))[:, 0].tolist())
    words = set(range(len(member.tokenizer))) - set(member.tokenizer.added_tokens_decoder)
    assert allowed == words | {marker(member, "</think>")}


def runtime_thoughts(folder) -> list[list[int]]:
    """What `sdk.Policy` writes for the same observations, up to the end of the thought."""
    with Policy(TorchBackend.open(folder), actions="fast") as policy:
        chunks = [policy.act(observation(i)) for i in range(len(INSTRUCTIONS))]
        close = policy._vocabulary.think_close
    return [list(chunk.tokens[: chunk.tokens.index(close) + 1]) for chunk in chunks]


def observation(index: int) -> Observation:
    return Observation(
        images={"front": TABLE.images[index]},
        state=TABLE.states[index],
        joint_pos_rad=np.zeros(7, np.float32),
        instruction=INSTRUCTIONS[index],
        time_s=0.0,
    )


@pytest.mark.parametrize("budget", [1, 6, 24])
def test_the_runtime_writes_the_same_thoughts(member, tmp_path, budget) -> None:
    """A batch with padded prompts here, one prompt at a time there: two implementations of one rule."""
    meta = CheckpointMeta(stage="sft", recipe="tiny", notes={"thought_budget": budget})
    save_checkpoint(tmp_path / "sft", model=member.model, processor=member.processor, meta=meta, codec=CODEC)
    assert runtime_thoughts(tmp_path / "sft") == written(member, budget)
