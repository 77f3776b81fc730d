"""Frames to training samples, and samples to batches.

Kinds of sample (paper, section 3.1): `vqa` asks about the picture, `reason` asks what to do next and wants a thought
before the answer in words, `action` wants action tokens at once, `paired` wants a thought and then action tokens. In
the zero-shot pairing of the paper no `paired` sample exists: thinking before acting first appears in the alignment
stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from roboalign.sdk.data.language import QUESTION_KINDS, QuestionAnswer, named_objects, question
from roboalign.sdk.data.motion import motion_reasoning
from roboalign.sdk.data.reasoning import REASONING_STYLES, Reasoning, choice_question, reason
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.reply import write_reply
from roboalign.sdk.types import FloatArray, ImageArray
from roboalign.trainer.backbone import Backbone
from roboalign.trainer.data.mixture import ACTION_KINDS, MOTION, RECORDED, SAMPLE_KINDS
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.inputs import PromptInputs
from roboalign.trainer.rollout import pad_completions

__all__ = [
    "ACTION_END",
    "ACTION_START",
    "SAMPLE_KINDS",
    "Batch",
    "Sample",
    "action_text",
    "check_kinds",
    "collate",
    "make_sample",
]

ACTION_START, ACTION_END = "<ACTION_START>", "<ACTION_END>"


def _nowhere() -> FloatArray:
    return np.full((2, 2), np.nan, np.float32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """One prompt with the reply to learn, in words: how a prompt is written is the backbone's affair."""

    text: str
    """The instruction or question."""
    state: FloatArray | None
    """float32[S] in the order of `STATE_NAMES`; None when no robot took the picture."""
    image: ImageArray | None
    """uint8[H, W, 3], or None for text alone; nano and smol take pictures of the prompt format's size only."""
    pace: str
    """`quick` or `slow`, see `roboalign.sdk.prompt`."""
    task: str
    """`ask` or `act`."""
    reply: str
    """Reply text with its markers, without the end-of-sequence token."""
    places: FloatArray = field(default_factory=_nowhere)
    """float32[2, 2]: table positions (metres) of the objects that the text names; NaN where there is none."""
    source: str = ""
    """Where it comes from, for shares and previews."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Prompts with their replies behind them, padded on the right."""

    inputs: PromptInputs
    """The sequences, on the model's device."""
    labels: torch.Tensor
    """int64[B, L]: the reply's tokens and the end of the sequence, -100 elsewhere."""
    places: torch.Tensor
    """float32[B, 2, 2]: see `Sample.places`."""


def action_text(token_ids: tuple[int, ...]) -> str:
    """Returns the answer that holds the codec's token ids."""
    return ACTION_START + "".join(f"<ACTION_{i}>" for i in token_ids) + ACTION_END


def check_kinds(table: FrameTable, weights: Mapping[str, float], style: str | None = None) -> None:
    """Raises DataError when frames of a real robot do not say what the wanted kinds of sample are made of.

    Args:
        table: the frames; those with simulator truth give every kind.
        weights: share of each kind; a kind of share 0 is not wanted.
        style: how thoughts are worded; `motion` makes them of any frame.
    """
    if table.truths is not None:
        return
    num_silent = {
        "question": sum(not words.questions for words in table.words) if table.words else len(table),
        "thought": sum(not words.has_thought for words in table.words) if table.words else len(table),
    }
    if style == MOTION:
        num_silent["thought"] = 0
    needs = {"vqa": "question", "reason": "thought", "paired": "thought"}
    wanted = {kind: share for kind, share in weights.items() if share > 0}
    impossible = [kind for kind in sorted(wanted) if num_silent.get(needs.get(kind, ""), 0)]
    if not impossible:
        return
    left = {kind: share for kind, share in wanted.items() if kind not in impossible}
    total = sum(left.values())
    shares = ",".join(f"{kind}={share / total:.2g}" for kind, share in left.items())
    what = needs[impossible[0]]
    help_ = f"leave out {', '.join(impossible)}: --shares {shares}" if left else f"record a {what} with every frame"
    if what == "thought":
        help_ += ", or make thoughts of what the hand did: --style motion"
    raise DataError(
        f"{table.name}: {num_silent[what]} of {len(table)} frames have no recorded {what}, which samples of the kind "
        f"{impossible[0]} are made of; found the columns {', '.join(table.columns) or 'none'}; "
        f"{help_}"
    )


def make_sample(
    table: FrameTable,
    frame: int,
    kind: str,
    fmt: PromptFormat,
    rng: np.random.Generator,
    codec: FastCodec | None = None,
    *,
    style: str | None = None,
) -> Sample:
    """Returns one sample of the given kind; `action` and `paired` need the codec.

    `style` is one of `STYLES`; None is `default` where there is simulator truth, and `recorded` where there is none.
    """
    if kind not in SAMPLE_KINDS or (codec is None and kind in ACTION_KINDS):
        raise ConfigError(f"sample kind {kind!r} needs an action codec and must be one of {', '.join(SAMPLE_KINDS)}")
    style = style or (RECORDED if table.truths is None else REASONING_STYLES[0])
    if kind == "vqa":
        qa = _question(table, frame, fmt, rng, style)
        return _sample(table, frame, kind, "quick ask", write_reply(None, qa.answer), qa.objects, text=qa.question)
    if kind == "action":
        objects = () if table.truths is None else named_objects(table.truths[frame])
        return _sample(table, frame, kind, "quick act", write_reply(None, _action(table, frame, codec)), objects)
    told = _reasoning(table, frame, fmt, rng, style)
    if kind == "reason":
        reply = write_reply(told.thought, told.answer)
        return _sample(table, frame, kind, "slow ask", reply, told.objects, text=told.text)
    if style == "choice":
        raise ConfigError("style choice asks for a letter, so kind paired cannot have it; give another style or kind")
    return _sample(
        table, frame, kind, "slow act", write_reply(told.thought, _action(table, frame, codec)), told.objects
    )


def _action(table: FrameTable, frame: int, codec: FastCodec | None) -> str:
    assert codec is not None, "make_sample asked for it"
    return action_text(codec.encode(table.chunks[frame]))


def _question(table: FrameTable, frame: int, fmt: PromptFormat, rng: np.random.Generator, style: str) -> QuestionAnswer:
    if style in (RECORDED, MOTION):
        asked = table.words[frame].questions if table.words else ()
        if not asked:
            raise _nothing_recorded(table, frame, "question")
        text, answer = asked[int(rng.integers(len(asked)))]
        return QuestionAnswer(question=text, answer=answer, objects=())
    truth = table.require_truths(f"style {style}")[frame]
    if style == "choice":
        return choice_question(truth, fmt, rng)
    return question(truth, fmt, rng, QUESTION_KINDS[int(rng.integers(len(QUESTION_KINDS)))])


def _reasoning(table: FrameTable, frame: int, fmt: PromptFormat, rng: np.random.Generator, style: str) -> Reasoning:
    if style == MOTION:
        return motion_reasoning(table.instruction(frame), table.states[frame], table.chunks[frame], fmt)
    if style != RECORDED:
        return reason(table.require_truths(f"style {style}")[frame], fmt, rng, style)
    words = table.words[frame] if table.words else None
    # Where only one of the two is recorded it is both what is thought and what is answered.
    thought, answer = (words.thought or words.step, words.step or words.thought) if words else (None, None)
    if thought is None or answer is None:
        raise _nothing_recorded(table, frame, "thought")
    objects = () if table.truths is None else named_objects(table.truths[frame])
    return Reasoning(text=table.instruction(frame), thought=thought, answer=answer, objects=objects)


def _nothing_recorded(table: FrameTable, frame: int, what: str) -> DataError:
    return DataError(
        f"{table.name}: frame {frame} has no recorded {what}; found the columns {', '.join(table.columns) or 'none'}; "
        "name the column of thoughts, or leave the kind out"
    )


def _sample(
    table: FrameTable,
    frame: int,
    kind: str,
    flags: str,
    reply: str,
    objects: Sequence[str],
    *,
    text: str | None = None,
) -> Sample:
    pace, task = flags.split()
    places = _nowhere()
    if table.truths is not None:
        truth = table.truths[frame]
        known = {item.name: item.position_m for item in truth.objects}
        known |= {item.name: item.position_m for item in truth.fixtures}
        for slot, name in enumerate(objects[:2]):
            places[slot] = known[name][:2]
    return Sample(
        text=table.instruction(frame) if text is None else text,
        state=table.states[frame],
        image=table.images[frame],
        pace=pace,
        task=task,
        reply=reply,
        places=places,
        source=kind,
    )


def collate(samples: Sequence[Sample], backbone: Backbone) -> Batch:
    """Returns the batch of `samples` for a backbone, on its device; only replies carry a loss."""
    prompts = backbone.encode_prompts(
        [s.text for s in samples],
        [s.state for s in samples],
        [s.image for s in samples],
        pace=[s.pace for s in samples],
        task=[s.task for s in samples],
    )
    tokenizer = backbone.tokenizer
    replies = tokenizer([s.reply + tokenizer.eos_token for s in samples], add_special_tokens=False)["input_ids"]
    device = prompts.input_ids.device
    ids, mask = (part.to(device) for part in pad_completions(replies, tokenizer.pad_token_id))
    inputs = prompts.extend(ids, mask).pad_right()
    place_L = torch.arange(inputs.input_ids.shape[1], device=device)
    is_reply = (place_L >= prompts.attention_mask.sum(dim=1, keepdim=True)) & inputs.attention_mask.bool()
    return Batch(
        inputs=inputs,
        labels=inputs.input_ids.masked_fill(~is_reply, -100),
        places=torch.from_numpy(np.stack([s.places for s in samples])).to(device),
    )
