"""What the action head is trained on: hidden states of the frozen backbone, with a fresh, a stale or no thought.

At run time a head may act on a thought about this very picture, on an older one (a slow computer thinks beside the
control loop), or on none. Each frame is therefore stored three times:

- `fresh`: slow prompt, and the greedy thought about this frame;
- `stale`: slow prompt, and the thought about an earlier frame with a picture of the same episode (`stale_rows`);
- `absent`: the quick prompt and nothing behind it, as `Policy(think=False)` feeds it.

A prompt and its picture are read once and a thought is written once for each frame: what the three have in common is
not computed again. The store is float16, without padding; 27 000 frames of nano (160 wide, about 190 tokens for the
three kinds) take 1.6 GB in memory, and the same on disk while the stage runs.

Shape suffixes: M stored tokens, N frames, B batch, L tokens, C tokens of a completion, D hidden size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.backbone import HuggingFaceBackbone
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.inputs import PromptInputs
from roboalign.trainer.progress import progress_bar
from roboalign.trainer.thinking import greedy_thoughts

__all__ = ["KINDS", "FeatureSettings", "Features", "cache_features", "compute_features", "stale_rows"]

KINDS = ("fresh", "stale", "absent")
"""What the thought behind a prompt may be."""

_AGE_SEED = 716
_LAYOUT = 1  # of the file; part of its name


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSettings:
    """What decides the features of a frame, besides the backbone."""

    layer: int
    """Decoder layer after which the hidden states are taken."""
    budget: int
    """Tokens a thought may take."""
    max_age: int
    """Oldest stale thought, in frames with a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """Stored conditioning of N frames."""

    tokens: torch.Tensor
    """float16[M, D], frame after frame."""
    starts: torch.Tensor
    """int64[3, N], where each frame of each kind begins in `tokens`."""
    lengths: torch.Tensor
    """int64[3, N], tokens of each frame; 0 for a kind that was not computed."""

    def batch(self, rows: np.ndarray, kinds: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (hidden float32[B, L, D], mask bool[B, L]) of some frames, each of its kind (index in `KINDS`).

        What lies behind the mask is finite and means nothing.
        """
        index = (torch.from_numpy(kinds), torch.from_numpy(rows))
        lengths = self.lengths[index]
        assert bool((lengths > 0).all()), "a kind was asked for that was not computed"
        place = torch.arange(int(lengths.max()))
        mask = place < lengths.unsqueeze(1)
        return self.tokens[self.starts[index].unsqueeze(1) + place * mask].float(), mask

    @property
    def num_bytes(self) -> int:
        """Size in memory and on disk."""
        return sum(t.numel() * t.element_size() for t in (self.tokens, self.starts, self.lengths))


def stale_rows(episodes: np.ndarray, *, max_age: int) -> np.ndarray:
    """Returns int64[N]: for each frame, the frame whose thought it finds when thoughts are stale.

    The age is uniform in 1..`max_age` frames with a picture, one draw a frame, always the same; it is cut at the
    start of the episode, so that a first frame finds its own thought.
    """
    place = np.arange(len(episodes))
    begins = np.append(True, episodes[1:] != episodes[:-1])
    first = np.maximum.accumulate(np.where(begins, place, 0))
    ages = np.random.default_rng(_AGE_SEED).integers(1, max_age + 1, size=len(episodes))
    return np.maximum(place - ages, first)


@torch.no_grad()
def compute_features(
    backbone: HuggingFaceBackbone,
    table: FrameTable,
    settings: FeatureSettings,
    *,
    kinds: Sequence[str] = KINDS,
    max_gib: float = 8.0,
    batch_size: int | None = None,
) -> Features:
    """Returns the hidden states of every frame, for the kinds asked for.

    A GPU gets more frames at once: writing thoughts, it waits for the CPU.

    Raises ConfigError after the first batch when all of them will take more than `max_gib`.
    """
    store = _Store(len(table))
    batch_size = batch_size or (128 if backbone.model.device.type == "cpu" else 512)
    stale = stale_rows(table.episodes, max_age=settings.max_age)
    thoughts: list[torch.Tensor] = []
    with progress_bar("thoughts", len(table)) as update:
        for start in range(0, len(table), batch_size):
            rows = np.arange(start, min(start + batch_size, len(table)))
            slow = _prompts(backbone, table, rows, pace="slow")
            reading = _Reading(backbone, slow, settings.layer)
            if set(kinds) & {"fresh", "stale"}:
                ids, mask = greedy_thoughts(backbone, slow, budget=settings.budget, state=reading.state)
                thoughts += [row[keep.bool()] for row, keep in zip(ids, mask, strict=True)]
            if "fresh" in kinds:
                store.add("fresh", rows, *reading.behind(ids, mask))
            if "stale" in kinds:
                store.add("stale", rows, *reading.behind(*_padded([thoughts[int(r)] for r in stale[rows]])))
            if "absent" in kinds:
                store.add("absent", rows, *reading.instead(_prompts(backbone, table, rows, pace="quick")))
            if start == 0:
                store.check(len(rows), max_gib)
            update(len(rows))
    return store.features()


def cache_features(
    folder: Path,
    backbone: HuggingFaceBackbone,
    table: FrameTable,
    settings: FeatureSettings,
    *,
    kinds: Sequence[str],
    content: Mapping[str, object],
    max_gib: float = 8.0,
) -> Features:
    """Returns `compute_features`, from a file of an earlier call where there is one.

    Args:
        folder: where the file lies; made when it is absent.
        backbone: the frozen model.
        table: the frames.
        settings: what is taken.
        kinds: which of `KINDS`.
        content: all that tells this model and these frames from others (JSON values); part of the file's name.
        max_gib: what may be stored at most, in memory and on disk alike.
    """
    named = {"layout": _LAYOUT, "kinds": list(kinds), "frames": len(table), **content}
    named |= {name: getattr(settings, name) for name in FeatureSettings.__slots__}
    key = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]
    file = Path(folder) / f"{key}.safetensors"
    if file.is_file():
        try:
            return Features(**load_file(file))
        except (OSError, TypeError, SafetensorError) as err:
            raise ConfigError(f"the stored features {file} are damaged ({err}); delete the file") from err
    features = compute_features(backbone, table, settings, kinds=kinds, max_gib=max_gib)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    save_file({name: getattr(features, name) for name in Features.__slots__}, temporary)
    temporary.rename(file)
    return features


class _Reading:
    """Prompts that were read once, with the hidden states of their tokens; what follows is read behind them."""

    def __init__(self, backbone: HuggingFaceBackbone, prompts: PromptInputs, layer: int) -> None:
        self._backbone, self._layer = backbone, layer
        self._prompts = prompts
        with backbone.tapped(layer) as taken:
            _, self.state = backbone.prefill(prompts)
        (self._hidden_BLD,) = taken

    def behind(self, ids_BC: torch.Tensor, mask_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns hidden states and mask of the prompts with a completion behind them."""
        return self._behind(self._hidden_BLD.shape[1], ids_BC, mask_BC)

    def instead(self, other: PromptInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns hidden states and mask of other prompts; only what they end in is read where the rest is the same."""
        shared = self._num_shared(other)
        if (other.input_ids[:, shared:] == cast(Any, self._backbone.processor).image_token_id).any():
            return self._backbone.hidden_after(other, self._layer), other.attention_mask
        return self._behind(shared, other.input_ids[:, shared:], other.attention_mask[:, shared:])

    def _num_shared(self, other: PromptInputs) -> int:
        """Returns how many tokens all rows of both have in common, from the left."""
        mine = self._prompts
        if other.input_ids.shape != mine.input_ids.shape or not torch.equal(other.attention_mask, mine.attention_mask):
            return 0
        return int((other.input_ids == mine.input_ids).all(dim=0).long().cumprod(dim=0).sum())

    def _behind(self, length: int, ids_BC: torch.Tensor, mask_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.state.cut(length)
        new = self._backbone.hidden_behind(state, ids_BC, mask_BC, self._layer)
        mask = torch.cat((state.attention_mask, mask_BC.to(state.attention_mask.dtype)), dim=1)
        return torch.cat((self._hidden_BLD[:, :length], new), dim=1), mask


class _Store:
    """Collects hidden states batch by batch."""

    def __init__(self, num_frames: int) -> None:
        self._chunks: list[torch.Tensor] = []
        self._starts = torch.zeros((len(KINDS), num_frames), dtype=torch.int64)
        self._lengths = torch.zeros_like(self._starts)
        self._num_tokens = 0

    def add(self, kind: str, rows: np.ndarray, hidden_BLD: torch.Tensor, mask_BL: torch.Tensor) -> None:
        """Takes the hidden states of some frames."""
        is_real = mask_BL.bool()
        lengths = is_real.sum(dim=1).cpu()
        index = (KINDS.index(kind), torch.from_numpy(rows))
        self._lengths[index] = lengths
        self._starts[index] = self._num_tokens + lengths.cumsum(dim=0) - lengths
        self._chunks.append(hidden_BLD[is_real].half().cpu())
        self._num_tokens += int(lengths.sum())

    def check(self, num_done: int, max_gib: float) -> None:
        """Raises ConfigError when all frames will need more than `max_gib`, going by the first `num_done`."""
        num_frames, width = self._starts.shape[1], self._chunks[0].shape[1]
        gib = self._num_tokens / num_done * num_frames * width * 2 / 2**30
        if gib > max_gib:
            raise ConfigError(
                f"the features of {num_frames} frames will take {gib:.1f} GiB, expected at most {max_gib:g}; "
                "read fewer frames (HeadConfig.max_frames) or allow more (HeadConfig.max_gib)"
            )

    def features(self) -> Features:
        """Returns what was collected."""
        return Features(tokens=torch.cat(self._chunks), starts=self._starts, lengths=self._lengths)


def _prompts(backbone: HuggingFaceBackbone, table: FrameTable, rows: np.ndarray, *, pace: str) -> PromptInputs:
    instructions = [table.instruction(int(r)) for r in rows]
    return backbone.encode_prompts(instructions, table.states[rows], list(table.images[rows]), pace=pace, task="act")


def _padded(thoughts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and mask int64[B, C] of thoughts, right-padded."""
    ids = torch.nn.utils.rnn.pad_sequence(list(thoughts), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in thoughts], batch_first=True)
    return ids, mask
