"""Sampling replies, and the log-probabilities of replies, under one and the same mask.

Shape suffixes: B rows, C tokens of a completion, V vocabulary.

`TokenMask` is the torch side of `sdk.constraint.ActionConstraint`. Sampling asks it one token at a time, training
asks it for a whole sequence; both give the same distribution, so the probability ratio before the first update is 1.
Placeholder tokens of pictures and padding are never sampled, with or without the length constraint: a sampled image
token would be replaced by a picture in the training pass and not in the sampling pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from roboalign.sdk.constraint import ActionConstraint
from roboalign.trainer.backbone import Backbone, PromptInputs

__all__ = ["Completions", "TokenMask", "pad_completions", "sample_replies"]


class TokenMask:
    """Which tokens may come next, for rows of completions."""

    def __init__(
        self, *, vocab_size: int, banned_ids: Sequence[int], constraint: ActionConstraint | None = None
    ) -> None:
        """Builds the masks.

        Args:
            vocab_size: width of the logits.
            banned_ids: tokens that are never allowed (padding, placeholders of pictures).
            constraint: the length constraint inside action spans; None leaves action spans free.
        """
        self.constraint = constraint
        num_rows = 1 if constraint is None else constraint.num_coefficients + 2
        table = np.ones((num_rows, vocab_size), dtype=np.bool_)
        if constraint is not None:
            table[:, : constraint.table.shape[1]] = constraint.table
        table[:, list(banned_ids)] = False
        self._forbidden = torch.from_numpy(~table)

    def forbidden_rows(self, completion_ids: torch.Tensor) -> torch.Tensor:
        """Returns bool[B, C, V]: what may not stand at each place of `completion_ids` int64[B, C]."""
        batch, length = completion_ids.shape
        states = torch.full((batch, length), -1, dtype=torch.long)
        if self.constraint is not None and length > 1:
            states[:, 1:] = torch.from_numpy(self.constraint.mask_rows(completion_ids[:, :-1].cpu().numpy()))
        return self._lookup(states.to(completion_ids.device))

    def log_probs(self, logits: torch.Tensor, completion_ids: torch.Tensor, *, temperature: float) -> torch.Tensor:
        """Returns float[B, C, V], the log-distributions that `completion_ids` int64[B, C] were drawn from."""
        forbidden = self.forbidden_rows(completion_ids)
        return (logits.float() / temperature).masked_fill(forbidden, -torch.inf).log_softmax(dim=-1)

    def start(self, batch: int, device: torch.device) -> torch.Tensor:
        """Returns the state int64[B] of rows that have no token yet."""
        return torch.full((batch,), -1, dtype=torch.long, device=device)

    def step_log_probs(self, logits: torch.Tensor, states: torch.Tensor, *, temperature: float) -> torch.Tensor:
        """Returns float[B, V], the log-distribution of the next token in the states int64[B]."""
        return (logits.float() / temperature).masked_fill(self._lookup(states), -torch.inf).log_softmax(dim=-1)

    def advance(self, states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns the states after one more token per row."""
        if self.constraint is None:
            return states
        after = [
            self.constraint.advance(state, token)
            for state, token in zip(states.tolist(), token_ids.tolist(), strict=True)
        ]
        return torch.tensor(after, dtype=torch.long, device=states.device)

    def _lookup(self, states: torch.Tensor) -> torch.Tensor:
        # State -1 (outside a span) is the last row of the table.
        self._forbidden = self._forbidden.to(states.device)
        return self._forbidden[states]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completions:
    """Sampled replies, all samples of a prompt in a row."""

    token_ids: list[list[int]]
    """Ids of each reply, up to and with the end-of-sequence token."""
    log_probs: list[list[float]]
    """Log-probability of each token in the distribution that it was drawn from."""


@torch.no_grad()
def sample_replies(
    backbone: Backbone,
    prompts: PromptInputs,
    mask: TokenMask,
    *,
    num_samples: int,
    max_tokens: int,
    eos_id: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Completions:
    """Samples `num_samples` replies for each prompt; the prompt is read once and its cache shared.

    Args:
        backbone: in evaluation mode, or without dropout.
        prompts: B prompts.
        mask: what may be sampled.
        num_samples: replies for each prompt.
        max_tokens: a reply that has no end by then is cut.
        eos_id: ends a reply.
        temperature: 0 takes the most likely token.
        generator: source of the draws; None is torch's global one.
    """
    logits, state = backbone.prefill(prompts)
    state = state.repeat(num_samples)
    logits = logits.repeat_interleave(num_samples, dim=0)
    total = logits.shape[0]
    rows = torch.arange(total, device=logits.device)
    spans = mask.start(total, logits.device)
    ids = torch.zeros((total, max_tokens), dtype=torch.long, device=logits.device)
    scores = torch.zeros((total, max_tokens), device=logits.device)
    lengths = torch.full((total,), max_tokens, dtype=torch.long, device=logits.device)
    for place in range(max_tokens):
        log_probs = mask.step_log_probs(logits, spans, temperature=temperature or 1.0)
        if temperature == 0:
            tokens = log_probs.argmax(dim=-1)
        else:
            tokens = torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]
        ids[rows, place] = tokens
        scores[rows, place] = log_probs.gather(1, tokens[:, None])[:, 0]
        is_done = tokens == eos_id
        lengths[rows[is_done]] = place + 1
        if place + 1 == max_tokens or bool(is_done.all()):
            break
        spans = mask.advance(spans, tokens)
        if bool(is_done.any()):
            alive = (~is_done).nonzero()[:, 0]
            rows, tokens, spans, state = rows[alive], tokens[alive], spans[alive], state.select(alive)
        logits, state = backbone.step(tokens, state)
    ends = lengths.tolist()
    return Completions(
        token_ids=[row[:end] for row, end in zip(ids.tolist(), ends, strict=True)],
        log_probs=[row[:end] for row, end in zip(scores.tolist(), ends, strict=True)],
    )


def pad_completions(token_ids: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns right-padded ids int64[B, C] and their mask int64[B, C]."""
    length = max(len(row) for row in token_ids)
    ids = torch.full((len(token_ids), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(token_ids), length), dtype=torch.long)
    for index, row in enumerate(token_ids):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return ids, mask
