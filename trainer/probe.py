"""What a backbone's action tokens are worth on held-out frames, before and after a stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roboalign.sdk.constraint import ActionConstraint
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.reply import ReplyTokens
from roboalign.trainer.backbone import HuggingFaceBackbone
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.rewards import ReplyScore, score_reply
from roboalign.trainer.rollout import TokenMask, sample_replies

__all__ = ["ActionProbe", "probe_actions", "reply_tokens"]


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
    vocab_size = int(backbone.model.get_input_embeddings().weight.shape[0])
    constraint = None
    if constrained:
        constraint = ActionConstraint(
            codec.token_lengths,
            num_coefficients=codec.num_coefficients,
            action_start_id=tokens.action_start,
            action_end_id=tokens.action_end,
            first_action_id=tokens.first_action,
            lm_vocab_size=vocab_size,
        )
    banned = [i for i in (backbone.tokenizer.pad_token_id, backbone.processor.image_token_id) if i is not None]
    mask = TokenMask(vocab_size=vocab_size, banned_ids=banned, constraint=constraint)
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
