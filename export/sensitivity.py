"""How much each part of a policy loses when its weights are rounded to codes, measured in the robot's actions.

One part at a time is rounded in PyTorch as the bundle would store it, and the policy answers the same observations as
with its full weights, from the same noise. A part that loses more than is accepted stays at 16 bit, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from roboalign.export.weights import Layer, decoded_weight, quantizable
from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import FloatArray, Observation
from roboalign.trainer.backend import TorchBackend

__all__ = ["PARTS", "PartLoss", "measure_parts"]

PARTS: Mapping[str, tuple[str, str]] = {
    "vision": ("model", "model.vision."),
    "decoder": ("model", "model.language_model."),
    "head": ("head", ""),
}
"""By name: the file that holds the part's weights (without its ending), and how their names begin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartLoss:
    """What rounding one part did to the answers."""

    part: str
    """Key of `PARTS`."""
    num_weights: int
    """Weights that become codes."""
    action_error: float
    """95th percentile of the difference of an action field, as a share of that field's range."""
    same_thoughts: float
    """Share of the observations with the same thought, token for token."""


def measure_parts(backend: TorchBackend, observations: Sequence[Observation], precision: str) -> tuple[PartLoss, ...]:
    """Returns the loss of every part; the model is as it was afterwards.

    Raises:
        CheckFailed: a part has nothing to round, or an answer is a hold.
    """
    assert backend.head is not None
    spec = backend.spec
    span = np.asarray(spec.action_high, np.float32) - np.asarray(spec.action_low, np.float32)
    modules: dict[str, torch.nn.Module] = {"model": backend.backbone.model, "head": backend.head}
    actions, thoughts = _answers(backend, observations)
    found = []
    for part, (file, prefix) in PARTS.items():
        layers = {name: layer for name, layer in quantizable(modules[file]).items() if name.startswith(prefix)}
        if not layers:
            raise CheckFailed(f"the {part} has no weight that can be stored as {precision}; use --precision fp16")
        with _rounded(layers, precision):
            rounded, other_thoughts = _answers(backend, observations)
        loss = PartLoss(
            part=part,
            num_weights=sum(layer.weight.numel() for layer in layers.values()),
            action_error=float(np.percentile(np.abs(rounded - actions) / span, 95)),
            same_thoughts=float(np.mean([a == b for a, b in zip(thoughts, other_thoughts, strict=True)])),
        )
        found.append(loss)
    return tuple(found)


def _answers(backend: TorchBackend, observations: Sequence[Observation]) -> tuple[FloatArray, list[tuple[int, ...]]]:
    policy = Policy(backend)  # not closed: the backend is the caller's
    chunks = [policy.act(observation) for observation in observations]
    if held := [chunk.reason for chunk in chunks if chunk.source == "hold"]:
        raise CheckFailed(f"sensitivity cannot be measured: {len(held)} answers are holds, first: {held[0]}")
    return np.stack([chunk.actions for chunk in chunks]), [chunk.tokens for chunk in chunks]


@contextmanager
def _rounded(layers: Mapping[str, Layer], precision: str) -> Iterator[None]:
    kept = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        with torch.no_grad():
            for layer in layers.values():
                layer.weight.copy_(decoded_weight(layer, precision))
        yield
    finally:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.copy_(kept[name])
