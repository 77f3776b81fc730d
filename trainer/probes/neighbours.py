"""What the hidden states know, read without training: a k-nearest-neighbour probe (paper, analysis of hidden states).

The paper reports the accuracy of such a probe of the robot's state for the base model, after SFT and after RL; it does
not say k, the labels or the layer's token. Here: the hidden state of the last prompt token (quick prompt, so no thought
helps) after the layer that the head reads, each dimension standardised over the reference frames; cosine similarity;
k = 5; majority, ties to the nearer neighbour. References are frames of other episodes than the questioned one.

Labels (`LABELS`): `stage` is the state of the task that the robot is in (the expert's stage of this frame); `target`
and `offset` are the cell of the object that the sentence names, on the table and seen from the gripper; `gripper` is
the cell of the gripper, which the prompt tells in words: it bounds what the probe can read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from roboalign.sdk.errors import DataError
from roboalign.sdk.sim.truth import SceneTruth
from roboalign.trainer.backbone import HuggingFaceBackbone
from roboalign.trainer.frames import FrameTable

__all__ = ["LABELS", "K", "NeighbourRow", "label_of", "nearest_labels", "neighbour_probe", "prompt_states"]

K = 5
LABELS = ("stage", "target", "offset", "gripper")
_CELL_M = 0.08
"""Side of a cell of the table: two blocks wide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourRow:
    """Accuracy of one label, over the frames of one task or of all."""

    label: str
    """One of `LABELS`."""
    task: str
    """Name of the task, or `all`."""
    right: int
    """Frames whose label was found."""
    count: int
    """Frames that were asked about."""
    episodes: int
    """Episodes that they are of; frames of one episode are alike, so the interval over frames is too short."""
    chance: float
    """Accuracy of always saying the label that is most frequent among the references of these tasks."""


def label_of(truth: SceneTruth, name: str) -> str:
    """Returns the label of a frame."""
    if name == "stage":
        return f"{truth.family} {truth.stage}"
    hand = np.asarray(truth.state[:2], np.float64)
    if name == "gripper":
        place = hand
    else:
        thing = truth.target_object if truth.is_about_object else truth.fixture(truth.target)
        place = np.asarray(thing.position_m[:2], np.float64)
        place = place - hand if name == "offset" else place
    return " ".join(str(int(v)) for v in np.floor(place / _CELL_M))


@torch.no_grad()
def prompt_states(
    backbone: HuggingFaceBackbone, table: FrameTable, *, layer: int, batch_size: int = 64
) -> NDArray[np.float32]:
    """Returns float32[N, D], the hidden state of the last token of each frame's quick prompt after `layer`."""
    found = []
    for start in range(0, len(table), batch_size):
        rows = np.arange(start, min(start + batch_size, len(table)))
        inputs = backbone.encode_prompts(
            [table.instruction(int(r)) for r in rows],
            table.states[rows],
            list(table.images[rows]),
            pace="quick",
            task="act",
        )
        found.append(
            backbone.hidden_after(inputs, layer)[:, -1].float().cpu().numpy()
        )  # prompts are padded on the left
    return np.concatenate(found)


def nearest_labels(
    references: NDArray[np.float32], labels: list[str], queries: NDArray[np.float32], *, k: int = K
) -> list[str]:
    """Returns the label that most of the k most similar references have, for every query."""
    mean, std = references.mean(axis=0), references.std(axis=0).clip(1e-6)
    known, asked = ((part - mean) / std for part in (references, queries))
    known /= np.linalg.norm(known, axis=1, keepdims=True).clip(1e-6)
    order = np.argsort(-(asked @ known.T), axis=1, kind="stable")[:, :k]
    # Counter keeps the order of insertion, and most_common is stable: of equal counts the nearest comes first.
    return [Counter(labels[int(i)] for i in row).most_common(1)[0][0] for row in order]


def neighbour_probe(
    backbone: HuggingFaceBackbone, train: FrameTable, held: FrameTable, *, layer: int
) -> list[NeighbourRow]:
    """Returns the accuracy for every label, over all tasks and for each of them."""
    if len(train) < K:
        raise DataError(f"the probe needs at least {K} reference frames, found {len(train)}; give more data")
    references, queries = (prompt_states(backbone, part, layer=layer) for part in (train, held))
    train_truths, held_truths = (part.require_truths("the neighbour probe") for part in (train, held))
    tasks = [truth.task_name for truth in held_truths]
    rows = []
    for name in LABELS:
        known = [label_of(truth, name) for truth in train_truths]
        wanted = [label_of(truth, name) for truth in held_truths]
        found = nearest_labels(references, known, queries)
        for task in ("all", *sorted(set(tasks))):
            mine = [i for i, other in enumerate(tasks) if task in ("all", other)]
            usual = [label for label, t in zip(known, train_truths, strict=True) if task in ("all", t.task_name)]
            most = Counter(usual).most_common(1)[0][0] if usual else None
            rows.append(
                NeighbourRow(
                    label=name,
                    task=task,
                    right=sum(found[i] == wanted[i] for i in mine),
                    count=len(mine),
                    episodes=len({int(held.episodes[i]) for i in mine}),
                    chance=sum(wanted[i] == most for i in mine) / len(mine),
                )
            )
    return rows
