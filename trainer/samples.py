"""Frames to training samples, and samples to batches.

Kinds of sample (paper, section 3.1): `vqa` asks about the picture, `reason` asks what to do next and wants a thought
before the answer in words, `action` wants action tokens at once, `paired` wants a thought and then action tokens. In
the zero-shot pairing of the paper no `paired` sample exists: thinking before acting first appears in the alignment
stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from roboalign.sdk.data.language import QUESTION_KINDS, named_objects, next_words, question, thought
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.reply import write_reply
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.nano.processing import NanoProcessor

__all__ = ["ACTION_END", "ACTION_START", "SAMPLE_KINDS", "Batch", "Sample", "action_text", "collate", "make_sample"]

ACTION_START, ACTION_END = "<ACTION_START>", "<ACTION_END>"

SAMPLE_KINDS = ("vqa", "reason", "action", "paired")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One prompt with the reply to learn."""

    frame: int
    """Row in the frame table."""
    prompt: str
    """Prompt text with its markers."""
    reply: str
    """Reply text with its markers, without the end-of-sequence token."""
    objects: tuple[str, ...]
    """Objects that the prompt names, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Model inputs; prompts and replies are joined and padded on the right."""

    input_ids: torch.Tensor
    """int64[B, L]."""
    attention_mask: torch.Tensor
    """int64[B, L]."""
    labels: torch.Tensor
    """int64[B, L]: the reply's tokens, -100 elsewhere."""
    pixel_values: torch.Tensor
    """float32[B, 3, size, size]."""
    places: torch.Tensor
    """float32[B, 2, 2]: table positions (metres) of the named objects; NaN where there is none."""


def action_text(token_ids: tuple[int, ...]) -> str:
    """Returns the answer that holds the codec's token ids."""
    return ACTION_START + "".join(f"<ACTION_{i}>" for i in token_ids) + ACTION_END


def make_sample(
    table: FrameTable,
    frame: int,
    kind: str,
    fmt: PromptFormat,
    rng: np.random.Generator,
    codec: FastCodec | None = None,
) -> Sample:
    """Returns one sample of the given kind; `action` and `paired` need the codec."""
    truth, state = table.truths[frame], table.states[frame]
    if kind == "vqa":
        qa = question(truth, fmt, rng, QUESTION_KINDS[int(rng.integers(len(QUESTION_KINDS)))])
        prompt = fmt.prompt_text(qa.question, state, pace="quick", task="ask")
        return Sample(frame=frame, prompt=prompt, reply=write_reply(None, qa.answer), objects=qa.objects)
    objects = named_objects(truth)
    if kind == "reason":
        prompt = fmt.prompt_text(truth.instruction, state, pace="slow", task="ask")
        reply = write_reply(thought(truth, fmt, rng), next_words(truth))
        return Sample(frame=frame, prompt=prompt, reply=reply, objects=objects)
    if kind not in SAMPLE_KINDS or codec is None:
        raise ConfigError(f"sample kind {kind!r} needs an action codec and must be one of {', '.join(SAMPLE_KINDS)}")
    answer = action_text(codec.encode(table.chunks[frame]))
    text = thought(truth, fmt, rng) if kind == "paired" else None
    prompt = fmt.prompt_text(truth.instruction, state, pace="slow" if text else "quick", task="act")
    return Sample(frame=frame, prompt=prompt, reply=write_reply(text, answer), objects=objects)


def collate(samples: list[Sample], table: FrameTable, processor: NanoProcessor) -> Batch:
    """Returns the batch of `samples`."""
    fmt, tokenizer = processor.prompt_format, processor.tokenizer
    prompts = tokenizer([s.prompt for s in samples], add_special_tokens=False)["input_ids"]
    replies = tokenizer([s.reply + "<eos>" for s in samples], add_special_tokens=False)["input_ids"]
    length = max(len(p) + len(r) for p, r in zip(prompts, replies, strict=True))
    ids = np.full((len(samples), length), tokenizer.pad_token_id, np.int64)
    mask = np.zeros_like(ids)
    labels = np.full_like(ids, -100)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        end = len(prompt) + len(reply)
        ids[row, :end] = prompt + reply
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = reply
    places = np.full((len(samples), 2, 2), np.nan, np.float32)
    for row, sample in enumerate(samples):
        truth = table.truths[sample.frame]
        known = {item.name: item.position_m for item in truth.objects}
        known |= {item.name: item.position_m for item in truth.fixtures}
        for slot, name in enumerate(sample.objects[:2]):
            places[row, slot] = known[name][:2]
    pixels = np.stack([fmt.pixel_values(table.images[s.frame]) for s in samples])
    return Batch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        labels=torch.from_numpy(labels),
        pixel_values=torch.from_numpy(pixels),
        places=torch.from_numpy(places),
    )
