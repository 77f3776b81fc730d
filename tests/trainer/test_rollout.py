import numpy as np
import pytest
import tiny
import torch

from roboalign.sdk.reply import parse_reply_ids
from roboalign.trainer.probe import reply_mask, reply_tokens
from roboalign.trainer.rollout import pad_completions, sample_replies

TABLE = tiny.frames(8)
CODEC = tiny.codec_of(TABLE)
MAX_TOKENS = 30


@pytest.fixture(scope="module")
def member():
    """Half taught: it opens action spans and still makes mistakes in them."""
    member = tiny.backbone(CODEC)
    tiny.teach(member, TABLE, CODEC, steps=25)
    return member


@pytest.fixture(scope="module")
def prompts(member):
    texts = ["go to the bright corner", "go", "go to the corner"]
    return member.encode_prompts(texts, TABLE.states[:3], list(TABLE.images[:3]), pace="slow", task="act")


def sample(member, prompts, mask, **options):
    settings = {"num_samples": 4, "max_tokens": MAX_TOKENS, "eos_id": member.tokenizer.eos_token_id} | options
    return sample_replies(member, prompts, mask, **settings)


@pytest.mark.parametrize("is_constrained", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_training_sees_the_log_probabilities_that_sampling_used(member, prompts, is_constrained, temperature) -> None:
    mask = reply_mask(member, CODEC, constrained=is_constrained)
    generator = torch.Generator().manual_seed(1)
    replies = sample(member, prompts, mask, temperature=temperature, generator=generator)
    ids, is_reply = pad_completions(replies.token_ids, member.tokenizer.pad_token_id)
    index = torch.arange(3).repeat_interleave(4)
    with torch.no_grad():
        logits = member.reply_logits(prompts, index, ids, is_reply)
        again = mask.log_probs(logits, ids, temperature=temperature).gather(2, ids[:, :, None])[:, :, 0]
    for row, scores in enumerate(replies.log_probs):
        assert np.abs(again[row, : len(scores)].numpy() - np.asarray(scores)).max() < 1e-5


def test_the_whole_sequence_mask_is_the_step_mask(member, prompts) -> None:
    mask = reply_mask(member, CODEC, constrained=True)
    replies = sample(member, prompts, mask, num_samples=8, generator=torch.Generator().manual_seed(2))
    ids, _ = pad_completions(replies.token_ids, member.tokenizer.pad_token_id)
    rows = mask.forbidden_rows(ids)
    states = mask.start(len(ids), ids.device)
    inside = 0
    for place in range(ids.shape[1]):
        flat = torch.zeros(len(ids), rows.shape[2])
        step = mask.step_log_probs(flat, states, temperature=1.0) == -torch.inf
        real = torch.tensor([place < len(row) for row in replies.token_ids])
        assert torch.equal(rows[real, place], step[real])
        inside += int((states >= 0).sum())
        states = mask.advance(states, ids[:, place])
    assert inside > 20


def test_every_finished_span_decodes_under_the_constraint(member, prompts) -> None:
    mask = reply_mask(member, CODEC, constrained=True)
    tokens = reply_tokens(member, CODEC.vocab_size)
    replies = sample(member, prompts, mask, num_samples=40, generator=torch.Generator().manual_seed(3))
    spans = 0
    for row in replies.token_ids:
        while tokens.action_start in row:
            row = row[row.index(tokens.action_start) + 1 :]
            if tokens.action_end in row:
                span = row[: row.index(tokens.action_end)]
                if all(tokens.is_action(t) for t in span):
                    assert CODEC.decode([t - tokens.first_action for t in span]).status == "ok"
                    spans += 1
    assert spans > 10


def test_without_the_constraint_spans_of_any_length_appear(member, prompts) -> None:
    mask = reply_mask(member, CODEC, constrained=False)
    replies = sample(member, prompts, mask, num_samples=40, generator=torch.Generator().manual_seed(3))
    tokens = reply_tokens(member, CODEC.vocab_size)
    firsts = [r[r.index(tokens.action_start) + 1] for r in replies.token_ids if tokens.action_start in r[:-1]]
    assert any(not tokens.is_action(token) for token in firsts)


def test_padding_and_picture_tokens_are_never_sampled(member, prompts) -> None:
    mask = reply_mask(member, CODEC, constrained=False)
    replies = sample(member, prompts, mask, num_samples=20, temperature=5.0, generator=torch.Generator().manual_seed(4))
    assert not {token for row in replies.token_ids for token in row} & set(member.banned_ids)


def test_the_same_seed_gives_the_same_replies(member, prompts) -> None:
    mask = reply_mask(member, CODEC, constrained=True)
    first, second, other = (
        sample(member, prompts, mask, generator=torch.Generator().manual_seed(seed)).token_ids for seed in (5, 5, 6)
    )
    assert first == second
    assert first != other


def test_replies_end_at_the_end_token_or_at_the_limit(member, prompts) -> None:
    mask = reply_mask(member, CODEC, constrained=True)
    eos = member.tokenizer.eos_token_id
    for row in sample(member, prompts, mask, num_samples=30, generator=torch.Generator().manual_seed(7)).token_ids:
        assert eos not in row[:-1]
        assert row[-1] == eos or len(row) == MAX_TOKENS


def test_greedy_replies_of_a_taught_model_are_well_formed() -> None:
    member = tiny.backbone(CODEC)
    tiny.teach(member, TABLE, CODEC, steps=50)
    inputs = member.encode_prompts(
        ["go to the bright corner"] * 4, TABLE.states[:4], list(TABLE.images[:4]), pace="slow", task="act"
    )
    mask = reply_mask(member, CODEC, constrained=True)
    replies = sample(member, inputs, mask, num_samples=1, temperature=0.0)
    tokens = reply_tokens(member, CODEC.vocab_size)
    assert all(parse_reply_ids(row, tokens).is_well_formed for row in replies.token_ids)
