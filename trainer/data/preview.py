"""What a model will see and learn: samples of a dataset, a chat file or a mixture, as a page or as text."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from roboalign.sdk.data.arrow import encode_png
from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.evaluation.page import data_uri, escape, write_page
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.fast_file import FAST_FILE
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import ACTION_NAMES
from roboalign.trainer.backbone import BackboneProcessor, load_processor
from roboalign.trainer.data.mixture import ACTION_KINDS, SAMPLE_KINDS, Mixture, SourceSpec, load_mixture
from roboalign.trainer.data.sources import Opening, open_mixture, usable_rows
from roboalign.trainer.frames import load_frames
from roboalign.trainer.samples import Sample
from roboalign.trainer.vocabulary import require_action_tokens

__all__ = ["Preview", "PreviewedSample", "preview_page", "preview_samples", "preview_text"]

MAX_FRAMES = 400
"""Frames of each dataset that samples are drawn from: enough to look at."""
_CODEC_TOKENS = 128
_CODEC_SCALE = 10.0
_WIDTH = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewedSample:
    """One sample as a model reads it."""

    number: int
    """Number in the stream."""
    sample: Sample
    """The sample."""
    prompt: str
    """The prompt as it is written for the model, repeated marks counted."""
    tokens: tuple[int, int] | None
    """Tokens of the prompt and of the reply with its end; None without a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """Samples, and what has to be known to read them."""

    title: str
    """What they are from."""
    samples: tuple[PreviewedSample, ...]
    """In the order in which they would be learnt."""
    notes: tuple[str, ...]
    """One line each."""


def preview_samples(
    source: Path | str,
    *,
    count: int = 12,
    checkpoint: Path | None = None,
    style: str | None = None,
    root: Path | None = None,
    seed: int = 0,
) -> Preview:
    """Returns the first samples of a run.

    Args:
        source: Dataset folder, chat file (`.jsonl`, `.parquet`), or mixture (`.toml`, `.json`, or `paper`).
        count: Samples.
        checkpoint: Folder of a model, which writes the prompts, counts the tokens, and brings its codec where it has
            one; None shows nano's prompts, with a codec that is fitted on the frames.
        style: Style of reasoning for a dataset folder, see `STYLES`.
        root: Where relative paths of a mixture start.
        seed: Seed of order and wording.
    """
    if count < 1:
        raise ConfigError(f"the number of samples to show is {count}, expected 1 or more")
    processor = None if checkpoint is None else cast(BackboneProcessor, load_processor(checkpoint))
    fmt = processor.prompt_format if processor else _format_of(Path(source))
    has_codec = checkpoint is None or (checkpoint / FAST_FILE).is_file()
    mixture = _mixture(source, fmt, style, root, has_codec=has_codec)
    codec, notes = _codec(mixture, fmt, checkpoint, processor) if has_codec else (None, ("no actions: no codec yet",))
    opening = Opening(fmt=fmt, codec=codec, max_frames=MAX_FRAMES)
    stream = open_mixture(mixture, opening, seed=seed)
    samples = tuple(_written(number, stream.at(number), fmt, processor) for number in range(count))
    shares = ", ".join(f"{name} {parts / stream.schedule.period:.1%}" for name, parts in stream.schedule.parts.items())
    skipped = [f"{number} pictures of {name} do not decode" for name, number in stream.skipped.items()]
    return Preview(title=mixture.name, samples=samples, notes=(f"shares: {shares}", *notes, *skipped))


def _format_of(source: Path) -> PromptFormat:
    """Nano's format with pictures of the dataset's size."""
    return PromptFormat(image_size_px=LeRobotDataset(source).info.image_size_px) if source.is_dir() else PromptFormat()


def _mixture(
    source: Path | str, fmt: PromptFormat, style: str | None, root: Path | None, *, has_codec: bool
) -> Mixture:
    path = Path(source)
    if path.suffix in (".jsonl", ".parquet"):
        spec = SourceSpec(name=path.stem, format="chat", path=path, weight=1.0, on_bad_image="skip")
        return Mixture(name=path.name, sources=(spec,))
    if path.suffix in (".json", ".toml") or str(source) == "paper":
        if style is not None:
            raise ConfigError("a style was given for a mixture, which has its own; write style into its sources")
        return load_mixture(source, root=root)
    table = load_frames(path, horizon=1, image_size_px=fmt.image_size_px, max_frames=MAX_FRAMES)
    left_out = {*(("paired",) if style == "choice" else ()), *(() if has_codec else ACTION_KINDS)}
    kinds = [kind for kind in SAMPLE_KINDS if kind not in left_out and len(usable_rows(table, kind, style))]
    if not kinds:
        raise DataError(
            f"{path} has no words to show, and the checkpoint no codec for its actions; give none, or another"
        )
    spec = SourceSpec(
        name=path.resolve().name, format="lerobot", path=path, weight=1.0, kinds=dict.fromkeys(kinds, 1.0), style=style
    )
    return Mixture(name=path.resolve().name, sources=(spec,))


def _codec(
    mixture: Mixture, fmt: PromptFormat, checkpoint: Path | None, processor: BackboneProcessor | None
) -> tuple[FastCodec | None, tuple[str, ...]]:
    """The codec of the checkpoint, or one fitted on the first dataset with actions."""
    if checkpoint is not None and processor is not None:
        codec = FastCodec.load(checkpoint)
        require_action_tokens(processor.tokenizer, codec.vocab_size, checkpoint)
        return codec, ()
    for spec in mixture.sources:
        if spec.format == "lerobot" and spec.weight > 0 and any(kind in ACTION_KINDS for kind in spec.kind_shares):
            table = load_frames(spec.path, horizon=8, image_size_px=fmt.image_size_px, max_frames=MAX_FRAMES)
            codec = FastCodec.fit(
                table.chunks,
                rate_hz=table.rate_hz,
                names=ACTION_NAMES,
                vocab_size=_CODEC_TOKENS,
                scale=_CODEC_SCALE,
            )
            return codec, (f"action tokens are of a codec fitted on {len(table)} frames; a checkpoint brings its own",)
    return None, ()


def _written(number: int, sample: Sample, fmt: PromptFormat, processor: BackboneProcessor | None) -> PreviewedSample:
    flags = {"pace": sample.pace, "task": sample.task}
    if processor is None:
        text = fmt.prompt_text(sample.text, sample.state, **flags)
        text = text if sample.image is not None else text.replace("<image>", "")
        return PreviewedSample(number=number, sample=sample, prompt=_counted(text, fmt), tokens=None)
    text = processor.prompt_text(sample.text, sample.state, has_image=sample.image is not None, **flags)
    images = [] if sample.image is None else [sample.image]
    tokenizer = processor.tokenizer
    reply_ids = tokenizer(sample.reply + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    num_prompt = int(processor(images=images, text=[text])["attention_mask"].sum())
    return PreviewedSample(
        number=number, sample=sample, prompt=_counted(text, fmt), tokens=(num_prompt, len(reply_ids))
    )


def _counted(prompt: str, fmt: PromptFormat) -> str:
    mark = "<image>"
    return prompt.replace(mark * fmt.num_image_tokens, f"{mark}*{fmt.num_image_tokens}")


def preview_page(preview: Preview, out: Path) -> Path:
    """Writes one page with everything inside it; what carries the loss is marked."""
    body = [
        f"<h1>{escape(preview.title)}</h1>",
        "<p class=sub>What is <mark>marked</mark> carries the loss; everything before it is given.</p>",
        *(f"<p class=sub>{escape(note)}</p>" for note in preview.notes),
        *(_card(one) for one in preview.samples),
    ]
    return write_page(out, title=f"samples of {preview.title}", body=body)


def _card(one: PreviewedSample) -> str:
    sample = one.sample
    facts = [sample.source, f"{sample.pace} {sample.task}"]
    if one.tokens is not None:
        facts.append(f"{one.tokens[0]} + {one.tokens[1]} tokens")
    picture = "<p class=facts>no picture</p>"
    if sample.image is not None:
        alt = escape(f"picture of sample {one.number}")
        picture = f"<img src='{data_uri(encode_png(sample.image))}' alt='{alt}' width=192>"
    return (
        f"<section><h3>{one.number}. {escape(sample.text)}</h3><p class=facts>{escape('; '.join(facts))}</p>{picture}"
        f"<pre>{escape(one.prompt)}<mark>{escape(sample.reply)}</mark></pre></section>"
    )


def preview_text(preview: Preview) -> str:
    """Returns the same for a terminal of 80 columns; what carries the loss follows `>`."""
    blocks = [_lines("", note) for note in preview.notes]
    for one in preview.samples:
        size = "no picture" if one.sample.image is None else "picture {} x {}".format(*one.sample.image.shape[1::-1])
        tokens = "" if one.tokens is None else f", {one.tokens[0]} + {one.tokens[1]} tokens"
        head = f"{one.number}. {one.sample.source}: {one.sample.pace} {one.sample.task}, {size}{tokens}"
        blocks.append("\n".join((_lines("", head), _lines("  ", one.prompt), _lines("> ", one.sample.reply))))
    return "\n\n".join(blocks)


def _lines(lead: str, text: str) -> str:
    wrapped = [textwrap.wrap(line, _WIDTH - len(lead), break_on_hyphens=False) or [""] for line in text.splitlines()]
    return "\n".join(lead + line for part in wrapped for line in part)
