"""The fast decoder gives what the plain one gives: logits, greedy replies and draws."""

import pytest
import tiny
import torch
from torch import nn

from roboalign.trainer import rollout
from roboalign.trainer.decode import PlainDecoder, SharedPromptDecoder, make_decoder
from roboalign.trainer.lora import LoraSettings, add_lora
from roboalign.trainer.probe import reply_mask
from roboalign.trainer.rollout import sample_replies

TABLE = tiny.frames(8)
CODEC = tiny.codec_of(TABLE)


@pytest.fixture(scope="module")
def member():
    member = tiny.backbone(CODEC)
    tiny.teach(member, TABLE, CODEC, steps=25)
    return member


@pytest.fixture(scope="module")
def prompts(member):
    texts = ["go to the bright corner", "go", "go to the corner"]
    return member.encode_prompts(texts, TABLE.states[:3], list(TABLE.images[:3]), pace="slow", task="act")


@torch.no_grad()
def test_every_step_gives_the_logits_of_the_plain_decoder(member, prompts) -> None:
    """More steps than one block of memory, rows that end at different times, prompts of different lengths."""
    decoders = [kind(member, member.prefill(prompts)[1], 4) for kind in (PlainDecoder, SharedPromptDecoder)]
    draw = torch.Generator().manual_seed(0)
    rows = 12
    for place in range(40):
        if place in (5, 20, 36):
            kept = torch.arange(rows)[torch.rand(rows, generator=draw) < 0.8]
            rows = len(kept)
            for decoder in decoders:
                decoder.select(kept)
        tokens = torch.randint(10, 100, (rows,), generator=draw)
        plain, fast = (decoder.step(tokens) for decoder in decoders)
        torch.testing.assert_close(fast, plain, atol=2e-5, rtol=1e-4)
    assert 1 < rows < 12


@torch.no_grad()
def test_what_lora_adds_is_in_the_logits(prompts) -> None:
    member = tiny.backbone(CODEC)
    before, state = member.prefill(prompts)
    plain = PlainDecoder(member, state, 2).step(torch.full((6,), 20))
    add_lora(member, LoraSettings(rank=2))
    for name, parameter in member.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    logits, state = member.prefill(prompts)
    assert (logits - before).abs().max() > 0.1
    decoder = make_decoder(member, state, 2)
    assert type(decoder) is SharedPromptDecoder
    wanted = PlainDecoder(member, member.prefill(prompts)[1], 2)
    for token in (20, 30, 40):
        tokens = torch.full((6,), token)
        found, expected = decoder.step(tokens), wanted.step(tokens)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        assert token != 20 or (found - plain).abs().max() > 0.1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("is_constrained", [True, False])
def test_replies_are_those_of_the_plain_decoder(member, prompts, monkeypatch, temperature, is_constrained) -> None:
    mask = reply_mask(member, CODEC, constrained=is_constrained)
    found = []
    for kind in (PlainDecoder, SharedPromptDecoder):
        monkeypatch.setattr(rollout, "make_decoder", kind)
        found.append(
            sample_replies(
                member,
                prompts,
                mask,
                num_samples=6,
                max_tokens=30,
                eos_id=member.tokenizer.eos_token_id,
                temperature=temperature,
                generator=torch.Generator().manual_seed(3),
            )
        )
    assert found[0].token_ids == found[1].token_ids
    for plain, fast in zip(found[0].log_probs, found[1].log_probs, strict=True):
        assert fast == pytest.approx(plain, abs=1e-4)


def test_grouped_query_heads_share_their_keys(member) -> None:
    """SmolLM2 has three query heads for each key head."""
    grouped = tiny.backbone(CODEC, seed=1)
    config = grouped.model.model.language_model.config
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 8
    grouped.model.model.language_model = type(grouped.decoder)(config).eval()
    inputs = grouped.encode_prompts(["go"] * 2, TABLE.states[:2], list(TABLE.images[:2]), pace="slow", task="act")
    with torch.no_grad():
        plain, fast = (kind(grouped, grouped.prefill(inputs)[1], 3) for kind in (PlainDecoder, SharedPromptDecoder))
        for token in (20, 30, 40):
            tokens = torch.full((6,), token)
            torch.testing.assert_close(fast.step(tokens), plain.step(tokens), atol=2e-5, rtol=1e-4)


def test_a_model_with_other_layers_takes_the_plain_decoder(member, prompts, monkeypatch) -> None:
    class Adapted(nn.Linear):
        pass

    assert isinstance(make_decoder(member, member.prefill(prompts)[1], 2), SharedPromptDecoder)
    attention = member.decoder.layers[0].self_attn
    monkeypatch.setattr(attention, "q_proj", Adapted(attention.q_proj.in_features, attention.q_proj.out_features))
    assert isinstance(make_decoder(member, member.prefill(prompts)[1], 2), PlainDecoder)


def test_a_forbidden_token_is_never_drawn_and_the_shares_are_right() -> None:
    log_probs = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25, 0.0]).log().expand(200_000, -1)
    counts = rollout._draw(log_probs, torch.Generator().manual_seed(0)).bincount(minlength=6) / 200_000
    assert counts[[0, 2, 5]].sum() == 0
    torch.testing.assert_close(counts, log_probs[0].exp(), atol=5e-3, rtol=0.0)
