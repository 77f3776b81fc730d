"""A tiny world for the trainer's tests: pictures with one coloured corner, and actions that depend on the corner."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from roboalign.sdk.fast import FastCodec
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.reply import write_reply
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.nano import (
    NanoBackbone,
    NanoConfig,
    NanoForConditionalGeneration,
    NanoImageProcessor,
    NanoProcessor,
    train_tokenizer,
)
from roboalign.trainer.samples import action_text
from roboalign.trainer.smol import SmolBackbone, start_smol
from roboalign.trainer.vocabulary import add_action_tokens

CORNERS = ("north", "east", "south", "west")
FORMAT = PromptFormat(image_size_px=64)


def frames(count: int = 48, *, noise: float = 0.002, seed: int = 0) -> FrameTable:
    """Returns `count` frames, 4 to an episode; the demonstrated chunk moves to the bright corner, with some noise."""
    rng = np.random.default_rng(seed)
    corner = np.arange(count) % len(CORNERS)
    images = np.full((count, 64, 64, 3), 20, np.uint8)
    for image, place in zip(images, corner, strict=True):
        row, column = divmod(int(place), 2)
        image[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 230
    direction = np.asarray([[0, 1], [1, 0], [0, -1], [-1, 0]], np.float32)[corner]
    chunks = np.zeros((count, 4, 5), np.float32)
    chunks[:, :, :2] = 0.02 * direction[:, None] + noise * rng.standard_normal((count, 4, 2))
    chunks[:, :, 4] = 1.0
    truths: Any = tuple(SimpleNamespace(instruction="go to the bright corner") for _ in range(count))
    return FrameTable(
        images=images,
        states=np.zeros((count, 5), np.float32),
        chunks=chunks,
        truths=truths,
        episodes=np.arange(count) // 4,
        data_hash="tiny",
    )


def codec_of(table: FrameTable) -> FastCodec:
    """Returns a codec with a few dozen tokens."""
    return FastCodec.fit(table.chunks, rate_hz=10.0, vocab_size=64, scale=4.0)


def backbone(codec: FastCodec, *, seed: int = 0) -> NanoBackbone:
    """Returns a nano backbone of about 0.1 million parameters, untrained."""
    torch.manual_seed(seed)
    texts = ["go to the bright corner state", *(f"go {c}" for c in CORNERS)]
    tokenizer = train_tokenizer(texts, max_number=FORMAT.max_number, vocab_size=420)
    processor = NanoProcessor(NanoImageProcessor(FORMAT.to_json()), tokenizer)
    config = NanoConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        head_dim=16,
        image_size=64,
        vision_channels=[8, 8, 8],
        image_token_id=processor.image_token_id,
    )
    model = NanoForConditionalGeneration(config).eval()
    add_action_tokens(model, tokenizer, codec.vocab_size)
    first = tokenizer.convert_tokens_to_ids("<ACTION_0>")
    with torch.no_grad():
        rows = model.get_input_embeddings().weight[first:]
        rows += 0.05 * torch.randn_like(rows)
    return NanoBackbone(model, processor)


def smol_backbone(*, num_actions: int, seed: int = 0) -> SmolBackbone:
    """Returns a smol backbone with a random decoder that shares key heads, untrained."""
    texts = ["go to the bright corner state", *(f"go {c}" for c in CORNERS)]
    tokenizer = train_tokenizer(texts, max_number=FORMAT.max_number, vocab_size=420)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "head_dim": 8,
        "num_key_value_heads": 2,
        "vision_width": 16,
        "vision_channels": [8, 8, 8],
    }
    member = start_smol(sizes, FORMAT, tokenizer, seed=seed)
    add_action_tokens(member.model, tokenizer, num_actions)
    return member


def teach(member: NanoBackbone, table: FrameTable, codec: FastCodec, *, steps: int, rate: float = 5e-3) -> None:
    """Trains think-then-act replies with plain cross-entropy, all frames in every batch."""
    prompts = member.encode_prompts(
        [t.instruction for t in table.truths], table.states, list(table.images), pace="slow", task="act"
    )
    texts = [
        write_reply(f"go {CORNERS[i % 4]}", action_text(codec.encode(chunk))) + "<eos>"
        for i, chunk in enumerate(table.chunks)
    ]
    batch = member.tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    sequence = prompts.extend(ids, mask)
    model = member.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        logits = member.logits(sequence, keep=ids.shape[1] + 1)[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits[mask.bool()], ids[mask.bool()])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
