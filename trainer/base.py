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
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch

from roboalign.sdk.data.language import QUESTION_KINDS, next_words, question
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.reply import parse_reply
from roboalign.sdk.sim.language import instruction_for
from roboalign.trainer.backbone import HuggingFaceBackbone
from roboalign.trainer.checkpoint import CheckpointMeta, partial_dir, save_checkpoint
from roboalign.trainer.frames import FrameTable, load_frames
from roboalign.trainer.lora import add_lora, merge_lora
from roboalign.trainer.nano import (
    NanoBackbone,
    NanoConfig,
    NanoForConditionalGeneration,
    NanoImageProcessor,
    NanoProcessor,
    train_tokenizer,
)
from roboalign.trainer.probe import answer_accuracy
from roboalign.trainer.run import stage_run
from roboalign.trainer.samples import Sample, make_sample
from roboalign.trainer.supervised import FitConfig, fit

__all__ = ["BaseConfig", "build_processor", "order_number_rows", "train_base"]


FAMILIES = ("nano", "smol", "smol-random")


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
    family: str = "nano"
    """`nano` (made from nothing), `smol` (a pretrained language model), or `smol-random` (the same, for tests)."""
    model: dict[str, object] = field(default_factory=dict)
    """Overrides of `NanoConfig` or `SmolConfig`."""
    prompt: PromptFormat = field(default_factory=PromptFormat)
    """Prompt format; its image size must be the dataset's."""
    held_share: float = 0.02
    """Share of the episodes that is held out."""
    max_frames: int | None = None
    """Frames to read at most; None reads all."""
    dtype: str = "fp16"
    """Type of the saved weights."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError(f"BaseConfig.family is {self.family!r}, expected one of {', '.join(FAMILIES)}")


def build_processor(table: FrameTable, fmt: PromptFormat, *, seed: int, vocab_size: int) -> NanoProcessor:
    """Trains the tokenizer on sentences about the table's scenes and returns the processor."""
    rng, truths = np.random.default_rng((seed, 7)), table.require_truths("stage base")
    texts = []
    for _ in range(min(4000, 4 * len(table))):
        truth = truths[int(rng.integers(len(table)))]
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
    backbone = _start(config, train)
    fmt = backbone.prompt_format
    adapted = None
    if config.fit.lora is not None:
        first = backbone.tokenizer.convert_tokens_to_ids("<image>")
        adapted = add_lora(backbone, config.fit.lora, new_ids=range(first, len(backbone.tokenizer)))

    def draw_from(frames: FrameTable, _step: int, count: int, rng: np.random.Generator) -> list[Sample]:
        rows = rng.integers(len(frames), size=count)
        return [make_sample(frames, int(row), "vqa", fmt, rng) for row in rows]

    timer = fit(
        backbone,
        partial(draw_from, train),
        partial(draw_from, held),
        config.fit,
        data_hash=table.data_hash,
        folder=work,
        label="base",
    )
    files = {"metrics.jsonl": work / "metrics.jsonl"}
    if adapted is not None:
        files |= {f"adapter/{path.name}": path for path in merge_lora(adapted, work)}
    accuracy = answer_accuracy(backbone, held, seed=config.fit.seed)
    origin = getattr(backbone.model.config, "origin", None)
    meta = CheckpointMeta(
        stage="base",
        recipe=config.recipe,
        seeds={"fit": config.fit.seed},
        metrics={"answer_accuracy": accuracy},
        data_hash=table.data_hash,
        wall_s=timer.wall_s,
        cpu_s=timer.cpu_s,
        notes={"frames": len(train), "fit": asdict(config.fit), "origin": origin},
    )
    save_checkpoint(
        config.out,
        model=backbone.model,
        processor=backbone.processor,
        meta=meta,
        dtype=config.dtype,
        extra_files=files,
    )
    return config.out


def _start(config: BaseConfig, train: FrameTable) -> HuggingFaceBackbone:
    """Returns the untrained model of the configured family."""
    fmt, seed = config.prompt, config.fit.seed
    processor = None
    if config.family != "smol":
        vocab_size = config.model.get("vocab_size", 1024)
        processor = build_processor(train, fmt, seed=seed, vocab_size=int(str(vocab_size)))
    if config.family != "nano":
        from roboalign.trainer.smol import start_smol

        return start_smol(config.model, fmt, None if processor is None else processor.tokenizer, seed=seed)
    assert processor is not None
    torch.manual_seed(seed)
    model = NanoForConditionalGeneration(_model_config(config, processor))
    order_number_rows(model, processor)
    return NanoBackbone(model, processor)


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
