"""The markers and action tokens that a backbone's vocabulary gains before `sft`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel

from roboalign.sdk.errors import BundleError, ConfigError

__all__ = [
    "ACTION_MARKERS",
    "REPLY_MARKERS",
    "add_action_tokens",
    "add_tokens",
    "require_action_tokens",
    "spread_action_rows",
]

REPLY_MARKERS = ("<think>", "</think>", "<answer>", "</answer>")
"""Markers of a reply in words, see `roboalign.sdk.reply`."""

ACTION_MARKERS = (*REPLY_MARKERS, "<ACTION_START>", "<ACTION_END>")
"""Markers that a backbone's vocabulary must have, besides `<ACTION_0>` .. `<ACTION_{n-1}>`."""


def add_tokens(model: PreTrainedModel, tokenizer: Any, names: Sequence[str], *, multiple_of: int = 1) -> int:
    """Gives model and tokenizer the tokens that they lack; returns how many those were.

    The tokens are *not* flagged special: TRL decodes completions with `skip_special_tokens=True`, and whoever reads the
    text must see them. Their embedding rows are the mean of the old rows; the vocabulary is padded to `multiple_of`.
    """
    missing = [name for name in names if name not in tokenizer.get_vocab()]
    num_known = len(tokenizer)
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in missing])
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(
            len(tokenizer), pad_to_multiple_of=multiple_of if multiple_of > 1 else None, mean_resizing=False
        )
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = cast(torch.nn.Linear, module).weight
            weight[num_known:] = weight[:num_known].mean(dim=0)
    return len(missing)


def add_action_tokens(model: PreTrainedModel, tokenizer: Any, num_action_tokens: int, *, multiple_of: int = 1) -> int:
    """Gives model and tokenizer the markers and action tokens that they lack; returns how many those were."""
    actions = [f"<ACTION_{i}>" for i in range(num_action_tokens)]
    num_added = add_tokens(model, tokenizer, [*ACTION_MARKERS, *actions], multiple_of=multiple_of)
    ids = tokenizer.convert_tokens_to_ids(actions)
    if ids != list(range(ids[0], ids[0] + num_action_tokens)):
        raise ConfigError("the tokenizer's <ACTION_i> tokens are not contiguous; start from a tokenizer without them")
    return num_added


def require_action_tokens(tokenizer: Any, num_action_tokens: int, where: object) -> None:
    """Raises BundleError unless the tokenizer has the markers and all the action tokens of a codec."""
    known = tokenizer.get_vocab()
    names = [*ACTION_MARKERS, *(f"<ACTION_{i}>" for i in range(num_action_tokens))]
    missing = [name for name in names if name not in known]
    if missing:
        raise BundleError(
            f"{where}: the tokenizer lacks {len(missing)} of the {len(names)} markers and action tokens of its codec, "
            f"e.g. {missing[0]}; give a checkpoint of stage sft or later"
        )


def spread_action_rows(model: PreTrainedModel, tokenizer: Any, *, seed: int) -> None:
    """Adds a little noise to the mean-initialised action rows, so that equal rows do not stay equal."""
    first = tokenizer.convert_tokens_to_ids("<ACTION_0>")
    with torch.no_grad():
        for weight in _embedding_weights(model):
            generator = torch.Generator().manual_seed(seed)
            spread = 0.3 * weight[:first].std()
            weight[first:] += spread * torch.randn(weight[first:].shape, generator=generator).to(weight)


def _embedding_weights(model: PreTrainedModel) -> list[torch.Tensor]:
    """Returns the input rows, and the output rows where they are not the same tensor."""
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    rows, head = (cast(torch.nn.Linear, part).weight for part in parts)
    return [rows] if rows.data_ptr() == head.data_ptr() else [rows, head]
