"""A few replies of a model for people to read: the picture, the thought, and how far the action is off."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import numpy as np

from roboalign.sdk.data.arrow import encode_png
from roboalign.sdk.fast import FastCodec
from roboalign.trainer.backbone import HuggingFaceBackbone
from roboalign.trainer.folders import is_main_process
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.probe import reply_tokens
from roboalign.trainer.rewards import score_reply
from roboalign.trainer.rollout import TokenMask, sample_replies

__all__ = ["REPLIES_FILE", "keep_replies"]

REPLIES_FILE = "replies.json"


def keep_replies(
    folder: Path,
    backbone: HuggingFaceBackbone,
    codec: FastCodec,
    held: FrameTable,
    *,
    seed: int,
    count: int = 6,
    max_tokens: int = 96,
) -> None:
    """Writes greedy think-then-act replies to `count` held-out frames to `folder/replies.json`, for the report."""
    rows = np.random.default_rng((seed, 23)).permutation(len(held))[:count]
    tokens = reply_tokens(backbone, codec.vocab_size)
    instructions = [held.instruction(int(row)) for row in rows]
    images = [held.images[int(row)] for row in rows]
    inputs = backbone.encode_prompts(instructions, held.states[rows], images, pace="slow", task="act")
    mask = TokenMask(vocab_size=backbone.embedding_rows, banned_ids=backbone.banned_ids)
    found = sample_replies(
        backbone, inputs, mask, num_samples=1, max_tokens=max_tokens, eos_id=tokens.eos, temperature=0.0
    )
    replies = []
    for row, instruction, ids in zip(rows, instructions, found.token_ids, strict=True):
        chunk = held.chunks[int(row)]
        score = score_reply(ids, codec.encode(chunk), chunk, codec=codec, tokens=tokens)
        words = backbone.tokenizer.decode(ids)
        thought = words.split("<think>")[-1].split("</think>")[0].strip() if "<think>" in words else ""
        png = base64.b64encode(encode_png(held.images[int(row)])).decode("ascii")
        error = score.error if math.isfinite(score.error) else None
        replies.append({"instruction": instruction, "thought": thought, "error": error, "png": png})
    if is_main_process():
        (folder / REPLIES_FILE).write_text(json.dumps({"replies": replies}), encoding="utf-8")
