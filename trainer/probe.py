"""What a backbone's answers and action tokens are worth on held-out frames, before and after a stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roboalign.sdk.constraint import ActionConstraint
from roboalign.sdk.data.language import QUESTION_KINDS, question
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.reply import ReplyTokens, parse_reply
from roboalign.sdk.types import FloatArray, ImageArray
from roboalign.trainer.backbone import HuggingFaceBackbone
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.rewards import ReplyScore, score_reply
from roboalign.trainer.rollout import TokenMask, sample_replies

__all__ = ["ActionProbe", "answer_accuracy", "probe_actions", "reply_mask", "reply_tokens"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionProbe:
    """Shares and errors over the replies to `count` held-out frames."""

    count: int
    """Replies."""
    well_formed: float
    """Share of exactly formed replies (the paper's r_f)."""
    decodable: float
    """Share whose action tokens spell exactly one chunk."""
    first_token: float
    """Share whose first action token is the demonstrated one."""
    prefix: float
    """Mean of the paper's r_a."""
    error: float | None
    """Mean absolute error of the decoded chunks in normalised units; None when none decodes."""

    @classmethod
    def of(cls, scores: list[ReplyScore]) -> ActionProbe:
        """Returns the summary of some scores."""
        errors = [s.error for s in scores if s.is_decodable]
        return cls(
            count=len(scores),
            well_formed=float(np.mean([s.is_well_formed for s in scores])),
            decodable=float(np.mean([s.is_decodable for s in scores])),
            first_token=float(np.mean([s.is_first_right for s in scores])),
            prefix=float(np.mean([s.prefix for s in scores])),
            error=float(np.mean(errors)) if errors else None,
        )


def reply_tokens(backbone: HuggingFaceBackbone, num_action: int) -> ReplyTokens:
    """Returns the ids of the reply's markers in a backbone's vocabulary."""
    ids = backbone.tokenizer.convert_tokens_to_ids
    return ReplyTokens(
        think_open=ids("<think>"),
        think_close=ids("</think>"),
        answer_open=ids("<answer>"),
        answer_close=ids("</answer>"),
        action_start=ids("<ACTION_START>"),
        action_end=ids("<ACTION_END>"),
        first_action=ids("<ACTION_0>"),
        num_action=num_action,
        eos=backbone.tokenizer.eos_token_id,
    )


def reply_mask(backbone: HuggingFaceBackbone, codec: FastCodec, *, constrained: bool) -> TokenMask:
    """Returns what a reply may hold: no padding and no placeholders, and with `constrained` spans that decode."""
    vocab_size, constraint = backbone.embedding_rows, None
    if constrained:
        tokens = reply_tokens(backbone, codec.vocab_size)
        constraint = ActionConstraint(
            codec.token_lengths,
            num_coefficients=codec.num_coefficients,
            action_start_id=tokens.action_start,
            action_end_id=tokens.action_end,
            first_action_id=tokens.first_action,
            lm_vocab_size=vocab_size,
        )
    return TokenMask(vocab_size=vocab_size, banned_ids=backbone.banned_ids, constraint=constraint)


def probe_actions(
    backbone: HuggingFaceBackbone,
    codec: FastCodec,
    held: FrameTable,
    *,
    pace: str,
    count: int,
    seed: int,
    temperature: float = 0.0,
    constrained: bool = False,
    max_tokens: int = 96,
) -> ActionProbe:
    """Returns the probe over `count` frames, the same ones for the same seed; greedy unless a temperature is given."""
    rows = np.random.default_rng((seed, 13)).permutation(len(held))[:count]
    tokens = reply_tokens(backbone, codec.vocab_size)
    mask = reply_mask(backbone, codec, constrained=constrained)
    inputs = backbone.encode_prompts(
        [held.instruction(int(r)) for r in rows],
        held.states[rows],
        list(held.images[rows]),
        pace=pace,
        task="act",
    )
    replies = sample_replies(
        backbone, inputs, mask, num_samples=1, max_tokens=max_tokens, eos_id=tokens.eos, temperature=temperature
    )
    scores = [
        score_reply(
            ids,
            codec.encode(held.chunks[int(r)]),
            held.chunks[int(r)],
            codec=codec,
            tokens=tokens,
            needs_thought=pace == "slow",
        )
        for ids, r in zip(replies.token_ids, rows, strict=True)
    ]
    return ActionProbe.of(scores)


def answer_accuracy(backbone: HuggingFaceBackbone, held: FrameTable, *, seed: int, count: int = 64) -> dict[str, float]:
    """Returns, for every kind of question, the share of `count` held-out questions answered word for word.

    For `where` and `offset` also the share within two units (10 mm) and the mean error in millimetres. Without
    simulator truth there is nothing to ask, and no share.
    """
    fmt, result = backbone.prompt_format, {}
    for kind in QUESTION_KINDS if held.truths is not None else ():
        rng = np.random.default_rng((seed, 11))
        rows = rng.integers(len(held), size=count)
        pairs = [question(held.require_truths(kind)[int(r)], fmt, rng, kind) for r in rows]
        replies = _answers(backbone, [qa.question for qa in pairs], held.states[rows], held.images[rows])
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


def _answers(
    backbone: HuggingFaceBackbone, questions: list[str], states: FloatArray, images: ImageArray, *, max_tokens: int = 40
) -> list[str]:
    """Returns the greedy replies to some questions."""
    inputs = backbone.encode_prompts(questions, states, list(images), pace="quick", task="ask")
    mask = TokenMask(vocab_size=backbone.embedding_rows, banned_ids=backbone.banned_ids)
    eos = backbone.tokenizer.eos_token_id
    replies = sample_replies(backbone, inputs, mask, num_samples=1, max_tokens=max_tokens, eos_id=eos, temperature=0.0)
    return [backbone.tokenizer.decode([i for i in ids if i != eos]).strip() for ids in replies.token_ids]
