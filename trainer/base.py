"""Stage `base`: the grounded vision-language model that the other stages start from.

The paper starts from a pretrained Qwen2.5-VL; `nano` has no such past, so this stage gives it one: questions about
rendered scenes (where, how far, what colour, which is left of, is it held, what is on the table, what next),
answered in words. It never sees an action token. An auxiliary loss reads the places of the named objects from the
image tokens
(see `supervised.PlaceReadout`); it has no part in the checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch

from roboalign.sdk.data.language import QUESTION_KINDS, next_words, question
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.reply import parse_reply
from roboalign.sdk.sim.language import instruction_for
from roboalign.trainer.checkpoint import CheckpointMeta, partial_dir, save_checkpoint
from roboalign.trainer.frames import FrameTable, load_frames
from roboalign.trainer.nano import (
    NanoConfig,
    NanoForConditionalGeneration,
    NanoImageProcessor,
    NanoProcessor,
    train_tokenizer,
)
from roboalign.trainer.run import stage_run
from roboalign.trainer.samples import Sample, make_sample
from roboalign.trainer.supervised import FitConfig, fit

__all__ = ["BaseConfig", "answer_accuracy", "build_processor", "order_number_rows", "train_base"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseConfig:
    """Settings of the `base` stage."""

    data: Path
    """Dataset folder (`roboalign collect`)."""
    out: Path
    """Checkpoint folder to write."""
    recipe: str
    """Name of the recipe that made this configuration."""
    fit: FitConfig
    """Settings of the supervised loop."""
    model: dict[str, object] = field(default_factory=dict)
    """Overrides of `NanoConfig`."""
    prompt: PromptFormat = field(default_factory=PromptFormat)
    """Prompt format; its image size must be the dataset's."""
    held_share: float = 0.02
    """Share of the episodes that is held out."""
    max_frames: int | None = None
    """Frames to read at most; None reads all."""
    dtype: str = "fp16"
    """Type of the saved weights."""


def build_processor(table: FrameTable, fmt: PromptFormat, *, seed: int, vocab_size: int) -> NanoProcessor:
    """Trains the tokenizer on sentences about the table's scenes and returns the processor."""
    rng = np.random.default_rng((seed, 7))
    texts = []
    for _ in range(min(4000, 4 * len(table))):
        truth = table.truths[int(rng.integers(len(table)))]
        qa = question(truth, fmt, rng, QUESTION_KINDS[int(rng.integers(len(QUESTION_KINDS)))])
        texts += [f"{qa.question} state", qa.answer, next_words(truth)]
        sample = make_sample(table, int(rng.integers(len(table))), "reason", fmt, rng)
        texts.append(parse_reply(sample.reply).thought or "")
        texts.append(instruction_for(truth.family, truth.target, truth.goal, index=int(rng.integers(100))))
    tokenizer = train_tokenizer(texts, max_number=fmt.max_number, vocab_size=vocab_size)
    return NanoProcessor(NanoImageProcessor(fmt.to_json()), tokenizer)


@stage_run("base")
def train_base(config: BaseConfig) -> Path:
    """Runs the stage and returns the checkpoint folder; resumes when it was interrupted."""
    fmt = config.prompt
    table = load_frames(config.data, horizon=1, image_size_px=fmt.image_size_px, max_frames=config.max_frames)
    train, held = table.split(config.held_share)
    work = partial_dir(config.out)
    work.mkdir(parents=True, exist_ok=True)
    vocab_size = config.model.get("vocab_size", 1024)
    processor = build_processor(train, fmt, seed=config.fit.seed, vocab_size=int(str(vocab_size)))
    torch.manual_seed(config.fit.seed)
    model = NanoForConditionalGeneration(_model_config(config, processor))
    order_number_rows(model, processor)

    def draw(frames: FrameTable, count: int, rng: np.random.Generator) -> list[Sample]:
        rows = rng.integers(len(frames), size=count)
        return [make_sample(frames, int(row), "vqa", fmt, rng) for row in rows]

    timer = fit(model, processor, train, held, draw, config.fit, folder=work, label="base")
    accuracy = answer_accuracy(model, processor, held, seed=config.fit.seed)
    meta = CheckpointMeta(
        stage="base",
        recipe=config.recipe,
        seeds={"fit": config.fit.seed},
        metrics={"answer_accuracy": accuracy},
        data_hash=table.data_hash,
        wall_s=timer.wall_s,
        cpu_s=timer.cpu_s,
        notes={"frames": len(train), "fit": asdict(config.fit)},
    )
    files = {"metrics.jsonl": work / "metrics.jsonl"}
    save_checkpoint(config.out, model=model, processor=processor, meta=meta, dtype=config.dtype, extra_files=files)
    return config.out


def order_number_rows(model: NanoForConditionalGeneration, processor: NanoProcessor) -> None:
    """Starts the embeddings of the numbers as waves of their value, so that near numbers are near from the first step.

    The rows keep the norm of the others. With tied output rows this also makes the first guesses of a number smooth.
    """
    fmt, tokenizer = processor.prompt_format, processor.tokenizer
    ids = [tokenizer.encode(f" {n}", add_special_tokens=False)[0] for n in range(fmt.max_number + 1)]
    weight = cast(torch.nn.Embedding, model.get_input_embeddings()).weight
    half = weight.shape[1] // 2
    freq = torch.logspace(math.log10(2 * math.pi / 256), math.log10(2 * math.pi / 8), int(half))
    angles = torch.arange(fmt.max_number + 1)[:, None] * freq
    waves = torch.cat((angles.sin(), angles.cos()), dim=1) * 2**0.5
    with torch.no_grad():
        weight[ids] = waves * weight.std()


def _model_config(config: BaseConfig, processor: NanoProcessor) -> NanoConfig:
    sizes = dict(config.model)
    sizes["vocab_size"] = len(processor.tokenizer)
    sizes.setdefault("image_size", config.prompt.image_size_px)
    sizes["image_token_id"] = processor.image_token_id
    built = NanoConfig(**sizes)  # type: ignore[arg-type]  # the keys are NanoConfig's, checked there
    if built.num_image_tokens != config.prompt.num_image_tokens:
        raise ConfigError(
            f"the model makes {built.num_image_tokens} image tokens but the prompt has room for "
            f"{config.prompt.num_image_tokens}; change num_keypoints, grid_size or num_image_tokens"
        )
    return built


@torch.no_grad()
def answer_accuracy(
    model: NanoForConditionalGeneration, processor: NanoProcessor, held: FrameTable, *, seed: int, count: int = 64
) -> dict[str, float]:
    """Returns, for every kind of question, the share of `count` held-out questions answered word for word.

    For `where` and `offset` also the share within two units (10 mm) and the mean error in millimetres.
    """
    fmt, result = processor.prompt_format, {}
    for kind in QUESTION_KINDS:
        rng = np.random.default_rng((seed, 11))
        rows = rng.integers(len(held), size=count)
        pairs = [question(held.truths[int(r)], fmt, rng, kind) for r in rows]
        prompts = [
            fmt.prompt_text(qa.question, held.states[int(r)], pace="quick", task="ask")
            for qa, r in zip(pairs, rows, strict=True)
        ]
        replies = _generate(model, processor, prompts, held.images[rows])
        result[kind] = float(
            np.mean([(parse_reply(r).answer or "").strip() == qa.answer for r, qa in zip(replies, pairs, strict=True)])
        )
        if kind in ("where", "offset"):
            errors = [_number_error(r, qa.answer) for r, qa in zip(replies, pairs, strict=True)]
            result[f"{kind}_within_10mm"] = float(np.mean([e <= 2 for e in errors]))
            result[f"{kind}_error_mm"] = float(np.mean(errors)) * fmt.length_unit_m * 1000
    return result


def _number_error(reply: str, wanted: str) -> float:
    """Returns the largest difference between the numbers of two answers, in units; directions count as signs."""
    found, expected = _signed(parse_reply(reply).answer or ""), _signed(wanted)
    if len(found) != len(expected):
        return 40.0
    return float(max(abs(a - b) for a, b in zip(found, expected, strict=True)))


def _signed(text: str) -> list[int]:
    words = text.split()
    numbers = []
    for i, word in enumerate(words):
        if word.isdigit():
            follows = words[i + 1] if i + 1 < len(words) else ""
            numbers.append(-int(word) if follows in ("far", "left") else int(word))
    return numbers


def _generate(
    model: NanoForConditionalGeneration, processor: NanoProcessor, prompts: list[str], images: np.ndarray
) -> list[str]:
    inputs = processor(text=prompts, images=list(images), padding=True)
    ids = model.generate(**inputs, max_new_tokens=40, do_sample=False, pad_token_id=processor.tokenizer.pad_token_id)
    texts = processor.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
    return [t.split("<eos>")[0].strip() for t in texts]
