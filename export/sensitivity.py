"""How much each part of a policy loses when its weights are rounded to codes, measured in the robot's actions.

One part at a time is rounded in PyTorch as the bundle would store it, and the policy answers the same observations as
with its full weights, from the same noise. A part that loses more than is accepted is tried with codes of 8 bits, then
stays at 16 bit, and says so. Last, all parts are rounded together as they were chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from roboalign.export.gptq import Moments
from roboalign.export.rounding import QUANTIZED_BITS, Layer, QuantizedWeight, quantizable, round_layers
from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import FloatArray, Observation
from roboalign.trainer.backend import TorchBackend

__all__ = ["KEPT", "PARTS", "PartLoss", "Rounded", "answers", "modules_of", "round_parts"]

PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "vision": ("model", ("model.vision.", "model.visual.")),
    "decoder": ("model", ("model.language_model.",)),
    "head": ("head", ("",)),
}
"""By name: the file that holds the part's weights (without its ending), and how their names begin."""

KEPT = "fp16"
"""Precision of a part that loses too much as codes."""

_FALLBACKS = {"int4": ("int4", "int8"), "int8": ("int8",)}
"""What is tried for a part, in turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartLoss:
    """What rounding one part did to the answers."""

    part: str
    """Key of `PARTS`, or `all`."""
    precision: str
    """What it was rounded to; `mixed` where parts differ."""
    num_weights: int
    """Weights that become codes."""
    action_error: float
    """95th percentile of the difference of an action field, as a share of that field's range."""
    same_thoughts: float
    """Share of the observations with the same thought, token for token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounded:
    """Which precision each part got, and its codes."""

    chosen: Mapping[str, str]
    """Precision by part: one of `int4`, `int8`, `fp16`."""
    tried: tuple[PartLoss, ...]
    """What was measured, in turn."""
    together: PartLoss
    """All parts as they were chosen."""
    codes: Mapping[str, Mapping[str, QuantizedWeight]]
    """By weight file (`model`, `head`), then by weight."""


def modules_of(backend: TorchBackend) -> dict[str, torch.nn.Module]:
    """Returns the modules of a policy by weight file."""
    assert backend.head is not None
    return {"model": backend.backbone.model, "head": backend.head}


def round_parts(
    backend: TorchBackend,
    observations: Sequence[Observation],
    precision: str,
    *,
    limit: float,
    moments: Mapping[str, Mapping[str, Moments]] | None = None,
    parts: Collection[str] = tuple(PARTS),
) -> Rounded:
    """Chooses each part's precision; the model is as it was afterwards.

    Args:
        backend: the policy.
        observations: what losses are measured on.
        precision: `int8` or `int4`, tried first.
        limit: largest accepted `PartLoss.action_error`.
        moments: of the layers' inputs by weight file, for GPTQ; None rounds to the nearest code.
        parts: which may become codes; the others stay in 16 bits and are not measured.

    Raises:
        CheckFailed: a part has nothing to round, every part that may be rounded loses too much, or an answer is a hold.
    """
    modules = modules_of(backend)
    span = np.asarray(backend.spec.action_high, np.float32) - np.asarray(backend.spec.action_low, np.float32)
    full = answers(backend, observations)
    chosen: dict[str, str] = {}
    tried: list[PartLoss] = []
    codes: dict[str, dict[str, QuantizedWeight]] = {file: {} for file in modules}
    for part, (file, prefix) in PARTS.items():
        layers = {name: layer for name, layer in quantizable(modules[file]).items() if name.startswith(prefix)}
        if not layers:
            raise CheckFailed(f"the {part} has no weight that can be stored as {precision}; use --precision fp16")
        chosen[part] = KEPT
        if part not in parts:
            continue
        for option in _FALLBACKS[precision]:
            found = round_layers(layers, QUANTIZED_BITS[option], None if moments is None else moments[file])
            with _decoded(layers, found):
                loss = _loss(part, option, found, (full, answers(backend, observations)), span)
            tried.append(loss)
            if loss.action_error <= limit:
                chosen[part] = option
                codes[file] |= found
                break
    if not any(codes.values()):
        raise CheckFailed(
            f"every part loses more than {limit:.1%} of the action's range in {precision}; use --precision "
            f"{'fp16' if precision == 'int8' else 'int8 or fp16'}"
        )
    all_layers = {f"{file}:{name}": layer for file in modules for name, layer in quantizable(modules[file]).items()}
    all_codes = {f"{file}:{name}": code for file, found in codes.items() for name, code in found.items()}
    kinds = set(chosen.values())
    with _decoded(all_layers, all_codes):
        kind = kinds.pop() if len(kinds) == 1 else "mixed"
        together = _loss("all", kind, all_codes, (full, answers(backend, observations)), span)
    return Rounded(chosen=chosen, tried=tuple(tried), together=together, codes=codes)


_Answers = tuple[FloatArray, list[tuple[int, ...]]]


def answers(backend: TorchBackend, observations: Sequence[Observation]) -> _Answers:
    """Returns the actions float32[N, T, A] and the thoughts' tokens for N observations.

    Raises:
        CheckFailed: an answer is a hold.
    """
    policy = Policy(backend)  # not closed: the backend is the caller's
    chunks = [policy.act(observation) for observation in observations]
    if held := [chunk.reason for chunk in chunks if chunk.source == "hold"]:
        raise CheckFailed(f"sensitivity cannot be measured: {len(held)} answers are holds, first: {held[0]}")
    return np.stack([chunk.actions for chunk in chunks]), [chunk.tokens for chunk in chunks]


def _loss(
    part: str,
    precision: str,
    codes: Mapping[str, QuantizedWeight],
    pair: tuple[_Answers, _Answers],
    span: FloatArray,
) -> PartLoss:
    (actions, thoughts), (rounded, other_thoughts) = pair
    return PartLoss(
        part=part,
        precision=precision,
        num_weights=sum(code.codes.size for code in codes.values()),
        action_error=float(np.percentile(np.abs(rounded - actions) / span, 95)),
        same_thoughts=float(np.mean([a == b for a, b in zip(thoughts, other_thoughts, strict=True)])),
    )


@contextmanager
def _decoded(layers: Mapping[str, Layer], codes: Mapping[str, QuantizedWeight]) -> Iterator[None]:
    """Puts what the codes decode to into the layers, for a while."""
    kept = {name: layers[name].weight.detach().clone() for name in codes}
    try:
        with torch.no_grad():
            for name, code in codes.items():
                layers[name].weight.copy_(code.decoded())
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                layers[name].weight.copy_(weight)
