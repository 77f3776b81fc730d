"""The graph of the action head: the samples of `trainer/flow.py`, in few and plain operations.

A head is small, so what costs time is how many operations there are. Here everything is a matrix of one sample, instead
of a batch of one, and what the state and the time of all Euler steps ask of a block is computed at once.

Shape suffixes: L longest sequence, D hidden size, T horizon, A action fields, S state fields, E width of the head,
H heads, K head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from roboalign.trainer.flow import FlowHead

__all__ = ["FlowGraph"]

_PARTS = 9
"""Shift, scale and gate of each of a block's three parts."""
_SCALES = (1, 4, 7)
"""Which of them are scales, which are counted from one."""


class FlowGraph(nn.Module):
    """hidden [1, L, D], length int64[1], state [1, S], noise [1, T, A] -> actions [1, T, A] in their units.

    All Euler steps are unrolled; the keys and values of the hidden states are computed once.
    """

    def __init__(self, head: FlowHead) -> None:
        super().__init__()
        self.model = head

    def forward(
        self, hidden: torch.Tensor, length: torch.Tensor, state: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        head, num_steps = self.model, self.model.config.num_steps
        is_real_L = torch.arange(hidden.shape[1]) < length
        hides_11L = torch.zeros_like(hidden[:, :, 0]).masked_fill(~is_real_L, float("-inf")).unsqueeze(0)
        source_LE = head.source(hidden[0])
        blocks: Any = head.blocks
        memory = [self._keys_and_values(block.cross, source_LE) for block in blocks]
        time_N = torch.arange(num_steps, dtype=hidden.dtype) / num_steps
        cond_NE = F.silu(head.embed_time(time_N) + head.embed_state(state))
        parts = [self._modulation(block, cond_NE) for block in blocks]
        x_TA: torch.Tensor = noise[0]
        for step in range(num_steps):
            x_TE = head.action_in(x_TA) + head.position
            for block, pair, rows in zip(blocks, memory, parts, strict=True):
                x_TE = self._run(block, x_TE, rows[_PARTS * step : _PARTS * (step + 1)], pair, hides_11L)
            x_TA = x_TA + head.out(head.norm(x_TE)) / num_steps
        return head.denormalize(x_TA).unsqueeze(0)

    def _modulation(self, block: Any, cond_NE: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns rows [1, E], those of each Euler step in turn."""
        rows = block.modulation(cond_NE).view(-1, cond_NE.shape[1])
        ones = torch.tensor([[float(part in _SCALES)] for part in range(_PARTS)], dtype=rows.dtype)
        parts: tuple[torch.Tensor, ...] = (rows + ones.repeat(len(cond_NE), 1)).split(1)
        return parts

    def _run(
        self,
        block: Any,
        x_TE: torch.Tensor,
        rows: tuple[torch.Tensor, ...],
        memory: tuple[torch.Tensor, torch.Tensor],
        hides_11L: torch.Tensor,
    ) -> torch.Tensor:
        shift, scale, gate = rows[0::3], rows[1::3], rows[2::3]
        h_TE = block.norms[0](x_TE) * scale[0] + shift[0]
        x_TE = x_TE + gate[0] * self._attend(block.mine, h_TE, self._keys_and_values(block.mine, h_TE), None)
        h_TE = block.norms[1](x_TE) * scale[1] + shift[1]
        x_TE = x_TE + gate[1] * self._attend(block.cross, h_TE, memory, hides_11L)
        h_TE = block.norms[2](x_TE) * scale[2] + shift[2]
        out_TE: torch.Tensor = x_TE + gate[2] * block.feed(h_TE)
        return out_TE

    def _keys_and_values(self, attention: Any, x_NE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key_NE, value_NE = attention.key_value(x_NE).chunk(2, dim=1)
        return self._heads(key_NE), self._heads(value_NE)

    def _heads(self, x_NE: torch.Tensor) -> torch.Tensor:
        return x_NE.view(x_NE.shape[0], self.model.config.num_heads, -1).transpose(0, 1)

    def _attend(
        self,
        attention: Any,
        x_TE: torch.Tensor,
        memory: tuple[torch.Tensor, torch.Tensor],
        hides_11L: torch.Tensor | None,
    ) -> torch.Tensor:
        key_HNK, value_HNK = memory
        score_HTN = self._heads(attention.query(x_TE) * key_HNK.shape[2] ** -0.5) @ key_HNK.transpose(1, 2)
        if hides_11L is not None:
            score_HTN = score_HTN + hides_11L
        mixed_HTK = score_HTN.softmax(dim=2) @ value_HNK
        out_TE: torch.Tensor = attention.out(mixed_HTK.transpose(0, 1).flatten(1))
        return out_TE
