"""Which seeds belong to training and which to evaluation: two streams that never meet."""

from __future__ import annotations

from roboalign.sdk.errors import ConfigError

__all__ = ["EVAL_OFFSET", "eval_seed", "is_eval_seed", "train_seed"]

EVAL_OFFSET = 1_000_000_000
"""First evaluation seed; every training seed is smaller."""


def train_seed(index: int) -> int:
    """Returns the seed of training episode `index`."""
    _check(index)
    return index


def eval_seed(index: int) -> int:
    """Returns the seed of evaluation episode `index`, which no training episode can have."""
    _check(index)
    return EVAL_OFFSET + index


def is_eval_seed(seed: int) -> bool:
    """True when the seed belongs to the evaluation stream."""
    return seed >= EVAL_OFFSET


def _check(index: int) -> None:
    if not 0 <= index < EVAL_OFFSET:
        raise ConfigError(f"episode index {index} is outside 0..{EVAL_OFFSET - 1}; the two streams would overlap")
