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
from roboalign.trainer.decode import make_decoder

__all__ = ["Completions", "TokenMask", "pad_completions", "sample_replies"]

_KEEP_SHARE = 0.85
"""Rows that have ended are dropped once no more than this share is still written."""


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
        self._lengths = None if constraint is None else torch.from_numpy(constraint.lengths.copy())

    def forbidden_rows(self, completion_ids: torch.Tensor) -> torch.Tensor:
        """Returns bool[B, C, V]: what may not stand at each place of `completion_ids` int64[B, C]."""
        batch, length = completion_ids.shape
        states = torch.full((batch, length), -1, dtype=torch.long)
        if self.constraint is not None and length > 1:
            states[:, 1:] = torch.from_numpy(self.constraint.mask_rows(completion_ids[:, :-1].cpu().numpy()))
        return self._lookup(states.to(completion_ids.device))

    def log_probs(self, logits: torch.Tensor, completion_ids: torch.Tensor, *, temperature: float) -> torch.Tensor:
        """Returns float[B, C, V], the log-distributions that `completion_ids` int64[B, C] were drawn from."""
        return _log_softmax(logits, self.forbidden_rows(completion_ids), temperature)

    def start(self, batch: int, device: torch.device) -> torch.Tensor:
        """Returns the state int64[B] of rows that have no token yet."""
        return torch.full((batch,), -1, dtype=torch.long, device=device)

    def step_log_probs(self, logits: torch.Tensor, states: torch.Tensor, *, temperature: float) -> torch.Tensor:
        """Returns float[B, V], the log-distribution of the next token in the states int64[B]."""
        return _log_softmax(logits, self._lookup(states), temperature)

    def advance(self, states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns the states after one more token per row: `ActionConstraint.advance` on tensors."""
        if self.constraint is None or self._lengths is None:
            return states
        self._lengths = self._lengths.to(states.device)
        spelled = self._lengths[token_ids]
        left = torch.where((spelled > 0) & (spelled <= states), states - spelled, -1)
        return torch.where(token_ids == self.constraint.action_start_id, self.constraint.start(), left)

    def _lookup(self, states: torch.Tensor) -> torch.Tensor:
        self._forbidden = self._forbidden.to(states.device)
        if self.constraint is None:  # one row for every state
            return self._forbidden[0].expand(*states.shape, -1)
        return self._forbidden[states]  # state -1 (outside a span) is the last row of the table


def _log_softmax(logits: torch.Tensor, forbidden: torch.Tensor, temperature: float) -> torch.Tensor:
    scaled = logits.float() if temperature == 1.0 else logits.float() / temperature
    return scaled.masked_fill(forbidden, -torch.inf).log_softmax(dim=-1)


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
    decoder = make_decoder(backbone, state, num_samples)
    logits = logits.repeat_interleave(num_samples, dim=0)
    total = logits.shape[0]
    rows = torch.arange(total, device=logits.device)
    spans = mask.start(total, logits.device)
    ids = torch.zeros((total, max_tokens), dtype=torch.long, device=logits.device)
    scores = torch.zeros((total, max_tokens), device=logits.device)
    lengths = torch.full((total,), max_tokens, dtype=torch.long, device=logits.device)
    for place in range(max_tokens):
        log_probs = mask.step_log_probs(logits, spans, temperature=temperature or 1.0)
        tokens = log_probs.argmax(dim=-1) if temperature == 0 else _draw(log_probs, generator)
        ids[rows, place] = tokens
        scores[rows, place] = log_probs.gather(1, tokens[:, None])[:, 0]
        lengths[rows] = torch.where((tokens == eos_id) & (lengths[rows] > place), place + 1, lengths[rows])
        # A row that has ended is written on, and cut below, until it pays to copy the caches of the others.
        alive = lengths[rows] == max_tokens
        num_alive = int(alive.sum())
        if place + 1 == max_tokens or num_alive == 0:
            break
        spans = mask.advance(spans, tokens)
        if num_alive <= _KEEP_SHARE * len(rows):
            kept = alive.nonzero()[:, 0]
            rows, tokens, spans = rows[kept], tokens[kept], spans[kept]
            decoder.select(kept)
        logits = decoder.step(tokens)
    ends = lengths.tolist()
    return Completions(
        token_ids=[row[:end] for row, end in zip(ids.tolist(), ends, strict=True)],
        log_probs=[row[:end] for row, end in zip(scores.tolist(), ends, strict=True)],
    )


def _draw(log_probs: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Returns one token a row, int64[B], drawn from the log-distributions float[B, V]."""
    sums = log_probs.exp().cumsum(dim=-1)
    # A little below 1, so that rounding can never reach behind the last token that is allowed.
    share = torch.rand((len(sums), 1), generator=generator, device=sums.device) * (1 - 1e-6)
    return torch.searchsorted(sums, share * sums[:, -1:], right=True)[:, 0]


def pad_completions(token_ids: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns right-padded ids int64[B, C] and their mask int64[B, C]."""
    length = max(len(row) for row in token_ids)
    ids = torch.full((len(token_ids), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(token_ids), length), dtype=torch.long)
    for index, row in enumerate(token_ids):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return ids, mask
