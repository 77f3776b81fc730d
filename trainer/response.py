"""The loss on replies: next-token cross-entropy, with logits for reply tokens only and never for all of them at once.

Shape suffixes: N reply tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["MAX_LOGITS", "ResponseLoss", "response_loss"]

MAX_LOGITS = 2**27
"""Logits held at once: 0.5 GB in float32. A vocabulary of 152 thousand takes 883 tokens at a time, nano all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseLoss:
    """Sums over the reply tokens of some sequences."""

    total: torch.Tensor
    """Sum of the cross-entropies, with its graph."""
    num_right: int
    """Tokens that were the most likely ones."""
    num_tokens: int
    """N."""


def response_loss(
    head: nn.Module, hidden_BLD: torch.Tensor, labels_BL: torch.Tensor, *, max_logits: int = MAX_LOGITS
) -> ResponseLoss:
    """Returns the loss of the labels that are not -100, each read from the hidden state before it.

    What does not fit into `max_logits` is done in parts whose logits are made again for the gradient.
    """
    wanted_BL = labels_BL[:, 1:] != -100
    hidden_ND, target_N = hidden_BLD[:, :-1][wanted_BL], labels_BL[:, 1:][wanted_BL]
    num_rows = max(1, max_logits // int(cast(nn.Linear, head).weight.shape[0]))
    pairs = list(zip(hidden_ND.split(num_rows), target_N.split(num_rows), strict=True))
    if len(pairs) == 1:
        total, num_right = _part(head, *pairs[0])
    else:
        parts = [checkpoint(_part, head, hidden, target, use_reentrant=False) for hidden, target in pairs]
        total, num_right = torch.stack([p[0] for p in parts]).sum(), torch.stack([p[1] for p in parts]).sum()
    return ResponseLoss(total=total, num_right=int(num_right), num_tokens=len(target_N))


def _part(head: nn.Module, hidden_ND: torch.Tensor, target_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits_NV = head(hidden_ND).float()
    return F.cross_entropy(logits_NV, target_N, reduction="sum"), (logits_NV.argmax(-1) == target_N).sum()
