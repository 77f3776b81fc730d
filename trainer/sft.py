"""Stage `sft`: the grounded model learns to reason in words and to answer with action tokens (paper, section 3.1).

With `pairing="zero-shot"` (the paper) reasoning and action are learnt apart: samples that think and then answer in
words, and samples that answer with action tokens at once. No sample pairs a thought with an action; how often the
model composes the two by itself is measured before the alignment stage sees it (`think_act_well_formed`).
`pairing="paired"` is the other arm: thoughts are followed by actions from the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from roboalign.sdk.errors import ConfigError, DataError, unknown_name
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import ACTION_NAMES, FloatArray
from roboalign.trainer.checkpoint import CheckpointMeta, partial_dir, save_checkpoint
from roboalign.trainer.data.mixture import PAIRINGS, STYLES, load_mixture
from roboalign.trainer.data.sources import Opening, SampleStream, open_mixture
from roboalign.trainer.frames import FrameTable, load_frames
from roboalign.trainer.lora import add_lora, merge_lora
from roboalign.trainer.probe import answer_accuracy, probe_actions
from roboalign.trainer.replies import keep_replies
from roboalign.trainer.run import stage_run
from roboalign.trainer.samples import SAMPLE_KINDS, Sample, check_kinds, make_sample
from roboalign.trainer.source import open_source
from roboalign.trainer.supervised import FitConfig, draw_kinds, fit, training_device
from roboalign.trainer.vocabulary import ACTION_MARKERS, add_action_tokens, spread_action_rows

__all__ = ["PAIRINGS", "SftConfig", "fit_codec", "train_sft"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SftConfig:
    """Settings of the `sft` stage."""

    data: Path
    """Dataset folder (`roboalign collect`)."""
    base: Path
    """What to start from: a checkpoint of stage `base`, a Hugging Face folder, or a hub id."""
    out: Path
    """Checkpoint folder to write."""
    recipe: str
    """Name of the recipe that made this configuration."""
    fit: FitConfig
    """Settings of the supervised loop."""
    pairing: str = "zero-shot"
    """`zero-shot` (the paper) or `paired`."""
    horizon: int = 8
    """Actions in a chunk."""
    rate_hz: float | None = None
    """Rate that the dataset must have; None takes the dataset's."""
    action_vocab: int = 512
    """Tokens of the action codec at most."""
    max_merges: int | None = None
    """Byte-pair merges of the codec at most; None fills the vocabulary (FAST), 0 makes every token one coefficient."""
    tolerance: tuple[float, ...] | None = (0.005, 0.005, 0.005, 0.05, 0.2)
    """95th percentile of the error allowed per action field, in its unit; picks the codec's scale (None: 10)."""
    families: tuple[str, ...] = ("place", "push", "stack")
    """Task families to learn; recorded in the checkpoint."""
    held_share: float = 0.05
    """Share of the episodes that is held out."""
    max_frames: int | None = None
    """Frames to read at most; None reads all."""
    only_human: bool = False
    """Of a recording with corrections (`roboalign run --takeover`), learn the person's frames alone."""
    probe_frames: int = 64
    """Held-out frames on which the action probe is run at the end."""
    dtype: str = "fp16"
    """Type of the saved weights."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Overrides of the pairing's sample shares."""
    style: str | None = None
    """How thoughts are worded, one of `STYLES` (`trainer/data/mixture.py`); None is `default` with simulator truth and
    `recorded` without. `motion` makes them of what the hand did, where nobody recorded any."""
    prompt: PromptFormat | None = None
    """Units and origin of the numbers in prompts and thoughts, for an arm of another size; None keeps the base's."""
    mixture: Path | None = None
    """Mixture file to draw the training samples from (see `trainer/data/mixture.py`); `data` still gives the codec and
    the held-out frames. None draws from `data` alone, by `pairing`."""

    def __post_init__(self) -> None:
        if self.pairing not in PAIRINGS:
            raise ConfigError(f"SftConfig.pairing is {self.pairing!r}, expected one of {', '.join(PAIRINGS)}")
        for kind in self.weights:
            if kind not in SAMPLE_KINDS:
                raise ConfigError(f"SftConfig.weights: {unknown_name('kind of sample', kind, SAMPLE_KINDS)}")
        if self.style is not None and self.style not in STYLES:
            raise ConfigError(f"SftConfig.style: {unknown_name('style', self.style, STYLES)}")
        if self.style is not None and self.mixture is not None:
            raise ConfigError("SftConfig.style is for one dataset; with a mixture, each source has a style of its own")


@stage_run("sft")
def train_sft(config: SftConfig) -> Path:
    """Runs the stage and returns the checkpoint folder; resumes when it was interrupted."""
    source = open_source(config.base, dtype=_load_dtype(config.fit))
    backbone = source.backbone
    if config.prompt is not None:
        backbone.prompt_format = config.prompt
    fmt = backbone.prompt_format
    table = load_frames(
        config.data,
        horizon=config.horizon,
        image_size_px=fmt.image_size_px,
        max_frames=config.max_frames,
        rate_hz=config.rate_hz,
        only_human=config.only_human,
    )
    weights = config.weights or PAIRINGS[config.pairing]
    if config.mixture is None:
        check_kinds(table, weights, config.style)
    train, held = table.split(config.held_share)
    codec = fit_codec(train, config)
    work = partial_dir(config.out)
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.fit.seed)
    add_action_tokens(backbone.model, backbone.tokenizer, codec.vocab_size)
    spread_action_rows(backbone.model, backbone.tokenizer, seed=config.fit.seed)
    adapted = None
    if config.fit.lora is not None:
        # The markers too, whichever stage brought them: until now no reply had them, so their rows mean nothing yet.
        names = (*ACTION_MARKERS, *(f"<ACTION_{index}>" for index in range(codec.vocab_size)))
        adapted = add_lora(backbone, config.fit.lora, new_ids=backbone.tokenizer.convert_tokens_to_ids(list(names)))

    def draw_from(frames: FrameTable, _step: int, count: int, rng: np.random.Generator) -> list[Sample]:
        kinds = draw_kinds(weights, count, rng)
        rows = rng.integers(len(frames), size=count)
        drawn = zip(rows, kinds, strict=True)
        return [make_sample(frames, int(row), kind, fmt, rng, codec, style=config.style) for row, kind in drawn]

    draw, data_hash, stream = partial(draw_from, train), table.data_hash, None
    if config.mixture is not None:
        stream = _open_mixture(config.mixture, config, fmt, codec, table)
        draw, data_hash = partial(_draw_from_mixture, stream), f"{table.data_hash} {stream.content_hash}"
    timer = fit(
        backbone,
        draw,
        partial(draw_from, held),
        config.fit,
        data_hash=data_hash,
        folder=work,
        label=f"sft {config.pairing if stream is None else 'mixture'}",
    )
    files = {"metrics.jsonl": work / "metrics.jsonl"}
    if adapted is not None:
        files |= {f"adapter/{path.name}": path for path in merge_lora(adapted, work)}
    metrics: dict[str, object] = {"answer_accuracy": answer_accuracy(backbone, held, seed=config.fit.seed)}
    for pace in ("quick", "slow"):
        probe = probe_actions(backbone, codec, held, pace=pace, count=config.probe_frames, seed=config.fit.seed)
        metrics[f"{'think_act' if pace == 'slow' else 'act'}"] = asdict(probe)
    keep_replies(work, backbone, codec, held, seed=config.fit.seed)
    report = codec.report(held.chunks)
    metrics["first_token_majority"] = _majority(codec, held.chunks)
    metrics["codec"] = {name: value for name, value in asdict(report).items() if not isinstance(value, np.ndarray)}
    meta = CheckpointMeta(
        stage="sft",
        recipe=config.recipe,
        parent=source.parent,
        parent_sha256=source.sha256,
        seeds={"fit": config.fit.seed},
        metrics=metrics,
        data_hash=table.data_hash,
        wall_s=timer.wall_s,
        cpu_s=timer.cpu_s,
        notes={
            "pairing": config.pairing,
            "shares": dict(weights),
            **({} if config.style is None else {"style": config.style}),
            "frames": len(train),
            "fit": asdict(config.fit),
            "families": config.families,
            "robot": table.robot,
            **({} if stream is None else {"mixture": stream.describe()}),
            "origin": getattr(backbone.model.config, "origin", None),
        },
    )
    save_checkpoint(
        config.out,
        model=backbone.model,
        processor=backbone.processor,
        meta=meta,
        codec=codec,
        dtype=config.dtype,
        extra_files=files,
    )
    return config.out


def _open_mixture(
    path: Path, config: SftConfig, fmt: PromptFormat, codec: FastCodec, table: FrameTable
) -> SampleStream:
    """Every dataset of the mixture leaves out its last episodes, so that no frame is learnt and held out at once."""
    opening = Opening(
        fmt=fmt,
        codec=codec,
        robot=table.robot,
        state_names=table.state_names,
        held_share=config.held_share,
        max_frames=config.max_frames,
    )
    return open_mixture(load_mixture(path), opening, seed=config.fit.seed)


def _draw_from_mixture(stream: SampleStream, step: int, count: int, _rng: np.random.Generator) -> list[Sample]:
    return stream.draw(step, count)


def _load_dtype(fit: FitConfig) -> torch.dtype:
    """Weights that do not learn take half the memory on a GPU; those that do stay float32."""
    is_half = fit.lora is not None and fit.freeze_vision and training_device().type == "cuda"
    return torch.bfloat16 if is_half else torch.float32


def fit_codec(table: FrameTable, config: SftConfig) -> FastCodec:
    """Returns the action codec fitted on the training chunks."""
    if table.chunks.shape[2] != len(ACTION_NAMES):
        raise DataError(
            f"the dataset's actions have {table.chunks.shape[2]} fields, expected {', '.join(ACTION_NAMES)}"
        )
    return FastCodec.fit(
        table.chunks,
        rate_hz=table.rate_hz,
        names=ACTION_NAMES,
        vocab_size=config.action_vocab,
        tolerance=config.tolerance,
        max_merges=config.max_merges,
    )


def _majority(codec: FastCodec, chunks: FloatArray) -> float:
    """Returns how often the most common first token is right: what a model that sees nothing reaches."""
    first = [ids[0] for ids in codec.encode_many(chunks)]
    return float(np.bincount(first).max() / len(first))
