"""Thoughts that a trained model wrote itself, kept where they led to something right, as rows of an image-chat file.

The paper's reasoning data holds a set that was distilled from a model trained by GRPO; how its answers were checked is
not said. Here the model is asked about frames of a dataset, several times each, and one reply a frame is kept:

    action  think, then act; the reply whose decoded action is nearest to the demonstrated one, if it is near enough
    words   think, then say the next step; a reply whose answer is the true step, or the recorded one, and whose thought
            does not settle on another step

A row of `action` keeps the demonstrated chunk beside the thought, as numbers: tokens belong to one codec.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roboalign.sdk.data.arrow import encode_png, import_pyarrow
from roboalign.sdk.data.language import next_words, step_words
from roboalign.sdk.data.reasoning import steps_of
from roboalign.sdk.errors import CheckFailed, ConfigError, DataError, unknown_name
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.reply import parse_reply, write_reply
from roboalign.trainer.backbone import HuggingFaceBackbone, load_backbone
from roboalign.trainer.checkpoint import load_checkpoint
from roboalign.trainer.frames import FrameTable, load_frames
from roboalign.trainer.probe import reply_mask, reply_tokens
from roboalign.trainer.progress import progress_bar
from roboalign.trainer.rewards import score_reply
from roboalign.trainer.rollout import sample_replies
from roboalign.trainer.vocabulary import require_action_tokens

__all__ = ["ACCEPT", "DistillConfig", "DistillReport", "distill"]

ACCEPT = ("action", "words")
_BATCH = 16
"""Frames that are asked about at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """What is asked, and what is kept."""

    checkpoint: Path
    """Checkpoint of stage sft or align."""
    data: Path
    """Dataset whose frames are asked about."""
    out: Path
    """Chat file to write, `.jsonl` or `.parquet`."""
    accept: str = "action"
    """One of `ACCEPT`."""
    samples: int = 4
    """Replies to each frame."""
    max_error: float = 0.1
    """action: largest mean error of a chunk, in half ranges of the codec."""
    frames: int | None = None
    """Frames to ask about, drawn at random; None asks about all."""
    temperature: float = 1.0
    """Of sampling."""
    max_tokens: int = 96
    """Longest reply."""
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    """Seed of frames and sampling."""

    def __post_init__(self) -> None:
        if self.accept not in ACCEPT:
            raise ConfigError(unknown_name("way to accept", self.accept, ACCEPT))
        if self.out.suffix not in (".jsonl", ".parquet"):
            raise ConfigError(f"{self.out} ends in {self.out.suffix!r}, expected .jsonl or .parquet")
        for name in ("samples", "max_tokens", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"DistillConfig.{name} is {getattr(self, name)}, expected at least 1")
        if self.frames is not None and self.frames < 1:
            raise ConfigError(f"DistillConfig.frames is {self.frames}, expected at least 1")
        for name in ("max_error", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"DistillConfig.{name} is {getattr(self, name)}, expected a positive number")


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillReport:
    """What came of it."""

    path: Path
    """The file."""
    asked: int
    """Frames that were asked about."""
    kept: int
    """Rows that were written."""
    rejected: Mapping[str, int]
    """Replies that were not good enough, by reason: `form`, `action` (far), `answer` (wrong), `thought`
    (names another step)."""


def distill(config: DistillConfig) -> DistillReport:
    """Writes the file and returns what came of it.

    Raises:
        BundleError: the checkpoint has no codec, or a tokenizer without its tokens.
        DataError: the dataset is of another robot, rate or action space, or has no steps to compare words with.
        CheckFailed: no reply was good enough; nothing is written.
    """
    torch.set_num_threads(config.threads)
    checkpoint = load_checkpoint(config.checkpoint, expect_stage=("sft", "align", "head"))
    codec, backbone = checkpoint.load_codec(), load_backbone(config.checkpoint)
    require_action_tokens(backbone.tokenizer, codec.vocab_size, config.checkpoint)
    robot = checkpoint.meta.notes.get("robot")
    table = load_frames(
        config.data,
        horizon=codec.config.horizon,
        image_size_px=backbone.prompt_format.image_size_px,
        rate_hz=codec.config.rate_hz,
        robot=None if robot is None else str(robot),
        state_names=checkpoint.meta.states,
    )
    wanted = _steps(table) if config.accept == "words" else ()
    order = np.random.default_rng((config.seed, 17)).permutation(len(table))[: config.frames]
    generator = torch.Generator().manual_seed(config.seed)
    rejected: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    with progress_bar(f"distill {config.accept}", len(order)) as update:
        for start in range(0, len(order), _BATCH):
            index = [int(i) for i in order[start : start + _BATCH]]
            for frame, replies in zip(index, _ask(backbone, codec, table, index, config, generator), strict=True):
                if config.accept == "action":
                    row = _best_action(backbone, codec, table, frame, replies, config.max_error, rejected)
                else:
                    row = _right_words(backbone, table, frame, replies, wanted[frame], rejected)
                rows += [] if row is None else [row]
            update(len(index), f"kept {len(rows)}")
    if not rows:
        counts = ", ".join(f"{name} {count}" for name, count in rejected.items())
        raise CheckFailed(
            f"none of {len(order) * config.samples} replies was good enough ({counts}); train the model further, or "
            "accept larger errors"
        )
    _write(config.out, rows)
    return DistillReport(path=config.out, asked=len(order), kept=len(rows), rejected=dict(rejected))


def _steps(table: FrameTable) -> list[str | None]:
    """The step that an answer in words has to name, frame by frame."""
    if table.truths is not None:
        return [next_words(truth) for truth in table.truths]
    steps = [words.step for words in table.words]
    if not any(steps):
        raise DataError(
            f"{table.name} has neither simulator truth nor recorded steps to compare words with; found the columns "
            f"{', '.join(table.columns)}; accept by action"
        )
    return steps


def _ask(
    backbone: HuggingFaceBackbone,
    codec: FastCodec,
    table: FrameTable,
    index: Sequence[int],
    config: DistillConfig,
    generator: torch.Generator,
) -> Iterator[list[list[int]]]:
    """Yields the token ids of the replies to each frame."""
    task = "act" if config.accept == "action" else "ask"
    inputs = backbone.encode_prompts(
        [table.instruction(i) for i in index],
        table.states[index],
        [table.images[i] for i in index],
        pace="slow",
        task=task,
    )
    replies = sample_replies(
        backbone,
        inputs,
        reply_mask(backbone, codec, constrained=True),
        num_samples=config.samples,
        max_tokens=config.max_tokens,
        eos_id=backbone.tokenizer.eos_token_id,
        temperature=config.temperature,
        generator=generator,
    )
    for place in range(len(index)):
        yield replies.token_ids[place * config.samples : (place + 1) * config.samples]


def _best_action(
    backbone: HuggingFaceBackbone,
    codec: FastCodec,
    table: FrameTable,
    frame: int,
    replies: Sequence[Sequence[int]],
    max_error: float,
    rejected: Counter[str],
) -> dict[str, Any] | None:
    chunk, tokens = table.chunks[frame], reply_tokens(backbone, codec.vocab_size)
    target = codec.encode(chunk)
    good: list[tuple[float, str]] = []
    for ids in replies:
        score = score_reply(ids, target, chunk, codec=codec, tokens=tokens)
        thought = parse_reply(_text(backbone, ids)).thought
        if not score.is_well_formed or thought is None:
            rejected["form"] += 1
        elif score.error > max_error:
            rejected["action"] += 1
        else:
            good.append((score.error, thought.strip()))
    if not good:
        return None
    error, thought = min(good)
    return {
        **_row(table, frame, f"<think>{thought}</think>"),
        "action": chunk.tolist(),
        "error": round(error, 6),
    }


def _right_words(
    backbone: HuggingFaceBackbone,
    table: FrameTable,
    frame: int,
    replies: Sequence[Sequence[int]],
    wanted: str | None,
    rejected: Counter[str],
) -> dict[str, Any] | None:
    """The first reply that names the step; the others are still counted."""
    kept: dict[str, Any] | None = None
    others: tuple[str, ...] = ()
    if table.truths is not None:
        truth = table.truths[frame]
        others = tuple(step_words(truth, stage) for stage in steps_of(truth) if stage != truth.stage)
    for ids in replies:
        reply = parse_reply(_text(backbone, ids))
        if not reply.is_well_formed or reply.thought is None or reply.answer is None:
            rejected["form"] += 1
        elif wanted is None or reply.answer.split() != wanted.split():
            rejected["answer"] += 1
        elif wanted not in reply.thought and any(step in reply.thought for step in others):
            rejected["thought"] += 1
        elif kept is None:
            kept = _row(table, frame, write_reply(reply.thought.strip(), reply.answer.strip()))
    return kept


def _text(backbone: HuggingFaceBackbone, ids: Sequence[int]) -> str:
    """The reply as text without its end; one that was cut has none, and is not well-formed."""
    eos = backbone.tokenizer.eos_token_id
    return str(backbone.tokenizer.decode(list(ids[:-1]))) if ids and ids[-1] == eos else ""


def _row(table: FrameTable, frame: int, reply: str) -> dict[str, Any]:
    return {
        "image": encode_png(table.images[frame]),
        "state": table.states[frame].tolist(),
        "conversations": [
            {"from": "human", "value": table.instruction(frame)},
            {"from": "gpt", "value": reply},
        ],
    }


def _write(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the rows under another name first, so that a file is complete or not there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    if out.suffix == ".parquet":
        pa, parquet = import_pyarrow()
        parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows]), temporary, row_group_size=256)
    else:
        with temporary.open("w", encoding="utf-8") as stream:
            for row in rows:
                address = "data:image/png;base64," + base64.b64encode(row["image"]).decode("ascii")
                stream.write(json.dumps({**row, "image": address}) + "\n")
    temporary.replace(out)
