"""Greedy thoughts for a batch: the same rule that the runtime follows, so that features match what it will see.

The reply is opened with `<think>`; only words and `</think>` may follow; when the budget is spent the thought is
closed.
"""

from __future__ import annotations

import torch

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.backbone import DecoderState, HuggingFaceBackbone, PromptInputs

__all__ = ["greedy_thoughts", "thought_mask"]


def thought_mask(backbone: HuggingFaceBackbone, vocab_size: int) -> torch.Tensor:
    """Returns bool[V]: the tokens that may be written inside a thought (words, and `</think>`)."""
    tokenizer = backbone.tokenizer
    allowed = torch.ones(vocab_size, dtype=torch.bool)
    for token_id in tokenizer.added_tokens_decoder:
        allowed[token_id] = False
    allowed[len(tokenizer) :] = False
    close = tokenizer.convert_tokens_to_ids("</think>")
    if close is None:
        raise ConfigError("the tokenizer has no </think> token; extend its vocabulary first")
    allowed[close] = True
    return allowed


@torch.no_grad()
def greedy_thoughts(
    backbone: HuggingFaceBackbone, inputs: PromptInputs, *, budget: int, state: DecoderState | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and mask int64[B, C] (right-padded) of `<think> words </think>`, at most budget + 2 tokens.

    `state` is that of the prompts where they were read already; its cache grows.
    """
    tokenizer = backbone.tokenizer
    open_id, close_id = (tokenizer.convert_tokens_to_ids(t) for t in ("<think>", "</think>"))
    if state is None:
        _, state = backbone.prefill(inputs)
    token = torch.full((inputs.num_prompts,), open_id, device=inputs.input_ids.device)
    is_done = torch.zeros_like(token, dtype=torch.bool)
    ids, masks = [token], [torch.ones_like(token)]
    allowed: torch.Tensor | None = None
    for position in range(budget + 1):
        logits, state = backbone.step(token, state)
        if allowed is None:
            allowed = thought_mask(backbone, logits.shape[1]).to(logits.device)
        best = logits.masked_fill(~allowed, float("-inf")).argmax(dim=1)
        token = torch.where(is_done | (best == close_id), close_id, best)
        if position == budget:
            token = torch.full_like(token, close_id)
        ids.append(token)
        masks.append((~is_done).long())
        is_done = is_done | (token == close_id)
        if bool(is_done.all()):
            break
    return torch.stack(ids, dim=1), torch.stack(masks, dim=1)
